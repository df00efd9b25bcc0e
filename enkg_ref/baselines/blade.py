"""Blade, ensemble split Gibbs: PnP-DM whose Langevin step is preconditioned by, and free of gradients through, the
ensemble covariance.

[1] arXiv 2510.10968.   [2] Garbuno-Inigo, Nuesken, Reich 2020 (affine-invariant Langevin; the correction term).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._xp import array_namespace, like, member_normals
from ..diffusion import edm_sigmas, flow_to_zero
from ..ensemble import anomalies, ensemble_mean
from .schedule import levels_below, ve_sde
from .wave import Settings, expect, normals, predictions, report, require_finite


def normalised(gamma):
    """h = gamma/||reg - ll||_F: the norm of the drift."""
    return lambda reg, ll: _over_norm(gamma, reg - ll)


def normalised_by_sum(gamma):
    """h = gamma/||reg + ll||_F: the official code, which takes the norm of the sum although the drift is reg - ll."""
    return lambda reg, ll: _over_norm(gamma, reg + ll)


def constant_step(h):
    """A fixed step."""
    return lambda reg, ll: h * array_namespace(reg).ones_like(reg[0, 0])


@dataclass(frozen=True)
class Config(Settings):
    """particles are the rows of the noise. outer : T;  rho_max, rho_min, schedule : "linear", "exp" or "edm" (power 4)

    inner : n_L likelihood steps;  guidance : gamma;  step_rule : gamma -> (reg, ll) -> h
    tau : temperature beside the likelihood's own noise level; 1 is exact
    mode : "correction", the full covariance with the (d + 1)/J term; "diag", its diagonal and no such term
    inflation : "quadrature" tops the spread up to rho after the likelihood step; "linear" as the official code, whose
        sum of standard deviations falls short of rho; "none"
    prior : "sde"; or "ode", the official code's probability flow, which is not a draw
    prior_steps, sigma_max, sigma_min : the full grid of the prior step;  last_step_prior : end with a prior step
    """

    outer: int = 25
    rho_max: float = 5.0
    rho_min: float = 0.01
    schedule: str = "linear"
    inner: int = 100
    guidance: float = 10.0
    step_rule: Callable = normalised
    tau: float = 1.0
    mode: str = "diag"
    inflation: str = "quadrature"
    prior: str = "sde"
    prior_steps: int = 100
    sigma_max: float = 10.0
    sigma_min: float = 0.001
    last_step_prior: bool = True
    seed: int = 0

    def __post_init__(self):
        for name in ("outer", "inner", "prior_steps"):
            expect(name, getattr(self, name), 1)
        for name in ("rho_max", "rho_min", "tau"):
            expect(name, getattr(self, name), 0, strict=True)
        for name, known in {"schedule": ("linear", "exp", "edm"), "mode": ("correction", "diag"),
                            "inflation": ("quadrature", "linear", "none"), "prior": ("sde", "ode")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")

    def rhos(self):
        """The couplings of the T outer steps, from rho_max to rho_min."""
        if self.outer == 1:
            return (self.rho_max,)
        share = [k / (self.outer - 1) for k in range(self.outer)]
        if self.schedule == "linear":
            return tuple(self.rho_max + (self.rho_min - self.rho_max) * u for u in share)
        if self.schedule == "exp":
            return tuple(self.rho_max * (self.rho_min / self.rho_max) ** u for u in share)
        return edm_sigmas(self.outer, self.rho_max, self.rho_min, 4.0)[:-1]


@dataclass(frozen=True)
class State:
    """x, z : (J, *event), the prior's and the likelihood's half of the particles;  inner : likelihood steps done"""

    x: Any
    z: Any
    level: int = 0
    inner: int = 0


@dataclass(frozen=True)
class Blade:
    """Likelihood step, n_L times from z = x, with zd_j = z_j - zbar, b_j = g_j - gbar, C = sum zd zd'/J, g = G(z):

        ll_j  = (1/J) sum_k <(g_j - y)/tau^2, b_k>_Gamma zd_k
        reg_j = C (x_j - z_j)/rho^2 + ((d + 1)/J) zd_j
        z_j <- z_j + h (reg_j - ll_j) + sqrt(2h) (1/sqrt J) sum_k xi_jk zd_k,   xi ~ N(0, 1)

    then the spread is topped up to rho and the prior step draws x ~ p(x0 | x0 + rho n = z). For linear G and small h
    the law of z_j given x_j is exp(-L/(2 tau^2) - ||z - x||^2/(2 rho^2)), thanks to the (d + 1)/J term; needs
    J > d + 1. C is never formed. A zero drift moves nothing (``info.skipped``).
    """

    denoise: Callable
    likelihood: Any
    config: Config = Config()

    ACCESS = frozenset({"forward", "denoiser"})
    STATE = State

    @cached_property
    def prior_levels(self):
        c = self.config
        full = edm_sigmas(c.prior_steps, c.sigma_max, c.sigma_min)
        return [levels_below(rho, full) for rho in c.rhos()]

    def init(self, noise):
        if noise.shape[0] < 2:
            raise ValueError(f"noise: got {noise.shape[0]} row, expected at least 2 particles")
        x = self.config.rhos()[0] * noise
        return State(x, x)

    def ask(self, state):
        return state.z

    def tell(self, state, y_pred):
        c, k = self.config, state.level
        J, rho = state.z.shape[0], c.rhos()[k]
        stream = 1 + k * (c.inner + c.prior_steps + 2)
        g = require_finite(predictions(y_pred, J, self.likelihood), "forward", k, rho)
        xp = array_namespace(state.z, g)
        X, Z = xp.reshape(state.x, (J, -1)), xp.reshape(state.z, (J, -1))
        Z, moved = self._likelihood_step(X, Z, g, rho, stream + state.inner)
        require_finite(Z, "likelihood step", k, rho)
        z = xp.reshape(Z, state.z.shape)
        info = report(k, rho, g, self.likelihood, 0 if moved else J)
        if state.inner + 1 < c.inner:
            return dataclasses.replace(state, z=z, inner=state.inner + 1), info
        z = self._inflate(z, rho, stream + c.inner)
        if k + 1 == c.outer and not c.last_step_prior:
            return State(z, z, k + 1), info
        x = self._prior(z, k, stream + c.inner + 1)
        return State(require_finite(x, "denoise", k, rho), x, k + 1), info

    def _likelihood_step(self, X, Z, g, rho, stream):
        c, xp = self.config, array_namespace(Z)
        J, d = Z.shape
        zd, b = anomalies(Z), anomalies(g)
        ll = xp.matmul(self.likelihood.residual(g), xp.matmul(xp.matrix_transpose(b), zd)) / (J * c.tau**2)
        if c.mode == "diag":
            variance = xp.sum(zd * zd, axis=0, keepdims=True) / J
            reg = variance * (X - Z) / rho**2
            noise = xp.sqrt(variance) * normals(c.seed, stream, Z)
        else:
            reg = xp.matmul(xp.matmul(X - Z, xp.matrix_transpose(zd)), zd) / (J * rho**2) + (d + 1) / J * zd
            noise = xp.matmul(like(member_normals(c.seed, stream, J, (J,)), Z), zd) / math.sqrt(J)
        h = c.step_rule(c.guidance)(reg, ll)
        return Z + h * (reg - ll) + xp.sqrt(2.0 * h) * noise, bool(h > 0.0)

    def _inflate(self, z, rho, stream):
        c, xp = self.config, array_namespace(z)
        if c.inflation == "none":
            return z
        zd = z - xp.reshape(ensemble_mean(xp.reshape(z, (z.shape[0], -1))), (1, *z.shape[1:]))
        variance = float(xp.mean(zd * zd))
        lacking = rho**2 - variance if c.inflation == "quadrature" else (rho - math.sqrt(variance))
        if lacking <= 0.0:
            return z
        return z + (math.sqrt(lacking) if c.inflation == "quadrature" else lacking) * normals(c.seed, stream, z)

    def _prior(self, z, k, stream):
        c, levels = self.config, self.prior_levels[k]
        if c.prior == "ode":
            return flow_to_zero(z, levels[0], self.denoise, len(levels) - 1, min(c.sigma_min, levels[0]))
        return ve_sde(z, levels, self.denoise, lambda step: normals(c.seed, stream + step, z))

    def done(self, state):
        return state.level >= self.config.outer

    def counts(self, rows):
        c = self.config
        levels = self.prior_levels if c.last_step_prior else self.prior_levels[:-1]
        waves, prior = c.outer * c.inner, sum(len(level) - 1 for level in levels)
        return {"fwd_total": waves * rows, "fwd_seq": waves, "den_total": prior * rows, "den_seq": prior}


def _over_norm(gamma, drift):
    xp = array_namespace(drift)
    norm = xp.sqrt(xp.sum(drift * drift))
    return xp.where(norm > 0.0, gamma / xp.where(norm > 0.0, norm, xp.ones_like(norm)), xp.zeros_like(norm))
