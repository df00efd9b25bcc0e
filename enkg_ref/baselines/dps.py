"""DPS, diffusion posterior sampling: a step along the gradient of ||y - G(D(x))|| after every diffusion step.

[1] Chung et al. 2023, arXiv 2209.14687.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._xp import array_namespace
from .schedule import vp_grid
from .wave import Settings, expect, expect_one, finite_rows, normals, per_row, predictions, report, require_finite


def per_sample(loss):
    """sqrt(L) of every chain.  (R,) -> (R,)"""
    return array_namespace(loss).sqrt(loss)


def batch_sum(loss):
    """sqrt(sum of L over all chains): InverseBench, which couples chains that share a batch."""
    xp = array_namespace(loss)
    return xp.sqrt(xp.zeros_like(loss) + xp.sum(loss))


@dataclass(frozen=True)
class Config(Settings):
    """steps : N;  guidance : gamma;  normaliser : L -> denominator of the guidance

    last : "denoised" ends with D in place of the last SDE step; "noisy" takes that step, as the public codes do, and
        leaves noise of std 0.01 (much more where N is small)
    failed : "raise", or "keep": a chain whose prediction or gradient is not finite goes unguided in that step
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    steps: int = 1000
    guidance: float = 1.0
    normaliser: Callable = per_sample
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
class State:
    """x, denoised : (R, *event), the scaled chains and D(x/s_i, sigma_i)"""

    x: Any
    denoised: Any
    level: int = 0


@dataclass(frozen=True)
class DPS:
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

    ACCESS = frozenset({"forward", "denoiser", "denoiser_vjp", "forward_vjp"})
    STATE = State

    @cached_property
    def grid(self):
        return vp_grid(self.config.steps, self.config.sigma_max)

    def init(self, noise):
        return self._at(0, self.grid.start(noise))

    def ask(self, state):
        return state.denoised

    def tell(self, state, y_pred):
        c, i, x, x0 = self.config, state.level, state.x, state.denoised
        sigma = self.grid.sigmas[i]
        g = predictions(y_pred, x.shape[0], self.likelihood)
        xp = array_namespace(x, g)
        if c.failed == "raise":
            require_finite(g, "forward", i, sigma)
        norm = c.normaliser(self.likelihood.misfit(g))
        half_gradient = self.forward_vjp(x0, self.likelihood.residual(g))
        live = (norm > 0.0) & xp.isfinite(norm) & finite_rows(half_gradient)
        half_gradient = xp.where(per_row(live, x), half_gradient, xp.zeros_like(x))
        _, q = self.denoise_vjp(self.grid.unscaled(i, x), sigma, half_gradient)
        if c.failed == "raise":
            require_finite(q, "gradient", i, sigma)
        live = live & finite_rows(q)
        q = xp.where(per_row(live, x), q / per_row(xp.where(live, norm, xp.ones_like(norm)), x), xp.zeros_like(x))

        if i == c.steps - 1 and c.last == "denoised":
            moved = x0
        else:
            moved = self.grid.sde_step(i, x, x0, normals(c.seed, 1 + i, x))
        x = moved - c.guidance / self.grid.scales[i] * q
        skipped = x.shape[0] - int(xp.sum(xp.astype(live, x0.dtype)))
        return self._at(i + 1, x), report(i, sigma, g, self.likelihood, skipped)

    def done(self, state):
        return state.level >= self.config.steps

    def counts(self, rows):
        n = self.config.steps
        return {name: value for kind in ("fwd", "den", "den_vjp", "fwd_vjp")
                for name, value in ((f"{kind}_total", n * rows), (f"{kind}_seq", n))}

    def _at(self, i, x):
        if i == self.config.steps:
            return State(x, x, i)
        sigma = self.grid.sigmas[i]
        return State(x, require_finite(self.denoise(self.grid.unscaled(i, x), sigma), "denoise", i, sigma), i)
