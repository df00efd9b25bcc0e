"""EnKG-R, the method: (E1)-(E6) against plain loops, the recursion (E8), invariances, resume, counts, settings."""

import dataclasses
import math

import numpy as np
import pytest
import regressed_equations as spec
from regressed_problems import TABLE, exact_method, lg6, set_up_b

from enkg_ref import Closures, Gaussian, iterate, member_normals, solve, step
from enkg_ref.enkg_r import method as module
from enkg_ref.enkg_r.method import (
    Config,
    EnKGR,
    condition,
    condition_by_factors,
    diagonal,
    factored_noise,
    hold_above_4,
    isotropic,
    model_noise,
    twice_the_median,
)
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.enkg_r.rule import settings_by_rule

STRICTEST_EXTENSIONS = ("linalg",)


# ------------------------------------------------------------ the equations
def test_one_level_equals_the_loops_on_every_backend(backend):
    """(E1)-(E6) from start noise to new particles; the history has the level's own rows, hence n < d: dual form."""
    J, d, m, s = 5, 6, 3, 0.7
    rng = np.random.default_rng(0)
    variances, gamma = 1.0 / (1.0 + np.arange(d)) ** 2, np.array([0.3, 0.5, 0.2])
    modes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    mean, A, y = rng.standard_normal(d), rng.standard_normal((d, m)), rng.standard_normal(m)
    noise = rng.standard_normal((J, d))
    reference = Reference(mean, modes, variances)
    config = Config(particles=J, levels=3, sigma_start=s, sigma_end=0.1, model_noise=0.4, seed=9)
    dtype = "float64" if backend.float64 else "float32"

    def denoise(x, sigma):
        return 0.5 * x

    def forward(x):
        return backend.xp.matmul(x, backend.array(A, dtype)) + 0.2 * x[:, :m] * x[:, :m]

    method = EnKGR(denoise, Gaussian(y, gamma), reference, config)
    state = method.init(backend.array(noise, dtype))
    new, info = method.tell(state, forward(method.ask(state)))

    # the same in loops; the random numbers come from the documented streams
    x0 = [spec.start(mean, modes.T.tolist(), variances.tolist(), row) for row in noise.tolist()]
    eps = member_normals(9, 1 + 2, J, (d,))
    D = [[0.5 * (x0[j][i] + s * eps[j, i]) for i in range(d)] for j in range(J)]
    g = [[sum(D[j][i] * A[i, b] for i in range(d)) + 0.2 * D[j][b] ** 2 for b in range(m)] for j in range(J)]
    whitened = [[(g[j][b] - y[b]) / gamma[b] for b in range(m)] for j in range(J)]
    metric = [(variances[k] / variances[0]) ** 0.25 for k in range(d)]
    rows = [[spec.dot(modes[:, k], D[j]) * metric[k] for k in range(d)] for j in range(J)]
    q = spec.local_weights(rows, rows, [1.0] * J, 1.0)
    centred = np.sqrt(q)[:, None] * (rows - np.average(rows, axis=0, weights=q))
    lam = info.ridge * np.linalg.svd(centred, compute_uv=False)[0] ** 2
    scaled = spec.weighted_ridge(rows, whitened, q, lam)[2]
    slope = modes @ (np.asarray(metric)[:, None] * scaled)
    loo = spec.leave_one_out(rows, whitened, q, lam)
    R = spec.model_noise(loo, q, 0.4)
    c = spec.conditional_variances(variances.tolist(), [1.0] * d, s)
    zeta = [spec.combine(modes.T.tolist(), [math.sqrt(c[k]) * spec.dot(modes[:, k], row) for k in range(d)])
            for row in member_normals(9, 1, J, (d,))]
    xi = member_normals(9, 1 + 1, J, (m + J,))
    S_trace = sum(q[i] * loo[i][b] ** 2 for i in range(J) for b in range(m)) / sum(q)
    e = [[xi[j, b] * math.sqrt(1 + 0.3 * 0.4 * S_trace / m)
          + sum(math.sqrt(0.7 * 0.4 * q[i] / sum(q)) * loo[i][b] * xi[j, m + i] for i in range(J)) for b in range(m)]
         for j in range(J)]
    e = np.asarray(e) - np.mean(e, axis=0)
    unit = np.eye(m).tolist()
    expected = [spec.conditional_update(D[j], zeta[j], whitened[j], e[j], [0.0] * m, modes.T.tolist(), c,
                                        slope.tolist(), unit, R) for j in range(J)]
    assert min(q) < 0.9 and info.noise_ratio > 0
    tolerance = 1e-10 if backend.float64 else 2e-4
    np.testing.assert_allclose(backend.numpy(method.ask(state)), D, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(backend.numpy(new.x), expected, rtol=tolerance, atol=tolerance)
    assert math.isclose(info.noise_ratio, sum(R[b][b] for b in range(m)) / m, rel_tol=max(tolerance, 1e-9))
    assert str(new.x.dtype).endswith(dtype) and new.x.shape == (J, d)


def test_a_whole_run_gives_the_same_particles_on_every_backend(backend):
    """Four levels with forgetting, outliers, a failed row and holding, beside numpy in float64."""
    variances, H, _, y, _ = set_up_b(5, 12, 6)
    config = Config(particles=8, levels=4, sigma_start=1.0, sigma_end=0.1, memory=0.5, model_noise=0.5,
                    outliers=twice_the_median, hold=hold_above_4, seed=2)
    noise = member_normals(2, 0, 8, (12,))

    def run(xp, array):
        forward_matrix, broken = array(H.T), array(np.where(np.arange(8) == 3, np.nan, 0.0)[:, None])

        def denoise(x, s):
            return x * array((variances / (variances + s * s))[None, :])

        method = EnKGR(denoise, Gaussian(y, 0.5), Reference(np.zeros(12), np.eye(12), variances), config)
        return iterate(method, lambda x: xp.matmul(x, forward_matrix) + broken, method.init(array(noise)))

    dtype = "float64" if backend.float64 else "float32"
    expected = list(run(np, np.asarray))
    got = list(run(backend.xp, lambda host: backend.array(host, dtype)))
    tolerance = 1e-9 if backend.float64 else 1e-3
    np.testing.assert_allclose(backend.numpy(got[-1][0].x), expected[-1][0].x, rtol=tolerance, atol=tolerance)
    for (_, info), (_, other) in zip(got, expected):
        assert (info.replaced, info.failed_rows, info.held, info.evaluations) == (
            other.replaced, other.failed_rows, other.held, other.evaluations)
        assert math.isclose(info.kappa, other.kappa, rel_tol=tolerance * 10)


def test_whitening_gives_the_update_in_the_units_of_the_data():
    """(E6) with Gamma and R in data units equals the whitened form, for a dense Gamma."""
    rng = np.random.default_rng(4)
    J, d, m = 4, 5, 3
    root = rng.standard_normal((m, m)) + 2 * np.eye(m)
    gamma, y = root @ root.T, rng.standard_normal(m)
    likelihood = Gaussian(y, gamma)
    modes, c = np.linalg.qr(rng.standard_normal((d, d)))[0], rng.uniform(0.1, 1.0, d)
    slope, D, g = rng.standard_normal((d, m)), rng.standard_normal((J, d)), rng.standard_normal((J, m))
    zeta, e, factor = rng.standard_normal((J, d)), rng.standard_normal((J, m)), rng.standard_normal((m, m))
    increment = condition(likelihood.whiten(g - y), zeta @ modes, likelihood.whiten(e),
                             likelihood.whiten(modes.T @ slope), c[:, None],
                             likelihood.whiten(likelihood.whiten(factor @ factor.T).T))
    got = D + zeta + increment @ modes.T
    for j in range(J):
        expected = spec.conditional_update(D[j].tolist(), zeta[j].tolist(), g[j].tolist(), e[j].tolist(), y.tolist(),
                                           modes.T.tolist(), c.tolist(), slope.tolist(), gamma.tolist(),
                                           (factor @ factor.T).tolist())
        np.testing.assert_allclose(got[j], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shrink_to", [isotropic, diagonal])
def test_the_model_noise_equals_the_loops_and_its_draws_have_covariance_one_plus_r(shrink_to):
    rng = np.random.default_rng(1)
    n, m, J = 7, 3, 200_000
    loo, q = rng.standard_normal((n, m)) * np.array([1.0, 3.0, 0.2]), rng.uniform(0.1, 1.0, n)
    errors = loo * np.sqrt(q / q.sum())[:, None]
    R, e = model_noise(errors, rng.standard_normal((J, m + n)), 0.6, shrink_to)
    np.testing.assert_allclose(R, spec.model_noise(loo.tolist(), q.tolist(), 0.6, shrink_to.__name__), rtol=1e-12)
    expected = R + np.eye(m)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) + expected**2)
    assert np.all(np.abs(e.T @ e / J - expected) < 4 * scale / math.sqrt(J))
    assert np.all(np.abs(e.mean(axis=0)) < 1e-12)


