"""The samplers on the linear-Gaussian problem LG6: recursions against targets, code against recursions.

Chains are stacked inside one row, (rows, copies, 6): the exact denoiser and G act on the last axis.
"""

import math

import numpy as np
import pytest
from linear_gaussian_oracle import (
    assert_sample_has,
    diffpir_steps,
    dps_steps,
    exact_guidance_steps,
    lg6,
    propagate,
    unconditional_steps,
    ve_steps,
)

from enkg_ref import Gaussian, member_normals, solve
from enkg_ref.baselines import (
    DEFT,
    DPG,
    DPS,
    EKI,
    GSG,
    MMPS,
    SCG,
    Blade,
    DiffPIR,
    PnPDM,
    blade,
    deft,
    diffpir,
    dpg,
    dps,
    gsg,
    mmps,
    pnpdm,
    scg,
    schedule,
)
from enkg_ref.baselines import eki as eki_module
from enkg_ref.diffusion import edm_sigmas, euler_step
from enkg_ref.protocol import iterate

LG = lg6()
GRID = schedule.vp_grid(1000)


def stacked(copies, noise=None):
    """Likelihood of ``copies`` independent copies of the problem in one row."""
    return Gaussian(np.tile(LG.y, copies), LG.sigma_y if noise is None else noise)


def start(rows, copies, seed=7):
    return member_normals(seed, 0, rows, (copies, 6))


def final(method, noise, forward=LG.forward):
    return solve(method, forward, noise).x.reshape(-1, 6)


# ------------------------------------------------------------------------------------------------------- fixture
def test_the_fixture_has_its_check_values():
    assert LG.Sigma[0, 0] == pytest.approx(0.20086715597113813, rel=1e-14)
    assert LG.mu[0] == pytest.approx(-0.15420191150623885, rel=1e-14)
    assert LG.H[0, 0] == pytest.approx(-0.07204367972722743, rel=1e-14)
    np.testing.assert_allclose(LG.y, [0.697475630372, -0.243452262597, 0.842184938689], atol=5e-13)
    np.testing.assert_allclose(LG.m_p, [-0.099661781339, -0.443520714491, 0.086314572811, 0.034079039296,
                                        -0.161341279352, -0.535655218482], atol=5e-13)
    assert np.trace(LG.Sigma) == pytest.approx(1.61543, abs=5e-6)
    assert np.trace(LG.Sigma_p) == pytest.approx(0.678584, abs=5e-7)
    assert np.linalg.norm(LG.m_p - LG.mu) == pytest.approx(0.398768, abs=5e-7)
    rms = math.sqrt(np.trace(LG.H @ LG.Sigma_p @ LG.H.T) + np.sum((LG.H @ LG.m_p - LG.y) ** 2))
    assert rms == pytest.approx(0.46298, abs=5e-6)


# ------------------------------------------------------------------------------------ recursions against targets
@pytest.mark.parametrize("steps, target, mean_error, covariance_error", [
    (unconditional_steps(LG, GRID), (LG.mu, LG.Sigma), 1.8886e-4, 7.955e-4),
    (unconditional_steps(LG, GRID, ode=True), (LG.mu, LG.Sigma), 1.2810e-3, 1.859e-4),
    (exact_guidance_steps(LG, GRID), (LG.m_p, LG.Sigma_p), 2.1651e-4, 3.4930e-4)], ids=["sde", "ode", "guided"])
def test_recursion_misses_its_target_by_the_known_discretisation_error(steps, target, mean_error, covariance_error):
    width = (GRID.sigmas[0] * GRID.scales[0]) ** 2
    mean, covariance = propagate(steps, np.zeros(6), width * np.eye(6))
    assert np.abs(mean - target[0]).max() == pytest.approx(mean_error, rel=0.01)
    assert np.abs(covariance - target[1]).max() == pytest.approx(covariance_error, rel=0.01)


@pytest.mark.parametrize("lam, scaled, xi, mean_error, trace_ratio", [
    (1, False, 0.0, 0.25646, 1.1747), (1, False, 0.1, 0.09539, 1.0310), (1, False, 1.0, 0.01891, 0.4944),
    (8, False, 0.0, 0.37267, 1.5636), (8, False, 0.1, 0.43764, 1.5563), (8, False, 1.0, 0.44713, 0.7882),
    (1, True, 0.0, 0.26790, None), (1, True, 0.1, 0.10162, None), (1, True, 1.0, 0.02000, None),
    (8, True, 0.0, 0.50353, None), (8, True, 0.1, 0.47197, None), (8, True, 1.0, 0.45255, None)])
