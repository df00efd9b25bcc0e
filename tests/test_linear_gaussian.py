"""The exactly solvable problem: its closed forms against derivations that do not share their algebra."""

import numpy as np
import pytest

from problems.linear_gaussian import SETUPS, linear_gaussian

STRICTEST_EXTENSIONS = ("linalg",)


def test_the_fixture_lg6_has_its_published_numbers():
    p = linear_gaussian("LG6")
    m_p, Sigma_p = p.posterior
    assert p.Sigma[0, 0] == pytest.approx(0.20086715597113813, rel=1e-13)
    assert p.mu[0] == pytest.approx(-0.15420191150623885, rel=1e-13)
    assert p.H[0, 0] == pytest.approx(-0.07204367972722743, rel=1e-13)
    np.testing.assert_allclose(p.observation.y, (0.697475630372, -0.243452262597, 0.842184938689), atol=1e-12)
    np.testing.assert_allclose(m_p, (-0.099661781339, -0.443520714491, 0.086314572811, 0.034079039296,
                                     -0.161341279352, -0.535655218482), atol=1e-12)
    assert np.trace(p.Sigma) == pytest.approx(1.61543, abs=5e-6)
    assert np.trace(Sigma_p) == pytest.approx(0.678584, abs=5e-7)
    assert np.linalg.norm(m_p - p.mu) == pytest.approx(0.398768, abs=5e-7)
    residual = np.trace(p.H @ Sigma_p @ p.H.T) + np.sum((p.H @ m_p - p.observation.y) ** 2)
    assert np.sqrt(residual) == pytest.approx(0.46298, abs=5e-6)


@pytest.mark.parametrize("setup", SETUPS)
def test_the_posterior_solves_the_normal_equations(setup):
    p = linear_gaussian(setup)
    m_p, Sigma_p = p.posterior
    precision = np.linalg.inv(p.Sigma) + p.H.T @ np.linalg.inv(p.Gamma) @ p.H
    np.testing.assert_allclose(Sigma_p @ precision, np.eye(len(m_p)), atol=1e-9)
    slope = np.linalg.solve(p.Sigma, m_p - p.mu) + p.H.T @ np.linalg.solve(p.Gamma, p.H @ m_p - p.observation.y)
    assert np.abs(slope).max() <= 1e-9 * np.abs(np.linalg.solve(p.Sigma, m_p - p.mu)).max() + 1e-8


@pytest.mark.parametrize("setup", SETUPS)
def test_the_noise_free_posterior_fits_the_data_and_is_the_limit_of_small_noise(setup):
    p = linear_gaussian(setup)
    m_0, S_0 = p.noise_free_posterior
    np.testing.assert_allclose(p.H @ m_0, p.observation.y, atol=1e-9)
    assert np.abs(p.H @ S_0).max() < 1e-10
    np.testing.assert_allclose(p.null_covariance(p.Sigma), S_0, atol=1e-9)
    for noise, tolerance in ((1e-3, 1e-3), (1e-4, 1e-5)):  # the distance falls as noise^2
        gain = p.Sigma @ p.H.T @ np.linalg.inv(p.H @ p.Sigma @ p.H.T + noise**2 * np.eye(len(p.H)))
        near = p.mu + gain @ (p.observation.y - p.H @ p.mu)
        assert np.linalg.norm(near - m_0) <= tolerance * np.linalg.norm(m_0 - p.mu)


def test_the_denoiser_is_the_conditional_mean_of_the_joint_gaussian(backend):
    p = linear_gaussian("LG6")
    x = np.random.default_rng(0).standard_normal((5, 6))
    dtype = "float64" if backend.float64 else "float32"
    for sigma in (0.05, 1.0, 30.0):
        joint = np.block([[p.Sigma, p.Sigma], [p.Sigma, p.Sigma + sigma**2 * np.eye(6)]])
        expected = [p.mu + joint[:6, 6:] @ np.linalg.solve(joint[6:, 6:], row - p.mu) for row in x]
        got = backend.numpy(p.denoise(backend.array(x, dtype), sigma))
        np.testing.assert_allclose(got, expected, atol=1e-12 if backend.float64 else 2e-6)


