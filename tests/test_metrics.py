"""Figures of merit against closed forms, identities and their behaviour on calibrated ensembles."""

import math
import time

import numpy as np
import pytest

from enkg_ref import Gaussian
from enkg_ref.run import metrics


def normals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def crps_pairwise(x, truth):
    J = len(x)
    return np.mean(np.abs(x - truth), 0) - np.abs(x[:, None] - x[None]).sum((0, 1)) / (2 * J * (J - 1))


def crps_of_a_normal(truth, a, s):
    z = (truth - a) / s
    pdf, cdf = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return s * (z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))


def test_the_error_of_the_mean_is_never_above_the_mean_error_and_differs_by_the_spread():
    x, truth = normals(0, 7, 3, 5), normals(1, 3, 5)
    size = np.linalg.norm(truth)
    assert metrics.relative_l2_of_mean(x, truth) <= metrics.relative_l2_of_particles(x, truth)
    mean_square = np.mean(np.sum((x - truth) ** 2, axis=(1, 2)))
    spread = np.sum(x.var(axis=0))
    assert mean_square == pytest.approx((metrics.relative_l2_of_mean(x, truth) * size) ** 2 + spread, rel=1e-12)


def test_the_zero_field_scores_one():
    truth = normals(2, 8, 8)
    assert metrics.relative_l2_of_particles(np.zeros((4, 8, 8)), truth) == pytest.approx(1.0, rel=1e-15)


def test_psnr_of_a_constant_offset_and_of_a_perfect_image():
    truth = normals(3, 16, 16)
    assert metrics.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-10)
    assert metrics.psnr(truth, truth) == math.inf


