"""Edge cases: constant, collapsed, failing members, wrong shapes and settings, the guard at the rounding floor (C8)."""

import dataclasses
import math
import warnings

import numpy as np
import pytest

from enkg_ref import Closures, Gaussian, Preset, constant, correct, frobenius, iterate, solve, step, trace
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import finite, guarded, lowrank, survivors
from enkg_ref.protocol import evaluate
from enkg_ref.run.members import chunked

RULES = {"frobenius": frobenius, "trace": trace, "constant": constant}
FORMS = {"pairwise": correct, "lowrank": lowrank}
J, D, M = 8, 3, 2
RNG = np.random.default_rng(3)
X = RNG.standard_normal((J, D))
Y = RNG.standard_normal(M)


def precision(backend):
    return "float64" if backend.float64 else "float32"


def denoise(x, sigma):
    return x / (1.0 + sigma * sigma)


def forward(x):
    return np.stack([x[:, 0] + 0.1 * x[:, 1] ** 2, x[:, 2]], axis=1)


def method(denoise=denoise, failed="shift", multiple=64.0, **settings):
    """The method with the safe set around it."""
    settings = {"steps": 6, "updates": 2, "window": (2, 4), "sigma_max": 5.0} | settings
    return Preset().but(**settings).method(finite(denoise), Gaussian(Y, 0.3),
                                           survivors(guarded(correct, multiple), failed))


def lines(run, pairs):
    """The history of (state, info) pairs."""
    memory, found = Memory(), []
    for _, info in pairs:
        memory, line = observe(memory, info, run.likelihood)
        found.append(line)
    return found


def skipped(record):
    return float(record.step) == 0.0


# ----------------------------------------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("particles", [1, 0, -3, 2.5])
def test_fewer_than_two_particles_are_refused_at_set_up(particles):
    with pytest.raises(ValueError, match=rf"particles: got {particles}, expected a whole number of at least 2"):
        Preset(particles=particles)
    if particles in (0, 1):
        with pytest.raises(ValueError, match=rf"noise: got {particles} row, expected at least 2"):
            method().init(X[:particles])


@pytest.mark.parametrize("settings, named", [
    ({"steps": 1}, "steps"), ({"updates": 0}, "updates"), ({"guidance": -1.0}, "guidance"),
    ({"guidance": math.inf}, "guidance"), ({"window": (3, 99)}, "window"), ({"window": (-1, 3)}, "window"),
    ({"updates": 1.5}, "updates"), ({"step_rule": "frobenius"}, "step_rule"), ({"rho": 0.0}, "rho"),
])
def test_settings_that_make_no_sense_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=f"{named}: got .*expected"):
        method(**settings)


# -------------------------------------------------------------------------------------------------- nothing to correct


@pytest.mark.parametrize("rule, multiple", [(rule, 64.0) for rule in RULES] + [("frobenius", 0.0)])
@pytest.mark.parametrize("form", FORMS)
def test_constant_outputs_leave_the_particles_alone(backend, rule, multiple, form):
    dtype = precision(backend)
    x, g = backend.array(X, dtype), backend.array(np.full((J, M), 0.5), dtype)
    moved, record = guarded(FORMS[form], multiple)(x, g, Gaussian(Y, 0.3).residual, RULES[rule](2.0))
    assert np.array_equal(backend.numpy(moved), backend.numpy(x))
    assert skipped(record) and float(record.norm) == 0.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("multiple", [64.0, 0.0])
def test_outputs_that_all_equal_the_data_leave_the_particles_alone(rule, multiple):
    moved, record = guarded(correct, multiple)(X, np.tile(Y, (J, 1)), Gaussian(Y, 0.3).residual, RULES[rule](2.0))
    assert np.array_equal(moved, X) and skipped(record)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("members", [2, 3, 7, 49])
def test_equal_particles_stay_where_they_are(rule, members):
    # the computed mean of equal numbers need not be exact: ||K||_F is then rounding, and only the guard tells
    x = np.tile([0.1, 1.0 / 3.0, 1e3], (members, 1))
    moved, record = guarded(correct)(x, forward(x), Gaussian(Y, 0.3).residual, RULES[rule](2.0))
    assert np.array_equal(moved, x) and skipped(record)
    plain, _ = guarded(correct, 0.0)(x, forward(x), Gaussian(Y, 0.3).residual, frobenius(2.0))
    assert np.max(np.abs(plain - x)) <= 1e-11  # without a guard: finite, and of rounding size


