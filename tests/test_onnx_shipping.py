"""Files that read their weights from the denoiser beside them: the same bits, and no silent mix of versions."""

import shutil

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_priors import manifest  # noqa: E402
from onnx_priors.borrow import borrow_weights, halve_weights  # noqa: E402
from onnx_priors.gaussian import GaussianPrior  # noqa: E402
from onnx_priors.graph import Graph  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP  # noqa: E402

D = 40


@pytest.fixture
def pair(tmp_path):
    """A dense Gaussian as denoiser.onnx and vjp.onnx, each with its own copy of the modes."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((D, D))
    prior = GaussianPrior.from_covariance(rng.standard_normal(D), root @ root.T / D)
    prior.to_onnx(tmp_path / "denoiser.onnx")
    prior.to_onnx(tmp_path / "vjp.onnx", vjp=True)
    return tmp_path


def test_a_model_that_borrows_its_weights_computes_the_same_bits_and_the_lender_stays_as_it_is(pair):
    x, v = np.random.default_rng(1).standard_normal((2, 5, D)).astype("float32")
    lender, before = (pair / "denoiser.onnx").read_bytes(), OnnxDenoiserVJP(pair / "vjp.onnx")(x, 0.3, v)
    saved = borrow_weights(pair / "vjp.onnx", pair / "denoiser.onnx")
    assert saved == pytest.approx(8 * D * D, abs=400)
    after = OnnxDenoiserVJP(pair / "vjp.onnx")(x, 0.3, v)
    assert all(np.array_equal(a, b) for a, b in zip(after, before))
    assert (pair / "denoiser.onnx").read_bytes() == lender
    onnx.checker.check_model(str(pair / "vjp.onnx"))  # and the standard's own reader finds the weights


def test_a_transposed_copy_of_a_weight_is_borrowed_too(tmp_path):
    W = np.random.default_rng(2).standard_normal((D, D))
    for name, transposed in (("lender", False), ("borrower", True)):
        graph = Graph(D)
        product = graph.matmul_T(graph.x, graph.table(W.T)) if transposed else graph.matmul(graph.x, graph.table(W))
        graph.save(tmp_path / f"{name}.onnx", [product], (D,), {})
    x = np.random.default_rng(3).standard_normal((4, D)).astype("float32")
    before = OnnxDenoiser(tmp_path / "borrower.onnx")(x, 1.0)
    assert borrow_weights(tmp_path / "borrower.onnx", tmp_path / "lender.onnx") > 7 * D * D
    assert np.array_equal(OnnxDenoiser(tmp_path / "borrower.onnx")(x, 1.0), before)


def test_a_file_that_shares_nothing_is_left_alone(pair):
    GaussianPrior(np.zeros(D), 1.0).to_onnx(pair / "white.onnx")
    old = (pair / "white.onnx").read_bytes()
    assert borrow_weights(pair / "white.onnx", pair / "denoiser.onnx") == 0
    assert (pair / "white.onnx").read_bytes() == old


def test_another_version_of_the_lender_no_lender_and_a_lender_elsewhere_are_refused_in_one_line(pair, tmp_path):
    (pair / "else").mkdir()
    with pytest.raises(ValueError, match="source: got .* expected another file beside"):
        borrow_weights(pair / "vjp.onnx", shutil.copy(pair / "denoiser.onnx", pair / "else"))
    borrow_weights(pair / "vjp.onnx", pair / "denoiser.onnx")
    GaussianPrior.from_covariance(np.zeros(D), np.diag(np.arange(1.0, D + 1)) + 0.1).to_onnx(pair / "denoiser.onnx")
    with pytest.raises(ValueError, match="weights are in denoiser.onnx beside it, got another version") as error:
        OnnxDenoiserVJP(pair / "vjp.onnx")
    assert "\n" not in str(error.value)
    (pair / "denoiser.onnx").unlink()
    with pytest.raises(ValueError, match="weights of another file, which must lie in the same folder") as error:
        OnnxDenoiserVJP(pair / "vjp.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n, e in manifest.read_manifest().items() if "vjp" in e])
def test_a_shipped_vjp_denoises_like_the_denoiser_whose_weights_it_reads(name):
    denoise, pull = OnnxDenoiser(name, threads=1), OnnxDenoiserVJP(name, threads=1)
    assert pull.metadata["weights_of"] == {"file": denoise.path.name, "sha256": manifest.sha256(denoise.path)}
    x, v = np.random.default_rng(4).standard_normal((2, 3, *denoise.event_shape)).astype("float32")
    D_x, J_v = pull(x, 0.4, v)
    np.testing.assert_allclose(D_x, denoise(x, 0.4), atol=2e-6)
    event = tuple(range(1, x.ndim))
    h = 1e-2  # v . J_D^T v = v . (D(x + h v) - D(x - h v))/(2 h), to second order in h
    slope = np.sum(v * (denoise(x + h * v, 0.4).astype("float64") - denoise(x - h * v, 0.4)), axis=event) / (2 * h)
    np.testing.assert_allclose(np.sum(v * J_v.astype("float64"), axis=event), slope, rtol=5e-3)


def test_halved_weights_round_at_half_precision_and_can_still_be_borrowed(tmp_path):
    """D = V s V'x is off by at most 2 x 2^-11 of |V||s||V'||x|, entry by entry; small tables are not touched."""
    rng = np.random.default_rng(4)
    d = 100
    root = rng.standard_normal((d, d))
    prior = GaussianPrior.from_covariance(np.zeros(d), root @ root.T / d)
    paths = [tmp_path / "denoiser.onnx", tmp_path / "vjp.onnx"]
    for path, vjp in zip(paths, (False, True)):
        prior.to_onnx(path, vjp=vjp, storage="float32")
    x = rng.standard_normal((3, d)).astype("float32")
    before = OnnxDenoiser(paths[0])(x, 0.5)
    assert [halve_weights(path) for path in paths] == pytest.approx([2 * d * d] * 2, abs=400)
    after = OnnxDenoiser(paths[0])(x, 0.5)
    V = np.abs(np.linalg.eigh(root @ root.T)[1])
    assert 0 < np.max(np.abs(after - before) / (np.abs(x) @ V @ V.T)) < 2 * 2.0**-11
    assert borrow_weights(paths[1], paths[0]) == pytest.approx(2 * d * d, abs=400)
    np.testing.assert_allclose(OnnxDenoiserVJP(paths[1])(x, 0.5, x)[0], after, rtol=1e-6)