def test_without_noise_an_invertible_linear_model_is_fitted_exactly():
    """(E6) with Gamma -> 0, R = 0, e = 0: G(x0) = y. In whitened units the slope is then very large."""
    rng = np.random.default_rng(2)
    d = 4
    H, y, tiny = rng.standard_normal((d, d)) + 3 * np.eye(d), rng.standard_normal(d), 1e-9
    D, zeta = rng.standard_normal((6, d)), rng.standard_normal((6, d))
    increment = condition((D @ H.T - y) / tiny, zeta, np.zeros((6, d)), H.T / tiny, np.full((d, 1), 0.5),
                             np.zeros((d, d)))
    np.testing.assert_allclose((D + zeta + increment) @ H.T, np.tile(y, (6, 1)), atol=1e-10)


# ------------------------------------------------------------ exactness: (E7), (E8)
def _recursion(sigmas, mean, P):
    """(E8) Mean and covariance of the particles after the levels, exact H, R = 0, from N(mean, P)."""
    mu, Sigma, H, y, sd, _, _ = lg6()
    for s in sigmas:
        shrink = Sigma @ np.linalg.inv(Sigma + s * s * np.eye(6))
        C = s * s * shrink
        K = C @ H.T @ np.linalg.inv(H @ C @ H.T + sd**2 * np.eye(3))
        A = np.eye(6) - K @ H
        mean = A @ (mu + shrink @ (mean - mu)) + K @ y
        P = A @ shrink @ (P + s * s * np.eye(6)) @ shrink.T @ A.T + A @ C @ A.T + sd**2 * K @ K.T
    return mean, P