@pytest.mark.filterwarnings("ignore:level")
def test_a_collapsed_update_in_a_run_is_recorded_warned_about_and_survived():
    def constant_forward(x):
        return np.zeros((len(x), M))

    run = method()
    pairs = list(iterate(run, constant_forward, run.init(X)))
    with pytest.warns(UserWarning, match=r"level 4, update 1 is skipped, \|\|K\|\|_F = 0, .*has collapsed"):
        history = lines(run, pairs)
    assert len(pairs) == 6 and all(line["skipped"] and line["step"] == 0.0 for line in history)
    assert history[-1]["collapse_budget"] == 0.0
    unguided = solve(method(window=(1, 0)), constant_forward, X)
    assert np.array_equal(pairs[-1][0].x, unguided.x)


def test_a_step_that_is_not_finite_is_never_used_and_named():
    run = method(multiple=0.0)
    quiet = np.errstate(over="ignore", invalid="ignore")
    with quiet, pytest.raises(FloatingPointError, match=r"K.* level 2, update 0"):
        step(run, run.init(X), lambda x: forward(x) * 1e200)  # finite, but ||K||_F overflows


# ---------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_row_of_the_output_touches_no_other_row(bad):
    run = method()
    state = run.init(X)
    g = forward(run.ask(state))
    g[5, 1] = bad
    after, info = run.tell(state, g)
    with pytest.warns(UserWarning, match="5 %"):
        _, line = observe(Memory(), info, run.likelihood)
    assert line["failed_rows"] == [5] and np.all(np.isfinite(after.x))
    survivors = np.arange(J) != 5
    alone, _ = correct(state.x[survivors], g[survivors], Gaussian(Y, 0.3).residual, frobenius(2.0))
    np.testing.assert_allclose(after.x[survivors], alone, rtol=1e-12, atol=1e-12)


def test_raise_stops_at_the_first_non_finite_row():
    run = method(failed="raise")
    state = run.init(X)
    g = forward(run.ask(state))
    g[[6, 5], 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"row 5 .*level 2, update 0"):
        step(run, state, lambda x: g)


def test_raise_lets_healthy_members_pass():
    default, strict = (solve(method(failed=failed), forward, X) for failed in ("shift", "raise"))
    assert np.array_equal(default.x, strict.x)


@pytest.mark.parametrize("lost", [J, J - 1])
def test_fewer_than_two_finite_rows_are_an_error_of_the_same_update(lost):
    run = method()
    state = run.init(X)
    g = forward(run.ask(state))
    g[:lost, 0] = np.nan
    with pytest.raises(FloatingPointError, match=rf"{J - lost} of {J} rows are finite.* at level 2"):
        step(run, state, lambda x: g)


def test_rows_that_are_not_finite_are_not_sent_to_the_forward_model(backend):
    xp, dtype = backend.xp, precision(backend)
    host = X.copy()
    host[[0, 4], 1] = [np.nan, np.inf]
    seen = []

    def forward(x):
        seen.append(np.array(backend.numpy(x)))
        return xp.sin(x[:, :2])

    g = backend.numpy(evaluate(forward, backend.array(host, dtype)))
    good = np.isfinite(host).all(axis=1)
    assert len(seen) == 1 and seen[0].shape == X.shape and np.all(np.isfinite(seen[0]))
    assert np.array_equal(seen[0][good], host[good].astype(dtype))
    assert np.all(np.isnan(g[~good]))
    np.testing.assert_allclose(g[good], np.sin(host[good, :2]), rtol=1e-5)


def test_an_inner_flow_that_fails_for_one_particle_costs_that_particle_only():
    def fragile(x, sigma):  # wrong only inside the inner flow of the first guided level, below the outer level
        d = denoise(x, sigma)
        if sigma < run.sigmas[2] and sigma > run.sigmas[3]:
            d = np.where(np.arange(len(x))[:, None] == 3, np.nan, d)
        return d

    run = dataclasses.replace(method(updates=1, window=(2, 2), inner_factor=1), denoise=fragile)
    state, info = step(run, run.init(X), forward)
    with pytest.warns(UserWarning, match="5 %"):
        assert lines(run, [(state, info)])[0]["failed_rows"] == [3]
    assert np.all(np.isfinite(state.x))


def test_a_non_finite_denoised_particle_in_the_predictor_is_an_error_with_an_address():
    def broken(x, sigma):
        return np.where(np.arange(len(x))[:, None] == 2, np.nan, denoise(x, sigma))

    with pytest.raises(FloatingPointError, match=r"denoise: row 2 .* sigma = 5"):
        method(broken).init(X)


