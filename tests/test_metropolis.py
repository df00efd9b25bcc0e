"""(X1)-(X5): the moves equal their plain loops and leave exact posteriors where they are."""

import math

import numpy as np
import pytest
import tail_equations as spec

from enkg_ref import metropolis
from onnx_priors.gaussian import GaussianPrior
from onnx_priors.mixture import MixturePrior

MIXTURE = MixturePrior([0.4, 0.35, 0.25], [[-2.0], [0.5], [2.0]], np.array([0.15, 0.3, 0.1]))


def _mixture_draw(rng, x_s, s):
    """An exact draw of p(x0 | x_s) of MIXTURE, x_s (n,)."""
    w, mu, v = np.array([0.4, 0.35, 0.25]), np.array([-2.0, 0.5, 2.0]), np.array([0.15, 0.3, 0.1])
    log_r = np.log(w) - 0.5 * np.log(v + s * s) - 0.5 * (x_s[:, None] - mu) ** 2 / (v + s * s)
    r = np.exp(log_r - log_r.max(axis=1, keepdims=True))
    r /= r.sum(axis=1, keepdims=True)
    k = (rng.random((len(x_s), 1)) > np.cumsum(r, axis=1)).sum(axis=1).clip(max=2)
    gain = v[k] / (v[k] + s * s)
    return mu[k] + gain * (x_s - mu[k]) + np.sqrt(gain) * s * rng.standard_normal(len(x_s))


def _density(grid):
    w, mu, v = np.array([0.4, 0.35, 0.25]), np.array([-2.0, 0.5, 2.0]), np.array([0.15, 0.3, 0.1])
    return np.sum(w / np.sqrt(2 * np.pi * v) * np.exp(-0.5 * (grid[:, None] - mu) ** 2 / v), axis=1)


@pytest.mark.parametrize("order", [1, 2])
def test_the_ancestral_draw_equals_the_loops_on_every_backend(backend, order):
    rng = np.random.default_rng(1)
    levels, event = (1.5, 0.9, 0.3, 0.2), (2, 2)  # not geometric
    x, stock = rng.standard_normal((3, *event)), rng.standard_normal((4, 3, *event))
    dtype = "float64" if backend.float64 else "float32"
    used = iter(range(4))
    got = metropolis.ancestral_draw(backend.array(x, dtype), levels, lambda x, a: x / (1.0 + a * a),
                                    lambda: backend.array(stock[next(used)], dtype),
                                    lambda noise, a: 0.3 * a * noise, order)
    for row in range(3):
        expected = spec.ancestral_draw(
            x[row].ravel().tolist(), levels, lambda x, a: [v / (1.0 + a * a) for v in x],
            [stock[i, row].ravel().tolist() for i in range(3)], (0.3 * 0.2 * stock[3, row]).ravel().tolist(), order)
        tolerance = 1e-12 if backend.float64 else 1e-5
        np.testing.assert_allclose(backend.numpy(got)[row].ravel(), expected, rtol=tolerance, atol=tolerance)


def test_ratio_and_choice_equal_the_loops_on_every_backend(backend):
    rng = np.random.default_rng(2)
    dtype = "float64" if backend.float64 else "float32"
    x_s, x, nu, x_new, nu_new = rng.standard_normal((5, 4, 3))
    got = metropolis.noising_log_ratio(*(backend.array(v, dtype) for v in (x_s, x, nu, x_new, nu_new)), 0.7)
    expected = [spec.noising_log_ratio(*(v[j].tolist() for v in (x_s, x, nu, x_new, nu_new)), 0.7) for j in range(4)]
    np.testing.assert_allclose(backend.numpy(got), expected, rtol=1e-11 if backend.float64 else 1e-4)
    weights, uniforms = rng.standard_normal((20, 5)), rng.uniform(size=(20, 5))
    got = backend.numpy(metropolis.choose(backend.array(weights, dtype), uniforms))
    assert got.argmax(axis=1).tolist() == [spec.chosen(w, u) for w, u in zip(weights.tolist(), uniforms.tolist())]
    assert np.all(got.sum(axis=1) == 1) and set(np.unique(got)) <= {0.0, 1.0}


def test_a_point_is_chosen_as_often_as_its_weight_says():
    weights = np.log([0.1, 0.2, 0.7])
    uniforms = np.random.default_rng(3).uniform(size=(60_000, 3))
    counts = metropolis.choose(np.broadcast_to(weights, uniforms.shape), uniforms).mean(axis=0)
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.7], atol=4 * 0.5 / math.sqrt(60_000))


