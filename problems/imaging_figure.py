"""The figure of an image restoration: truth, observation, mean, error, spread, and particles."""

from __future__ import annotations

import textwrap

import numpy as np

from problems.calibration_figure import draw_calibration

PARTICLES = 5


def draw(result, operator, name):
    """Figure of a result; pictures u = (x + 1)/2, clipped to [0, 1] for display only.

    result : mapping     ensemble (J, *event), mean, std, observation (m,), maybe truth, caption (sentences),
                         calibration ({ssr, coverage, rank_histogram})
    operator : one of ``imaging_operators``, for the shape of the observation

    Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    mean, spread, truth = np.asarray(result["mean"]), np.asarray(result["std"]), result.get("truth")
    ensemble, found = np.asarray(result["ensemble"]), result.get("calibration")
    measured = np.reshape(np.asarray(result["observation"]), operator.observed_shape)
    panels = [("observation", *shown_observation(measured, name)), ("mean", mean, None),
              ("spread (standard deviation)", _over_channels(spread), "viridis")]
    if truth is not None:
        truth = np.asarray(truth)
        panels[:0] = [("truth", truth, None)]
        error = _over_channels(np.abs(mean - truth))
        panels[3:3] = [("error |mean - truth|", error, "magma")]
    chosen = np.unique(np.linspace(0, len(ensemble) - 1, PARTICLES - 2 * bool(found)).astype(int))
    below = [(f"particle {j}", ensemble[j], None) for j in chosen]
    columns = max(len(panels), len(below) + 2 * bool(found))
    page = Figure(figsize=(3.0 * columns, 6.6), layout="constrained")
    axes = page.subplots(2, columns, squeeze=False)
    for axis, panel in zip([*axes[0], *axes[1]], panels + [None] * (columns - len(panels)) + below):
        if panel is not None:
            _picture(page, axis, *panel)
    rest = list(axes[1][len(below):])
    if found:
        draw_calibration(rest.pop(0), rest.pop(0), found)
    for axis in [*axes[0][len(panels):], *rest]:
        axis.set_axis_off()
    sentences = [*result.get("caption", ()), "Pictures are clipped to [0, 1] for display."]
    words = [line for sentence in sentences for line in textwrap.wrap(sentence, 45 * columns)]
    page.text(0.5, -0.01, "\n".join(words), ha="center", va="top", fontsize=8)
    return page


def shown_observation(measured, name):
    """(picture, colours) in which the data y, (*obs), are shown: pictures in [0, 1], magnitudes on a logarithmic scale.

    Magnitudes below a hundredth of the largest are shown as that: noise makes some negative.
    """
    if name != "phase-retrieval":
        return 0.5 * (measured + 1.0), None
    size = _over_channels(measured)
    return np.log10(np.maximum(size, 0.01 * size.max())), "gray"


def _over_channels(pictures):
    """The mean over the channels of (c, n1, n2); (n1, n2) as it is."""
    return pictures.mean(axis=0) if pictures.ndim == 3 else pictures


def _picture(page, axis, title, values, colours):
    """One panel: a photograph (``colours`` None), or a field with a colour bar."""
    if colours is None:
        values = np.clip(values, 0.0, 1.0)
        axis.imshow(np.moveaxis(values, 0, -1) if values.ndim == 3 else values, cmap="gray", vmin=0, vmax=1)
    else:
        low = 0 if colours != "gray" else None
        page.colorbar(axis.imshow(values, cmap=colours, vmin=low), ax=axis, shrink=0.7)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
