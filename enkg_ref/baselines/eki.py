"""EKI, ensemble Kalman inversion: no diffusion model; the prior enters through the initial ensemble only.

[1] Iglesias, Law, Stuart 2013, arXiv 1209.2736.   [2] Emerick, Reynolds 2013 (several data assimilations).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import ensemble
from .._xp import array_namespace
from ..diffusion import flow_to_zero
from ..extensions import guarded, lowrank, tempered_gain
from ..likelihood import predictions
from ..protocol import Method, at_least
from .chain import Settings, calls, expect, normals, planned, report, require_finite


@dataclass(frozen=True)
class Config(Settings):
    """iterations : T;  guidance : gamma of w = gamma/||K||_F, non-expansive for linear G up to 2

    guard : a step is skipped where ||K||_F is below so many times its rounding error. 0 skips an exact zero only, as
        the public code does; 64 would skip 455 of its 500 iterations, whose ensemble has long collapsed
    kalman : False, the normalised flow of the EnKG comparison; True, the classical perturbed-observation update of
    [1] with T steps of h = 1/T (T = 1: the ensemble Kalman analysis; T > 1: [2]), which needs the true noise level
    """

    iterations: int = 500
    guidance: float = 2.0
    kalman: bool = False
    guard: float = 0.0
    seed: int = 0

    def __post_init__(self):
        expect("iterations", self.iterations, 1)
        expect("guidance", self.guidance)
        expect("guard", self.guard)


@dataclass(frozen=True)
class State:
    x: Any
    level: int = 0


@dataclass(frozen=True)
class EKI:
    """z_j = x_j - xbar, b_j = g_j - gbar, K[j, k] = <g_j - y, b_k>_Gamma/J, g = G(X); T times

        x_j <- x_j - (gamma/||K||_F) sum_k K[j, k] z_k                                       normalised
        x_j <- x_j + C_xy (C_yy + Gamma/h)^-1 (y + eta_j - g_j),  eta_j ~ N(0, Gamma/h)      kalman=True

    Not a posterior sampler (normalised): the spread in observed directions goes to 0. It stays in
    x_j + span{z_k}. A collapsed ensemble, by ``config.guard``, is left alone (``info.skipped``).

    initial : noise (J, *event) -> ensemble; the identity by default. The prior of the method.
    """

    likelihood: Any
    config: Config = Config()
    initial: Callable | None = None

    def init(self, noise):
        return State(noise if self.initial is None else self.initial(noise))

    def ask(self, state):
        return state.x

    def tell(self, state, y_pred):
        g = require_finite(predictions(y_pred, state.x, self.likelihood), "forward", state.level, 0.0)
        x, skipped = (self._kalman if self.config.kalman else self._normalised)(state, g)
        info = report(state.level, 0.0, g, self.likelihood, skipped)
        return dataclasses.replace(state, x=x, level=state.level + 1), info

    def _normalised(self, state, g):
        c, J = self.config, state.x.shape[0]
        correct = guarded(lowrank if J > 2 * self.likelihood.size else ensemble.correct, c.guard)
        x, correction = correct(state.x, g, self.likelihood.residual, ensemble.frobenius(c.guidance))
        return x, 0 if float(correction.step) > 0.0 else J

    def _kalman(self, state, g):
        x, h, white = state.x, 1.0 / self.config.iterations, self.likelihood.whiten
        xp, J = array_namespace(x, g), x.shape[0]
        eta = normals(self.config.seed, 1 + state.level, g)
        wanted = eta / math.sqrt(h) - white(self.likelihood.difference(g))
        X = xp.reshape(x, (J, -1))
        moved = tempered_gain(wanted, white(ensemble.anomalies(g)), ensemble.anomalies(X), h)
        return xp.reshape(X + moved, x.shape), 0

    def done(self, state):
        return state.level >= self.config.iterations

    def counts(self, rows):
        return calls(rows, fwd=self.config.iterations)


# ------------------------------------------------------------------------------------------------------------- a budget
PRIOR_STEPS = 40  # denoiser calls of a draw of the prior


def plan(item, budget, c_vjp, seed, settings):
    """J = sqrt(budget) particles, drawn from the prior. "particles" may be among the settings."""
    settings = dict(settings)
    at_least("eki", budget, 4)
    J = settings.pop("particles", max(2, math.isqrt(budget)))
    low, high = item.sigma_range

    def initial(noise):
        return flow_to_zero(high * noise, high, item.denoise, PRIOR_STEPS, low)

    config = Config(**{"iterations": max(1, budget // J), "seed": seed, **settings})
    return planned(EKI(item.likelihood, config, initial), J, State)


METHOD = Method(
    plan, access=frozenset({"forward"}), words="ensemble Kalman inversion, Iglesias et al. 2013",
    spends="as many iterations as particles; starts from draws of the prior",
    spread="The spread of the ensemble is not a posterior standard deviation, and more particles do not make it one; "
           "the scatter between independent ensembles is the honest error bar.",
    candidates=({}, {"guidance": 1.0}, {"guidance": 0.5}, {"kalman": True}))
