"""The habits of the official code and of InverseBench, each behind a switch, against a literal transcription.

Q1-Q19 number the differences between the official code and this project; the test names say
which. The official code itself is not run here.
"""

import math
from types import SimpleNamespace

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import PRESETS, Closures, Gaussian, Preset, correct, frobenius, guided_window, iterate, solve, trace
from enkg_ref.diffusion import edm_sigmas, flow_to_zero
from enkg_ref.enkg import intended_guidance
from enkg_ref.extensions import guarded, survivors
from enkg_ref.plan import plan
from enkg_ref.presets import official_guidance

J, D, N = 7, 3, 12
NOISE = np.random.default_rng(50).standard_normal((J, D))
Y = [0.4, -0.3]


def denoise(x, sigma):
    return 0.2 + (x - 0.2) / (1.0 + sigma * sigma) + 0.1 * np.sin(x) / (1.0 + sigma)


def forward(x):
    return np.stack([np.tanh(x[:, 0] + 0.5 * x[:, 1]), x[:, 2] + 0.1 * x[:, 0]], axis=1)


def denoise_one(x, sigma):
    return [0.2 + (v - 0.2) / (1.0 + sigma * sigma) + 0.1 * math.sin(v) / (1.0 + sigma) for v in x]


def forward_one(x):
    return [math.tanh(x[0] + 0.5 * x[1]), x[2] + 0.1 * x[0]]


def literal_run(loop, guided, guidance, gamma_inv=((1.0, 0.0), (0.0, 1.0)), **more):
    return np.array(loop(NOISE.tolist(), denoise_one, forward_one, Y, gamma_inv, N, guided, guidance, **more)[-1])


def run(likelihood=None, noise=NOISE, **settings):
    preset = Preset(steps=N).but(**{"updates": 1, "guidance": 0.6} | settings)
    return solve(preset.method(denoise, likelihood or Gaussian(Y)), forward, noise).x


def assert_same(ours, literal, tolerance=1e-9):
    assert np.max(np.abs(ours - literal)) <= tolerance * np.max(np.abs(literal))


def assert_different(a, b):
    assert np.max(np.abs(a - b)) > 1e-4 * np.max(np.abs(b))


# ------------------------------------------------------------------------------------------------- Q1, Q2, Q18: window


@pytest.mark.parametrize("rule", ["official", "nominal", "inversebench"])
@pytest.mark.parametrize("order", ["correct_then_predict", "predict_then_correct"])
def test_q1_q2_q18_a_window_rule_means_the_same_in_the_loop_it_was_written_for(rule, order):
    start, end = (0.25, 0.25) if rule != "inversebench" else (4.0, 0.0)
    labelled = [i for i in range(N) if {
        "official": i > start * N and i < N - int(end * N),
        "nominal": i >= start * N and i < N - int(end * N),
        "inversebench": i > start and i < N - int(0.5 * start),
    }[rule]]
    ours = run(window=guided_window(N, start, end, rule, order))
    if order == "correct_then_predict":
        literal = literal_run(paper.run_correct_then_predict, labelled, lambda i: 0.6)
    else:  # the pass with index i corrects after its predictor step, at level i + 1
        literal = literal_run(paper.run_predict_then_correct, [i + 1 for i in labelled], lambda i: 0.6)
    assert_same(ours, literal)


def test_q1_the_strict_inequality_drops_a_level_only_where_the_product_is_a_whole_number():
    assert guided_window(80, 0.05, 0.05, "official")[0] == guided_window(80, 0.05, 0.05, "nominal")[0] + 1
    assert guided_window(80, 0.06, 0.05, "official") == guided_window(80, 0.06, 0.05, "nominal")
    # 0.07 * 100 = 7.000000000000001 in floating point: level 7 is dropped by both rules
    assert guided_window(100, 0.07, 0.0, "nominal")[0] == 8
    # int(0.29 * 100) = 28
    assert guided_window(100, 0.0, 0.29, "nominal")[1] == 71


@pytest.mark.parametrize("arguments, named", [((10, 0.1, 0.1, "strict"), "rule"),
                                              ((10, 0.1, 0.1, "official", "backwards"), "order")])
def test_unknown_switches_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        guided_window(*arguments)


# ------------------------------------------------------------------------------------------------------- Q3: step rule