@pytest.mark.parametrize("sigmas,of_mean,of_covariance", [
    ([3.0], 4.4358e-3, 6.705e-5), ([1.0], 3.5510e-2, 4.295e-3), ([0.3], 0.18407, 0.11520),
    (np.geomspace(3, 0.05, 10), 4.2693e-6, 6.503e-11), (np.geomspace(1, 0.1, 10), 7.5594e-4, 2.0684e-6)])
def test_the_recursion_has_the_tabulated_errors_and_the_posterior_as_its_fixed_point(sigmas, of_mean, of_covariance):
    mu, Sigma, _, _, _, m_p, S_p = lg6()
    mean, P = _recursion(sigmas, mu, Sigma)
    # half a unit of the last printed digit, or rounding
    assert abs(np.abs(mean - m_p).max() - of_mean) < 0.6 * 10 ** (math.floor(math.log10(of_mean)) - 4)
    assert abs(np.abs(P - S_p).max() - of_covariance) < max(6e-4 * of_covariance, 1e-15)
    mean, P = _recursion(sigmas, m_p, S_p)
    np.testing.assert_allclose(mean, m_p, atol=1e-14)
    np.testing.assert_allclose(P, S_p, atol=1e-14)


@pytest.mark.parametrize("sigmas", [np.geomspace(3.0, 0.05, 5), np.array([0.3, 0.3])])
def test_the_code_with_the_exact_slope_follows_the_recursion_within_four_standard_errors(monkeypatch, sigmas):
    J = 100_000
    monkeypatch.setattr(module, "member_normals",
                        lambda seed, stream, rows, shape: np.random.default_rng([seed, stream]).standard_normal(
                            (rows, *shape)))
    config = Config(particles=J, levels=len(sigmas), sigma_start=sigmas[0], sigma_end=sigmas[-1], noise_floor=0.0,
                    hold=None, seed=3)
    method, forward = exact_method(config)
    state = solve(method, forward, np.random.default_rng(5).standard_normal((J, 6)))
    mean, P = _recursion(sigmas, *lg6()[:2])
    assert np.all(np.abs(state.x.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(P) / J))
    scale = np.sqrt(np.outer(np.diag(P), np.diag(P)) + P**2)
    assert np.all(np.abs(np.cov(state.x.T) - P) < 4 * scale / math.sqrt(J))


# ------------------------------------------------------------ protocol and invariances
def test_a_run_resumed_at_any_level_from_saved_arrays_is_bit_identical(tmp_path):
    variances, H, _, y, _ = set_up_b(3, 40, 8)
    config = dataclasses.replace(TABLE, particles=12, levels=5, memory=0.6, outliers=twice_the_median)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5),
                   Reference(np.zeros(40), np.eye(40), variances), config)
    state = method.init(member_normals(3, 0, 12, (40,)))
    final = solve(method, lambda x: x @ H.T, member_normals(3, 0, 12, (40,)))
    states = [state] + [state for state, _ in iterate(method, lambda x: x @ H.T, state)]
    for number, state in enumerate(states):
        fields = dataclasses.asdict(state)
        assert all(isinstance(value, np.ndarray | int | float) for value in fields.values())
        np.savez(tmp_path / f"{number}.npz", **fields)
        with np.load(tmp_path / f"{number}.npz") as file:
            resumed = module.State(**{name: file[name] if file[name].ndim else file[name].item() for name in fields})
        while not method.done(resumed):
            resumed, _ = step(method, resumed, lambda x: x @ H.T)
        for name, value in dataclasses.asdict(final).items():
            np.testing.assert_array_equal(getattr(resumed, name), value)


