"""Blade, ensemble split Gibbs: PnP-DM whose Langevin step is preconditioned by, and free of gradients through, the
ensemble covariance.

[1] arXiv 2510.10968.   [2] Garbuno-Inigo, Nuesken, Reich 2020 (affine-invariant Langevin; the correction term).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._xp import array_namespace, like, member_normals
from ..diffusion import edm_sigmas, flow_to_zero
from ..ensemble import anomalies, ensemble_mean
from ..likelihood import predictions
from ..protocol import Method, at_least
from .chain import COUPLED, Settings, SplitGibbs, SplitState, calls, expect, normals, planned, report, require_finite
from .schedule import ve_sde


def normalised(gamma):
    """h = gamma/||reg - ll||_F: the norm of the drift, and no step where it is zero."""
    def step(reg, ll):
        xp = array_namespace(reg)
        norm = xp.sqrt(xp.sum((reg - ll) ** 2.0))
        return xp.where(norm > 0.0, gamma / xp.where(norm > 0.0, norm, xp.ones_like(norm)), xp.zeros_like(norm))

    return step


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
class Blade(SplitGibbs):
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

    def init(self, noise):
        if noise.shape[0] < 2:
            raise ValueError(f"noise: got {noise.shape[0]} row, expected at least 2 particles")
        x = self.config.rhos()[0] * noise
        return SplitState(x, x)

    def tell(self, state, y_pred):
        c, k = self.config, state.level
        J, rho = state.z.shape[0], c.rhos()[k]
        stream = 1 + k * (c.inner + c.prior_steps + 2)
        g = require_finite(predictions(y_pred, state.z, self.likelihood), "forward", k, rho)
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
            return SplitState(z, z, k + 1), info
        x = self._prior(z, k, stream + c.inner + 1)
        return SplitState(require_finite(x, "denoise", k, rho), x, k + 1), info

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

    def counts(self, rows):
        c = self.config
        levels = self.prior_levels if c.last_step_prior else self.prior_levels[:-1]
        waves, prior = c.outer * c.inner, sum(len(level) - 1 for level in levels)
        return calls(rows, fwd=waves, den=prior)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """8 to 512 particles ("particles" among the settings), then likelihood steps, in 10 outer steps."""
    settings = {"outer": 10, **settings}
    at_least("blade", budget, (settings.get("particles") or 8) * settings["outer"])
    J = settings.pop("particles", None) or int(min(512, max(8, budget // (settings["outer"] * 20))))
    low, high = item.sigma_range
    config = Config(**{"inner": int(budget // (J * settings["outer"])), "sigma_max": min(10.0, high),
                       "sigma_min": max(low, 0.001), "prior_steps": 40, "seed": seed, **settings})
    return planned(Blade(item.denoise, item.likelihood, config), J, SplitState)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="ensemble split Gibbs, arXiv 2510.10968",
    spends="particles, then likelihood steps, 10 outer steps", spread=COUPLED,
    candidates=({}, {"mode": "correction", "guidance": 1.0, "rho_max": 4.0, "rho_min": 0.1},
                {"guidance": 1.0, "rho_max": 2.0, "rho_min": 0.1}, {"guidance": 40.0, "rho_max": 4.0, "rho_min": 0.1}))
