"""Forward- and Central-GSG: DPS whose gradient at D is a Gaussian-smoothed finite difference.

[1] The zeroth-order baselines of arXiv 2409.20175.   [2] Nesterov, Spokoiny 2017 (Gaussian smoothing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._xp import array_namespace
from .schedule import vp_grid
from .wave import Settings, expect, expect_one, flat, normals, per_row, predictions, repeat, report, require_finite


@dataclass(frozen=True)
class Config(Settings):
    """mode : "forward" or "central";  steps : N;  queries : Q forward calls per step beside L(D) (even if central)

    guidance : gamma of DPS;  smoothing : mu_s
    last : "denoised" ends with D in place of the last SDE step; "noisy" takes that step, as the public codes do
    count_base_twice : forward mode evaluates L(D) a second time, as the official code does
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    mode: str = "forward"
    steps: int = 1000
    queries: int = 1024
    guidance: float = 0.1
    smoothing: float = 0.01
    last: str = "denoised"
    count_base_twice: bool = False
    sigma_max: float | None = None
    seed: int = 0

    def __post_init__(self):
        expect_one("mode", self.mode, "forward", "central")
        expect("steps", self.steps, 2)
        expect("guidance", self.guidance)
        expect("smoothing", self.smoothing, 0, strict=True)
        if self.mode == "forward":
            expect("queries", self.queries, 1)
        elif self.queries < 2 or self.queries % 2:
            raise ValueError(f"queries: got {self.queries}, expected an even number >= 2 for central differences")
        expect_one("last", self.last, "denoised", "noisy")

    @property
    def wave(self):
        """Points per chain and step."""
        return 1 + self.queries + int(self.count_base_twice and self.mode == "forward")


@dataclass(frozen=True)
class State:
    """x, denoised : (R, *event), the scaled chains and D(x/s_i, sigma_i)"""

    x: Any
    denoised: Any
    level: int = 0


@dataclass(frozen=True)
class GSG:
    """u_j ~ N(0, I):

        forward   ghat = (1/(Q mu)) sum_{j <= Q} u_j (L(D + mu u_j) - L(D))
        central   ghat = (1/(2 mu M)) sum_{j <= M} u_j (L(D + mu u_j) - L(D - mu u_j)),   M = Q/2
        x <- E_i(x) - gamma J_D' ghat/(2 s_i sqrt(L(D)))

    Unbiased for a quadratic L at any mu; E||ghat - grad L||^2 = (d + 1) ||grad L||^2/M: in d = 16,384 dimensions and
    M = 512 the error is 5.7 times the gradient. L(D) = 0 skips the guidance.
    """

    denoise: Callable
    denoise_vjp: Callable
    likelihood: Any
    config: Config = Config()

    ACCESS = frozenset({"forward", "denoiser", "denoiser_vjp"})
    STATE = State

    @cached_property
    def grid(self):
        return vp_grid(self.config.steps, self.config.sigma_max)

    def init(self, noise):
        return self._at(0, self.grid.start(noise))

    def ask(self, state):
        """D and its neighbours, chain by chain: (R wave, *event)."""
        c, x0 = self.config, state.denoised
        xp = array_namespace(x0)
        step = c.smoothing * self._directions(state)
        parts = [x0[:, None, ...]]
        if c.count_base_twice and c.mode == "forward":
            parts.append(x0[:, None, ...])
        parts.append(repeat(x0, step.shape[1]) + step)
        if c.mode == "central":
            parts.append(repeat(x0, step.shape[1]) - step)
        return flat(xp.concat(parts, axis=1))

    def tell(self, state, y_pred):
        c, i, x, x0 = self.config, state.level, state.x, state.denoised
        sigma, R = self.grid.sigmas[i], x.shape[0]
        g = require_finite(predictions(y_pred, R * c.wave, self.likelihood), "forward", i, sigma)
        xp = array_namespace(x, g)
        loss = xp.reshape(self.likelihood.misfit(g), (R, c.wave))
        base, gradient = loss[:, 0], self.estimate(state, loss)
        live = base > 0.0
        norm = xp.sqrt(xp.where(live, base, xp.ones_like(base)))
        gradient = xp.where(per_row(live, x), gradient, xp.zeros_like(x))
        _, q = self.denoise_vjp(self.grid.unscaled(i, x), sigma, gradient)
        q = require_finite(q, "gradient", i, sigma) / per_row(norm, x)

        if i == c.steps - 1 and c.last == "denoised":
            moved = x0
        else:
            moved = self.grid.sde_step(i, x, x0, normals(c.seed, 1 + 2 * i, x))
        x = moved - c.guidance / (2.0 * self.grid.scales[i]) * q
        skipped = R - int(xp.sum(xp.astype(live, x0.dtype)))
        return self._at(i + 1, x), report(i, sigma, g, self.likelihood, skipped)

    def estimate(self, state, loss):
        """ghat of every chain from the losses (R, wave) of ``ask``'s points."""
        c, u = self.config, self._directions(state)
        xp = array_namespace(u)
        M = u.shape[1]
        if c.mode == "central":
            slope = (loss[:, 1:1 + M] - loss[:, 1 + M:]) / (2.0 * c.smoothing)
        else:
            slope = (loss[:, -M:] - loss[:, :1]) / c.smoothing
        return xp.sum(xp.reshape(slope, (*slope.shape, *(1,) * (u.ndim - 2))) * u, axis=1) / M

    def done(self, state):
        return state.level >= self.config.steps

    def counts(self, rows):
        n = self.config.steps
        return {"fwd_total": n * self.config.wave * rows, "fwd_seq": n, "den_total": n * rows, "den_seq": n,
                "den_vjp_total": n * rows, "den_vjp_seq": n}

    def _directions(self, state):
        c = self.config
        return normals(c.seed, 2 + 2 * state.level, state.x, (c.queries // 2 if c.mode == "central" else c.queries,))

    def _at(self, i, x):
        if i == self.config.steps:
            return State(x, x, i)
        sigma = self.grid.sigmas[i]
        return State(x, require_finite(self.denoise(self.grid.unscaled(i, x), sigma), "denoise", i, sigma), i)