def test_recursion_of_diffpir_has_the_known_bias(lam, scaled, xi, mean_error, trace_ratio):
    def rho(i):
        return lam * LG.sigma_y**2 / (GRID.sigmas[i] * (GRID.scales[i] if scaled else 1.0)) ** 2

    mean, covariance = propagate(diffpir_steps(LG, GRID, rho, xi), np.zeros(6), GRID.sigmas[0] ** 2 * np.eye(6))
    bias = np.linalg.norm(mean - LG.m_p) / np.linalg.norm(LG.m_p - LG.mu)
    assert bias == pytest.approx(mean_error, rel=0.01)
    if trace_ratio is not None:
        assert np.trace(covariance) / np.trace(LG.Sigma_p) == pytest.approx(trace_ratio, rel=0.01)


def diffpir_gradient_steps(grid, lam):
    for i in range(grid.steps):
        J, w = LG.jacobian(grid.sigmas[i]), (grid.sigmas[i] * grid.scales[i]) ** 2 / lam / LG.sigma_y**2  # w = 2/rho_g
        A = np.eye(6) - w * LG.H.T @ LG.H
        yield A @ J, A @ (LG.mu - J @ LG.mu) + w * LG.H.T @ LG.y, grid.sigmas[i + 1] ** 2


def test_recursion_of_diffpir_with_the_gradient_step_has_the_known_bias():
    mean, covariance = propagate(diffpir_gradient_steps(GRID, 8.0), np.zeros(6), GRID.sigmas[0] ** 2 * np.eye(6))
    assert np.linalg.norm(mean - LG.m_p) / np.linalg.norm(LG.m_p - LG.mu) == pytest.approx(0.4365, rel=1e-3)
    assert np.trace(covariance) == pytest.approx(0.5309, rel=1e-3)


# --------------------------------------------------------------------------------------- code against recursions
SHORT = schedule.vp_grid(100)


def test_dps_without_guidance_has_the_moments_of_the_unconditional_recursion():
    method = DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1000),
                 dps.Config(steps=100, guidance=0.0, last="noisy"))
    width = (SHORT.sigmas[0] * SHORT.scales[0]) ** 2
    moments = propagate(unconditional_steps(LG, SHORT), np.zeros(6), width * np.eye(6))
    assert_sample_has(final(method, start(20, 1000)), *moments)


def test_dps_with_a_constant_normaliser_has_the_moments_of_its_recursion():
    method = DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1000, 1.0),
                 dps.Config(steps=100, guidance=0.1, normaliser=np.ones_like, last="noisy"))
    width = (SHORT.sigmas[0] * SHORT.scales[0]) ** 2
    moments = propagate(dps_steps(LG, SHORT, 0.1), np.zeros(6), width * np.eye(6))
    assert np.linalg.norm(moments[0] - LG.m_p) < 0.5 * np.linalg.norm(LG.mu - LG.m_p)
    assert_sample_has(final(method, start(20, 1000)), *moments)


@pytest.mark.parametrize("xi", [0.0, 0.1, 1.0])
def test_diffpir_with_the_proximal_step_has_the_moments_of_its_recursion(xi):
    method = DiffPIR(LG.denoise, stacked(1000), diffpir.Config(steps=100, lam=1.0, xi=xi, last="noisy"), prox=LG.prox)
    moments = propagate(diffpir_steps(LG, SHORT, lambda i: LG.sigma_y**2 / SHORT.sigmas[i] ** 2, xi),
                        np.zeros(6), SHORT.sigmas[0] ** 2 * np.eye(6))
    assert_sample_has(final(method, start(20, 1000)), *moments)


def test_diffpir_with_the_gradient_step_has_the_moments_of_its_recursion():
    lam = 8.0
    method = DiffPIR(LG.denoise, stacked(1000), diffpir.Config(steps=100, lam=lam, last="noisy"),
                     forward_vjp=LG.forward_vjp)
    moments = propagate(diffpir_gradient_steps(SHORT, lam), np.zeros(6), SHORT.sigmas[0] ** 2 * np.eye(6))
    assert_sample_has(final(method, start(20, 1000)), *moments)


def test_diffpir_refuses_a_gradient_step_that_must_diverge():
    with pytest.raises(ValueError, match="lam: got 1.0, expected at least"):
        DiffPIR(LG.denoise, stacked(1), diffpir.Config(lam=1.0, operator_norm=9.0), forward_vjp=LG.forward_vjp)


