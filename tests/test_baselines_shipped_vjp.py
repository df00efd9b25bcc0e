"""The shipped VJP files: the denoiser they belong to, and its Jacobian by differences, without torch."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx_priors.manifest import read_manifest  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP  # noqa: E402

SHIPPED = [name for name, entry in read_manifest().items() if "vjp" in entry]


@pytest.fixture(scope="module", params=SHIPPED)
def pair(request):
    return OnnxDenoiser(request.param, threads=1), OnnxDenoiserVJP(request.param, threads=1)


def draws(denoise, count, scale, seed):
    return scale * np.random.default_rng(seed).standard_normal((count, *denoise.event_shape))


def test_the_networks_that_gradient_methods_need_are_shipped_with_their_vjp():
    assert {"kerr-disc-64", "navier-stokes-32", "navier-stokes-64"} <= set(SHIPPED)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_a_vjp_file_holds_the_denoiser_of_its_prior(pair, sigma):
    denoise, denoise_vjp = pair
    x = draws(denoise, 3, np.hypot(0.5, sigma), 0)
    np.testing.assert_allclose(denoise_vjp(x, sigma, x)[0], denoise(x, sigma), atol=2e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_product_with_the_transpose_is_the_slope_of_the_denoiser(pair, sigma):
    denoise, denoise_vjp = pair
    x, v = draws(denoise, 2, np.hypot(0.5, sigma), 1), draws(denoise, 2, 1.0, 2)
    _, product = denoise_vjp(x, sigma, v)
    event = tuple(range(1, x.ndim))
    # along the product itself the slope is ||J'v||^2 / ||J'v||, the largest there is and the best seen above rounding
    u = product / np.sqrt(np.mean(product**2, axis=event, keepdims=True))
    h = 0.002

    def along(step):  # float32 inside: the fourth-order difference allows a step far above rounding
        return np.sum(v * denoise(x + step * u, sigma), axis=event, dtype=np.float64)

    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, np.sum(u * product, axis=event), rtol=1e-3)
