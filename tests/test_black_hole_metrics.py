"""Figures of merit of radio images: aligned and blurred PSNR, the official variants, ring fit; and the figure."""

from __future__ import annotations

import numpy as np
import pytest

from problems import vlbi
from problems.black_hole import FLUX_SIGMA, OFFICIAL_WEIGHTS, black_hole, m87
from problems.radio_metrics import (
    aligned_psnr,
    best_shifts,
    blurred_psnr,
    folded_chi2,
    official_aligned_psnr,
    psnr,
    ring_fit,
    shifted,
)
from problems.visibility_files import read_m87


def crescent(radius=20.0, width=5.0, asymmetry=0.6, position_angle=195.0, centre=(0.0, 0.0)):
    """A ring brighter on one side, peak 1: lengths in micro-arcseconds, angle in degrees East of North."""
    axis = (31.5 - np.arange(64)) * 2.5
    east, north = np.meshgrid(axis - centre[0], axis - centre[1])
    side = 1 + asymmetry * np.cos(np.arctan2(east, north) - np.deg2rad(position_angle))
    image = np.exp(-(np.hypot(east, north) - radius) ** 2 / (2 * width**2)) * side
    return image / image.max()


def bordered(rng, margin):
    """Random images with a margin of zeros."""
    return np.pad(rng.uniform(0, 1, (64 - 2 * margin, 64 - 2 * margin)), margin)


# ---------------------------------------------------------------------------------------------------------------- PSNR


def test_psnr_is_minus_ten_log_of_the_clipped_mean_square_error():
    truth = np.full((64, 64), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    assert psnr(np.full((64, 64), 7.0), np.ones((64, 64))) == np.inf  # clipping


@pytest.mark.parametrize("rows, columns", [(0, 0), (5, -3), (16, 16), (-16, 9)])
def test_an_image_with_a_margin_is_recovered_exactly_from_any_whole_shift(rows, columns):
    truth = bordered(np.random.default_rng(0), 16)
    moved = shifted(truth, rows, columns)
    np.testing.assert_array_equal(best_shifts(moved[None], truth), [[-rows, -columns]])
    assert aligned_psnr(moved[None], truth)[0] == np.inf
    assert blurred_psnr(moved[None], truth, 15, 160.0)[0] == np.inf


def test_the_fast_search_finds_the_best_of_all_shifts_tried_one_by_one():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 1, (24, 24))
    images = np.stack([np.clip(shifted(truth, 3, -2) + 0.3 * rng.standard_normal((24, 24)), -0.5, 1.5),
                       rng.uniform(0, 1, (24, 24)), np.zeros((24, 24))])
    reach = 6
    slow = [max(psnr(shifted(np.clip(image, 0, 1), r, c), truth) for r in range(-reach, reach + 1)
                for c in range(-reach, reach + 1)) for image in images]
    np.testing.assert_allclose(aligned_psnr(images, truth, reach), slow, rtol=1e-12)


def test_alignment_never_hurts():
    rng = np.random.default_rng(2)
    truth, images = crescent(), np.stack([crescent(18 + k, position_angle=30 * k) for k in range(6)])
    images = images + 0.05 * rng.standard_normal(images.shape)
    assert np.all(aligned_psnr(images, truth) >= psnr(images, truth) - 1e-12)


@pytest.mark.parametrize("fwhm, sigma", [(10, 1.6986), (15, 2.5480), (20, 3.3973)])
def test_the_blur_has_the_stated_width(fwhm, sigma):
    """A point against nothing: the blurred error is that of a Gaussian of known width, 1/(4 pi sigma^2)."""
    truth = np.zeros((64, 64))
    image = truth.copy()
    image[32, 32] = 1.0
    expected = -10 * np.log10(1 / (4 * np.pi * sigma**2) / 64**2)
    # reach 0: the shift that would hide the point is not tried
    assert blurred_psnr(image[None], truth, fwhm, 160.0, reach=0)[0] == pytest.approx(expected, abs=0.02)


def test_the_official_grid_has_no_zero_shift_and_caps_a_perfect_image():
    kerr_disc = pytest.importorskip("problems.kerr_disc")
    images = kerr_disc.generate(24, 5, spins=(0.5,), inclinations=(20.0, 50.0))
    capped = [official_aligned_psnr(image[None], image)[0] for image in images]
    assert np.median(capped) == pytest.approx(35.1, abs=1.0)  # 200 images of the whole set: 34.9
    assert np.all(np.isinf([aligned_psnr(image[None], image)[0] for image in images]))


