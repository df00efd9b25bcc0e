"""What a run tells people and machines in words and numbers: summary.json and a short text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

ERRORS = {"relative_l2_of_mean": "M2: relative L2 error of the ensemble mean",
          "relative_l2_of_particles": "M1: relative L2 error of the particles, averaged"}
METRIC_WORDS = {**ERRORS, "relative_l2_prior_sample": "of a draw of the Gaussian of the prior's data, root mean square",
                "chi2_mean_prediction": "misfit per datum of the mean prediction; 1 is expected at the truth",
                "chi2_median_particle": "misfit per datum, median over the particles; 1 is expected at the truth"}
COUNTED = (  # in a summary, with the words beside the number
    ("skipped_updates", "updates skipped", "the ensemble had collapsed to rounding error in the data, or the step rule "
     "gave no positive step"),
    ("failed_predictions", "predictions failed", "non-finite rows of the forward model at the last particles; no "
     "misfit counts them"),
    ("lost_levels", "levels lost", "their particles left the prior with every model noise tried and were drawn again "
     "without the data"),
)
CALLS = (("fwd_vjp", "forward gradients"), ("den_vjp", "denoiser gradients"), ("net", "correction network calls"))


def write_json(path, content):
    """Write JSON at once or not at all; numpy numbers become Python numbers, non-finite ones null."""
    partial = Path(path).with_name(Path(path).name + ".partial")
    partial.write_text(json.dumps(plain(content), indent=2) + "\n")
    os.replace(partial, path)


def plain(value):
    """``value`` as JSON has it: numpy arrays and numbers become Python's, a non-finite number null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def trust(history, ensembles):
    """Numbers of the history that say how far to trust a run, by name, one value per ensemble.

    EnKG: `diagnostics.trust`, median and lowest tenth, over the second and later updates of the levels (``trust``: how
    linear the map was over the ensemble, inside a level) and over the first ones (``trust_across``: the predictor step
    and the change of the flow come between, so that it falls though nothing is wrong). Linearity is not accuracy.
    EnKG-R: ``kappa`` (near 1 is good, above 3 is not), ``noise_ratio`` and ``chi2`` (misfit per datum of the points
    that were simulated last) of its last level; None where they are not finite.
    """
    out = {}
    for k in range(ensembles):
        lines = [line for line in history if line["ensemble"] == k]
        for name, within in (("trust", True), ("trust_across", False)):
            cosines = [line["trust"] for line in lines
                       if line.get("trust") is not None and (line["update"] > 0) == within]
            if cosines:
                out.setdefault(f"{name}_tenth", []).append(float(np.quantile(cosines, 0.1)))
                out.setdefault(name, []).append(float(np.median(cosines)))
        if lines and "kappa" in lines[-1]:
            for name, key in (("kappa", "kappa"), ("noise_ratio", "noise_ratio"), ("chi2", "mean_misfit")):
                out.setdefault(name, []).append(lines[-1][key])
    return out


def text(summary):
    """A few lines for the terminal: what was solved, how well, at what cost; the last one is the verdict."""
    lines = [f"{summary['problem']}: {summary['method']}, {summary['ensembles']} ensemble(s) of "
             f"{summary['config'].get('particles', '?')} particles, prior {summary['prior']}, seed {summary['seed']}"]
    if summary.get("chosen"):
        lines.append(f"  chosen: {summary['chosen']}")
    lines += [_metric(name, value, summary["metrics_per_ensemble"]) for name, value in summary["metrics"].items()]
    lines += [_row(words, summary[name], meaning) for name, words, meaning in COUNTED if summary.get(name)]
    lines += _beside_truth(summary) + _ensembles(summary) + _costs(summary["ledger"])
    wall = summary["ledger"]["wall"]
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in wall.items() if part != "total")
    lines.append(_row("seconds", f"{summary['seconds']:.1f} elapsed; busy {wall['total']:.1f} = {parts}"))
    if summary.get("verdict"):
        lines.append(f"  verdict: {summary['verdict']['sentence']}")
    return "\n".join(lines)


def _row(name, value, words=""):
    return f"  {name:32s} {value}" + (f"   ({words})" if words else "")


def _metric(name, value, per_ensemble):
    each = [one[name] for one in per_ensemble if one.get(name) is not None]
    ends = [f"{end(each):.4g}" for end in (min, max) if each]
    scatter = f"   ({' .. '.join(ends)} over the ensembles)" if len(set(ends)) > 1 else ""
    shown = f"{value:10.4g}" if isinstance(value, (int, float)) else value
    return _row(name, f"{shown}{scatter}", METRIC_WORDS.get(name, ""))


def _beside_truth(summary):
    if "calibration" not in summary:
        return []
    found = summary["calibration"]
    return [_row("spread-skill ratio, coverage", f"{found['ssr']:.2f}, {found['interval'][1]:.0%} of the points in "
                 f"{found['interval'][0]:.0%} intervals")]


def _ensembles(summary):
    lines = []
    if "disagreement" in summary:
        lines.append(_row("disagreement of the ensembles", f"{summary['disagreement']:.3f}",
                          "distance of two means over the norm of the pooled one"))
        lines.append(_row("separation of the ensembles", f"{summary['separation']:.3f}",
                          "largest distance of two means over the spread of one; above 1: other modes, or too small a "
                          "spread"))
    weights = summary.get("weights", ())
    if len(set(np.round(weights, 12))) > 1:
        lines.append(_row("weights of the ensembles", ", ".join(f"{weight:.3f}" for weight in weights), "by misfit"))
    return lines


def _costs(ledger):
    lines = [_row("forward calls", f"{ledger['fwd_total']} ({ledger['fwd_seq']} sequential), {ledger['failed_fwd']} "
                  "failed"),
             _row("denoiser calls", f"{ledger['den_total']} ({ledger['den_seq']} sequential)")]
    if ledger.get("diag_den"):
        lines.append(_row("denoiser calls for the reference", ledger["diag_den"]))
    lines += [_row(words, f"{ledger[f'{name}_total']} ({ledger[f'{name}_seq']} sequential)") for name, words in CALLS
              if ledger.get(f"{name}_total")]
    if ledger.get("offline_fwd"):
        lines.append(_row("offline forward calls", f"{ledger['offline_fwd']}, spent in training"))
    return lines


def caption(summary):
    """What a reader must know beside the picture: the error, what was lost, what the spread and the data are."""
    errors = "; ".join(f"{words} {summary['metrics'][name]:.3g}" for name, words in ERRORS.items()
                       if summary["metrics"].get(name) is not None)
    lost = "".join(f"{summary[name]} {words}: {meaning}." for name, words, meaning in COUNTED[2:] if summary.get(name))
    return [words for words in (errors, lost, summary["spread"], summary["notes"]) if words]
