"""What a run leaves behind: summary.json, history.jsonl, result.npz, figure.png, and a short text for people."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from . import metrics

NOT_A_POSTERIOR = ("The spread of the ensemble is not a posterior standard deviation, and more particles do not make "
                   "it one; the scatter between independent ensembles is the honest error bar.")
ONE_CHAIN = "One chain per run has no spread; the scatter between independent runs (--ensembles) is all there is."
BIASED = ("The spread is that of independent chains of a biased method, not a posterior standard deviation, even for a "
          "perfect prior.")

SPREAD = {  # what the spread of a method means, in words for the reader of a result
    **dict.fromkeys(("enkg", "eki"), NOT_A_POSTERIOR),
    **dict.fromkeys(("scg", "dpg", "forward-gsg", "central-gsg"), ONE_CHAIN),
    **dict.fromkeys(("dps", "diffpir"), BIASED),
    "mmps": "The chains are meant as draws of the posterior: exact for a linear forward model, an exact prior and many "
            "steps, else as good as the moments they match.",
    **dict.fromkeys(("pnpdm", "blade"), "The draws are meant as draws of the posterior for the noise of the data plus "
                    "the last coupling; a short run has not reached it."),
    "deft": "The chains are meant as draws of the posterior, as far as the correction network has learned it.",
    "enkg-r": "The spread is meant as a posterior standard deviation; measured, it was about right in plain cases, "
              "down to .6 times it with poor models or data (enkg_ref/enkg_r/README.md); distrust it at kappa above 3.",
}


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
    """How far to trust the run, by name, one value per ensemble, from its history lines.

    EnKG: `diagnostics.trust`, median and lowest tenth, over the second and later updates of the levels (``trust``: how
    linear the map was over the ensemble, inside a level) and over the first ones (``trust_across``: the predictor step
    and the change of the flow come between, so that it falls though nothing is wrong). Linearity is not accuracy.
    EnKG-R: ``kappa``, ``noise_ratio`` and ``chi2`` (average over the particles: ``mean_misfit``) of its last level, see
    `regressed.Info`; None where they are not finite.
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


