"""The inverse problem and its data: generator check values, moments, units, scores, refusals."""

import numpy as np
import pytest

from problems import vorticity
from problems.navier_stokes import navier_stokes, observe


def test_the_random_field_has_its_check_values():
    rng = np.random.default_rng(0)
    xi, eta = rng.standard_normal((16, 128, 128)), rng.standard_normal((16, 128, 128))
    field = vorticity.gaussian_random_field(xi, eta, 4.0, 3.0)
    assert np.allclose([field.std(), abs(field).max(), field[0, 0, 0], field[15, 64, 96]],
                       [0.1484537, 0.541625, -0.0556157, -0.0713204], rtol=1e-5)


def test_the_stored_benchmark_fields_have_their_check_values():
    omega, coarse = vorticity.bench16(), vorticity.bench16(64)
    assert np.allclose([omega.std(), omega[0, 0, 0], omega[7, 32, 16], omega[15, 64, 96]],
                       [5.080865, -3.521177, 3.752964, -4.863240], rtol=1e-5)
    assert np.allclose([coarse.std(), coarse[0, 0, 0]], [5.078651, -3.534958], rtol=1e-5)


@pytest.mark.slow
def test_the_stored_benchmark_fields_are_those_of_the_recipe():
    made = vorticity.bench16(rows=[0])
    assert np.abs(made - vorticity.bench16()[:1]).max() < 1e-5 * np.abs(made).max()


def test_a_field_depends_on_its_number_only():
    assert np.array_equal(vorticity.fields(32, 3, "test")[2], vorticity.fields(32, 1, "test", first=2)[0])


def test_held_out_fields_have_the_stored_moments_and_half_a_unit_of_deviation():
    omega = vorticity.fields(32, 200, "validation")
    prior, scale = vorticity.prior_gaussian(32), vorticity.preset(32).scale
    power = ((omega / scale - prior.mean) ** 2).sum((1, 2))
    assert abs(power.mean() - prior.total_variance) < 4 * power.std() / np.sqrt(200)
    assert abs(2 * omega.std() / scale - 1) < 0.05


def test_the_forward_map_takes_the_truth_in_prior_units_to_the_data():
    problem = navier_stokes(size=32, seed=2)
    assert np.abs(problem.forward(problem.truth[None] / problem.scale)[0] - problem.observation.y).max() < 1e-12
    noisy = navier_stokes(size=32, noise=0.5, seed=2)
    difference = noisy.observation.y - problem.observation.y
    assert abs((difference**2).mean() / 0.25 - 1) < 4 * np.sqrt(2 / 256)
    assert noisy.observation.noise == 0.5


def test_data_of_the_finer_solver_differ_by_the_model_error():
    same, padded = (navier_stokes(size=64, seed=0, data_solver=name).observation.y for name in ("same", "padded"))
    assert 0.01 < np.sqrt(((same - padded) ** 2).mean() / (same**2).mean()) < 0.15


def test_the_scores_follow_their_definitions():
    problem = navier_stokes(size=32, seed=1)
    ensemble = problem.truth + np.random.default_rng(0).standard_normal((8, 32, 32))
    score = problem.score(ensemble)
    norm = np.sqrt((problem.truth**2).sum())
    assert np.isclose(score["relative_l2_of_mean"], np.sqrt(((ensemble.mean(0) - problem.truth) ** 2).sum()) / norm)
    assert score["relative_l2_of_mean"] < score["relative_l2_of_particles"] < score["relative_l2_prior_mean"]


def test_the_observation_given_by_the_caller_is_used_and_checked():
    y = observe(vorticity.fields(32, 1, "test"))[0]
    problem = navier_stokes(size=32, observation=y)
    assert np.array_equal(problem.observation.y, y.astype("float64")) and problem.truth is None
    with pytest.raises(ValueError, match=r"observation: got shape \(255,\), expected \(16, 16\)"):
        navier_stokes(size=32, observation=y[:-1])
    with pytest.raises(ValueError, match="truth: got an array with non-finite values"):
        navier_stokes(size=32, truth=np.full((32, 32), np.nan))


@pytest.mark.parametrize("bad, message", [
    ({"size": 48}, "size: got 48, expected 32, 64, 128 grid points"),
    ({"noise": -1.0}, "noise: got -1.0, expected a standard deviation"),
    ({"data_solver": "exact"}, "data_solver: got 'exact', expected 'same' or 'padded'"),
    ({"seed": -1}, "seed: got -1, expected a number >= 0"),
])
def test_bad_settings_are_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        navier_stokes(**bad)
