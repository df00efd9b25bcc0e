"""What a measurement means: residual and misfit in closed form, the residual as half the gradient of the misfit."""

import math

import numpy as np
import pytest

from enkg_ref import Closures, Gaussian, Poisson
from enkg_ref.likelihood import change

M = 4
RNG = np.random.default_rng(8)
Y = RNG.standard_normal(M)
G = RNG.standard_normal((6, M)) + 0.5
SD = np.array([0.3, 1.0, 2.5, 0.7])
FACTOR = RNG.standard_normal((M, M))
DENSE = FACTOR @ FACTOR.T + 0.3 * np.eye(M)
ANGULAR = np.array([True, True, False, False])
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0])
COUNTS = np.array([0.0, 1.0, 7.0, 40.0])


def precision(backend):
    return ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)


@pytest.mark.parametrize("noise, gamma", [(0.4, 0.16 * np.eye(M)), (SD, np.diag(SD**2)), (DENSE, DENSE)],
                         ids=["number", "diagonal", "dense"])
def test_gaussian_residual_misfit_and_whitening_equal_their_closed_forms(backend, noise, gamma):
    dtype, tolerance = precision(backend)
    likelihood, g, inverse = Gaussian(Y, noise), backend.array(G, dtype), np.linalg.inv(gamma)
    d = G - Y
    np.testing.assert_allclose(backend.numpy(likelihood.difference(g)), d, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(backend.numpy(likelihood.residual(g)), d @ inverse, rtol=tolerance, atol=20 * tolerance)
    misfit = likelihood.misfit(g)
    assert misfit.shape == (6,) and misfit.dtype == g.dtype
    np.testing.assert_allclose(backend.numpy(misfit), [row @ inverse @ row for row in d], rtol=10 * tolerance)
    white = backend.numpy(likelihood.whiten(g))
    np.testing.assert_allclose(white @ white.T, G @ inverse @ G.T, rtol=10 * tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("phase_loss", ["cos", "square"])
def test_closure_residual_and_misfit_equal_their_closed_forms(backend, phase_loss):
    dtype, tolerance = precision(backend)
    likelihood = Closures(Y, SD, ANGULAR, WEIGHTS, phase_loss)
    g = G + np.array([4.0, -7.0, 4.0, -7.0])  # several turns away
    residual, misfit = np.empty_like(g), np.zeros(6)
    for j in range(6):
        for a in range(M):
            d = g[j, a] - Y[a]
            turning = ANGULAR[a] and phase_loss == "cos"
            residual[j, a] = WEIGHTS[a] * (math.sin(d) if turning else d) / SD[a] ** 2
            misfit[j] += WEIGHTS[a] * (2.0 - 2.0 * math.cos(d) if turning else d * d) / SD[a] ** 2
    ours = backend.array(g, dtype)
    np.testing.assert_allclose(backend.numpy(likelihood.residual(ours)), residual, rtol=10 * tolerance,
                               atol=100 * tolerance)
    np.testing.assert_allclose(backend.numpy(likelihood.misfit(ours)), misfit, rtol=20 * tolerance)


@pytest.mark.parametrize("background", [0.0, 2.5, np.array([0.5, 0.0, 3.0, 10.0])])
def test_poisson_residual_deviance_and_whitening_equal_their_closed_forms(backend, background):
    dtype, tolerance = precision(backend)
    likelihood, g = Poisson(COUNTS, background), np.abs(G) * np.array([1.0, 2.0, 5.0, 30.0]) + 0.2
    residual, deviance = np.empty_like(g), np.zeros(6)
    for j in range(6):
        for a in range(M):
            rate = g[j, a] + np.broadcast_to(background, M)[a]
            residual[j, a] = 1.0 - COUNTS[a] / rate
            logarithm = COUNTS[a] * math.log(COUNTS[a] / rate) if COUNTS[a] else 0.0
            deviance[j] += 2.0 * (rate - COUNTS[a] + logarithm)
    ours = backend.array(g, dtype)
    np.testing.assert_allclose(backend.numpy(likelihood.residual(ours)), residual, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(backend.numpy(likelihood.misfit(ours)), deviance, rtol=50 * tolerance)
    difference = g + background - COUNTS
    np.testing.assert_allclose(backend.numpy(likelihood.difference(ours)), difference, rtol=0, atol=100 * tolerance)
    white = backend.numpy(likelihood.whiten(ours))
    np.testing.assert_allclose(white, g / np.sqrt([1.0, 1.0, 7.0, 40.0]), rtol=tolerance)


def test_a_poisson_rate_below_the_floor_counts_as_the_floor():
    likelihood = Poisson([3.0, 0.0], background=0.05, floor=0.2)
    at_floor = likelihood.residual(np.array([[0.15, 0.15]]))
    for g in ([[-5.0, -1.0]], [[0.0, 0.1]]):
        assert np.array_equal(likelihood.residual(np.array(g)), at_floor)
        assert likelihood.misfit(np.array(g)) == likelihood.misfit(np.array([[0.15, 0.15]]))
    np.testing.assert_allclose(at_floor, [[1.0 - 3.0 / 0.2, 1.0]], rtol=1e-14)
    assert likelihood.residual(np.array([[0.16, 0.15]]))[0, 0] > at_floor[0, 0]


def test_the_poisson_deviance_of_the_truth_is_about_m_and_nowhere_smaller_than_at_the_counts():
    rate, draws = np.array([30.0, 80.0, 200.0]), 5000
    y = np.random.default_rng(3).poisson(rate, size=(draws, 3))
    deviance = np.array([Poisson(row).misfit(rate[None])[0] for row in y[:1000]])
    assert abs(deviance.mean() - 3.0) < 5 * math.sqrt(6 / 1000) + 0.05  # E = m + O(1/rate)
    best = Poisson(COUNTS[1:])
    assert best.misfit(COUNTS[None, 1:])[0] == pytest.approx(0.0, abs=1e-13)
    assert np.all(best.misfit(COUNTS[None, 1:] * np.linspace(0.5, 1.5, 11)[:, None]) >= -1e-13)


def test_the_unweighted_likelihoods_keep_the_data_and_drop_the_noise():
    g = np.random.default_rng(4).standard_normal((3, M))
    plain = Gaussian(Y, DENSE).unweighted()
    np.testing.assert_allclose(plain.residual(g), g - Y, rtol=1e-15)
    assert (Gaussian(Y, 0.3).unweighted_scale, Gaussian(Y, SD).unweighted_scale) == (0.3, 1.0)
    for likelihood in (Closures(Y, SD, ANGULAR), Poisson(COUNTS)):
        assert likelihood.unweighted() is likelihood and likelihood.unweighted_scale == 1.0


@pytest.mark.parametrize("likelihood", [Gaussian(Y, 0.4), Gaussian(Y, SD), Gaussian(Y, DENSE),
                                        Closures(Y, SD, ANGULAR, WEIGHTS), Closures(Y, SD, ANGULAR, WEIGHTS, "square"),
                                        Poisson(COUNTS, 6.0)],
                         ids=["number", "diagonal", "dense", "cos", "square", "poisson"])
def test_the_residual_is_half_the_gradient_of_the_misfit(likelihood):
    h = 1e-5
    numerical = np.empty_like(G)
    for a in range(M):
        shift = h * np.eye(M)[a]
        numerical[:, a] = (likelihood.misfit(G + shift) - likelihood.misfit(G - shift)) / (4.0 * h)
    scale = np.max(np.abs(numerical))
    np.testing.assert_allclose(likelihood.residual(G), numerical, rtol=0.0, atol=1e-8 * scale)


def test_the_misfit_of_the_truth_is_chi_square_with_m_degrees_of_freedom():
    m, draws = 5, 20_000
    a = np.random.default_rng(1).standard_normal((m, m))
    gamma = a @ a.T + 0.1 * np.eye(m)
    noise = np.random.default_rng(2).standard_normal((draws, m)) @ np.linalg.cholesky(gamma).T
    misfit = Gaussian(np.zeros(m), gamma).misfit(noise)
    assert abs(misfit.mean() - m) < 5 * math.sqrt(2 * m / draws)  # five standard errors
    assert abs(misfit.var() / (2 * m) - 1.0) < 0.1


def test_angles_are_wrapped_and_turns_do_not_count(backend):
    dtype, tolerance = precision(backend)
    likelihood = Closures([3.0, 3.0], [1.0, 1.0], [True, False])
    turn = 2 * math.pi
    g = backend.array([[-3.0, -3.0], [3.0 + turn, 3.0 + turn], [3.1, 3.1], [3.0 - 2 * turn, 3.0]], dtype)
    difference = backend.numpy(likelihood.difference(g))
    expected = [[2 * math.pi - 6.0, -6.0], [0.0, 2 * math.pi], [0.1, 0.1], [0.0, 0.0]]
    np.testing.assert_allclose(difference, expected, atol=100 * tolerance)
    np.testing.assert_allclose(backend.numpy(likelihood.residual(g))[:, 0], np.sin([2 * math.pi - 6.0, 0.0, 0.1, 0.0]),
                               atol=100 * tolerance)


def test_the_cosine_loss_approaches_the_square_for_small_angles():
    cos, square = (Closures(Y, SD, np.ones(M, bool), phase_loss=loss) for loss in ("cos", "square"))
    errors = []
    for size in (1e-1, 1e-2):
        g = Y + size * np.ones((1, M))
        errors.append(float(abs(cos.misfit(g)[0] / square.misfit(g)[0] - 1.0)))
    assert errors[0] == pytest.approx(1e-2 / 12, rel=1e-2)  # 2 (1 - cos d) = d^2 (1 - d^2/12 + ...)
    assert errors[0] / errors[1] == pytest.approx(100.0, rel=1e-2)


def test_a_tiny_angle_keeps_its_misfit_in_float32():
    # 1 - cos d would vanish below d = 3e-4
    likelihood = Closures([0.0], [1.0], [True])
    assert float(likelihood.misfit(np.array([[1e-5]], dtype=np.float32))[0]) == pytest.approx(1e-10, rel=1e-5)


@pytest.mark.parametrize("make, named", [
    (lambda: Gaussian([1.0, math.nan]), "observation"),
    (lambda: Gaussian([1.0, 2.0], 0.0), "noise"),
    (lambda: Gaussian([1.0, 2.0], [1.0, -1.0]), "noise"),
    (lambda: Gaussian([1.0, 2.0], [1.0, 1.0, 1.0]), "noise"),
    (lambda: Gaussian([1.0, 2.0], [[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
    (lambda: Gaussian([1.0, 2.0], [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
    (lambda: Closures([1.0, 2.0], 1.0, [True]), "angular"),
    (lambda: Closures([1.0, 2.0], 1.0, [True, False], [1.0, -1.0]), "weights"),
    (lambda: Closures([1.0, 2.0], 1.0, [True, False], phase_loss="sine"), "phase_loss"),
    (lambda: Closures([1.0, 2.0], [[1.0, 0.5], [0.5, 1.0]], [True, False]), "sigma"),
    (lambda: Poisson([1.0, -2.0]), "observation"), (lambda: Poisson([1.0, 2.5]), "observation"),
    (lambda: Poisson([1.0, 2.0], -0.1), "background"), (lambda: Poisson([1.0, 2.0], [1.0, 1.0, 1.0]), "background"),
    (lambda: Poisson([1.0, 2.0], floor=0.0), "floor"),
])
def test_measurements_that_make_no_sense_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_covariance_may_differ_from_its_transpose_by_rounding_and_by_no_more():
    def skewed(relative):
        return [[1.0, 0.5], [0.5 * (1.0 + relative), 1.0]]

    Gaussian([1.0, 2.0], skewed(0.7e-10))
    with pytest.raises(ValueError, match="symmetric"):
        Gaussian([1.0, 2.0], skewed(1.5e-10))


def test_the_change_of_a_prediction_is_the_difference_of_two_wrapped_where_it_is_an_angle(backend):
    dtype, tolerance = precision(backend)
    base = G[:1] + 1.0
    g = base + np.array([[0.3, -0.2, 7.0, -9.0]]) + np.zeros((6, 1))
    for likelihood in (Gaussian(Y, DENSE), Poisson(COUNTS, 2.0), Closures(Y, SD, ANGULAR)):
        ours = backend.numpy(change(likelihood, backend.array(g, dtype), backend.array(base, dtype)))
        np.testing.assert_allclose(ours, g - base, rtol=0, atol=100 * tolerance)
    turned = g + 2 * math.pi * np.array([[2.0, -1.0, 0.0, 0.0]])
    ours = backend.numpy(change(Closures(Y, SD, ANGULAR), backend.array(turned, dtype), backend.array(base, dtype)))
    np.testing.assert_allclose(ours, g - base, rtol=0, atol=300 * tolerance)
