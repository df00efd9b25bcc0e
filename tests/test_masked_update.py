"""Members that failed: ``survivors`` makes of any correction the correction of the members that did not."""

import functools
import warnings

import numpy as np
import paper_equations as paper
import pytest
from conftest import make_backend

from enkg_ref import Closures, Gaussian, Preset, constant, correct, frobenius, iterate, trace
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import guarded, lowrank, survivors

RULES = {"frobenius": frobenius, "trace": trace, "constant": constant}
FORMS = {"pairwise": correct, "lowrank": lowrank}
CORRUPT = np.array([np.nan, np.inf, -np.inf])


def random_case(rng, sizes=None):
    """Particles, predictions (non-finite where the mask is off), data, covariance, mask with 2 survivors or more."""
    J, d, m = sizes or (int(rng.integers(2, 25)), int(rng.integers(1, 8)), int(rng.integers(1, 8)))
    a = rng.standard_normal((m, m))
    x, g, y = rng.standard_normal((J, d)), rng.standard_normal((J, m)), rng.standard_normal(m)
    alive = rng.random(J) < rng.uniform(0.1, 1.0)
    alive[rng.permutation(J)[:2]] = True
    for j in np.flatnonzero(~alive):
        g[j, rng.random(m) < 0.5] = rng.choice(CORRUPT)
        g[j, 0] = rng.choice(CORRUPT)
    return x, g, y, a @ a.T + np.eye(m), alive


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


