"""SCG, stochastic control guidance: of C random steps take the one whose denoised image fits best.

[1] Huang et al. 2024, arXiv 2402.14285.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._xp import array_namespace, to_numpy
from ..likelihood import predictions
from ..protocol import Method
from .chain import (
    ONE_CHAIN,
    Settings,
    VPChain,
    expect,
    flat,
    normals,
    planned,
    queried_chain,
    repeat,
    report,
    require_finite,
    vp_start,
)


@dataclass(frozen=True)
class Config(Settings):
    """steps : N;  candidates : C;  threshold : guidance starts at step i0 = floor(threshold N)

    cache : keep the winner's D for the next step, which saves one denoiser call per guided step; same numbers
    official_index_bug : at i0 the state is replaced by the un-noised, un-scaled D, as in both public codes, whose
        branches read ``i > i0``; for a study of that defect only
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    steps: int = 1000
    candidates: int = 512
    threshold: float = 0.25
    sigma_max: float | None = None
    seed: int = 0
    cache: bool = True
    official_index_bug: bool = False

    def __post_init__(self):
        expect("steps", self.steps, 2)
        expect("candidates", self.candidates, 1)
        expect("threshold", self.threshold)


@dataclass(frozen=True)
class State:
    """x, denoised : (R, *event), the chains and D there

    candidates, proposed : (R C, *event), the steps to choose from and D there, chain by chain
    """

    x: Any
    denoised: Any
    candidates: Any = None
    proposed: Any = None
    level: int = 0


@dataclass(frozen=True)
class SCG(VPChain):
    """For i >= i0:  x^c = a_i x + f_i S_i(x) + sqrt(f_i) eps_c, c = 1 .. C;  x <- the x^c with the smallest

        L(D(x^c/s_{i+1}, sigma_{i+1}));   before i0 unconditional SDE steps, at the end D.

    Gradient-free and without a guidance scale. Not a posterior sampler: many candidates fit the noise.
    A candidate whose prediction is not finite is never chosen.
    """

    denoise: Callable
    likelihood: Any
    config: Config = Config()

    @property
    def first(self):
        """i0"""
        return int(self.config.threshold * self.config.steps)

    def init(self, noise):
        x = self.grid.start(noise)
        last = self.config.steps - 1
        for i in range(min(self.first, last)):
            x = self.grid.sde_step(i, x, self._denoise(i, x), normals(self.config.seed, 1 + i, x))
        level = min(self.first, last)
        denoised = self._denoise(level, x)
        if self.config.official_index_bug and level < last:
            level, x = level + 1, denoised
            denoised = self._denoise(level, x)
        return self._propose(State(x, denoised, level=level))

    def ask(self, state):
        return state.proposed

    def tell(self, state, y_pred):
        C, i = self.config.candidates, state.level
        R = state.x.shape[0]
        g = predictions(y_pred, state.candidates, self.likelihood)
        xp = array_namespace(state.x, g)
        loss = self.likelihood.misfit(g)
        loss = xp.reshape(xp.where(xp.isfinite(loss), loss, xp.full_like(loss, math.inf)), (R, C))
        require_finite(xp.min(loss, axis=1, keepdims=True), "forward", i, self.grid.sigmas[i])
        winners = [C * r + int(best) for r, best in enumerate(to_numpy(loss).argmin(axis=1))]
        x, denoised = (xp.stack([rows[w, ...] for w in winners]) for rows in (state.candidates, state.proposed))
        if not self.config.cache:
            denoised = self._denoise(i + 1, x)
        info = report(i, self.grid.sigmas[i], g, self.likelihood)
        return self._propose(dataclasses.replace(state, x=x, denoised=denoised, level=i + 1)), info

    def counts(self, rows):
        c = self.config
        guided = max(c.steps - 1 - self.first - int(c.official_index_bug), 0)
        kept = 1 if c.cache else 0
        return {"fwd_total": guided * c.candidates * rows, "fwd_seq": guided,
                "den_total": (c.steps + guided * (c.candidates - kept)) * rows,
                "den_seq": c.steps + guided * (1 - kept)}

    def _propose(self, state):
        """The candidates of the next guided step; after the last one the answer, D."""
        i, c = state.level, self.config
        if i >= c.steps - 1:
            return dataclasses.replace(state, x=state.denoised, level=c.steps)
        mean = self.grid.mean(i, state.x, state.denoised)
        eps = normals(c.seed, 1 + i, state.x, (c.candidates,))
        candidates = flat(repeat(mean, c.candidates) + math.sqrt(self.grid.variances[i]) * eps)
        return dataclasses.replace(state, candidates=candidates, proposed=self._denoise(i + 1, candidates))


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """One chain, at least two candidates per step: one is no choice."""
    threshold = settings.get("threshold", Config.threshold)
    steps, candidates = queried_chain("scg", budget, lambda n: n - 1 - int(threshold * n), 8, settings, 2)
    config = Config(**{**vp_start(item), "seed": seed, **settings, "steps": steps, "candidates": candidates})
    return planned(SCG(item.denoise, item.likelihood, config), 1, State)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="stochastic control guidance, Huang et al. 2024",
    spends="at least 50 steps where it can pay them, the longest chain with 8 candidates per step", spread=ONE_CHAIN,
    candidates=({}, {"threshold": 0.0}, {"threshold": 0.5}, {"steps": 25}))
