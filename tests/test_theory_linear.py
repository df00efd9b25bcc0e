"""THEORY.md, Theorem 6: for an affine psi the whole run follows from r numbers. Rates, limits, and what rounding does.

The oracles (scalar recursion, trajectory, Schur complement) are those of enkg_ref.verify; the first tests here derive
them again in another way.
"""

import math

import numpy as np
import pytest

from enkg_ref import Gaussian, constant, correct, frobenius, trace
from enkg_ref.statements import verify

RULES = {"frobenius": frobenius, "trace": trace}
SHAPES = [(64, 24, 8), (20, 12, 5), (6, 20, 9)]  # J, d, m; in the last J - 1 < m


def covariance(x):
    z = x - x.mean(0)
    return z.T @ z / len(x)


def problem(seed, shape=(64, 24, 8), cond=1e3):
    return verify._linear(np.random.default_rng(seed), *shape, cond)


def run(x, H, c, y, noise, rule, steps, guard=64.0):
    ensembles, sizes, norms = [x], [], []
    for _ in range(steps):
        x, done = correct(x, x @ H.T + c, Gaussian(y, noise).residual, rule, guard=guard)
        ensembles.append(x)
        sizes.append(float(done.step))
        norms.append(float(done.norm))
    return ensembles, sizes, norms


def observed(x, H, noise):
    """tau = tr(Gamma^-1 C_yy)."""
    return np.trace(np.linalg.solve(noise, H @ covariance(x) @ H.T))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(RULES))
