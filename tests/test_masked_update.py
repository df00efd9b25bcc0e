"""Members that failed: the masked correction is the correction of the survivors."""

import dataclasses
import warnings

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import Closures, Config, EnKG, Gaussian, constant, correct, frobenius, iterate, trace

RULES = {"frobenius": frobenius, "trace": trace, "constant": constant}
CORRUPT = np.array([np.nan, np.inf, -np.inf])


def random_case(rng):
    """Particles, predictions (non-finite where the mask is off), data, covariance, mask with 2 survivors or more."""
    J, d, m = int(rng.integers(2, 25)), int(rng.integers(1, 8)), int(rng.integers(1, 8))
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


def test_a_thousand_masked_corrections_equal_those_of_the_survivors_alone():
    rng = np.random.default_rng(31)
    worst, masked = 0.0, 0
    for case in range(1000):
        x, g, y, gamma, alive = random_case(rng)
        masked += not alive.all()
        rule = list(RULES.values())[case % 3](0.9)
        likelihood = Gaussian(y, gamma) if case % 2 else Closures(y, np.sqrt(np.diag(gamma)), y > 0)
        whole, record = correct(x, g, likelihood.residual, rule, alive=alive)
        alone, expected = correct(x[alive], g[alive], likelihood.residual, rule)
        survivors_only = (expected.step, expected.norm, expected.trace)
        np.testing.assert_allclose((record.step, record.norm, record.trace), survivors_only, rtol=1e-10, atol=1e-14)
        assert np.all(np.isfinite(whole))
        worst = max(worst, relative(whole[alive], alone))
        shift = (alone - x[alive]).mean(axis=0)
        np.testing.assert_allclose(whole[~alive], x[~alive] + shift, rtol=0.0, atol=1e-11 * np.max(np.abs(alone)))
        kept, _ = correct(x, g, likelihood.residual, rule, alive=alive, failed="keep")
        assert np.array_equal(kept[~alive], x[~alive])
        assert np.array_equal(kept[alive], whole[alive])
    assert worst <= 1e-12
    assert masked > 700


@pytest.mark.parametrize("rule, failed, seed", [("frobenius", "shift", 38), ("frobenius", "keep", 51),
                                                ("trace", "shift", 51), ("constant", "keep", 38)])
def test_the_masked_correction_equals_the_literal_one(backend, rule, failed, seed):
    # seed 38: 4 of 7 alive, m = 3 (low-rank form); seed 51: 7 of 10 alive, m = 7 (pairwise form)
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    x, g, y, gamma, alive = random_case(np.random.default_rng(seed))
    ours, _ = correct(backend.array(x, dtype), backend.array(g, dtype), Gaussian(y, gamma).residual,
                      RULES[rule](0.4), alive=backend.array(alive, "bool"), failed=failed)
    literal, _, _ = paper.correct_masked(x.tolist(), g.tolist(), y.tolist(), np.linalg.inv(gamma).tolist(), rule,
                                         0.4, alive.tolist(), failed)
    assert relative(backend.numpy(ours), np.array(literal)) <= tolerance


def test_a_mask_of_survivors_only_changes_nothing_but_rounding():
    x, g, y, gamma, _ = random_case(np.random.default_rng(5))
    g = np.where(np.isfinite(g), g, 0.3)
    plain, _ = correct(x, g, Gaussian(y, gamma).residual, frobenius(1.0))
    masked, _ = correct(x, g, Gaussian(y, gamma).residual, frobenius(1.0), alive=np.ones(len(x), bool))
    assert relative(masked, plain) <= 1e-13


def test_an_unknown_policy_for_failed_members_is_refused():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="failed"):
        correct(x, x, Gaussian([0.0, 0.0]).residual, frobenius(1.0), failed="drop")
    with pytest.raises(ValueError, match="failed"):
        Config(failed="drop")


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


METHOD = EnKG(denoise, Gaussian([0.4, -0.2], 0.3),
              Config(particles=30, steps=6, updates=2, window=(2, 4), guidance=0.5, sigma_max=5.0))
NOISE = np.random.default_rng(12).standard_normal((30, 3))


def run(failed, schedule):
    method = dataclasses.replace(METHOD, config=dataclasses.replace(METHOD.config, failed=failed))
    pairs = list(iterate(method, failing(schedule), method.init(NOISE)))
    return pairs[-1][0], [info for _, info in pairs]


def test_a_run_records_failed_rows_and_never_holds_a_non_finite_number():
    state, infos = run("shift", {1: (4,), 3: (29,)})
    assert [info.failed_rows for info in infos] == [(), (4,), (), (29,), (), ()]
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
    method = dataclasses.replace(METHOD, config=dataclasses.replace(METHOD.config, particles=20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(iterate(method, failing({2: (1,)}), method.init(NOISE[:20])))


def test_raise_names_the_row_the_level_the_update_and_the_noise_level():
    with pytest.raises(FloatingPointError, match=r"row 11 .*level 3 \(sigma = .*\), update 1"):
        run("raise", {3: (11, 20)})


@pytest.mark.parametrize("survivors", [0, 1])
def test_fewer_than_two_survivors_end_the_run_at_once(survivors):
    with pytest.raises(FloatingPointError, match=rf"{survivors} of 30 rows are finite at level 2"):
        run("shift", {0: range(survivors, 30)})


def test_a_run_whose_failures_are_shifted_stays_close_to_one_without():
    # 1 of 30 members lost in every call: the ensemble mean moves by much less than the ensemble's spread
    whole, _ = run("shift", {})
    lossy, _ = run("shift", {call: (call,) for call in range(6)})
    distance = np.linalg.norm(lossy.x.mean(axis=0) - whole.x.mean(axis=0))
    assert 0.0 < distance < 0.1 * np.linalg.norm(whole.x.std(axis=0))
