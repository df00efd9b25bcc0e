"""The arena: intervals that cover, budgets that are kept, one set of data for all, continuation, refusals."""

import dataclasses
import json
import math

import numpy as np
import pytest

from enkg_ref import Closures, Gaussian, guided_window
from enkg_ref import compare as arena
from enkg_ref.baselines import chain
from enkg_ref.compare import Comparison, folder, run, tables
from enkg_ref.compare.plots import pareto_figure
from enkg_ref.compare.statistics import (
    bootstrap_t,
    known_rows,
    mean_interval,
    paired_difference,
    summarise,
)
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.methods import METHODS, Item, With, check
from enkg_ref.run.folder import alone
from enkg_ref.run.ledger import PARTS
from problems.linear_gaussian import linear_gaussian

RUNNABLE = [name for name in METHODS if name != "deft"]


def compare(items, methods, budgets, seeds, out, settings=None, progress=None, **given):
    return arena.compare(Comparison(items, methods, budgets, seeds, out, settings or {}, **given), progress)


def tune(items, name, budget, out, candidates, **given):
    return arena.tune(Comparison(items, [name], [budget], 1, out, **given), name, budget, candidates)


def item(seed, **changes):
    problem = linear_gaussian("A", seed=seed)
    given = {"denoise": problem.denoise, "denoise_vjp": problem.denoise_vjp,
             "reference": Reference.gaussian(problem.mu, problem.Sigma),
             "known": {"posterior mean": problem.posterior[0]}, **changes}
    return Item(problem, Gaussian(problem.observation.y, problem.observation.noise), **given)


# ---------------------------------------------------------------------------------------------------------- statistics
def coverage_of(interval, repetitions=2000):
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(repetitions):  # ten items of standard deviation 1, three seeds of .5 each
        scores = rng.standard_normal((10, 1)) + 0.5 * rng.standard_normal((10, 3))
        _, low, high = interval(scores, resamples=1000)
        inside += low <= 0.0 <= high
    return inside / repetitions


def percentile_bootstrap(scores, resamples):
    values = scores.mean(axis=1)
    draws = np.random.default_rng(0).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return values.mean(), low, high


def test_the_studentised_interval_covers_what_it_says_and_the_percentile_interval_does_not():
    assert 0.93 <= coverage_of(bootstrap_t) <= 0.965
    assert coverage_of(percentile_bootstrap) < 0.92


def test_the_interval_of_few_items_covers_what_it_says_where_the_bootstrap_does_not():
    rng = np.random.default_rng(3)
    for items, poor in ((3, True), (5, False)):
        scores = rng.standard_normal((2000, items))
        inside = [[low <= 0.0 <= high for _, low, high in (mean_interval(s), bootstrap_t(s, resamples=200))]
                  for s in scores]
        covered = np.mean(inside, axis=0)
        assert 0.93 <= covered[0] <= 0.97 and (covered[1] < 0.9) == poor
    ten = rng.standard_normal(10)
    assert mean_interval(ten) == bootstrap_t(ten)


def test_seeds_of_an_item_are_one_draw():
    scores = np.random.default_rng(0).standard_normal(10)
    once = bootstrap_t(scores)
    assert bootstrap_t(np.repeat(scores[:, None], 3, axis=1)) == pytest.approx(once, rel=1e-12)


def test_two_items_have_no_interval():
    assert bootstrap_t([1.0, 2.0])[0] == 1.5
    assert math.isnan(bootstrap_t([1.0, 2.0])[1])
    assert math.isnan(bootstrap_t([1.0, 2.0, math.nan, 4.0])[1])


def test_a_paired_difference_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(2)
    difficulty = 5.0 * rng.standard_normal(10)
    first, second = difficulty + 0.1 * rng.standard_normal(10), difficulty + 1.0 + 0.1 * rng.standard_normal(10)
    mean, low, high = paired_difference(first, second)
    assert low < mean < high < -0.7
    assert bootstrap_t(first)[2] > bootstrap_t(second)[1]  # unpaired: overlap


