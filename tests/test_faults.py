"""Faults that users met, each mended: one sentence that names the argument or a right answer, and no file is lost."""

import io
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from shell import SMALL, run, simulate

from enkg_ref import cli
from enkg_ref.commands.solve import SolveRequest, solve
from enkg_ref.run import folder, report
from problems.linear_gaussian import linear_gaussian

pytest.importorskip("onnxruntime")
FEW = ["--method", "enkg", "--particles", "4", "--steps", "4"]


# ----------------------------------------------------------------------------------------------- folders and their runs
def test_that_a_second_start_leaves_a_first_run_without_a_checkpoint_alone(own):
    """1. The first one sits in its first forward call; the second one, of the same command, gives up in a sentence."""
    simulate(own, "import os, time\n\n\ndef forward(x):\n    open('started', 'w').close()\n"
             "    while not os.path.exists('go'):\n        time.sleep(0.02)\n    return whole(x)\n")
    command = [sys.executable, "-m", "enkg_ref", "solve", *own, *FEW, "--quiet", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[1]), os.getcwd()])}
    first = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not Path("started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    before = sorted(path.name for path in Path("out/run").iterdir())
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 2 and "out: got out, where another process is at work" in second.stderr
    assert sorted(path.name for path in Path("out/run").iterdir()) == before
    Path("go").touch()
    assert first.wait() == 0 and Path("out/summary.json").exists() and not Path("out/run").exists()


def test_that_resume_starts_where_nothing_is_begun_and_the_folder_knows_its_command(own, interrupted):
    """6."""
    interrupted(*own, *SMALL, "--method", "enkg")
    assert folder.command("out")[:1] == ["solve"]
    assert cli.main(["solve", "--resume", "--out", "out", "--quiet"]) == 0
    assert run(*own, *SMALL, "--method", "enkg", "--out", "whole", "--resume") == 0
    assert np.array_equal(*(np.load(f"{name}/result.npz")["ensemble"] for name in ("out", "whole")))


def test_that_a_wave_that_fails_altogether_leaves_a_run_that_goes_on_to_the_same_bits(own, capsys):
    """10."""
    simulate(own, "import os\ncalls = []\n\n\ndef forward(x):\n    calls.append(1)\n"
             "    broken = len(calls) > 3 and not os.path.exists('mended')\n"
             "    return whole(x) * (np.nan if broken else 1)\n")
    assert run(*own, *FEW, "--out", "out") == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("enkg: stopped: forward: 0 of 4 rows are finite") and "--resume" in err
    Path("mended").touch()
    assert cli.main(["solve", "--resume", "--out", "out", "--quiet"]) == 0
    assert run(*own, *FEW, "--out", "whole", "--quiet") == 0
    for name in ("history.jsonl",):
        assert Path("out", name).read_text() == Path("whole", name).read_text()
    assert np.array_equal(*(np.load(f"{name}/result.npz")["ensemble"] for name in ("out", "whole")))


def test_that_a_damaged_history_costs_its_lines_only(own, interrupted, capsys):
    """7."""
    interrupted(*own, *SMALL, "--method", "enkg")
    path = Path("out/run/ensemble-0.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\xff\xfe nothing\n", *lines[1:]]))
    assert cli.main(["solve", "--resume", "--out", "out"]) == 0
    assert f"with {len(lines) - 1} good lines, expected {len(lines)}" in capsys.readouterr().err
    assert len(Path("out/history.jsonl").read_text().splitlines()) == len(lines) - 1


def test_that_a_changed_noise_is_told_by_its_numbers(own, interrupted, capsys):
    """11."""
    interrupted(*own, *SMALL, "--method", "enkg")
    own[own.index("--noise") + 1] = "0.2"
    assert run(*own, *SMALL, "--method", "enkg", "--resume", "--out", "out") == 2
    assert "a run with noise = 0.1, expected 0.2" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- results and pictures
