"""Every figure of merit, defined once. Plain numpy on host arrays: ensembles (J, *event), truths (*event).

All fields in physical units. (M1)-(M9) are the labels under which the README's tables name them; "d" is the number of
pixels, xbar the ensemble mean. A metric that uses the truth to choose among particles is an oracle metric (M9).
"""

from __future__ import annotations

import math

import numpy as np


def relative_l2_of_particles(x, truth):
    """(M1) (1/J) sum_j ||x_j - x*|| / ||x*||: the metric of the official Navier-Stokes evaluation. Zero field: 1."""
    x, truth = _rows(x, truth)
    return float(np.mean(np.linalg.norm(x - truth, axis=1)) / np.linalg.norm(truth))


def relative_l2_of_mean(x, truth):
    """(M2) ||xbar - x*|| / ||x*||, never above (M1).  (1/J) sum_j ||x_j - x*||^2 = ||xbar - x*||^2 + tr C_xx."""
    x, truth = _rows(x, truth)
    return float(np.linalg.norm(x.mean(axis=0) - truth) / np.linalg.norm(truth))


def psnr(image, truth, data_range=1.0):
    """(M3) Peak signal-to-noise ratio in dB of one image; inf for a perfect one."""
    mse = float(np.mean((np.asarray(image, dtype=float) - np.asarray(truth, dtype=float)) ** 2))
    return math.inf if mse == 0 else 10.0 * math.log10(data_range**2 / mse)


def ssim(image, truth, data_range=1.0, channel_axis=None):
    """(M3) Structural similarity: Gaussian window of std 1.5, k1 = .01, k2 = .03, population covariances.

    Needs scikit-image. Its defaults give another number; these are those of the literature.
    """
    from skimage.metrics import structural_similarity

    return float(structural_similarity(np.asarray(image, dtype=float), np.asarray(truth, dtype=float),
                                       gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                       data_range=data_range, channel_axis=channel_axis))


def chi2(likelihood, g):
    """(M4) misfit(g)/m of every row; 1 in expectation at the truth, with standard deviation sqrt(2/m).

    likelihood : with ``misfit`` and ``size``;  g : (J, m) predicted observations, or (1, m) for that of the mean
    """
    return np.asarray(likelihood.misfit(np.asarray(g))) / likelihood.size


def fair_crps(x, truth):
    """(M5) Fair continuous ranked probability score, averaged over pixels; J >= 2. Unbiased by the ensemble's size.

    (1/J) sum_j |x_j - x*| - (1/(2J(J-1))) sum_{j,k} |x_j - x_k|,
    where the double sum over sorted values is 2 sum_j (2j - J - 1) x_(j): O(J log J) in place of J^2.
    """
    x, truth = _rows(x, truth)
    J = x.shape[0]
    if J < 2:
        raise ValueError(f"ensemble: got {J} particle, expected at least 2 for a fair CRPS")
    rank = 2.0 * np.arange(1, J + 1) - J - 1
    between = rank @ np.sort(x, axis=0) / (J * (J - 1))
    return float(np.mean(np.mean(np.abs(x - truth), axis=0) - between))


def spread_and_skill(x, truth):
    """The two means over pixels of (M6): ((J+1)/J mean s^2, mean (xbar - x*)^2), s^2 the variance with J - 1."""
    x, truth = _rows(x, truth)
    J = x.shape[0]
    if J < 2:
        raise ValueError(f"ensemble: got {J} particle, expected at least 2 for a spread")
    return float((J + 1) / J * np.mean(x.var(axis=0, ddof=1))), float(np.mean((x.mean(axis=0) - truth) ** 2))


def spread_skill_ratio(*parts):
    """(M6) SSR = sqrt(sum spread / sum skill) over the ``spread_and_skill`` pairs of all items; 1 = calibrated.

    Averages come before the root, and the factor (J+1)/J is included: without it a calibrated ensemble of J scores
    sqrt(J/(J+1)). Below 1: over-confident. Read it beside the error: a wrong mean with a large spread also scores 1.
    """
    spread, skill = (math.fsum(values) for values in zip(*parts))
    return math.inf if skill == 0 else math.sqrt(spread / skill)


def rank_histogram(x, truth, seed=0):
    """(M7) Counts of the rank of x* among the J particles, over pixels: (J + 1,) integers.

    Ties are broken at random by ``seed``. Neighbouring pixels are dependent: test uniformity over fields only.
    """
    x, truth = _rows(x, truth)
    below, ties = np.sum(x < truth, axis=0), np.sum(x == truth, axis=0)
    rank = below + np.random.default_rng(seed).integers(0, ties + 1)
    return np.bincount(rank, minlength=x.shape[0] + 1)


def outlier_fraction(counts):
    """(M7) Share of pixels whose truth lies outside the ensemble, and its nominal value 2/(J+1)."""
    return float((counts[0] + counts[-1]) / counts.sum()), 2.0 / len(counts)


def coverage(x, truth, level=0.9):
    """(M8) Share of pixels in the central interval [x_(k), x_(J+1-k)], k = round((1 - level)/2 (J+1)).

    The second number is the share that an exchangeable ensemble has exactly, (J + 1 - 2k)/(J + 1). Raises ValueError
    if J is too small for the level.
    """
    x, truth = _rows(x, truth)
    J = x.shape[0]
    k = round((1.0 - level) / 2.0 * (J + 1))
    if k < 1 or 2 * k > J:
        raise ValueError(f"ensemble: got {J} particles, expected more "
                         f"for a {level:.0%} interval")
    x = np.sort(x, axis=0)
    inside = (x[k - 1] <= truth) & (truth <= x[J - k])
    return float(np.mean(inside)), (J + 1 - 2 * k) / (J + 1)


def oracle_name(metric, particles):
    """(M9) The only name under which a best-of-J value may be shown: "best-of-J=1024 PSNR"."""
    if not particles:
        raise ValueError(f"particles: got {particles!r} for the oracle metric {metric}, expected the J it chose from")
    return f"best-of-J={particles} {metric}"


def best_of(metric, scores, highest=True):
    """(M9) (name with its J, best score): an oracle metric, for it looks at the truth to choose."""
    scores = np.asarray(scores, dtype=float)
    return oracle_name(metric, len(scores)), float(scores.max() if highest else scores.min())


def score_ensemble(x, truth):
    """The figures of merit that need nothing but the ensemble and the truth, by name: (M1), (M2), (M5), (M6), (M8)."""
    scores = {"relative_l2": relative_l2_of_particles(x, truth), "relative_l2_of_mean": relative_l2_of_mean(x, truth)}
    if len(x) > 1:
        spread, skill = spread_and_skill(x, truth)
        scores |= {"crps": fair_crps(x, truth), "ssr": spread_skill_ratio((spread, skill)),
                   "spread2": spread, "skill2": skill}
    if len(x) >= 10:
        scores |= {"coverage_90": coverage(x, truth, 0.9)[0], "coverage_50": coverage(x, truth, 0.5)[0]}
    return scores


def _rows(x, truth):
    x, truth = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.shape[1:] != truth.shape:
        raise ValueError(f"truth: got shape {truth.shape}, expected that of a particle, {x.shape[1:]}")
    return x.reshape(x.shape[0], -1), truth.reshape(1, -1)
