"""From the last particles to what a reader of a result wants: scores, weights, the verdict, the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..compare.run import beside_truth
from ..enkg_r import tail
from ..run import figures, metrics, report, verdict
from ..run.report import write_json

__all__ = ["Found", "drawn", "write_json"]


@dataclass(frozen=True)
class Found:
    """The end of a run. ensemble : (J, *event), physical units;  index : (J,), whose each is;  predictions : (J, m)

    weigh : ensembles count by how well they fit, not alike
    """

    problem: Any
    likelihood: Any
    ensemble: Any
    index: Any
    predictions: Any
    history: list
    weigh: bool

    @property
    def count(self):
        return int(self.index[-1]) + 1

    @cached_property
    def misfit(self):
        with np.errstate(over="ignore", invalid="ignore"):  # rows that failed
            return np.asarray(self.likelihood.misfit(self.predictions))

    @cached_property
    def finite(self):
        return np.isfinite(self.misfit)

    @cached_property
    def poolable(self):
        """The ensemble with what the data do not determine undone."""
        several = self.problem.pool is not None and self.count > 1
        return self.problem.pool(self.ensemble, self.index) if several else self.ensemble

    @cached_property
    def weights(self):
        if self.weigh:  # each ensemble samples the mode it found: modes count by how well they fit
            return metrics.weights_by_misfit([self.misfit[self.index == k] for k in range(self.count)])
        return np.full(self.count, 1.0 / self.count)

    @cached_property
    def rows(self):
        """Rows of the pooled ensemble."""
        return metrics.resampled((self.weights / np.bincount(self.index))[self.index])

    def moments(self):
        """Mean and standard deviation of the pooled ensemble."""
        pooled = self.poolable[self.rows]
        return pooled.mean(axis=0), pooled.std(axis=0)

    def summary(self, counts):
        """The entries of summary.json that come from the particles and the history; counts : of the ledger"""
        lines, pooled = self.history, self.poolable[self.rows]
        out = {"metrics": self._score(self.rows),
               "metrics_per_ensemble": [self._score(self.index == k) for k in range(self.count)],
               "failed_rows": sum(len(line.get("failed_rows", ())) for line in lines),
               "failed_predictions": int(np.sum(~self.finite)), "trust": report.trust(lines, self.count),
               "skipped_updates": sum(line.get("skipped", False) is True for line in lines),
               "lost_levels": sum(line.get("lost", False) for line in lines)}
        if self.count > 1:
            out |= {"disagreement": metrics.disagreement(self.poolable, self.index), "weights": self.weights,
                    "separation": metrics.separation(self.poolable, self.index)}
        if self.problem.truth is not None and len(pooled) > 1:
            out["calibration"] = metrics.calibration(*beside_truth(self.problem, pooled))
        judged = verdict.judge(self._evidence(counts, out.get("separation")))
        out["verdict"] = {"kind": judged.kind, "why": judged.why, "try": judged.advice, "sentence": str(judged)}
        return out

    def _score(self, rows):
        """The problem's figures of merit; else misfits, and errors where the truth is known."""
        if self.problem.score is not None:
            return self.problem.score(self.poolable[rows])
        out, seen = {}, self.predictions[rows][self.finite[rows]]
        if len(seen):
            out = {"chi2_mean_prediction": float(metrics.chi2(self.likelihood, seen.mean(axis=0, keepdims=True))[0]),
                   "chi2_median_particle": float(np.median(metrics.chi2(self.likelihood, seen)))}
        if self.problem.truth is not None:
            x = self.poolable[rows]
            out["relative_l2_of_mean"] = metrics.relative_l2_of_mean(x, self.problem.truth)
            out["relative_l2_of_particles"] = metrics.relative_l2_of_particles(x, self.problem.truth)
        return out

    def _evidence(self, counts, separation):
        """`verdict.Evidence` of the run."""
        m, lines = self.likelihood.size, self.history
        g = self.predictions[self.rows][self.finite[self.rows]]
        index = self.index[self.rows][self.finite[self.rows]]
        made = {name: [line[name] for line in lines if line.get(name) is not None]
                for name in ("misfit", "resolved", "collapse_budget")}
        ends = [[line["misfit"] for line in lines if line["ensemble"] == k and line.get("misfit") is not None]
                for k in range(self.count)]
        earlier = [values[3 * len(values) // 4] for values in ends if len(values) > 3]
        last = [next((line["kappa"] for line in reversed(lines) if line["ensemble"] == k and line.get("kappa")), None)
                for k in range(self.count)]
        chains = [next((line for line in reversed(lines) if line["ensemble"] == k), {}) for k in range(self.count)]
        chains = [tail.certificate(line) for line in chains if "r_hat" in line]  # they replace what kappa was about
        known = [kappa for kappa in last if kappa is not None and not chains]
        facts = {}
        if len(g):
            within = np.concatenate([g[index == k] - g[index == k].mean(axis=0) for k in np.unique(index)])
            white = np.asarray(self.likelihood.whiten(within))
            facts = {"mean": float(metrics.chi2(self.likelihood, g.mean(axis=0, keepdims=True))[0]),
                     "typical": float(np.median(metrics.chi2(self.likelihood, g))),
                     "spread": float(np.sum(white * white)) / len(g)}
        return verdict.Evidence(
            m, len(self.ensemble) // self.count, best=min(made["misfit"], default=None),
            earlier=float(np.median(earlier)) if earlier else None,
            resolved=max(made["resolved"], default=None),
            budget=max(made["collapse_budget"], default=None), kappa=max(known, default=None), separation=separation,
            chains=tuple(dict.fromkeys(doubt for found in chains for doubt in found)),
            failed=counts["failed_fwd"] / max(counts["fwd_total"], 1), lost=float(np.mean(~self.finite)),
            assumed=self.problem.observation.noise_is_assumed, **facts)


def drawn(solution):
    """The problem's picture of a `Solution`, or the generic one; the verdict is its head."""
    summary, problem = solution.summary, solution.problem
    finite = np.isfinite(solution.predictions).all(axis=1)
    shown = {**solution.arrays(), "history": solution.history,
             "caption": [figures.literal(words) for words in report.caption(summary)]}
    shown.pop("predictions")
    if finite.any():
        shown["predictions"] = solution.predictions[finite]
    if "calibration" in summary:
        shown["calibration"] = summary["calibration"]
    title = f"{problem.name}: {summary['method']}, prior {summary['prior']}"
    page = problem.figure(shown) if problem.figure else figures.figure(shown, solution.history, title)
    page.text(0.5, 1.005, figures.literal(summary["verdict"]["sentence"]), ha="center", va="bottom", fontsize=8)
    return page
