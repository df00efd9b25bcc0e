"""Methods that sample by accepting or resampling: invariance of the posterior, tuning, the filter's weights."""

import itertools
import math

import numpy as np
import pytest
import tail_equations as spec

from enkg_ref import Gaussian, member_normals, metropolis
from enkg_ref.baselines import DWEKCN, DWRWMH, FKSteering, dw_rwmh, fk_steering
from enkg_ref.protocol import iterate

Y, NOISE = 1.1, 0.5
GRID = np.linspace(-6, 6, 6001)
DENSITY = np.exp(-0.5 * GRID**2 - 0.5 * (0.6 * GRID**2 + 0.3 * GRID - Y) ** 2 / NOISE**2)
DENSITY /= DENSITY.sum()


def forward(x):
    return 0.6 * x**2 + 0.3 * x


def denoise(x, sigma):
    return x / (1.0 + sigma**2)


@pytest.fixture
def exact_draws(monkeypatch):
    """p(x0 | x_s) of the prior N(0, 1) without discretisation error."""
    def draw(x, levels, denoise, normals, residual=None):
        s2 = levels[0] ** 2
        return x / (1.0 + s2) + math.sqrt(s2 / (1.0 + s2)) * normals()
    monkeypatch.setattr(metropolis, "ancestral_draw", draw)


@pytest.mark.parametrize("method", [DWRWMH, DWEKCN])
def test_the_posterior_is_invariant_once_tuning_has_ended(method, exact_draws):
    """800 chains from exact draws, 30 steps of fixed t, h and gain: no drift beyond four standard errors."""
    J = 800
    config = dw_rwmh.Config(steps=30, t=0.5, h=0.05, adapt=0, calls=1, start_calls=1)
    chains = method(denoise, Gaussian([Y], NOISE), config)
    rng = np.random.default_rng(1)
    start = rng.choice(GRID, J, p=DENSITY)[:, None]
    state = chains.init(member_normals(0, 0, J, (1,)))
    state = dw_rwmh.replace(state, x=start, proposal=start)
    state, _ = chains.tell(state, forward(start))
    # a gain of other chains, fixed beforehand: the proof does not ask where it comes from
    other = rng.standard_normal((J, 1))
    whitened = chains.likelihood.whiten(chains.likelihood.difference(forward(other)))
    state = chains._propose(dw_rwmh.replace(state, gain_x=other, gain_d=whitened))
    accepted = []
    for state, _ in iterate(chains, forward, state):  # noqa: B020
        accepted.append(state.accepted)
    assert np.mean(accepted) > 0.1 and np.mean(state.x != start) > 0.9
    mean = GRID @ DENSITY
    sd = math.sqrt((GRID - mean) ** 2 @ DENSITY)
    assert abs(state.x.mean() - mean) < 4 * sd / math.sqrt(J)
    positive = DENSITY[GRID > 0].sum()
    assert abs(np.mean(state.x > 0) - positive) < 4 * math.sqrt(positive * (1 - positive) / J)
    assert state.x.std() == pytest.approx(sd, rel=4 * 0.7 / math.sqrt(J))


def test_from_the_prior_the_chains_come_to_the_posterior(exact_draws):
    J = 300
    chains = DWEKCN(denoise, Gaussian([Y], NOISE), dw_rwmh.Config(steps=60, calls=1, start_calls=1))
    for state, _ in iterate(chains, forward, chains.init(member_normals(0, 0, J, (1,)))):  # noqa: B007
        pass
    mean = GRID @ DENSITY
    sd = math.sqrt((GRID - mean) ** 2 @ DENSITY)
    assert abs(state.x.mean() - mean) < 4 * sd / math.sqrt(J) + 0.05 * sd


def test_t_and_h_follow_the_acceptance_by_their_logits_inside_their_ranges():
    assert dw_rwmh._robbins_monro(0.5, 0.3 * (0.8 - 0.3), 0.3, 0.7) == pytest.approx(1 / (1 + math.exp(-0.15)))
    assert dw_rwmh._robbins_monro(0.7, 0.21, 0.3, 0.7) == 0.7
    assert dw_rwmh._robbins_monro(1.0, -0.09, 0.01, 1.0) < 1.0
    c = dw_rwmh.Config()
    assert (c.steps, c.t, c.h, c.target, c.rate, c.t_range, c.h_range) == (250, 0.7, 1.0, 0.3, 0.3, (0.3, 0.7),
                                                                         (0.01, 1.0))
    chains = DWRWMH(denoise, Gaussian([Y], NOISE), c)
    assert chains._noise(chains.init(member_normals(0, 0, 3, (1,)))) == pytest.approx(0.7 / 0.3)


def test_the_gain_is_that_of_the_ensemble_and_the_ratio_that_of_the_loops():
    rng = np.random.default_rng(3)
    x, J = rng.standard_normal((6, 2)), 6
    H = np.array([[1.0, 0.5], [0.2, -1.0]])
    likelihood = Gaussian([0.4, -0.1], [0.5, 0.8])
    chains = DWEKCN(denoise, likelihood, dw_rwmh.Config(steps=3, h=0.4, adapt=0))
    state = chains.init(member_normals(0, 0, J, (2,)))
    d = likelihood.whiten(likelihood.difference(x @ H.T))
    state = dw_rwmh.replace(state, x=x, gain_x=x, gain_d=d, d=d, h=0.4)
    z, b = x - x.mean(0), (x - x.mean(0)) @ H.T
    gain = 0.4 * (z.T @ b / J) @ np.linalg.inv(0.4 * b.T @ b / J + np.diag([0.25, 0.64]))
    np.testing.assert_allclose(chains.shift(state, d), ([0.4, -0.1] - x @ H.T) @ gain.T, rtol=1e-10)
    new, noised = rng.standard_normal((2, 6, 2))
    nu, nu_new = chains.shift(state, d), chains.shift(state, likelihood.whiten(likelihood.difference(new @ H.T)))
    got = metropolis.noising_log_ratio(noised, x, nu, new, nu_new, 0.9)
    expected = [spec.noising_log_ratio(*(v[j].tolist() for v in (noised, x, nu, new, nu_new)), 0.9) for j in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-11)


