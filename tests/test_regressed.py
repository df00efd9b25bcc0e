"""EnKG-R, the method: (E1)-(E6) against plain loops, the recursion (E8), calibration, failures, resume, counts."""

import dataclasses
import math

import numpy as np
import pytest
import regressed_equations as spec

from enkg_ref import Closures, Gaussian, iterate, member_normals, solve, step
from enkg_ref.enkg_r import method as module
from enkg_ref.enkg_r.method import (
    Config,
    EnKGR,
    condition,
    diagonal,
    hold_above_4,
    isotropic,
    model_noise,
    twice_the_median,
)
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.enkg_r.regression import Surrogate
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
    variances, H, _, y, _ = _set_up_b(5, 12, 6)
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
def _lg6():
    """Fixture LG6 of the baselines' tests: six unknowns, three data."""
    rng = np.random.default_rng(1)
    B, mu = rng.standard_normal((6, 6)), 0.3 * rng.standard_normal(6)
    H, z, e = rng.standard_normal((3, 6)), rng.standard_normal(6), rng.standard_normal(3)
    Sigma = 0.25 * B @ B.T / 6 + 0.05 * np.eye(6)
    y = H @ (mu + np.linalg.cholesky(Sigma) @ z) + 0.3 * e
    posterior = np.linalg.inv(np.linalg.inv(Sigma) + H.T @ H / 0.09)
    return mu, Sigma, H, y, 0.3, posterior @ (np.linalg.solve(Sigma, mu) + H.T @ y / 0.09), posterior


def _recursion(sigmas, mean, P):
    """(E8) Mean and covariance of the particles after the levels, exact H, R = 0, from N(mean, P)."""
    mu, Sigma, H, y, sd, _, _ = _lg6()
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
    mu, Sigma, _, _, _, m_p, S_p = _lg6()
    mean, P = _recursion(sigmas, mu, Sigma)
    # half a unit of the last printed digit, or rounding
    assert abs(np.abs(mean - m_p).max() - of_mean) < 0.6 * 10 ** (math.floor(math.log10(of_mean)) - 4)
    assert abs(np.abs(P - S_p).max() - of_covariance) < max(6e-4 * of_covariance, 1e-15)
    mean, P = _recursion(sigmas, m_p, S_p)
    np.testing.assert_allclose(mean, m_p, atol=1e-14)
    np.testing.assert_allclose(P, S_p, atol=1e-14)


def _exact_method(config):
    mu, Sigma, H, y, sd, _, _ = _lg6()
    reference = Reference.gaussian(mu, Sigma)

    def denoise(x, s):  # (O1)
        return mu + (x - mu) @ np.linalg.solve(Sigma + s * s * np.eye(6), Sigma)

    def exact(x, d, weight, output_scale):
        return Surrogate(np.zeros((1, 6)), np.zeros((1, 3)), reference.modes.T @ H.T / sd, np.zeros((3, 3)), 0.0)

    config = dataclasses.replace(config, locality=0.0, metric=0.0)  # the slope is known, nothing is weighed
    return EnKGR(denoise, Gaussian(y, sd), reference, config, exact), lambda x: x @ H.T


@pytest.mark.parametrize("sigmas", [np.geomspace(3.0, 0.05, 5), np.array([0.3, 0.3])])
def test_the_code_with_the_exact_slope_follows_the_recursion_within_four_standard_errors(monkeypatch, sigmas):
    J = 100_000
    monkeypatch.setattr(module, "member_normals",
                        lambda seed, stream, rows, shape: np.random.default_rng([seed, stream]).standard_normal(
                            (rows, *shape)))
    config = Config(particles=J, levels=len(sigmas), sigma_start=sigmas[0], sigma_end=sigmas[-1], noise_floor=0.0,
                    hold=None, seed=3)
    method, forward = _exact_method(config)
    state = solve(method, forward, np.random.default_rng(5).standard_normal((J, 6)))
    mean, P = _recursion(sigmas, *_lg6()[:2])
    assert np.all(np.abs(state.x.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(P) / J))
    scale = np.sqrt(np.outer(np.diag(P), np.diag(P)) + P**2)
    assert np.all(np.abs(np.cov(state.x.T) - P) < 4 * scale / math.sqrt(J))


