"""THEORY.md, "Against exact posteriors": what whole runs converge to on problems whose posterior is known.

Set-ups A and B of problems.linear_gaussian. Fixed seeds; the tolerances leave room for the sampling error of the seeds.
What the lines of ``enkg verify`` measure (tests in test_verify.py) is not repeated.
Not tested, because it is false: closeness to posterior mean, MAP or truth at gamma = 2, ensemble spread = posterior
spread, misfit = noise level, improvement with J under the Euler discretisation.
"""

import functools
import math

import numpy as np
import pytest

from enkg_ref import Gaussian, Preset, iterate, solve
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.diffusion import flow_to_zero
from enkg_ref.extensions import (
    StopWhenFitted,
    TemperedEnKG,
    guarded,
    lowrank,
    mean_discrepancy,
    particle_discrepancy,
    tempered_gain,
)
from problems.linear_gaussian import linear_gaussian


def noise_for(problem, J, seed=0):
    return np.random.default_rng([7, seed]).standard_normal((J, *problem.event_shape))


def likelihood_of(problem):
    return Gaussian(problem.observation.y, problem.observation.noise)


def method(problem, J, gamma):
    preset = Preset(J, 80, None if gamma else (1, 0)).but(guidance=gamma)
    return preset.method(problem.denoise, likelihood_of(problem), guarded(lowrank))


def error_of_the_mean(J, gamma, seeds=3):
    """Mean error to the posterior mean of runs of set-up A in the published discretisation."""
    problems = [linear_gaussian("A", seed=seed) for seed in range(seeds)]
    return float(np.mean([p.score(solve(method(p, J, gamma), p.forward, noise_for(p, J, seed)).x)
                          ["error_to_posterior_mean"] for seed, p in enumerate(problems)]))


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
def test_at_gamma_two_sixteen_times_the_particles_do_not_help():
    few, many = (error_of_the_mean(J, 2.0) for J in (64, 1024))
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


# ------------------------------------------------------------------------------------------------- extensions: 4.6
@pytest.mark.parametrize("stop, key", [(mean_discrepancy, "misfit"), (particle_discrepancy, "mean_misfit")])
def test_a_discrepancy_stop_ends_the_updates_of_a_level_exactly_where_the_data_are_fitted(stop, key):
    p = linear_gaussian("B", noise=0.5)
    run = StopWhenFitted(method(p, 128, 2.0), stop)
    lines = [observe(Memory(), info, likelihood_of(p))[1]
             for _, info in iterate(run, p.forward, run.init(noise_for(p, 128)))]
    assert all(line["stopped"] == (line[key] <= 1.0) for line in lines)
    assert all(line["step"] == 0.0 for line in lines if line["stopped"])
    by_level = {level: [i for i in lines if i["level"] == level] for level in {i["level"] for i in lines}}
    assert len(by_level) == 71  # every guided level is asked at least once
    assert all(not i["stopped"] for row in by_level.values() for i in row[:-1])


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
            x = x + tempered_gain(wanted, likelihood.whiten(g - g.mean(0)), x - x.mean(0), 1 / updates)
        errors.append((np.linalg.norm(x.mean(0) - m_p), np.abs(np.cov(x.T, bias=True) - Sigma_p).max()))
    assert errors[1][0] < 4 * math.sqrt(np.trace(p.Sigma) / 100_000) and errors[1][1] < 4e-3
    assert errors[1][0] < errors[0][0] and errors[1][1] < errors[0][1]


def test_both_sizes_of_the_tempered_gain_are_the_kalman_gain():
    rng = np.random.default_rng(0)
    for J, m in ((30, 4), (5, 12)):
        v, b, z = rng.standard_normal((J, m)), rng.standard_normal((J, m)), rng.standard_normal((J, 7))
        gain = np.linalg.solve(b.T @ b / J + 5.0 * np.eye(m), b.T @ z / J)
        np.testing.assert_allclose(tempered_gain(v, b, z, 0.2), v @ gain, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("noise, limit", [(0.05, 0.15), (0.5, 0.15), (2.0, 0.2)])
def test_the_tempered_step_is_calibrated_on_set_up_b(noise, limit):
    p, J = linear_gaussian("B", noise=noise), 2048
    preset = Preset(J, 80)
    run = TemperedEnKG(p.denoise, likelihood_of(p), preset.sigmas, preset.window, preset.config)
    x = solve(run, p.forward, noise_for(p, J)).x
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
    state, budget, memory = run.init(noise_for(p, 48)), 0.0, Memory()
    likelihood = run.likelihood
    for _ in range(12):
        g = p.forward(run.ask(state))
        following, info = run.tell(state, g)
        memory, line = observe(memory, info, likelihood)
        x = state.x
        z, b = x - x.mean(0), likelihood.whiten(g - g.mean(0))
        e = likelihood.whiten(likelihood.difference(g.mean(0, keepdims=True)))[0]
        Cw, V, tau = b.T @ b / 48, np.sum(z * z) / 48, np.sum(b * b) / 48
        lam = np.linalg.eigvalsh(Cw)
        kappa2 = e @ np.linalg.solve(Cw, e)
        K = likelihood.residual(g) @ (g - g.mean(0)).T / 48
        budget += 1.0 / math.sqrt(8 + kappa2)
        assert line["norm_k"] == pytest.approx(np.linalg.norm(K), rel=1e-12)
        assert line["step"] == pytest.approx(1.0 / np.linalg.norm(K), rel=1e-12)
        assert line["spread"] == pytest.approx(math.sqrt(V / 32), rel=1e-12)
        assert line["spread_obs"] == pytest.approx(tau / 8, rel=1e-12)
        assert line["misfit"] == pytest.approx(e @ e / 8, rel=1e-12)
        assert line["mean_misfit"] == pytest.approx((e @ e + tau) / 8, rel=1e-12)
        assert line["alignment"] == pytest.approx(np.sum((z.T @ b / 48) ** 2) / (tau * V), rel=1e-9)
        assert line["w_lambda_max"] == pytest.approx(line["step"] * lam[-1], rel=1e-12)
        assert line["collapse_budget"] == pytest.approx(budget, rel=1e-9)
        state = following
