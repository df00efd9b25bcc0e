"""The diffusion process: noise schedule (T1), initial ensemble (T2), probability flow (T3, T7).

[1] Ensemble Kalman Diffusion Guidance, arXiv 2409.20175.   [2] Karras et al. 2022 (EDM), arXiv 2206.00364.
"""

from __future__ import annotations

import math

import numpy as np


def edm_sigmas(n, sigma_max=80.0, sigma_min=0.002, rho=7.0, dtype="float64"):
    """(T1) Noise levels sigma_0 = sigma_max > ... > sigma_{n-1} = sigma_min, then sigma_n = 0; Eq. (5) of [2].

    sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Returns a tuple of n + 1 Python floats. With n = 1 it is (sigma_max, 0). The official code holds the grid, not the
    two powers, in float32: ``dtype="float32"`` gives its levels but for the last bit of some, in which the power
    functions of two libraries differ. It scales its noise by sigma_max, of which sigma_0 then is 1 - 2e-7.
    """
    if n < 1:
        raise ValueError(f"steps: got {n}, expected at least 1")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"sigma_min, sigma_max: got {sigma_min}, {sigma_max}, expected 0 < sigma_min <= sigma_max")
    hi, lo = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid = (hi + np.arange(n, dtype=dtype) / max(n - 1, 1) * (lo - hi)) ** rho
    return (*map(float, grid), 0.0)


def initial_ensemble(noise, sigma_max):
    """(T2) X_0 = sigma_max * noise, noise ~ N(0, I) of shape (J, *event)."""
    return sigma_max * noise


def inner_steps(i, n, factor=4, cap=20):
    """(T3b) Number of Euler steps of the inner flow at level i of n: min(1 + (n - i) // factor, cap)."""
    return min(1 + (n - i) // factor, cap)


def euler_step(x, denoised, sigma, sigma_next):
    """(T7) Euler step of the probability-flow ODE from sigma to sigma_next.

    x + (sigma' - sigma) (x - D)/sigma = (sigma'/sigma) x + (1 - sigma'/sigma) D:  a convex combination of x and
    D(x, sigma), exactly D when sigma' = 0.

    x, denoised : (J, *event); sigma, sigma_next : Python floats.
    """
    kept = sigma_next / sigma
    return kept * x + (1.0 - kept) * denoised


def flow_to_zero(x, sigma, denoise, steps, sigma_eps=0.002, rho=7.0):
    """(T3c) phi: ``steps`` Euler steps (T7) from sigma to 0 on the grid (T1) between sigma and sigma_eps.

    With steps = 1 the grid is (sigma, 0) and phi(x) = D(x, sigma). At sigma = 0 phi is the identity.
    x : (J, *event); costs ``steps`` denoiser calls per particle. The official code fixes sigma_eps = 0.002, rho = 7.

    Raises ValueError if sigma < sigma_eps with more than one step: the grid would run upwards.
    """
    if sigma == 0.0:
        return x
    if steps > 1 and sigma < sigma_eps and not math.isclose(sigma, sigma_eps, rel_tol=1e-6):
        raise ValueError(f"sigma_eps: got {sigma_eps} above the noise level {sigma}, expected at most the noise level")
    grid = edm_sigmas(steps, sigma, min(sigma_eps, sigma), rho)
    for here, following in zip(grid, grid[1:]):
        x = euler_step(x, denoise(x, here), here, following)
    return x
