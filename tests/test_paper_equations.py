"""The library equals the executable specification (paper_equations.py) on every back-end: equations, then runs."""

import math

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import Gaussian, Preset, guided_window, iterate, solve
from enkg_ref import ensemble as library
from enkg_ref.enkg import intended_guidance
from enkg_ref.extensions import lowrank
from enkg_ref.presets import official_guidance

RULES = {"frobenius": library.frobenius, "trace": library.trace, "constant": library.constant}
FORMS = {"pairwise": library.correct, "lowrank": lowrank}
SHAPES = [(6, (4,), 3), (5, (2, 3), 4), (24, (3,), 2), (2, (1,), 1)]  # J, event, m


def precision(backend):
    return ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)


def snapshot(J, event, m, seed=0, dense=True):
    """Particles, predictions, data and noise covariance of one update."""
    rng = np.random.default_rng([seed, J, m])
    x, g, y = rng.standard_normal((J, *event)), 2.0 * rng.standard_normal((J, m)), rng.standard_normal(m)
    a = rng.standard_normal((m, m))
    return x, g, y, a @ a.T + m * np.eye(m) if dense else np.diag(rng.uniform(0.2, 2.0, m) ** 2)


def flat(x):
    return np.asarray(x).reshape(len(x), -1).tolist()


def assert_close(ours, literal, tolerance):
    """Error relative to the largest entry of the literal result."""
    ours, literal = np.asarray(ours, dtype=float), np.asarray(literal, dtype=float)
    assert ours.shape == literal.shape
    assert np.max(np.abs(ours - literal)) <= tolerance * np.max(np.abs(literal))


# ------------------------------------------------------------------------------------------------ equation by equation


