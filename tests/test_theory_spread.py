"""THEORY.md, "One step, any map" and "The limit": what the lines of ``enkg verify`` do not measure.

The lines themselves are tests in test_verify.py; the one-step identities are properties in test_invariances.py.
"""

import math

import numpy as np
import pytest

from enkg_ref import Gaussian, constant, correct, frobenius, trace
from enkg_ref.extensions import guarded


def spread(x):
    z = x - x.mean(0)
    return np.sum(z * z) / len(x)


def covariance(x):
    z = x - x.mean(0)
    return z.T @ z / len(x)


def any_map(rng, J, d, m):
    """An ensemble, predictions of a sum of sines and squares, and a dense noise covariance."""
    x = rng.standard_normal(d) + rng.standard_normal((J, d))
    A, B = rng.standard_normal((2, d, m)) / math.sqrt(d)
    g = np.sin(x @ A) + 0.3 * (x @ B) ** 2
    C = rng.standard_normal((m, m))
    return x, g, C @ C.T / m + 0.5 * np.eye(m)


def frozen(x, psi, y, rule, steps):
    """The ensembles after 0..steps corrections with the same psi."""
    out = [x]
    for _ in range(steps):
        x = guarded(correct)(x, psi(x), Gaussian(y).residual, rule)[0]
        out.append(x)
    return out


# --------------------------------------------------------------------------------------------------------- Corollary 2
def test_at_gamma_two_point_five_some_random_steps_do_grow():
    grew = 0
    for seed in range(300):
        x, g, noise = any_map(np.random.default_rng(seed), 20, 4, 1)
        grew += spread(correct(x, g, Gaussian(g.mean(0), noise).residual, frobenius(2.5))[0]) > spread(x)
    assert grew > 30


def test_below_two_the_spread_stands_still_only_without_correlation():
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    uncorrelated = correct(x, x**2, Gaussian([5.0]).residual, frobenius(1.0))[0]
    np.testing.assert_allclose(spread(uncorrelated), 2.5, rtol=1e-15)
    assert spread(correct(x, x**2 + 1e-3 * x, Gaussian([5.0]).residual, frobenius(1.0))[0]) < 2.5


# ----------------------------------------------------------------------------------------------------------- Theorem 4
def test_theorem_4b_bounds_a_whole_frobenius_run():
    rng = np.random.default_rng(2)
    x, gamma, l = rng.standard_normal((64, 4)), 1.0, 0.7  # psi' >= .7, so tau >= .49 V
    runs = [x]
    alpha, V_0, E = math.inf, spread(x), 0.0
    y = rng.standard_normal(4)
    for _ in range(40):
        g = x + 0.3 * np.sin(x)
        z, e = x - x.mean(0), g - g.mean(0)
        alpha = min(alpha, np.sum((z.T @ e / 64) ** 2) / (np.sum(e * e) / 64 * spread(x)))
        E = max(E, np.linalg.norm(g.mean(0) - y))
        x = correct(x, g, Gaussian(y).residual, frobenius(gamma))[0]
        runs.append(x)
    c = gamma * (2 - gamma) * alpha / math.sqrt(V_0 + (E / l) ** 2)
    for n, x in enumerate(runs):
        assert math.sqrt(spread(x)) <= 1 / (1 / math.sqrt(V_0) + c * n / 2) * (1 + 1e-12)


@pytest.mark.parametrize("a, b", [(0.3, 2.0), (0.9, 1.0)])
def test_a_monotone_map_of_full_rank_collapses(a, b):
    x = np.random.default_rng(0).standard_normal((64, 4))
    last = frozen(x, lambda v: v + a * np.sin(b * v), np.zeros(4) + 0.2, frobenius(1.0), 40)[-1]
    assert spread(last) < 1e-10 * spread(x)


# ----------------------------------------------------------------------------------------------------- counterexamples
def test_c1_prime_generic_ensembles_stall_under_an_even_map_where_the_correlation_vanishes():
    stalled = []
    for seed in range(10):
        x = np.random.default_rng(seed).standard_normal((200, 1))
        half, last = (frozen(x, lambda v: v**2, [5.0], frobenius(1.0), 150)[n] for n in (75, 150))
        if spread(last) > 0.01:
            stalled.append(spread(last) / spread(x))
            assert spread(last) == pytest.approx(spread(half), rel=1e-3)
            correlation = np.mean((last - last.mean()) * (last**2 - np.mean(last**2)))
            assert abs(correlation) < 1e-6 * np.std(last) * np.std(last**2)
            assert abs(np.mean(last**2) - 5.0) > 0.1  # and the data are not fitted
    assert len(stalled) >= 3 and min(stalled) > 0.5


def test_c7_the_trace_rule_needs_the_noise_covariance_inside():
    x = np.random.default_rng(0).standard_normal((20, 3))
    ratio = {}
    for s in (1.0, 0.7, 0.05):
        w = 1.0 / spread(x)  # 1/tr C_yy with psi = identity, no Gamma
        x_new, done = correct(x, x, Gaussian(x.mean(0) + 0.1, s).residual, constant(w))
        ratio[s] = spread(x_new) / spread(x)
        unstable = w * np.linalg.eigvalsh(covariance(x))[-1] / s**2
        assert (unstable > 2) == (s == 0.05)
        with_gamma = correct(x, x, Gaussian(x.mean(0) + 0.1, s).residual, trace(1.0))[0]
        assert spread(with_gamma) == pytest.approx(ratio[1.0] * spread(x), rel=1e-12)
    assert ratio[1.0] < 1 and ratio[0.05] > 1e3
