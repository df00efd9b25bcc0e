"""Every figure of merit, defined once. Plain numpy on host arrays: ensembles (J, *event), truths (*event).

All fields in physical units. (M1)-(M9) are labels; "d" is the number of
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
    scores = {"relative_l2_of_particles": relative_l2_of_particles(x, truth),
              "relative_l2_of_mean": relative_l2_of_mean(x, truth)}
    if len(x) > 1:
        spread, skill = spread_and_skill(x, truth)
        scores |= {"crps": fair_crps(x, truth), "ssr": spread_skill_ratio((spread, skill)),
                   "spread2": spread, "skill2": skill}
    if len(x) >= 10:
        scores |= {"coverage_90": coverage(x, truth, 0.9)[0], "coverage_50": coverage(x, truth, 0.5)[0]}
    return scores


def calibration(ensemble, truth):
    """Spread-skill ratio (M6), ranks (M7), coverage (M8) of an ensemble (J, *event), J >= 2, in physical units.

    ``interval`` : (nominal, found) coverage of the interval nearest to 90 % that J particles have, [x_(k), x_(J+1-k)],
    nominal (J + 1 - 2k)/(J + 1);  ``coverage`` : the same for up to six k;  ``rank_histogram`` : density in at most 16
    bins of whole ranks, 1 where calibrated.
    """
    J = len(ensemble)
    k = max(1, round(0.05 * (J + 1)))
    chosen = sorted({k, *np.linspace(1, J // 2, min(6, J // 2)).round().astype(int).tolist()}, reverse=True)
    pairs = {at: coverage(ensemble, truth, (J + 1 - 2 * at) / (J + 1))[::-1] for at in chosen}
    counts = rank_histogram(ensemble, truth)
    edges = np.linspace(0, J + 1, min(16, J + 1), endpoint=False).astype(int)
    density = np.add.reduceat(counts, edges) / np.diff(np.append(edges, J + 1)) * (J + 1) / counts.sum()
    return {"ssr": spread_skill_ratio(spread_and_skill(ensemble, truth)), "interval": pairs[k],
            "coverage": list(pairs.values()), "rank_histogram": density}


# ------------------------------------------------------------------------------------------------ independent ensembles
def weights_by_misfit(misfits):
    """Weights of independent ensembles, sum 1, from the misfits of their particles, a list of arrays (J,).

    exp(-((median misfit - best)/s)^2/2), s the scatter of the misfit over the particles of the best ensemble, 1.48
    times the median deviation: a run caught in a mode that does not fit counts for nothing, runs whose medians differ
    by little against s count alike, single particles that blew up decide nothing. A rule of thumb, not a ratio of
    evidences: where s is small against the errors of the ensembles, one of equally good runs may get most of the
    weight.
    Non-finite misfits are left out; an ensemble without a finite one has weight 0, unless none has one.
    """
    finite = [values[np.isfinite(values)] for values in misfits]
    medians = np.array([np.median(values) if len(values) else np.inf for values in finite])
    best = int(np.argmin(medians))
    if medians[best] == np.inf:
        return np.full(len(medians), 1.0 / len(medians))
    scatter = 1.48 * float(np.median(np.abs(finite[best] - medians[best]))) or 1.0
    weight = np.exp(-0.5 * ((medians - medians[best]) / scatter) ** 2)
    return weight / weight.sum()


def resampled(share):
    """Row numbers of a systematic resample by shares (sum 1), as many as there are; equal shares: every row once."""
    return np.searchsorted(np.cumsum(share), (np.arange(len(share)) + 0.5) / len(share)).clip(max=len(share) - 1)


def disagreement(ensemble, index):
    """Mean distance between two ensemble means over the norm of their mean; index (J,) says which is whose."""
    means = np.stack([ensemble[index == k].mean(axis=0) for k in np.unique(index)])
    apart = [np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]
    return float(np.mean(apart) / np.linalg.norm(means.mean(axis=0)))


def separation(ensemble, index):
    """Largest distance of two ensemble means over the spread of an ensemble, (tr C_xx)^1/2 averaged in square.

    (2/J)^1/2 where all sample one posterior with J particles; above 1 they stand further apart than particles do from
    their own mean: another mode, or a spread that is too small.
    """
    groups = [ensemble[index == k] for k in np.unique(index)]
    means = [group.mean(axis=0) for group in groups]
    apart = max(np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i])
    spread = np.sqrt(np.mean([np.sum(np.var(group, axis=0)) for group in groups]))
    return float(apart / spread) if spread > 0 else float("inf")


def _rows(x, truth):
    x, truth = np.asarray(x, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if x.shape[1:] != truth.shape:
        raise ValueError(f"truth: got shape {truth.shape}, expected that of a particle, {x.shape[1:]}")
    return x.reshape(x.shape[0], -1), truth.reshape(1, -1)
