"""The two commands that train a prior, on a handful of images: what they write, also from a checkpoint."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from onnx_priors.training import command, edm, kerr_disc, navier_stokes  # noqa: E402


@pytest.fixture
def small(monkeypatch):
    """Few images, a small batch, and an export that keeps what it is given; returns {file name: (module, facts)}."""
    written = {}

    def keep(module, path, size, facts):
        assert size == tuple(SIZES[path.stem.split("-gaussian")[0].removesuffix("_vjp")])
        written[path.name] = module, facts

    monkeypatch.setattr(edm, "BATCH", 16)
    monkeypatch.setattr(kerr_disc, "TRAINING_COUNT", 48)
    monkeypatch.setattr(kerr_disc, "HELD_OUT_COUNT", 16)
    monkeypatch.setattr(kerr_disc, "COMPONENTS", 4)
    monkeypatch.setattr(kerr_disc.kerr_disc, "generate",
                        lambda count, seed, dtype: (0.5 + fields(64, count, "", seed)).clip(0, 1).astype(dtype))
    monkeypatch.setattr(navier_stokes, "COUNTS", {32: 24})
    monkeypatch.setattr(navier_stokes, "HELD_OUT_COUNT", 16)
    monkeypatch.setattr(navier_stokes.vorticity, "fields", fields)
    monkeypatch.setattr(command.export, "export_denoiser", keep)
    monkeypatch.setattr(command.export, "export_vjp", keep)
    monkeypatch.setattr(command, "borrow_weights", lambda path, source, least=0: 0)
    monkeypatch.setattr(command.shipping, "register_prior", lambda name, file, vjp, manifest: manifest.write_text(
        json.dumps((json.loads(manifest.read_text()) if manifest.exists() else []) + [[name, vjp and vjp.name]])))
    return written


SIZES = {"discs": (64, 64), "flow": (32, 32)}


def fields(size, count, split, first=0, fft="scipy"):
    """Smooth random fields, in the place of evolved ones and of discs."""
    rng = np.random.default_rng([first, len(split)])
    k = np.fft.fftfreq(size, 1 / size)
    decay = 1 / (1 + k[:, None] ** 2 + k**2)
    return np.fft.ifft2(decay * np.fft.fft2(rng.standard_normal((count, size, size)))).real.astype(np.float32)


@pytest.mark.parametrize(("main", "stem", "own", "call"), [
    (kerr_disc.main, "discs", [], "onnx_priors.training.kerr_disc"),
    (navier_stokes.main, "flow", ["--size", "32"], "onnx_priors.training.navier_stokes --size 32")])
def test_a_command_writes_prior_vjp_and_gaussian_and_repeats_it_from_the_checkpoint(
        main, stem, own, call, small, tmp_path, capsys):
    out = tmp_path / f"{stem}.onnx"
    arguments = [*own, "--out", str(out), "--work", str(tmp_path / "work"), "--seed", "3"]
    assert main([*arguments, "--images", "32"]) == 0
    assert list(small) == [f"{stem}.onnx", f"{stem}_vjp.onnx", f"{stem}-gaussian.onnx"]
    denoiser, facts = small[f"{stem}.onnx"]
    assert facts["training_command"] == f"python -m {call} --out {stem}.onnx --work DIR --images 32 --seed 3"
    assert facts["images_seen"] == 32 and facts["sigma_data"] == round(denoiser.gaussian.deviation, 6)
    assert small[f"{stem}_vjp.onnx"] == (denoiser, facts)
    gaussian, of_gaussian = small[f"{stem}-gaussian.onnx"]
    assert gaussian is denoiser.gaussian and "Wiener" in of_gaussian["parametrisation"]
    assert set(facts) - set(of_gaussian) == {"images_seen", "cpu_minutes"}
    assert json.loads((tmp_path / "manifest.json").read_text()) == [[stem, f"{stem}_vjp.onnx"],
                                                                    [f"{stem}-gaussian", None]]
    table = capsys.readouterr().out.splitlines()[-5:]
    assert [row.split("|")[1].strip() for row in table] == [
        "sigma" if stem == "discs" else "sigma / std", "---", "network", "Wiener", "ratio"]
    ratios = [float(cell) for cell in table[4].split("|")[2:-1]]
    found = [[float(cell) for cell in row.split("|")[2:-1]] for row in table[2:4]]
    np.testing.assert_allclose(ratios, np.divide(*found), rtol=0.02)

    assert main([*arguments, "--export-only"]) == 0
    again, facts_again = small[f"{stem}.onnx"]
    assert again is not denoiser and facts_again == facts
    x, sigma = torch.randn(2, 1, *SIZES[stem]), torch.tensor([0.1, 2.0])
    assert torch.equal(again(x, sigma), denoiser(x, sigma))
