"""``enkg prior``: from images to a prior that ``solve`` takes, with its reference; what cannot be is one sentence."""

import json

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tqdm")

from enkg_ref import cli  # noqa: E402
from enkg_ref.enkg_r.reference import Reference, file_sha256  # noqa: E402


def smooth(n, seed):
    """Smooth curves (n, 24) around a parabola, physical units."""
    t = np.linspace(0, 1, 24)
    C = 4 * np.exp(-((t[:, None] - t) ** 2) / 0.02)
    return np.random.default_rng(seed).multivariate_normal(20 + 9 * t**2, C, size=n, method="eigh")


def every_third(x):
    """A forward model for `enkg solve`."""
    return x[:, ::3]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", smooth(600, 0))
    return tmp_path


@pytest.mark.parametrize("options", [[], ["--kind", "mixture", "--components", "2"]])
def test_images_become_a_prior_that_solves_an_own_problem_with_enkg_r(options, folder, capsys):
    assert cli.main(["prior", "fit", "images.npy", "--out", "p.onnx", "--units", "kelvin", *options]) == 0
    shown = capsys.readouterr().out
    assert "written: p.onnx, p_vjp.onnx, p.reference.npz" in shown and "| Gaussian |" in shown
    assert Reference.load("p.reference.npz", file_sha256("p.onnx")).event_shape == (24,)
    np.save("fresh.npy", smooth(200, 1))
    assert cli.main(["prior", "check", "p.onnx", "--images", "fresh.npy"]) == 0
    assert "no problem found" in capsys.readouterr().out

    truth = smooth(1, 2)[0]
    np.save("truth.npy", truth)
    np.save("y.npy", truth[::3] + 0.1 * np.random.default_rng(3).standard_normal(8))
    assert cli.main(["solve", "--forward", f"{__name__}:every_third", "--prior", "p.onnx", "--observation", "y.npy",
                     "--noise", "0.1", "--truth", "truth.npy", "--method", "enkg-r", "--budget", "300", "--out", "run",
                     "--quiet", "--no-figure"]) == 0
    mean = np.load("run/result.npz")["mean"]
    assert np.linalg.norm(mean - truth) < 0.5 * np.linalg.norm(smooth(600, 0).mean(axis=0) - truth)
    assert json.loads((folder / "run" / "summary.json").read_text())["prior"] == "p.onnx"


def test_check_finds_fault_with_exit_code_one(folder, capsys):
    assert cli.main(["prior", "fit", "images.npy", "--out", "p.onnx"]) == 0
    np.save("other.npy", np.random.default_rng(0).standard_normal((100, 24)))
    assert cli.main(["prior", "check", "p.onnx", "--images", "other.npy"]) == 1
    assert "PROBLEM" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["fit", "none.npy", "--out", "p.onnx"], "images: got none.npy, which cannot be read"),
    (["fit", "images.npy", "--out", "nowhere/p.onnx"], "out: got nowhere/p.onnx, expected a file in a folder"),
    (["fit", "images.npy", "--out", "p.onnx", "--modes", "0"], "modes: got 0"),
    (["fit", "images.npy"], "--out: got nothing, expected a value"),
    (["train", "images.npy", "--out", "p.onnx", "--minutes", "-3"], "minutes: got "),
    (["train", "images.npy", "--out", "p.onnx", "--symmetry", "square"], "symmetry: got square for events of shape"),
    (["check", "kerr-disc-65"], "did you mean 'kerr-disc-64'"),
    (["import", "a.b:c", "--kind", "gan", "--out", "p.onnx"], "kind: got 'gan', expected one of edm"),
    (["import", "a.b:c", "--kind", "v", "--out", "p.onnx", "--shape", "0"], "shape: got '0', expected one to three"),
])
def test_what_cannot_be_is_one_sentence_and_exit_code_two(words, message, folder, capsys):
    if words[0] in ("train", "import") and "--minutes" not in words:
        pytest.importorskip("torch")
        pytest.importorskip("onnxscript")
    assert cli.main(["prior", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["images.npy"]
