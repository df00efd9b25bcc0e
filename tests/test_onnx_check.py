"""``check`` finds a good prior good, and says of a bad one in words what it does instead."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_priors.check import check  # noqa: E402
from onnx_priors.fit import fit  # noqa: E402
from onnx_priors.gaussian import GaussianPrior  # noqa: E402
from onnx_priors.graph import Graph  # noqa: E402
from onnx_priors.images import read_images  # noqa: E402

SHAPE = (6, 8)
FACTS = {"sigma_min": 0.002, "sigma_max": 80.0}


def smooth(n, seed, offset=0.0):
    """Smooth fields of standard deviation 0.5 around ``offset``, with a spectrum that falls."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((48, 48)))[0]
    variances = np.geomspace(1.0, 1e-3, 48)
    prior = GaussianPrior(np.full(SHAPE, offset), variances / variances.mean() / 4, basis.reshape(48, *SHAPE))
    return prior, prior.sample(np.random.default_rng(seed), n)


PRIOR, HELD_OUT = smooth(400, 1)


def write(path, output, prior=PRIOR, metadata=None):
    """A file whose output is ``output(graph, x, D, sigma)``, D the exact denoiser."""
    graph = Graph(48)
    sigma, mean = graph._op("Sqrt", graph.sigma2), graph.table(prior.mean.reshape(-1))
    denoised = graph.add(mean, prior.onnx_shrinkage(graph)(graph.sub(graph.x, mean)))
    graph.save(path, [output(graph, graph.x, denoised, sigma)], SHAPE, {**FACTS, **(metadata or {})})
    return path


def noise(graph, x, D, sigma):
    return graph.div(graph.sub(x, D), sigma)


def test_the_exact_denoiser_has_no_problem_and_the_error_of_the_gaussian(tmp_path):
    PRIOR.to_onnx(tmp_path / "p.onnx", FACTS)
    PRIOR.to_onnx(tmp_path / "p_vjp.onnx", FACTS, vjp=True)
    report = check(tmp_path / "p.onnx", HELD_OUT)
    assert report.ok and report.text.endswith("no problem found")
    assert "p_vjp.onnx is its Jacobian" in report.text and "images per second" in report.text
    ratios = [float(cell) for cell in report.table.splitlines()[-1].split("|")[2:-1]]
    assert max(ratios) < 1.0 and min(ratios) > 0.5  # the Gaussian beside it knows 200 images only
    assert check(tmp_path / "p.onnx").ok  # and without images


def test_a_fitted_prior_passes_with_fresh_images_in_physical_units(tmp_path):
    raw = 300 + 40 * smooth(600, 2)[1]
    np.save(tmp_path / "fresh.npy", 300 + 40 * HELD_OUT)
    fit(read_images(raw), tmp_path / "p.onnx")
    assert check(tmp_path / "p.onnx", tmp_path / "fresh.npy").ok
    in_wrong_units = check(tmp_path / "p.onnx", HELD_OUT)
    assert not in_wrong_units.ok


@pytest.mark.parametrize("output, words", [
    (noise, "its output would make sense as the noise n (then D = x - sigma n; import it as epsilon)"),
    (lambda g, x, D, s: g.sub(x, D), "as the noise sigma n (then D = x - output)"),
    (lambda g, x, D, s: g.div(g.sub(D, x), g.sigma2), "as the score"),
    (lambda g, x, D, s: g.div(g.sub(g.div(x, g.add(g.table(1.0), g.sigma2)), D),
                              g.div(s, g._op("Sqrt", g.add(g.table(1.0), g.sigma2)))), "as v (then"),
    (lambda g, x, D, s: g.div(g.sub(x, g.mul(D, g.add(g.table(1.0), s))), s), "as the velocity n - x0"),
])
def test_a_file_that_returns_another_quantity_is_told_which(output, words, tmp_path):
    report = check(write(tmp_path / "p.onnx", output), HELD_OUT)
    assert not report.ok and words in report.text


def test_a_network_for_images_in_another_range_is_found_out(tmp_path):
    # trained on [-1, 1], said to be for [0, 1]: D of (x + 1)/2 fields
    prior = smooth(1, 0)[0]
    report = check(write(tmp_path / "p.onnx", lambda g, x, D, s: D, prior), (HELD_OUT + 1) / 2)
    assert not report.ok and "D for images in [-1, 1] where [0, 1] was said" in report.text


@pytest.mark.parametrize("output, metadata, words", [
    (lambda g, x, D, s: g.add(D, g._op("ReduceMean", x, g._integers([0]), keepdims=1)), {}, "network mixes the batch"),
    (lambda g, x, D, s: D, {"sigma_max": 1.0}, "sigma_max is only 2"),
    (lambda g, x, D, s: D, {"sigma_min": 0.2}, "sigma_min is 0.4"),
    (lambda g, x, D, s: g.mul(D, g.table(1.1)), {}, "an image comes back changed by"),
    (lambda g, x, D, s: g.mul(g.table(0.5), x), {}, "the noise level is not understood"),
    (lambda g, x, D, s: g.div(D, g.table(0.0)), {}, "the output is not finite"),
])
def test_what_is_wrong_is_said_without_images_too(output, metadata, words, tmp_path, recwarn):
    report = check(write(tmp_path / "p.onnx", output, metadata=metadata))
    assert not report.ok and words in report.text and "PROBLEM" in report.text


def test_images_of_another_kind_are_noticed(tmp_path):
    basis = np.linalg.qr(np.random.default_rng(9).standard_normal((48, 48)))[0]
    other = GaussianPrior(np.zeros(SHAPE), np.geomspace(1.0, 0.1, 48) * 0.7, basis.reshape(48, *SHAPE))
    PRIOR.to_onnx(tmp_path / "p.onnx", FACTS)
    report = check(tmp_path / "p.onnx", other.sample(np.random.default_rng(3), 400))
    assert not report.ok and ("trained on other images" in report.text or "larger than that of" in report.text)


def test_a_jacobian_of_another_prior_is_noticed(tmp_path):
    PRIOR.to_onnx(tmp_path / "p.onnx", FACTS)
    GaussianPrior(np.zeros(SHAPE), 0.01).to_onnx(tmp_path / "p_vjp.onnx", FACTS, vjp=True)
    assert "p_vjp.onnx is not the Jacobian of p.onnx" in check(tmp_path / "p.onnx").text


def test_a_model_that_is_no_prior_is_a_report_and_a_missing_one_or_too_few_images_an_error(tmp_path):
    PRIOR.to_onnx(tmp_path / "p.onnx", FACTS)
    model = onnx.load(tmp_path / "p.onnx")
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "bare.onnx")
    report = check(tmp_path / "bare.onnx")
    assert not report.ok and "format_version None" in report.text and "attach_metadata" in report.text
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="images: got 3, expected at least 32"):
        check(tmp_path / "p.onnx", HELD_OUT[:3])
    with pytest.raises(ValueError, match=r"images: got events of shape \(8,\) in the array, expected \(6, 8\)"):
        check(tmp_path / "p.onnx", HELD_OUT[:, 0])
