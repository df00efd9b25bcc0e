"""DiffPIR: denoise, fit the data, re-noise.

[1] Zhu et al. 2023, arXiv 2305.08995.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._xp import array_namespace
from .schedule import vp_grid
from .wave import Settings, expect, expect_one, finite_rows, normals, per_row, predictions, report, require_finite


def paper_rho(lam, sigma, scale):
    """rho = lambda/sigma_i^2, the paper's (its sigma_n is in the likelihood's weights): for the proximal form."""
    return lam / sigma**2


def inversebench_rho(lam, sigma, scale):
    """rho = 2 lambda/(s_i sigma_i)^2: InverseBench in both forms. s sigma <= 1 is what keeps a gradient step stable."""
    return 2.0 * lam / (scale * sigma) ** 2


@dataclass(frozen=True)
class Config(Settings):
    """steps : N;  lam : lambda, the weight of the prior;  xi : share of fresh noise, in [0, 1]

    rho : (lambda, sigma, s) -> rho of the proximal form. The gradient form always uses 2 lambda/(s sigma)^2.
    operator_norm : ||Gamma^-1/2 H||, if known: a gradient step that must diverge is refused
    last : "denoised" ends with the data step's x0h; "noisy" re-noises it to sigma = 0.01, as the public codes do
    failed : "raise", or "keep": a chain whose prediction or gradient is not finite skips that data step
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    steps: int = 1000
    lam: float = 1.0
    xi: float = 1.0
    rho: Callable = paper_rho
    operator_norm: float | None = None
    last: str = "denoised"
    failed: str = "raise"
    sigma_max: float | None = None
    seed: int = 0

    def __post_init__(self):
        expect("steps", self.steps, 2)
        expect("lam", self.lam, 0, strict=True)
        if not 0.0 <= self.xi <= 1.0:
            raise ValueError(f"xi: got {self.xi}, expected a share of noise in [0, 1]")
        expect_one("last", self.last, "denoised", "noisy")
        expect_one("failed", self.failed, "raise", "keep")


@dataclass(frozen=True)
class State:
    """x, denoised : (R, *event), the un-scaled chains x~ and D(x~, sigma_i)"""

    x: Any
    denoised: Any
    level: int = 0


@dataclass(frozen=True)
class DiffPIR:
    """x0 = D(x~, sigma_i);  x0h by the data step;  n = (x~ - x0h)/sigma_i;

        x~ <- x0h + sigma_{i+1} (sqrt(xi) eps + sqrt(1 - xi) n)

    Data step, with the loss L = misfit (so that lambda needs no sigma_n beside it):

        x0h = argmin L(x) + rho ||x - x0||^2         prox given:  (x0, rho) -> x0h
        x0h = x0 - grad L(x0)/(2 lambda/(s sigma)^2) forward_vjp given: one gradient step

    Not a posterior sampler: compare it with its own recursion. The prediction of a proximal run is only reported.
    """

    denoise: Callable
    likelihood: Any
    config: Config = Config()
    forward_vjp: Callable | None = None
    prox: Callable | None = None

    ACCESS = frozenset({"forward", "denoiser", "forward_vjp"})
    STATE = State

    def __post_init__(self):
        if self.prox is None and self.forward_vjp is None:
            raise ValueError("diffpir: got neither prox nor forward_vjp, expected one of them")
        c = self.config
        if self.prox is None and c.operator_norm is not None and c.operator_norm**2 > 2.0 * c.lam:
            # the bound 2 ||H||^2/rho_g <= 2 is tightest where s sigma is largest, 1
            raise ValueError(f"lam: got {c.lam}, expected at least {c.operator_norm**2 / 2.0:.4g}: the gradient step "
                             f"diverges for ||H|| = {c.operator_norm:.4g}")

    @cached_property
    def grid(self):
        return vp_grid(self.config.steps, self.config.sigma_max)

    def init(self, noise):
        return self._at(0, self.grid.sigmas[0] * noise)

    def ask(self, state):
        return state.denoised

    def tell(self, state, y_pred):
        c, i, x, x0 = self.config, state.level, state.x, state.denoised
        sigma, following = self.grid.sigmas[i], self.grid.sigmas[i + 1]
        g = predictions(y_pred, x.shape[0], self.likelihood)
        xp = array_namespace(x, g)
        if c.failed == "raise":
            require_finite(g, "forward", i, sigma)
        if self.prox is not None:
            fitted = self.prox(x0, c.rho(c.lam, sigma, self.grid.scales[i]))
        else:
            gradient = 2.0 * self.forward_vjp(x0, self.likelihood.residual(g))
            fitted = x0 - gradient / inversebench_rho(c.lam, sigma, self.grid.scales[i])
        if c.failed == "raise":
            require_finite(fitted, "data step", i, sigma)
        live = finite_rows(fitted)
        fitted = xp.where(per_row(live, x), fitted, x0)
        skipped = x.shape[0] - int(xp.sum(xp.astype(live, x.dtype)))
        info = report(i, sigma, g, self.likelihood, skipped)
        if i == c.steps - 1 and c.last == "denoised":
            return State(fitted, fitted, i + 1), info
        noise = math.sqrt(1.0 - c.xi) * (x - fitted) / sigma
        if c.xi > 0.0:
            noise = noise + math.sqrt(c.xi) * normals(c.seed, 1 + i, x)
        return self._at(i + 1, fitted + following * noise), info

    def done(self, state):
        return state.level >= self.config.steps

    def counts(self, rows):
        n = self.config.steps
        vjps = 0 if self.prox is not None else n
        return {"fwd_total": n * rows, "fwd_seq": n, "den_total": n * rows, "den_seq": n,
                "fwd_vjp_total": vjps * rows, "fwd_vjp_seq": vjps}

    def _at(self, i, x):
        if i == self.config.steps:
            return State(x, x, i)
        sigma = self.grid.sigmas[i]
        return State(x, require_finite(self.denoise(x, sigma), "denoise", i, sigma), i)