# ------------------------------------------------------------------------------------------------------------- budgets
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_method_spends_its_budget_and_not_more(name):
    c_vjp = 1.5
    for budget in (300, 2000):
        record = run.run(item(0), name, budget, 0, c_vjp)
        counts = record["ledger"]
        spent = counts["fwd_total"] + c_vjp * counts["fwd_vjp_total"]
        assert record["status"] == "done"
        assert 0.6 * budget < spent <= budget
        assert record["cost"]["forward_equivalents"] == pytest.approx(spent)


def test_a_gradient_costs_what_it_takes_beside_its_value_and_at_least_another_value():
    import time

    def slow(seconds):
        def call(x, v=None):
            time.sleep(seconds)
            return x if v is None else (x, v)[0]
        return call

    it = item(0)

    def priced(seconds):
        return run.vjp_cost(Item(With(it.problem, slow(0.01), slow(seconds)), it.likelihood, None))

    assert priced(0.03) == pytest.approx(2.0, rel=0.2)  # a value computed anew, then the way back: 3 in all
    assert priced(0.01) == 1.0
    assert run.vjp_cost(Item(With(it.problem, slow(0.01), None), it.likelihood, None)) == 0.0


@pytest.mark.parametrize("name", ["dps", "forward-gsg", "central-gsg"])
def test_a_strength_is_a_factor_on_the_default_guidance(name):
    default, third = (METHODS[name].plan(item(0), 500, 1.0, 0, settings).method.config.guidance
                      for settings in ({}, {"strength": 0.3}))
    assert third == pytest.approx(0.3 * default) and default > 0


def test_no_candidate_is_the_default_under_another_name():
    for name in RUNNABLE:
        candidates = METHODS[name].candidates
        configs = [METHODS[name].plan(item(0), 2000, 1.0, 0, settings).settings for settings in candidates]
        assert len(candidates) == 4 and all(a != b for k, a in enumerate(configs) for b in configs[:k]), name


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_least_budget_that_a_method_names_is_enough(name):
    with pytest.raises(ValueError, match="expected at least") as refusal:
        check([name], item(0), [1], 1.0, {})
    least = int(str(refusal.value).split("at least ")[1].split()[0])
    check([name], item(0), [least], 1.0, {})


def test_the_scores_that_choose_do_so_by_the_data():
    scores = run.run(item(0), "dps", 500, 0, 1.0)["scores"]
    assert "relative_l2_of_best_fit" in scores and not any("best-of" in name for name in scores)


def test_dpg_sees_angles_as_what_they_are():
    """Its radius is meant for a loss without weights; that of angles has none to leave out, and knows turns of 2 pi."""
    it = item(0)
    angles = Closures(it.likelihood.y, 0.1, [True] * it.likelihood.size)
    likelihood = METHODS["dpg"].plan(dataclasses.replace(it, likelihood=angles), 500, 1.0, 0, {}).method.likelihood
    g = np.stack([it.likelihood.y + 0.05, it.likelihood.y + 0.05 + 2.0 * np.pi])
    expected = likelihood.size * (2.0 * math.sin(0.025) / 0.1) ** 2  # 2 (1 - cos d) = 4 sin^2(d/2)
    np.testing.assert_allclose(likelihood.misfit(g), expected, rtol=1e-10)
    plain = METHODS["dpg"].plan(it, 500, 1.0, 0, {}).method.likelihood
    np.testing.assert_allclose(plain.misfit(g[:1]), likelihood.size * 0.05**2, rtol=1e-10)


def test_the_measured_operator_norm_is_the_largest_singular_value():
    it = item(0)
    exact = np.linalg.norm(it.problem.H, 2) / it.problem.observation.noise
    assert chain.operator_norm(it, 60) == pytest.approx(exact, rel=1e-3)
    assert 0.8 * exact < chain.operator_norm(it) <= exact * 1.001