@pytest.mark.parametrize("wrong, reason", [
    (lambda x: forward(x)[:-1], "forward must return one row per particle"),
    (lambda x: forward(x).sum(axis=0, keepdims=True), "forward must return one row per particle"),
    (lambda x: forward(x)[:, :1], "the data are 2 numbers"), (lambda x: forward(x)[:, 0], "the data are 2 numbers"),
    (lambda x: 3.0, "forward must return one row per particle")])
def test_a_forward_model_of_the_wrong_shape_is_told_what_was_expected(wrong, reason):
    with pytest.raises(ValueError, match=rf"expected \(8, 2\): {reason}"):
        solve(method(), wrong, X)


@pytest.mark.parametrize("wrong", [lambda x: None, lambda x: [["a", "b"]] * J, lambda x: forward(x) + 1j])
def test_a_forward_model_that_returns_no_real_numbers_is_told_so(wrong):
    with pytest.raises(ValueError, match=r"forward: got something that is not an array of real numbers, .*\(8, 2\)"):
        solve(method(), wrong, X)


def test_whole_numbers_and_lists_are_taken_for_what_they_are():
    rounded = solve(method(), lambda x: np.round(10 * forward(x)), X).x
    assert np.array_equal(solve(method(), lambda x: np.round(10 * forward(x)).astype(int), X).x, rounded)
    assert np.array_equal(solve(method(), lambda x: np.round(10 * forward(x)).astype(int).tolist(), X).x, rounded)


@pytest.mark.parametrize("size", [1, 3, 5, J, 100])
def test_the_remainder_of_a_batch_is_processed_like_any_other(size):
    # the official code drops it: 36 of 100 particles, batch 64, end at |x| <= 3e-17
    whole = solve(method(guidance=0.5), forward, X)
    run = method(chunked(denoise, size), guidance=0.5)
    np.testing.assert_allclose(solve(run, chunked(forward, size), X).x, whole.x, rtol=1e-12, atol=1e-13)


# ----------------------------------------------------------------------------------------- guard at the rounding floor


def schur_complement(x, h):
    """N = C - C H' (H C H')^+ H C, the part of the covariance that no observation reaches: invariant (T16)."""
    z = x - x.mean(axis=0)
    c = z.T @ z / len(x)
    return c - c @ h.T @ np.linalg.pinv(h @ c @ h.T) @ h @ c


def run_c8(dtype, multiple, seed, updates=400):
    """C8: linear psi, frobenius, gamma = 2, continued after the collapse.

    Returns tr N / tr N_0, the error of the mean in the null directions, and the first skipped update.
    """
    d, m, members = 24, 8, 64
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((m, d)) / math.sqrt(d)
    x = rng.standard_normal((members, d)).astype(dtype)
    y = rng.standard_normal(m)
    start = x.astype(float)
    z, mean = start - start.mean(axis=0), start.mean(axis=0)
    c = z.T @ z / members
    limit = mean + c @ h.T @ np.linalg.solve(h @ c @ h.T, y - h @ mean)  # (T17)
    null = np.linalg.svd(h)[2][m:]
    residual, first = Gaussian(y).residual, None
    for n in range(updates):
        x, record = guarded(correct, multiple)(x, x @ h.T.astype(dtype), residual, frobenius(2.0))
        if first is None and skipped(record):
            first = n
    x = x.astype(float)
    kept = np.trace(schur_complement(x, h)) / np.trace(schur_complement(start, h))
    return kept, np.linalg.norm(null @ (x.mean(axis=0) - limit)), first


@pytest.mark.parametrize("dtype, spread, window", [("float64", 1e-5, (30, 120)), ("float32", 5e-5, (8, 50))])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_guard_keeps_what_no_observation_reaches(dtype, spread, window, seed):
    kept, error, first = run_c8(dtype, 64.0, seed)
    assert abs(kept - 1.0) < spread
    assert error < 0.01
    assert window[0] < first < window[1]


def test_without_a_guard_rounding_errors_are_amplified_until_the_null_directions_collapse():
    kept, error, first = run_c8("float64", 0.0, 1)
    assert kept < 0.05 and error > 0.1 and first is None