def test_ending_with_the_denoised_state_removes_the_noise_that_the_last_sde_step_leaves():
    finals = {last: final(DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1000),
                              dps.Config(steps=30, guidance=0.0, last=last)), start(20, 1000))
              for last in ("denoised", "noisy")}
    error = {last: abs(np.trace(np.cov(x.T)) - np.trace(LG.Sigma)) for last, x in finals.items()}
    assert error["denoised"] < error["noisy"]


# -------------------------------------------------------------------------------------- the unconditional limits
def unconditional_path(config, streams, noise, steps):
    grid = schedule.vp_grid(config.steps)
    x = grid.start(noise)
    for i in range(steps):
        eps = member_normals(config.seed, streams(i), len(noise), noise.shape[1:])
        x = grid.sde_step(i, x, LG.denoise(grid.unscaled(i, x), grid.sigmas[i]), eps)
    return x


@pytest.mark.parametrize("name", ["dps", "dpg", "forward", "central"])
def test_zero_guidance_is_the_unconditional_path(name):
    noise = member_normals(1, 0, 3, (6,))
    common = {"steps": 40, "guidance": 0.0, "last": "noisy", "seed": 5}
    if name == "dps":
        method = DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1), dps.Config(**common))
    elif name == "dpg":
        method = DPG(LG.denoise, LG.denoise_vjp, stacked(1), dpg.Config(queries=4, **common))
    else:
        method = GSG(LG.denoise, LG.denoise_vjp, stacked(1), gsg.Config(mode=name, queries=4, **common))
    streams = (lambda i: 1 + i) if name == "dps" else (lambda i: 1 + 2 * i)
    expected = unconditional_path(method.config, streams, noise, 40)
    np.testing.assert_allclose(solve(method, LG.forward, noise).x, expected, rtol=0, atol=1e-12)


def test_a_zero_correction_of_deft_is_the_unconditional_flow():
    noise = member_normals(1, 0, 3, (6,))
    method = DEFT(LG.denoise, lambda x, denoised, sigma: 0.0 * x, deft.Config(steps=50))
    x, sigmas = 80.0 * noise, edm_sigmas(50)
    for here, following in zip(sigmas, sigmas[1:]):
        x = euler_step(x, LG.denoise(x, here), here, following)
    np.testing.assert_allclose(solve(method, LG.forward, noise).x, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("xi", [0.0, 1.0])
def test_diffpir_without_an_operator_is_unconditional(xi):
    noise = member_normals(1, 0, 3, (6,))
    method = DiffPIR(LG.denoise, stacked(1), diffpir.Config(steps=40, xi=xi, last="noisy", seed=5),
                     forward_vjp=lambda x, v: 0.0 * x)
    grid = schedule.vp_grid(40)
    x = grid.sigmas[0] * noise
    for i in range(40):
        x0 = LG.denoise(x, grid.sigmas[i])
        n = member_normals(5, 1 + i, 3, (6,)) if xi else (x - x0) / grid.sigmas[i]
        x = x0 + grid.sigmas[i + 1] * n
    np.testing.assert_allclose(solve(method, LG.forward, noise).x, x, rtol=0, atol=1e-12)


def test_scg_with_one_candidate_is_the_unconditional_path_and_then_the_denoised_state():
    noise = member_normals(1, 0, 3, (6,))
    method = SCG(LG.denoise, stacked(1), scg.Config(steps=40, candidates=1, seed=5))
    x = unconditional_path(method.config, lambda i: 1 + i, noise, 39)
    expected = LG.denoise(method.grid.unscaled(39, x), method.grid.sigmas[39])
    np.testing.assert_allclose(solve(method, LG.forward, noise).x, expected, rtol=0, atol=1e-12)


def test_scg_with_the_official_index_defect_leaves_that_path():
    noise = member_normals(1, 0, 3, (6,))
    states = [SCG(LG.denoise, stacked(1), scg.Config(steps=40, candidates=1, official_index_bug=bug)).init(noise)
              for bug in (False, True)]
    grid = schedule.vp_grid(40)
    np.testing.assert_allclose(states[1].x, states[0].denoised, atol=1e-12)
    assert states[1].level == states[0].level + 1 == 11
    assert np.abs(states[1].x / grid.scales[11]).max() > 5 * np.abs(states[1].x).max()


def test_scg_keeps_the_best_candidate_and_the_cache_changes_nothing():
    noise = member_normals(1, 0, 4, (6,))
    cached, plain = (SCG(LG.denoise, stacked(1), scg.Config(steps=30, candidates=8, cache=cache))
                     for cache in (True, False))
    state = cached.init(noise)
    losses = cached.likelihood.misfit(LG.forward(cached.ask(state))).reshape(4, 8)
    following, _ = cached.tell(state, LG.forward(cached.ask(state)))
    chosen = cached.likelihood.misfit(LG.forward(following.denoised))
    np.testing.assert_allclose(chosen, losses.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(solve(cached, LG.forward, noise).x, solve(plain, LG.forward, noise).x, atol=1e-12)


def test_scg_fits_better_with_more_candidates_down_to_below_the_noise():
    noise = member_normals(1, 0, 40, (6,))
    rms = []
    for candidates in (1, 4, 64):
        x = final(SCG(LG.denoise, stacked(1), scg.Config(steps=200, candidates=candidates)), noise)
        rms.append(np.sqrt(np.mean(np.sum((LG.forward(x) - LG.y) ** 2, axis=1))))
    assert rms[0] > rms[1] > rms[2]
    assert rms[2] < 0.05 < 0.46298  # far below the rms residual of the posterior: it fits the noise


def test_dps_is_nearer_to_the_posterior_mean_than_the_prior_is():
    noise = member_normals(1, 0, 200, (6,))
    bias = []
    for gamma in (0.0, 0.1):
        method = DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1, 1.0), dps.Config(steps=200, guidance=gamma))
        bias.append(np.linalg.norm(final(method, noise).mean(0) - LG.m_p) / np.linalg.norm(LG.m_p - LG.mu))
    assert bias[1] < 0.5 < 0.8 < bias[0]