def test_ssim_equals_a_direct_evaluation_over_gaussian_windows():
    pytest.importorskip("skimage")
    a, b = np.random.default_rng(4).random((2, 32, 32))
    k = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(k, k) / k.sum() ** 2

    def blur(image):
        return np.array([[np.sum(window * image[i:i + 11, j:j + 11]) for j in range(22)] for i in range(22)])

    ma, mb = blur(a), blur(b)
    va, vb, c = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    direct = np.mean((2 * ma * mb + 1e-4) * (2 * c + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert metrics.ssim(a, b) == pytest.approx(direct, rel=1e-10)


def test_chi2_at_the_truth_is_one_within_four_standard_errors():
    y = normals(5, 20)
    g = y[None, :] + 0.3 * normals(6, 4000, 20)
    assert abs(metrics.chi2(Gaussian(y, 0.3), g).mean() - 1) < 4 * math.sqrt(2 / 20 / 4000)


@pytest.mark.parametrize("J", [2, 3, 10, 101])
def test_sorted_crps_equals_the_pairwise_form(J):
    x, truth = normals(7, J, 6), normals(8, 6)
    assert metrics.fair_crps(x, truth) == pytest.approx(crps_pairwise(x, truth).mean(), abs=1e-14)


@pytest.mark.parametrize("J", [2, 5, 20])
def test_fair_crps_of_exchangeable_normals_is_one_over_sqrt_pi_for_every_ensemble_size(J):
    n = 400_000
    draws = np.random.default_rng(9 + J).standard_normal((J + 1, n))
    x, truth = draws[:J], draws[J]
    rank = 2.0 * np.arange(1, J + 1) - J - 1
    per_pixel = np.abs(x - truth).mean(0) - rank @ np.sort(x, 0) / (J * (J - 1))
    error = metrics.fair_crps(x, truth) - 1 / math.sqrt(math.pi)
    assert abs(error) < 4 * per_pixel.std() / math.sqrt(n)
    standard = metrics.fair_crps(x, truth) + np.mean(rank @ np.sort(x, 0)) / (J * (J - 1)) / J
    assert standard == pytest.approx((1 + 1 / J) / math.sqrt(math.pi), abs=4 * per_pixel.std() / math.sqrt(n))


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_crps_of_a_stratified_ensemble_is_the_closed_form(s):
    norm = pytest.importorskip("scipy.stats").norm
    J, a, truth = 100_000, 0.3, 1.1
    x = a + s * norm.ppf((np.arange(1, J + 1) - 0.5) / J)
    assert metrics.fair_crps(x[:, None], np.array([truth])) == pytest.approx(crps_of_a_normal(truth, a, s), abs=1e-4)


@pytest.mark.parametrize("z", [0.0, 1.0])
def test_crps_of_a_random_ensemble_errs_by_its_standard_error(z):
    J = 100_000
    sd = abs(math.erf(z / math.sqrt(2))) / math.sqrt(J) + 1e-3 / 4
    x = normals(11, J, 1)
    assert abs(metrics.fair_crps(x, np.array([z])) - crps_of_a_normal(z, 0.0, 1.0)) < 4 * sd


def test_sorted_crps_is_at_least_fifty_times_faster_than_pairwise():
    x, truth = normals(12, 2048, 4), normals(13, 4)
    metrics.fair_crps(x, truth)

    def clock(f):
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            f(x, truth)
            best = min(best, time.perf_counter() - start)
        return best

    assert clock(crps_pairwise) > 50 * clock(metrics.fair_crps)


@pytest.mark.parametrize("J", [2, 5, 20, 100])
def test_the_ratio_of_spread_to_skill_is_one_for_exchangeable_draws(J):
    draws = normals(14 + J, J + 1, 200_000)
    ratio = metrics.spread_skill_ratio(metrics.spread_and_skill(draws[:J], draws[J]))
    assert ratio == pytest.approx(1.0, abs=0.01)
    assert ratio * math.sqrt(J / (J + 1)) == pytest.approx(math.sqrt(J / (J + 1)), abs=0.01)


def test_the_ratio_pools_items_before_the_root():
    assert metrics.spread_skill_ratio((1.0, 4.0), (8.0, 5.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("J, level", [(19, 0.9), (99, 0.5), (64, 0.9)])
def test_coverage_of_exchangeable_draws_is_the_nominal_one(J, level):
    draws = normals(15 + J, J + 1, 40_000)
    share, nominal = metrics.coverage(draws[:J], draws[J], level)
    k = round((1 - level) / 2 * (J + 1))
    assert nominal == (J + 1 - 2 * k) / (J + 1)
    assert abs(share - nominal) < 4 * math.sqrt(nominal * (1 - nominal) / 40_000)


def test_coverage_refuses_a_level_that_the_ensemble_cannot_resolve():
    with pytest.raises(ValueError, match="got 8 particles, expected more for a 90% interval"):
        metrics.coverage(normals(0, 8, 2), normals(1, 2), 0.9)


@pytest.mark.parametrize("digits", [None, 0])
def test_ranks_of_exchangeable_draws_are_uniform_ties_included(digits):
    stats = pytest.importorskip("scipy.stats")
    draws = normals(16, 10, 50_000)
    draws = draws if digits is None else draws.round(digits)
    counts = metrics.rank_histogram(draws[:9], draws[9], seed=3)
    assert counts.sum() == 50_000 and len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-3
    share, nominal = metrics.outlier_fraction(counts)
    assert nominal == 0.2 and abs(share - 0.2) < 4 * math.sqrt(0.16 / 50_000)


def test_an_oracle_metric_carries_its_number_of_particles():
    assert metrics.oracle_name("PSNR", 1024) == "best-of-J=1024 PSNR"
    assert metrics.best_of("error", [3.0, 1.0, 2.0], highest=False) == ("best-of-J=3 error", 1.0)
    for missing in (None, 0):
        with pytest.raises(ValueError, match="oracle metric PSNR"):
            metrics.oracle_name("PSNR", missing)


def test_the_best_of_normal_scores_exceeds_their_mean_as_published():
    for J, gain in [(16, 1.75), (64, 2.33), (1024, 3.25)]:
        scores = normals(17, 4000, J)
        best = np.array([metrics.best_of("score", row)[1] for row in scores])
        assert best.mean() == pytest.approx(gain, abs=0.04)


def test_a_truth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"truth: got shape \(3,\), expected that of a particle, \(4,\)"):
        metrics.fair_crps(np.zeros((5, 4)), np.zeros(3))
