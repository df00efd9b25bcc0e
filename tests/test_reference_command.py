"""benchmarks/make_reference.py as a person meets it: what it writes is taken, bad input is one sentence."""

import numpy as np
import pytest

from enkg_ref.enkg_r.reference import Reference, file_sha256
from onnx_priors.gaussian import GaussianPrior


@pytest.fixture
def make(load_benchmark, tmp_path, monkeypatch):
    """make(*argv) for prior.onnx, N(0, 1) on five points between the levels .1 and 5, in an empty folder."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    GaussianPrior(np.zeros(5), 1.0).to_onnx("prior.onnx", {"sigma_min": 0.1, "sigma_max": 5.0, "scale": 3.0})
    main = load_benchmark("make_reference").main
    return lambda *argv: main(["prior.onnx", *map(str, argv)])


@pytest.mark.parametrize("argv", [["--images", "images.npy"], ["--samples", 400]])
def test_that_a_reference_is_put_beside_a_prior_of_few_levels(argv, make, tmp_path):
    np.save("images.npy", 3.0 * np.random.default_rng(0).standard_normal((400, 5)))
    make(*argv)
    made = Reference.load(tmp_path / "prior.reference.npz", file_sha256("prior.onnx"))
    assert made.variances.size == 5 and made.table_sigmas[[0, -1]] == pytest.approx([0.1, 5.0])
    assert made.std == pytest.approx(1.0, abs=0.15)  # 300 draws of five numbers, 40 Euler steps from level 5


@pytest.mark.parametrize("argv, sentence", [
    (["--samples", -3], "samples: got -3, expected at least 32"),
    (["--samples", 0], "samples: got 0, expected at least 32"),
    (["--samples", 4], "samples: got 4, expected at least 32"),
    (["--modes", 0, "--samples", 64], "modes: got 0, expected at least 1"),
    (["--count", 4], "count: got 4, expected at least 32"),
    (["--images", "none.npy"], "reference: got none.npy, which does not exist"),
    (["--images", "few.npy"], "expected at least 32 images of shape (5,) in physical units"),
    (["--images", "shape.npy"], "expected at least 32 images of shape (5,) in physical units"),
    (["--images", "nan.npy"], "reference: got nan.npy with non-finite values"),
    (["--images", "same.npy"], "reference: got images that are all alike"),
    (["--images", "units.npy"], "reference: got images of standard deviation"),
    ([], "expected --images FILE.npy or --samples N"),
])
def test_that_bad_input_is_named_and_nothing_is_written(argv, sentence, make, tmp_path):
    images = np.random.default_rng(0).standard_normal((64, 5))
    for name, array in (("few", images[:31]), ("shape", images[:, :4]), ("nan", images * np.nan), ("same", 0 * images),
                        ("units", 1e5 * images)):
        np.save(f"{name}.npy", array)
    with pytest.raises(SystemExit) as stopped:
        make(*argv)
    assert sentence in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "prior.reference.npz").exists()
