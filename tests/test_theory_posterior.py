"""THEORY.md, "Against exact posteriors": what whole runs converge to on problems whose posterior is known.

Set-ups A and B of problems.linear_gaussian. Fixed seeds; the tolerances leave room for the sampling error of the seeds.
Not tested, because it is false: closeness to posterior mean, MAP or truth at gamma = 2, ensemble spread = posterior
spread, misfit = noise level, improvement with J under the Euler discretisation.
"""

import functools
import math

import numpy as np
import pytest

from enkg_ref import Config, EnKG, Gaussian, correct, frobenius, iterate, solve
from enkg_ref.diffusion import edm_sigmas, flow_to_zero
from enkg_ref.extensions import TemperedEnKG, mean_discrepancy, particle_discrepancy, tempered_gain
from enkg_ref.statements import verify
from problems.linear_gaussian import linear_gaussian


def noise_for(problem, J, seed=0):
    return np.random.default_rng([7, seed]).standard_normal((J, *problem.event_shape))


def method(problem, J, gamma, kind=EnKG, **settings):
    likelihood = Gaussian(problem.observation.y, problem.observation.noise)
    settings = {"window": None if gamma else (1, 0)} | settings
    return kind(problem.denoise, likelihood, Config(particles=J, steps=80, guidance=gamma, **settings))


@functools.lru_cache
def euler(seed, J, gamma, stop=None):
    """Scores of a run of set-up A in the published discretisation, with the misfit of the mean and the calls."""
    p = linear_gaussian("A", seed=seed)
    state = solve(method(p, J, gamma, stop=stop), p.forward, noise_for(p, J, seed))
    misfit = np.linalg.norm(p.H @ state.x.mean(0) - p.observation.y) / (p.observation.noise * math.sqrt(8))
    return p.score(state.x) | {"misfit": misfit, "calls": state.forward_calls}


def over_seeds(key, J, gamma, stop=None, seeds=5):
    return float(np.mean([euler(s, J, gamma, stop)[key] for s in range(seeds)]))


# ------------------------------------------------------------------------------------------------- exact flow: 4.1
@functools.lru_cache
def exact_flow(J, seed, levels=60):
    p = linear_gaussian("A", seed=seed)
    residual, sigmas = Gaussian(p.observation.y, p.observation.noise).residual, edm_sigmas(levels)
    x = sigmas[0] * noise_for(p, J, seed)
    first = p.flow(x, sigmas[0])
    for here, following in zip(sigmas, sigmas[1:]):
        x = correct(x, p.forward(p.flow(x, here)), residual, frobenius(1.0))[0]
        x = p.flow(x, here, following)
    return p, first, x


@pytest.mark.parametrize("J", [64, 1024])
def test_with_the_exact_flow_the_run_ends_in_the_empirical_noise_free_posterior(J):
    p, first, last = exact_flow(J, 0)
    C = np.cov(first.T, bias=True)
    m_J = first.mean(0) + C @ p.H.T @ np.linalg.solve(p.H @ C @ p.H.T, p.observation.y - p.H @ first.mean(0))
    N_J = p.null_covariance(C)
    assert np.linalg.norm(last.mean(0) - m_J) <= 1e-5 * np.linalg.norm(p.posterior[0] - p.mu)
    assert np.linalg.norm(np.cov(last.T, bias=True) - N_J) <= 1e-10 * np.linalg.norm(N_J)


def test_with_the_exact_flow_mean_and_covariance_tend_to_the_noise_free_posterior_like_one_over_root_j():
    sizes, mean, covariance = (64, 256, 1024, 4096), [], []
    for J in sizes:
        runs = [exact_flow(J, seed) for seed in range(6)]
        mean.append(np.mean([np.linalg.norm(x.mean(0) - p.noise_free_posterior[0]) for p, _, x in runs]))
        covariance.append(np.mean([np.linalg.norm(np.cov(x.T, bias=True) - p.noise_free_posterior[1])
                                   for p, _, x in runs]))
    assert np.polyfit(np.log(sizes), np.log(mean), 1)[0] == pytest.approx(-0.5, abs=0.1)
    assert np.polyfit(np.log(sizes), np.log(covariance), 1)[0] == pytest.approx(-0.5, abs=0.1)


def test_the_distance_to_the_noisy_posterior_does_not_vanish():
    p = linear_gaussian("A", noise=1.0)
    m_p, m_0 = p.posterior[0], p.noise_free_posterior[0]
    assert np.linalg.norm(m_0 - m_p) > 0.1 * np.linalg.norm(m_p - p.mu)


@pytest.mark.parametrize("steps, error", [(10, 0.173), (20, 0.086), (40, 0.043), (80, 0.0215), (160, 0.0107),
                                          (320, 0.0054)])
