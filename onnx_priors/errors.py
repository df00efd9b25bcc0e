"""The yardstick of every prior: mean squared error of its denoiser on held-out images, level by level."""

from __future__ import annotations

import numpy as np


def relative_levels(low=0.05, high=10.0):
    """The noise levels of a table, in units of the images' standard deviation."""
    return tuple(s for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 3.0, 10.0) if low <= s <= high)


def denoising_errors(denoise, clean, sigmas, seed=0, chunk=256):
    """Mean of (D(x0 + sigma n, sigma) - x0)^2 over pixels and images at each sigma.  clean (N, *event), numpy.

    The noise depends on ``seed`` and the number of the level only: it is the same for every denoiser.
    """
    errors = []
    for k, sigma in enumerate(sigmas):
        rng, total = np.random.default_rng([seed, k]), 0.0
        for start in range(0, len(clean), chunk):
            x0 = clean[start:start + chunk]
            x = x0 + np.float32(sigma) * rng.standard_normal(x0.shape, dtype=np.float32)
            total += float(np.sum((np.asarray(denoise(x, float(sigma)), dtype=np.float64) - x0) ** 2))
        errors.append(total / clean.size)
    return errors


def table(errors, sigmas, label="sigma"):
    """Markdown table of {name: errors} at ``sigmas``, and the ratio of the first row to the last."""
    lines = [f"| {label} | " + " | ".join(f"{s:.3g}" for s in sigmas) + " |", "|---" * (len(sigmas) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{e:.3g}" for e in values) + " |" for name, values in errors.items()]
    first, *_, last = errors.values()
    lines.append("| ratio | " + " | ".join(f"{a / b:.3f}" for a, b in zip(first, last)) + " |")
    return "\n".join(lines)
