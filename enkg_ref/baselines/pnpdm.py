"""PnP-DM, plug-and-play diffusion models: split Gibbs sampling with an annealed coupling.

[1] Wu et al. 2024, arXiv 2405.18782.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..diffusion import edm_sigmas
from .schedule import levels_below, ve_sde
from .wave import Settings, expect, expect_one, normals, predictions, report, require_finite


@dataclass(frozen=True)
class Config(Settings):
    """outer : T;  rho_max, rho_min, decay : rho_{k+1} = max(rho_min, decay rho_k)

    inner : n_L Langevin steps of size h;  tau : temperature; 1 is exact for a likelihood with the true noise. (The
        black-hole loss of the public codes is twice ours: their tau = sqrt(2) is 1 here, their published 1 is .707.)
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
class State:
    """x, z : (R, *event), the prior's and the likelihood's half of the chains;  inner : Langevin steps done"""

    x: Any
    z: Any
    level: int = 0
    inner: int = 0


@dataclass(frozen=True)
class PnPDM:
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

    ACCESS = frozenset({"forward", "denoiser", "forward_vjp"})
    STATE = State

    @cached_property
    def prior_levels(self):
        c = self.config
        full = edm_sigmas(c.prior_steps, c.sigma_max, c.sigma_min)
        return [levels_below(rho, full, c.grid) for rho in c.rhos()]

    def init(self, noise):
        return State(noise, noise)

    def ask(self, state):
        return state.z

    def tell(self, state, y_pred):
        c, k, x, z = self.config, state.level, state.x, state.z
        rho = c.rhos()[k]
        stream = 1 + k * (c.inner + c.prior_steps + 1)
        g = require_finite(predictions(y_pred, z.shape[0], self.likelihood), "forward", k, rho)
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
        return State(x, x, k + 1), info

    def done(self, state):
        return state.level >= self.config.outer

    def counts(self, rows):
        waves, prior = self.config.outer * self.config.inner, sum(len(levels) - 1 for levels in self.prior_levels)
        return {"fwd_total": waves * rows, "fwd_seq": waves, "fwd_vjp_total": waves * rows, "fwd_vjp_seq": waves,
                "den_total": prior * rows, "den_seq": prior}