# ---------------------------------------------------------------------------------------------------- estimators
def test_the_estimate_of_dpg_is_the_gradient_of_the_smoothed_weight():
    seen = []

    def spy(x, sigma, v):
        seen.append(v)
        return LG.denoise_vjp(x, sigma, v)

    M = 2_000_000
    method = DPG(LG.denoise, spy, stacked(1, 1.0), dpg.Config(steps=10, queries=M, seed=3))
    state = method.init(member_normals(2, 0, 1, (6,)))
    for _ in range(2):
        state, _ = method.tell(state, LG.forward(method.ask(state)))
    x0 = method.init(member_normals(2, 0, 1, (6,))).denoised[0]
    e = LG.H @ x0 - LG.y
    Z = l0 = e @ e
    r = math.sqrt(Z / 6) / 2
    Q = np.linalg.inv(np.eye(3) + 2 * r**2 / Z * LG.H @ LG.H.T)
    W = math.exp(l0 / Z) * math.sqrt(np.linalg.det(Q)) * math.exp(-e @ Q @ e / Z)
    gradient = -2 / Z * W * LG.H.T @ Q @ e
    assert np.linalg.norm(seen[0][0] + gradient) < 1e-2 * np.linalg.norm(gradient)  # v = -grad W


def test_two_runs_of_dpg_do_not_share_a_memory():
    noise = member_normals(2, 0, 2, (6,))
    other = Gaussian(LG.y + 5.0, 1.0)

    def run(likelihood):
        method = DPG(LG.denoise, LG.denoise_vjp, likelihood, dpg.Config(steps=20, queries=8, guidance=5.0))
        return lambda: solve(method, LG.forward, noise).x

    first, second = run(stacked(1, 1.0)), run(other)
    alone = second()
    first()
    np.testing.assert_array_equal(second(), alone)


@pytest.mark.parametrize("mode", ["forward", "central"])
def test_the_smoothed_gradient_is_unbiased_with_the_known_variance(mode):
    n = 30_000
    x0 = LG.m_p + 0.5
    gradient = 2 * LG.H.T @ (LG.H @ x0 - LG.y)
    method = GSG(LG.denoise, LG.denoise_vjp, stacked(1, 1.0),
                 gsg.Config(mode=mode, steps=10, queries=2 if mode == "central" else 1, smoothing=1e-4))
    state = gsg.ChainState(np.zeros((n, 6)), np.tile(x0, (n, 1)))
    loss = method.likelihood.misfit(LG.forward(method.ask(state))).reshape(n, -1)
    estimates = method.estimate(state, loss)
    size = gradient @ gradient
    assert np.all(np.abs(estimates.mean(0) - gradient) < 4 * estimates.std(0) / math.sqrt(n))
    square = np.sum((estimates - gradient) ** 2, axis=1) / size
    assert abs(square.mean() - 7.0) < 4 * square.std() / math.sqrt(n)  # (d + 1)/M with M = 1 direction