# ------------------------------------------------------------ calibration on the linear-Gaussian family
def _set_up_b(seed, d=128, m=32, sd=0.5):
    """Set-up B: prior variances 1/(1 + k/4)^2, H = 4 N(0, 1)/sqrt(d)."""
    rng = np.random.default_rng(seed)
    variances = 1.0 / (1.0 + np.arange(d) / 4.0) ** 2
    H, x = 4.0 * rng.standard_normal((m, d)) / math.sqrt(d), np.sqrt(variances) * rng.standard_normal(d)
    y = H @ x + sd * rng.standard_normal(m)
    posterior = np.linalg.inv(np.diag(1.0 / variances) + H.T @ H / sd**2)
    return variances, H, x, y, posterior @ (H.T @ y) / sd**2


def _run(seed, config, d=128, m=32, sd=0.5, break_rows=0.0):
    """Error to the exact posterior mean, squared spread and error sums, coverage, infos."""
    variances, H, truth, y, m_p = _set_up_b(seed, d, m, sd)
    broken = np.random.default_rng([seed, 99])

    def forward(x):
        g = x @ H.T
        g[broken.random(len(g)) < break_rows] = np.nan
        return g

    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, sd),
                   Reference(np.zeros(d), np.eye(d), variances), dataclasses.replace(config, seed=seed))
    states, infos = zip(*iterate(method, forward, method.init(member_normals(seed, 0, config.particles, (d,)))))
    x, J = states[-1].x, config.particles
    ordered, k = np.sort(x, axis=0), max(round(0.05 * (J + 1)), 1)
    return (np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p), (J + 1) / J * np.var(x, axis=0, ddof=1).sum(),
            np.sum((x.mean(0) - truth) ** 2), np.mean((ordered[k - 1] <= truth) & (truth <= ordered[J - k])), infos)


TABLE = Config(particles=32, levels=8, sigma_start=1.0, sigma_end=0.1, memory=1.0, locality=0.0,
               metric=0.0, model_noise=1.0)  # linear: nothing is forgotten, near or far


@pytest.mark.parametrize("d,m,sd,printed", [(128, 32, 0.05, 0.08), (128, 32, 0.5, 0.13), (1024, 128, 0.05, 0.10),
                                            (1024, 128, 0.5, 0.21)])
