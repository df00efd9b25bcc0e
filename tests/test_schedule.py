"""(T1), (T2), (T3b), (T3c), (T7), (T8): noise levels, inner flow, predictor, guidance schedule."""

import math

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref._xp import member_normals
from enkg_ref.diffusion import edm_sigmas, euler_step, flow_to_zero, initial_ensemble, inner_steps

# Printed in the specification for N = 80, s_max = 80, s_min = 0.002, rho = 7.
PRINTED = {5: "56.1299", 9: "41.7071", 20: "17.1551", 40: "2.37616", 60: "0.149656", 71: "0.0171123",
           75: "0.0063499", 79: "0.002"}


def test_noise_levels_have_the_published_digits():
    sigmas = edm_sigmas(80)
    assert {i: f"{sigmas[i]:.6g}" for i in PRINTED} == PRINTED
    assert (sigmas[0], sigmas[80]) == (pytest.approx(80.0, rel=1e-14), 0.0)


@pytest.mark.parametrize("n, sigma_max, sigma_min, rho", [(1, 80.0, 0.002, 7.0), (2, 5.0, 0.1, 3.0),
                                                          (17, 80.0, 0.002, 7.0), (80, 14.6, 0.03, 5.0)])
def test_noise_levels_equal_the_literal_formula(n, sigma_max, sigma_min, rho):
    ours, theirs = edm_sigmas(n, sigma_max, sigma_min, rho), paper.edm_sigmas(n, sigma_max, sigma_min, rho)
    assert len(ours) == n + 1 and all(type(sigma) is float for sigma in ours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=0.0)


def test_float32_noise_levels_are_those_of_a_program_that_holds_its_grid_in_float32():
    # powers and their difference in double precision, rounded once; grid, product, sum and power in single precision
    step, high, low = np.arange(80, dtype=np.float32) / np.float32(79), 80 ** (1 / 7), 0.002 ** (1 / 7)
    literal = (np.float32(high) + step * np.float32(low - high)) ** np.float32(7)
    ours = np.array(edm_sigmas(80, dtype="float32"))
    assert literal.dtype == np.float32 and np.array_equal(ours[:-1], literal.astype(float))
    deviation = np.max(np.abs(ours[:-1] / np.array(edm_sigmas(80))[:-1] - 1.0))
    assert 1e-8 < deviation < 1e-6


@pytest.mark.parametrize("n", [20, 40, 80, 1000])
def test_float32_noise_levels_are_those_of_torch_but_for_the_last_bit_of_its_power(n):
    torch = pytest.importorskip("torch")
    hi, lo = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    theirs = ((hi + torch.arange(n, dtype=torch.float32) / (n - 1) * (lo - hi)) ** 7).numpy()
    ours = np.array(edm_sigmas(n, dtype="float32")[:-1], dtype=np.float32)
    assert np.mean(ours == theirs) > 0.95  # two power functions differ in the last bit of some
    assert np.max(np.abs(ours.view(np.int32) - theirs.view(np.int32))) <= 1


@pytest.mark.parametrize("arguments, named", [((0,), "steps"), ((8, 80.0, 0.0), "sigma_min"),
                                              ((8, 1.0, 2.0), "sigma_min")])
def test_impossible_noise_levels_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        edm_sigmas(*arguments)


def test_the_initial_ensemble_is_scaled_noise(backend):
    dtype = "float64" if backend.float64 else "float32"
    noise = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
    x = initial_ensemble(backend.array(noise), 80.0)
    expected = paper.initial_ensemble(noise.tolist(), 80.0)
    np.testing.assert_allclose(backend.numpy(x), expected, rtol=1e-14 if backend.float64 else 1e-6)
    assert x.dtype == backend.array(noise).dtype


def test_the_first_256_members_of_512_are_those_of_256():
    small, large = member_normals(3, 0, 256, (2, 3)), member_normals(3, 0, 512, (2, 3))
    assert np.array_equal(large[:256], small)
    assert not np.any(large[:256] == member_normals(3, 1, 256, (2, 3)))
    assert not np.any(large[:256] == member_normals(4, 0, 256, (2, 3)))
    assert abs(float(np.mean(large))) < 5 / math.sqrt(large.size)
    assert abs(float(np.var(large)) - 1.0) < 5 * math.sqrt(2 / large.size)


@pytest.mark.parametrize("factor, cap", [(4, 20), (8, 20), (4, 3), (1, 1000)])
def test_inner_steps_equal_the_literal_formula(factor, cap):
    assert [inner_steps(i, 80, factor, cap) for i in range(81)] == [paper.inner_steps(i, 80, factor, cap)
                                                                    for i in range(81)]


