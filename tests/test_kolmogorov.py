"""The Kolmogorov flow: symmetries, balances, the adjoint over five time units, and the problem's options."""

import numpy as np
import pytest

import problems
from problems import kolmogorov
from problems.navier_stokes_solver import NavierStokes


@pytest.fixture(scope="module")
def fields():
    return kolmogorov.stored("test")


def test_the_laminar_flow_is_a_fixed_point(fields):
    """(K1): omega = -4 Re cos(4 y)/16 = -10 cos(4 y) balances viscosity and forcing, and advects nothing."""
    y = 2 * np.pi * np.arange(64) / 64
    laminar = np.tile(-10.0 * np.cos(4 * y), (64, 1))[None]
    np.testing.assert_allclose(kolmogorov.solver()(laminar), laminar, atol=1e-8)


def test_the_flow_commutes_with_its_symmetries(fields):
    """Any shift in x, a quarter shift in y, omega(-x, -y), -omega(-x, y + pi/4)."""
    march, x = kolmogorov.solver(), fields[:1]

    def turned(x):
        return np.roll(x[:, ::-1, ::-1], (1, 1), (1, 2))

    def glided(x):
        return -np.roll(x[:, ::-1], (1, -8), (1, 2))

    for act in (lambda x: np.roll(x, (5, 16), (1, 2)), turned, glided):
        np.testing.assert_allclose(march(act(x)), act(march(x)), atol=1e-9)


def test_the_time_step_is_accurate_to_its_stated_error(fields):
    fine = NavierStokes(64, kolmogorov.FLOW, steps=200)(fields[:2])
    error = np.linalg.norm(kolmogorov.solver()(fields[:2]) - fine, axis=(1, 2)) / np.linalg.norm(fine, axis=(1, 2))
    assert error.max() < 2e-5


@pytest.mark.parametrize("time", [1, 5])
def test_the_adjoint_is_the_transpose_of_the_derivative(time):
    problem, rng = problems.build("kolmogorov", time=time, item=1), np.random.default_rng(0)
    x, u, v = problem.truth[None] / problem.scale, rng.standard_normal((1, 64, 64)), rng.standard_normal((1, 256))
    h = 1e-6
    slope = np.sum(v * (problem.forward(x + h * u) - problem.forward(x - h * u))) / (2 * h)
    np.testing.assert_allclose(np.sum(u * problem.forward_vjp(x, v)), slope, rtol=1e-6)


def test_five_units_are_five_times_one_and_every_fourth_point_is_seen(fields):
    problem, omega = problems.build("kolmogorov", time=5), fields[:1]
    for _ in range(5):
        omega = kolmogorov.solver()(omega)
    np.testing.assert_allclose(problem.forward(fields[:1] / 4.3).reshape(16, 16), omega[0, ::4, ::4], atol=1e-9)


def test_the_noise_is_in_standard_deviations_of_the_fields():
    """chi2 of 2,560 residuals within four standard errors, and the same residuals at both scales."""
    clean = [problems.build("kolmogorov", noise=1e-9, item=i).observation.y for i in range(10)]
    noisy = [problems.build("kolmogorov", noise="0.1", item=i).observation for i in range(10)]
    white = np.array([(o.y - y) / (0.1 * kolmogorov.stored("deviation")) for o, y in zip(noisy, clean)])
    assert abs(np.mean(white**2) - 1) < 4 * np.sqrt(2 / white.size)
    np.testing.assert_allclose(noisy[0].noise, 0.1 * kolmogorov.stored("deviation"))


def test_the_test_fields_have_the_moments_of_the_training_fields(fields):
    """Their mean square is that of the stored spectrum; ten fields scatter by a few per cent, one is a burst."""
    problem = problems.build("kolmogorov")
    variance = np.mean(problem.gaussian.mean**2) + problem.gaussian.total_variance / 64**2
    expected = problem.scale * np.sqrt(variance)
    assert expected == pytest.approx(float(kolmogorov.stored("deviation")), rel=0.01)
    assert 0.8 < np.median(fields.std(axis=(1, 2))) / expected < 1.2


@pytest.mark.parametrize("given,message", [
    ({"time": 2}, "time: got 2"), ({"item": 10}, "item: got 10, expected a number in 0 ... 9"),
    ({"observation": np.zeros(5)}, "observation: got shape"), ({"noise": "-1"}, "noise: got '-1'")])
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        problems.build("kolmogorov", **given)


def test_the_shipped_prior_denoises_held_out_fields_far_better_than_their_gaussian(fields):
    """Card: 0.29 of the Gaussian's mean square error at half a standard deviation, on 64 fields; here ten."""
    pytest.importorskip("onnxruntime")
    from onnx_priors.session import load_prior

    problem = problems.build("kolmogorov")
    clean = fields / problem.scale
    noisy = clean + 0.25 * np.random.default_rng(0).standard_normal(clean.shape)
    error, gaussian = (np.mean((denoise(noisy, 0.25) - clean) ** 2)
                       for denoise in (load_prior("kolmogorov", threads=1), problem.gaussian.denoise))
    assert error < 0.4 * gaussian
