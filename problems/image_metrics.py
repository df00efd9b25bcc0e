"""Figures of merit of pictures: PSNR (I18), SSIM (I19), and what phase retrieval cannot know (I16).

Everything is computed of u = clip((x + 1)/2, 0, 1), pictures in [0, 1]; x are the prior's units. The evaluator of
devzhk/enkg-pytorch clips x itself to [0, 1], so that the dark half of a picture does not count: ``official=True`` does
the same, for the study of that difference only.
"""

from __future__ import annotations

import numpy as np

ORIENTATIONS = {"as it is": (1.0, False), "negative": (-1.0, False), "turned": (1.0, True),
                "turned negative": (-1.0, True)}
"""What leaves |F x| unchanged and can be listed: name -> (sign, turned by 180 degrees)."""


def unit(x, official=False):
    """u in [0, 1] of pictures x in prior units; ``official``: clip(x, 0, 1), without the dark half."""
    x = np.asarray(x, dtype=np.float64)
    return np.clip(x if official else 0.5 * (x + 1.0), 0.0, 1.0)


def psnr(u, truth):
    """-10 log10 of the mean squared error, dB, (I18); 80 where it is below 1e-8: read ">= 80".

    u (J, *event), truth (*event), both in [0, 1] -> (J,)
    """
    error = np.mean((np.asarray(u, dtype=np.float64) - truth) ** 2, axis=tuple(range(1, np.ndim(u))))
    return -10.0 * np.log10(np.maximum(error, 1e-8))


def ssim(u, truth):
    """Structural similarity by scikit-image: Gaussian window 11 x 11, std 1.5, population covariances, (I19).

    u (J, *event), truth (*event), event (n1, n2) or (c, n1, n2), both in [0, 1] -> (J,), the mean over windows and
    channels. Raises ValueError for pictures smaller than the window, ImportError without scikit-image.
    """
    from skimage.metrics import structural_similarity

    truth = np.asarray(truth, dtype=np.float64)
    if min(truth.shape[-2:]) < 11:
        raise ValueError(f"u: got pictures of {truth.shape[-2]} x {truth.shape[-1]} pixels, expected 11 x 11 at least")
    axis = 0 if truth.ndim == 3 else None
    return np.array([structural_similarity(picture, truth, gaussian_weights=True, sigma=1.5, data_range=1.0,
                                           use_sample_covariance=False, channel_axis=axis)
                     for picture in np.asarray(u, dtype=np.float64)])


def oriented(x, name):
    """Pictures x (..., n1, n2) in prior units in one of ``ORIENTATIONS``."""
    sign, turned = ORIENTATIONS[name]
    return sign * (x[..., ::-1, ::-1] if turned else x)


def best_orientation(x, truth):
    """Name of the orientation in which picture x (*event) is nearest to ``truth``, both in prior units."""
    return min(ORIENTATIONS, key=lambda name: float(np.sum((oriented(x, name) - truth) ** 2)))


def scores(x, truth, lpips=None, official=False, resolve=False):
    """Figures of merit of an ensemble: of its mean, and their mean over particles.

    Parameters
    ----------
    x : array (J, *event)        prior units;  truth : (*event)
    lpips : (u (*event), truth (*event)) -> float, pictures in [0, 1], or None: not computed
    official : bool              the clipping of the official evaluator
    resolve : bool               beside each figure, the same after the best of ``ORIENTATIONS``, chosen by the truth:
                                 ``..._ambiguity_resolved``

    Returns {"psnr_of_mean", "psnr_of_particles", "ssim_of_mean", "ssim_of_particles", ...: float}; SSIM is left out
    where scikit-image is not installed or the pictures are smaller than its window.
    """
    pictures = np.concatenate([x.mean(axis=0, keepdims=True), x])
    found = _of_all(pictures, truth, lpips, official)
    if resolve:
        turned = np.stack([oriented(picture, best_orientation(picture, truth)) for picture in pictures])
        found |= {f"{name}_ambiguity_resolved": value
                  for name, value in _of_all(turned, truth, lpips, official).items()}
    return found


def _of_all(pictures, truth, lpips, official):
    """{name_of_mean, name_of_particles}: the first picture is the mean of the ensemble, the others its particles."""
    u, true = unit(pictures, official), unit(truth, official)
    values = {"psnr": psnr(u, true)}
    try:
        if min(true.shape[-2:]) >= 11:
            values["ssim"] = ssim(u, true)
    except ImportError:
        pass
    if lpips is not None:
        values["lpips"] = np.array([float(lpips(picture, true)) for picture in u])
    return {f"{name}_of_{what}": float(value) for name, of in values.items()
            for what, value in (("mean", of[0]), ("particles", of[1:].mean()))}
