"""THEORY.md, Theorem 6: what the lines of ``enkg verify`` on affine maps do not measure. Rates and limits.

The lines themselves are tests in test_oracles.py; what rounding does (C8) is in test_edge_cases.py.
"""

import math

import numpy as np
import pytest

from enkg_ref import Gaussian, constant, correct, frobenius, trace
from enkg_ref.extensions import guarded
from enkg_ref.statements import oracles

RULES = {"frobenius": frobenius, "trace": trace}
SHAPES = [(64, 24, 8), (20, 12, 5), (6, 20, 9)]  # J, d, m; in the last J - 1 < m


def covariance(x):
    z = x - x.mean(0)
    return z.T @ z / len(x)


def problem(seed, shape=(64, 24, 8), cond=1e3):
    return oracles.random_affine(np.random.default_rng(seed), *shape, cond)


def run(x, H, c, y, noise, rule, steps):
    ensembles, sizes, norms = [x], [], []
    for _ in range(steps):
        x, done = guarded(correct)(x, x @ H.T + c, Gaussian(y, noise).residual, rule)
        ensembles.append(x)
        sizes.append(float(done.step))
        norms.append(float(done.norm))
    return ensembles, sizes, norms


def observed(x, H, noise):
    """tau = tr(Gamma^-1 C_yy)."""
    return np.trace(np.linalg.solve(noise, H @ covariance(x) @ H.T))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(RULES))