def test_eight_levels_of_32_particles_sample_the_posterior(d, m, sd, printed):
    """The table of `regressed.md` 4: its error within three standard errors, calibrated spread and intervals."""
    runs = [_run(seed, TABLE, d, m, sd) for seed in range(4)]
    error, spread, wrong, coverage = (np.array([run[i] for run in runs]) for i in range(4))
    assert error.mean() <= printed + 3 * error.std(ddof=1) / math.sqrt(len(runs))
    assert 0.85 <= math.sqrt(spread.sum() / wrong.sum()) <= 1.15
    assert 0.85 <= coverage.mean() <= 0.93  # 32 particles: the nominal coverage of the second and 31st is 29/33


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform_and_those_of_a_narrower_ensemble_are_not():
    """(M7) 400 linear-Gaussian problems, one random direction each; 24 ranks in six bins, chi2 test."""
    stats = pytest.importorskip("scipy.stats")
    config = dataclasses.replace(TABLE, particles=23, levels=6)
    counts = {1.0: np.zeros(6), 0.7: np.zeros(6)}
    for seed in range(400):
        variances, H, truth, y, _ = _set_up_b(1000 + seed, 16, 6, 0.5)
        method = EnKGR(lambda x, s, v=variances: x * (v / (v + s * s)), Gaussian(y, 0.5),
                       Reference(np.zeros(16), np.eye(16), variances), dataclasses.replace(config, seed=seed))
        x = solve(method, lambda x, H=H: x @ H.T, member_normals(seed, 0, 23, (16,))).x
        direction = np.random.default_rng([seed, 5]).standard_normal(16)
        for factor, of in counts.items():
            narrowed = x.mean(axis=0) + factor * (x - x.mean(axis=0))
            of[int(np.sum(narrowed @ direction < truth @ direction)) // 4] += 1
    assert stats.chisquare(counts[1.0]).pvalue > 1e-3
    assert stats.chisquare(counts[0.7]).pvalue < 1e-3  # the test can see a spread that is 30 % too small


def test_twenty_percent_failed_rows_cost_at_most_ten_percent_of_the_error():
    whole, broken = (np.array([_run(seed, TABLE, break_rows=share)[0] for seed in range(12)]) for share in (0.0, 0.2))
    assert broken.mean() <= 1.1 * whole.mean() + 2 * np.std(broken - whole, ddof=1) / math.sqrt(12)
    spread, wrong = np.sum([_run(seed, TABLE, break_rows=0.2)[1:3] for seed in range(12)], axis=0)
    assert 0.8 <= math.sqrt(spread / wrong) <= 1.2


def test_a_hundred_hard_runs_never_leave_the_prior():
    """Every magnitude stays within ten prior standard deviations: noise levels, sizes, failures, poor settings."""
    lengths = []
    for seed in range(100):
        rng = np.random.default_rng([7, seed])
        J, sd = int(rng.choice([16, 32])), float(10 ** rng.uniform(-3, 0.5))
        config = Config(particles=J, levels=4, sigma_start=float(10 ** rng.uniform(-1.5, 0.5)), sigma_end=0.02,
                        model_noise=float(10 ** rng.uniform(-2, 0)), memory=0.6, seed=seed,
                        outliers=twice_the_median if seed % 2 else None)
        variances, H, _, y, _ = _set_up_b(seed, 32, 16, sd)

        def forward(x, H=H, rng=rng):  # cubic, so that the linear model is wrong
            g = x @ H.T + (x @ H.T) ** 3
            g[rng.random(len(g)) < 0.2] = np.nan
            return g

        method = EnKGR(lambda x, s, v=variances: x * (v / (v + s * s)), Gaussian(y, sd),
                       Reference(np.zeros(32), np.eye(32), variances), config)
        state = solve(method, forward, member_normals(seed, 0, J, (32,)))
        lengths.append(np.sum(state.x**2, axis=1).max() / variances.sum())
    assert max(lengths) <= module.FAR


# ------------------------------------------------------------ outliers, holding, failures, retries
def test_a_stuck_particle_is_replaced_and_its_evaluation_kept_with_a_tenth_of_the_weight():
    variances, H, _, y, _ = _set_up_b(0)
    config = dataclasses.replace(TABLE, outliers=twice_the_median, memory=0.5)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5),
                   Reference(np.zeros(128), np.eye(128), variances), config)
    state = method.init(member_normals(0, 0, 32, (128,)))
    for level in range(3):
        g = method.ask(state) @ H.T
        g[5] = g[5] + 40.0
        state, info = method.tell(state, g)
        assert (5 in info.replaced) == (level > 0)
    row = len(state.history_weight) - 32 + 5
    assert state.history_weight[row] == 0.1 and state.history_weight[row - 1] == 1.0
    np.testing.assert_allclose(state.history_d[row], (g[5] - y) / 0.5)


def test_replacement_leaves_the_linear_gaussian_family_calibrated():
    """Few rows are replaced where nothing is wrong, and the spread does not notice."""
    with_it = [_run(seed, dataclasses.replace(TABLE, outliers=twice_the_median)) for seed in range(8)]
    without = [_run(seed, TABLE) for seed in range(8)]
    late = [len(info.replaced) / 32 for run in with_it for info in run[4][-3:]]
    assert np.mean(late) < 0.05
    ratio = [math.sqrt(sum(r[1] for r in runs) / sum(r[2] for r in runs)) for runs in (with_it, without)]
    assert abs(ratio[0] - ratio[1]) < 0.1 and 0.85 <= ratio[0] <= 1.15