def test_official_shifts_interpolate_linearly():
    """A box of 0.5, shifted by the smallest step in both axes: every edge leaks that fraction of it."""
    step = 63 / 29 / 4  # half of the spacing of 30 points over +-63/4 pixels
    assert step == pytest.approx(0.543, abs=5e-4)
    box = np.zeros((64, 64))
    box[20:44, 20:44] = 0.5
    line = np.repeat([0.0, 1.0, 0.0], [1, 24, 1])
    moved = np.convolve(line, [1 - step, step])[:26]
    error = 0.5 * (np.outer(moved, moved) - np.outer(line, line))
    expected = -10 * np.log10(np.sum(error**2) / 64**2)
    assert official_aligned_psnr(box[None], box)[0] == pytest.approx(expected, abs=1e-9)


def test_folding_makes_over_and_underfit_look_alike():
    np.testing.assert_allclose(folded_chi2([0.5, 1.0, 2.0]), [2.0, 1.0, 2.0])


# ---------------------------------------------------------------------------------------------------------------- ring


@pytest.mark.parametrize("radius, width, angle, centre", [
    (20, 5, 195, (0, 0)), (21, 3, 165, (6, -4)), (17, 7, 20, (-9, 5)), (25, 4, 290, (3, 11))])
def test_ring_fit_finds_diameter_bright_side_and_centre(radius, width, angle, centre):
    ring = ring_fit(crescent(radius, width, 0.6, angle, centre), 160.0)
    assert ring.diameter == pytest.approx(2 * radius, abs=1.0)
    assert (ring.position_angle - angle + 180) % 360 - 180 == pytest.approx(0, abs=6)
    np.testing.assert_allclose((ring.east, ring.north), centre, atol=1.0)


def test_ring_fit_does_not_care_about_flux_and_follows_a_shift():
    image = crescent(20, 5, 0.6, 170)
    reference, scaled, moved = (ring_fit(i, 160.0) for i in (image, 3 * image, np.roll(image, (2, -3), (0, 1))))
    assert scaled == pytest.approx(reference, rel=1e-9)
    np.testing.assert_allclose((moved.east - reference.east, moved.north - reference.north), (7.5, -5.0), atol=0.13)
    assert moved.diameter == pytest.approx(reference.diameter, abs=0.05)


def test_an_image_without_a_ring_has_no_diameter():
    axis = (31.5 - np.arange(64)) * 2.5
    blob = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 4**2))
    assert np.isnan(ring_fit(blob, 160.0).diameter)
    assert np.isnan(ring_fit(np.zeros((64, 64)), 160.0).diameter)


def test_a_filled_disc_with_a_faint_rim_is_not_a_ring_of_twenty():
    """Brightest at the centre: every centre puts the peak radii on the lower bound, which the fit must reject."""
    axis = (31.5 - np.arange(64)) * 2.5
    r = np.hypot(*np.meshgrid(axis, axis))
    disc = np.exp(-(r**2) / (2 * 9**2)) + 0.05 * np.exp(-(r - 25) ** 2 / 8)
    assert np.isnan(ring_fit(disc, 160.0).diameter)


# ----------------------------------------------------------------------------------------------------- problem records


def test_scores_of_the_truth_are_those_of_a_perfect_image():
    problem = black_hole(truth=crescent(), seed=2, sefd="nominal")
    scores = problem.score(np.stack([problem.truth] * 3))
    assert scores["psnr_aligned"] > 300 and scores["psnr_blurred_15uas"] > 300  # the mean of equal images rounds
    # sigmas come from noisy amplitudes: no tight test
    assert 0.7 < scores["chi2_cp"] < 1.4 and 0.7 < scores["chi2_lca"] < 1.4
    assert scores["chi2_cp_median_particle"] == pytest.approx(scores["chi2_cp"], rel=1e-9)
    assert scores["ring_diameter_uas"] == pytest.approx(40, abs=1)
    assert scores["total_flux_over_peak"] == pytest.approx(problem.truth.sum())


def test_chi2_does_not_change_when_the_image_is_rescaled_to_the_observed_flux():
    problem = m87("101")
    one, other = (problem.score(scale * crescent()[None]) for scale in (1.0, 0.37))
    for name in ("chi2_cp", "chi2_lca"):
        assert one[name] == pytest.approx(other[name], rel=1e-9)
    assert other["total_flux_over_peak"] == pytest.approx(0.37 * one["total_flux_over_peak"])