def test_wall_time_is_accounted_for():
    wall = run.run(item(0), "enkg", 4000, 0, 1.0)["ledger"]["wall"]
    assert sum(wall[part] for part in PARTS) >= 0.98 * wall["total"]


@pytest.mark.parametrize("name", ["diffpir", "pnpdm"])
def test_what_a_method_measures_to_set_its_steps_is_in_its_ledger(name):
    record = run.run(item(0), name, 2000, 0, 1.0)
    given = run.run(item(0, norm=lambda _: chain.operator_norm(item(0))), name, 2000, 0, 1.0)
    assert record["config"] == given["config"] and record["scores"] == given["scores"]
    for kind, calls in (("fwd", 1 + chain.POWER_ITERATIONS), ("fwd_vjp", chain.POWER_ITERATIONS)):
        assert record["ledger"][f"{kind}_total"] - given["ledger"][f"{kind}_total"] == calls


def test_checking_a_comparison_makes_no_call():
    def never(*args):
        raise AssertionError("called")

    it = item(0)
    it = Item(With(it.problem, never, never), it.likelihood, never, never, never, it.reference)
    check(list(METHODS), it, [500, 2000], 1.0, {})


# ----------------------------------------------------------------------------------------------------------- comparison
def test_a_comparison_uses_one_set_of_data_and_continues_where_it_stopped(tmp_path):
    items, methods = [item(0), item(1), item(2)], ["enkg", "eki", "dps"]
    seen = []

    def stop_after_five(record, done, total):
        seen.append(record)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(items, methods, [100, 300], 1, tmp_path / "a", c_vjp=1.0, progress=stop_after_five)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "runs").iterdir()}
    assert len(written) == 5
    resumed = compare(items, methods, [100, 300], 1, tmp_path / "a", c_vjp=1.0)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    whole = compare(items, methods, [100, 300], 1, tmp_path / "b", c_vjp=1.0)
    for one, other in zip(resumed["table"], whole["table"]):
        assert one["mean"] == other["mean"] and one["method"] == other["method"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "b" / "runs").iterdir()]
    assert len(records) == 18
    assert {record["data"] for record in records if record["item"] == 1} == {items[1].digest()}
    assert len({it.digest() for it in items}) == 3


def test_the_tables_hold_the_same_numbers(tmp_path):
    summary = compare([item(0), item(1), item(2)], ["enkg", "mmps"], [200], 2, tmp_path / "a", c_vjp=1.0)
    lines = [line.split(",") for line in (tmp_path / "a" / "table.csv").read_text().splitlines()]
    row = next(r for r in summary["table"] if r["method"] == "mmps")
    value = next(line[6] for line in lines if line[0] == "mmps" and line[5] == "relative_l2_of_mean")
    assert float(value) == row["mean"]["relative_l2_of_mean"]
    assert f"{row['mean']['relative_l2_of_mean']:.4g}" in (tmp_path / "a" / "table.txt").read_text()
    assert summary["known"]["zero field"]["mean"]["relative_l2_of_mean"] == pytest.approx(1.0)
    base = next(r for r in summary["table"] if r["method"] == "enkg")
    own, other = (list(r["per_item"]["relative_l2_of_mean"].values()) for r in (row, base))
    assert row["difference"] == paired_difference(own, other) and summary["base"] == "enkg"
    assert summary["known"]["zero field"]["difference"] == paired_difference([1.0] * 3, other)
    assert row["runs"] == 6 and len(row["files"]) == 6 and (tmp_path / "a" / row["files"][0]).exists()