def test_many_central_queries_give_the_step_of_dps():
    # copies of one direction set: the estimate converges to grad L, so both methods take the same step
    noise = member_normals(2, 0, 1, (6,))
    exact = DPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1), dps.Config(steps=10, guidance=1.0, seed=4))
    state = exact.init(noise)
    step_of_dps = exact.tell(state, LG.forward(state.denoised))[0].x
    smoothed = GSG(LG.denoise, LG.denoise_vjp, stacked(1),
                   gsg.Config(mode="central", steps=10, queries=400_000, guidance=1.0, seed=4))
    following, _ = smoothed.tell(state, LG.forward(smoothed.ask(state)))
    unguided = exact.grid.sde_step(0, state.x, state.denoised, member_normals(4, 1, 1, (6,)))
    guidance = step_of_dps - unguided
    assert np.linalg.norm(following.x - step_of_dps) < 4 * math.sqrt(7 / 200_000) * np.linalg.norm(guidance) * 3


# ----------------------------------------------------------------------------------------------------------- EKI
def test_eki_stays_in_the_span_of_its_first_anomalies_for_any_model():
    x = member_normals(0, 0, 5, (8,))
    method = EKI(Gaussian(np.zeros(3), 1.0), eki_module.Config(iterations=20))
    state = solve(method, lambda x: np.tanh(x[:, :3] @ np.ones((3, 3))) + x[:, 3:6] ** 2, x)
    Z = x - x.mean(0)
    basis = np.linalg.svd(Z, full_matrices=False)[2][:4]
    moved = state.x - x
    assert np.abs(moved - moved @ basis.T @ basis).max() < 1e-12
    assert np.abs(moved).max() > 1e-3


def random_linear(rng):
    d, m, J = rng.integers(2, 8), rng.integers(1, 6), rng.integers(3, 20)
    return rng.standard_normal((m, d)), rng.standard_normal(m), rng.standard_normal((J, d))


def test_eki_never_widens_or_worsens_for_guidance_up_to_two():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        H, y, x = random_linear(rng)
        method = EKI(Gaussian(y, 1.0), eki_module.Config(iterations=3, guidance=float(rng.uniform(0.05, 2.0))))
        previous = None
        for state, _ in iterate(method, lambda x, H=H: x @ H.T, method.init(x)):
            g = state.x @ H.T
            now = np.array([np.sum((g - g.mean(0)) ** 2), np.sum((g.mean(0) - y) ** 2)])
            start_g = x @ H.T
            if previous is None:
                previous = np.array([np.sum((start_g - start_g.mean(0)) ** 2), np.sum((start_g.mean(0) - y) ** 2)])
            assert np.all(now <= previous * (1 + 1e-12) + 1e-12)
            previous = now


def test_eki_diverges_beyond_two_where_one_direction_dominates():
    H, y = np.diag([1.0, 1e-3]), np.zeros(2)
    x = member_normals(0, 0, 50, (2,)) * np.array([1.0, 1e-3])
    g = x @ H.T
    y = g.mean(0)  # no mean residual: ||K||_F is that of C_yy alone
    spread = [np.var(g)]
    method = EKI(Gaussian(y, 1.0), eki_module.Config(iterations=60, guidance=3.0))
    for state, _ in iterate(method, lambda x: x @ H.T, method.init(x)):
        spread.append(np.var(state.x @ H.T))
    assert spread[-1] > 1e15 * spread[0]


def test_eki_converges_to_the_least_squares_residual_over_its_span():
    rng = np.random.default_rng(3)
    H, y, x = rng.standard_normal((5, 6)), rng.standard_normal(5), rng.standard_normal((4, 6))
    state = solve(EKI(Gaussian(y, 1.0), eki_module.Config(iterations=4000, guidance=1.0)), lambda x: x @ H.T, x)
    A = H @ (x - x.mean(0)).T
    best = H @ x.mean(0) - y - A @ np.linalg.lstsq(A, H @ x.mean(0) - y, rcond=None)[0]
    np.testing.assert_allclose(H @ state.x.mean(0) - y, best, atol=1e-3)