def variance_of_the_draw(v, levels, order):
    """Variance of x0 given x_s of the prior N(0, v): the chain is linear, (x, D_before) has a 2 x 2 covariance."""
    P, last, before = np.zeros((2, 2)), 1.0, False
    for a, b in zip(levels, levels[1:]):
        g, k, h = v / (v + a * a), (b / a) ** 2, math.log(a / b)
        c = h / (2 * last) if order == 2 and before else 0.0
        A = np.array([[k + (1 - k) * g * (1 + c), -(1 - k) * c], [g, 0.0]])
        P = A @ P @ A.T
        P[0, 0] += b * b * (1 - k)
        last, before = h, True
    g = v / (v + levels[-1] ** 2)
    return g * g * P[0, 0] + v * levels[-1] ** 2 / (v + levels[-1] ** 2)  # with what D leaves open at the end


@pytest.mark.parametrize("order", [1, 2])
def test_the_variance_of_a_draw_follows_its_recursion(order):
    v, s, n = 0.8, 1.5, 20_000
    levels = metropolis.ancestral_levels(s, 8)
    rng = np.random.default_rng(5)
    prior = GaussianPrior(np.zeros(1), np.array([v]))
    drawn = metropolis.ancestral_draw(
        np.ones((n, 1)), levels, prior.denoise, lambda: rng.standard_normal((n, 1)),
        lambda noise, a: math.sqrt(v * a * a / (v + a * a)) * noise, order)
    assert drawn.var() == pytest.approx(variance_of_the_draw(v, levels, order), rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize("order, ratio", [(1, 2.0), (2, 4.0)])
def test_the_error_of_a_draw_falls_with_its_order_in_the_number_of_calls(order, ratio):
    """Twice the steps: half the error at order 1, a quarter or less at order 2; with 12 calls 5 % at most, where
    order 1 is off by 15 % and more."""
    for v in (0.3, 1.0):
        for s in (0.5, 2.0):
            exact = v * s * s / (v + s * s)
            errors = [abs(variance_of_the_draw(v, metropolis.ancestral_levels(s, n + 1), order) - exact)
                      for n in (64, 128)]
            assert errors[0] / errors[1] > 0.85 * ratio
            if order == 2:
                assert abs(variance_of_the_draw(v, metropolis.ancestral_levels(s, 12), 2) / exact - 1) < 0.05
            else:
                assert variance_of_the_draw(v, metropolis.ancestral_levels(s, 12), 1) / exact < 0.85


def test_without_data_the_prior_stays_a_mixture_of_the_same_modes():
    """60 moves of 1,500 chains with 8 calls a draw: weights to 4 standard errors, variances within a mode to 12 %."""
    rng, n = np.random.default_rng(9), 1_500
    x = MIXTURE.sample(rng, n)
    for _ in range(60):
        s = 1.6 * 0.05 * 60 ** rng.random()
        x = metropolis.ancestral_draw(
            x + s * rng.standard_normal((n, 1)), metropolis.ancestral_levels(s, 8), MIXTURE.denoise,
            lambda: rng.standard_normal((n, 1)), lambda noise, a: math.sqrt(0.2 * a * a / (0.2 + a * a)) * noise)
    exact = MIXTURE.sample(rng, 100_000)
    for low, high in ((-9, -0.9), (-0.9, 1.45), (1.45, 9)):
        ours, theirs = (v[(v >= low) & (v < high)] for v in (x, exact))
        weight = len(theirs) / 100_000
        assert abs(len(ours) / n - weight) < 4 * math.sqrt(weight * (1 - weight) / n)
        assert ours.var() == pytest.approx(theirs.var(), rel=0.12 + 4 * math.sqrt(2 / len(ours)) * 0.5)


def test_the_move_with_an_exact_draw_is_in_detailed_balance_on_a_grid():
    grid = np.linspace(-4.5, 4.5, 361)
    prior = _density(grid)
    likelihood = np.exp(-0.5 * (np.tanh(grid) - 0.4) ** 2 / 0.2**2)
    s = 0.9
    noising = np.exp(-0.5 * (grid[:, None] - grid[None, :]) ** 2 / s**2)  # x0 -> x_s, up to a constant
    marginal = prior @ noising
    step = noising @ (noising * prior[:, None] / marginal[None, :]).T  # x0 -> x_s -> x0', rows x0
    step /= noising[180].sum()
    with np.errstate(divide="ignore"):
        ratio = np.log(likelihood)[None, :] - np.log(likelihood)[:, None]
    flux = (prior * likelihood)[:, None] * step * np.minimum(1.0, np.exp(np.minimum(ratio, 0.0)))
    np.testing.assert_allclose(flux, flux.T, rtol=1e-9, atol=1e-14 * flux.max())


@pytest.mark.parametrize("kind", ["X1", "X2", "X4", "X5"])
def test_the_posterior_of_a_mixture_stays_where_it_is_and_its_modes_keep_their_weights(kind):
    """10^5 chain steps from exact draws, with exact draws of p(x0 | x_s): no drift beyond the Monte-Carlo error."""
    rng = np.random.default_rng(6)
    J, steps = 2_000, 50
    grid = np.linspace(-5, 5, 4001)

    def log_l(x):
        return -0.5 * (0.5 * x * x - 1.2) ** 2 / 0.5**2

    density = _density(grid) * np.exp(log_l(grid))
    x = rng.choice(grid, J, p=density / density.sum()) + rng.uniform(-1, 1, J) * 0.00125
    start = x.copy()
    means = []
    for _ in range(steps):
        s = 0.2 * 15 ** rng.random()
        if kind in ("X1", "X2"):
            nu = 0.4 * s * np.tanh(x) if kind == "X2" else 0.0 * x
            x_s = x + nu + s * rng.standard_normal(J)
            new = _mixture_draw(rng, x_s, s)
            nu_new = 0.4 * s * np.tanh(new) if kind == "X2" else 0.0 * x
            ratio = metropolis.noising_log_ratio(*(v[:, None] for v in (x_s, x, nu, new, nu_new)), s)
            x = np.where(metropolis.accept(log_l(new) - log_l(x) + ratio, rng.random(J)), new, x)
        else:
            rough = log_l if kind == "X4" else (lambda x: 0.5 * log_l(x) - 0.3 * np.sin(3 * x))
            here, weight = x, rough(x)
            for _ in range(1 if kind == "X4" else 3):
                x_s = here + s * rng.standard_normal(J)
                points = np.stack([here, *[_mixture_draw(rng, x_s, s) for _ in range(4)]], axis=1)
                weights = np.stack([rough(p) for p in points.T], axis=1)
                pick = metropolis.choose(weights, rng.random((J, 5)))
                here, weight = np.sum(points * pick, axis=1), np.sum(weights * pick, axis=1)
                s = 0.2 * 15 ** rng.random()
            ratio = log_l(here) - log_l(x) - (weight - rough(x))
            x = np.where(metropolis.accept(ratio, rng.random(J)), here, x) if kind == "X5" else here
        means.append(x.mean())
    assert np.mean(x != start) > 0.95  # every chain has moved
    exact_mean = np.sum(grid * density) / density.sum()
    exact_sd = math.sqrt(np.sum((grid - exact_mean) ** 2 * density) / density.sum())
    assert abs(x.mean() - exact_mean) < 4 * exact_sd / math.sqrt(J)
    for low, high in ((-5, 0), (0, 1.5), (1.5, 5)):
        weight = density[(grid >= low) & (grid < high)].sum() / density.sum()
        share = np.mean((x >= low) & (x < high))
        assert abs(share - weight) < 4 * math.sqrt(weight * (1 - weight) / J) + 1e-3


def test_without_the_correction_of_the_surrogate_the_posterior_drifts():
    """The same moves on a wrong surrogate alone: what the acceptance of (X5) is needed for."""
    rng = np.random.default_rng(7)
    J = 2_000
    x = rng.standard_normal(J)  # posterior N(0, 1/2) of the prior N(0, 1) with log L = -x^2/2; start elsewhere
    for corrected, variance in ((False, 1 / (1 + 3)), (True, 1 / 2)):
        for _ in range(60):
            s = 0.8
            new = x
            for _ in range(3):
                x_s = new + s * rng.standard_normal(J)
                gain = 1 / (1 + s * s)
                proposal = gain * x_s + math.sqrt(gain) * s * rng.standard_normal(J)
                new = np.where(metropolis.accept(-1.5 * (proposal**2 - new**2), rng.random(J)), proposal, new)
            ratio = -0.5 * (new**2 - x**2) + 1.5 * (new**2 - x**2)
            x = np.where(metropolis.accept(ratio, rng.random(J)), new, x) if corrected else new
        assert x.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / J))


def test_r_hat_equals_the_loops_and_tells_chains_that_mix_from_chains_that_do_not():
    rng = np.random.default_rng(8)
    chains = rng.standard_normal((10, 6, 2))
    for k in range(2):
        assert metropolis.potential_scale(chains)[k] == pytest.approx(
            spec.potential_scale(chains[:, :, k].tolist()), rel=1e-12)
    chains = rng.standard_normal((12, 40, 1))
    assert abs(metropolis.potential_scale(chains)[0] - 1.0) < 0.05
    assert metropolis.effective_size(chains)[0] > 200
    stuck = 0.2 * chains + 3.0 * rng.standard_normal((1, 40, 1))
    assert metropolis.potential_scale(stuck)[0] > 5
    assert metropolis.effective_size(stuck)[0] < 1.2 * 40  # one draw a chain


def test_a_chain_draws_its_own_numbers_whatever_the_others():
    few, many = metropolis.Streams(3, 7, 2), metropolis.Streams(3, 7, 5)
    for _ in range(2):
        np.testing.assert_array_equal(few.normals((2, 2), np.zeros(1)), many.normals((2, 2), np.zeros(1))[:2])
        np.testing.assert_array_equal(few.uniforms((3,)), many.uniforms((3,))[:2])