@pytest.mark.parametrize("J, event, m", SHAPES)
def test_mean_anomalies_residual_and_coefficients_equal_the_literal_sums(backend, J, event, m):
    dtype, tolerance = precision(backend)
    x, g, y, gamma = snapshot(J, event, m)
    likelihood, gamma_inv = Gaussian(y, gamma), np.linalg.inv(gamma).tolist()
    ours_x, ours_g = backend.array(np.asarray(flat(x)), dtype), backend.array(g, dtype)
    assert_close(backend.numpy(library.ensemble_mean(ours_x))[0], paper.ensemble_mean(flat(x)), tolerance)
    b = library.anomalies(ours_g)
    assert_close(backend.numpy(b), paper.anomalies(g.tolist()), tolerance)
    r = likelihood.residual(ours_g)
    literal_r = [paper.gaussian_residual(y.tolist(), gamma_inv)(row) for row in g.tolist()]
    assert_close(backend.numpy(r), literal_r, tolerance)
    k = backend.numpy(library.coefficients(r, b))
    assert_close(k, paper.coefficients(g.tolist(), y.tolist(), gamma_inv), tolerance)
    assert_close(k, paper.coefficients_of_residual(literal_r, paper.anomalies(g.tolist())), tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("J, event, m, dense", [(*shape, True) for shape in SHAPES] + [(*SHAPES[2], False)])
def test_one_correction_equals_the_double_sum_over_particles(backend, form, rule, J, event, m, dense):
    dtype, tolerance = precision(backend)
    x, g, y, gamma = snapshot(J, event, m, dense=dense)
    likelihood = Gaussian(y, gamma if dense else np.sqrt(np.diag(gamma)))
    moved, record = FORMS[form](backend.array(x, dtype), backend.array(g, dtype), likelihood.residual,
                                RULES[rule](0.7))
    literal, w, norm = paper.correct(flat(x), g.tolist(), y.tolist(), np.linalg.inv(gamma).tolist(), rule, 0.7)
    assert moved.shape == (J, *event)
    assert_close(np.reshape(backend.numpy(moved), (J, -1)), literal, tolerance)
    assert float(record.step) == pytest.approx(w, rel=tolerance)
    assert float(record.norm) == pytest.approx(norm, rel=tolerance)
    tau = paper.observed_spread(g.tolist(), np.linalg.inv(gamma).tolist())
    assert float(record.trace) == pytest.approx(tau, rel=10 * tolerance)


@pytest.mark.parametrize("J, event, m", SHAPES)
def test_both_forms_of_the_update_equal_both_literal_forms(backend, J, event, m):
    dtype, tolerance = precision(backend)
    x, g, y, gamma = snapshot(J, event, m)
    gamma_inv = np.linalg.inv(gamma).tolist()
    X, G = backend.array(np.asarray(flat(x)), dtype), backend.array(g, dtype)
    residual = Gaussian(y, gamma).residual
    literal = paper.update_pairwise(flat(x), paper.coefficients(g.tolist(), y.tolist(), gamma_inv), 0.3)
    literal_r = [paper.gaussian_residual(y.tolist(), gamma_inv)(row) for row in g.tolist()]
    for form in FORMS.values():
        assert_close(backend.numpy(form(X, G, residual, library.constant(0.3))[0]), literal, tolerance)
    assert_close(paper.update_lowrank(flat(x), literal_r, g.tolist(), 0.3), literal, 1e-12)


@pytest.mark.parametrize("J, event, m", SHAPES[1:3])
def test_float32_corrections_keep_four_digits_of_the_displacement(backend, J, event, m):
    # spread 1e-2 around a point of size 1, the smallest at which float32 is to be trusted
    x, g, y, gamma = snapshot(J, event, m)
    x, g = (np.ones_like(v) + 0.01 * v for v in (x, g))
    x, g = x.astype("float32").astype("float64"), g.astype("float32").astype("float64")
    literal, _, _ = paper.correct(flat(x), g.tolist(), y.tolist(), np.linalg.inv(gamma).tolist(), "frobenius", 1.3)
    moved, _ = library.correct(backend.array(x, "float32"), backend.array(g, "float32"), Gaussian(y, gamma).residual,
                               library.frobenius(1.3))
    assert moved.dtype == backend.array(x, "float32").dtype
    error = np.reshape(backend.numpy(moved), (J, -1)) - np.asarray(literal)
    displacement = np.asarray(literal) - np.asarray(flat(x))
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(displacement)


@pytest.mark.parametrize("gamma, floor", [(3.5, 1e-3), (2.0, 0.3), (0.7, 1.0), (2.0, 0.0)])
def test_guidance_schedules_equal_their_literal_forms(gamma, floor):
    for n in (3, 80):
        for i in range(n + 1):
            assert intended_guidance(i, n, gamma, floor) == pytest.approx(
                paper.guidance_intended(i, n, gamma, floor), rel=1e-12)
            assert official_guidance(i, n, gamma, floor) == pytest.approx(
                paper.guidance_official(i, n, gamma, floor), rel=1e-12)
    assert {official_guidance(i, 80, gamma, 0.0) for i in range(81)} == {gamma}  # no floor: constant


def test_the_black_hole_guidance_has_the_published_digits():
    printed = {0: "3.4975", 9: "3.1041", 34: "2.0115", 35: "1.9678", 39: "1.7930", 71: "0.3944", 79: "0.0447"}
    assert {i: f"{official_guidance(i, 80, 3.5, 1e-3):.4f}" for i in printed} == printed
    above_two = [i for i in range(9, 72) if official_guidance(i, 80, 3.5, 1e-3) > 2.0]
    assert above_two == list(range(9, 35))
    assert official_guidance(7, 80, 3.5, 1.0) == 1.0  # the quirk: r_min = 1 forgets gamma
    assert intended_guidance(7, 80, 3.5, 1.0) == 3.5


@pytest.mark.parametrize("rule", ["official", "nominal", "inversebench"])
def test_window_rules_equal_their_literal_transcription(rule):
    rng = np.random.default_rng(11)
    cases = [(80, 0.05, 0.05), (80, 0.1, 0.1), (100, 0.29, 0.57), (100, 0.07, 0.0), (40, 0.05, 0.05)]
    cases += [(int(n), round(float(a), 2), round(float(b), 2))
              for n, a, b in zip(rng.integers(2, 200, 100), rng.uniform(0, 0.6, 100), rng.uniform(0, 0.6, 100))]
    empty = 0
    for n, start, end in cases:
        if rule == "inversebench":
            start *= 10.0  # a level index, not a fraction
            literal = [i for i in range(n) if paper.is_guided_inversebench(i, n, start)]
        else:
            is_guided = {"official": paper.is_guided_official, "nominal": paper.is_guided_nominal}[rule]
            literal = [i for i in range(n) if is_guided(i, n, start, end)]
        first, last = guided_window(n, start, end, rule)
        assert list(range(first, last + 1)) == literal, (n, start, end)
        empty += not literal
    assert empty < 50


def test_windows_of_the_released_settings():
    assert guided_window(80, 0.05, 0.05, "official") == (5, 75)
    assert guided_window(80, 0.05, 0.05, "nominal") == (4, 75)
    assert guided_window(80, 0.1, 0.1, "official") == (9, 71)
    assert guided_window(80, 0.1, 0.1, "nominal") == (8, 71)
    assert guided_window(80, 0.1, 0.1, "inversebench") == (1, 79)


# ---------------------------------------------------------------------------------------------------------- whole runs

N, J, D, M = 10, 5, 3, 2
CENTRE, VARIANCE = np.array([0.4, -1.0, 0.2]), np.array([0.5, 1.0, 2.0])
H = np.random.default_rng(21).standard_normal((M, D))
Y = np.array([0.3, -0.8])
GAMMA = np.array([[0.5, 0.2], [0.2, 0.9]])
NOISE = np.random.default_rng(22).standard_normal((J, D))


def denoise_one(x, sigma):
    """A Gaussian prior's denoiser with a bend: rows and components are independent."""
    return [CENTRE[a] + VARIANCE[a] / (VARIANCE[a] + sigma * sigma) * (x[a] - CENTRE[a])
            + 0.1 * math.sin(x[a]) / (1.0 + sigma) for a in range(D)]


def forward_one(x):
    return [math.tanh(0.5 * sum(H[p, a] * x[a] for a in range(D))) + 0.2 * x[0] for p in range(M)]


def arrays(backend, dtype):
    """The same two maps for ensembles on a back-end."""
    xp = backend.xp
    centre, variance, h = (backend.array(v, dtype) for v in (CENTRE[None, :], VARIANCE[None, :], H.T.copy()))

    def denoise(x, sigma):
        return centre + variance / (variance + sigma * sigma) * (x - centre) + 0.1 * xp.sin(x) / (1.0 + sigma)

    def forward(x):
        return xp.tanh(0.5 * xp.matmul(x, h)) + 0.2 * x[:, :1]

    return denoise, forward


LOOPS = {"correct_then_predict": paper.run_correct_then_predict, "predict_then_correct": paper.run_predict_then_correct}


def literal_run(loop, window, scale=0.5, updates=2, rule="frobenius"):
    return loop(NOISE.tolist(), denoise_one, forward_one, Y.tolist(), np.linalg.inv(GAMMA).tolist(), N,
                range(window[0], window[1] + 1), lambda i: paper.guidance_intended(i, N, scale, 0.2), updates, rule,
                sigma_max=20.0, sigma_min=0.05, rho=5.0)


def method(denoise, window, scale=0.5, updates=2, rule="frobenius"):
    settings = Preset(J, N, window, sigma_max=20.0, sigma_min=0.05, rho=5.0)
    return settings.but(updates=updates, guidance=scale, guidance_floor=0.2, guidance_schedule=intended_guidance,
                        step_rule=RULES[rule]).method(denoise, Gaussian(Y, GAMMA))


@pytest.mark.parametrize("rule, scale", [("frobenius", 0.5), ("trace", 0.5), ("constant", 0.02)])
def test_a_whole_run_equals_the_literal_loop(backend, rule, scale):
    dtype = precision(backend)[0]
    denoise, forward = arrays(backend, dtype)
    state = solve(method(denoise, (1, 8), scale, rule=rule), forward, backend.array(NOISE, dtype))
    literal = literal_run(paper.run_correct_then_predict, (1, 8), scale, rule=rule)
    assert_close(backend.numpy(state.x), literal[-1], 1e-9 if backend.float64 else 2e-4)
    unguided = literal_run(paper.run_correct_then_predict, (1, 0))
    assert np.max(np.abs(np.array(unguided[-1]) - np.array(literal[-1]))) > 0.05  # the guidance did something


@pytest.mark.parametrize("order, window", [("correct_then_predict", (0, 8)), ("correct_then_predict", (3, 9)),
                                           ("predict_then_correct", (1, 9)), ("predict_then_correct", (4, 10))])
def test_runs_that_touch_the_ends_equal_the_loop_of_their_order(backend, order, window):
    # level 0 can be corrected only before the first prediction, level N (sigma = 0) only after the last one
    if not backend.float64:
        pytest.skip("double precision comparison")
    denoise, forward = arrays(backend, "float64")
    state = solve(method(denoise, window), forward, backend.array(NOISE))
    assert_close(backend.numpy(state.x), literal_run(LOOPS[order], window)[-1], 1e-9)


def test_every_level_of_a_run_equals_the_literal_trajectory():
    from conftest import make_backend

    denoise, forward = arrays(make_backend("numpy"), "float64")
    run = method(denoise, (2, 8), updates=1)
    levels = literal_run(paper.run_correct_then_predict, (2, 8), updates=1)
    visited = [(state.level, state.x) for state, _ in iterate(run, forward, run.init(NOISE))]
    assert [level for level, _ in visited] == [3, 4, 5, 6, 7, 8, 10]  # level 9 is not guided, 10 is sigma = 0
    for level, x in visited:
        assert_close(x, levels[level], 1e-10)


@pytest.mark.parametrize("window", [(1, 9), (1, 1), (5, 8), (9, 9), (1, 0)])
def test_both_orders_of_the_specification_give_the_same_bits_inside_the_ends(window):
    a, b = (literal_run(loop, window) for loop in LOOPS.values())
    assert a[-1] == b[-1]


def test_the_orders_differ_at_the_ends_only():
    first, second = LOOPS.values()
    assert literal_run(first, (0, 3))[-1] != literal_run(second, (0, 3))[-1]
    assert literal_run(second, (0, 3))[-1] == literal_run(second, (1, 3))[-1]
    assert literal_run(first, (5, 10))[-1] == literal_run(first, (5, 9))[-1]
    assert literal_run(second, (5, 10))[-1] != literal_run(second, (5, 9))[-1]
