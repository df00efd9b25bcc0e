"""The arena: intervals that cover, budgets that are kept, one set of data for all, continuation, refusals."""

import json
import math

import numpy as np
import pytest

from enkg_ref import Gaussian, arena
from enkg_ref.ledger import PARTS
from enkg_ref.reference import Reference
from problems.linear_gaussian import linear_gaussian

RUNNABLE = [name for name in arena.METHODS if name != "deft"]


def item(seed, **changes):
    problem = linear_gaussian("A", seed=seed)
    given = {"denoise_vjp": problem.denoise_vjp, "reference": Reference.gaussian(problem.mu, problem.Sigma),
             "known": {"posterior mean": problem.posterior[0]}, **changes}
    return arena.Item(problem, Gaussian(problem.observation.y, problem.observation.noise), problem.denoise, **given)


# ---------------------------------------------------------------------------------------------------------- statistics
def coverage_of(interval, repetitions=2000):
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(repetitions):  # ten items of standard deviation 1, three seeds of .5 each
        scores = rng.standard_normal((10, 1)) + 0.5 * rng.standard_normal((10, 3))
        _, low, high = interval(scores, resamples=1000)
        inside += low <= 0.0 <= high
    return inside / repetitions


def test_the_studentised_interval_covers_what_it_says_and_the_percentile_interval_does_not():
    assert 0.93 <= coverage_of(arena.bootstrap_t) <= 0.965
    assert coverage_of(arena.percentile_bootstrap) < 0.92


def test_seeds_of_an_item_are_one_draw():
    scores = np.random.default_rng(0).standard_normal(10)
    once = arena.bootstrap_t(scores)
    assert arena.bootstrap_t(np.repeat(scores[:, None], 3, axis=1)) == pytest.approx(once, rel=1e-12)


def test_two_items_have_no_interval():
    assert arena.bootstrap_t([1.0, 2.0])[0] == 1.5
    assert math.isnan(arena.bootstrap_t([1.0, 2.0])[1])
    assert math.isnan(arena.bootstrap_t([1.0, 2.0, math.nan, 4.0])[1])


def test_a_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(2)
    difficulty = 5.0 * rng.standard_normal(10)
    first, second = difficulty + 0.1 * rng.standard_normal(10), difficulty + 1.0 + 0.1 * rng.standard_normal(10)
    mean, low, high = arena.paired_difference(first, second)
    assert low < mean < high < -0.7
    assert arena.bootstrap_t(first)[2] > arena.bootstrap_t(second)[1]  # unpaired: overlap


# ------------------------------------------------------------------------------------------------------------- budgets
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_method_spends_its_budget_and_not_more(name):
    c_vjp = 1.5
    for budget in (300, 2000):
        record = arena.run(item(0), name, budget, 0, c_vjp)
        counts = record["ledger"]
        spent = counts["fwd_total"] + c_vjp * counts["fwd_vjp_total"]
        assert record["status"] == "done"
        assert 0.6 * budget < spent <= budget
        assert record["cost"]["forward_equivalents"] == pytest.approx(spent)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_least_budget_that_a_method_names_is_enough(name):
    with pytest.raises(ValueError, match="expected at least") as refusal:
        arena.check([name], item(0), [1], 1.0, {})
    least = int(str(refusal.value).split("at least ")[1].split()[0])
    arena.check([name], item(0), [least], 1.0, {})


def test_the_scores_that_choose_do_so_by_the_data():
    scores = arena.run(item(0), "dps", 500, 0, 1.0)["scores"]
    assert "relative_l2_of_best_fit" in scores and not any("best-of" in name for name in scores)


def test_the_measured_operator_norm_is_the_largest_singular_value():
    it = item(0)
    exact = np.linalg.norm(it.problem.H, 2) / it.problem.observation.noise
    assert arena.operator_norm(it, 60) == pytest.approx(exact, rel=1e-3)
    assert 0.8 * exact < arena.operator_norm(it) <= exact * 1.001


def test_wall_time_is_accounted_for():
    wall = arena.run(item(0), "enkg", 4000, 0, 1.0)["ledger"]["wall"]
    assert sum(wall[part] for part in PARTS) >= 0.98 * wall["total"]


@pytest.mark.parametrize("name", ["diffpir", "pnpdm"])
def test_what_a_method_measures_to_set_its_steps_is_in_its_ledger(name):
    record = arena.run(item(0), name, 2000, 0, 1.0)
    given = arena.run(item(0, norm=lambda _: arena.operator_norm(item(0))), name, 2000, 0, 1.0)
    assert record["config"] == given["config"] and record["scores"] == given["scores"]
    for kind, calls in (("fwd", 1 + arena.POWER_ITERATIONS), ("fwd_vjp", arena.POWER_ITERATIONS)):
        assert record["ledger"][f"{kind}_total"] - given["ledger"][f"{kind}_total"] == calls


def test_checking_a_comparison_makes_no_call():
    def never(*args):
        raise AssertionError("called")

    it = item(0)
    it = arena.Item(arena._Counted(it.problem, never, never), it.likelihood, never, never, never, it.reference)
    arena.check(list(arena.METHODS), it, [500, 2000], 1.0, {})


