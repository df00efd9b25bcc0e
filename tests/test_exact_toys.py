"""The eight problems: denoisers, adjoints and posteriors against what they must equal."""

import numpy as np
import pytest

from problems import exact_toys


@pytest.mark.parametrize("letter", exact_toys.NAMES)
def test_the_denoiser_is_the_mean_of_the_prior_draws_that_could_have_made_the_point(letter):
    toy = exact_toys.exact_toy(letter, 0)
    rng = np.random.default_rng(1)
    draws = toy.exact_prior.sample(rng, 200_000)
    s = 2.0 if letter == "F" else 1.0
    x = draws[:1] + s * rng.standard_normal(draws[:1].shape)
    log_weights = -0.5 * np.sum((x - draws) ** 2, axis=1) / s**2
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ draws
    error = np.sqrt(weights**2 @ (draws - mean) ** 2)
    assert np.all(np.abs(toy.denoise(x, s)[0] - mean) < 5 * error)


@pytest.mark.parametrize("letter", exact_toys.NAMES)
def test_the_adjoint_is_the_derivative(letter):
    toy = exact_toys.exact_toy(letter, 2)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, *toy.event_shape))
    v, u = rng.standard_normal(toy.forward(x).shape), rng.standard_normal(x.shape)
    slope = (toy.forward(x + 1e-6 * u) - toy.forward(x - 1e-6 * u)) / 2e-6
    np.testing.assert_allclose(np.sum(toy.forward_vjp(x, v) * u, axis=1), np.sum(slope * v, axis=1), rtol=2e-6)


@pytest.mark.parametrize("letter", "BCDEGH")
def test_the_prior_density_is_that_of_its_draws(letter):
    prior, log_density = exact_toys.prior_of(letter)
    axis = np.linspace(-6, 6, 241)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = np.exp(log_density(points) - log_density(points).max())
    weights /= weights.sum()
    draws = prior.sample(np.random.default_rng(3), 40_000)
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1], lambda x: (x[:, 0] > 0) * 1.0):
        assert abs(f(draws).mean() - weights @ f(points)) < 5 * f(draws).std() / 200 + 0.02


def test_the_closed_form_of_a_is_what_importance_sampling_says():
    toy = exact_toys.exact_toy("A", 1, noise=1.0)  # more noise: importance sampling can
    draws = toy.exact_prior.sample(np.random.default_rng(4), 400_000)
    log_weights = toy.log_likelihood(draws)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ draws
    error = np.sqrt(weights**2 @ (draws - mean) ** 2)
    assert np.all(np.abs(mean - toy.exact.mean) < 5 * error)
    np.testing.assert_allclose(np.sqrt(weights @ (draws - mean) ** 2), toy.exact.sd, rtol=0.05)


@pytest.mark.parametrize("letter", "BCDEGH")
def test_the_grid_is_what_importance_sampling_says(letter):
    toy = exact_toys.exact_toy(letter, 3)
    draws = toy.exact_prior.sample(np.random.default_rng(5), 400_000)
    log_weights = toy.log_likelihood(draws)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ draws
    error = np.sqrt(weights**2 @ (draws - mean) ** 2)
    assert np.all(np.abs(mean - toy.exact.mean) < 5 * error + 1e-3)


def test_c_has_two_equal_branches_and_b_weighs_its_components_by_bayes():
    toy = exact_toys.exact_toy("C", 0)
    right = toy.exact.weights[toy.exact.points[:, 0] > 0].sum()
    left = toy.exact.weights[toy.exact.points[:, 0] < 0].sum()
    assert right == pytest.approx(left, rel=1e-9)
    toy = exact_toys.exact_toy("B", 0)
    near = np.argmin(np.sum((toy.exact.points[:, None] - [[-2, 0], [1.5, 1.5], [1, -2]]) ** 2
                            / np.array([[0.15], [0.3], [0.1]])[None, :, 0, None], axis=2), axis=1)
    shares = np.array([toy.exact.weights[near == k].sum() for k in range(3)])
    sums, variances = np.array([-2.0, 3.0, -1.0]), 0.49 * 2 * np.array([0.15, 0.3, 0.1]) + 0.3**2
    bayes = np.array([0.4, 0.35, 0.25]) / np.sqrt(variances) * np.exp(
        -0.5 * (toy.observation.y[0] - 0.7 * sums) ** 2 / variances)
    np.testing.assert_allclose(shares, bayes / bayes.sum(), atol=0.02)


def test_figures_of_exact_draws_are_good_and_of_a_collapsed_ensemble_bad():
    toy = exact_toys.exact_toy("H", 1)
    draws = toy.exact.draw(np.random.default_rng(6), 464)
    good = exact_toys.figures(draws[:64], toy.exact, draws[64:], toy.truth)
    poor = exact_toys.figures(toy.exact.mean + 1e-3 * draws[:64], toy.exact, draws[64:], toy.truth)
    assert not good["bad"] and good["energy"] < 0.08 and abs(good["sd_ratio"] - 1) < 0.25
    assert poor["bad"] and poor["energy"] > 10 * good["energy"] and poor["sd_ratio"] < 0.01


def test_energy_distance_is_zero_of_a_sample_from_itself_and_the_shift_of_two_points():
    a = np.random.default_rng(7).standard_normal((5, 2))
    assert exact_toys.energy_distance(a, a, np.ones(2)) == pytest.approx(0.0, abs=1e-12)
    assert exact_toys.energy_distance(np.zeros((1, 1)), np.full((1, 1), 3.0), np.array([2.0])) == pytest.approx(3.0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="toy: got 'I', expected one of A, B, C"):
        exact_toys.exact_toy("I")
    with pytest.raises(ValueError, match="noise: got -1.0, expected a standard deviation > 0"):
        exact_toys.exact_toy("A", noise=-1)