def test_the_flow_solves_the_probability_flow_equation_and_composes():
    p = linear_gaussian("LG6")
    x = np.random.default_rng(0).standard_normal((4, 6))
    sigma, h = 0.7, 1e-4
    slope = (p.flow(x, sigma, sigma + h) - p.flow(x, sigma, sigma - h)) / (2 * h)
    np.testing.assert_allclose(slope, (x - p.denoise(x, sigma)) / sigma, atol=1e-7)
    np.testing.assert_allclose(p.flow(p.flow(x, 3.0, 0.4), 0.4), p.flow(x, 3.0), atol=1e-13)


def test_the_flow_carries_the_marginal_at_every_level_to_the_prior():
    p = linear_gaussian("LG6")
    root = np.linalg.cholesky(p.Sigma + 4.0 * np.eye(6))
    points = np.concatenate([p.mu + root.T, [p.mu]])  # image of an affine map: columns give its matrix
    image = p.flow(points, 2.0)
    A = (image[:6] - image[6]).T
    np.testing.assert_allclose(A @ A.T, p.Sigma, atol=1e-13)
    np.testing.assert_allclose(image[6], p.mu, atol=1e-15)


def test_the_vjps_are_the_transposes_of_the_derivatives(backend):
    p = linear_gaussian("LG6")
    rng = np.random.default_rng(3)
    x, u, v = rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), rng.standard_normal((4, 3))
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    X, V, U = (backend.array(a, dtype) for a in (x, v, u))
    left = np.sum(backend.numpy(p.forward(U)) * v, axis=1)
    np.testing.assert_allclose(np.sum(u * backend.numpy(p.forward_vjp(X, V)), axis=1), left, atol=tolerance)
    D, pulled = p.denoise_vjp(X, 0.4, U)
    np.testing.assert_allclose(backend.numpy(D), backend.numpy(p.denoise(X, 0.4)), atol=tolerance)
    moved = p.denoise(x + u, 0.4) - p.denoise(x, 0.4)
    np.testing.assert_allclose(np.sum(moved * x, axis=1),
                               np.sum(u * backend.numpy(p.denoise_vjp(X, 0.4, X)[1]), axis=1), atol=tolerance)
    assert pulled.shape == (4, 6)


def test_the_generators_have_the_stated_spectra():
    a, b = linear_gaussian("A"), linear_gaussian("B")
    assert np.trace(a.Sigma) / 32 == pytest.approx(0.25, rel=1e-14)
    assert a.Sigma[0, 0] / a.Sigma[15, 15] == pytest.approx(16, rel=1e-14)
    assert b.Sigma[4, 4] == pytest.approx(0.25, rel=1e-14) and not b.mu.any()
    assert a.H.shape == (8, 32) and b.H.shape == (32, 128)
    # entries of H: standard deviation 2/sqrt(32), 4/sqrt(128), both .354; 4 standard errors of a sample deviation
    assert a.H.std() == pytest.approx(8**-0.5, rel=4 / np.sqrt(2 * a.H.size))
    assert b.H.std() == pytest.approx(8**-0.5, rel=4 / np.sqrt(2 * b.H.size))


def test_the_score_of_exact_posterior_samples_is_that_of_the_posterior():
    p = linear_gaussian("A")
    m_p, Sigma_p = p.posterior
    J = 4000
    samples = np.random.default_rng(0).multivariate_normal(m_p, Sigma_p, J)
    score = p.score(samples)
    assert score["error_to_posterior_mean"] <= 1.3 * np.sqrt(np.trace(Sigma_p) / J) / np.linalg.norm(m_p - p.mu)
    assert score["spread_over_posterior_spread"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("arguments, word", [
    ({"setup": "C"}, "setup"), ({"noise": 0.0}, "noise"), ({"setup": "LG6", "seed": 2}, "LG6"), ({"m": 40}, "d, m"),
])
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        linear_gaussian(**arguments)
