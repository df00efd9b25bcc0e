"""MMPS, moment matching posterior sampling: guidance with the covariance of p(x0 | x) and a linear solver.

A gradient method that knows curvature and noise: exact for a linear-Gaussian problem up to the step size.

[1] Rozet et al. 2024, arXiv 2405.13712.   [2] Boys et al. 2023, arXiv 2310.06721 (Tweedie moment projection).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._xp import array_namespace, like
from ..diffusion import edm_sigmas, initial_ensemble
from ..likelihood import change, predictions
from ..protocol import Method
from .chain import (
    Settings,
    calls,
    dead_rows,
    expect,
    expect_one,
    finite_mask,
    low_start,
    normals,
    per_row,
    plain_chains,
    planned,
    report,
    require_finite,
    where_live,
)


@dataclass(frozen=True)
class Config(Settings):
    """steps : N levels of the grid (T1);  solver : conjugate-gradient iterations per level

    difference : length, in prior units and per component, of the finite difference that gives a product with J_G
    damping : the noise of level sigma is taken as Gamma (1 + damping sigma^2): 0 is exact for linear G; a positive
        value trusts a linearisation less while D is far from x0
    failed : "raise", or "keep": a chain whose prediction or gradient is not finite goes unguided at that level
    """

    steps: int = 40
    solver: int = 3
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    difference: float = 1e-3
    damping: float = 0.0
    failed: str = "raise"
    seed: int = 0

    def __post_init__(self):
        expect("steps", self.steps, 1)
        expect("solver", self.solver, 1)
        expect("difference", self.difference, 0, strict=True)
        expect("damping", self.damping)
        expect_one("failed", self.failed, "raise", "keep")


@dataclass(frozen=True)
class State:
    """Chains, and the conjugate-gradient iteration they are in.

    x, denoised : (R, *event), the chains and D
    shift, direction : (R, *event), solution of the linear system and last search direction, both in the space of x
    base, rest, search : (R, m), G(D), the residual of the system and the search direction
    wave : 0, G(D) is wanted; k, that of the k-th finite difference
    """

    x: Any
    denoised: Any
    shift: Any
    direction: Any
    base: Any
    rest: Any
    search: Any
    level: int = 0
    wave: int = 0


@dataclass(frozen=True)
class MMPS:
    """D_y = D + C H' (H C H' + Gamma)^-1 (y - G(D)),   C = sigma^2 J_D(x),   H = J_G(D)

    x <- D_y + (sigma'/sigma)^2 (x - D_y) + sigma' sqrt(1 - (sigma'/sigma)^2) eps           (ancestral step)

    D_y is E[x0 | x, y] of a linear-Gaussian problem. The system is solved by ``solver`` conjugate-gradient iterations
    in the metric Gamma^-1; each costs one VJP of G, one of D, and one forward call: H w = (G(D + t w) - G(D))/t.
    With solver = 1 this is a step of exact length along the preconditioned gradient.

    denoise_vjp : (x, sigma, v) -> (D, J_D' v);   forward_vjp : (x, v) -> J_G(x)' v
    """

    denoise: Callable
    denoise_vjp: Callable
    forward_vjp: Callable
    likelihood: Any
    config: Config = Config()

    @cached_property
    def sigmas(self):
        return edm_sigmas(self.config.steps, self.config.sigma_max, self.config.sigma_min)

    def init(self, noise):
        return self._at(0, initial_ensemble(noise, self.config.sigma_max))

    def ask(self, state):
        if state.wave == 0:
            return state.denoised
        return state.denoised + per_row(self._length(state.direction), state.x) * state.direction

    def tell(self, state, y_pred):
        c, i, x = self.config, state.level, state.x
        g = predictions(y_pred, x, self.likelihood)
        xp = array_namespace(x, g)
        if c.failed == "raise":
            require_finite(g, "forward", i, self.sigmas[i])
        info = report(i, self.sigmas[i], g, self.likelihood, dead_rows(finite_mask(g)))
        if state.wave == 0:
            rest = where_live(finite_mask(g), -self.likelihood.difference(g))
            state = dataclasses.replace(state, base=g, rest=rest, search=rest, shift=xp.zeros_like(x), wave=1)
            return dataclasses.replace(state, direction=self._direction(state)), info
        state, live = self._solver_step(state, g)
        info = dataclasses.replace(info, skipped=dead_rows(live))
        if state.wave <= c.solver:
            return dataclasses.replace(state, direction=self._direction(state)), info
        return self._ancestral_step(state), info

    def _solver_step(self, state, g):
        """One conjugate-gradient iteration, and which chains it moved."""
        xp = array_namespace(state.x, g)
        moved = change(self.likelihood, g, state.base)
        scaled = state.search * (1.0 + self.config.damping * self.sigmas[state.level] ** 2)
        slope = scaled + moved / self._length(state.direction)[:, None]
        old, curvature = self._dot(state.rest, state.rest), self._dot(state.search, slope)
        live = xp.isfinite(curvature) & (curvature > 0.0) & finite_mask(state.direction)
        alpha = where_live(live, old / xp.where(live, curvature, xp.ones_like(old)))
        shift = state.shift + per_row(alpha, state.x) * where_live(live, state.direction)
        rest = state.rest - alpha[:, None] * where_live(live, slope)
        ratio = where_live(live, self._dot(rest, rest) / xp.where(old > 0.0, old, xp.ones_like(old)))
        return dataclasses.replace(state, shift=shift, rest=rest, search=rest + ratio[:, None] * state.search,
                                   wave=state.wave + 1), live

    def _ancestral_step(self, state):
        i, following = state.level, self.sigmas[state.level + 1]
        target, kept = state.denoised + state.shift, (following / self.sigmas[i]) ** 2
        x = target + kept * (state.x - target)
        if following > 0.0:
            x = x + following * math.sqrt(1.0 - kept) * normals(self.config.seed, 1 + i, x)
        return self._at(i + 1, x)

    def done(self, state):
        return state.level >= self.config.steps

    def counts(self, rows):
        n, k = self.config.steps, self.config.solver
        return calls(rows, fwd=n * (k + 1), den=n, den_vjp=n * k, fwd_vjp=n * k)

    def _direction(self, state):
        """C H' Gamma^-1 search."""
        sigma = self.sigmas[state.level]
        pulled = self.forward_vjp(state.denoised, self.likelihood.precision(state.search))
        if self.config.failed == "keep":
            pulled = where_live(finite_mask(pulled), pulled)
        _, w = self.denoise_vjp(state.x, sigma, pulled)
        if self.config.failed == "raise":
            require_finite(w, "gradient", state.level, sigma)
        return sigma**2 * where_live(finite_mask(w), w)

    def _length(self, w):
        """t of the finite difference: ``difference`` over the rms of w; 1 where w = 0.  (R, *event) -> (R,)"""
        xp = array_namespace(w)
        rms = xp.sqrt(xp.mean(xp.reshape(w * w, (w.shape[0], -1)), axis=1))
        return xp.where(rms > 0.0, self.config.difference / xp.where(rms > 0.0, rms, xp.ones_like(rms)),
                        xp.ones_like(rms))

    def _dot(self, a, b):
        """<a, b> in the metric Gamma^-1.  (R, m), (R, m) -> (R,)"""
        return array_namespace(a).sum(self.likelihood.whiten(a) * self.likelihood.whiten(b), axis=1)

    def _at(self, i, x):
        xp = array_namespace(x)
        sigma = self.sigmas[i]
        denoised = x
        if i < self.config.steps:
            denoised = require_finite(self.denoise(x, sigma), "denoise", i, sigma)
        zero = xp.zeros_like(x)
        none = like([[0.0] * self.likelihood.size] * x.shape[0], x)
        return State(x, denoised, zero, zero, none, none, none, i)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """Chains, from low_start; one solver iteration per level unless "solver" among the settings says more."""
    settings = {"solver": 1, **settings}
    cost = 1 + settings["solver"] * (1 + c_vjp)
    steps, R = plain_chains("mmps", budget, cost, settings, (1, 5, 100))
    config = Config(**{"sigma_max": low_start(item), "sigma_min": item.sigma_range[0], "failed": "keep", "seed": seed,
                       **settings, "steps": steps})
    return planned(MMPS(item.denoise, item.denoise_vjp, item.forward_vjp, item.likelihood, config), R, State)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "denoiser_vjp", "forward_vjp"}),
    words="moment matching posterior sampling, Rozet et al. 2024",
    spends="one chain of up to 100 steps, more chains beyond",
    spread="The chains are meant as draws of the posterior: exact for a linear forward model, an exact prior and many "
           "steps, else as good as the moments they match.",
    candidates=({}, {"solver": 2}, {"solver": 3, "rows": 8}, {"solver": 3, "rows": 8, "sigma_max": 10.0}))
