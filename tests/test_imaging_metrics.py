"""PSNR, SSIM and the orientations of phase retrieval (problems/image_metrics.py)."""

import numpy as np
import pytest

from problems import image_metrics
from problems.image_metrics import best_orientation, oriented, psnr, scores, ssim, unit


def pictures(count, *event, seed=0):
    """Pictures in prior units that do not leave [-1, 1] by much."""
    return 0.4 * np.random.default_rng(seed).standard_normal((count, *event))


def test_that_the_ssim_of_constant_pictures_is_its_closed_form():
    pytest.importorskip("skimage")
    for a, b in ((0.25, 0.5), (0.1, 0.9), (0.3, 0.3)):
        expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
        assert ssim(np.full((1, 3, 16, 16), a), np.full((3, 16, 16), b))[0] == pytest.approx(expected, abs=1e-8)
    assert ssim(np.full((1, 16, 16), 0.25), np.full((16, 16), 0.5))[0] == pytest.approx(0.80006398, abs=1e-8)


def test_that_the_psnr_of_constants_is_its_closed_form_and_the_official_clipping_hides_the_dark_half():
    dark, black = np.full((1, 8, 8), 0.0), np.full((8, 8), -0.5)
    assert psnr(unit(dark), unit(black))[0] == pytest.approx(12.0411998265592, abs=1e-8)
    assert psnr(unit(dark, official=True), unit(black, official=True))[0] == 80.0


def test_that_ssim_is_the_mean_over_valid_windows_of_its_definition():
    pytest.importorskip("skimage")
    a, b = unit(pictures(1, 18, 20))[0], unit(pictures(1, 18, 20, seed=1))[0]
    j = np.arange(-5, 6)
    g = np.exp(-0.5 * (j / 1.5) ** 2)
    window = np.outer(g, g) / g.sum() ** 2

    def mean(f):
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(f, (11, 11)), window)

    va, vb, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean(a) * mean(b) + c1) * (2 * cov + c2) / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (va + vb + c2))
    assert ssim(a[None], b)[0] == pytest.approx(values.mean(), abs=1e-12)


def test_that_ssim_is_scikit_images_with_the_stated_flags():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = unit(pictures(2, 3, 24, 24)), unit(pictures(1, 3, 24, 24, seed=1))[0]
    expected = [metrics.structural_similarity(u, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                              data_range=1.0, channel_axis=0) for u in a]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-12)


@pytest.mark.parametrize("count", [1, 31, 33])
def test_that_every_particle_counts(count):
    x, truth = pictures(count, 3, 16, 16), pictures(1, 3, 16, 16, seed=1)[0]
    found = scores(x, truth)
    each = [scores(picture[None], truth) for picture in x]
    for name in ("psnr", "ssim"):
        if f"{name}_of_mean" in found:
            assert found[f"{name}_of_particles"] == pytest.approx(np.mean([s[f"{name}_of_mean"] for s in each]),
                                                                  rel=1e-13)
            assert found[f"{name}_of_mean"] == scores(x.mean(axis=0)[None], truth)[f"{name}_of_mean"]


def test_that_a_resolved_figure_is_that_of_the_best_orientation_and_stands_beside_the_plain_one():
    truth = pictures(1, 3, 16, 16)[0]
    for name in image_metrics.ORIENTATIONS:
        x = oriented(truth, name) + pictures(1, 3, 16, 16, seed=1)[0] / 20
        assert best_orientation(x, truth) == name
        found = scores(x[None], truth, resolve=True)
        again = scores(oriented(x, name)[None], truth)
        assert found["psnr_of_mean_ambiguity_resolved"] == again["psnr_of_mean"] >= 20.0
        assert (found["psnr_of_mean"] < 20.0) == (name != "as it is")


def test_that_lpips_is_what_the_users_function_says_of_pictures_in_unit_range():
    seen = []

    def distance(u, truth):
        seen.append((u.min(), u.max(), truth.min(), truth.max()))
        return 0.25

    found = scores(3 * pictures(4, 3, 16, 16), pictures(1, 3, 16, 16)[0], lpips=distance)
    assert found["lpips_of_mean"] == found["lpips_of_particles"] == 0.25 and len(seen) == 5
    assert np.min(seen) >= 0.0 and np.max(seen) <= 1.0
    assert not any("lpips" in name for name in scores(pictures(2, 3, 16, 16), pictures(1, 3, 16, 16)[0]))


def test_that_pictures_smaller_than_the_window_have_no_ssim():
    assert "ssim_of_mean" not in scores(pictures(2, 10, 12), pictures(1, 10, 12)[0])
    with pytest.raises(ValueError, match="u: got pictures of 10 x 12 pixels, expected 11 x 11"):
        ssim(unit(pictures(2, 10, 12)), unit(pictures(1, 10, 12)[0]))