def test_a_run_of_l_levels_costs_l_waves_of_each_call():
    variances, H, _, y, _ = set_up_b(4, 20, 5)
    rows = {"forward": [], "denoiser": []}

    def denoise(x, s):
        rows["denoiser"].append(len(x))
        return x * (variances / (variances + s * s))

    def forward(x):
        rows["forward"].append(len(x))
        return x @ H.T

    config = dataclasses.replace(TABLE, particles=7, levels=6)
    method = EnKGR(denoise, Gaussian(y, 0.5), Reference(np.zeros(20), np.eye(20), variances), config)
    state = solve(method, forward, member_normals(0, 0, 7, (20,)))
    assert rows == {"forward": [7] * 6, "denoiser": [7] * 6}
    assert (state.forward_calls, state.denoiser_calls) == (6, 6) == tuple(config.counts().values())
    assert method.ACCESS == {"forward", "denoiser"}


def test_the_update_does_not_depend_on_order_origin_basis_or_units():
    """Permutation of particles, translation and rotation of the observations, units: 1e-9."""
    rng = np.random.default_rng(0)
    J, d, m, n = 6, 9, 4, 15
    x, y_history, q = rng.standard_normal((n, d)), rng.standard_normal((n, m)), rng.uniform(0.1, 1, n)
    y_history = y_history + 2.0 * x[:, :m]
    D, zeta = rng.standard_normal((J, d)), rng.standard_normal((J, d))
    g, xi, c = rng.standard_normal((J, m)), rng.standard_normal((J, n)), rng.uniform(0.1, 1, (d, 1))

    def update(likelihood, history, g, white, D=D, zeta=zeta, xi=xi, x=x):
        fit = module.ridge_regression(x, likelihood.whiten(likelihood.difference(history)), q)
        R, e = model_noise(fit.errors, np.concatenate([white, xi], axis=1), 0.5, isotropic)
        increment = condition(likelihood.whiten(likelihood.difference(g)), zeta, e, fit.slope, c, R)
        return D + zeta + increment

    y, white = rng.standard_normal(m), rng.standard_normal((J, m))
    base = update(Gaussian(y, 0.7), y_history, g, white)
    order, rotation = rng.permutation(J), np.linalg.qr(rng.standard_normal((m, m)))[0]
    near = dict(rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        update(Gaussian(y, 0.7), y_history, g[order], white[order], D[order], zeta[order], xi[order]), base[order],
        **near)
    np.testing.assert_allclose(update(Gaussian(y + 3, 0.7), y_history + 3, g + 3, white), base, **near)
    np.testing.assert_allclose(update(Gaussian(y, 0.7), y_history, g, white, x=x + 5.0), base, **near)
    np.testing.assert_allclose(
        update(Gaussian(rotation @ y, 0.7), y_history @ rotation.T, g @ rotation.T, white @ rotation.T), base, **near)
    np.testing.assert_allclose(update(Gaussian(40 * y, 28.0), 40 * y_history, 40 * g, white), base, **near)


def test_whole_turns_of_a_phase_change_nothing():
    rng = np.random.default_rng(0)
    variances, H = 1.0 / (1.0 + np.arange(10)), rng.standard_normal((4, 10))
    likelihood = Closures(rng.standard_normal(4), np.full(4, 0.2), [True, True, False, False])
    config = Config(particles=8, levels=4, sigma_start=1.0, sigma_end=0.1, shrink_to=diagonal)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), likelihood,
                   Reference(np.zeros(10), np.eye(10), variances), config)
    noise = member_normals(0, 0, 8, (10,))
    turns = 2 * np.pi * np.array([3.0, -1.0, 0.0, 0.0])
    plain, turned = (solve(method, lambda x, t=t: x @ H.T + t, noise).x for t in (0.0, turns))
    np.testing.assert_allclose(turned, plain, atol=1e-9)