def test_the_level_is_held_while_the_innovations_are_too_large():
    config = Config(particles=8, levels=6, sigma_start=1.0, sigma_end=0.1, hold=hold_above_4, seed=1)
    variances, H, _, y, _ = _set_up_b(1, 16, 4, 0.1)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y + 300.0, 0.1),
                   Reference(np.zeros(16), np.eye(16), variances), config)
    infos = [info for _, info in iterate(method, lambda x: x @ H.T, method.init(member_normals(1, 0, 8, (16,))))]
    assert any(info.held for info in infos)
    for info, following in zip(infos, infos[1:]):
        assert info.held == (info.kappa > 4.0)
        assert (following.sigma == info.sigma) == info.held
    assert all(a.sigma >= b.sigma for a, b in zip(infos, infos[1:]))


@pytest.mark.parametrize("steepest,expected", [(0.5, 0.5 ** np.arange(6)), (0.0, np.geomspace(1.0, 1e-3, 6))])
def test_the_noise_level_falls_geometrically_but_never_too_steeply(steepest, expected):
    config = Config(particles=8, levels=6, sigma_start=1.0, sigma_end=1e-3, noise_floor=0.0, hold=None,
                    steepest=steepest)
    variances, H, _, y, _ = _set_up_b(1, 16, 4)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5),
                   Reference(np.zeros(16), np.eye(16), variances), config)
    levels = iterate(method, lambda x: x @ H.T, method.init(member_normals(1, 0, 8, (16,))))
    np.testing.assert_allclose([info.sigma for _, info in levels], expected, rtol=1e-9)


def test_a_level_where_every_row_failed_lives_on_the_history():
    variances, H, _, y, _ = _set_up_b(2)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5),
                   Reference(np.zeros(128), np.eye(128), variances), TABLE)
    state = method.init(member_normals(2, 0, 32, (128,)))
    state, _ = method.tell(state, method.ask(state) @ H.T)
    lost, info = method.tell(state, np.full((32, 32), np.nan))
    assert info.failed_rows == tuple(range(32)) and info.evaluations == 32
    np.testing.assert_array_equal(lost.history_d, state.history_d)
    assert np.all(np.isfinite(lost.x)) and lost.level == 2
    assert info.kappa == info.mean_misfit == math.inf and info.held  # nothing was measured
    fresh = method.init(member_normals(2, 0, 32, (128,)))
    with pytest.raises(FloatingPointError, match="0 of 32 rows are finite at level 0.*expected at least 3"):
        method.tell(fresh, np.full((32, 32), np.nan))


def test_kappa_and_the_misfits_are_of_rows_that_were_simulated_not_of_their_stand_ins():
    variances, H, _, y, _ = _set_up_b(2)
    reference = Reference(np.zeros(128), np.eye(128), variances)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5), reference,
                   dataclasses.replace(TABLE, outliers=twice_the_median))
    state = method.init(member_normals(2, 0, 32, (128,)))
    state, _ = method.tell(state, method.ask(state) @ H.T)
    g = method.ask(state) @ H.T
    g[:4], g[4:8] = np.nan, g[4:8] + 20.0
    _, info = method.tell(state, g)
    assert info.failed_rows == (0, 1, 2, 3) and set(info.replaced) >= {4, 5, 6, 7}
    chi2 = np.mean((g[4:] - y) ** 2 / 0.25, axis=1)
    assert math.isclose(info.mean_misfit, chi2.mean(), rel_tol=1e-12) and info.mean_misfit > 100
    assert math.isclose(info.misfit, np.mean((g[4:].mean(axis=0) - y) ** 2) / 0.25, rel_tol=1e-12)
    kept = [j for j in range(4, 32) if j not in info.replaced]
    response = info.gain**2 * reference.total_variance(*reference.conditional(info.sigma)) / 128
    expected = np.mean((g[kept] - y) ** 2) / 0.25 / (response + info.noise_ratio + 1.0)
    assert math.isclose(info.kappa, expected, rel_tol=1e-12)


