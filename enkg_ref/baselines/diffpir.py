"""DiffPIR: denoise, fit the data, re-noise.

[1] Zhu et al. 2023, arXiv 2305.08995.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._xp import array_namespace
from ..likelihood import predictions
from ..protocol import Method
from .chain import (
    BIASED,
    ChainState,
    Settings,
    VPChain,
    calls,
    dead_rows,
    expect,
    expect_one,
    finite_mask,
    norm_cost,
    normals,
    per_row,
    plain_chains,
    planned,
    report,
    require_finite,
    vp_start,
)


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
class DiffPIR(VPChain):
    """On the un-scaled chain x~:  x0 = D(x~, sigma_i);  x0h by the data step;  n = (x~ - x0h)/sigma_i;

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

    def __post_init__(self):
        if self.prox is None and self.forward_vjp is None:
            raise ValueError("diffpir: got neither prox nor forward_vjp, expected one of them")
        c = self.config
        if self.prox is None and c.operator_norm is not None and c.operator_norm**2 > 2.0 * c.lam:
            # the bound 2 ||H||^2/rho_g <= 2 is tightest where s sigma is largest, 1
            raise ValueError(f"lam: got {c.lam}, expected at least {c.operator_norm**2 / 2.0:.4g}: the gradient step "
                             f"diverges for ||H|| = {c.operator_norm:.4g}")

    def init(self, noise):
        return self._at(0, self.grid.sigmas[0] * noise)

    def tell(self, state, y_pred):
        c, i, x = self.config, state.level, state.x
        sigma, following = self.grid.sigmas[i], self.grid.sigmas[i + 1]
        g = predictions(y_pred, x, self.likelihood)
        if c.failed == "raise":
            require_finite(g, "forward", i, sigma)
        fitted, live = self._data_step(state, g)
        info = report(i, sigma, g, self.likelihood, dead_rows(live))
        if i == c.steps - 1 and c.last == "denoised":
            return ChainState(fitted, fitted, i + 1), info
        noise = math.sqrt(1.0 - c.xi) * (x - fitted) / sigma
        if c.xi > 0.0:
            noise = noise + math.sqrt(c.xi) * normals(c.seed, 1 + i, x)
        return self._at(i + 1, fitted + following * noise), info

    def _data_step(self, state, g):
        """x0h (R, *event), and which chains have one; the others keep x0."""
        c, i, x0 = self.config, state.level, state.denoised
        sigma, scale = self.grid.sigmas[i], self.grid.scales[i]
        if self.prox is not None:
            fitted = self.prox(x0, c.rho(c.lam, sigma, scale))
        else:
            gradient = 2.0 * self.forward_vjp(x0, self.likelihood.residual(g))
            fitted = x0 - gradient / inversebench_rho(c.lam, sigma, scale)
        if c.failed == "raise":
            require_finite(fitted, "data step", i, sigma)
        live = finite_mask(fitted)
        return array_namespace(fitted).where(per_row(live, x0), fitted, x0), live

    def counts(self, rows):
        n = self.config.steps
        return calls(rows, fwd=n, den=n, fwd_vjp=n if self.prox is None else 0)

    def _denoise(self, i, x):  # the chain is the un-scaled one
        sigma = self.grid.sigmas[i]
        return require_finite(self.denoise(x, sigma), "denoise", i, sigma)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """Chains in one batch; lambda is the least at which a gradient step is stable, from a measured ||Gamma^-1/2 J||."""
    settings = dict(settings)
    steps, R = plain_chains("diffpir", budget, 1 + c_vjp, settings, (8, 10, 250), norm_cost(c_vjp))
    lam = max(1.0, 0.5 * item.norm(item) ** 2)
    config = Config(**{**vp_start(item), "lam": lam, "failed": "keep", "seed": seed, **settings, "steps": steps})
    return planned(DiffPIR(item.denoise, item.likelihood, config, forward_vjp=item.forward_vjp), R, ChainState)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "forward_vjp"}), words="denoise, fit, re-noise, Zhu et al. 2023",
    spends="8 chains in one batch, more beyond 250 steps", spread=BIASED,
    candidates=({}, {"xi": 0.3}, {"xi": 0.1}, {"rows": 2}))