def test_t15_whitened_covariance_and_residual_follow_their_recursions(shape, name):
    x, H, c, y, noise = problem(1, shape)
    W = np.linalg.inv(np.linalg.cholesky(noise))
    ensembles, sizes, _ = run(x, H, c, y, noise, RULES[name](1.3), 4)
    for x, x_new, w in zip(ensembles, ensembles[1:], sizes):
        Cw, e = W @ H @ covariance(x) @ H.T @ W.T, W @ (H @ x.mean(0) + c - y)
        shrink = np.eye(len(Cw)) - w * Cw
        np.testing.assert_allclose(W @ H @ covariance(x_new) @ H.T @ W.T, Cw @ shrink @ shrink,
                                   atol=1e-12 * np.abs(Cw).max())
        np.testing.assert_allclose(W @ (H @ x_new.mean(0) + c - y), shrink @ e, atol=1e-12 * np.abs(e).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_t17_kappa_is_invariant_with_the_whitened_pseudo_inverse_and_not_without(shape):
    x, H, c, y, noise = problem(4, shape)
    ensembles, _, _ = run(x, H, c, y, noise, frobenius(1.0), 4)
    kappa2 = [oracles.mahalanobis_misfit(v, v @ H.T + c, y, noise) for v in ensembles]
    np.testing.assert_allclose(kappa2, kappa2[0], rtol=1e-9)
    plain = []
    for v in ensembles:
        e, C_yy = H @ v.mean(0) + c - y, H @ covariance(v) @ H.T
        plain.append(e @ np.linalg.pinv(C_yy, rcond=1e-11, hermitian=True) @ e)
    if shape[0] - 1 < shape[2]:  # a singular C_yy under dense noise: the un-whitened form drifts
        assert abs(plain[-1] / plain[0] - 1) > 0.1
    else:
        np.testing.assert_allclose(plain, plain[0], rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_t17_the_mean_converges_to_the_gain_limit_at_the_rate_of_the_amplitudes(shape):
    x, H, c, y, noise = problem(5, shape)
    mu, U, kappa2, W = oracles.observation_modes(x, x @ H.T + c, y, noise)
    z = x - x.mean(0)
    gain = z.T @ (z @ H.T @ W.T) / len(x) @ (U / mu) @ U.T @ W
    limit = x.mean(0) + gain @ (y - c - H @ x.mean(0))
    ensembles, _, _ = run(x, H, c, y, noise, frobenius(1.0), 40)
    p, _ = oracles.scalar_recursion(mu, kappa2, 1.0, "frobenius", 40)
    start = np.linalg.norm(x.mean(0) - limit)
    for n in (5, 10, 20, 30):
        slowest = np.abs(p[n]).max()
        if slowest > 1e-6:
            assert np.linalg.norm(ensembles[n].mean(0) - limit) <= 30 * slowest * start
    assert np.linalg.norm(ensembles[40].mean(0) - limit) < 1e-2 * start


@pytest.mark.parametrize("name, gamma", [("frobenius", 1.0), ("frobenius", 1.6), ("trace", 1.0), ("trace", 1.9)])
def test_the_asymptotic_rate_is_that_of_equal_modes_while_the_step_share_is_below_one_half(name, gamma):
    x, H, c, y, noise = problem(6)
    R = 8 + oracles.mahalanobis_misfit(x, x @ H.T + c, y, noise)
    share = gamma / math.sqrt(R) if name == "frobenius" else gamma / 8
    assert share < 0.5
    ensembles, _, norms = run(x, H, c, y, noise, RULES[name](gamma), 24)
    if name == "frobenius":
        n = next(i for i in range(24) if i == 22 or norms[i + 1] < 1e-9 * norms[0])
        assert (norms[n] / norms[n - 1]) ** 2 == pytest.approx((1 - share) ** 4, abs=1e-3 + share**12)
    else:
        tau = [observed(v, H, noise) for v in ensembles]
        assert tau[24] / tau[23] == pytest.approx((1 - share) ** 2, abs=1e-3)


@pytest.mark.parametrize("kappa, factors", [(0.0, (1.0, 2.5)), (1.0, (0.4142, 1.4749)), (3.0, (0.3675, 0.1068)),
                                            (10.0, (0.8010, 0.6517))])
def test_with_one_observation_the_deviation_is_multiplied_by_a_known_factor(kappa, factors):
    x = np.random.default_rng(0).standard_normal((30, 1))
    y = x.mean(0) - kappa * x.std()
    for gamma, printed in zip((2.0, 3.5), factors):
        x_new = correct(x, x, Gaussian(y).residual, frobenius(gamma))[0]
        factor = abs(1 - gamma / math.sqrt(1 + kappa**2))
        assert x_new.std() / x.std() == pytest.approx(factor, rel=1e-12)
        assert factor == pytest.approx(printed, abs=5e-5)


@pytest.mark.parametrize("m, left", [(1, 1.0), (2, None)])
def test_c9_at_gamma_two_without_misfit_the_observed_spread_has_a_positive_limit(m, left):
    lam = np.array([1.0, 0.5, 0.2, 0.1])[:m]
    x = np.concatenate([np.eye(m), -np.eye(m)]) * math.sqrt(m)  # mean 0, C_xx = I
    H = np.diag(np.sqrt(lam))
    steps = 300
    ensembles, _, _ = run(x, H, np.zeros(m), np.zeros(m), np.eye(m), frobenius(2.0), steps)
    p, _ = oracles.scalar_recursion(lam, np.zeros(m), 2.0, "frobenius", 20_000)
    got = np.diag(covariance(ensembles[-1] @ H))
    np.testing.assert_allclose(got, lam * p[steps] ** 2, atol=1e-10)
    assert lam[0] * p[-1][0] ** 2 > 0.5
    if left is not None:
        assert got.sum() == pytest.approx(left, rel=1e-12)


def test_the_constant_rule_diverges_where_the_normalised_ones_cannot():
    x, H, c, y, noise = problem(9)
    lam = oracles.observation_modes(x, x @ H.T + c, y, noise)[0][-1]
    V = np.trace(covariance(x))
    assert np.trace(covariance(run(x, H, c, y, noise, constant(3 / lam), 1)[0][-1])) > 0
    grown = run(x, H, c, y, noise, constant(5 / lam), 3)[0][-1]
    assert np.trace(covariance(grown)) > 10 * V
