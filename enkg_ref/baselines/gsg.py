"""Forward- and Central-GSG: DPS whose gradient at D is a Gaussian-smoothed finite difference.

[1] The zeroth-order baselines of arXiv 2409.20175.   [2] Nesterov, Spokoiny 2017 (Gaussian smoothing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._xp import array_namespace
from ..likelihood import predictions
from ..protocol import Method
from .chain import (
    ONE_CHAIN,
    ChainState,
    Settings,
    VPChain,
    calls,
    dead_rows,
    expect,
    expect_one,
    flat,
    normals,
    per_row,
    planned,
    queried_chain,
    repeat,
    report,
    require_finite,
    vp_start,
    where_live,
)


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
class GSG(VPChain):
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
        c, i, x = self.config, state.level, state.x
        sigma, R = self.grid.sigmas[i], x.shape[0]
        g = require_finite(predictions(y_pred, x, self.likelihood, R * c.wave), "forward", i, sigma)
        xp = array_namespace(x, g)
        loss = xp.reshape(self.likelihood.misfit(g), (R, c.wave))
        base, live = loss[:, 0], loss[:, 0] > 0.0
        norm = xp.sqrt(xp.where(live, base, xp.ones_like(base)))
        _, q = self.denoise_vjp(self.grid.unscaled(i, x), sigma, where_live(live, self.estimate(state, loss)))
        q = require_finite(q, "gradient", i, sigma) / per_row(norm, x)
        x = self._diffused(state, 1 + 2 * i) - c.guidance / (2.0 * self.grid.scales[i]) * q
        return self._at(i + 1, x), report(i, sigma, g, self.likelihood, dead_rows(live))

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

    def counts(self, rows):
        n = self.config.steps
        return {**calls(rows, fwd=n, den=n, den_vjp=n), "fwd_total": n * self.config.wave * rows}

    def _directions(self, state):
        c = self.config
        return normals(c.seed, 2 + 2 * state.level, state.x, (c.queries // 2 if c.mode == "central" else c.queries,))


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(mode, item, budget, c_vjp, seed, settings):
    """One chain. "strength" among the settings: times the default guidance 0.1, for the loss without weights."""
    steps, wave = queried_chain(f"{mode}-gsg", budget, lambda n: n, 17, settings, 3 if mode == "central" else 2)
    queries = (wave - 1) // 2 * 2 if mode == "central" else wave - 1
    settings = dict(settings)
    guidance = settings.pop("strength", 1.0) * 0.1 * item.likelihood.unweighted_scale
    config = Config(**{**vp_start(item), "guidance": guidance, "seed": seed, **settings, "mode": mode, "steps": steps,
                       "queries": queries})
    return planned(GSG(item.denoise, item.denoise_vjp, item.likelihood, config), 1, ChainState)


def _method(mode, words):
    return Method(
        partial(plan, mode), access=frozenset({"forward", "denoiser", "denoiser_vjp"}),
        words=f"DPS with a smoothed gradient, {words}", spends="as dpg", spread=ONE_CHAIN,
        candidates=({}, {"strength": 3.0}, {"strength": 0.3}, {"strength": 0.1}))


FORWARD, CENTRAL = _method("forward", "one-sided"), _method("central", "two-sided")
