"""Two rules that the paper does not have. Both are off unless asked for: a stop when the data are fitted, and a step
that knows the noise level. The published step is invariant to Gamma -> c Gamma and has neither (THEORY.md 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ._xp import array_namespace, like, member_normals
from .enkg import EnKG
from .ensemble import Correction, anomalies, ensemble_mean


def mean_discrepancy(misfit_of_mean, misfit_of_particles, m):
    """Stop the updates of a level when the ensemble mean fits the data to noise level: ||ebar||_Gamma^2 <= m."""
    return misfit_of_mean <= m


def particle_discrepancy(misfit_of_mean, misfit_of_particles, m):
    """Stop when the particles do on average: (1/J) sum ||e_j||_Gamma^2 = ||ebar||_Gamma^2 + tau <= m; stops later."""
    return misfit_of_particles <= m


@dataclass(frozen=True)
class TemperedEnKG(EnKG):
    """EnKG with a noise-aware tempered step in place of (T5)-(T6). An extension, not in the paper.

    x_j <- x_j + C_xy (C_yy + Gamma/h)^-1 (y + eta_j - g_j),   eta_j ~ N(0, Gamma/h),   h = 1/number of updates

    In the frozen linear-Gaussian limit every update multiplies the density by likelihood^h: sum h = 1 gives the
    exact posterior. eta is drawn on the host from (seed, number of the update, row): a resume repeats it.
    ``config.guidance``, ``step_rule`` and ``guard`` are not used.
    """

    seed: int = 0

    def correct(self, state, y_pred, alive):
        """x_j <- x_j + C_xy (C_yy + Gamma/h)^-1 (y + eta_j/sqrt(h) - g_j), by `tempered_gain`; as `EnKG.correct`."""
        xp = array_namespace(state.x)
        x = state.x
        J = x.shape[0]
        h = 1.0 / self.config.counts()["forward"]
        eta = like(member_normals(self.seed, 1 + state.updates_done, J, (self.likelihood.size,)), x)
        if alive is not None:
            y_pred = xp.where(alive[:, None], y_pred, ensemble_mean(y_pred, alive))
        wanted = eta / math.sqrt(h) - self.likelihood.whiten(self.likelihood.difference(y_pred))
        members = J if alive is None else float(xp.sum(xp.astype(alive, x.dtype)))
        X = xp.reshape(x, (J, -1))
        displacement = tempered_gain(wanted, self.likelihood.whiten(anomalies(y_pred, alive)), anomalies(X, alive),
                                     h, members)
        if alive is not None:
            mean = ensemble_mean(displacement, alive)
            lost = mean if self.config.failed == "shift" else xp.zeros_like(mean)
            displacement = xp.where(alive[:, None], displacement, lost + xp.zeros_like(displacement))
        one = xp.sum(displacement * 0.0) + 1.0
        return xp.reshape(X + displacement, x.shape), Correction(h * one, one, one, one < 0.0)

    def _expected(self, x, y_pred, measured, alive):
        return None  # the step is not w K Z: no trust number


def tempered_gain(v, b, z, h, members):
    """v (C_bb + I/h)^-1 C_bz row by row, C_bb = b'b/J, C_bz = b'z/J: the gain in whitened observation space.

    v, b : (J, m);  z : (J, d). Solves the smaller of an m x m and a J x J system.
    """
    xp = array_namespace(v, b, z)
    bt = xp.matrix_transpose(b)
    rows, m = b.shape
    if m <= rows:
        gram = xp.matmul(bt, b) / members + _identity(m, b) / h
        return xp.matmul(v, xp.linalg.solve(gram, xp.matmul(bt, z) / members))
    gram = xp.matmul(b, bt) / members + _identity(rows, b) / h
    return xp.matmul(v, xp.matmul(bt, xp.linalg.solve(gram, z) / members))


def _identity(n, x):
    return like(np.eye(n), x)