def official_update(xs, ys, y, gamma):
    """The official ensemble update: un-weighted error, anomalies with 1/J, step normalised by the Frobenius norm."""
    xs_diff, ys_diff, ys_err = xs - xs.mean(axis=0), ys - ys.mean(axis=0), ys - y
    coefficients = ys_err @ ys_diff.T / len(xs)
    return xs - gamma / np.sqrt(np.sum(coefficients**2)) * coefficients @ xs_diff


def paper_update(xs, ys, y, cov, gamma=1.0):
    """The paper's step, w = 1/tr(C_yy) with Gamma inside the trace."""
    xs_diff, ys_diff = xs - xs.mean(axis=0), ys - ys.mean(axis=0)
    c_yy, c_xy = ys_diff.T @ ys_diff / len(xs), xs_diff.T @ ys_diff / len(xs)
    inverse = np.linalg.inv(cov)
    return xs - gamma / np.trace(inverse @ c_yy) * (ys - y) @ inverse @ c_xy.T


def test_q3_each_step_rule_is_the_one_it_is_named_after():
    rng = np.random.default_rng(51)
    for members, d, m in ((30, 4, 3), (6, 5, 8)):
        xs, ys, y = rng.standard_normal((members, d)), rng.standard_normal((members, m)), rng.standard_normal(m)
        a = rng.standard_normal((m, m))
        cov = a @ a.T + np.eye(m)
        ours, _ = correct(xs, ys, Gaussian(y).residual, frobenius(2.0))
        assert_same(ours, official_update(xs, ys, y, 2.0), 1e-12)
        ours, _ = correct(xs, ys, Gaussian(y, cov).residual, trace(1.0))
        assert_same(ours, paper_update(xs, ys, y, cov), 1e-12)
        assert_different(official_update(xs, ys, y, 1.0), paper_update(xs, ys, y, np.eye(m)))


def test_q3_the_two_rules_are_not_rescalings_of_each_other():
    rng = np.random.default_rng(52)
    ratios = []
    for offset in (0.0, 3.0):
        xs, ys = rng.standard_normal((30, 4)), rng.standard_normal((30, 3)) + offset
        steps = [float(correct(xs, ys, Gaussian([0.0] * 3).residual, rule(1.0))[1].step) for rule in (frobenius, trace)]
        ratios.append(steps[0] / steps[1])
    assert ratios[0] / ratios[1] > 1.5


# ------------------------------------------------------------------------------------------- Q4, Q5, Q6, Q19: schedule


@pytest.mark.parametrize("schedule, literal", [(official_guidance, paper.guidance_official),
                                               (intended_guidance, paper.guidance_intended)])
def test_q4_a_run_uses_the_guidance_schedule_it_was_given(schedule, literal):
    ours = run(window=(2, 9), guidance=1.5, guidance_floor=0.4, guidance_schedule=schedule)
    assert_same(ours, literal_run(paper.run_correct_then_predict, range(2, 10), lambda i: literal(i, N, 1.5, 0.4)))
    assert_different(ours, run(window=(2, 9), guidance=1.5))


def test_q4_the_black_hole_preset_follows_the_official_schedule():
    method = PRESETS["black-hole-official"].method(denoise, Gaussian(Y))
    infos = [info for _, info in iterate(method, forward, method.init(NOISE))]
    expected = [3.5 * (1.0 - 1e-3) * (80 - i) / 80 + 1e-3 for i in range(9, 72)]
    assert [info.gamma for info in infos] == pytest.approx(expected, rel=1e-14)
    assert [info.level for info in infos] == list(range(9, 72))


def test_q5_a_run_can_use_the_float32_noise_levels():
    grid32 = edm_sigmas(N, dtype="float32")
    method = Preset(J, N, (2, 9), sigma_dtype="float32").method(denoise, Gaussian(Y))
    assert method.sigmas == grid32 and all(float(np.float32(s)) == s for s in grid32)
    assert edm_sigmas(N) != grid32
    near = [run(window=(2, 9), guidance=0.1, sigma_dtype=dtype) for dtype in ("float32", "float64")]
    difference = np.max(np.abs(near[0] - near[1])) / np.max(np.abs(near[1]))
    assert 1e-10 < difference < 1e-4