@pytest.mark.parametrize("broken", ["savefig", "import"])
def test_that_a_figure_that_fails_is_one_warning_and_the_numbers_are_there(broken, own, monkeypatch, capsys):
    """3."""
    from matplotlib.figure import Figure

    def fail(*_, **__):
        assert Path("out/summary.json").exists() and Path("out/result.npz").exists()  # numbers first
        raise OSError("disk full")

    if broken == "savefig":
        monkeypatch.setattr(Figure, "savefig", fail)
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(*own, *FEW, "--out", "out") == 0
    err = [line for line in re.split("[\r\n]", capsys.readouterr().err) if "warning" in line]
    assert len(err) == 1 and err[0].startswith("enkg: warning: figure: not drawn")
    assert sorted(path.name for path in Path("out").iterdir()) == ["history.jsonl", "result.npz", "summary.json"]


def test_that_no_figure_is_drawn_where_none_is_wanted(own):
    assert run(*own, *FEW, "--no-figure", "--quiet", "--out", "out") == 0
    assert not Path("out/figure.png").exists()


def test_that_dollars_in_names_are_no_formula(own):
    """3."""
    Path("pri$or$_{.onnx").write_bytes(Path("prior.onnx").read_bytes())
    own[own.index("prior.onnx")] = "pri$or$_{.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(*own, *FEW, "--truth", "truth.npy", "--quiet", "--out", "out") == 0
    assert Path("out/figure.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------- the user's simulator
@pytest.mark.parametrize("text, sentence", [
    ("raise RuntimeError('no licence')", "RuntimeError: no licence"), ("def f(:", "SyntaxError"),
    ("1 / 0", "ZeroDivision"), ("import sys\nsys.exit(3)", "SystemExit: 3"), ("forward = 3", "which is a int"),
    ("", "has no attribute 'forward'")])
def test_that_whatever_the_import_of_a_simulator_ends_in_is_one_sentence(text, sentence, own, capsys):
    """5."""
    Path("bad_module.py").write_text(text)
    sys.modules.pop("bad_module", None)
    own[1] = "bad_module:forward"
    assert run(*own, *FEW, "--out", "out") == 2
    err = capsys.readouterr().err
    assert err.startswith("enkg: error: forward: got bad_module:forward") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("name", [".relative:forward", "nothing", ":", "my_simulator:", "os"])
def test_that_a_name_that_leads_nowhere_is_one_sentence(name, own, capsys):
    own[1] = name
    assert run(*own, *FEW, "--out", "out") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"enkg: error: forward: got {name} (") and err.count("\n") == 1


def test_that_a_simulator_may_change_its_input_and_fail(own):
    """2. The rows of the retry are fresh: the result is that of a simulator that never touched them."""
    spoil = ("    if len(x) > 1:\n        x *= 0.0\n        raise RuntimeError('one at a time, please')\n"
             "    return whole(x)\n")
    simulate(own, "def forward(x):\n" + spoil)
    assert run(*own, *FEW, "--quiet", "--out", "out") == 0
    simulate(own, "def forward(x):\n    return np.concatenate([whole(row[None]) for row in x])\n")
    assert run(*own, *FEW, "--quiet", "--out", "kept") == 0
    assert np.array_equal(*(np.load(f"{name}/result.npz")["ensemble"] for name in ("out", "kept")))


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_that_failed_members_are_one_line_per_wave_and_the_first_traceback_is_in_a_file(quiet, own, capsys):
    """11."""
    simulate(own, "def forward(x):\n    if np.any(x[:, 0] > 0):\n        raise RuntimeError('blew up')\n"
             "    return whole(x)\n")
    few = ["--method", "enkg", "--particles", 16, "--steps", 4]
    assert run(*own, *few, *quiet, "--no-figure", "--out", "out") in (0, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "members failed" in line]
    if quiet:
        assert lines == []
    else:
        waves = len(Path("out/history.jsonl").read_text().splitlines())
        assert 0 < len(lines) <= waves + 1  # the predictions of the last particles are a wave too
        assert "RuntimeError: blew up; more in out/forward-error.txt" in lines[0]
        assert "more in" not in "".join(lines[1:])
    trace = Path("out/forward-error.txt").read_text()
    assert "Traceback" in trace and "failing.py" in trace and "raise RuntimeError('blew up')" in trace