def test_what_a_correction_network_costs_is_in_the_record_and_in_every_table(tmp_path):
    def correction(x, denoised, sigma):
        return 0.0 * x

    correction.offline_forward, correction.sha256 = 77, "first"
    items = [item(0, correction=correction)]
    compare(items, ["deft", "eki"], [200], 1, tmp_path / "a", c_vjp=1.0)
    record = next(json.loads(path.read_text()) for path in (tmp_path / "a" / "runs").glob("deft*"))
    rows = record["rows"]
    assert record["ledger"]["net_total"] == record["ledger"]["den_total"] == 100 * rows
    assert record["ledger"]["phys_net"] == 200 * rows
    assert record["cost"]["network"] == 100 * rows and record["cost"]["offline"] == 77
    head, *lines = (line.split(",") for line in (tmp_path / "a" / "table.csv").read_text().splitlines())
    line = next(line for line in lines if line[0] == "deft")
    assert float(line[head.index("network")]) == 100 * rows and float(line[head.index("offline")]) == 77
    costs = (tmp_path / "a" / "table.txt").read_text().split("\n\n")[2].splitlines()
    assert costs[0].split()[-5:] == ["network", "offline", "seconds", "own", "%"]
    assert next(line for line in costs if line.startswith("deft")).split()[-4:-2] == [str(100 * rows), "77"]
    correction.sha256 = "trained anew"
    compare(items, ["deft", "eki"], [200], 1, tmp_path / "a", c_vjp=1.0)
    runs = tmp_path / "a" / "runs"
    assert len(list(runs.glob("deft*"))) == 2 and len(list(runs.iterdir())) == 3


def test_the_share_of_a_methods_own_arithmetic_leaves_out_model_and_prior():
    import time

    it = item(0)

    def waits(call):
        def slow(*args):
            time.sleep(0.02)
            return call(*args)
        return slow

    waiting = item(0, denoise=waits(it.denoise))
    assert 0 < run.run(waiting, "enkg", 300, 0, 1.0)["cost"]["own_percent"] < 30
    assert 30 < run.run(it, "enkg", 300, 0, 1.0)["cost"]["own_percent"] < 100


def test_what_the_data_do_not_determine_is_undone_before_scores():
    it = item(0)
    shifted = dataclasses.replace(it.problem, pool=lambda ensemble, index: ensemble - ensemble.mean(1, keepdims=True))
    x = np.stack([it.problem.truth + 5.0, it.problem.truth - 3.0])
    assert run.score(dataclasses.replace(it, problem=shifted), x)["relative_l2_of_mean"] < 1e-12
    assert run.score(it, x)["relative_l2_of_mean"] > 0.1


def test_the_best_start_is_chosen_by_the_data():
    def record(item, seed, chi2, error, status="done"):
        return {"method": "dps", "budget": 9, "item": item, "seed": seed, "status": status, "rows": 1, "config": {},
                "scores": {"chi2": chi2, "relative_l2_of_mean": error} if status == "done" else {},
                "cost": dict.fromkeys(folder.COSTS, 1.0)}

    (row,) = summarise([record(0, 0, 1.1, 0.3), record(0, 1, 1.0, 0.4), record(0, 2, 9.0, 0.1),
                              record(0, 3, None, 0.2), record(1, 0, 5.0, 0.8), record(1, 1, 0, 0, "failed")])
    assert row["best_start"] == pytest.approx((0.4 + 0.8) / 2)


@pytest.mark.parametrize("budget,steps,rows", [(17_000, 1000, 17), (1700, 100, 17), (1699, 50, 33), (850, 50, 17),
                                               (100, 50, 2), (99, 25, 3), (20, 10, 2)])
def test_queries_are_bought_only_when_the_chain_is_long_enough(budget, steps, rows):
    """With ten steps the unguided sampler itself misses the prior, and queries are wasted on it."""
    assert chain.queried_chain("forward-gsg", budget, lambda n: n, 17, {}, 2) == (steps, rows)


