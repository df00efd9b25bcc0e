"""``enkg compare`` and ``enkg solve --method`` as a person meets them: tables on disk, one sentence for bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

from enkg_ref import __version__, cli
from enkg_ref.commands import building
from enkg_ref.commands import compare as command_module
from enkg_ref.commands.compare import CompareRequest, items_of
from enkg_ref.commands.solve import VJP_COST
from enkg_ref.compare import run
from enkg_ref.enkg_r.reference import file_sha256
from enkg_ref.methods import METHODS, check
from enkg_ref.run import ledger, report
from onnx_priors import manifest

FAST = ["enkg", "enkg-r", "eki", "scg", "dpg", "forward-gsg", "central-gsg", "dps", "diffpir", "mmps", "pnpdm", "blade"]


def compare(*argv):
    return cli.main(["compare", *map(str, argv)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_method_runs_on_the_same_data_and_stays_within_the_budget(here, capsys):
    assert compare("linear-gaussian", "--methods", ",".join(FAST), "--budget", "120,300", "--seeds", 1, "--items", 2,
                   "--out", "out") == 0
    assert {path.name for path in Path("out").iterdir()} >= {"table.txt", "table.csv", "results.json", "runs"}
    summary = json.loads(Path("out/results.json").read_text())
    records = [json.loads(path.read_text()) for path in Path("out/runs").iterdir()]
    assert len(records) == len(FAST) * 2 * 2 and {row["method"] for row in summary["table"]} == set(FAST)
    for record in records:
        assert record["cost"]["forward_equivalents"] <= record["budget"]
        assert record["data"] == summary["identity"]["data"][record["item"]]
    printed = capsys.readouterr().out
    for words in (*FAST, "zero field", "prior mean", "posterior mean", "minus enkg, paired"):
        assert words in printed
    assert Path("out/table.txt").read_text().strip() in printed


def test_a_comparison_goes_on_where_it_was_killed(here, monkeypatch, kill_run):
    monkeypatch.setattr(run, "vjp_cost", lambda item: 1.0)  # measured, it would differ between the two folders
    command = ("linear-gaussian", "--methods", "eki,dps", "--budget", 100, "--seeds", 1, "--items", 3, "--quiet")
    assert compare(*command, "--out", "whole") == 0
    calls = kill_run(4)
    assert compare(*command, "--out", "cut") == 130
    assert len(list(Path("cut/runs").iterdir())) == 3
    assert compare(*command, "--out", "cut") == 0
    assert len(calls) == 4 + 3
    tables = [json.loads(Path(name, "results.json").read_text())["table"] for name in ("whole", "cut")]
    assert [row["mean"] for row in tables[0]] == [row["mean"] for row in tables[1]]


def test_a_killed_tuning_goes_on_and_a_foreign_folder_is_refused_before_anything_is_computed(here, kill_run, capsys):
    calls = kill_run(3)
    command = ("linear-gaussian", "--methods", "eki", "--budget", 40, "--seeds", 1, "--items", 1, "--tune", "--quiet",
               "--out", "out")
    assert compare(*command) == 130
    assert len(list(Path("out/tuning").rglob("runs/*.json"))) == 2 and not list(Path("out/runs").iterdir())
    capsys.readouterr()
    assert compare(*command, "--noise", 0.7) == 2  # the killed tuning of another comparison
    assert "out: got out, a comparison with noise = 0.1, expected 0.7" in capsys.readouterr().err and len(calls) == 3
    Path("other").mkdir()
    Path("other/letter.txt").write_text("dear")
    assert compare(*command[:-1], "other") == 2 and len(calls) == 3
    assert [path.name for path in Path("other").iterdir()] == ["letter.txt"]
    assert compare(*command) == 0
    assert len(calls) == 3 + 6 + 1  # four candidates on two items, two of them done; one run of the table


def test_what_a_comparison_is_of_is_recorded_and_nothing_of_it_may_change(here, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    command = ("navier-stokes", "--methods", "scg", "--budget", 16, "--noise", 0.55, "--seeds", 1, "--items", 1,
               "--out", "out", "--quiet")
    assert compare(*command) == 0
    identity = json.loads(Path("out/arena.json").read_text())["identity"]
    facts = manifest.read_manifest()["navier-stokes-32"]
    assert identity["prior_sha256"] == facts["denoiser"]["sha256"]
    assert identity["reference_sha256"] == file_sha256(manifest.WEIGHTS / "navier-stokes-32.reference.npz")
    assert identity["version"] == __version__
    assert {key: identity[key] for key in ("fft", "size", "noise", "data_solver")} == {
        "fft": "scipy", "size": 32, "noise": 0.55, "data_solver": "same"}
    capsys.readouterr()
    monkeypatch.setattr(command_module, "__version__", "99")
    assert compare(*command) == 2 and "a comparison with version = " in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(building, "file_sha256", lambda path: "another file")
    assert compare(*command) == 2 and "a comparison with prior_sha256 = " in capsys.readouterr().err


def test_tuning_is_told_and_uses_items_that_no_table_has(here, capsys):
    assert compare("linear-gaussian", "--methods", "eki", "--budget", 100, "--seeds", 1, "--items", 1, "--tune",
                   "--out", "out") == 0
    assert "eki: tuned to" in capsys.readouterr().out
    identity = json.loads(Path("out/results.json").read_text())["identity"]
    folder = next(Path("out/tuning/eki").iterdir())
    assert not set(json.loads((folder / "arena.json").read_text())["identity"]["data"]) & set(identity["data"])


def test_navier_stokes_is_compared_with_the_shipped_network(here):
    pytest.importorskip("onnxruntime")
    methods = ["dps", "mmps", "deft"]
    assert compare("navier-stokes", "--size", 32, "--methods", ",".join(methods), "--budget", 80, "--seeds", 1,
                   "--items", 1, "--noise", 0.55, "--out", "out", "--quiet") == 0
    summary = json.loads(Path("out/results.json").read_text())
    assert summary["identity"]["prior"] == "navier-stokes-32" and not any(row["failed"] for row in summary["table"])
    assert {"zero field", "prior mean"} == set(summary["known"]) and summary["c_vjp"] > 0


BAD = [
    (["linear-gaussian", "--methods", "enkg,enkq"], "methods: got 'enkq', expected one of enkg"),
    (["linear-gaussian", "--methods", "eki,enkg,eki"], "methods: got eki twice, expected each method once"),
    (["linear-gaussian", "--methods", "eki,dpg", "--budget", "9"], "budget: got 9 forward calls for dpg, expected at "
     "least 30"),
    (["linear-gaussian", "--methods", "deft"], "methods: deft needs a trained correction network"),
    (["navier-stokes", "--prior", "navier-stokes-32-gaussian", "--methods", "enkg-r"], "methods: enkg-r needs a "
     "Gaussian reference"),
    (["m87", "--methods", "enkg"], "problem: got m87, whose truth nobody knows"),
    (["linear-gausian", "--methods", "enkg"], "did you mean linear-gaussian"),
    (["linear-gaussian", "--methods", "eki", "--budget", "1,x"], "got '1,x', expected whole numbers"),
    (["linear-gaussian", "--methods", "eki", "--budget", "50,50"], "got '50,50', expected different numbers"),
    (["linear-gaussian", "--methods", "eki", "--items", "0"], "items: got 0, expected at least 1"),
    (["linear-gaussian", "--methods", "eki", "--seeds", "0"], "seeds: got 0, expected at least 1"),
    (["linear-gaussian", "--budget", "50"], "--methods"),
]


@pytest.mark.parametrize("argv, sentence", BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_exits_2_with_one_sentence_and_runs_nothing(argv, sentence, here, capsys):
    if "--budget" not in argv:
        argv = [*argv, "--budget", "100"]
    assert compare(*argv, "--out", "out") == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not Path("out").exists()


def test_the_folder_of_another_comparison_is_refused(here, capsys):
    command = ("linear-gaussian", "--methods", "eki", "--budget", 50, "--seeds", 1, "--items", 1, "--quiet")
    assert compare(*command, "--out", "out") == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert compare(*command, "--noise", 0.7, "--out", "out") == 2
    assert "out: got out, a comparison with noise = 0.1, expected 0.7" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------------- solve --method
@pytest.mark.parametrize("method", ["enkg", "eki", "scg", "dpg", "dps", "pnpdm", "mmps", "blade"])
def test_solve_runs_every_method_by_its_budget(method, here):
    assert cli.main(["solve", "linear-gaussian", "--method", method, "--budget", "200", "--out", "out", "--seed", "3",
                     "--quiet"]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    counts = summary["ledger"]
    spent = counts["fwd_total"] + VJP_COST * counts["fwd_vjp_total"]
    assert 100 < spent <= 200 and summary["method"] == method
    # the same run as the arena's, from the same seed
    (item,) = items_of(CompareRequest("linear-gaussian", (method,), (200,), "out"), [0])
    record = run.run(item, method, 200, 3, VJP_COST)
    assert np.isclose(summary["metrics"]["error_to_posterior_mean"], record["scores"]["error_to_posterior_mean"])
    assert all(counts[name] == record["ledger"][name] for name in ("fwd_total", "den_total", "fwd_vjp_total"))


@pytest.mark.parametrize("argv, sentence", [
    (["--method", "eki"], "budget: got nothing, expected a number of forward calls for eki, at least 4"),
    (["--method", "eki", "--budget", "2"], "budget: got 2 forward calls for eki, expected at least 4"),
    (["--method", "dps", "--budget", "500", "--steps", "9"], "steps: got 9 with method dps"),
    (["--budget", "500", "--particles", "9"], "particles: got 9 with a budget"),
    (["--method", "deft", "--budget", "500"], "deft"),
])
def test_solve_refuses_what_a_method_cannot_use(argv, sentence, here, capsys):
    assert cli.main(["solve", "linear-gaussian", *argv, "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not Path("out").exists()


def test_the_text_of_a_run_shows_every_kind_of_call_that_was_made():
    book = ledger.Ledger()
    summary = {"problem": "p", "method": "deft", "ensembles": 1, "config": {}, "prior": "g", "seed": 0, "seconds": 1.0,
               "metrics": {}, "metrics_per_ensemble": [{}], "ledger": book.as_dict()}
    none = report.text(summary)
    assert not any(word in none for word in ("gradient", "network", "offline"))
    book.counts.update({"fwd_vjp_total": 6, "fwd_vjp_seq": 3, "den_vjp_total": 10, "den_vjp_seq": 5, "net_total": 14,
                        "net_seq": 7, "offline_fwd": 20_000})
    lines = report.text({**summary, "ledger": book.as_dict()})
    for line in ("forward gradients                6 (3 sequential)",
                 "denoiser gradients               10 (5 sequential)",
                 "correction network calls         14 (7 sequential)", "offline forward calls            20000, spent"):
        assert line in lines


def test_every_method_says_what_its_spread_means_and_only_ensembles_speak_of_particles():
    spread = {name: method.spread for name, method in METHODS.items()}
    assert all(words.endswith(".") and len(words) > 40 for words in spread.values())
    assert [name for name, words in spread.items() if "more particles" in words] == ["enkg", "eki"]
    one_row = {"scg", "dpg", "forward-gsg", "central-gsg"}
    assert {name for name, words in spread.items() if "One chain" in words} == one_row


def test_the_comparisons_of_the_results_can_be_paid(load_benchmark):
    for requests in (found() for table in load_benchmark("arena").COMPARISONS.values() for found in table.values()):
        for request in requests:
            (item,) = items_of(request, [0])
            check(request.methods, item, request.budgets, 1.0 if request.c_vjp is None else request.c_vjp, {})
            assert set(request.methods) <= set(METHODS) and request.items >= 5 and request.seeds >= 3


def test_the_page_shows_the_tables_that_are_committed(load_benchmark):
    benchmark, page = load_benchmark("arena"), (Path(__file__).parents[1] / "benchmarks" / "RESULTS.md").read_text()
    for name in (name for table in benchmark.COMPARISONS.values() for name in table):
        assert benchmark.page(name) in page


# ------------------------------------------------------------------------------------------------ a method of one's own
TOY = """
import dataclasses

