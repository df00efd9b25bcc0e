"""``enkg ask`` and ``enkg tell``: a run whose simulations others make has the bits of ``enkg solve``."""

import json
from pathlib import Path

import numpy as np
import pytest
from shell import run

from enkg_ref import cli

pytest.importorskip("onnxruntime")


def ask_and_tell(options, name="run"):
    """Answer every wave by the user's simulator, until the result is there.  -> number of waves"""
    from my_simulator import forward

    for wave in range(100):
        assert cli.main(["ask", name, *(options if wave == 0 else [])]) == 0
        np.save("answer.npy", forward(np.load(f"{name}/points.npy")))
        assert cli.main(["tell", name, "answer.npy"]) == 0
        if Path(name, "summary.json").exists():
            return wave + 1
    raise AssertionError("no result after 100 waves")


@pytest.mark.parametrize("method", [["enkg", "--particles", "5", "--steps", "5"], ["eki", "--budget", "30"],
                                    ["enkg-r", "--budget", "64", "--reference", "images.npy"]])
def test_that_a_run_in_waves_has_the_bits_of_a_run_at_once(method, own, capsys):
    np.save("images.npy", np.random.default_rng(4).standard_normal((400, 5)))
    assert run(*own, "--method", *method, "--quiet", "--no-figure", "--out", "whole") == 0
    waves = ask_and_tell([*own[2:], "--method", *method, "--no-figure"])
    assert waves == len(Path("whole/history.jsonl").read_text().splitlines()) + 1  # and one for the result itself
    whole, queued = (np.load(f"{name}/result.npz") for name in ("whole", "run"))
    assert all(np.array_equal(whole[name], queued[name]) for name in whole.files)
    assert Path("whole/history.jsonl").read_text() == Path("run/history.jsonl").read_text()
    books = [json.loads(Path(name, "summary.json").read_text())["ledger"] for name in ("whole", "run")]
    assert all(books[0][name] == books[1][name] for name in books[0] if name != "wall")
    assert not Path("run/run").exists() and not Path("run/points.npy").exists()


def test_that_what_is_told_wrongly_is_one_sentence_and_nothing_is_lost(own, capsys):
    few = [*own[2:], "--method", "enkg", "--particles", "4", "--steps", "4", "--no-figure"]
    np.save("answer.npy", np.ones((4, 3)))
    for argv, sentence in ((["tell", "run", "answer.npy"], "run: got run, which holds no run to ask"),
                           (["ask", "run"], "prior: got nothing, expected --prior"),
                           (["ask", "run", *few], None),
                           (["tell", "run", "no.npy"], "predictions: got no.npy, which does not exist"),
                           (["tell", "run", "wrong.npy"], "forward: got an output of shape (3, 3), expected (4, 3)"),
                           (["tell", "run", "nan.npy"], "forward: 0 of 4 rows are finite"),
                           (["tell", "run", "answer.npy"], None),
                           (["tell", "run", "answer.npy"], "run: got run, which has asked nothing, expected enkg ask")):
        np.save("wrong.npy", np.ones((3, 3)))
        np.save("nan.npy", np.full((4, 3), np.nan))
        code, err = cli.main(argv), capsys.readouterr().err
        assert (code == 0 and err == "") if sentence is None else (code in (1, 2) and sentence in err), (argv, err)
        assert err.count("\n") <= 1


def test_that_a_member_without_a_finite_prediction_is_a_failed_one(own, capsys):
    few = [*own[2:], "--method", "enkg", "--particles", "4", "--steps", "4", "--no-figure"]
    assert cli.main(["ask", "run", *few]) == 0
    answer = np.random.default_rng(0).standard_normal((4, 3))
    answer[1, 2] = np.nan
    np.save("answer.npy", answer)
    assert cli.main(["tell", "run", "answer.npy"]) == 0
    (line,) = Path("run/run/ensemble-0.jsonl").read_text().splitlines()
    assert json.loads(line)["failed_rows"] == [1]