@pytest.mark.parametrize("answer, sentence", [
    ("None", "got a NoneType"), ("whole(x) * 1j", "got an array of complex128"), ("'text'", "got a str"),
    ("whole(x)[:, :2]", "got an output of shape (4, 2), expected (4, 3): the data are 3 numbers"),
    ("whole(x)[1:]", "got an output of shape (3, 3), expected (4, 3): forward must return one row per particle")])
def test_that_an_answer_that_is_none_is_one_sentence_and_nothing_is_left(answer, sentence, own, capsys):
    """4."""
    simulate(own, f"def forward(x):\n    return {answer}\n")
    assert run(*own, *FEW, "--out", "out") == 2
    err = capsys.readouterr().err
    assert f"enkg: error: forward: {sentence}" in err and err.count("\n") == 1 and not Path("out").exists()


def test_that_a_problem_by_name_beside_a_simulator_is_refused(own, capsys):
    """6."""
    assert run("linear-gaussian", *own, "--out", "out") == 2
    assert "problem: got linear-gaussian with --forward, expected one of the two" in capsys.readouterr().err


def test_that_members_side_by_side_give_the_same_bits(own):
    few = ["--method", "enkg", "--particles", 4, "--steps", 3, "--chunk", 1, "--quiet", "--no-figure"]
    for workers in (1, 2):
        assert run(*own, *few, "--workers", workers, "--out", f"w{workers}") == 0
    one, two = (np.load(f"w{workers}/result.npz") for workers in (1, 2))
    assert np.array_equal(one["ensemble"], two["ensemble"]) and np.array_equal(one["predictions"], two["predictions"])


@pytest.mark.parametrize("noise", ["vector", "covariance"])
def test_that_the_noise_may_be_a_file(noise, own):
    np.save("noise.npy", {"vector": np.full(3, 0.1), "covariance": 0.01 * np.eye(3)}[noise])
    assert run(*own, *FEW, "--quiet", "--no-figure", "--out", "number") == 0
    own[own.index("--noise") + 1] = "noise.npy"
    assert run(*own, *FEW, "--quiet", "--no-figure", "--out", "file") == 0
    assert np.allclose(*(np.load(f"{name}/result.npz")["mean"] for name in ("number", "file")), rtol=1e-9)


# ------------------------------------------------------------------------------------------------- sizes, streams, json
@pytest.mark.parametrize("argv, sentence", [
    (["--particles", "10000000000"], "particles: got 10000000000 of 32 numbers, which need 2.05e+04 GB of memory"),
    (["--steps", "1000000000"], "steps: got 1000000000, expected at most 1000000"),
    (["--budget", "1000000000000000"], "budget: got 1000000000000000 forward calls, expected at most"),
    (["--method", "eki", "--budget", "1000000000000000"], "budget: got 1000000000000000 forward calls"),
    (["--particles", "1000000", "--steps", "1000000"], "particles: got 1000000")])
def test_that_sizes_that_cannot_be_are_refused_at_once(argv, sentence, tmp_path, capsys):
    """8."""
    started = time.process_time()
    assert run("linear-gaussian", *argv, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and time.process_time() - started < 20
    assert not (tmp_path / "out").exists()


def test_that_an_unwritable_json_is_refused_before_anything_is_measured(tmp_path, capsys):
    """7."""
    assert cli.main(["verify", "--json", str(tmp_path / "no" / "folder.json")]) == 2
    printed = capsys.readouterr()
    assert "json: got" in printed.err and "which cannot be written" in printed.err and printed.out == ""
    if Path("/dev/full").exists():
        assert cli.main(["verify", "--json", "/dev/full"]) == 2
        assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["closed", "full"])