def test_q6_the_inner_grid_ignores_the_outer_one_unless_told():
    outer = {"sigma_min": 0.05, "rho": 3.0, "window": (2, 9)}
    literal = literal_run(paper.run_correct_then_predict, range(2, 10), lambda i: 0.6, sigma_min=0.05, rho=3.0)
    assert_same(run(**outer), literal)  # the literal inner flow keeps 0.002 and 7
    x = 4.0 * NOISE
    told = flow_to_zero(x, 4.0, denoise, 5, sigma_eps=0.05, rho=3.0)
    assert_same(told, [paper.flow_to_zero(row, 4.0, denoise_one, 5, 0.05, 3.0) for row in x.tolist()], 1e-12)
    assert_different(run(**outer, sigma_eps=0.05, rho_inner=3.0), literal)


def test_q19_inversebench_divides_by_eight():
    ours = run(window=(1, 9), inner_factor=8)
    assert_same(ours, literal_run(paper.run_correct_then_predict, range(1, 10), lambda i: 0.6, factor=8))
    assert_different(ours, run(window=(1, 9)))
    assert PRESETS["inversebench"].config.inner_factor == 8
    assert PRESETS["navier-stokes-official"].config.inner_factor == 4


# ------------------------------------------------------------------------------------------------ Q7, Q8: the residual


def test_q7_without_noise_the_residual_is_the_plain_error_of_the_base_class():
    g = forward(NOISE)
    np.testing.assert_allclose(Gaussian(Y).residual(g), g - np.array(Y), rtol=0, atol=1e-15)
    # a scalar Gamma cancels under the normalised step, unequal ones do not
    plain = run(window=(2, 9))
    assert_same(run(Gaussian(Y, 0.01), window=(2, 9)), plain)
    weighted = run(Gaussian(Y, [0.1, 1.0]), window=(2, 9))
    assert_different(weighted, plain)
    assert_same(weighted, literal_run(paper.run_correct_then_predict, range(2, 10), lambda i: 0.6,
                                      gamma_inv=((100.0, 0.0), (0.0, 1.0))))


def official_closure_residual(g, y, s, phase_loss):
    """Half the gradient of the official loss for [phases, log amplitudes, flux], weights (1, 1, 1/2)."""
    d = g - y
    phase = np.sin(d[:, :2]) if phase_loss == "cos" else d[:, :2]
    return np.concatenate([2.0 * phase / s[:2] ** 2, 2.0 * d[:, 2:4] / s[2:4] ** 2, 0.25 * d[:, 4:]], axis=1)


@pytest.mark.parametrize("phase_loss", ["cos", "square"])
def test_q8_closures_reproduce_the_official_residual_up_to_its_overall_factor(phase_loss):
    rng = np.random.default_rng(53)
    y, s = rng.uniform(-3.0, 3.0, 5), np.append(rng.uniform(0.05, 0.5, 4), 1.0)
    xs, ys = rng.standard_normal((20, 6)), rng.uniform(-3.1, 3.1, (20, 5))
    likelihood = Closures(y, s, [True, True, False, False, False], [1.0, 1.0, 1.0, 1.0, 0.125], phase_loss)
    literal = official_closure_residual(ys, y, s, phase_loss)
    np.testing.assert_allclose(2.0 * likelihood.residual(ys), literal, rtol=1e-13, atol=1e-13)
    ours, _ = correct(xs, ys, likelihood.residual, frobenius(2.0))
    coefficients = literal @ (ys - ys.mean(axis=0)).T / 20
    expected = xs - 2.0 / np.linalg.norm(coefficients) * coefficients @ (xs - xs.mean(axis=0))
    assert_same(ours, expected, 1e-12)


def test_q8_the_square_loss_jumps_by_a_turn_and_the_cosine_loss_does_not():
    just_below, just_above = np.array([[math.pi - 1e-9]]), np.array([[-math.pi + 1e-9]])  # the same angle but 2e-9
    for phase_loss, jump in (("square", 2.0 * math.pi), ("cos", 0.0)):
        residual = Closures([0.5], 1.0, [True], phase_loss=phase_loss).residual
        assert float((residual(just_below) - residual(just_above))[0, 0]) == pytest.approx(jump, abs=1e-8)


# -------------------------------------------------------------------------------------- Q9, Q10, Q11: what must not be