# ----------------------------------------------------------------------------------------------------------- comparison
def test_a_comparison_uses_one_set_of_data_and_continues_where_it_stopped(tmp_path):
    items, methods = [item(0), item(1), item(2)], ["enkg", "eki", "dps"]
    seen = []

    def stop_after_five(record, done, total):
        seen.append(record)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arena.compare(items, methods, [100, 300], 1, tmp_path / "a", c_vjp=1.0, progress=stop_after_five)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "runs").iterdir()}
    assert len(written) == 5
    resumed = arena.compare(items, methods, [100, 300], 1, tmp_path / "a", c_vjp=1.0)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    whole = arena.compare(items, methods, [100, 300], 1, tmp_path / "b", c_vjp=1.0)
    for one, other in zip(resumed["table"], whole["table"]):
        assert one["mean"] == other["mean"] and one["method"] == other["method"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "b" / "runs").iterdir()]
    assert len(records) == 18
    assert {record["data"] for record in records if record["item"] == 1} == {items[1].digest()}
    assert len({it.digest() for it in items}) == 3


def test_the_tables_hold_the_same_numbers(tmp_path):
    summary = arena.compare([item(0), item(1), item(2)], ["enkg", "mmps"], [200], 2, tmp_path / "a", c_vjp=1.0)
    lines = [line.split(",") for line in (tmp_path / "a" / "table.csv").read_text().splitlines()]
    row = next(r for r in summary["table"] if r["method"] == "mmps")
    value = next(line[5] for line in lines if line[0] == "mmps" and line[4] == "relative_l2_of_mean")
    assert float(value) == row["mean"]["relative_l2_of_mean"]
    assert f"{row['mean']['relative_l2_of_mean']:.4g}" in (tmp_path / "a" / "table.txt").read_text()
    assert summary["known"]["zero field"]["mean"]["relative_l2_of_mean"] == pytest.approx(1.0)
    base = next(r for r in summary["table"] if r["method"] == "enkg")
    own, other = (list(r["per_item"]["relative_l2_of_mean"].values()) for r in (row, base))
    assert row["difference"] == arena.paired_difference(own, other) and summary["base"] == "enkg"
    assert summary["known"]["zero field"]["difference"] == arena.paired_difference([1.0] * 3, other)
    assert row["runs"] == 6 and len(row["files"]) == 6 and (tmp_path / "a" / row["files"][0]).exists()


def test_a_run_that_diverges_stays_in_the_table(tmp_path):
    settings = {"diffpir": {"lam": 1e-3}}
    summary = arena.compare([item(0)], ["diffpir", "eki"], [200], 1, tmp_path / "a", settings, c_vjp=1.0)
    row = next(r for r in summary["table"] if r["method"] == "diffpir")
    assert row["failed"] == row["runs"] == 1
    assert "1/1" in (tmp_path / "a" / "table.txt").read_text()


def test_tuning_keeps_the_best_of_its_candidates_and_counts_them(tmp_path):
    candidates = [{"guidance": 0.0}, {"guidance": 0.03}, {"guidance": 100.0}]
    chosen, trials = arena.tune([item(7), item(8)], "dps", 500, tmp_path, 1.0, candidates=candidates)
    assert chosen == {"guidance": 0.03} and len(trials) == 3
    assert all(trial["forward_equivalents"] > 0 for trial in trials)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("methods, changes, message", [
    (["enkg", "enkgg"], {}, "methods: got 'enkgg', expected some of enkg"),
    (["eki", "enkg", "eki"], {}, "methods: got eki twice"),
    (["dpg"], {"denoise_vjp": None}, "methods: dpg needs a prior with a VJP"),
    (["enkg-r"], {"reference": None}, "methods: enkg-r needs a Gaussian reference"),
    (["deft"], {}, "methods: deft needs a trained correction network"),
])
def test_a_list_that_cannot_run_is_refused_before_anything_is(methods, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arena.compare([item(0, **changes)], methods, [200], 1, tmp_path / "a", c_vjp=1.0)
    assert not (tmp_path / "a" / "runs").exists()


def test_a_comparison_grows_by_items_seeds_budgets_and_methods(tmp_path):
    arena.compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "runs").iterdir()}
    grown = arena.compare([item(0), item(1)], ["eki", "dps"], [50, 60], 2, tmp_path / "a", c_vjp=1.0)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert [row["runs"] for row in grown["table"]] == [4] * 4
    again = arena.compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    assert len(again["table"]) == 1 and again["items"] == 1


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    arena.compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    with pytest.raises(ValueError, match="out: got .* a comparison with data"):
        arena.compare([item(1)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        arena.compare([item(1)], ["eki"], [50], 1, tmp_path / "b", c_vjp=1.0)


def test_the_plot_has_one_line_per_method_and_three_cost_axes(tmp_path):
    pytest.importorskip("matplotlib")
    summary = arena.compare([item(0)], ["eki", "dps"], [50, 100], 1, tmp_path / "a", c_vjp=1.0)
    page = arena.pareto_figure(summary)
    assert len(page.axes) == 3
    for ax in page.axes:
        drawn = {container.get_label(): container[0].get_xydata() for container in ax.containers}
        assert set(drawn) == {"eki", "dps"} and len(drawn["eki"]) == 2
