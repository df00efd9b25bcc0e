"""What a person should make of a result: one sentence and what to try, from a few numbers of the run.

The data fit if the misfit per datum is what the noise explains: ||g - y||_Gamma^2 is about chi-squared with m degrees
of freedom at the truth. A posterior ensemble has a misfit per datum of about 1 for its particles, and of 1 - p/m for
the mean of its predictions, p = tr(Gamma^-1 C_yy) the number of directions of the data that it has fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RARE = 1e-3  # a p-value below this is no chance
FIT_FACTOR = 1.5  # misfit per datum that is forgiven whatever the p-value: no model and no noise level is exact
ASSUMED_FACTOR = 25.0  # the same where nobody stated the noise and 2 % of the data were assumed: 10 % of the data
OVERFIT_FACTOR = 0.5  # below it, and rare, particles follow the noise
COLLAPSED = 0.25  # variance of the predictions over what the data leave open: half the standard deviation
SPENT = 8.0  # collapse budget of a run (THEORY.md 1.5): the spread of the predictions fell about exp(8) times
FALLING = 0.8  # misfit at the end over that at three quarters of the updates: below, it has not come to rest
SEPARATED = 1.0  # distance of two ensemble means over the spread of one; sqrt(2/J) is expected
SURPRISED = 3.0  # kappa of EnKG-R: square of the innovations over its expectation
MANY_FAILED = 0.2  # share of the forward calls, or of the last predictions

FITTED = "fitted, spread believable"
DOUBTFUL = "fitted, spread not believable"
NOT_FITTED = "not fitted"
OVER_FITTED = "over-fitted"
UNEXPLAINED = "the model cannot explain the data"
FAILURES = "simulator failures"


@dataclass(frozen=True)
class Evidence:
    """The numbers a verdict is made from; None where a number is not known.

    size : m;  particles : J, of one ensemble
    mean, typical : misfit per datum of the mean prediction, and the median over the particles, after the run
    best : the smallest misfit per datum of the mean prediction during the run;  earlier : at three quarters of it
    spread : tr(Gamma^-1 C_yy) of the last predictions, within the ensembles
    resolved : sum l/(1 + l) over the eigenvalues l of Gamma^-1/2 C_yy Gamma^-1/2 where it was largest, early in the
        run: what ``spread`` should be at the end
    budget : the collapse budget of EnKG, sum of gamma/sqrt(r + kappa^2) over the updates
    kappa : of EnKG-R;  separation : of independent ensembles;  chains : doubts about Metropolis chains, in words
    failed, lost : shares of the forward calls, and of the last predictions, that failed
    assumed : the noise level is a guess of this program
    """

    size: int
    particles: int
    mean: float | None = None
    typical: float | None = None
    best: float | None = None
    earlier: float | None = None
    spread: float | None = None
    resolved: float | None = None
    budget: float | None = None
    kappa: float | None = None
    separation: float | None = None
    chains: tuple[str, ...] = ()
    failed: float = 0.0
    lost: float = 0.0
    assumed: bool = False


@dataclass(frozen=True)
class Verdict:
    """kind : one of the six above;  why, advice : sentences without a full stop, or ""."""

    kind: str
    why: str = ""
    advice: str = ""

    def __str__(self):
        why = f" ({self.why})" if self.why else ""
        return f"{self.kind}{why}.{f' Try: {self.advice}.' if self.advice else ''}"


def judge(e):
    """The verdict on the `Evidence` e."""
    if e.mean is None or max(e.failed, e.lost) > MANY_FAILED:
        return Verdict(FAILURES, f"{e.failed:.0%} of the forward calls and {e.lost:.0%} of the last predictions failed",
                       "read the message of the first failure, and keep prior and simulator to where it runs")
    if e.mean > allowed(e.size, e.assumed):
        return _unfitted(e)
    if not e.assumed and e.typical < OVERFIT_FACTOR and 1.0 - chance(e.typical, e.size) < RARE:
        return Verdict(OVER_FITTED, f"misfit per datum {e.typical:.2g}, where the noise makes 1",
                       "--stop particle, a smaller --guidance, --method enkg-r, or ask whether the noise is overstated")
    doubts, advice = _doubts(e)
    return Verdict(DOUBTFUL, "; ".join(doubts), advice) if doubts else Verdict(FITTED)


def _unfitted(e):
    p = chance(e.mean, e.size)
    found = f"misfit per datum {e.mean:.3g}, expected 1" + ("" if e.assumed else f", p = {p:.1g}")
    if e.best is not None and e.best <= allowed(e.size, e.assumed):
        return Verdict(NOT_FITTED, f"{found}; {e.best:.2g} was reached on the way and lost, for the particles had no "
                       "spread left to follow",
                       "--guidance 0.5 with --stop particle, --step-rule tempered, or --method enkg-r")
    if _collapsed(e) or e.budget is not None and e.budget > SPENT:
        return Verdict(NOT_FITTED, f"{found}; the ensemble collapsed before it came there",
                       "a smaller --guidance, more --particles, --step-rule tempered, or --method enkg-r")
    if e.spread is not None and e.spread > e.size or e.earlier is not None and e.mean < FALLING * e.earlier:
        return Verdict(NOT_FITTED, f"{found}; the misfit was still falling, or the particles still differ by more than "
                       "the noise",
                       "a larger --budget, --guidance or more --updates, or --method enkg-r")
    return Verdict(UNEXPLAINED, found, "check units, order and noise level of the data against the forward model, and "
                   "whether the prior holds such fields; or another --method at a larger --budget")


def _doubts(e):
    doubts, advice = [], "several --ensembles, or --method enkg-r"
    if e.particles < 2:
        doubts.append("one chain has no spread")
        advice = "several --ensembles"
    elif _collapsed(e):
        doubts.append("the particles have collapsed to one another in the data")
        advice = "a smaller --guidance, --step-rule tempered, or --method enkg-r"
    elif e.typical > allowed(e.size, e.assumed):
        doubts.append(f"the mean prediction fits and the particles do not, misfit per datum {e.typical:.3g}")
        advice = "a larger --budget or more --updates"
    if e.separation is not None and e.separation > SEPARATED:
        doubts.append("the ensembles stand further apart than their particles: other modes, or too small a spread")
    if e.kappa is not None and e.kappa > SURPRISED:
        doubts.append("the data surprised the regressed model")
        advice = "a larger --budget"
    if e.chains:
        doubts += e.chains
        advice = "a larger --budget or --tail, or several --ensembles"
    return doubts, advice


def _collapsed(e):
    """Whether the predictions differ by less than the data leave open.

    Where the early predictions are not known, any data that say something leave one direction of unit variance.
    """
    if e.particles < 2 or e.spread is None:
        return False
    return e.spread < COLLAPSED * (1.0 if e.resolved is None else e.resolved)


def allowed(size, assumed=False):
    """Largest misfit per datum of data that are fitted: by chance (p = `RARE`), or by the factor that is forgiven."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if chance(middle, size) > RARE else (low, middle)
    return max(high, FIT_FACTOR) * (ASSUMED_FACTOR / FIT_FACTOR if assumed else 1.0)


def chance(per_datum, size):
    """P(chi-squared with ``size`` degrees of freedom > size * per_datum)."""
    from scipy.special import gammaincc

    return float(gammaincc(0.5 * size, 0.5 * size * per_datum)) if math.isfinite(per_datum) else 0.0
