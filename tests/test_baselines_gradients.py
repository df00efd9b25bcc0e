"""Gradients by central differences: the denoiser's VJP, and the guidance of DPS with its factor 1/s (B4)."""

import numpy as np
import pytest

from enkg_ref import Gaussian
from enkg_ref.baselines import DPS, dps
from onnx_priors.mixture import MixturePrior


def mixture():
    rng = np.random.default_rng(5)
    return MixturePrior([0.5, 0.3, 0.2], rng.standard_normal((3, 6)), rng.uniform(0.05, 0.4, (3, 6)))


def slope(function, x, u, h):
    """Fourth-order central difference of function(x) along u.  (J, ...) -> (J,)"""
    f = [function(x + k * h * u) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 20.0])
def test_the_vjp_of_a_denoiser_that_is_not_linear_is_its_slope(sigma):
    prior, rng = mixture(), np.random.default_rng(0)
    x, u, v = prior.sample(rng, 20) + sigma * rng.standard_normal((20, 6)), *rng.standard_normal((2, 20, 6))
    _, product = prior.denoise_vjp(x, sigma, v)
    exact = slope(lambda z: np.sum(v * prior.denoise(z, sigma), axis=1), x, u, 2e-3 * sigma)
    np.testing.assert_allclose(np.sum(u * product, axis=1), exact, atol=1e-6 * np.max(np.abs(exact)))
    affine = prior.denoise(x + u, sigma) + prior.denoise(x - u, sigma) - 2 * prior.denoise(x, sigma)
    assert sigma > 1.0 or np.max(np.abs(affine)) > 0.01  # it is not linear


def test_the_guidance_of_dps_is_the_slope_of_the_norm_with_respect_to_the_scaled_state():
    prior, rng = mixture(), np.random.default_rng(1)
    A, y = rng.standard_normal((4, 6)) / 2, rng.standard_normal(4)

    def forward(x):
        return np.sin(x @ A.T)

    def forward_vjp(x, v):
        return (v * np.cos(x @ A.T)) @ A

    def at(guidance):
        config = dps.Config(steps=40, guidance=guidance)
        return DPS(prior.denoise, prior.denoise_vjp, forward_vjp, Gaussian(y, 0.7), config)

    free, guided = at(0.0), at(1.0)
    for level in (3, 20, 38):  # s from .007 to 1
        x = rng.standard_normal((5, 6)) * free.grid.scales[level] * np.hypot(free.grid.sigmas[level], 1.0)
        state = free._at(level, x)
        q = free.tell(state, forward(state.denoised))[0].x - guided.tell(state, forward(state.denoised))[0].x
        s, sigma, u = free.grid.scales[level], free.grid.sigmas[level], rng.standard_normal((5, 6))

        def norm(z, s=s, sigma=sigma):
            return np.linalg.norm((forward(prior.denoise(z / s, sigma)) - y) / 0.7, axis=1)

        exact = slope(norm, x, u, 2e-3 * s * sigma)
        np.testing.assert_allclose(np.sum(u * q, axis=1), exact, atol=1e-6 * np.max(np.abs(exact)))