def test_inner_steps_of_the_released_settings():
    assert (inner_steps(5, 80), inner_steps(75, 80)) == (19, 2)
    assert (inner_steps(9, 80), inner_steps(71, 80)) == (18, 3)
    assert (inner_steps(1, 80, 8), inner_steps(79, 80, 8)) == (10, 1)


# ------------------------------------------------------------------------------------------------------- inner flow


def curved_denoiser(xp):
    """A denoiser without symmetry, row by row: D(x, s) = tanh(x)/(1 + s^2) + x/(2 + s)."""
    return lambda x, sigma: xp.tanh(x) / (1.0 + sigma * sigma) + x / (2.0 + sigma)


def curved_denoiser_of_one(x, sigma):
    return [math.tanh(v) / (1.0 + sigma * sigma) + v / (2.0 + sigma) for v in x]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 40.0])
def test_the_inner_flow_equals_the_literal_loop(backend, steps, sigma):
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    x = sigma * np.random.default_rng(1).standard_normal((4, 3))
    ours = flow_to_zero(backend.array(x, dtype), sigma, curved_denoiser(backend.xp), steps)
    literal = [paper.flow_to_zero(row, sigma, curved_denoiser_of_one, steps) for row in x.tolist()]
    np.testing.assert_allclose(backend.numpy(ours), literal, rtol=tolerance, atol=tolerance * np.max(np.abs(literal)))


def test_one_inner_step_is_the_denoiser_and_never_asks_for_a_grid(backend):
    x = backend.array(np.random.default_rng(2).standard_normal((4, 3)), "float32")
    denoise = curved_denoiser(backend.xp)
    assert np.array_equal(backend.numpy(flow_to_zero(x, 1.7, denoise, 1)), backend.numpy(denoise(x, 1.7)))
    below = flow_to_zero(x, 1e-3, denoise, 1)  # one step needs no sigma_eps
    assert np.array_equal(backend.numpy(below), backend.numpy(denoise(x, 1e-3)))


def test_the_inner_flow_at_zero_noise_is_the_identity():
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(flow_to_zero(x, 0.0, lambda x, sigma: 1 / 0, 5), x)


def test_the_inner_flow_has_order_one_on_the_exact_gaussian_flow():
    # prior N(0, c): D = c x/(c + s^2); the flow maps x at sigma to x sqrt(c/(c + sigma^2))
    c, sigma = np.array([0.3, 1.0, 4.0]), 5.0
    x = np.array([[2.0, -7.0, 3.0]])
    exact = x * np.sqrt(c / (c + sigma**2))
    steps = [40, 80, 160, 320, 640]
    errors = [float(np.max(np.abs(flow_to_zero(x, sigma, lambda x, s: c * x / (c + s * s), n, 1e-5) - exact)))
              for n in steps]
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert abs(ratios[-1] - 2.0) < 0.1 and errors[-1] < 0.02


def test_an_inner_grid_that_would_run_upwards_is_refused():
    with pytest.raises(ValueError, match="sigma_eps"):
        flow_to_zero(np.ones((2, 3)), 1e-3, lambda x, sigma: x, 4)


def test_a_noise_level_at_the_end_of_the_inner_grid_may_be_off_by_a_millionth():
    x = np.ones((2, 3))
    flow_to_zero(x, 0.002 * (1 - 0.7e-6), lambda x, sigma: x, 4)
    with pytest.raises(ValueError, match="sigma_eps"):
        flow_to_zero(x, 0.002 * (1 - 1.5e-6), lambda x, sigma: x, 4)


def test_a_numpy_scalar_sigma_keeps_float32():
    x = np.ones((2, 3), dtype=np.float32)
    sigmas = np.array(edm_sigmas(4))
    assert flow_to_zero(x, float(sigmas[1]), lambda x, s: x / (1.0 + s), 3).dtype == np.float32
    assert euler_step(x, x, float(sigmas[1]), float(sigmas[2])).dtype == np.float32


# -------------------------------------------------------------------------------------------------------- predictor


def test_the_predictor_equals_both_literal_forms(backend):
    dtype, tolerance = ("float64", 1e-14) if backend.float64 else ("float32", 1e-6)
    rng = np.random.default_rng(4)
    x, denoised = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    ours = backend.numpy(euler_step(backend.array(x, dtype), backend.array(denoised, dtype), 3.0, 0.7))
    for form in (paper.euler_step, paper.euler_step_convex):
        literal = [form(a, b, 3.0, 0.7) for a, b in zip(x.tolist(), denoised.tolist())]
        np.testing.assert_allclose(ours, literal, rtol=0.0, atol=10 * tolerance)


def test_the_last_predictor_step_returns_the_denoised_particle(backend):
    rng = np.random.default_rng(5)
    x, denoised = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    ours = euler_step(backend.array(x, "float32"), backend.array(denoised, "float32"), 0.002, 0.0)
    assert np.array_equal(backend.numpy(ours), denoised.astype("float32"))