def test_the_euler_flow_is_first_order_with_the_stated_error(steps, error):
    x, variance, sigma = np.array([[1.0]]), 1.0, 10.0
    euler_flow = flow_to_zero(x, sigma, lambda v, s: variance / (variance + s * s) * v, steps)[0, 0]
    exact = math.sqrt(variance / (variance + sigma**2))
    assert abs(euler_flow / exact - 1) == pytest.approx(error, rel=0.02)


# --------------------------------------------------------------------------- the published discretisation: 4.2, 4.4
def test_at_a_collapse_budget_of_three_the_mean_is_near_the_posterior_mean():
    assert over_seeds("error_to_posterior_mean", 256, 0.085) < 0.3
    assert over_seeds("misfit", 256, 0.085) < 1.0
    assert 0.85 < over_seeds("spread_over_posterior_spread", 256, 0.085) < 1.0


def test_at_gamma_two_the_mean_is_farther_from_the_posterior_mean_than_without_guidance():
    without = over_seeds("error_to_posterior_mean", 256, 0.0)
    assert 0.9 < without < 1.1
    assert over_seeds("error_to_posterior_mean", 256, 2.0) > 2 * without


def test_at_gamma_two_sixteen_times_the_particles_do_not_help():
    few, many = (over_seeds("error_to_posterior_mean", J, 2.0, seeds=3) for J in (64, 1024))
    assert many > 0.6 * few


@functools.lru_cache
def at_gamma_two(noise, seed, J=64):
    """Misfit of the mean in units of the noise, and observed spread over that of the posterior, set-up A."""
    p = linear_gaussian("A", noise=noise, seed=seed)
    x = solve(method(p, J, 2.0), p.forward, noise_for(p, J, seed)).x
    misfit = np.linalg.norm(p.H @ x.mean(0) - p.observation.y) / (noise * math.sqrt(8))
    seen = [np.trace(p.H @ C @ p.H.T) for C in (np.cov(x.T, bias=True), p.posterior[1])]
    return misfit, math.sqrt(seen[0] / seen[1])


def test_at_gamma_two_the_observed_spread_is_nothing_like_that_of_the_posterior():
    assert all(at_gamma_two(0.1, seed)[1] < 0.05 for seed in range(3))


def test_at_gamma_two_the_misfit_is_not_the_noise_level():
    # the same discretisation error whatever the noise: far above small noise, far below large noise
    assert np.mean([at_gamma_two(0.01, seed)[0] for seed in range(3)]) > 3.0
    assert np.mean([at_gamma_two(1.0, seed)[0] for seed in range(3)]) < 0.4


def test_the_same_data_with_another_noise_level_give_the_same_update():
    p = linear_gaussian("A")
    state = method(p, 32, 2.0).init(noise_for(p, 32))
    x = {}
    for noise in (0.05, 2.0):
        likelihood = Gaussian(p.observation.y, noise)
        one = EnKG(p.denoise, likelihood, Config(particles=32, steps=80))
        x[noise] = one.tell(state, p.forward(one.ask(state)))[0].x
    np.testing.assert_allclose(x[0.05], x[2.0], rtol=0, atol=1e-12 * np.abs(x[2.0]).max())


# ------------------------------------------------------------------------------------------------- extensions: 4.6
def test_the_discrepancy_of_the_particles_is_that_of_the_mean_plus_the_observed_spread():
    for seed in range(50):
        _, g, y, noise = verify._case(np.random.default_rng(seed))
        likelihood = Gaussian(y, noise)
        tau = np.trace(np.linalg.solve(noise, np.cov(g.T, bias=True).reshape(noise.shape)))
        mean = likelihood.misfit(g.mean(0, keepdims=True))[0]
        assert likelihood.misfit(g).mean() == pytest.approx(mean + tau, rel=1e-13)


@pytest.mark.parametrize("stop, key", [(mean_discrepancy, "misfit"), (particle_discrepancy, "mean_misfit")])
def test_a_discrepancy_stop_ends_the_updates_of_a_level_exactly_where_the_data_are_fitted(stop, key):
    p = linear_gaussian("B", noise=0.5)
    run = method(p, 128, 2.0, stop=stop)
    infos = [info for _, info in iterate(run, p.forward, run.init(noise_for(p, 128)))]
    assert all(info.stopped == (getattr(info, key) <= 1.0) for info in infos)
    assert all(info.step == 0.0 for info in infos if info.stopped)
    by_level = {level: [i for i in infos if i.level == level] for level in {i.level for i in infos}}
    assert len(by_level) == 71  # every guided level is asked at least once
    assert all(not i.stopped for row in by_level.values() for i in row[:-1])


