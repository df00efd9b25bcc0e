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
from ..extensions import tempered_gain
from .wave import Info, Settings, expect, normals, predictions, report, require_finite


@dataclass(frozen=True)
class Config(Settings):
    """iterations : T;  guidance : gamma of w = gamma/||K||_F, non-expansive for linear G up to 2

    kalman : False, the normalised flow of the EnKG comparison; True, the classical perturbed-observation update of
    [1] with T steps of h = 1/T (T = 1: the ensemble Kalman analysis; T > 1: [2]), which needs the true noise level
    """

    iterations: int = 500
    guidance: float = 2.0
    kalman: bool = False
    seed: int = 0

    def __post_init__(self):
        expect("iterations", self.iterations, 1)
        expect("guidance", self.guidance)


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
    x_j + span{z_k}. A collapsed ensemble, ||K||_F at the rounding floor, is left alone (``info.skipped``).

    initial : noise (J, *event) -> ensemble; the identity by default. The prior of the method.
    """

    likelihood: Any
    config: Config = Config()
    initial: Callable | None = None

    ACCESS = frozenset({"forward"})
    STATE = State

    def init(self, noise):
        return State(noise if self.initial is None else self.initial(noise))

    def ask(self, state):
        return state.x

    def tell(self, state, y_pred):
        c, x = self.config, state.x
        J = x.shape[0]
        g = require_finite(predictions(y_pred, J, self.likelihood), "forward", state.level, 0.0)
        xp = array_namespace(x, g)
        skipped = 0
        if c.kalman:
            h, white = 1.0 / c.iterations, self.likelihood.whiten
            eta = normals(c.seed, 1 + state.level, self.likelihood.difference(g))
            wanted = eta / math.sqrt(h) - white(self.likelihood.difference(g))
            X = xp.reshape(x, (J, -1))
            x = xp.reshape(X + tempered_gain(wanted, white(ensemble.anomalies(g)), ensemble.anomalies(X), h, J),
                           x.shape)
        else:
            x, correction = ensemble.correct(x, g, self.likelihood.residual, ensemble.frobenius(c.guidance))
            skipped = J * int(bool(correction.collapsed))
        info: Info = report(state.level, 0.0, g, self.likelihood, skipped)
        return dataclasses.replace(state, x=x, level=state.level + 1), info

    def done(self, state):
        return state.level >= self.config.iterations

    def counts(self, rows):
        return {"fwd_total": self.config.iterations * rows, "fwd_seq": self.config.iterations}