def test_single_precision_gives_the_particles_of_double_precision():
    variances, H, _, y, _ = set_up_b(0, 64, 16)
    config = dataclasses.replace(TABLE, levels=3)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)).astype(x.dtype), Gaussian(y, 0.5),
                   Reference(np.zeros(64), np.eye(64), variances), config)
    noise = member_normals(0, 0, 32, (64,))
    double, single = (solve(method, lambda x: x @ H.T.astype(x.dtype), noise.astype(t)).x for t in ("f8", "f4"))
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 2e-2 * np.abs(double).max()


# ------------------------------------------------------------ settings and bad input
def test_the_rule_scales_with_the_prior_and_spends_the_budget():
    variances = 1.0 / (1.0 + np.arange(200) / 20.0) ** 2
    reference = Reference(np.zeros(200), np.eye(200), variances)
    likelihood = Gaussian(np.zeros(5), 1.0)
    for budget, J in ((500, 16), (1500, 32), (5000, 64)):
        config = settings_by_rule(reference, likelihood, budget)
        assert config.particles == J and budget - J < J * config.levels <= budget
        larger = settings_by_rule(Reference(np.zeros(200), np.eye(200), 4 * variances), likelihood, budget)
        assert math.isclose(larger.sigma_start, 2 * config.sigma_start)
        assert math.isclose(larger.sigma_end, 2 * config.sigma_end) and larger.memory == config.memory
        renewed = 1.0 / (1.0 - config.memory)  # levels until the evaluations of the regression are new ones
        assert math.isclose(config.steepest**renewed, 0.4)
    closures = Closures(np.zeros(5), np.ones(5), [True] * 5)
    assert settings_by_rule(reference, closures, 1500).shrink_to is diagonal
    one_mode = Reference(np.zeros(200), np.eye(200), np.where(np.arange(200) == 0, 100.0, 1e-6))
    leading, few, most = 0.6 * 10.0, 3.0 * one_mode.std, 0.15 * one_mode.std * 0.4 ** (-0.5 * 500 / 100)
    starts = [settings_by_rule(one_mode, *of).sigma_start for of in (
        (closures, 100), (likelihood, 1500), (likelihood, 500), (likelihood, 100))]
    assert few < leading and most < few
    np.testing.assert_allclose(starts, [leading, leading, few, few], rtol=1e-3)  # 100 evaluations in the regression
    with pytest.raises(ValueError, match="budget: got 63 forward calls, expected at least 64"):
        settings_by_rule(reference, likelihood, 63)


@pytest.mark.parametrize("change,message", [
    ({"particles": 2}, "particles: got 2"), ({"levels": 0}, "levels: got 0"), ({"memory": 0.0}, "memory: got 0.0"),
    ({"sigma_end": 5.0}, "sigma_start, sigma_end"), ({"steepest": 1.5}, "steepest: got 1.5"),
    ({"model_noise": -1.0}, "model_noise: got -1.0")])
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TABLE, **change)


def test_wrong_shapes_and_a_denoiser_that_returns_nan_are_refused():
    method, _ = exact_method(dataclasses.replace(TABLE, particles=4))
    with pytest.raises(ValueError, match="noise: got shape"):
        method.init(np.zeros((5, 6)))
    state = method.init(member_normals(0, 0, 4, (6,)))
    with pytest.raises(ValueError, match=r"forward: got an output of shape \(4, 2\), expected \(4, 3\)"):
        method.tell(state, np.zeros((4, 2)))
    with pytest.raises(FloatingPointError, match="denoise: got a non-finite output at level 0"):
        dataclasses.replace(method, denoise=lambda x, s: x * np.nan).init(member_normals(0, 0, 4, (6,)))


@pytest.mark.parametrize("shrink_to", [isotropic, diagonal])
def test_that_the_factored_form_for_many_data_is_the_dense_one(shrink_to):
    rng, J, n, m, r = np.random.default_rng(0), 5, 7, 40, 6
    errors, xi, slope = rng.standard_normal((n, m)) / 3, rng.standard_normal((J, m + n)), rng.standard_normal((r, m))
    d, zeta, variances = rng.standard_normal((J, m)), rng.standard_normal((J, r)), rng.uniform(0.1, 2.0, (r, 1))
    R, e = model_noise(errors, xi, 0.6, shrink_to)
    target, factor, other = factored_noise(errors, xi, 0.6, shrink_to)
    np.testing.assert_allclose(factor.T @ factor + np.diag(target), R, atol=1e-12)
    np.testing.assert_allclose(other, e, atol=1e-12)
    np.testing.assert_allclose(condition_by_factors(d, zeta, e, slope, variances, target, factor),
                               condition(d, zeta, e, slope, variances, R), atol=1e-12)