def test_q9_without_a_guard_even_rounding_noise_is_normalised_to_full_length():
    rng = np.random.default_rng(54)
    xs, ys = rng.standard_normal((40, 6)), 1.0 + 1e-16 * rng.standard_normal((40, 3))
    ys[0, 0] += 2.3e-16  # one unit in the last place
    ours, record = correct(xs, ys, Gaussian([0.0] * 3).residual, frobenius(2.0))
    assert float(record.step) * float(record.norm) == pytest.approx(2.0, rel=1e-12)
    assert np.linalg.norm(ours - xs) > 0.01
    kept, record = guarded(correct)(xs, ys, Gaussian([0.0] * 3).residual, frobenius(2.0))
    assert np.array_equal(kept, xs) and float(record.step) == 0.0


def test_q9_released_presets_run_without_the_guard():
    problem = SimpleNamespace(defaults={}, observation=None, event_shape=NOISE.shape[1:])
    item = SimpleNamespace(problem=problem, likelihood=Gaussian(Y), denoise=denoise, sigma_range=(0.0, math.inf))
    assert {plan(item, None, 1, 0, {"preset": name}).settings["guard"] for name in PRESETS} == {0.0}
    assert plan(item, None, 1, 0, {}).settings["guard"] == 64.0


def test_q10_the_official_formula_spreads_one_nan_to_all_rows_and_the_library_never_does():
    ys = forward(NOISE)
    ys[3, 0] = np.nan
    assert np.all(np.isnan(official_update(NOISE, ys, np.array(Y), 2.0)))
    for failed in ("shift", "keep"):
        ours, _ = survivors(correct, failed)(NOISE, ys, Gaussian(Y).residual, frobenius(2.0))
        rest = np.arange(J) != 3
        assert_same(ours[rest], official_update(NOISE[rest], ys[rest], np.array(Y), 2.0), 1e-12)
        assert np.all(np.isfinite(ours))


def test_the_released_settings_are_what_the_table_says():
    table = {
        "navier-stokes-official": (2048, 2, 2.0, 0.0, (5, 75), 4),
        "ffhq-official": (1024, 2, 2.0, 0.0, (5, 75), 4),
        "black-hole-official": (1024, 1, 3.5, 1e-3, (9, 71), 4),
        "inversebench": (2048, 2, 2.0, 0.0, (1, 79), 8),
    }
    assert set(PRESETS) == set(table)
    for name, (particles, updates, guidance, floor, window, factor) in table.items():
        p, c = PRESETS[name], PRESETS[name].config
        assert (p.particles, c.updates, c.guidance, c.guidance_floor, p.window, c.inner_factor) == (
            particles, updates, guidance, floor, window, factor), name
        assert (p.steps, p.sigma_max, p.sigma_min, p.rho, c.inner_cap) == (80, 80.0, 0.002, 7.0, 20), name
        assert (c.sigma_eps, c.rho_inner, c.step_rule) == (0.002, 7.0, frobenius), name


def test_a_whole_run_equals_a_vectorised_transcription_of_the_official_loop():
    # float32 levels, official window and schedule, plain residual, two updates per level
    n, updates, gamma, r_min, ths = 16, 2, 0.8, 0.05, 0.125
    sigmas = edm_sigmas(n, dtype="float32")
    x = 80.0 * NOISE
    for i in range(n):
        if i > ths * n and i < n - int(ths * n):
            for _ in range(updates):
                steps = min(1 + (n - i) // 4, 20)
                grid, x0 = edm_sigmas(steps, sigmas[i], 0.002, 7.0), x
                for here, following in zip(grid, grid[1:]):
                    x0 = x0 + (following - here) * (x0 - denoise(x0, here)) / here
                guidance = gamma * (1 - r_min) * (n - i) / n + r_min
                x = official_update(x, forward(x0), np.array(Y), guidance)
        x = x + (sigmas[i + 1] - sigmas[i]) * (x - denoise(x, sigmas[i])) / sigmas[i]
    ours = run(steps=n, updates=updates, guidance=gamma, guidance_floor=r_min, guidance_schedule=official_guidance,
               window=guided_window(n, ths, ths), sigma_dtype="float32", noise=80.0 / sigmas[0] * NOISE)
    assert_same(ours, x)
