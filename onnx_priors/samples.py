"""Samples of a prior by its probability flow, and a sheet of them beside images it was made from."""

from __future__ import annotations

import numpy as np


def draw(denoise, count, levels=32, seed=0, sigmas=None):
    """``count`` samples (count, *event) float32 of an ``OnnxDenoiser``: Heun's method on falling noise levels.

    sigmas : (highest, lowest) level; by default those of the prior. Levels are spaced as in Karras et al. (2022).
    """
    high, low = sigmas or (denoise.sigma_max, denoise.sigma_min)
    grid = np.linspace(high ** (1 / 7), low ** (1 / 7), levels) ** 7
    grid[0], grid[-1] = high, low
    x = high * np.random.default_rng(seed).standard_normal((count, *denoise.event_shape))
    for sigma, following in zip(grid, grid[1:]):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        x = x + (following - sigma) * 0.5 * (slope + (ahead - denoise(ahead, following)) / following)
    return denoise(x, low).astype(np.float32)


def sheet(path, samples, images, side=4):
    """A picture with up to 16 samples on the left and as many images on the right, both (N, *event) in the same units.

    One axis: curves; two: grey levels; (3, H, W): colours; other channels: the first one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    low, high = (float(np.quantile(images, q)) for q in (0.002, 0.998))
    for column, (rows, title) in enumerate(((samples, "samples of the prior"), (images, "held-out images"))):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.set_title(title)
        if rows.ndim == 2:
            axes.plot(rows[: side * side].T, linewidth=0.8)
            axes.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))
            continue
        colour = rows.ndim == 4 and rows.shape[1] == 3
        tiles = np.moveaxis(rows, 1, -1) if colour else (rows[:, 0] if rows.ndim == 4 else rows)[..., None]
        tiles = tiles[: side * side]
        blank = np.full((side * side - len(tiles), *tiles.shape[1:]), low)
        tiles = np.concatenate([tiles, blank]).reshape(side, side, *tiles.shape[1:])
        picture = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
        picture = np.clip((picture - low) / max(high - low, 1e-30), 0.0, 1.0)
        axes.imshow(picture if colour else picture[..., 0], cmap=None if colour else "gray", vmin=0.0, vmax=1.0)
        axes.set_axis_off()
    figure.savefig(path, dpi=100)