def test_t14_t15_covariance_and_residual_follow_their_recursions(shape, name):
    x, H, c, y, noise = problem(1, shape)
    A, W = H.T @ np.linalg.solve(noise, H), np.linalg.inv(np.linalg.cholesky(noise))
    ensembles, sizes, _ = run(x, H, c, y, noise, RULES[name](1.3), 4)
    for x, x_new, w in zip(ensembles, ensembles[1:], sizes):
        C, M = covariance(x), np.eye(len(H.T)) - w * covariance(x) @ A
        np.testing.assert_allclose(covariance(x_new), M @ C @ M.T, atol=1e-13 * np.abs(C).max())
        Cw, e = W @ H @ C @ H.T @ W.T, W @ (H @ x.mean(0) + c - y)
        shrink = np.eye(len(Cw)) - w * Cw
        np.testing.assert_allclose(W @ H @ covariance(x_new) @ H.T @ W.T, Cw @ shrink @ shrink,
                                   atol=1e-12 * np.abs(Cw).max())
        np.testing.assert_allclose(W @ (H @ x_new.mean(0) + c - y), shrink @ e, atol=1e-12 * np.abs(e).max())


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("shape", SHAPES)
def test_t17b_t18_every_particle_follows_from_r_scalars(shape, name):
    for seed in range(6):
        x, H, c, y, noise = problem(seed, shape)
        gamma = (0.5, 1.0, 1.9)[seed % 3]
        ensembles, sizes, _ = run(x, H, c, y, noise, RULES[name](gamma), 10)
        expected, w = verify.trajectory(x, H, c, y, noise, gamma, name, 10)
        for n, (a, b) in enumerate(zip(ensembles, expected)):
            if observed(a, H, noise) > 1e-8 * observed(x, H, noise):
                assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)
                if n < 4:
                    assert sizes[n] == pytest.approx(w[n], rel=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_t16_the_covariance_that_no_observation_sees_is_invariant_and_is_the_limit(shape):
    x, H, c, y, noise = problem(3, shape)
    N_0 = verify.schur_complement(covariance(x), H)
    ensembles, _, _ = run(x, H, c, y, noise, frobenius(1.0), 60)
    for n in (1, 5, 8):
        N = verify.schur_complement(covariance(ensembles[n]), H)
        np.testing.assert_allclose(N, N_0, rtol=0, atol=1e-10 * np.abs(covariance(x)).max())
    V = [np.trace(covariance(v)) for v in ensembles]
    assert all(np.diff(V) <= 1e-12)
    assert V[-1] == pytest.approx(np.trace(N_0), abs=1e-5 * V[0])
    assert (np.trace(N_0) > 0.2 * V[0]) == (shape[0] - 1 > shape[2])  # J - 1 <= m: every direction is observed


@pytest.mark.parametrize("shape", SHAPES)
def test_t17_kappa_is_invariant_with_the_whitened_pseudo_inverse_and_not_without(shape):
    x, H, c, y, noise = problem(4, shape)
    ensembles, _, _ = run(x, H, c, y, noise, frobenius(1.0), 4)
    kappa2 = [verify.mahalanobis_misfit(v, v @ H.T + c, y, noise) for v in ensembles]
    np.testing.assert_allclose(kappa2, kappa2[0], rtol=1e-9)
    plain = []
    for v in ensembles:
        e, C_yy = H @ v.mean(0) + c - y, H @ covariance(v) @ H.T
        plain.append(e @ np.linalg.pinv(C_yy, rcond=1e-11, hermitian=True) @ e)
    if shape[0] - 1 < shape[2]:  # a singular C_yy under dense noise: the un-whitened form drifts
        assert abs(plain[-1] / plain[0] - 1) > 0.1
    else:
        np.testing.assert_allclose(plain, plain[0], rtol=1e-9)


def test_t17_the_limit_is_reached_in_one_step_when_all_whitened_modes_are_one():
    measured, count = verify._limit(verify.Library())
    assert count == 3 and measured < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_t17_the_mean_converges_to_the_gain_limit_at_the_rate_of_the_amplitudes(shape):
    x, H, c, y, noise = problem(5, shape)
    mu, U, kappa2, W = verify.observation_modes(x, x @ H.T + c, y, noise)
    z = x - x.mean(0)
    gain = z.T @ (z @ H.T @ W.T) / len(x) @ (U / mu) @ U.T @ W
    limit = x.mean(0) + gain @ (y - c - H @ x.mean(0))
    ensembles, _, _ = run(x, H, c, y, noise, frobenius(1.0), 40)
    p, _ = verify.scalar_recursion(mu, kappa2, 1.0, "frobenius", 40)
    start = np.linalg.norm(x.mean(0) - limit)
    for n in (5, 10, 20, 30):
        slowest = np.abs(p[n]).max()
        if slowest > 1e-6:
            assert np.linalg.norm(ensembles[n].mean(0) - limit) <= 30 * slowest * start
    assert np.linalg.norm(ensembles[40].mean(0) - limit) < 1e-2 * start


def test_t19_the_contraction_bound_holds_on_random_problems_below_two():
    measured, count = verify._contraction_excess(verify.Library(), lambda rng, rule, k2: (2 * rng.random(), 0.0), 300)
    assert count >= 300 and measured <= 1e-9


def test_t19b_the_frobenius_rule_contracts_beyond_two_when_every_mode_has_a_misfit():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        r = rng.integers(1, 8)
        lam, kappa2 = rng.exponential(size=r) ** 2, 3 * rng.random(r)
        gamma = 2 * math.sqrt(1 + kappa2.min()) * rng.random()
        amplitude = verify.scalar_recursion(lam, kappa2, gamma, "frobenius", 1)[0][1]
        before, after = (np.sum(v**2 * (1 + kappa2)) for v in (lam, lam * amplitude**2))
        bound = verify.contraction_bound(gamma, r, kappa2.sum(), "frobenius", kappa2.min())
        assert after / before <= bound + 1e-9 and bound < 1 + 1e-12


@pytest.mark.parametrize("name, gamma", [("frobenius", 1.0), ("frobenius", 1.6), ("trace", 1.0), ("trace", 1.9)])
def test_the_asymptotic_rate_is_that_of_equal_modes_while_the_step_share_is_below_one_half(name, gamma):
    x, H, c, y, noise = problem(6)
    R = 8 + verify.mahalanobis_misfit(x, x @ H.T + c, y, noise)
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


def test_c6_the_spread_of_a_rank_deficient_problem_tends_to_what_is_not_observed():
    x, H, c, y, noise = problem(7)
    last = run(x, H, c, y, noise, frobenius(1.0), 60)[0][-1]
    left = np.trace(verify.schur_complement(covariance(x), H))
    assert left > 0.3 * np.trace(covariance(x))
    assert np.trace(covariance(last)) == pytest.approx(left, rel=1e-6)


def test_c8_rounding_destroys_the_invariant_and_the_guard_keeps_it():
    x, H, c, y, noise = problem(8)
    left = np.trace(verify.schur_complement(covariance(x), H))
    mu, U, _, W = verify.observation_modes(x, x @ H.T + c, y, noise)
    z = x - x.mean(0)
    limit = x.mean(0) + (z.T @ (z @ H.T @ W.T) / 64 @ (U / mu) @ U.T @ W) @ (y - c - H @ x.mean(0))
    plain, guarded = (run(x, H, c, y, noise, frobenius(2.0), 400, guard=g)[0][-1] for g in (None, 64.0))
    assert np.trace(verify.schur_complement(covariance(plain), H)) < 0.05 * left
    assert np.linalg.norm(plain.mean(0) - limit) > 0.1
    assert np.trace(verify.schur_complement(covariance(guarded), H)) == pytest.approx(left, rel=1e-5)
    assert np.linalg.norm(guarded.mean(0) - limit) < 0.01


def test_c8_in_float32_the_floor_comes_earlier_and_the_guard_still_holds():
    x, H, c, y, noise = problem(8)
    left = np.trace(verify.schur_complement(covariance(x), H))
    x = x.astype("float32")
    f32 = run(x, H.astype("float32"), c.astype("float32"), y, noise, frobenius(2.0), 160, guard=None)[0][-1]
    kept = run(x, H.astype("float32"), c.astype("float32"), y, noise, frobenius(2.0), 160)[0][-1]
    assert f32.dtype == np.float32
    assert np.trace(verify.schur_complement(covariance(f32.astype(float)), H)) < 0.3 * left
    assert np.trace(verify.schur_complement(covariance(kept.astype(float)), H)) == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("m, left", [(1, 1.0), (2, None), (4, None)])
def test_c9_at_gamma_two_without_misfit_the_observed_spread_has_a_positive_limit(m, left):
    lam = np.array([1.0, 0.5, 0.2, 0.1])[:m]
    x = np.concatenate([np.eye(m), -np.eye(m)]) * math.sqrt(m)  # mean 0, C_xx = I
    H = np.diag(np.sqrt(lam))
    steps = 300
    ensembles, _, _ = run(x, H, np.zeros(m), np.zeros(m), np.eye(m), frobenius(2.0), steps)
    p, _ = verify.scalar_recursion(lam, np.zeros(m), 2.0, "frobenius", 20_000)
    got = np.diag(covariance(ensembles[-1] @ H))
    np.testing.assert_allclose(got, lam * p[steps] ** 2, atol=1e-10)
    if m == 4:
        assert lam[0] * p[-1][0] ** 2 == pytest.approx(0.4826, rel=1e-3)
    else:
        assert lam[0] * p[-1][0] ** 2 > 0.5
    if left is not None:
        assert got.sum() == pytest.approx(left, rel=1e-12)


def test_the_constant_rule_diverges_where_the_normalised_ones_cannot():
    x, H, c, y, noise = problem(9)
    lam = verify.observation_modes(x, x @ H.T + c, y, noise)[0][-1]
    V = np.trace(covariance(x))
    assert np.trace(covariance(run(x, H, c, y, noise, constant(3 / lam), 1)[0][-1])) > 0
    grown = run(x, H, c, y, noise, constant(5 / lam), 3)[0][-1]
    assert np.trace(covariance(grown)) > 10 * V