@pytest.mark.parametrize("iterations, J", [(1, 30_000), (4, 10_000)])
def test_classical_eki_turns_a_prior_ensemble_into_the_posterior(iterations, J):
    prior = LG.mu + np.random.default_rng(5).standard_normal((J, 6)) @ np.linalg.cholesky(LG.Sigma).T
    state = solve(EKI(stacked(1), eki_module.Config(iterations=iterations, kalman=True)), LG.forward, prior)
    # prior draws set the sampling error, which is that of the prior covariance
    slack = 4 * np.abs(LG.Sigma).max() / math.sqrt(J)
    assert_sample_has(state.x, LG.m_p, LG.Sigma_p, slack=slack)


@pytest.mark.parametrize("guard, skips", [(eki_module.Config.guard, False), (64.0, True)])
def test_the_released_iterations_are_all_made_unless_a_guard_against_rounding_is_asked_for(guard, skips):
    method = EKI(stacked(1, 1.0), eki_module.Config(guard=guard))
    infos = [info for _, info in iterate(method, LG.forward, method.init(member_normals(0, 0, 64, (6,))))]
    skipped = sum(info.skipped > 0 for info in infos)
    assert len(infos) == 500 and infos[-1].misfit < 1e-20  # long collapsed in the observations
    assert (skipped > 200) if skips else (skipped == 0)


def test_a_collapsed_ensemble_is_left_alone_and_reported():
    x = np.ones((4, 6))
    method = EKI(stacked(1), eki_module.Config(iterations=1))
    state, info = method.tell(method.init(x), LG.forward(x))
    np.testing.assert_array_equal(state.x, x)
    assert info.skipped == 4


# ------------------------------------------------------------------------------------------- split Gibbs: PnP-DM
RHO, TAU = 0.5, 1.0


def conditional(x, rho):
    """Covariance and mean of z given x: exp(-misfit/2 - ||z - x||^2/(2 rho^2))."""
    L = np.linalg.inv(LG.H.T @ LG.H / LG.sigma_y**2 + np.eye(6) / rho**2)
    return L, (x / rho**2 + LG.H.T @ LG.y / LG.sigma_y**2) @ L


def test_langevin_steps_reach_the_covariance_of_the_discretised_chain():
    h, n = 0.01, 300
    method = PnPDM(LG.denoise, LG.forward_vjp, stacked(1000),
                   pnpdm.Config(outer=1, rho_max=RHO, inner=n + 1, step=h, prior_steps=5))
    state = method.init(start(20, 1000))
    for _ in range(n):
        state, _ = method.tell(state, LG.forward(method.ask(state)))
    L, mean = conditional(state.x, RHO)
    precision = np.linalg.inv(L)
    assert h * np.linalg.eigvalsh(precision)[-1] < 2
    stationary = np.linalg.inv(precision @ (np.eye(6) - h / 2 * precision))
    assert_sample_has((state.z - mean).reshape(-1, 6), np.zeros(6), stationary)


def test_langevin_steps_beyond_the_bound_diverge_with_a_clear_error():
    method = PnPDM(LG.denoise, LG.forward_vjp, stacked(1), pnpdm.Config(outer=1, rho_max=RHO, inner=5000, step=1.0))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="row 0 is not finite"):
        solve(method, LG.forward, member_normals(0, 0, 1, (6,)))


def prior_conditional(z, rho):
    P = np.linalg.inv(np.linalg.inv(LG.Sigma) + np.eye(6) / rho**2)
    return P @ (z / rho**2 + np.linalg.solve(LG.Sigma, LG.mu)), P


@pytest.mark.parametrize("grid", ["exact", "ib", "authors"])
def test_the_prior_step_has_the_moments_of_its_recursion(grid):
    levels = schedule.levels_below(RHO, edm_sigmas(100, 100.0, 0.01), grid)
    assert len(levels) - 1 == (28 if grid == "authors" else 29)
    z = np.broadcast_to(LG.m_p + 0.3, (20, 1000, 6))
    draws = schedule.ve_sde(z, levels, LG.denoise, lambda step: member_normals(0, step, 20, (1000, 6)))
    assert_sample_has(draws.reshape(-1, 6), *propagate(ve_steps(LG, levels), LG.m_p + 0.3, np.zeros((6, 6))))