from enkg_ref.protocol import Method, Plan, at_least


@dataclasses.dataclass(frozen=True)
class State:
    x: object
    level: int = 0


@dataclasses.dataclass(frozen=True)
class Info:
    level: int


@dataclasses.dataclass(frozen=True)
class BetterHalf:  # of draws of N(0, 1), the better half in the place of the other, a few times
    likelihood: object
    waves: int

    def init(self, noise):
        return State(noise)

    def ask(self, state):
        return state.x

    def tell(self, state, y_pred):
        order, half = self.likelihood.misfit(y_pred).argsort(), len(state.x) // 2
        x = state.x.copy()
        x[order[-half:]] = state.x[order[:half]]
        return State(x, state.level + 1), Info(state.level)

    def done(self, state):
        return state.level == self.waves


def plan(item, budget, c_vjp, seed, settings):
    at_least("toy", budget, 40)
    waves = settings.get("waves", 2)
    return Plan(BetterHalf(item.likelihood, waves), budget // waves, {"waves": waves}, waves, State)


METHOD = Method(plan, frozenset({"forward"}), words="the better half, again", spends="two waves",
                spread="In this example of a method the spread means nothing.", candidates=({}, {"waves": 3}))
"""


def test_a_method_is_added_by_one_file_and_one_line(here, monkeypatch, capsys):
    Path("toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(here))
    import toy_method

    monkeypatch.setitem(METHODS, "toy", toy_method.METHOD)  # the one line
    assert compare("linear-gaussian", "--methods", "eki,toy", "--budget", 100, "--seeds", 1, "--items", 3, "--tune",
                   "--c-vjp", 1, "--out", "out") == 0
    printed = capsys.readouterr().out
    assert "toy: tuned to " in printed and "the best of 2 on two other items" in printed
    row = next(row for row in json.loads(Path("out/results.json").read_text())["table"] if row["method"] == "toy")
    assert row["runs"] == 3 and row["failed"] == 0 and 98 <= row["cost"]["forward_equivalents"] <= 100
    assert compare("linear-gaussian", "--methods", "toy", "--budget", 9, "--out", "other") == 2
    assert "budget: got 9 forward calls for toy, expected at least 40" in capsys.readouterr().err
    assert compare("linear-gaussian", "--methods", "toi", "--budget", 90, "--out", "other") == 2
    assert "did you mean toy?" in capsys.readouterr().err