@pytest.mark.parametrize("value", [1e6, 1e200])
def test_a_row_that_blows_up_without_becoming_infinite_is_a_failed_row(value):
    variances, H, _, y, _ = _set_up_b(2)
    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, 0.5),
                   Reference(np.zeros(128), np.eye(128), variances), TABLE)

    def run(broken):
        def forward(x):
            g = x @ H.T
            g[5] = broken
            return g
        return list(iterate(method, forward, method.init(member_normals(2, 0, 32, (128,)))))

    blown, lost = run(value), run(np.nan)
    assert all(info.failed_rows == (5,) for _, info in blown)
    half = method.init(member_normals(2, 0, 32, (128,)))
    half, _ = method.tell(half, method.ask(half) @ H.T)
    g = method.ask(half) @ H.T
    g[:20] = value  # more than half of them, but the history knows better
    assert method.tell(half, g)[1].failed_rows == tuple(range(20))
    np.testing.assert_array_equal(blown[-1][0].x, lost[-1][0].x)


def test_particles_that_leave_the_prior_are_drawn_again_with_more_model_noise():
    method, forward = _exact_method(Config(particles=8, levels=1, sigma_start=1.0, sigma_end=1.0))
    likelihood = Gaussian(_lg6()[3] + 2000.0, 0.3)  # data that no particle within the prior can explain
    method = dataclasses.replace(method, likelihood=likelihood)
    state = method.init(member_normals(0, 0, 8, (6,)))
    new, info = method.tell(state, forward(method.ask(state)))
    assert info.retries == module.RETRIES and info.lost
    assert np.all(np.sum((new.x - _lg6()[0]) ** 2, axis=1) <= module.FAR * np.trace(_lg6()[1]))


def test_a_lost_level_is_recorded_with_the_kappa_of_its_first_update_and_the_next_one_is_held():
    """R is a thousandfold in the end, and the kappa of that R would look small just where the level failed."""
    variances, H, _, y, _ = _set_up_b(3, 16, 8, 0.1)
    reference = Reference(np.zeros(16), np.eye(16), variances)
    config = Config(particles=8, levels=3, sigma_start=1.0, sigma_end=0.1, seed=1)

    def first_level(shift):
        method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y + shift, 0.1), reference, config)
        state = method.init(member_normals(1, 0, 8, (16,)))
        return method.tell(state, method.ask(state) @ H.T)

    (_, well), (after, lost) = first_level(0.0), first_level(1e7)
    assert (well.lost, well.retries) == (False, 0) and (lost.lost, lost.retries) == (True, module.RETRIES)
    # slope and R do not depend on the data: kappa of the lost level is in the ratio of the innovations to the other's
    assert math.isclose(lost.noise_ratio, well.noise_ratio, rel_tol=1e-6)
    assert math.isclose(lost.kappa / well.kappa, lost.mean_misfit / well.mean_misfit, rel_tol=1e-6)
    assert lost.held and after.sigma == lost.sigma
    np.testing.assert_allclose(after.model_noise.mean(), well.noise_ratio, rtol=1e-6)


# ------------------------------------------------------------ protocol and invariances
def test_a_run_resumed_at_any_level_from_saved_arrays_is_bit_identical(tmp_path):
    variances, H, _, y, _ = _set_up_b(3, 40, 8)
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
    variances, H, _, y, _ = _set_up_b(4, 20, 5)
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
    variances, H, _, y, _ = _set_up_b(0, 64, 16)
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
    starts = [settings_by_rule(one_mode, of, 1500).sigma_start for of in (likelihood, closures)]
    np.testing.assert_allclose(starts, [3.0 * one_mode.std, 0.6 * 10.0], rtol=1e-3)
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
    method, _ = _exact_method(dataclasses.replace(TABLE, particles=4))
    with pytest.raises(ValueError, match="noise: got shape"):
        method.init(np.zeros((5, 6)))
    state = method.init(member_normals(0, 0, 4, (6,)))
    with pytest.raises(ValueError, match=r"forward: got an output of shape \(4, 2\), expected \(4, 3\)"):
        method.tell(state, np.zeros((4, 2)))
    with pytest.raises(FloatingPointError, match="denoise: got a non-finite output at level 0"):
        dataclasses.replace(method, denoise=lambda x, s: x * np.nan).init(member_normals(0, 0, 4, (6,)))