@pytest.mark.parametrize("dtype, eps", [("float64", 2.0**-52), ("float32", 2.0**-23)])
def test_the_guard_skips_below_its_threshold_and_not_above(dtype, eps):
    # threshold: c eps sum_a ||R_a|| ||G_a|| / J over observations a, summed here one number at a time
    g = (1.0 + 1e-3 * np.random.default_rng(7).standard_normal((J, M))).astype(dtype)
    r = Gaussian(Y).residual(g)
    threshold = eps / J * sum(
        math.sqrt(sum(float(r[j, a]) ** 2 for j in range(J))) * math.sqrt(sum(float(g[j, a]) ** 2 for j in range(J)))
        for a in range(M))
    norm = float(correct(X.astype(dtype), g, Gaussian(Y).residual, frobenius(1.0))[1].norm)
    for c, skips in ((0.99 * norm / threshold, False), (1.01 * norm / threshold, True)):
        moved, record = guarded(correct, c)(X.astype(dtype), g, Gaussian(Y).residual, frobenius(1.0))
        assert skipped(record) == skips
        assert np.array_equal(moved, X.astype(dtype)) == skips


def test_the_guard_does_not_depend_on_the_units_of_the_data():
    rng = np.random.default_rng(6)
    g = rng.standard_normal((J, M))
    for scale in (1e-8, 1.0, 1e8):
        likelihood = Gaussian(scale * Y, 0.3 * scale)
        assert not skipped(guarded(correct)(X, scale * g, likelihood.residual, frobenius(1.0))[1])
        assert skipped(guarded(correct)(X, scale * (1.0 + 1e-15 * g), likelihood.residual, frobenius(1.0))[1])


def test_an_ordinary_run_meets_no_guard():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = list(iterate(run := method(), forward, run.init(X)))
        assert not any(line["skipped"] for line in lines(run, pairs))


@pytest.mark.parametrize("window, updates", [((2, 4), 2), ((0, 6), 1)])
def test_where_nothing_fails_a_safe_run_is_the_papers_bit_by_bit(window, updates):
    safe = method(window=window, updates=updates)
    paper = Preset().but(steps=6, sigma_max=5.0, window=window, updates=updates).method(denoise, Gaussian(Y, 0.3))
    assert np.array_equal(solve(safe, forward, X).x, solve(paper, forward, X).x)


@pytest.mark.parametrize("form", FORMS.values())
def test_a_trace_that_is_not_positive_is_a_recorded_skip_with_its_reason(form):
    # phases: sin(g - y) against anomalies of g can have either sign
    rng, negative = np.random.default_rng(0), 0
    run = Preset().but(steps=6, window=(1, 5), step_rule=trace, sigma_max=5.0).method(
        denoise, Closures(np.zeros(3), 1.0, [True] * 3), survivors(guarded(form)))
    for _ in range(200):
        state, g = run.init(rng.standard_normal((6, 3))), 3.0 * rng.standard_normal((6, 3))
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            after, info = run.tell(state, g)
            _, line = observe(Memory(), info, run.likelihood)
        assert line["skipped"] is (float(info.correction.trace) <= 0.0)
        assert line["skipped"] is (line["step"] == 0.0) is np.array_equal(after.x, state.x)
        assert len(shown) == line["skipped"] == sum("tr K = -" in str(w.message) for w in shown)
        negative += line["skipped"]
    assert 50 < negative < 150


@pytest.mark.parametrize("rule", [frobenius, trace])
def test_a_denominator_of_zero_means_no_step_and_no_warning(rule):
    # residuals (1, 1) against anomalies (1, -1): the trace of K vanishes, its norm does not
    x, g = np.array([[0.0, 1.0], [2.0, 5.0]]), np.array([[1.0], [-1.0]])
    residual = np.ones_like if rule is trace else np.zeros_like
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_new, done = guarded(correct)(x, g, residual, rule(1.0))
    assert float(done.step) == 0.0 and np.array_equal(x_new, x)
    assert (float(done.norm) > 0.0) is (rule is trace)


def test_when_no_row_is_finite_the_forward_model_is_not_asked_and_the_run_ends_in_one_sentence():
    sentence = "forward: all 3 evaluations failed, because none of the 3 denoised points is finite"
    with pytest.raises(FloatingPointError, match=sentence):
        evaluate(lambda x: 1 / 0, np.full((3, 2), np.nan))
    run = dataclasses.replace(method(window=(0, 0)), denoise=lambda x, sigma: np.full_like(x, np.nan))
    with pytest.raises(FloatingPointError, match=f"forward: all {J} evaluations failed"):
        solve(run, lambda x: 1 / 0, X)


def test_a_forward_model_that_fails_for_every_member_is_reported_as_such_whatever_the_number_of_data():
    run = method()
    with pytest.raises(FloatingPointError, match=f"forward: 0 of {J} rows are finite.* at level 2"):
        solve(run, lambda x: np.full((J, M), np.nan), X)