def test_scg_always_has_a_choice_and_enkg_prefers_particles_to_levels():
    it = item(0)
    assert [METHODS["scg"].plan(it, budget, 1.0, 0, {}).method.config.candidates for budget in (16, 64)] == [2, 3]
    waves = {steps: 2 * len(range(first, last + 1)) for steps in (40, 20, 10)
             for first, last in [guided_window(steps, 0.05, 0.05)]}
    for budget, expected in ((64 * waves[40], (40, 64)), (64 * waves[40] - 1, (20, (64 * waves[40] - 1) // waves[20])),
                             (64 * waves[10] - 1, (20, (64 * waves[10] - 1) // waves[20])), (2 * waves[10], (10, 2))):
        planned = METHODS["enkg"].plan(it, budget, 1.0, 0, {})
        assert (planned.method.steps, planned.rows) == expected


def test_rows_of_different_size_are_tabulated_together(tmp_path):
    items = [item(0), item(1)]
    compare(items, ["eki"], [50], 2, tmp_path / "a", c_vjp=1.0)
    compare(items[:1], ["eki", "enkg"], [300], 1, tmp_path / "a", c_vjp=1.0)
    records = [folder.read_record(path) for path in sorted((tmp_path / "a" / "runs").iterdir())]
    other = {"mean": {"relative_l2_of_mean": 0.5, "chi2": 7.25}, "seconds": 31.25,
             "per_item": {"relative_l2_of_mean": {0: 0.4, 1: 0.6}}}
    summary = tables.tabulate(records, {**known_rows(items), "another program": other}, {
        "identity": {"problem": "x"}, "c_vjp": 1.0, "tuned": ["one was tuned"], "metric": "relative_l2_of_mean"},
        tmp_path)
    assert (tmp_path / "table.txt").read_text().endswith("one was tuned\n")
    assert {row["budget"]: "difference" in row for row in summary["table"] if row["method"] == "eki"} == {
        50: False, 300: True}  # enkg, the base, was not run at 50
    blocks = [block.splitlines() for block in (tmp_path / "table.txt").read_text().split("\n\n")]
    for block, name, value in zip(blocks, ("relative l2 of mean", "chi2", "seconds"), ("0.5", "7.25", "31.25")):
        head = next(line for line in block if f" {name} " in line)
        line = next(line for line in block if line.startswith("another program"))
        assert line[:head.index(f" {name} ") + 1 + len(name)].split()[-1] == value
    assert {(row["method"], row["budget"]): (row["items"], row["seeds"], row["runs"]) for row in summary["table"]} == {
        ("eki", 50): (2, 2, 4), ("eki", 300): (1, 1, 1), ("enkg", 300): (1, 1, 1)}
    assert (summary["items"], summary["seeds"]) == (2, 2) and (tmp_path / "table.csv").exists()


def test_a_run_that_diverges_stays_in_the_table(tmp_path):
    settings = {"diffpir": {"lam": 1e-3}}
    summary = compare([item(0)], ["diffpir", "eki"], [200], 1, tmp_path / "a", settings, c_vjp=1.0)
    row = next(r for r in summary["table"] if r["method"] == "diffpir")
    assert row["failed"] == row["runs"] == 1
    line = next(line for line in (tmp_path / "a" / "table.txt").read_text().splitlines() if line.startswith("diffpir"))
    assert line.split()[4:6] == ["1x1", "1"]


def test_tuning_keeps_the_best_of_its_candidates_and_counts_them(tmp_path):
    candidates = [{"guidance": 0.0}, {"guidance": 0.03}, {"guidance": 100.0}]
    chosen, trials = tune([item(7), item(8)], "dps", 500, tmp_path, candidates, c_vjp=1.0)
    assert chosen == {"guidance": 0.03} and len(trials) == 3
    assert all(trial["forward_equivalents"] > 0 for trial in trials)


def test_a_killed_tuning_goes_on_and_that_of_another_problem_is_refused(tmp_path, kill_run):
    calls = kill_run(3)
    candidates = [{"guidance": 0.01}, {"guidance": 0.03}]
    given = {"c_vjp": 1.0, "candidates": candidates, "about": {"prior": "one"}}
    with pytest.raises(KeyboardInterrupt):
        tune([item(7), item(8)], "dps", 200, tmp_path, **given)
    _, trials = tune([item(7), item(8)], "dps", 200, tmp_path, **given)
    assert len(calls) == 3 + 2 and len(trials) == 2
    for items, about in (([item(7), item(9)], {"prior": "one"}), ([item(7), item(8)], {"prior": "two"})):
        with pytest.raises(ValueError, match="out: got .*, a comparison with (data|prior)"):
            tune(items, "dps", 200, tmp_path, **{**given, "about": about})
    assert len(calls) == 5


# ------------------------------------------------------------------------------------------------------------ bad input
def test_a_damaged_record_is_named(tmp_path):
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    record = next((tmp_path / "a" / "runs").iterdir())
    whole = record.read_text()
    for damaged, why in ((whole[:40], "damaged file"), ("{}", "it lacks budget"), ("[1]", "it lacks")):
        record.write_text(damaged)
        with pytest.raises(ValueError, match=why) as refusal:
            compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
        assert str(record) in str(refusal.value)
    good = json.loads(whole)
    for changes, why in (({"scores": []}, "scores is"), ({"cost": {}}, "cost lacks denoiser, depth"),
                         ({"method": "dps", "item": 7}, "it is of another run")):
        record.write_text(json.dumps({**good, **changes}))
        with pytest.raises(ValueError, match=f"damaged file .*{why}"):
            compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    record.unlink()
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    for damaged in ("{", '{"identity": {}, "c_vjp": 1}', '{"identity": {"data": 5}, "c_vjp": 1}'):
        (tmp_path / "a" / "arena.json").write_text(damaged)
        with pytest.raises(ValueError, match="damaged file .*arena.json.* choose another folder"):
            compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)


def test_the_price_of_a_gradient_is_kept_and_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "vjp_cost", lambda item: 1.25)
    assert compare([item(0)], ["dps"], [100], 1, tmp_path / "a")["c_vjp"] == 1.25
    monkeypatch.setattr(run, "vjp_cost", lambda item: 1e9)  # measured anew, no budget would pay a step
    assert compare([item(0)], ["dps"], [100], 1, tmp_path / "a")["c_vjp"] == 1.25
    with pytest.raises(ValueError, match="c_vjp: got 2 for .*, a comparison with 1.25"):
        compare([item(0)], ["dps"], [100], 1, tmp_path / "a", c_vjp=2.0)


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    with alone(tmp_path / "a" / "arena.lock", tmp_path / "a"):
        with pytest.raises(ValueError, match="out: got .*, where another process is at work"):
            compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)


@pytest.mark.parametrize("methods, changes, message", [
    (["enkg", "enkgg"], {}, "methods: got 'enkgg', expected one of enkg"),
    (["eki", "enkg", "eki"], {}, "methods: got eki twice"),
    (["dpg"], {"denoise_vjp": None}, "methods: dpg needs a prior with a VJP"),
    (["enkg-r"], {"reference": None}, "methods: enkg-r needs a Gaussian reference"),
    (["deft"], {}, "methods: deft needs a trained correction network"),
])
def test_a_list_that_cannot_run_is_refused_before_anything_is(methods, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare([item(0, **changes)], methods, [200], 1, tmp_path / "a", c_vjp=1.0)
    assert not (tmp_path / "a" / "runs").exists()


def test_a_comparison_grows_by_items_seeds_budgets_and_methods(tmp_path):
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "runs").iterdir()}
    grown = compare([item(0), item(1)], ["eki", "dps"], [50, 60], 2, tmp_path / "a", c_vjp=1.0)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert [row["runs"] for row in grown["table"]] == [4] * 4
    again = compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    assert [row["runs"] for row in again["table"]] == [4] * 4 and again["items"] == 2  # nothing of it is lost


def test_another_set_of_methods_in_the_same_folder_keeps_the_rows_that_are_there(tmp_path):
    items, out = [item(0), item(1), item(2)], tmp_path / "a"
    first = compare(items, ["enkg", "eki"], [100], 1, out, {"eki": {"guidance": 1.0}}, c_vjp=1.0, tuned=["eki: 1"])
    both = compare(items[:1], ["dps"], [100], 1, out, c_vjp=1.0)
    saved = json.loads((out / "results.json").read_text())
    rows = {row["method"]: row for row in both["table"]}
    assert {row["method"] for row in saved["table"]} == set(rows) == {"enkg", "eki", "dps"}
    for row in first["table"]:
        assert rows[row["method"]]["mean"] == row["mean"] and rows[row["method"]]["difference"] == row["difference"]
    assert both["known"] == first["known"] and both["identity"] == first["identity"]
    assert both["settings"] == {"eki": {"guidance": 1.0}} and both["tuned"] == ["eki: 1"]
    text = (out / "table.txt").read_text()
    assert all(sum(line.startswith(name) for line in text.splitlines()) >= 2 for name in ("enkg", "eki ", "dps"))
    new = compare(items, ["eki"], [100], 1, out, {"eki": {"guidance": 0.5}}, c_vjp=1.0, tuned=["eki: 0.5"])
    row = next(row for row in new["table"] if row["method"] == "eki")
    assert row["runs"] == 3 and row["mean"] != rows["eki"]["mean"]  # other settings: in the place of the old
    assert new["tuned"] == ["eki: 0.5"] and len(new["table"]) == 3


def test_the_text_of_the_tables_fits_a_terminal_and_cuts_no_heading(tmp_path):
    summary = compare([item(0), item(1), item(2)], ["enkg", "dps"], [200], 1, tmp_path / "a", c_vjp=1.0)
    text = (tmp_path / "a" / "table.txt").read_text()
    assert max(map(len, text.splitlines())) <= 120
    found = set().union(*(row["mean"] for row in summary["table"])) & {summary["metric"], *tables.COLUMNS}
    words = text.split("runs: items")[0].split()
    assert len(found) > 5 and all(word in words for name in found for word in name.split("_"))


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    compare([item(0)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    with pytest.raises(ValueError, match="out: got .* a comparison with data"):
        compare([item(1)], ["eki"], [50], 1, tmp_path / "a", c_vjp=1.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        compare([item(1)], ["eki"], [50], 1, tmp_path / "b", c_vjp=1.0)


def test_the_plot_has_one_line_per_method_and_three_cost_axes(tmp_path):
    pytest.importorskip("matplotlib")
    summary = compare([item(0)], ["eki", "dps"], [50, 100], 1, tmp_path / "a", c_vjp=1.0)
    page = pareto_figure(summary)
    assert len(page.axes) == 3
    for ax in page.axes:
        drawn = {container.get_label(): container[0].get_xydata() for container in ax.containers}
        assert set(drawn) == {"eki", "dps"} and len(drawn["eki"]) == 2
    lines = [[container[0].get_linestyle() for container in ax.containers] for ax in page.axes]
    assert lines == [["-", "-"], ["-", "-"], ["None", "None"]]  # wall time need not grow with the budget


@pytest.mark.parametrize("spent", [(350.0, 384.0), (50.0, 1000.0), (1.0, 10_000.0)])
def test_the_tick_labels_of_the_plot_do_not_touch(spent, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    cost = {**dict.fromkeys(folder.COSTS, 1.0)}
    table = [{"method": "eki", "budget": k, "mean": {"error": 0.5 + k}, "low": {"error": math.nan},
              "high": {"error": math.nan}, "cost": {**cost, "forward_equivalents": x, "depth": x, "seconds": x / 100}}
             for k, x in enumerate(spent)]
    page = pareto_figure({"metric": "error", "larger_is_better": False, "table": table, "known": {}, "items": 1,
                          "seeds": 1, "identity": {"problem": "p"}})
    canvas = FigureCanvasAgg(page)
    canvas.draw()
    for ax in page.axes:
        low, high = ax.get_xlim()
        labels = [label.get_window_extent() for at, label in zip(ax.get_xticks(), ax.get_xticklabels())
                  if low <= at <= high and label.get_text()]
        assert len(labels) > 1 or spent == (350.0, 384.0)
        assert all(a.x1 + 2 < b.x0 for a, b in zip(labels, labels[1:]))