def test_the_shared_likelihood_gives_the_official_half_gradient_up_to_its_factor():
    """(BH15) is 2 o/sigma^2 times sin or d, and 0.25 d for the flux: ours, with the official weights, times two."""
    likelihood = pytest.importorskip("enkg_ref.likelihood")
    problem = black_hole(truth=crescent(), seed=2)
    data = problem.observation
    weights = np.ones(len(data.y))
    for block, weight in OFFICIAL_WEIGHTS.items():
        weights[data.blocks[block]] = weight
    ours = likelihood.Closures(data.y, data.noise, data.angular, weights, "cos")
    g = problem.forward(2 * crescent(18, 4, 0.3, 100)[None] - 1)
    d = g[0] - data.y
    cp, lca, flux = (data.blocks[k] for k in ("cp", "lca", "flux"))
    official = np.concatenate([2 * np.sin(d[cp]) / data.noise[cp] ** 2, 2 * d[lca] / data.noise[lca] ** 2,
                               0.25 * d[flux]])
    np.testing.assert_allclose(2 * ours.residual(g)[0], official, rtol=1e-10, atol=1e-12)
    assert FLUX_SIGMA == 2.0
    chi2 = [statistic(g[0, part], data.y[part], data.noise[part])
            for part, statistic in ((cp, vlbi.chi2_phase), (lca, vlbi.chi2_log_amplitude))]
    half_loss = cp.stop * chi2[0] + (lca.stop - lca.start) * chi2[1] + 0.5 * (d[flux][0] / 2) ** 2  # (BH14) over two
    assert ours.misfit(g)[0] == pytest.approx(half_loss, rel=1e-10)


def test_beam_is_the_curvature_of_the_dirty_beam():
    from problems.black_hole_figure import beam

    data = read_m87("101")
    major, minor, angle = beam(data.u, data.v)
    h = vlbi.MICROARCSECOND
    for fwhm, theta in ((major, angle), (minor, angle + 90)):
        east, north = np.sin(np.deg2rad(theta)), np.cos(np.deg2rad(theta))
        fall = 1 - np.mean(np.cos(2 * np.pi * h * (data.u * east + data.v * north)))  # at one micro-arcsecond
        assert 2 * np.sqrt(np.log(2) / fall) == pytest.approx(fwhm, rel=5e-3)
    assert major > minor


@pytest.mark.parametrize("ensembles", [1, 3])
def test_the_figure_shows_every_ensemble_and_says_that_the_spread_is_no_error_bar(ensembles):
    pytest.importorskip("matplotlib")
    problem = m87("101") if ensembles > 1 else black_hole(truth=crescent())
    ensemble = np.stack([crescent(19 + k, 5, 0.5, 170 + 5 * j) for k in range(ensembles) for j in range(4)])
    history = [{"ensemble": k, "sigma": 0.5**i, "misfit": 2.0 + 0.5**i, "spread": 0.5**i}
               for k in range(ensembles) for i in range(5)]
    result = {"ensemble": ensemble, "ensemble_index": np.repeat(np.arange(ensembles), 4), "history": history,
              "predictions": problem.forward(2 * ensemble - 1), "truth": problem.truth,
              "caption": ["The spread is not an error bar."]}
    page = problem.figure(result)
    axes = page.get_axes()
    words = " ".join([page.get_suptitle(), *(t.get_text() for t in page.texts), *(a.get_title() for a in axes)])
    assert "spread is not an error bar" in words and "East is left" in words
    # the first panel: the flux of the image is the stated one, North up, East left
    first = axes[0].images[0]
    assert first.get_array().sum() == pytest.approx(600.0)  # mJy
    left, right, bottom, top = first.get_extent()
    assert left == 80 > right and top == 80 > bottom and first.origin == "upper"
    assert ("truth" in words) == (ensembles == 1)
    if ensembles > 1:
        assert all(f"ensemble {k}: " in words for k in range(3)) and "scatter between ensembles" in words
    part = problem.observation.blocks["cp"]
    phases = next(a for a in axes if a.get_title().startswith("closure phase"))
    np.testing.assert_allclose(phases.lines[0].get_ydata(), np.rad2deg(problem.observation.y[part]), atol=1e-9)
