"""The four image operators: adjoints, golden values, symmetries and proximal maps (problems/imaging_operators.py)."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from problems.imaging_operators import FourierMagnitude, Inpainting, MatrixPair, bicubic, blur, gaussian_taps

STRICTEST_EXTENSIONS = ("fft",)


def pair(n, channels, matrix):
    return MatrixPair(matrix, matrix, None if channels == 1 else channels)


def operators(n, channels):
    """Every operator that fits pictures of n x n pixels."""
    event = (n, n) if channels == 1 else (channels, n, n)
    made = {"inpainting": Inpainting(event, (n // 4, n // 5, n // 3, n // 2)), "phase": FourierMagnitude(event),
            "blur": pair(n, channels, blur(n, 3.0 if n > 12 else 1.0))}
    for factor in (2, 3, 4):
        if n % factor == 0:
            made[f"reduced by {factor}"] = pair(n, channels, bicubic(n, factor))
    return made


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [16, 33, 64])
def test_that_every_linear_operator_has_its_adjoint(n, channels):
    for name, G in operators(n, channels).items():
        if name == "phase":
            continue
        x, v = normal(2, *G.event_shape), normal(2, G.size, seed=1)
        left, right = np.sum(G(x) * v), np.sum(x * G.adjoint(v))
        assert abs(left - right) <= 1e-13 * np.linalg.norm(x) * np.linalg.norm(v), name


def test_that_rectangular_pictures_have_a_matrix_per_axis():
    G = MatrixPair(bicubic(16, 4), blur(20, 1.0), 3)
    x, v = normal(2, 3, 16, 20), normal(2, 3 * 4 * 20, seed=1)
    assert G(x).shape == v.shape
    assert np.sum(G(x) * v) == pytest.approx(np.sum(x * G.adjoint(v)), rel=1e-12)


def test_that_the_rows_of_the_bicubic_reduction_are_the_printed_ones():
    half = {2: [-0.01171875, -0.03515625, 0.11328125, 0.43359375],
            4: [-0.00170898, -0.01098633, -0.01831055, -0.01196289, 0.02270508, 0.09741211, 0.18188477, 0.2409668]}
    first = {2: [0.46443515, 0.46443515, 0.12133891, -0.0376569, -0.0125523],
             4: [0.19708995, 0.26111111, 0.26111111, 0.19708995, 0.10555556, 0.02460317, -0.01296296, -0.01984127,
                 -0.01190476, -0.00185185]}
    for factor in (2, 4):
        W = bicubic(64, factor)
        inner = W[8][W[8] != 0]
        np.testing.assert_allclose(inner, half[factor] + half[factor][::-1], atol=1e-8)
        np.testing.assert_allclose(W[0][W[0] != 0], first[factor], atol=1e-8)


@pytest.mark.parametrize("n, factor, smallest, largest", [
    (256, 2, 0.48622, 0.70959), (256, 4, 0.34850, 0.50306), (64, 2, 0.48744, 0.70959), (64, 4, 0.35147, 0.50306)])
def test_that_the_singular_values_of_the_reduction_are_the_printed_ones(n, factor, smallest, largest):
    s = np.linalg.svd(bicubic(n, factor), compute_uv=False)
    assert s[-1] == pytest.approx(smallest, abs=5.1e-6) and s[0] == pytest.approx(largest, abs=5.1e-6)
    assert pair(n, 1, bicubic(n, factor)).norm == pytest.approx(largest**2, abs=1.5e-5)


@pytest.mark.parametrize("n, smallest, largest", [(64, 8.4e-7, 1.00403), (256, 1.2e-7, 1.00221)])
def test_that_the_blur_has_the_printed_taps_and_singular_values(n, smallest, largest):
    g = gaussian_taps(3.0)
    printed = [0.132984539, 0.125797983, 0.106485694, 0.0806591999, 0.0546715782, 0.0331599884, 0.0179975002,
               8.74087805e-3, 3.79876994e-3, 1.47732478e-3, 5.14107606e-4, 1.60094766e-4, 4.46113428e-5]
    np.testing.assert_allclose(g[12:], printed, rtol=1e-8)
    assert g.size == 25 and g[12] ** 2 == pytest.approx(0.0176848875, abs=1e-10)
    s = np.linalg.svd(blur(n, 3.0), compute_uv=False)
    assert s[0] == pytest.approx(largest, abs=5.1e-6) and s[-1] == pytest.approx(smallest, rel=0.07)


def test_that_constant_pictures_stay_constant():
    for matrix in (bicubic(64, 2), bicubic(48, 3), bicubic(64, 4), blur(64, 3.0), blur(33, 1.7)):
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-14)


@pytest.mark.parametrize("n, factor", [(64, 2), (64, 4), (48, 3), (256, 4)])
def test_that_the_reduction_is_torchs_antialiased_bicubic_interpolation(n, factor):
    torch = pytest.importorskip("torch")
    x = normal(2, 3, n, n)
    size = (n // factor, n // factor)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bicubic", antialias=True).numpy()
    got = pair(n, 3, bicubic(n, factor))(x).reshape(expected.shape)
    assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()


def test_that_the_blur_is_the_direct_convolution_with_reflection_at_the_edge():
    x = normal(64, 64)
    delta = np.zeros((61, 61))
    delta[30, 30] = 1.0
    kernel = gaussian_filter(delta, 3.0, truncate=4.0)
    padded = np.pad(x, 30, mode="reflect")
    direct = np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(padded, (61, 61)), kernel)
    np.testing.assert_allclose(pair(64, 1, blur(64, 3.0))(x[None])[0], direct.reshape(-1), atol=1e-13)


def test_that_the_blur_is_not_its_own_adjoint():
    M = blur(64, 3.0)
    assert np.abs(M - M.T).max() == pytest.approx(0.126, abs=5e-4)
    assert M.sum(axis=0).min() == pytest.approx(0.566, abs=5e-4)
    assert M.sum(axis=0).max() == pytest.approx(1.126, abs=5e-4)
    G, x, v = pair(64, 1, M), normal(1, 64, 64) + 1.0, normal(1, 4096, seed=1) + 1.0
    assert abs(np.sum(G(x) * v) - np.sum(x * G(v.reshape(1, 64, 64)).reshape(1, 64, 64))) > 1e-4 * abs(np.sum(G(x) * v))


@pytest.mark.parametrize("n", [16, 33])
def test_that_fourier_magnitudes_are_those_of_the_centred_orthonormal_transform(n):
    G, x = FourierMagnitude((3, n, n)), normal(2, 3, n, n)
    margin = int(2.0 / 8 * n)
    framed = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    expected = np.abs(np.fft.fftshift(np.fft.fft2(framed, norm="ortho"), axes=(-2, -1)))
    np.testing.assert_allclose(G(x), expected.reshape(2, -1), atol=1e-12)


@pytest.mark.parametrize("n", [16, 33])
def test_that_fourier_magnitudes_do_not_see_sign_turn_and_shift(n):
    G, x = FourierMagnitude((n, n)), np.zeros((1, n, n))
    x[:, 3:9, 2:10] = normal(1, 6, 8)
    for other in (-x, x[:, ::-1, ::-1], np.roll(x, (4, 5), axis=(1, 2))):
        np.testing.assert_allclose(G(other), G(x), atol=1e-12)
    assert np.abs(G(x[:, ::-1]) - G(x)).max() > 0.1  # a mirror image is another picture


@pytest.mark.parametrize("n, channels", [(16, 1), (33, 3), (64, 3)])
def test_that_the_gradient_of_phase_retrieval_is_that_of_central_differences(n, channels):
    G = operators(n, channels)["phase"]
    x, y, step = normal(1, *G.event_shape), np.abs(normal(1, G.size, seed=1)), 1e-6
    gradient = 2 * G.vjp(x, G(x) - y)
    for k in range(5):
        w = normal(1, *G.event_shape, seed=k + 2)
        loss = [np.sum((G(x + sign * step * w) - y) ** 2) for sign in (1, -1)]
        assert np.sum(gradient * w) == pytest.approx((loss[0] - loss[1]) / (2 * step), rel=1e-6)


def test_that_the_gradient_is_zero_where_the_transform_is():
    G = FourierMagnitude((8, 8))
    assert np.all(G.vjp(np.zeros((1, 8, 8)), np.ones((1, G.size))) == 0.0)


@pytest.mark.parametrize("n, channels", [(16, 1), (12, 3)])
@pytest.mark.parametrize("rho", [0.01, 1.0])
def test_that_the_proximal_map_solves_its_normal_equations(n, channels, rho):
    for name, G in operators(n, channels).items():
        if name == "phase":
            continue
        x0, y = normal(2, *G.event_shape), normal(G.size, seed=1)
        H = G(np.eye(x0[0].size).reshape(-1, *G.event_shape)).T
        dense = np.linalg.solve(H.T @ H + rho * np.eye(H.shape[1]), H.T @ y[:, None] + rho * x0.reshape(2, -1).T).T
        np.testing.assert_allclose(G.prox(x0, y, rho).reshape(2, -1), dense, atol=1e-12 * np.abs(dense).max() / rho)


@pytest.mark.parametrize("name", operators(16, 3))
def test_that_every_backend_computes_the_same(backend, name):
    dtype, tolerance = ("float64", 1e-13) if backend.float64 else ("float32", 5e-6)
    G, host = operators(16, 3)[name], operators(16, 3)[name]
    x, v = normal(3, 3, 16, 16), normal(3, G.size, seed=1)
    for got, expected in ((G(backend.array(x, dtype)), host(x)),
                          (G.vjp(backend.array(x, dtype), backend.array(v, dtype)), host.vjp(x, v))):
        assert str(got.dtype).endswith(dtype)
        np.testing.assert_allclose(backend.numpy(got), expected, atol=tolerance * np.abs(expected).max())
    if name != "phase":
        got = G.prox(backend.array(x, dtype), v[0], 0.3)
        np.testing.assert_allclose(backend.numpy(got), host.prox(x, v[0], 0.3), atol=100 * tolerance)


@pytest.mark.parametrize("make, message", [
    (lambda: Inpainting((16, 16), (10, 10, 10, 3)), "hole: got 10,10,10,3, expected top,left,height,width inside"),
    (lambda: bicubic(64, 5), "factor: got 5, expected a whole number that divides 64"),
    (lambda: blur(12, 3.0), "blur: got 3 pixels for a picture of 12, expected one of more than 12"),
    (lambda: blur(12, 0.0), "blur: got 0.0, expected a standard deviation > 0"),
    (lambda: FourierMagnitude((16, 20)), r"event_shape: got \(16, 20\), expected square pictures"),
])
def test_that_what_makes_no_sense_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
