"""Priors from images: the moments they were drawn with, the number of modes and components, files, refusals."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_priors import fit as fitting  # noqa: E402
from onnx_priors.errors import denoising_errors  # noqa: E402
from onnx_priors.fit import fit  # noqa: E402
from onnx_priors.gaussian import GaussianPrior, Principal  # noqa: E402
from onnx_priors.images import physical_images, read_images  # noqa: E402
from onnx_priors.mixture import MixturePrior, PrincipalMixture  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP  # noqa: E402

SHAPES = [(24,), (4, 6), (2, 3, 4)]


def smooth_prior(shape, seed=0):
    """A Gaussian with a spectrum that falls over three decades, mean 7, physical units."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return GaussianPrior(7 + rng.standard_normal(shape), 9 * np.geomspace(1, 1e-3, d), basis.reshape(d, *shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gaussian_fitted_to_images_of_a_gaussian_denoises_nearly_as_well_as_the_exact_one(shape, tmp_path):
    exact = smooth_prior(shape)
    images = read_images(exact.sample(np.random.default_rng(1), 4000))
    fit(images, tmp_path / "p.onnx")
    denoise = OnnxDenoiser(tmp_path / "p.onnx", threads=1)
    assert denoise.event_shape == shape
    fresh = physical_images(exact.sample(np.random.default_rng(2), 2000), shape, images.scale, images.shift)

    def best(x, sigma):  # D of the scaled images is the scaled D
        y = images.scale * x.astype("float64") + images.shift
        return (exact.denoise(y, images.scale * sigma) - images.shift) / images.scale

    sigmas = [0.02, 0.1, 0.5, 2.0]
    for error, least in zip(denoising_errors(denoise, fresh, sigmas), denoising_errors(best, fresh, sigmas)):
        # 24 variances, each known to sqrt(2/4000), cost about (2/4000) of the error; the mean costs 1/4000
        assert 0.999 < error / least < 1.01


def test_the_metadata_turn_prior_units_back_into_physical_ones(tmp_path):
    prior = smooth_prior((24,))
    raw = prior.sample(np.random.default_rng(1), 500)
    fitted = fit(read_images(raw, units="kelvin"), tmp_path / "p.onnx")
    facts = OnnxDenoiser(tmp_path / "p.onnx").metadata
    x = fitted.images.x
    back = np.sort(facts["scale"] * x.astype("float64") + facts["shift"], axis=0)
    np.testing.assert_allclose(back, np.sort(raw, axis=0), atol=1e-5)  # they were shuffled
    assert facts["units"] == "kelvin" and facts["sigma_data"] == pytest.approx(0.5)
    assert np.sqrt(np.mean(np.var(x, axis=0))) == pytest.approx(0.5, rel=1e-5)


def test_given_units_scale_the_noise_levels_with_the_images(tmp_path):
    raw = smooth_prior((24,)).sample(np.random.default_rng(1), 500)
    std = np.sqrt(np.mean(np.var(raw, axis=0)))
    fit(read_images(raw, scale=10.0, shift=0.0), tmp_path / "p.onnx")
    facts = OnnxDenoiser(tmp_path / "p.onnx").metadata
    assert (facts["scale"], facts["shift"]) == (10.0, 0.0)
    assert facts["sigma_max"] == pytest.approx(160 * std / 10, rel=1e-5)
    assert facts["sigma_min"] == pytest.approx(std / 2500, rel=1e-5)


def test_the_number_of_modes_is_that_of_the_structure_and_not_of_the_accidents_of_few_images():
    rng = np.random.default_rng(3)
    modes = np.linalg.qr(rng.standard_normal((400, 5)))[0]
    structured = rng.standard_normal((60, 5)) * 10 @ modes.T + 0.1 * rng.standard_normal((60, 400))
    assert fitting.best_number_of_modes(read_images(structured)) == 5


def test_the_closed_form_of_the_error_that_chooses_the_modes_is_the_measured_error():
    # One image per direction of the choice: (O1) with the literal sums against an average over 4,000 noises.
    rng, sigma = np.random.default_rng(4), 0.3
    whole = fitting.principal(smooth_prior((24,)).sample(rng, 300) / 6, 6)
    prior, x0 = GaussianPrior.from_principal(whole), smooth_prior((24,)).sample(rng, 1) / 6
    a2 = ((x0 - whole.mean) @ whole.modes) ** 2
    g, g0, s2 = whole.variances / (whole.variances + sigma**2), whole.rest / (whole.rest + sigma**2), sigma**2
    left = np.sum((x0 - whole.mean) ** 2) - a2.sum()
    expected = np.sum((1 - g) ** 2 * a2 + s2 * g**2) + (1 - g0) ** 2 * left + 18 * s2 * g0**2
    squares = np.sum((prior.denoise(x0 + sigma * rng.standard_normal((4000, 24)), sigma) - x0) ** 2, axis=1)
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(4000)


@pytest.mark.parametrize("n, d", [(50, 80), (80, 50)])
def test_principal_components_are_those_of_the_covariance_whichever_matrix_is_smaller(n, d):
    x = smooth_prior((d,)).sample(np.random.default_rng(5), n).astype("float32")
    mean, V, variances, rest = fitting.principal(x, 10)
    C = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(C)
    np.testing.assert_allclose(variances, values[::-1][:10], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(V * vectors[:, ::-1][:, :10], axis=0)), 1.0, atol=1e-4)
    assert rest == pytest.approx(values[:-10].sum() / (d - 10), rel=1e-3)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-5)


def two_kinds(n, rng):
    """Fields (n, 3, 8) of two kinds, far apart along one direction of a smooth background."""
    kind = rng.integers(2, size=n) * 2 - 1
    return smooth_prior((3, 8)).sample(rng, n) + 12 * kind[:, None, None] * np.sin(np.arange(24)).reshape(3, 8)


