"""The command line as a person meets it: one sentence for bad input, lists, exit codes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shell import SMALL, csv, run

import problems
from enkg_ref import cli
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.methods import METHODS

BAD = [
    (["linear-gausian"], "did you mean linear-gaussian"),
    ([], "problem: got nothing"),
    (["linear-gaussian", "--method", "enkq"], "did you mean enkg"),
    (["linear-gaussian", "--prior", "no-such-prior"], "no-such-prior"),
    (["linear-gaussian", "--prior", "missing.onnx"], "missing.onnx"),
    (["linear-gaussian", "--preset", "black-hole"], "did you mean black-hole-official"),
    (["linear-gaussian", "--particles", "1"], "particles: got 1, expected a whole number of at least 2"),
    (["linear-gaussian", "--steps", "1"], "steps: got 1, expected a whole number of at least 2"),
    (["linear-gaussian", "--particles", "many"], "--particles: got 'many', expected an integer"),
    (["linear-gaussian", "--guidance", "nan"], "--guidance: got 'nan', expected a finite number"),
    (["linear-gaussian", "--noise", "-1"], "noise: got '-1', expected a number >= 0"),
    (["linear-gaussian", "--noise", "0"], "noise: got 0.0, expected a standard deviation > 0"),
    (["linear-gaussian", "--seed", "-3"], "seed: got -3"),
    (["linear-gaussian", "--ensembles", "0"], "ensembles: got 0"),
    (["linear-gaussian", "--observation", "y.npy"], "observation: got y.npy, expected nothing"),
    (["linear-gaussian", "--device", "cuda"], "device: got cuda"),
    (["linear-gaussian", "--window", "1"], "--window: got '1', expected START,END"),
    (["linear-gaussian", "--nonsense"], "--nonsense: got an argument that this command does not know, expected one of"),
    (["linear-gaussian", "--step-rule", "x"], "--step-rule: got 'x', expected one of 'frobenius', 'trace', "),
    (["linear-gaussian", "--workers", "9999999999"], "workers: got 9999999999, expected at most 1000"),
    (["linear-gaussian", "--ensembles", "9999999999"], "ensembles: got 9999999999, expected at most 10000"),
    (["--forward", "f:g", "--prior", "gaussian", "--observation", "y.npy", "--noise", "1"], "prior: got gaussian with "
     "--forward, expected a file: enkg prior fit images.npy"),
    (["--forward", "my_simulator:forward"], "prior: got nothing"),
    (["black-hole", "--observation", "missing.csv"], "missing.csv"),
    (["black-hole", "--truth", "small.npy"], "(3, 3)"),
    (["black-hole", "--systematic", "0.1"], "systematic: got 0.1, expected nothing: problem black-hole"),
    (["m87", "--coverage", "sgra"], "coverage: got sgra, expected nothing: problem m87 does not use it"),
    (["m87", "--item", "3"], "item: got 3, expected nothing: problem m87"),
    (["linear-gaussian", "--size", "64"], "size: got 64, expected nothing: problem linear-gaussian"),
    (["linear-gaussian", "--workers", "0"], "workers: got 0, expected at least 1"),
    (["linear-gaussian", "--window", "0.9,0.9"], "--window: got '0.9,0.9', expected two fractions"),
    (["linear-gaussian", "--window=-1,2"], "--window: got '-1,2', expected two fractions"),
    (["linear-gaussian", "--steps", "4", "--window", "0.5,0.4"], "window: got fractions that guide none of 4 levels"),
    (["black-hole", "--preset", "black-hole-official", "--steps", "40"], "steps: got 40 with a preset"),
    (["m87", "--day", "1"], "day: got '1'"),
    (["navier-stokes", "--size", "33"], "size: got 33, expected 32, 64, 128 grid points per axis"),
    (["navier-stokes", "--size", "128"], "onnx_priors.training.navier_stokes --size 128, or --prior gaussian"),
    (["navier-stokes", "--noise", "-0.1"], "noise: got '-0.1', expected a number >= 0"),
    (["navier-stokes", "--truth", "small.npy"], "truth: got shape (3, 3), expected (32, 32)"),
    (["navier-stokes", "--observation", "small.npy"], "observation: got shape (3, 3), expected (16, 16)"),
    (["navier-stokes", "--observation", "two.npz"], "observation: got two.npz, which is an archive of arrays"),
    (["navier-stokes", "--truth", "two.npz"], "truth: got two.npz, which is an archive of arrays, expected one array"),
    (["navier-stokes", "--observation", "complex.npy"], "got complex.npy, which is an array of complex128, expected"),
    (["navier-stokes", "--truth", "cut.npz"], "truth: got cut.npz, which is not an array of numbers"),
    (["navier-stokes", "--truth", "zero.npy"], "truth: got zeros everywhere, expected another field"),
    (["navier-stokes", "--item", "-1"], "item: got -1, expected a number >= 0"),
    (["navier-stokes", "--observation", "y.npy", "--item", "3"], "item: got 3, expected nothing: problem navier-stokes "
     "does not use it with --observation"),
    (["navier-stokes", "--observation", "y.npy", "--data-solver", "padded"], "data_solver: got padded, expected "),
    (["black-hole", "--observation", "y.csv", "--coverage", "sgra"], "coverage: got sgra, expected nothing"),
    (["navier-stokes", "--fft", "pyfftw"], "fft: got pyfftw, which is not installed, expected it from the extra fast: "
     "pip install -e '.[fast]'"),
    (["navier-stokes", "--size", "64", "--prior", "kerr-disc-64"], "got kerr-disc-64, made for 'image of peak 1"),
    (["black-hole", "--prior", "navier-stokes-64"], "prior: got navier-stokes-64, made for 'vorticity, Re = 200, "),
    (["navier-stokes", "--stop", "particle"], "stop: got particle with noise-free data, expected --noise above 0"),
    (["navier-stokes", "--step-rule", "tempered"], "step_rule: got tempered with noise-free data"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "small.npy"], "with an array of shape (3, 3), "
     "expected at least 32 images of shape (32, 32) in physical units"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "none.npy"], "got none.npy, which does not exist"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "none.npz"], "reference: none.npz does not exist"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "nan.npy"], "got nan.npy with non-finite values"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "few.npy"], "expected at least 32 images of shape"),
    (["navier-stokes", "--reference", "few.npy"], "reference: got few.npy with method enkg, which needs none"),
    (["m87", "--prior", "gaussian"], "prior: got gaussian, which problem m87"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "same.npy"], "reference: got images that are all alike"),
    (["navier-stokes", "--method", "enkg-r", "--prior", "gaussian", "--reference", "foreign.npz"], "made for the prior "
     "with sha256 4567..., expected one for a prior that is no file"),
    (["linear-gaussian", "--method", "enkg-r", "--budget", "9" * 23], "9', expected an integer of at most 18 digits"),
    (["m87", "--observation", "y.npy"], "observation: got y.npy, expected nothing: problem m87 does not use it"),
]


@pytest.mark.parametrize("argv, sentence", BAD, ids=[" ".join(argv) or "nothing" for argv, _ in BAD])
def test_that_bad_input_exits_2_with_one_sentence_and_writes_nothing(argv, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.zeros((3, 3)))
    np.save("nan.npy", np.full((40, 32, 32), np.nan))
    np.save("few.npy", np.zeros((31, 32, 32)))
    np.save("same.npy", np.ones((40, 32, 32)))
    Reference(np.zeros((32, 32)), np.eye(1024)[:, :2], np.ones(2), prior="4567").save("foreign.npz")
    np.save("zero.npy", np.zeros((32, 32)))
    np.save("y.npy", np.ones(256))
    np.save("complex.npy", np.full(256, 1j))
    np.savez("two.npz", a=np.ones(256), b=np.ones(256))
    Path("cut.npz").write_bytes(Path("two.npz").read_bytes()[:300])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pyfftw" else find(name, *a))
    assert run(*argv, "--quiet", "--out", "out") == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not Path("out").exists()


@pytest.mark.parametrize("change, sentence", [
    (lambda a: a.__setitem__(1, "my_simulator:nothing"), "forward: got my_simulator:nothing"),
    (lambda a: a.__setitem__(1, "no_module:f"), "forward: got no_module:f"),
    (lambda a: np.save("y.npy", np.array([1.0, np.nan, 2.0])), "observation: got y.npy with non-finite values"),
    (lambda a: Path("y.npy").write_text("not numbers"), "observation: got y.npy, which is not an array"),
    (lambda a: Path("y.npy").unlink(), "observation: got y.npy, which does not exist"),
    (lambda a: a.extend(["--truth", "y.npy"]), "truth: got shape (3,), expected (5,)"),
    (lambda a: Path("prior.onnx").write_bytes(Path("prior.onnx").read_bytes()[:200]), "prior.onnx"),
    (lambda a: a.__setitem__(1, "no-such-program {input} {output}"), "forward: got the program no-such-program"),
    (lambda a: np.save("y.npy", np.zeros(4)), "forward: got an output of shape (16, 3), expected (16, 4)"),
])
def test_that_a_bad_problem_of_ones_own_is_named(own, change, sentence, capsys):
    pytest.importorskip("onnxruntime")
    change(own)
    assert run(*own, *SMALL, "--out", "out") == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("enkg: error") == 1
    # nothing was computed: the corrected command may use the same folder
    assert not Path("out/run").exists() and "unfinished" not in err


def test_that_a_budget_to_tune_at_is_named_by_its_own_option(tmp_path, capsys):
    assert cli.main(["compare", "linear-gaussian", "--methods", "eki", "--budget", "40", "--tune", "-3", "--out",
                     str(tmp_path / "out")]) == 2
    assert "tune: got -3, expected a budget of at least 1" in capsys.readouterr().err


def test_that_a_prior_of_another_shape_is_refused(own, capsys):
    pytest.importorskip("onnxruntime")
    assert run("linear-gaussian", "--prior", "prior.onnx", *SMALL, "--out", "out") == 2
    assert "(5,)" in capsys.readouterr().err and not Path("out").exists()


def _sigma(value):
    return lambda lines: [*lines[:-1], ",".join([*lines[-1].split(",")[:-1], value])]


@pytest.mark.parametrize("change, sentence", [
    (lambda lines: [], "data.csv"),
    (lambda lines: ["a picture, not a table"] * 3, "data.csv"),
    (lambda lines: [line.rsplit(",", 1)[0] if "#" not in line else line for line in lines], "data.csv"),
    (lambda lines: [*lines[:9], lines[9][:20]], "data.csv"),
    (_sigma("nan"), "sigma"), (_sigma("0"), "sigma"), (_sigma("-1"), "sigma"),
    (lambda lines: [line for line in lines if "#" in line or ",AA,LM," in line], "station"),
    (lambda lines: [line for line in lines if "#" in line or ",AA,LM," in line or ",AA,PV," in line], "triangle"),
], ids=["empty", "no table", "missing column", "truncated", "nan", "zero", "negative", "two stations", "no triangle"])
def test_that_a_bad_observation_is_named_in_one_sentence(change, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv(change)
    assert run("black-hole", "--observation", "data.csv", "--quiet", "--out", "out") == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not Path("out").exists()


def test_that_a_corrupted_weight_file_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from onnx_priors import manifest

    broken = bytearray((manifest.WEIGHTS / "kerr-disc-64-gaussian.onnx").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "kerr-disc-64-gaussian.onnx").write_bytes(broken)
    (tmp_path / "manifest.json").write_text(manifest.MANIFEST.read_text())
    monkeypatch.setattr(manifest.resolve, "__defaults__", ("denoiser", tmp_path / "manifest.json"))
    assert run("black-hole", "--prior", "kerr-disc-64-gaussian", "--quiet", "--out", tmp_path / "out") == 2
    assert "sha256" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_that_list_names_every_problem_method_and_prior(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in (*problems.PROBLEMS, *METHODS):
        assert name in printed


def test_a_reader_that_leaves_early_is_no_error():
    """`enkg list | head -1`: the pipe is closed before the list is written; that is all the reader wanted."""
    program = "import sys; sys.stdin.readline(); from enkg_ref.cli import main; sys.exit(main(['list']))"
    listing = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    listing.stdout.close()
    listing.stdin.write("\n")
    listing.stdin.close()
    assert listing.stderr.read() == "" and listing.wait() == 0