def test_the_prior_step_converges_to_the_conditional_draw_with_first_order():
    z, errors = LG.m_p + 0.3, []
    for steps in (100, 200, 400):
        mean, covariance = propagate(ve_steps(LG, edm_sigmas(steps, RHO, 0.01)), z, np.zeros((6, 6)))
        target = prior_conditional(z, RHO)
        errors.append([np.abs(mean - target[0]).max(), np.abs(covariance - target[1]).max()])
    assert errors[0][0] < 1.2e-2 and errors[0][1] < 8e-3
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all((slopes > 0.8) & (slopes < 1.2))


def test_the_probability_flow_is_no_draw():
    method = Blade(LG.denoise, stacked(1000), blade.Config(outer=1, rho_max=RHO, prior="ode", inner=1))
    z = np.broadcast_to(LG.m_p + 0.3, (3, 1000, 6))
    assert np.var(method._prior(z, 0, 1).reshape(-1, 6), axis=0).max() < 1e-20


def test_split_gibbs_with_a_constant_coupling_has_the_known_marginal():
    c = pnpdm.Config(outer=8, rho_max=RHO, rho_min=RHO, decay=1.0, inner=80, step=5e-3, prior_steps=300)
    method = PnPDM(LG.denoise, LG.forward_vjp, stacked(250), c)
    x = final(method, start(20, 250))
    covariance, mean = LG.posterior(LG.sigma_y**2 * np.eye(3) + RHO**2 * LG.H @ LG.H.T)
    assert_sample_has(x, mean, covariance, slack=1e-2)
    assert np.trace(covariance) > 1.3 * np.trace(LG.Sigma_p)  # the target is far from the posterior


# --------------------------------------------------------------------------------------------------------- Blade
@pytest.fixture
def one_generator(monkeypatch):
    """One generator per stream in place of one per row: the statistics are the same, and long chains are quick."""
    def fast(seed, stream, rows, shape):
        return np.random.default_rng([seed, stream]).standard_normal((rows, *shape))

    monkeypatch.setattr(blade, "member_normals", fast)


def trace_ratio(J, h, steps, correction=True):
    """tr of the sample covariance of z - E[z | x] over that of its target, after a burn-in."""
    method = Blade(LG.denoise, stacked(1), blade.Config(
        outer=1, rho_max=RHO, inner=steps + 1, mode="correction", step_rule=blade.constant_step, guidance=h,
        prior_steps=5))
    if not correction:
        class Without(Blade):
            def _likelihood_step(self, X, Z, g, rho, stream):
                moved, live = super()._likelihood_step(X, Z, g, rho, stream)
                return moved - h * 7 / J * (Z - Z.mean(0)), live
        method = Without(LG.denoise, method.likelihood, method.config)
    state = method.init(member_normals(0, 0, J, (6,)))
    L, mean = conditional(state.x, RHO)
    total = np.zeros((6, 6))
    bias = np.zeros(6)
    for step in range(steps):
        state, _ = method.tell(state, LG.forward(method.ask(state)))
        if step >= steps // 4:
            e = state.z - mean
            total += e.T @ e / J
            bias += e.mean(0)
    kept = steps - steps // 4
    return np.trace(total) / kept / np.trace(L), np.abs(total / kept - L).max(), np.abs(bias / kept).max()


def test_affine_invariant_langevin_leaves_the_conditional_law_invariant(one_generator):
    ratio, covariance_error, mean_error = trace_ratio(400, 0.02, 700)
    assert covariance_error < 1e-2 and mean_error < 1e-2


def test_the_correction_term_is_needed_in_small_ensembles(one_generator):
    assert abs(trace_ratio(40, 0.01, 3000)[0] - 1.0) < 0.03
    assert trace_ratio(40, 0.01, 3000, correction=False)[0] < 0.95


def test_blade_without_coupling_moves_along_the_step_of_eki():
    x = member_normals(0, 0, 12, (6,))
    method = Blade(LG.denoise, stacked(1), blade.Config(outer=1, inner=5, rho_max=1e9, mode="diag"))
    Z, g = 1.0 * x, LG.forward(x)
    moved, _ = method._likelihood_step(Z, Z, g, 1e9, 3)
    h = 10.0 / np.linalg.norm(drift := _eki_drift(Z, g))
    noise = np.sqrt(2 * h) * np.std(Z, axis=0) * member_normals(0, 3, 12, (6,))
    np.testing.assert_allclose(moved - noise, Z - h * drift, atol=1e-10)


def _eki_drift(Z, g):
    """sum_k K[j, k] z_k with K = (1/J) <g_j - y, b_k>/sigma_y^2"""
    K = (g - LG.y) @ (g - g.mean(0)).T / len(Z) / LG.sigma_y**2
    return K @ (Z - Z.mean(0))