def test_a_mixture_of_two_kinds_is_found_and_denoises_better_than_the_gaussian(tmp_path):
    images = read_images(two_kinds(3000, np.random.default_rng(6)))
    fitted = fit(images, tmp_path / "m.onnx", "mixture")
    assert fitted.components == 2
    denoise, fresh = OnnxDenoiser(tmp_path / "m.onnx", threads=1), read_images(two_kinds(500, np.random.default_rng(7)),
                                                                            images.scale, images.shift).x
    gaussian = GaussianPrior.from_principal(fitted.principal)
    for sigma, ratio in ((0.5, 0.97), (1.0, 0.85)):
        mixed, single = (denoising_errors(d, fresh, [sigma])[0] for d in (denoise, gaussian.denoise))
        assert mixed < ratio * single
    x, v = fresh[:5] + np.float32(0.4), fresh[5:10]
    pulled = OnnxDenoiserVJP(fitted.vjp, threads=1)(x, 0.4, v)
    for out, want in zip(pulled, fitted.prior.denoise_vjp(x.astype("float64"), 0.4, v.astype("float64"))):
        np.testing.assert_allclose(out, want, atol=3e-6 * np.abs(want).max())


def test_expectation_maximisation_recovers_weights_means_and_covariances():
    rng = np.random.default_rng(8)
    truth = MixturePrior.from_covariances([0.3, 0.7], np.array([[2.0, 0.0], [-2.0, 1.0]]),
                                          [np.array([[0.5, 0.3], [0.3, 0.4]]), np.diag([0.1, 1.0])])
    weights, means, covariances = fitting.expectation_maximisation(truth.sample(rng, 20_000), 2, rng)
    order = np.argsort(weights)  # five standard errors of about 20,000 x 0.3 rows
    np.testing.assert_allclose(weights[order], [0.3, 0.7], atol=5 * 0.0033)
    np.testing.assert_allclose(means[order], [[2.0, 0.0], [-2.0, 1.0]], atol=5 * 0.01)
    np.testing.assert_allclose(covariances[order], [[[0.5, 0.3], [0.3, 0.4]], np.diag([0.1, 1.0])], atol=5 * 0.013)


def test_a_mixture_of_principal_coordinates_is_the_mixture_of_whole_events():
    rng = np.random.default_rng(9)
    d, r, R, rest = 12, 3, 5, 0.04
    V = np.linalg.qr(rng.standard_normal((d, d)))[0][:, :R]
    mean, variances = rng.standard_normal((3, 4)), np.array([9.0, 9.0, 9.0, 0.5, 0.2])  # the first r are not used
    means, roots = rng.standard_normal((4, r)), rng.standard_normal((4, r, r))
    covariances, weights = roots @ np.swapaxes(roots, 1, 2), rng.uniform(1, 2, 4)
    inside = MixturePrior.from_covariances(weights, means, covariances)
    part = PrincipalMixture(Principal(mean, V, variances, rest), inside)
    others = V[:, r:] * variances[r:] @ V[:, r:].T + rest * (np.eye(d) - V @ V.T)
    whole = MixturePrior.from_covariances(weights, mean + (means @ V[:, :r].T).reshape(4, 3, 4),
                                          [V[:, :r] @ C @ V[:, :r].T + others for C in covariances])
    x, v = rng.standard_normal((2, 6, 3, 4))
    for sigma in (0.01, 0.3, 4.0):
        for one, other in zip(part.denoise_vjp(x, sigma, v), whole.denoise_vjp(x, sigma, v)):
            np.testing.assert_allclose(one, other, atol=1e-12)
    draws = part.sample(rng, 40_000).reshape(-1, d)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(whole.sample(rng, 40_000).reshape(-1, d).T), atol=0.2)


@pytest.mark.parametrize("change, message", [
    ({"images": np.zeros((10, 8))}, r"images: got shape \(10, 8\) in the array, expected \(N, \*event\), N at"),
    ({"images": np.ones((40, 8))}, "images: got 40 images that are all alike"),
    ({"images": np.full((40, 8), np.nan)}, "images: got 320 values that are not finite"),
    ({"images": np.zeros((40, 2, 2, 2, 2))}, "images: got shape"),
    ({"images": np.zeros((40, 8), dtype=complex)}, "images: got dtype complex128"),
    ({"images": "nowhere.npy"}, "images: got nowhere.npy, which cannot be read"),
    ({"scale": 0.0}, "scale, shift: got 0.0"),
    ({"kind": "kriging"}, "kind: got 'kriging', expected one of gaussian, mixture"),
    ({"components": 0, "kind": "mixture"}, "components: got 0, expected at least 1"),
    ({"out": "prior.npz"}, "out: got prior.npz, expected a file name that ends in .onnx"),
])
def test_what_cannot_be_fitted_is_refused_in_one_line(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"images": smooth_prior((8,)).sample(np.random.default_rng(0), 40), "scale": None, "out": "p.onnx",
             "kind": "gaussian", "components": None} | change
    with pytest.raises(ValueError, match=message) as error:
        fit(read_images(given["images"], given["scale"]), given["out"], given["kind"], given["components"])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_prior_is_fitted_where_torch_is_not_installed(tmp_path):
    program = ("import sys, types; import numpy as np\n"
               "def find_spec(name, *rest):\n    assert name != 'torch'\n"
               "sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))\n"
               "from onnx_priors.fit import fit; from onnx_priors.images import read_images\n"
               "fit(read_images(np.random.default_rng(0).standard_normal((200, 6))), sys.argv[1], 'mixture')")
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "p.onnx")], check=True)
    assert OnnxDenoiser(tmp_path / "p.onnx").event_shape == (6,)