def test_that_a_result_is_kept_where_nothing_can_be_printed(stream, tmp_path):
    """7."""
    if stream == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    where = {"closed": ">&-", "full": ">/dev/full"}[stream]
    command = (f"{sys.executable} -m enkg_ref solve linear-gaussian --particles 4 --steps 4 --no-figure "
               f"--out {tmp_path}/out {where}")
    done = subprocess.run(command, shell=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert "Traceback" not in done.stderr and (tmp_path / "out" / "summary.json").exists()
    assert done.returncode == (0 if stream == "closed" else 1)


# ------------------------------------------------------------------------------------------------ paper, strict, python
def test_that_paper_is_the_published_setting_exactly():
    found = solve(SolveRequest("linear-gaussian", paper=True, settings={"particles": 4, "steps": 4}))
    config = found.summary["config"]
    assert (config["guidance"], config["step_rule"], config["stop"], config["guard"]) == (2.0, "frobenius", "none", 0.0)
    assert config["updates"] == 2 and config["failed"] == "shift"
    with pytest.raises(ValueError, match="paper: got True with method eki"):
        solve(SolveRequest("linear-gaussian", method="eki", budget=64, paper=True))


def test_that_a_notebook_gets_arrays_and_a_picture_and_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem, calls = linear_gaussian("A", seed=1), []
    found = solve(SolveRequest(problem, method="enkg", settings={"particles": 8, "steps": 6}, ensembles=2, seed=3),
                  lambda done, total, line: calls.append((done, total, line["ensemble"])))
    assert found.ensemble.shape == (16, 32) and found.ensemble_index.tolist() == [0] * 8 + [1] * 8
    assert np.array_equal(found.mean, found.ensemble.mean(axis=0)) and np.array_equal(found.truth, problem.truth)
    assert np.allclose(found.predictions, found.ensemble @ problem.H.T)
    assert [call[0] for call in calls] == list(range(1, len(found.history) + 1)) and calls[-1][1] == len(found.history)
    assert found.figure().axes and list(tmp_path.iterdir()) == []
    assert report.text(found.summary).splitlines()[-1] == f"  verdict: {found.summary['verdict']['sentence']}"


def test_that_a_users_functions_are_solved_in_a_notebook():
    """A lambda for the simulator, a Gaussian for the prior: the posterior is known."""
    from onnx_priors.gaussian import GaussianPrior

    rng = np.random.default_rng(0)
    H, truth = rng.standard_normal((3, 5)), rng.standard_normal(5)
    found = solve(SolveRequest(forward=lambda x: x @ H.T, prior=GaussianPrior(np.zeros(5), 1.0), observation=H @ truth,
                               noise=0.3, truth=truth, ensembles=2))
    K = H.T @ np.linalg.inv(H @ H.T + 0.09 * np.eye(3))
    posterior, spread = K @ H @ truth, np.sqrt(np.diag(np.eye(5) - K @ H))
    assert found.summary["method"] == "enkg-r" and found.summary["chosen"]
    assert np.all(np.abs(found.mean - posterior) < 4 * spread / np.sqrt(len(found.ensemble)) + 0.1)
    assert found.summary["verdict"]["kind"] == "fitted, spread believable"


def test_that_strict_turns_the_verdict_into_an_exit_code(own, monkeypatch):
    from enkg_ref.run import verdict

    for kind, code in ((verdict.FITTED, 0), (verdict.NOT_FITTED, 1)):
        monkeypatch.setattr(verdict, "judge", lambda e, kind=kind: verdict.Verdict(kind))
        assert run(*own, *FEW, "--strict", "--quiet", "--no-figure", "--out", kind) == code
        assert json.loads(Path(kind, "summary.json").read_text())["verdict"]["kind"] == kind


def test_that_history_and_summary_are_json_of_the_standard(own):
    assert run(*own, *FEW, "--quiet", "--no-figure", "--out", "out") == 0
    for text in (*Path("out/history.jsonl").read_text().splitlines(), Path("out/summary.json").read_text()):
        json.load(io.StringIO(text), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
