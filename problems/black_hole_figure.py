"""The figure of a black-hole result: image, spread, particles, closures of data and model, convergence (matplotlib)."""

from __future__ import annotations

import textwrap

import numpy as np

from problems.calibration_figure import draw_calibration
from problems.radio_metrics import FWHM_PER_SIGMA, best_shifts, ring_fit, shifted
from problems.vlbi import MICROARCSECOND, chi2_log_amplitude, chi2_phase


def beam(u, v):
    """Ellipse of the equally weighted beam: FWHM (major, minor) in micro-arcseconds, degrees East of North.

    The Gaussian with the curvature of mean cos(2 pi (u x + v y)) at the origin: its inverse covariance is
    4 pi^2 mean (u, v)(u, v)^T.
    """
    moments = np.array([[np.mean(u * u), np.mean(u * v)], [np.mean(u * v), np.mean(v * v)]])
    values, vectors = np.linalg.eigh(4 * np.pi**2 * moments)  # ascending: the smallest is the major axis
    major, minor = FWHM_PER_SIGMA / np.sqrt(values) / MICROARCSECOND
    east, north = vectors[:, 0]
    return major, minor, float(np.rad2deg(np.arctan2(east, north)) % 180)


def draw(result, forward, data, observation, field_of_view, flux_jy, name):
    """Figure of a result.

    Parameters
    ----------
    result : mapping            ensemble (J, n, n) of normalised images; maybe mean, truth (n, n), ensemble_index (J,),
        predictions (J, m), history (list of {sigma, misfit, spread, ensemble}), caption (list of sentences),
        calibration ({ssr, coverage, rank_histogram}, every particle at the shift that brings it to the truth)
    forward, data               ``black_hole.ClosureForward`` and the ``Observation`` it predicts
    observation : vlbi.Visibilities   for the beam
    field_of_view, flux_jy      micro-arcseconds; every image is rescaled to this total flux for display

    Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    ensemble = np.asarray(result["ensemble"], dtype=np.float64)
    index = np.asarray(result.get("ensemble_index", np.zeros(len(ensemble), int)))
    groups = [ensemble[index == k] for k in np.unique(index)]
    mean, found = np.asarray(result.get("mean", ensemble.mean(axis=0))), result.get("calibration")
    extent = field_of_view / 2 * np.array([1, -1, -1, 1])  # column 0 is East, row 0 is North

    def to_flux(image):
        total = image.sum()
        return 1e3 * flux_jy * image / total if total > 0 else image

    heights = [4.2, 2.4] + [2.9] * (len(groups) > 1) + [3.6] * (2 if found else 1)
    page = Figure(figsize=(14, sum(heights) + 1.1), layout="constrained")
    rows = page.subfigures(len(heights), 1, height_ratios=heights)
    _draw_images(rows[0], _images(groups, mean, result.get("truth"), to_flux, 1e3 * flux_jy / mean.sum()), extent)
    _draw_beam(rows[0].axes[0], observation, field_of_view)
    chosen = np.unique(np.linspace(0, len(ensemble) - 1, 6).astype(int))
    _strip(rows[1], [(f"particle {j}", to_flux(ensemble[j])) for j in chosen], extent)
    if len(groups) > 1:
        means = [group.mean(axis=0) for group in groups]
        titles = [_ring_title(k, m, field_of_view) for k, m in zip(np.unique(index), means)]
        _strip(rows[2], [(title, to_flux(m)) for title, m in zip(titles, means)], extent)
    if found:
        phases, amplitudes = rows[-2].subplots(1, 2)
        convergence, *known = rows[-1].subplots(1, 3)
        draw_calibration(*known, found)
    else:
        phases, amplitudes, convergence = rows[-1].subplots(1, 3)
    model = np.asarray(forward((mean[None] - forward.shift) / forward.scale))[0]
    predicted = np.asarray(result["predictions"]) if "predictions" in result else model[None]
    for ax, block, unit, label, statistic in (
            (phases, "cp", 180 / np.pi, "closure phase (degrees)", chi2_phase),
            (amplitudes, "lca", 1.0, "log closure amplitude", chi2_log_amplitude)):
        part = data.blocks[block]
        if part.start == part.stop:
            ax.set_title(f"{label}: none", fontsize=9)
            continue
        numbers = (np.asarray(data.y)[part], np.asarray(data.noise)[part], model[part], predicted[:, part])
        ax.set_title(f"{label}: chi2 of the mean {statistic(numbers[2], *numbers[:2]):.2f}", fontsize=9)
        _draw_closures(ax, unit, *numbers)
    _draw_convergence(convergence, result.get("history", ()))
    page.suptitle(f"{name}: {_ring_words(mean, field_of_view)}. North is up, East is left; images scaled to "
                  f"{flux_jy:g} Jy", fontsize=12)
    words = "\n".join(line for words in result.get("caption", ()) for line in textwrap.wrap(words, 180))
    page.text(0.5, -0.005, words, ha="center", va="top", fontsize=8)
    return page


def _images(groups, mean, truth, to_flux, unit):
    """[(title, image in mJy per pixel, colours)] of the first row; ``unit``: mJy of a spread of one."""
    images = [("mean" if len(groups) == 1 else f"mean of {len(groups)} ensembles", to_flux(mean), "afmhot")]
    if truth is not None:
        images.append(("truth", to_flux(np.asarray(truth)), "afmhot"))
    within = np.sqrt(np.mean([group.var(axis=0) for group in groups], axis=0))
    images.append(("spread within an ensemble", unit * within, "viridis"))
    if len(groups) > 1:
        means = np.stack([group.mean(axis=0) for group in groups])
        moved = [shifted(m, int(r), int(c)) for m, (r, c) in zip(means, best_shifts(means, means[0]))]
        images.append(("scatter between ensembles, aligned", unit * np.std(moved, axis=0, ddof=1), "viridis"))
    return images


def _draw_images(page, images, extent):
    """The first row; images of brightness share the colour scale of the first."""
    for ax, (title, image, colours) in zip(page.subplots(1, len(images), squeeze=False)[0], images):
        bright = colours == "afmhot"
        shown = ax.imshow(image, extent=extent, cmap=colours, vmin=0, vmax=images[0][1].max() if bright else None)
        page.colorbar(shown, ax=ax, shrink=0.8, label="mJy per pixel")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("East offset (micro-arcseconds)", fontsize=8)
        ax.set_ylabel("North offset (micro-arcseconds)", fontsize=8)


def _draw_closures(ax, unit, y, sigma, model, predicted):
    """Data with errors and the mean image's prediction, each (m,), and the particles' range, (J, m), times ``unit``."""
    number = np.arange(len(y))
    low, high = np.percentile(predicted, (5, 95), axis=0)
    ax.vlines(number, unit * low, unit * high, color="C1", alpha=0.35, lw=3, label="5-95 % of the particles")
    ax.errorbar(number, unit * y, unit * sigma, fmt="k.", ms=3, lw=0.8, label="data")
    ax.plot(number, unit * model, "o", mfc="none", mec="C3", ms=4, mew=0.8, label="mean image")
    centre, reach = np.median(y), 1.3 * np.max(np.abs(y - np.median(y))) + 3 * np.median(sigma)
    ax.set_ylim(unit * (centre - reach), unit * (centre + reach))
    ax.set_xlabel("closure, in order of time", fontsize=8)
    ax.legend(fontsize=7)


def _ring_words(image, field_of_view):
    ring = ring_fit(image, field_of_view)
    if np.isnan(ring.diameter):
        return "no ring found"
    return (f"ring of {ring.diameter:.1f} micro-arcseconds, bright side {ring.position_angle:.0f} degrees East of "
            "North")


def _draw_beam(ax, observation, field_of_view):
    from matplotlib.patches import Ellipse

    major, minor, angle = beam(observation.u, observation.v)
    corner = field_of_view / 2 - major / 2 - 0.04 * field_of_view
    # turning from North to East is anticlockwise on the page, but clockwise in data units (East, North)
    ax.add_patch(Ellipse((corner, -corner), minor, major, angle=-angle, fill=False, edgecolor="white", lw=1))
    ax.text(corner, -corner + major / 2 + 4, f"beam {major:.0f} x {minor:.0f}", color="white", fontsize=7, ha="center")


def _strip(page, images, extent):
    """Small images side by side on one colour scale of their own."""
    for ax, (title, image) in zip(page.subplots(1, len(images), squeeze=False)[0], images):
        ax.imshow(image, extent=extent, cmap="afmhot", vmin=0)
        ax.set_title(title, fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])


def _ring_title(number, image, field_of_view):
    ring = ring_fit(image, field_of_view)
    if np.isnan(ring.diameter):
        return f"ensemble {number}: no ring"
    return f"ensemble {number}: {ring.diameter:.1f} uas, {ring.position_angle:.0f} deg E of N"


def _draw_convergence(ax, history):
    """Misfit per datum of the mean and spread of the particles against the noise level, a colour per ensemble."""
    for k in sorted({line.get("ensemble", 0) for line in history}):
        lines = [line for line in history if line.get("ensemble", 0) == k and line.get("sigma", 0) > 0]
        for quantity, style in (("misfit", "-"), ("spread", "--")):
            values = [(line["sigma"], line[quantity]) for line in lines if (line.get(quantity) or 0) > 0]
            if values:
                ax.loglog(*zip(*values), style, lw=1.2, color=f"C{k % 10}", label=quantity if k == 0 else None)
    if ax.lines:
        ax.invert_xaxis()
        ax.legend(fontsize=7)
    ax.set_xlabel("noise level sigma", fontsize=8)
    ax.set_title("misfit and spread while the noise level falls", fontsize=9)