def test_a_prediction_that_is_not_finite_is_never_accepted():
    chains = DWEKCN(denoise, Gaussian([Y], NOISE), dw_rwmh.Config(steps=3, calls=3, start_calls=3))
    state = chains.init(member_normals(0, 0, 5, (1,)))
    state, _ = chains.tell(state, forward(chains.ask(state)))
    g = forward(chains.ask(state))
    g[2] = np.nan
    following, _ = chains.tell(state, g)
    assert following.x[2] == state.x[2] and np.all(np.isfinite(following.proposal))


# ----------------------------------------------------------------------------------------------------------- the filter
def test_the_weights_of_the_filter_are_exact_on_a_discrete_toy():
    """A chain of four steps on three states: the filter's answer against the sum over all 243 paths."""
    first = np.array([0.5, 0.3, 0.2])
    step = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    rewards = np.random.default_rng(4).normal(size=(5, 3))
    exact = np.zeros(3)
    for path in itertools.product(range(3), repeat=5):
        chance = first[path[0]] * math.prod(step[a, b] for a, b in zip(path, path[1:]))
        previous = 0.0
        for i, k in enumerate(path):
            chance *= math.exp(rewards[i, k] - previous)
            previous = rewards[i, k]
        exact[path[-1]] += chance
    assert exact / exact.sum() == pytest.approx(  # the potentials telescope to the last reward
        (first @ np.linalg.matrix_power(step, 4)) * np.exp(rewards[4])
        / ((first @ np.linalg.matrix_power(step, 4)) @ np.exp(rewards[4])), rel=1e-12)

    J, rng = 40_000, np.random.default_rng(5)
    state = rng.choice(3, J, p=first)
    previous, log_weights = np.zeros(J), np.zeros(J)
    for i in range(5):
        log_weights = log_weights + rewards[i, state] - previous
        previous = rewards[i, state]
        weights = fk_steering.normalised(log_weights)
        if i == 4 or fk_steering.effective(weights) < 0.9 * J:
            rows = fk_steering.systematic(weights, rng.random())
            state, previous, log_weights = state[rows], previous[rows], np.zeros(J)
        if i < 4:
            state = (rng.random((J, 1)) > np.cumsum(step[state], axis=1)).sum(axis=1)
    shares = np.bincount(state, minlength=3) / J
    np.testing.assert_allclose(shares, exact / exact.sum(), atol=0.015)


def test_resampling_copies_each_particle_as_often_as_its_weight_says():
    weights = fk_steering.normalised(np.log(np.arange(1.0, 9.0)))
    counts = np.mean([np.bincount(fk_steering.systematic(weights, (k + 0.5) / 400), minlength=8) for k in range(400)],
                     axis=0)
    np.testing.assert_allclose(counts, 8 * weights, atol=0.01)
    once = np.bincount(fk_steering.systematic(weights, 0.3), minlength=8)
    assert np.all(np.abs(once - 8 * weights) < 1) and once.sum() == 8


def test_without_resampling_the_weights_telescope_to_the_likelihood_of_the_last_prediction():
    likelihood = Gaussian([Y], NOISE)
    method = FKSteering(denoise, likelihood, fk_steering.Config(steps=6, threshold=0.0, sigma_max=4.0, tilt=0.7))
    state = method.init(member_normals(0, 0, 20, (1,)))
    for _ in range(5):
        g = forward(method.ask(state))
        state, _ = method.tell(state, g)
        np.testing.assert_allclose(state.log_weight, -0.5 * 0.7 * likelihood.misfit(g), rtol=1e-10)


def test_many_particles_come_to_the_posterior_of_the_prior_as_the_chain_draws_it():
    """Prior N(0, 1) drawn in 40 levels; the answer's mean and share of positive points."""
    J = 800
    method = FKSteering(denoise, Gaussian([Y], NOISE), fk_steering.Config(steps=40, sigma_max=8.0, sigma_min=0.01))
    for state, _ in iterate(method, forward, method.init(member_normals(1, 0, J, (1,)))):  # noqa: B007
        pass
    mean = GRID @ DENSITY
    sd = math.sqrt((GRID - mean) ** 2 @ DENSITY)
    assert abs(state.x.mean() - mean) < 0.2 * sd
    assert abs(np.mean(state.x > 0) - DENSITY[GRID > 0].sum()) < 0.1


@pytest.mark.parametrize("make, message", [
    (lambda: dw_rwmh.Config(t=0.9), r"t: got 0.9, expected a number in \[0.3, 0.7\]"),
    (lambda: dw_rwmh.Config(steps=0), "steps: got 0"),
    (lambda: fk_steering.Config(tilt=-1.0), "tilt: got -1.0"),
])
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