# ---------------------------------------------------------------------------------------------------------- DEFT
def test_deft_with_the_optimal_correction_has_the_posterior():
    def optimal(x, denoised, sigma):  # -(1/sigma) K (y - H D)
        S = sigma**2 * LG.jacobian(sigma)
        gain = S @ LG.H.T @ np.linalg.inv(LG.H @ S @ LG.H.T + LG.sigma_y**2 * np.eye(3))
        return -(LG.y - denoised @ LG.H.T) @ gain.T / sigma

    method = DEFT(LG.denoise, optimal, deft.Config(steps=1000))
    origin, *columns = solve(method, LG.forward, np.concatenate([np.zeros((1, 6)), np.eye(6)])).x  # affine in the noise
    F = np.stack(columns, axis=1) - origin[:, None]
    np.testing.assert_allclose(origin, LG.m_p, atol=5e-3)
    np.testing.assert_allclose(F @ F.T, LG.Sigma_p, atol=5e-3)


# ---------------------------------------------------------------------------------------------------------- MMPS
def test_moment_matching_with_a_complete_solve_is_the_exact_posterior_denoiser():
    x, sigma = member_normals(3, 0, 4, (6,)), 0.7
    method = MMPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1),
                  mmps.Config(steps=1, solver=3, sigma_max=sigma, sigma_min=sigma))
    S = sigma**2 * LG.jacobian(sigma)
    gain = S @ LG.H.T @ np.linalg.inv(LG.H @ S @ LG.H.T + LG.sigma_y**2 * np.eye(3))
    denoised = LG.denoise(sigma * x, sigma)
    expected = denoised + (LG.y - denoised @ LG.H.T) @ gain.T
    np.testing.assert_allclose(solve(method, LG.forward, x).x, expected, atol=1e-9)


def test_moment_matching_converges_to_the_posterior_with_the_number_of_steps():
    narrow = []
    for steps in (25, 100):
        method = MMPS(LG.denoise, LG.denoise_vjp, LG.forward_vjp, stacked(1), mmps.Config(steps=steps, solver=3))
        x = solve(method, LG.forward, member_normals(0, 0, 400, (6,))).x
        assert np.linalg.norm(x.mean(0) - LG.m_p) < 4 * math.sqrt(np.trace(LG.Sigma_p) / 400)
        narrow.append(1 - np.trace(np.cov(x.T)) / np.trace(LG.Sigma_p))
    # the ancestral step leaves out the variance of x0 given x: first order in the step
    assert 0.3 < narrow[0] < 0.45 and 0.03 < narrow[1] < 0.17


# ------------------------------------------------------------------------------------------------------ schedule
def test_the_vp_grid_has_its_golden_values():
    golden = {GRID.sigmas[0]: 152.1669702839464, GRID.scales[0]: 6.571586494929619e-3,
              GRID.start(1.0): 0.9999784068923387, schedule.vp_time(0.01): 9.163923896568882e-4,
              GRID.sigmas[250]: 17.017016756436483, GRID.scales[250]: 0.05866350301188082,
              GRID.variances[999]: 1.0024552480139218e-5}
    for value, printed in golden.items():
        assert value == pytest.approx(printed, rel=1e-10)
    assert max(GRID.variances) == pytest.approx(0.02, rel=1e-3) and GRID.variances[998] == pytest.approx(1.398e-4)
    assert len(GRID.sigmas) == 1001 and GRID.sigmas[1000] == pytest.approx(0.01, rel=1e-12)


def test_the_vp_time_inverts_its_sigma():
    for t in np.linspace(1e-3, 1.0, 50):
        assert schedule.vp_time(schedule.vp_sigma(t)) == pytest.approx(t, rel=1e-10)


def test_the_two_forms_of_the_vp_coefficients_agree():
    for i in range(1000):
        t, later = 1 - 0.999 * i / 999, schedule.vp_time(GRID.sigmas[i + 1])
        sigma, s = GRID.sigmas[i], GRID.scales[i]
        beta = 19.9 * t + 0.1
        slope = beta * (1 + sigma**2) / (2 * sigma)  # sigma'
        assert 2 * s**2 * sigma * slope * (t - later) == pytest.approx(GRID.variances[i], rel=1e-9)
        assert 1 + s**2 * sigma * slope * (t - later) == pytest.approx(GRID.gains[i], rel=1e-12)  # -(s'/s) dt