def test_the_particle_discrepancy_stops_later_than_that_of_the_mean():
    calls = [over_seeds("calls", 256, 2.0, stop, seeds=3) for stop in (mean_discrepancy, particle_discrepancy)]
    assert 71 <= calls[0] <= calls[1] <= 0.6 * 142


def test_with_a_discrepancy_stop_gamma_two_lands_near_the_posterior_mean():
    assert over_seeds("error_to_posterior_mean", 512, 2.0, mean_discrepancy, 4) < 0.3


def test_the_tempered_step_in_the_frozen_linear_loop_tends_to_the_posterior():
    p, updates, errors = linear_gaussian("LG6"), 8, []
    likelihood = Gaussian(p.observation.y, p.observation.noise)
    m_p, Sigma_p = p.posterior
    for J in (1000, 100_000):
        rng = np.random.default_rng(0)
        x = p.mu + rng.standard_normal((J, 6)) @ np.linalg.cholesky(p.Sigma).T
        for _ in range(updates):
            g, eta = p.forward(x), rng.standard_normal((J, 3))
            wanted = eta * math.sqrt(updates) - likelihood.whiten(likelihood.difference(g))
            x = x + tempered_gain(wanted, likelihood.whiten(g - g.mean(0)), x - x.mean(0), 1 / updates, J)
        errors.append((np.linalg.norm(x.mean(0) - m_p), np.abs(np.cov(x.T, bias=True) - Sigma_p).max()))
    assert errors[1][0] < 4 * math.sqrt(np.trace(p.Sigma) / 100_000) and errors[1][1] < 4e-3
    assert errors[1][0] < errors[0][0] and errors[1][1] < errors[0][1]


def test_both_sizes_of_the_tempered_gain_are_the_kalman_gain():
    rng = np.random.default_rng(0)
    for J, m in ((30, 4), (5, 12)):
        v, b, z = rng.standard_normal((J, m)), rng.standard_normal((J, m)), rng.standard_normal((J, 7))
        gain = np.linalg.solve(b.T @ b / J + 5.0 * np.eye(m), b.T @ z / J)
        np.testing.assert_allclose(tempered_gain(v, b, z, 0.2, J), v @ gain, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("noise, limit", [(0.05, 0.15), (0.5, 0.15), (2.0, 0.2)])
def test_the_tempered_step_is_calibrated_on_set_up_b(noise, limit):
    p, J = linear_gaussian("B", noise=noise), 2048
    x = solve(method(p, J, 2.0, TemperedEnKG), p.forward, noise_for(p, J)).x
    m_p, Sigma_p = p.posterior
    error = np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p)
    # expectation of the squared error under the posterior in place of one truth
    skill = np.sum((x.mean(0) - m_p) ** 2) + np.trace(Sigma_p)
    assert 0.85 <= math.sqrt((J + 1) / J * np.sum(x.var(0)) / skill) <= 1.15
    assert error < limit


# ------------------------------------------------------------------------------------------------------ diagnostics
def test_the_diagnostics_of_a_run_equal_their_definitions():
    p = linear_gaussian("A")
    run = method(p, 48, 1.0)
    state, budget = run.init(noise_for(p, 48)), 0.0
    likelihood = run.likelihood
    for _ in range(12):
        g = p.forward(run.ask(state))
        following, info = run.tell(state, g)
        x = state.x
        z, b = x - x.mean(0), likelihood.whiten(g - g.mean(0))
        e = likelihood.whiten(likelihood.difference(g.mean(0, keepdims=True)))[0]
        Cw, V, tau = b.T @ b / 48, np.sum(z * z) / 48, np.sum(b * b) / 48
        lam = np.linalg.eigvalsh(Cw)
        kappa2 = e @ np.linalg.solve(Cw, e)
        K = likelihood.residual(g) @ (g - g.mean(0)).T / 48
        budget += 1.0 / math.sqrt(8 + kappa2)
        assert info.norm_k == pytest.approx(np.linalg.norm(K), rel=1e-12)
        assert info.step == pytest.approx(1.0 / np.linalg.norm(K), rel=1e-12)
        assert info.spread == pytest.approx(math.sqrt(V / 32), rel=1e-12)
        assert info.spread_obs == pytest.approx(tau / 8, rel=1e-12)
        assert info.misfit == pytest.approx(e @ e / 8, rel=1e-12)
        assert info.mean_misfit == pytest.approx((e @ e + tau) / 8, rel=1e-12)
        assert info.alignment == pytest.approx(np.sum((z.T @ b / 48) ** 2) / (tau * V), rel=1e-9)
        assert info.w_lambda_max == pytest.approx(info.step * lam[-1], rel=1e-12)
        assert info.collapse_budget == pytest.approx(budget, rel=1e-9)
        state = following
