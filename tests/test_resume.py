"""A run that stops goes on, to the same bits; nothing of the user's is ever lost or overwritten."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from shell import SMALL, run

from enkg_ref import cli
from enkg_ref.enkg_r.reference import Reference, file_sha256
from onnx_priors.gaussian import GaussianPrior


def test_that_a_folder_with_a_run_is_never_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("linear-gaussian", *SMALL, "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run("linear-gaussian", *SMALL, "--out", out) == 2
    assert run("linear-gaussian", *SMALL, "--out", out, "--resume") == 2
    assert "finished run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("")
    assert run("linear-gaussian", *SMALL, "--out", tmp_path / "file") == 2


@pytest.mark.parametrize("name", ["figure.png", "result.npz", "history.jsonl", "run/data.txt"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_that_files_of_another_origin_are_never_touched(name, resume, tmp_path, capsys):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert run("linear-gaussian", *SMALL, "--out", tmp_path / "out", *resume) == 2
    assert "expected another folder" in capsys.readouterr().err and mine.read_text() == "mine"


@pytest.mark.parametrize("change", [
    lambda a: Path("my_simulator.py").rename("other.py") and a.__setitem__(1, "other:forward"),
    lambda a: GaussianPrior(np.ones(5), 1.0).to_onnx("prior.onnx", {"sigma_min": 0.002, "sigma_max": 80.0}),
], ids=["another simulator", "another prior of the same name"])
def test_that_a_checkpoint_of_another_run_is_refused(own, change, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    interrupted(*own, *SMALL)
    change(own)
    assert run(*own, *SMALL, "--out", "out", "--resume") == 2
    assert "checkpoint: got a run with" in capsys.readouterr().err


def test_that_another_reference_beside_the_prior_makes_another_run(own, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    own += ["--method", "enkg-r", "--budget", 160, "--quiet"]
    sha = file_sha256("prior.onnx")
    Reference(np.zeros(5), np.eye(5), np.ones(5), prior=sha).save("prior.reference.npz")
    interrupted(*own)
    Reference(np.zeros(5), np.eye(5), np.full(5, 0.9), prior=sha).save("prior.reference.npz")
    assert run(*own, "--out", "out", "--resume") == 2
    assert "checkpoint: got a run with reference = " in capsys.readouterr().err
    Reference(np.zeros(5), np.eye(5), np.ones(5), prior=sha).save("prior.reference.npz")
    assert run(*own, "--out", "out", "--resume") == 0


def test_that_a_run_goes_on_with_more_ensembles_but_never_with_fewer(own, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    own += [*SMALL, "--workers", 1]
    interrupted(*own, "--ensembles", 2)
    before = {path.name: path.read_bytes() for path in Path("out/run").iterdir()}
    assert run(*own, "--ensembles", 1, "--out", "out", "--resume") == 2
    assert "ensembles: got 1, expected at least 2: so many are begun in out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("out/run").iterdir()} == before
    assert run(*own, "--ensembles", 3, "--out", "out", "--resume") == 0
    assert run(*own, "--ensembles", 3, "--out", "whole") == 0
    assert np.array_equal(*(np.load(f"{name}/result.npz")["ensemble"] for name in ("out", "whole")))


def test_that_two_processes_never_work_on_one_ensemble(own, capsys):
    pytest.importorskip("onnxruntime")
    fcntl = pytest.importorskip("fcntl")
    Path("out/run").mkdir(parents=True)
    Path("out/run/enkg-run").touch()
    with open("out/run/ensemble-0.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(*own, *SMALL, "--out", "out") == 2
    assert "another process is at work" in capsys.readouterr().err


def test_that_workers_end_when_their_parent_is_killed(tmp_path):
    command = [sys.executable, "-m", "enkg_ref", "solve", "linear-gaussian", "--ensembles", "2", "--workers", "2",
               "--particles", "2000", "--steps", "300", "--updates", "20", "--out", str(tmp_path / "out"), "--quiet"]
    started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])})
    histories = [tmp_path / "out" / "run" / f"ensemble-{k}.jsonl" for k in (0, 1)]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.stat().st_size for path in histories) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.kill()
    started.wait()
    time.sleep(2.0)
    before = [path.stat().st_size for path in histories]
    time.sleep(1.0)
    assert min(before) > 0 and [path.stat().st_size for path in histories] == before


def test_that_an_interrupted_run_resumes_to_the_same_bits(own, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "slow.py").write_text(
        "import os, time\nfrom my_simulator import forward as fast\n\n\ndef forward(x):\n"
        "    time.sleep(0.05 if os.path.exists('slow') else 0.0)\n    return fast(x)\n")
    own[1] = "slow:forward"
    # a test run in the background of a shell ignores interrupts, and its children with it
    start = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
             "from enkg_ref.cli import main; sys.exit(main())")
    command = [sys.executable, "-c", start, "solve", *own, "--particles", "8", "--steps", "30"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[1]), str(tmp_path)])}
    subprocess.run([*command, "--out", "whole", "--quiet"], check=True, env=environment)
    Path("slow").touch()
    started = subprocess.Popen([*command, "--out", "cut"], env=environment, stderr=subprocess.PIPE, text=True)
    history = Path("cut/run/ensemble-0.jsonl")
    while started.poll() is None and not (history.exists() and history.read_text().count("\n") >= 7):
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130 and "--resume" in err
    other = subprocess.run([*command, "--out", "cut", "--resume", "--guidance", "1"], env=environment, text=True,
                           capture_output=True)
    assert other.returncode == 2 and "a run with guidance = " in other.stderr and "expected 1.0" in other.stderr
    Path("slow").unlink()
    subprocess.run([*command, "--out", "cut", "--quiet", "--resume"], check=True, env=environment)
    whole, cut = (np.load(Path(name, "result.npz")) for name in ("whole", "cut"))
    assert np.array_equal(whole["ensemble"], cut["ensemble"])
    assert Path("whole/history.jsonl").read_text() == Path("cut/history.jsonl").read_text()
    ledgers = [json.loads(Path(name, "summary.json").read_text())["ledger"] for name in ("whole", "cut")]
    assert {k: v for k, v in ledgers[0].items() if k != "wall"} == {k: v for k, v in ledgers[1].items() if k != "wall"}
