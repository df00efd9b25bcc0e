"""The shipped prior files do what their card says, on fresh images of the generator, through onnxruntime."""

import json

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx_priors import manifest, metadata, session  # noqa: E402
from problems import kerr_disc  # noqa: E402

NAMES = tuple(manifest.read_manifest())
HELD_OUT_SEED = 97  # neither the training set (1) nor the one of the card (2)


@pytest.fixture(scope="module")
def clean():
    """Forty-eight held-out images on four of the thirty tables, in prior units."""
    images = kerr_disc.generate(48, HELD_OUT_SEED, spins=(0.5, 0.94), inclinations=(20.0, 50.0))
    return 2 * images - 1


@pytest.fixture(scope="module")
def network():
    return session.load_prior("kerr-disc-64", threads=1)


@pytest.fixture(scope="module")
def gaussian():
    return session.load_prior("kerr-disc-64-gaussian", threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_has_its_checksum_its_size_limit_and_a_complete_card(name):
    entry = manifest.read_manifest()[name]
    for kind in set(entry) - {"metadata"}:
        path = manifest.resolve(name, kind)  # verifies the sha256
        assert path.stat().st_size <= 8e6
        assert b"stack_trace" not in path.read_bytes()  # they name the files of the machine that exported
    facts = session.load_prior(name, threads=1).metadata
    assert set(metadata.SHIPPED_KEYS) <= set(facts)
    assert json.loads(json.dumps(facts)) == entry["metadata"]
    assert facts["weight_licence"] == "MIT" and facts["sigma_min"] == 0.002 and facts["sigma_max"] == 80


def test_a_prior_with_its_jacobian_reference_and_correction_takes_at_most_ten_megabytes():
    for name, entry in manifest.read_manifest().items():
        files = [manifest.WEIGHTS / item["file"] for kind, item in entry.items() if kind != "metadata"]
        assert sum(path.stat().st_size for path in files) <= 10e6, name


def test_the_manifest_names_every_shipped_file_with_the_sha256_it_has():
    listed = {item["file"]: item["sha256"] for entry in manifest.read_manifest().values()
              for kind, item in entry.items() if kind != "metadata"}
    shipped = {path.name: manifest.sha256(path) for path in manifest.WEIGHTS.iterdir() if path != manifest.MANIFEST}
    assert listed == shipped


# Card: 0.56 0.54 0.57 0.62 0.74 on 1024 images of the whole grid; the bounds leave room for 48 images of a part of it.
@pytest.mark.parametrize("sigma, bound", [(0.1, 0.68), (0.2, 0.66), (0.5, 0.69), (1.0, 0.74), (2.0, 0.87)])
def test_the_network_denoises_held_out_images_far_better_than_the_gaussian_of_the_same_images(
    clean, network, gaussian, sigma, bound
):
    noisy = clean + sigma * np.random.default_rng(7).standard_normal(clean.shape)
    error, reference = (np.mean((denoise(noisy, sigma) - clean) ** 2) for denoise in (network, gaussian))
    assert error / reference < bound


def test_the_shipped_gaussian_is_linear_and_consistent_with_its_own_posterior_variance(clean, gaussian):
    rng = np.random.default_rng(1)
    x, d = clean[:4], rng.standard_normal((4, 64, 64))
    middle = gaussian(x, 0.5)
    np.testing.assert_allclose(gaussian(x + d, 0.5) + gaussian(x - d, 0.5), 2 * middle, atol=1e-5)
    for k in range(4):  # the eight symmetries of the square commute with the denoiser
        turned = gaussian(np.ascontiguousarray(np.rot90(x, k, (1, 2))), 0.5)
        np.testing.assert_allclose(turned, np.rot90(middle, k, (1, 2)), atol=1e-5)


def test_at_the_smallest_noise_level_the_denoiser_is_the_identity_up_to_the_noise(clean, network):
    noise = 0.002 * np.random.default_rng(2).standard_normal(clean.shape)
    deviation = network(clean + noise, 0.002) - clean
    assert np.sqrt(np.mean(deviation**2)) < 0.002  # keeps the image and removes part of the noise


def test_at_the_largest_noise_level_the_denoiser_is_the_mean_of_the_data(clean, network, gaussian):
    noise = np.random.default_rng(3).standard_normal(clean.shape)
    mean = gaussian(np.zeros((1, 64, 64)) - 0.9, 80.0)  # the Gaussian pulls to within l / sigma^2 < 1 % of its mean
    assert np.sqrt(np.mean((network(clean + 80 * noise, 80.0) - mean) ** 2)) < 0.03
    assert abs(float(np.mean(mean)) - float(np.mean(clean))) < 0.05


def test_rows_are_denoised_independently(clean, network):
    x = clean + 0.5 * np.random.default_rng(4).standard_normal(clean.shape)
    together = network(x[:7], 0.5)
    alone = np.concatenate([network(x[k : k + 1], 0.5) for k in range(7)])
    np.testing.assert_allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize("size, ratios", [
    (32, {0.2: 0.47, 0.5: 0.45, 0.7: 0.46}), (64, {0.2: 0.67, 0.5: 0.62, 0.7: 0.64})])
def test_the_vorticity_priors_beat_the_wiener_denoiser_by_the_card_on_fresh_fields(size, ratios):
    from problems import vorticity

    scale = vorticity.preset(size).scale
    fields = vorticity.fields(size, 48, "test", first=500).astype(np.float64) / scale
    noise = np.random.default_rng(0).standard_normal(fields.shape)
    denoisers = [session.load_prior(f"navier-stokes-{size}{end}", threads=1) for end in ("", "-gaussian")]
    for relative, expected in ratios.items():  # the card's ratio and .04 for 48 fields
        sigma = relative * fields.std()
        network, wiener = (np.mean((d(fields + sigma * noise, sigma) - fields) ** 2) for d in denoisers)
        assert network < expected * wiener
