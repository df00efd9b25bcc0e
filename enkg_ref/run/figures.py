"""The picture of a result where the problem draws none of its own. Names are shown as they are, never as formulas."""

from __future__ import annotations

import numpy as np


def literal(text):
    """``text`` for matplotlib, in which no dollar sign begins a formula."""
    return str(text).replace("$", r"\$")


def figure(result, history, title):
    """Mean, spread, particles; data and prediction; misfit and spread against sigma.

    result : mapping with mean, std (*event), ensemble (J, *event), observation (m,), caption, maybe predictions (J, m),
    truth, calibration.
    history : list of history lines. Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    image = result["mean"].ndim >= 2 and min(result["mean"].shape[-2:]) > 1
    columns = 4 if "calibration" in result or image else 3
    page = Figure(figsize=(3.4 * columns, 9.5 if image else 7.0), layout="constrained")
    if image:
        grid = page.subplots(3, columns)
        _draw_images(page, list(grid[:2].flat), result)
        rest = list(grid[2])
    else:
        grid = page.add_gridspec(2, columns)
        _draw_line(page.add_subplot(grid[0, :]), result)
        rest = [page.add_subplot(grid[1, column]) for column in range(columns)]
    _draw_data(rest.pop(0), result)
    draw_history(rest.pop(0), history)
    if "calibration" in result:
        draw_calibration(rest.pop(0), rest.pop(0), result["calibration"])
    for ax in rest:
        ax.set_axis_off()
    page.suptitle(literal(title), fontsize=11)
    page.text(0.5, -0.01, literal("\n".join(result["caption"])), ha="center", va="top", fontsize=7, wrap=True)
    return page


def _draw_images(page, axes, result):
    mean = result["mean"]
    shown = {"truth": result.get("truth"), "mean": mean, "spread (standard deviation)": result["std"],
             **{f"particle {j}": result["ensemble"][j] for j in range(min(3, len(result["ensemble"])))}}
    shown = {name: value for name, value in shown.items() if value is not None}
    for ax, (name, value) in zip(axes, shown.items()):
        plane = value.reshape(-1, *value.shape[-2:])[0]
        page.colorbar(ax.imshow(plane, cmap="viridis" if "spread" in name else "inferno"), ax=ax, shrink=0.8)
        ax.set_xticks([]), ax.set_yticks([])
        ax.set_title(name, fontsize=9)
    for ax in axes[len(shown):]:
        ax.set_axis_off()


def _draw_line(ax, result):
    """Truth, mean, a band of two standard deviations and three particles of a field on a line."""
    mean, std = (result[name].reshape(-1) for name in ("mean", "std"))
    at = np.arange(mean.size)
    ax.fill_between(at, mean - 2 * std, mean + 2 * std, alpha=0.3, label="two standard deviations")
    for j, particle in enumerate(result["ensemble"][:3]):
        ax.plot(at, particle.reshape(-1), lw=0.5, color="grey", label="particles" if j == 0 else None)
    ax.plot(at, mean, lw=1.5, label="mean")
    if result.get("truth") is not None:
        ax.plot(at, np.asarray(result["truth"]).reshape(-1), "k--", lw=1, label="truth")
    ax.set_title("field", fontsize=9)
    ax.legend(fontsize=7)


def _draw_data(ax, result):
    y = result["observation"].reshape(-1)
    ax.plot(y, "k.", ms=4, label="data")
    if "predictions" in result:
        low, high = (end(result["predictions"], axis=0) for end in (np.min, np.max))
        ax.fill_between(np.arange(len(y)), low, high, alpha=0.4, label="range of the predictions")
    ax.set_title("observation", fontsize=9)
    ax.legend(fontsize=7)


def draw_calibration(ranks, covered, found):
    """Rank histogram and coverage against nominal, from ``metrics.calibration``."""
    density = found["rank_histogram"]
    ranks.bar((np.arange(len(density)) + 0.5) / len(density), density, width=0.9 / len(density))
    ranks.axhline(1.0, color="k", ls=":", lw=1)
    ranks.set_title(f"rank of the truth (calibrated: flat); SSR {found['ssr']:.2f}", fontsize=9)
    covered.plot(*zip(*found["coverage"]), "o-", ms=3, lw=1)
    covered.plot([0, 1], [0, 1], "k:", lw=1)
    covered.set(xlim=(0, 1), ylim=(0, 1))
    covered.set_title("coverage of the truth against nominal", fontsize=9)


def draw_history(ax, history):
    """Misfit of the mean and spread of the particles against the noise level, one line per ensemble."""
    for k in sorted({line.get("ensemble", 0) for line in history}):
        lines = [line for line in history if line.get("ensemble", 0) == k and line.get("sigma")]
        for name, style in (("misfit", "-"), ("spread", "--")):
            values = [(line["sigma"], max(line[name], 1e-12)) for line in lines if line.get(name) is not None]
            if values:
                ax.loglog(*zip(*values), style, lw=1, color=f"C{k}", label=name if k == 0 else None)
    ax.invert_xaxis()
    ax.set_xlabel("noise level sigma", fontsize=8)
    ax.set_title("misfit per datum of the mean, spread", fontsize=9)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
