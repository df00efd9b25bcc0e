"""EnKG-R, the linear model: ridge regression and its leave-one-out errors, (E3) and (E4)."""

import numpy as np
import pytest
import regressed_equations as spec

from enkg_ref.enkg_r.regression import local_weights, ridge_regression

STRICTEST_EXTENSIONS = ("linalg",)


def _case(seed, n, r, m):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, r)) * rng.uniform(0.3, 3.0, r) + rng.standard_normal(r)
    y = x @ rng.standard_normal((r, m)) + 0.3 * rng.standard_normal((n, m)) + 5.0
    return x, y, rng.uniform(0.02, 1.0, n)


def _largest(x, q):
    centred = np.sqrt(q)[:, None] * (x - np.average(x, axis=0, weights=q))
    return np.linalg.svd(centred, compute_uv=False)[0] ** 2


@pytest.mark.parametrize("n,r", [(9, 4), (5, 8), (6, 6)])
def test_the_fit_equals_the_loops_on_every_backend_in_dual_and_primal_form(backend, n, r):
    x, y, q = _case(3, n, r, 3)
    dtype = "float64" if backend.float64 else "float32"
    fit = ridge_regression(*(backend.array(v, dtype) for v in (x, y, q)), ridges=(1e-2,))
    lam = 1e-2 * _largest(x, q)
    x_mean, y_mean, slope = spec.weighted_ridge(x.tolist(), y.tolist(), q.tolist(), lam)
    errors = np.asarray(spec.leave_one_out(x.tolist(), y.tolist(), q.tolist(), lam))
    tolerance = 1e-10 if backend.float64 else 2e-4
    for got, expected in ((fit.x_mean, x_mean), (fit.y_mean, y_mean), (fit.slope, slope),
                          (fit.errors, errors * np.sqrt(q / q.sum())[:, None])):
        np.testing.assert_allclose(np.reshape(backend.numpy(got), np.shape(expected)), expected, rtol=tolerance,
                                   atol=tolerance)


def test_far_evaluations_weigh_less_and_near_ones_keep_their_weight_on_every_backend(backend):
    rng = np.random.default_rng(6)
    current, q = rng.standard_normal((5, 4)), rng.uniform(0.1, 1.0, 12)
    x = np.concatenate([current, 3.0 * rng.standard_normal((7, 4))])
    dtype = "float64" if backend.float64 else "float32"
    got = backend.numpy(local_weights(*(backend.array(v, dtype) for v in (x, current, q)), 0.5))
    expected = spec.local_weights(x.tolist(), current.tolist(), q.tolist(), 0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-10 if backend.float64 else 1e-4, atol=1e-10)
    assert 0 < np.sum(got == q.astype(dtype)) < 12 and np.min(got / q) < 0.1


def test_a_local_model_of_a_curved_map_predicts_nearby_points_better():
    """y = x + x^2 at points up to 3 away from a cloud of radius .3 around 1: the local slope is 3, the global one 1."""
    rng = np.random.default_rng(7)
    current = 1.0 + 0.3 * rng.standard_normal((30, 1))
    x = np.concatenate([current, rng.uniform(-2.0, 4.0, (200, 1)) - 1.0])
    y = x + x**2
    slopes = [float(ridge_regression(x, y, local_weights(x, current, np.ones(230), c), ridges=(1e-8,)).slope[0, 0])
              for c in (0.0, 1.0)]
    assert abs(slopes[1] - 3.0) < 0.4 and abs(slopes[0] - 3.0) > 1.5


def test_a_model_of_scaled_inputs_predicts_the_same_from_unscaled_ones():
    x, y, q = _case(8, 12, 5, 3)
    scale = np.random.default_rng(9).uniform(0.1, 2.0, (1, 5))
    fit = ridge_regression(x * scale, y, q, ridges=(1e-3,))
    np.testing.assert_allclose(fit.unscaled(scale).predict(x), fit.predict(x * scale), rtol=1e-12)


def test_leave_one_out_errors_equal_refitting_without_the_row_in_60_random_cases():
    for seed in range(60):
        n, r, m = 4 + seed % 9, 1 + seed % 11, 1 + seed % 3
        x, y, q = _case(seed, n, r, m)
        ridge = 10.0 ** (-4 + seed % 5)
        fit = ridge_regression(x, y, q, ridges=(ridge,))
        refitted = spec.leave_one_out(x.tolist(), y.tolist(), q.tolist(), ridge * _largest(x, q))
        np.testing.assert_allclose(fit.errors / np.sqrt(q / q.sum())[:, None], refitted, rtol=1e-9, atol=1e-9)


def test_a_linear_map_is_found_exactly_from_more_points_than_inputs():
    rng = np.random.default_rng(0)
    H, x = rng.standard_normal((12, 7)), rng.standard_normal((30, 12))
    fit = ridge_regression(x, x @ H + 2.0, rng.uniform(0.1, 1.0, 30), ridges=(1e-13,))
    np.testing.assert_allclose(fit.slope, H, atol=1e-8)
    assert np.max(np.abs(fit.errors)) < 1e-8


def test_the_chosen_ridge_has_the_least_leave_one_out_error():
    x, y, q = _case(1, 14, 20, 5)
    y = y + 4.0 * np.random.default_rng(2).standard_normal(y.shape)
    ridges = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    errors = [np.sum(ridge_regression(x, y, q, ridges=(ridge,)).errors ** 2) for ridge in ridges]
    assert ridge_regression(x, y, q, ridges=ridges).ridge == ridges[int(np.argmin(errors))]


def test_a_sketch_of_many_outputs_chooses_a_ridge_whose_error_is_within_two_percent_of_the_best():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((60, 40)) / (1 + np.arange(40))
    y = x @ rng.standard_normal((40, 700)) + 0.1 * rng.standard_normal((60, 700))
    weight = np.ones(60)
    chosen = ridge_regression(x, y, weight)
    best = min(np.sum(ridge_regression(x, y, weight, ridges=(10.0 ** (p / 2),)).errors ** 2) for p in range(-10, 3))
    assert np.sum(chosen.errors**2) <= 1.02 * best


def test_single_precision_agrees_with_double_to_a_thousandth():
    for n, r in ((40, 25), (25, 40)):
        x, y, q = _case(4, n, r, 6)
        double = ridge_regression(x, y, q, ridges=(1e-3,))
        single = ridge_regression(*(v.astype("float32") for v in (x, y, q)), ridges=(1e-3,))
        assert single.slope.dtype == np.float32
        np.testing.assert_allclose(single.slope, double.slope, atol=1e-3 * np.abs(double.slope).max())
        np.testing.assert_allclose(single.errors, double.errors, atol=1e-3 * np.abs(double.errors).max())


def test_points_that_do_not_vary_give_a_zero_slope_and_the_spread_of_the_outputs_as_error():
    y = np.random.default_rng(0).standard_normal((8, 2))
    fit = ridge_regression(np.ones((8, 3)), y, np.ones(8))
    assert np.all(fit.slope == 0.0)
    np.testing.assert_allclose(fit.errors * np.sqrt(8), (y - y.mean(0)) * 8 / 7, rtol=1e-6)


def test_two_evaluations_are_refused():
    with pytest.raises(ValueError, match="got 2 finite evaluations, expected at least 3"):
        ridge_regression(np.ones((2, 3)), np.ones((2, 1)), np.ones(2))