def calibration(ensemble, truth):
    """Spread-skill ratio (M6), ranks (M7), coverage (M8) of an ensemble (J, *event), J >= 2, in physical units.

    ``interval`` : (nominal, found) coverage of the interval nearest to 90 % that J particles have, [x_(k), x_(J+1-k)],
    nominal (J + 1 - 2k)/(J + 1);  ``coverage`` : the same for up to six k;  ``rank_histogram`` : density in at most 16
    bins of whole ranks, 1 where calibrated.
    """
    J = len(ensemble)
    k = max(1, round(0.05 * (J + 1)))
    chosen = sorted({k, *np.linspace(1, J // 2, min(6, J // 2)).round().astype(int).tolist()}, reverse=True)
    pairs = {at: metrics.coverage(ensemble, truth, (J + 1 - 2 * at) / (J + 1))[::-1] for at in chosen}
    counts = metrics.rank_histogram(ensemble, truth)
    edges = np.linspace(0, J + 1, min(16, J + 1), endpoint=False).astype(int)
    density = np.add.reduceat(counts, edges) / np.diff(np.append(edges, J + 1)) * (J + 1) / counts.sum()
    return {"ssr": metrics.spread_skill_ratio(metrics.spread_and_skill(ensemble, truth)), "interval": pairs[k],
            "coverage": list(pairs.values()), "rank_histogram": density}


def weights_by_misfit(misfits):
    """Weights of independent ensembles, sum 1, from the misfits of their particles, a list of arrays (J,).

    exp(-((median misfit - best)/s)^2/2), s the scatter of the misfit over the particles of the best ensemble, 1.48
    times the median deviation: a run caught in a mode that does not fit counts for nothing, runs whose medians differ
    by little against s count alike, single particles that blew up decide nothing. A rule of thumb, not a ratio of
    evidences: where s is small against the errors of the ensembles, one of equally good runs may get most of the
    weight.
    Non-finite misfits are left out; an ensemble without a finite one has weight 0, unless none has one.
    """
    finite = [values[np.isfinite(values)] for values in misfits]
    medians = np.array([np.median(values) if len(values) else np.inf for values in finite])
    best = int(np.argmin(medians))
    if medians[best] == np.inf:
        return np.full(len(medians), 1.0 / len(medians))
    scatter = 1.48 * float(np.median(np.abs(finite[best] - medians[best]))) or 1.0
    weight = np.exp(-0.5 * ((medians - medians[best]) / scatter) ** 2)
    return weight / weight.sum()


def resampled(share):
    """Row numbers of a systematic resample by shares (sum 1), as many as there are; equal shares: every row once."""
    return np.searchsorted(np.cumsum(share), (np.arange(len(share)) + 0.5) / len(share)).clip(max=len(share) - 1)


def disagreement(ensemble, index):
    """Mean distance between two ensemble means over the norm of their mean; index (J,) says which is whose."""
    means = np.stack([ensemble[index == k].mean(axis=0) for k in np.unique(index)])
    apart = [np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]
    return float(np.mean(apart) / np.linalg.norm(means.mean(axis=0)))


def separation(ensemble, index):
    """Largest distance of two ensemble means over the spread of an ensemble, (tr C_xx)^1/2 averaged in square.

    (2/J)^1/2 where all sample one posterior with J particles; above 1 they stand further apart than particles do from
    their own mean: another mode, or a spread that is too small.
    """
    groups = [ensemble[index == k] for k in np.unique(index)]
    means = [group.mean(axis=0) for group in groups]
    apart = max(np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i])
    spread = np.sqrt(np.mean([np.sum(np.var(group, axis=0)) for group in groups]))
    return float(apart / spread) if spread > 0 else float("inf")


TRUST_WORDS = {
    "trust": "median cosine of foretold and found change of the data inside a level; 1: linear over the ensemble",
    "trust_tenth": "a tenth of them is below",
    "trust_across": "the same from level to level, lower by nature",
    "trust_across_tenth": "a tenth of them is below",
    "kappa": "square innovation over its expectation; near 1 is good, above 3 is not",
    "noise_ratio": "variance of the model error over that of the measurement",
    "chi2": "misfit per datum of the points that were simulated last",
}


ERRORS = {"relative_l2_mean": "M2: relative L2 error of the ensemble mean",
          "relative_l2_of_mean": "M2: relative L2 error of the ensemble mean",
          "relative_l2_particles": "M1: relative L2 error of the particles, averaged"}
METRIC_WORDS = {**ERRORS, "relative_l2_prior_sample": "of a draw of the Gaussian of the prior's data, root mean square"}
LOST = "their particles left the prior with every model noise tried and were drawn again without the data"


def _shown(values):
    return ", ".join("-" if value is None else f"{value:.2f}" for value in values)


def text(summary):
    """A few lines for the terminal: what was solved, how well, at what cost."""
    ledger, wall = summary["ledger"], summary["ledger"]["wall"]
    lines = [f"{summary['problem']}: {summary['method']}, {summary['ensembles']} ensemble(s) of "
             f"{summary['config'].get('particles', '?')} particles, prior {summary['prior']}, seed {summary['seed']}"]
    for name, value in summary["metrics"].items():
        each = [one[name] for one in summary["metrics_per_ensemble"] if one.get(name) is not None]
        ends = [f"{end(each):.4g}" for end in (min, max) if each]
        scatter = f"   ({' .. '.join(ends)} over the ensembles)" if len(set(ends)) > 1 else ""
        shown = f"{value:10.4g}" if isinstance(value, (int, float)) else value
        words = f"   ({METRIC_WORDS[name]})" if name in METRIC_WORDS else ""
        lines.append(f"  {name:32s} {shown}{scatter}{words}")
    for name, values in summary.get("trust", {}).items():
        lines.append(f"  {name:32s} {_shown(values)}   ({TRUST_WORDS[name]})")
    if summary.get("collapsed_updates"):
        lines.append(f"  {'updates skipped':32s} {summary['collapsed_updates']}   (the ensemble had collapsed to "
                     "rounding error in the data)")
    if summary.get("failed_predictions"):
        lines.append(f"  {'predictions failed':32s} {summary['failed_predictions']}   (non-finite rows of the forward "
                     "model at the last particles; no misfit counts them)")
    if summary.get("lost_levels"):
        lines.append(f"  {'levels lost':32s} {summary['lost_levels']}   ({LOST})")
    if "calibration" in summary:
        found = summary["calibration"]
        lines.append(f"  {'spread-skill ratio, coverage':32s} {found['ssr']:.2f}, {found['interval'][1]:.0%} of the "
                     f"points in {found['interval'][0]:.0%} intervals")
    if "disagreement" in summary:
        lines.append(f"  {'disagreement of the ensembles':32s} {summary['disagreement']:.3f}   (distance of two means "
                     "over the norm of the pooled one)")
        lines.append(f"  {'separation of the ensembles':32s} {summary['separation']:.3f}   (largest distance of two "
                     "means over the spread of one; above 1: other modes, or too small a spread)")
    if summary["method"] == "enkg-r" and summary["ensembles"] > 1:
        shares = ", ".join(f"{weight:.3f}" for weight in summary["weights"])
        lines.append(f"  {'weights of the ensembles':32s} {shares}   (by misfit)")
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in wall.items() if part != "total")
    lines.append(f"  {'forward calls':32s} {ledger['fwd_total']} ({ledger['fwd_seq']} sequential), "
                 f"{ledger['failed_fwd']} failed")
    lines.append(f"  {'denoiser calls':32s} {ledger['den_total']} ({ledger['den_seq']} sequential)")
    if ledger.get("diag_den"):
        lines.append(f"  {'denoiser calls for the reference':32s} {ledger['diag_den']}")
    for name, words in (("fwd_vjp", "forward gradients"), ("den_vjp", "denoiser gradients"),
                        ("net", "correction network calls")):
        if ledger.get(f"{name}_total"):
            lines.append(f"  {words:32s} {ledger[f'{name}_total']} ({ledger[f'{name}_seq']} sequential)")
    if ledger.get("offline_fwd"):
        lines.append(f"  {'offline forward calls':32s} {ledger['offline_fwd']}, spent in training")
    lines.append(f"  {'seconds':32s} {summary['seconds']:.1f} elapsed; busy {wall['total']:.1f} = {parts}")
    return "\n".join(lines)


def caption(summary):
    """What a reader must know beside the picture: the error, how far to trust it, what the spread and the data are."""
    errors = "; ".join(f"{words} {summary['metrics'][name]:.3g}" for name, words in ERRORS.items()
                       if summary["metrics"].get(name) is not None)
    trusted = [f"{name} {_shown(values)}: {TRUST_WORDS[name]}" for name, values in summary["trust"].items()]
    lost = f"{summary['lost_levels']} level(s) lost: {LOST}." if summary.get("lost_levels") else ""
    return [words for words in (errors, "; ".join(trusted), lost, summary["spread"], summary["notes"]) if words]


def figure(result, history, title):
    """The generic figure of a result: mean, spread, particles; data and prediction; misfit and spread against sigma.

    result : mapping with mean, std (*event), ensemble (J, *event), observation (m,), caption, maybe predictions (J, m),
    truth, calibration.
    history : list of history lines. Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    mean = result["mean"]
    shown = {"truth": result.get("truth"), "mean": mean, "spread (standard deviation)": result["std"],
             **{f"particle {j}": result["ensemble"][j] for j in range(min(3, len(result["ensemble"])))}}
    shown = {name: value for name, value in shown.items() if value is not None}
    columns = max(4 if "calibration" in result else 3, (len(shown) + 1) // 2)
    page = Figure(figsize=(3.4 * columns, 9.5), layout="constrained")
    axes = page.subplots(3, columns)
    fields = list(axes[:2].flat)
    image = mean.ndim >= 2 and min(mean.shape[-2:]) > 1
    for ax, (name, value) in zip(fields, shown.items()):
        if image:
            plane = value.reshape(-1, *value.shape[-2:])[0]
            page.colorbar(ax.imshow(plane, cmap="viridis" if "spread" in name else "inferno"), ax=ax, shrink=0.8)
            ax.set_xticks([]), ax.set_yticks([])
        else:
            ax.plot(value.reshape(-1), lw=1)
        ax.set_title(name, fontsize=9)
    for ax in fields[len(shown):]:
        ax.set_axis_off()
    data, conv = axes[2][0], axes[2][1]
    y = result["observation"].reshape(-1)
    data.plot(y, "k.", ms=4, label="data")
    if "predictions" in result:
        low, high = (end(result["predictions"], axis=0) for end in (np.min, np.max))
        data.fill_between(np.arange(len(y)), low, high, alpha=0.4, label="range of G(x)")
    data.set_title("observation", fontsize=9)
    data.legend(fontsize=7)
    draw_history(conv, history)
    rest = list(axes[2][2:])
    if "calibration" in result:
        draw_calibration(rest.pop(0), rest.pop(0), result["calibration"])
    for ax in rest:
        ax.set_axis_off()
    page.suptitle(title, fontsize=11)
    page.text(0.5, -0.01, "\n".join(result["caption"]), ha="center", va="top", fontsize=7, wrap=True)
    return page


def draw_calibration(ranks, covered, found):
    """Rank histogram and coverage against nominal, from ``calibration``."""
    density = found["rank_histogram"]
    ranks.bar((np.arange(len(density)) + 0.5) / len(density), density, width=0.9 / len(density))
    ranks.axhline(1.0, color="k", ls=":", lw=1)
    ranks.set_title(f"rank of the truth (calibrated: flat); SSR {found['ssr']:.2f}", fontsize=9)
    covered.plot(*zip(*found["coverage"]), "o-", ms=3, lw=1)
    covered.plot([0, 1], [0, 1], "k:", lw=1)
    covered.set(xlim=(0, 1), ylim=(0, 1))
    covered.set_title("coverage of the truth against nominal", fontsize=9)


def draw_history(ax, history):
    """Misfit of the mean and spread of the particles against the noise level, one line per ensemble."""
    for k in sorted({line.get("ensemble", 0) for line in history}):
        lines = [line for line in history if line.get("ensemble", 0) == k and line.get("sigma")]
        for name, style in (("misfit", "-"), ("spread", "--")):
            values = [(line["sigma"], max(line[name], 1e-12)) for line in lines if line.get(name) is not None]
            if values:
                ax.loglog(*zip(*values), style, lw=1, color=f"C{k}", label=name if k == 0 else None)
    ax.invert_xaxis()
    ax.set_xlabel("noise level sigma", fontsize=8)
    ax.set_title("misfit / m of the mean, spread", fontsize=9)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
