"""DW-EKCN: the chains of `dw_rwmh` with noise that leans towards the data by an ensemble Kalman gain.

[1] Takao, Bellchambers, Ye, Ghosh, Michaelides 2026, "Noise, Denoise, Correct".
"""

from __future__ import annotations

from dataclasses import dataclass

from .._xp import array_namespace
from ..ensemble import anomalies
from ..extensions import tempered_gain
from ..protocol import Method
from .dw_rwmh import DWRWMH, SPREAD, planned_chains


@dataclass(frozen=True)
class DWEKCN(DWRWMH):
    """nu(x0) = K (y - G(x0)),  K = h C_xy (h C_yy + Gamma)^-1;  acceptance (X2) with the same K at x0 and x0'.

    C are the covariances of the present chains, which, as its authors say, subtly breaks exactness; after ``adapt``
    steps K is held fixed here, and the posterior is invariant.
    """

    def shift(self, state, d):
        """nu of points with whitened differences d: -d (C_dd + I/h)^-1 C_dx.  (J, m) -> (J, *event)"""
        xp = array_namespace(d)
        z = anomalies(xp.reshape(state.gain_x, (state.gain_x.shape[0], -1)))
        return xp.reshape(tempered_gain(-d, anomalies(state.gain_d), z, state.h), state.x.shape)


def plan(item, budget, c_vjp, seed, settings):
    """`protocol.Plan`, see `dw_rwmh.planned_chains`."""
    return planned_chains(DWEKCN, item, budget, "dw-ekcn", seed, settings)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="dw-rwmh with an ensemble Kalman gain, Takao et al. 2026",
    spends="as dw-rwmh", spread=SPREAD + " The gain follows the ensemble, which is not quite exact.",
    candidates=({}, {"adapt": 20}, {"h": 0.3}, {"particles": 16}))