@functools.lru_cache
def literal_cases():
    """A thousand cases with their rule, policy and literal masked correction; few shapes, for compilers' sake."""
    rng, cases = np.random.default_rng(32), []
    for number in range(1000):
        x, g, y, gamma, alive = random_case(rng, (10, 3, (2, 7)[number % 2]))
        rule, failed = list(RULES)[number % 3], ("shift", "keep")[number // 2 % 2]
        literal = paper.correct_masked(x.tolist(), g.tolist(), y.tolist(), np.linalg.inv(gamma).tolist(), rule, 0.4,
                                       alive.tolist(), failed)
        cases.append((x, g, y, gamma, rule, failed, np.array(literal[0]), literal[1], literal[2]))
    return cases


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["numpy", "strict", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_survivors_corrections_equal_the_literal_masked_ones_on_a_thousand_masks(name, form):
    backend, worst, masked = make_backend(name), 0.0, 0
    for x, g, y, gamma, rule, failed, literal, w, norm in literal_cases():
        masked += not np.isfinite(g).all()
        ours, record = survivors(FORMS[form], failed)(backend.array(x), backend.array(g), Gaussian(y, gamma).residual,
                                                      RULES[rule](0.4))
        worst = max(worst, relative(backend.numpy(ours), literal), abs(float(record.step) / w - 1.0),
                    abs(float(record.norm) / norm - 1.0))
    assert worst <= 1e-12
    assert masked > 700


@pytest.mark.parametrize("form", FORMS)
def test_a_thousand_masked_corrections_equal_those_of_the_survivors_alone(form):
    rng = np.random.default_rng(31)
    worst, masked, form = 0.0, 0, FORMS[form]
    for case in range(1000):
        x, g, y, gamma, alive = random_case(rng)
        masked += not alive.all()
        rule = list(RULES.values())[case % 3](0.9)
        likelihood = Gaussian(y, gamma) if case % 2 else Closures(y, np.sqrt(np.diag(gamma)), y > 0)
        whole, record = survivors(form)(x, g, likelihood.residual, rule)
        alone, expected = form(x[alive], g[alive], likelihood.residual, rule)
        survivors_only = (expected.step, expected.norm, expected.trace)
        np.testing.assert_allclose((record.step, record.norm, record.trace), survivors_only, rtol=1e-10, atol=1e-14)
        assert np.all(np.isfinite(whole))
        worst = max(worst, relative(whole[alive], alone))
        shift = (alone - x[alive]).mean(axis=0)
        np.testing.assert_allclose(whole[~alive], x[~alive] + shift, rtol=0.0, atol=1e-11 * np.max(np.abs(alone)))
        kept, _ = survivors(form, "keep")(x, g, likelihood.residual, rule)
        assert np.array_equal(kept[~alive], x[~alive])
        assert np.array_equal(kept[alive], whole[alive])
    assert worst <= 1e-12
    assert masked > 700


@pytest.mark.parametrize("rule, failed, seed", [("frobenius", "shift", 38), ("frobenius", "keep", 51),
                                                ("trace", "shift", 51), ("constant", "keep", 38)])
def test_the_masked_correction_equals_the_literal_one(backend, rule, failed, seed):
    # seed 38: 4 of 7 alive, m = 3; seed 51: 7 of 10 alive, m = 7
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    x, g, y, gamma, alive = random_case(np.random.default_rng(seed))
    literal, _, _ = paper.correct_masked(x.tolist(), g.tolist(), y.tolist(), np.linalg.inv(gamma).tolist(), rule,
                                         0.4, alive.tolist(), failed)
    for form in FORMS.values():
        ours, _ = survivors(guarded(form), failed)(backend.array(x, dtype), backend.array(g, dtype),
                                                   Gaussian(y, gamma).residual, RULES[rule](0.4))
        assert relative(backend.numpy(ours), np.array(literal)) <= tolerance


def test_where_no_member_failed_the_safe_correction_is_the_papers_bit_by_bit():
    for seed in range(50):
        x, g, y, gamma, _ = random_case(np.random.default_rng(seed))
        g = np.where(np.isfinite(g), g, 0.3)
        plain, _ = correct(x, g, Gaussian(y, gamma).residual, frobenius(1.0))
        safe, _ = survivors(guarded(correct))(x, g, Gaussian(y, gamma).residual, frobenius(1.0))
        assert np.array_equal(safe, plain)


def test_an_unknown_policy_for_failed_members_is_refused():
    with pytest.raises(ValueError, match="failed: got 'drop', expected 'shift', 'keep' or 'raise'"):
        survivors(correct, "drop")


# ---------------------------------------------------------------------------------------------------------- in a run


def denoise(x, sigma):
    return x / (1.0 + sigma * sigma)


def failing(schedule):
    """G with the rows of ``schedule[call]`` set to NaN."""
    calls = iter(range(10_000))

    def forward(x):
        g = np.tanh(x[:, :2]) + 0.1 * x[:, 2:]
        g[list(schedule.get(next(calls), ())), 0] = np.nan
        return g

    return forward


LIKELIHOOD = Gaussian([0.4, -0.2], 0.3)
NOISE = np.random.default_rng(12).standard_normal((30, 3))


def method(failed="shift"):
    settings = Preset(30, 6, (2, 4), sigma_max=5.0).but(updates=2, guidance=0.5)
    return settings.method(denoise, LIKELIHOOD, survivors(guarded(correct), failed))


def run(failed, schedule, noise=NOISE):
    """The last state and the history lines."""
    pairs, lines, memory = list(iterate(method(failed), failing(schedule), method().init(noise))), [], Memory()
    for _, info in pairs:
        memory, line = observe(memory, info, LIKELIHOOD)
        lines.append(line)
    return pairs[-1][0], lines


@pytest.mark.filterwarnings("ignore:more than 5 %")
def test_a_run_records_failed_rows_and_never_holds_a_non_finite_number():
    state, lines = run("shift", {1: (4,), 3: (29,)})
    assert [line["failed_rows"] for line in lines] == [[], [4], [], [29], [], []]
    assert np.all(np.isfinite(state.x))


def test_a_failed_member_that_is_kept_still_makes_the_predictor_step():
    member, schedule = 7, {call: (7,) for call in range(6)}
    state, _ = run("keep", schedule)
    alone = paper.run_correct_then_predict(NOISE[member:member + 1].tolist(), lambda x, s: [v / (1 + s * s) for v in x],
                                           None, None, None, 6, (), None, sigma_max=5.0)
    np.testing.assert_allclose(state.x[member], alone[-1][0], rtol=1e-12)


def test_more_than_five_percent_of_failures_are_warned_about():
    with pytest.warns(UserWarning, match="5 %"):
        run("shift", {2: (1, 2)})


def test_exactly_five_percent_of_failures_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("shift", {2: (1,)}, NOISE[:20])


def test_raise_names_the_row_the_level_and_the_update():
    with pytest.raises(FloatingPointError, match=r"row 11 .*level 3, update 1"):
        run("raise", {3: (11, 20)})


@pytest.mark.parametrize("survivors", [0, 1])
def test_fewer_than_two_survivors_end_the_run_at_once(survivors):
    with pytest.raises(FloatingPointError, match=rf"{survivors} of 30 rows are finite.*level 2, update 0"):
        run("shift", {0: range(survivors, 30)})


def test_a_run_whose_failures_are_shifted_stays_close_to_one_without():
    # 1 of 30 members lost in every call: the ensemble mean moves by much less than the ensemble's spread
    whole, _ = run("shift", {})
    lossy, _ = run("shift", {call: (call,) for call in range(6)})
    distance = np.linalg.norm(lossy.x.mean(axis=0) - whole.x.mean(axis=0))
    assert 0.0 < distance < 0.1 * np.linalg.norm(whole.x.std(axis=0))
