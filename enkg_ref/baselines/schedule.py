"""Noise schedules of the single-chain methods: the VP grid in EDM variables (B1), its steps (B2), and a VE sampler.

[1] Karras et al. 2022, arXiv 2206.00364.   [2] Song et al. 2021, arXiv 2011.13456.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..diffusion import edm_sigmas

BETA_D, BETA_MIN = 19.9, 0.1
VP_SIGMA_MAX = 152.0  # sigma(1) of (B1), rounded


def vp_sigma(t):
    """(B1) sigma(t) = sqrt(exp(B(t)) - 1), B(t) = beta_d t^2/2 + beta_min t; Table 1 of [1]."""
    return math.sqrt(math.expm1(0.5 * BETA_D * t * t + BETA_MIN * t))


def vp_time(sigma):
    """(B1) The t with vp_sigma(t) = sigma."""
    return (math.sqrt(BETA_MIN**2 + 2.0 * BETA_D * math.log1p(sigma * sigma)) - BETA_MIN) / BETA_D


@dataclass(frozen=True)
class VPGrid:
    """(B1), (B2) N levels of the variance-preserving process. The state is the scaled x = s x~, x~ = x0 + sigma n.

    sigmas, scales : N + 1 floats, sigma_i and s_i = 1/sqrt(1 + sigma_i^2);  gains, variances : N floats, a_i and f_i
    """

    sigmas: tuple[float, ...]
    scales: tuple[float, ...]
    gains: tuple[float, ...]
    variances: tuple[float, ...]

    @property
    def steps(self):
        return len(self.gains)

    def start(self, noise):
        """x_0 = sigma_0 s_0 noise, noise ~ N(0, I)."""
        return self.sigmas[0] * self.scales[0] * noise

    def unscaled(self, i, x):
        """x~ = x/s_i, the argument of the denoiser."""
        return x / self.scales[i]

    def score(self, i, x, denoised):
        """S_i(x) = (D(x/s_i, sigma_i) - x/s_i)/(sigma_i^2 s_i), the score in x."""
        return (denoised - x / self.scales[i]) / (self.sigmas[i] ** 2 * self.scales[i])

    def mean(self, i, x, denoised):
        """Mean of the SDE step: a_i x + f_i S_i(x)."""
        return self.gains[i] * x + self.variances[i] * self.score(i, x, denoised)

    def sde_step(self, i, x, denoised, eps):
        """(B2) E_i(x) = a_i x + f_i S_i(x) + sqrt(f_i) eps."""
        return self.mean(i, x, denoised) + math.sqrt(self.variances[i]) * eps


def vp_grid(n, sigma_max=None, sigma_final=0.01):
    """(B1) t_i = t_0 - (t_0 - 1e-3) i/(N-1) for i < N, then t_N = sigma^-1(sigma_final).

    t_0 = 1, that is sigma_0 = 152, or sigma^-1(sigma_max) where a prior's range ends below that.
    """
    if n < 2:
        raise ValueError(f"steps: got {n}, expected at least 2")
    first = 1.0 if sigma_max is None else min(1.0, vp_time(sigma_max) * (1.0 - 1e-9))
    times = [first - (first - 1e-3) * i / (n - 1) for i in range(n)] + [vp_time(sigma_final)]
    sigmas = tuple(vp_sigma(t) for t in times)
    scales = tuple(1.0 / math.sqrt(1.0 + s * s) for s in sigmas)
    beta_dt = [(BETA_D * t + BETA_MIN) * (t - later) for t, later in zip(times, times[1:])]
    return VPGrid(sigmas, scales, tuple(1.0 + b / 2.0 for b in beta_dt), tuple(max(b, 0.0) for b in beta_dt))


def ve_sde(x, levels, denoise, normals, last="denoised"):
    """Reverse VE-SDE from levels[0] to levels[-1] = 0: a draw of x0 given x0 + levels[0] n = x.

    x <- x + 2 (1 - sigma'/sigma) (D - x) + sqrt(2 sigma (sigma - sigma')) eps, and D at the last step. The official
    codes take the formula to the end: last="euler" leaves 2D - x + noise, last="noiseless" 2D - x.

    normals : step -> standard normal array like x;  costs len(levels) - 1 denoiser calls per row.
    """
    for step, (here, following) in enumerate(zip(levels, levels[1:])):
        denoised = denoise(x, here)
        if following == 0.0 and last == "denoised":
            return denoised
        x = x + 2.0 * (1.0 - following / here) * (denoised - x)
        if following > 0.0 or last == "euler":
            x = x + math.sqrt(2.0 * here * (here - following)) * normals(step)
    return x


def levels_below(rho, grid, start="exact"):
    """Noise levels of a prior step that starts at rho, out of a full ``grid`` that ends with 0.

    exact : from rho itself, as many steps as the grid has levels below rho, spaced as (T1)
    ib : from the smallest level of the grid that is >= rho (InverseBench: pretends that z is noisier than it is)
    authors : from the largest level of the grid below rho
    """
    below = [level for level in grid if level < rho]
    if start == "exact":
        return edm_sigmas(len(below), rho, min(grid[-2], rho))
    if start == "ib":
        return (min((level for level in grid if level >= rho), default=rho), *below)
    if start == "authors":
        return tuple(below) if len(below) > 1 else (rho, *below)
    raise ValueError(f"grid: got {start!r}, expected 'exact', 'ib' or 'authors'")
