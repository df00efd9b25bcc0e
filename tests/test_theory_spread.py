"""THEORY.md, "One step, any map" and "The limit": the spread never grows, when it vanishes, and when it does not.

The one-step identities (T9)-(T13) and the trust region are properties in test_invariances.py.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enkg_ref import Gaussian, constant, correct, frobenius, trace

LONG = settings.get_current_profile_name() == "long"
RULES = {"frobenius": frobenius, "trace": trace}


def instances(count):
    return settings(max_examples=settings().max_examples if LONG else count, deadline=None, derandomize=not LONG,
                    database=None)


def spread(x):
    z = x - x.mean(0)
    return np.sum(z * z) / len(x)


def covariance(x):
    z = x - x.mean(0)
    return z.T @ z / len(x)


def any_map(rng, J, d, m, scale):
    """An ensemble, predictions of a sum of sines and squares, data and a dense noise covariance."""
    x = rng.standard_normal(d) + scale * rng.standard_normal((J, d))
    A, B = rng.standard_normal((2, d, m)) / math.sqrt(d)
    g = np.sin(x @ A) + 0.3 * (x @ B) ** 2
    C = rng.standard_normal((m, m))
    return x, g, g.mean(0) + rng.standard_normal(m), C @ C.T / m + 0.5 * np.eye(m)


def frozen(x, psi, y, rule, steps, noise=1.0, guard=64.0):
    """The ensembles after 0..steps corrections with the same psi."""
    out = [x]
    for _ in range(steps):
        x = correct(x, psi(x), Gaussian(y, noise).residual, rule, guard=guard)[0]
        out.append(x)
    return out


# --------------------------------------------------------------------------------------------------------- Corollary 2
@pytest.mark.slow
@instances(5000)
@given(seed=st.integers(0, 2**32), J=st.integers(2, 40), d=st.integers(1, 30), m=st.integers(1, 20),
       scale=st.sampled_from((0.1, 1.0, 10.0)), gamma=st.floats(1e-3, 2.0), name=st.sampled_from(sorted(RULES)))
def test_the_covariance_never_grows_for_gamma_up_to_two(seed, J, d, m, scale, gamma, name):
    x, g, y, noise = any_map(np.random.default_rng(seed), J, d, m, scale)
    x_new = correct(x, g, Gaussian(y, noise).residual, RULES[name](gamma))[0]
    rounding = 1e-13 * (spread(x) + np.sum(x.mean(0) ** 2) + np.sum(x_new.mean(0) ** 2))
    assert spread(x_new) <= spread(x) + rounding
    assert np.linalg.eigvalsh(covariance(x) - covariance(x_new))[0] >= -rounding  # the Loewner order


@instances(1500)
@given(seed=st.integers(0, 2**32), J=st.integers(2, 40), d=st.integers(1, 30), m=st.integers(1, 20),
       scale=st.sampled_from((0.1, 1.0, 10.0)), excess=st.floats(0.0, 2.0), name=st.sampled_from(sorted(RULES)))
def test_beyond_two_the_spread_grows_at_most_by_the_square_of_gamma_minus_one(seed, J, d, m, scale, excess, name):
    x, g, y, noise = any_map(np.random.default_rng(seed), J, d, m, scale)
    x_new = correct(x, g, Gaussian(y, noise).residual, RULES[name](2.0 + excess))[0]
    rounding = 1e-13 * (spread(x) + np.sum(x.mean(0) ** 2) + np.sum(x_new.mean(0) ** 2))
    assert spread(x_new) <= (1.0 + excess) ** 2 * spread(x) + rounding


@pytest.mark.parametrize("gamma, ratio", [(2.5, 2.25), (3.5, 6.25)])
def test_that_bound_is_attained_so_two_is_sharp(gamma, ratio):
    x = np.random.default_rng(0).standard_normal((20, 1))
    x_new = correct(x, x, Gaussian(x.mean(0)).residual, frobenius(gamma))[0]
    assert spread(x_new) / spread(x) == pytest.approx(ratio, rel=1e-12)


def test_at_gamma_two_point_five_some_random_steps_do_grow():
    grew = 0
    for seed in range(300):
        x, g, y, noise = any_map(np.random.default_rng(seed), 20, 4, 1, 1.0)
        grew += spread(correct(x, g, Gaussian(g.mean(0), noise).residual, frobenius(2.5))[0]) > spread(x)
    assert grew > 30


def test_below_two_the_spread_stands_still_only_without_correlation():
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    uncorrelated = correct(x, x**2, Gaussian([5.0]).residual, frobenius(1.0))[0]
    np.testing.assert_allclose(spread(uncorrelated), 2.5, rtol=1e-15)
    assert spread(correct(x, x**2 + 1e-3 * x, Gaussian([5.0]).residual, frobenius(1.0))[0]) < 2.5


# ----------------------------------------------------------------------------------------------------------- Theorem 4
def test_with_the_residual_held_the_frobenius_rule_collapses_like_one_over_n():
    x, y = np.random.default_rng(0).standard_normal((16, 1)), None
    measured = {}
    for n in range(1, 2001):
        y = x.mean(0) - 1.0  # |ebar| stays 1
        x = correct(x, x, Gaussian(y).residual, frobenius(1.0))[0]
        measured[n] = n * math.sqrt(spread(x))
    # 1/s_n = n + O(log n): the limit of n s_n is |ebar|/gamma = 1
    assert abs(measured[2000] - 1) < 0.01 and abs(measured[200] - 1) < 0.06
    assert abs(measured[2000] - 1) < abs(measured[200] - 1) < abs(measured[20] - 1)


@pytest.mark.parametrize("a, b", [(0.3, 2.0), (0.9, 1.0), (1.5, 2.0)])
@pytest.mark.parametrize("name", sorted(RULES))
def test_the_decrement_inequality_holds_at_every_step_of_non_linear_runs(a, b, name):
    rng = np.random.default_rng(1)
    x, y, gamma = rng.standard_normal((64, 4)), rng.standard_normal(4), 1.0
    for _ in range(60):
        g = x + a * np.sin(b * x)
        z, e = x - x.mean(0), g - g.mean(0)
        C_xy, tau = z.T @ e / 64, np.sum(e * e) / 64
        x_new, done = correct(x, g, Gaussian(y).residual, RULES[name](gamma))
        w, lam = float(done.step), np.linalg.eigvalsh(e.T @ e / 64)[-1]
        V = spread(x)
        assert spread(x_new) <= V - w * (2 - w * lam) * np.sum(C_xy**2) + 1e-14 * (V + np.sum(x.mean(0) ** 2))
        alpha = np.sum(C_xy**2) / (tau * V)
        assert 0 <= alpha <= 1 + 1e-12
        if name == "trace":  # Theorem 4 (a)
            assert spread(x_new) <= (1 - gamma * (2 - gamma) * alpha) * V + 1e-14 * (V + np.sum(x.mean(0) ** 2))
        x = x_new


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
        x = correct(x, g, Gaussian(y).residual, frobenius(gamma), guard=None)[0]
        runs.append(x)
    c = gamma * (2 - gamma) * alpha / math.sqrt(V_0 + (E / l) ** 2)
    for n, x in enumerate(runs):
        assert math.sqrt(spread(x)) <= 1 / (1 / math.sqrt(V_0) + c * n / 2) * (1 + 1e-12)


@instances(200)
@given(seed=st.integers(0, 2**32), d=st.integers(1, 5), a=st.floats(0.0, 0.3))
def test_lemma_5_bounds_the_alignment_of_nearly_linear_maps(seed, d, a):
    rng = np.random.default_rng(seed)
    H, x = np.eye(d) + 0.2 * rng.standard_normal((d, d)), rng.standard_normal((24, d))
    g = x @ H.T + a * np.sin(x)
    z, e = x - x.mean(0), g - g.mean(0)
    alpha = np.sum((z.T @ e) ** 2) / (np.sum(e * e) * np.sum(z * z))
    singular = np.linalg.svd(H, compute_uv=False)
    bound = max(singular[-1] - math.sqrt(d) * a, 0.0) ** 2 / (d * (singular[0] + a) ** 2)
    assert alpha >= bound * (1 - 1e-12)


@pytest.mark.parametrize("a, b", [(0.3, 2.0), (0.9, 1.0)])
def test_a_monotone_map_of_full_rank_collapses(a, b):
    x = np.random.default_rng(0).standard_normal((64, 4))
    last = frozen(x, lambda v: v + a * np.sin(b * v), np.zeros(4) + 0.2, frobenius(1.0), 40)[-1]
    assert spread(last) < 1e-10 * spread(x)


# ----------------------------------------------------------------------------------------------------- counterexamples
def test_c1_an_even_map_and_a_symmetric_ensemble_never_collapse():
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    b = x**2 - np.mean(x**2)
    assert np.mean(b**2) == 2.25 and spread(x) == 2.5 and np.mean(x * b) == 0.0
    last = frozen(x, lambda v: v**2, [5.0], frobenius(1.0), 50)[-1]
    assert spread(last) == pytest.approx(2.5, rel=1e-14)


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


def test_c2_a_coordinate_seen_through_an_even_map_keeps_its_variance():
    half = np.random.default_rng(0).standard_normal((50, 2))
    x = np.concatenate([half, half * [-1.0, 1.0]])
    last = frozen(x, lambda v: np.stack([v[:, 0] ** 2, v[:, 1]], 1), [1.0, 0.3], frobenius(1.0), 200)[-1]
    assert last[:, 0].var() == pytest.approx(x[:, 0].var(), rel=1e-12)
    assert last[:, 1].var() < 0.01 * x[:, 1].var()


def test_c3_a_non_monotone_map_stalls():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((64, 4)), rng.standard_normal(4)
    runs = frozen(x, lambda v: v + 1.5 * np.sin(2 * v), y, frobenius(1.0), 200)
    assert spread(runs[-1]) > 0.02 * spread(x)
    assert spread(runs[-1]) == pytest.approx(spread(runs[100]), rel=0.02)


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("guard", [None, 64.0])
def test_c4_a_constant_map_is_a_recorded_skip_and_not_a_nan(name, guard):
    x = np.random.default_rng(0).standard_normal((8, 3))
    x_new, done = correct(x, np.full((8, 2), 3.25), Gaussian([0.3, 0.1]).residual, RULES[name](2.0), guard=guard)
    assert np.array_equal(x_new, x) and float(done.step) == 0.0 and bool(done.collapsed)
    K = (np.full((8, 2), 3.25) - [0.3, 0.1]) @ np.zeros((2, 8))
    with np.errstate(all="ignore"):  # what the plain formula makes of it
        assert np.isnan(x - np.float64(2.0) / np.linalg.norm(K) * K @ x).all()


@pytest.mark.parametrize("gamma, factor", [(2.5, 2.25), (3.5, 6.25), (1.9, 0.81), (2.0, 1.0)])
def test_c5_one_observation_without_residual_is_multiplied_by_gamma_minus_one_squared(gamma, factor):
    x = np.random.default_rng(0).standard_normal((16, 1))
    start = spread(x)
    for n in range(1, 11):
        x = correct(x, x, Gaussian(x.mean(0)).residual, frobenius(gamma))[0]
        assert spread(x) == pytest.approx(start * factor**n, rel=1e-9)


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
