"""PnP-DM, plug-and-play diffusion models: split Gibbs sampling with an annealed coupling.

[1] Wu et al. 2024, arXiv 2405.18782.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..likelihood import predictions
from ..protocol import Method, at_least
from .chain import (
    COUPLED,
    Settings,
    SplitGibbs,
    SplitState,
    calls,
    expect,
    expect_one,
    norm_cost,
    normals,
    planned,
    report,
    require_finite,
)
from .schedule import ve_sde


@dataclass(frozen=True)
class Config(Settings):
    """outer : T;  rho_max, rho_min, decay : rho_{k+1} = max(rho_min, decay rho_k)

    inner : n_L Langevin steps of size h;  tau : temperature; 1 is exact for a likelihood with the true noise. (The
        black-hole loss of the public codes is twice ours: their tau = sqrt(2) is 1 here, their published 1 is 0.707.)
    prior_steps, sigma_max, sigma_min : the full grid of the prior step;  grid : where it starts, `levels_below`
    last : end of the prior step, `ve_sde`; the official codes: "euler" (InverseBench), "noiseless" (authors)
    """

    outer: int = 100
    rho_max: float = 10.0
    rho_min: float = 0.02
    decay: float = 0.93
    inner: int = 40
    step: float = 5e-5
    tau: float = 1.0
    prior_steps: int = 100
    sigma_max: float = 100.0
    sigma_min: float = 0.01
    grid: str = "exact"
    last: str = "denoised"
    seed: int = 0

    def __post_init__(self):
        for name in ("outer", "inner", "prior_steps"):
            expect(name, getattr(self, name), 1)
        for name in ("rho_max", "rho_min", "decay", "step", "tau"):
            expect(name, getattr(self, name), 0, strict=True)
        expect_one("last", self.last, "denoised", "euler", "noiseless")

    def rhos(self):
        """The couplings of the T outer steps."""
        rhos = [self.rho_max]
        while len(rhos) < self.outer:
            rhos.append(max(self.rho_min, self.decay * rhos[-1]))
        return rhos


@dataclass(frozen=True)
class PnPDM(SplitGibbs):
    """Likelihood step, n_L times from z = x, unadjusted Langevin for exp(-L(z)/(2 tau^2) - ||z - x||^2/(2 rho^2)):

        z <- z - h (grad L(z)/(2 tau^2) + (z - x)/rho^2) + sqrt(2h) eps

    Prior step: x ~ p(x0 | x0 + rho n = z) by the reverse SDE from level rho. It must be a draw: the probability flow
    has no conditional variance. With exact conditionals and constant rho the x-marginal is the posterior for the noise
    tau^2 I + rho^2 HH'. Stable only for h lambda_max < 2, lambda_max that of H'H/tau^2 + I/rho^2.
    """

    denoise: Callable
    forward_vjp: Callable
    likelihood: Any
    config: Config = Config()

    @property
    def start_of_prior_step(self):
        return self.config.grid

    def init(self, noise):
        return SplitState(noise, noise)

    def tell(self, state, y_pred):
        c, k, x, z = self.config, state.level, state.x, state.z
        rho = c.rhos()[k]
        stream = 1 + k * (c.inner + c.prior_steps + 1)
        g = require_finite(predictions(y_pred, z, self.likelihood), "forward", k, rho)
        half_gradient = self.forward_vjp(z, self.likelihood.residual(g))
        drift = half_gradient / c.tau**2 + (z - x) / rho**2
        z = z - c.step * drift + math.sqrt(2.0 * c.step) * normals(c.seed, stream + state.inner, z)
        require_finite(z, "likelihood step", k, rho)
        info = report(k, rho, g, self.likelihood)
        if state.inner + 1 < c.inner:
            return dataclasses.replace(state, z=z, inner=state.inner + 1), info
        x = ve_sde(z, self.prior_levels[k], self.denoise,
                   lambda step: normals(c.seed, stream + c.inner + step, z), c.last)
        require_finite(x, "denoise", k, rho)
        return SplitState(x, x, k + 1), info

    def counts(self, rows):
        waves, prior = self.config.outer * self.config.inner, sum(len(levels) - 1 for levels in self.prior_levels)
        return calls(rows, fwd=waves, fwd_vjp=waves, den=prior)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """Up to four chains ("rows" among the settings), 30 outer steps; the Langevin step from a measured norm of J."""
    settings = {"outer": 30, "decay": 0.83, "rho_max": 10.0, **settings}
    rows = settings.pop("rows", 4)
    cost, first = settings["outer"] * (1 + c_vjp), norm_cost(c_vjp)
    at_least("pnpdm", budget, math.ceil(first + cost))
    room = budget - first
    R = max(1, min(rows, int(room // cost)))
    low, high = item.sigma_range
    stiffness = item.norm(item) ** 2 + 1.0 / settings.get("rho_min", Config.rho_min) ** 2
    config = Config(**{"step": 0.5 / stiffness, "sigma_max": high, "sigma_min": max(low, 0.01), "seed": seed,
                       "inner": max(1, int(room // (cost * R))), **settings})
    return planned(PnPDM(item.denoise, item.forward_vjp, item.likelihood, config), R, SplitState)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "forward_vjp"}),
    words="split Gibbs with Langevin steps, Wu et al. 2024", spends="Langevin steps of 4 chains, 30 outer steps",
    spread=COUPLED,
    candidates=({}, {"rho_max": 3.0, "rho_min": 0.1}, {"rho_max": 3.0, "rho_min": 0.3}, {"outer": 15, "decay": 0.7}))
