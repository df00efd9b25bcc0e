"""DPS, diffusion posterior sampling: a step along the gradient of ||y - G(D(x))|| after every diffusion step.

[1] Chung et al. 2023, arXiv 2209.14687.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._xp import array_namespace
from ..likelihood import predictions
from ..protocol import Method
from .chain import (
    BIASED,
    ChainState,
    Settings,
    VPChain,
    calls,
    dead_rows,
    expect,
    expect_one,
    finite_mask,
    low_start,
    per_row,
    plain_chains,
    planned,
    report,
    require_finite,
    where_live,
)
from .schedule import VP_SIGMA_MAX


def per_chain(loss):
    """sqrt(L) of every chain.  (R,) -> (R,)"""
    return array_namespace(loss).sqrt(loss)


@dataclass(frozen=True)
class Config(Settings):
    """steps : N;  guidance : gamma;  normaliser : L -> denominator of the guidance (another than sqrt(L): verification)

    last : "denoised" ends with D in place of the last SDE step; "noisy" takes that step, as the public codes do, and
        leaves noise of std 0.01 (much more where N is small)
    failed : "raise", or "keep": a chain whose prediction or gradient is not finite goes unguided in that step
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    steps: int = 1000
    guidance: float = 1.0
    normaliser: Callable = per_chain
    last: str = "denoised"
    failed: str = "raise"
    sigma_max: float | None = None
    seed: int = 0

    def __post_init__(self):
        expect("steps", self.steps, 2)
        expect("guidance", self.guidance)
        expect_one("last", self.last, "denoised", "noisy")
        expect_one("failed", self.failed, "raise", "keep")


@dataclass(frozen=True)
class DPS(VPChain):
    """x <- E_i(x) - gamma q,   q = grad_x ||y - G(D)|| = J_D' grad L(D)/(2 s_i sqrt(L)),   D = D(x/s_i, sigma_i)

    E_i is the SDE step (B2); the gradient is with respect to the scaled x, hence the factor 1/s_i (B4).
    L = 0 gives q = 0. Biased: not a posterior sampler for any gamma.

    denoise_vjp : (x, sigma, v) -> (D, J_D' v);   forward_vjp : (x, v) -> J_G(x)' v
    """

    denoise: Callable
    denoise_vjp: Callable
    forward_vjp: Callable
    likelihood: Any
    config: Config = Config()

    def tell(self, state, y_pred):
        c, i, x, x0 = self.config, state.level, state.x, state.denoised
        sigma = self.grid.sigmas[i]
        g = predictions(y_pred, x, self.likelihood)
        xp = array_namespace(x, g)
        if c.failed == "raise":
            require_finite(g, "forward", i, sigma)
        norm = c.normaliser(self.likelihood.misfit(g))
        half_gradient = self.forward_vjp(x0, self.likelihood.residual(g))
        live = (norm > 0.0) & xp.isfinite(norm) & finite_mask(half_gradient)
        _, q = self.denoise_vjp(self.grid.unscaled(i, x), sigma, where_live(live, half_gradient))
        if c.failed == "raise":
            require_finite(q, "gradient", i, sigma)
        live = live & finite_mask(q)
        q = where_live(live, q / per_row(xp.where(live, norm, xp.ones_like(norm)), x))
        x = self._diffused(state, 1 + i) - c.guidance / self.grid.scales[i] * q
        return self._at(i + 1, x), report(i, sigma, g, self.likelihood, dead_rows(live))

    def counts(self, rows):
        n = self.config.steps
        return calls(rows, fwd=n, den=n, den_vjp=n, fwd_vjp=n)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """Chains, from low_start. "strength" among the settings: times the default guidance, which falls as 1/N."""
    settings = dict(settings)
    steps, R = plain_chains("dps", budget, 1 + c_vjp, settings, (1, 10, 500))
    guidance = settings.pop("strength", 1.0) * min(1.0, 40.0 / steps) * item.likelihood.unweighted_scale
    config = Config(**{"sigma_max": min(low_start(item), VP_SIGMA_MAX), "guidance": guidance, "failed": "keep",
                       "seed": seed, **settings, "steps": steps})
    return planned(DPS(item.denoise, item.denoise_vjp, item.forward_vjp, item.likelihood, config), R, ChainState)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "denoiser_vjp", "forward_vjp"}),
    words="diffusion posterior sampling, Chung et al. 2023",
    spends="one chain of up to 500 steps, more chains beyond", spread=BIASED,
    candidates=({}, {"strength": 0.3}, {"strength": 0.1}, {"rows": 8, "strength": 0.3}))
