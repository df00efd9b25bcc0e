"""The plot of a comparison: the metric against each cost."""

from __future__ import annotations

import math

import numpy as np

AXES = {"forward_equivalents": "forward equivalents", "depth": "sequential depth in solves", "seconds": "wall, s"}


def pareto_figure(summary):
    """The metric against each cost axis: one line per method, points for wall time, which is measured and may go back.

    Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    metric = summary["metric"]
    page = Figure(figsize=(13, 4.6), layout="constrained")
    axes = page.subplots(1, 3, sharey=True)
    for ax, (key, label) in zip(axes, AXES.items()):
        ax.set_xscale("log"), ax.set_xlabel(label)
        ax.set_yscale("linear" if summary["larger_is_better"] else "log")  # decibels are logarithms
        spent = [row["cost"][key] for row in summary["table"] if row["cost"][key] > 0] or [1.0]
        ax.set_xlim(0.8 * min(spent), 1.25 * max(spent))  # of equal costs matplotlib finds none itself
        for k, method in enumerate(dict.fromkeys(row["method"] for row in summary["table"])):
            _draw_method(ax, k, method, summary, key)
        for name, row in summary["known"].items():
            level = row["mean"].get(metric, math.nan)
            ax.axhline(level, color="grey", lw=0.8, ls=":")
            ax.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), fontsize=7)
        _ticks(ax.xaxis, *ax.get_xlim())
    if not summary["larger_is_better"]:
        _ticks(axes[0].yaxis, *axes[0].get_ylim())
    axes[0].set_ylabel(metric.replace("_", " "))
    page.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    page.suptitle(f"{summary['identity']['problem']}: {summary['items']} items x {summary['seeds']} seeds", fontsize=10)
    return page


def _draw_method(ax, k, method, summary, key):
    metric = summary["metric"]
    rows = sorted((row for row in summary["table"] if row["method"] == method and metric in row["mean"]),
                  key=lambda row: row["budget"])
    x, y = [row["cost"][key] or math.nan for row in rows], [row["mean"][metric] for row in rows]
    bars = np.array([[row["mean"][metric] - row["low"][metric], row["high"][metric] - row["mean"][metric]]
                     for row in rows]).reshape(-1, 2).T
    line = "none" if key == "seconds" else "-" if k < 10 else "--"
    ax.errorbar(x, y, yerr=np.where(np.isfinite(bars), np.maximum(bars, 0.0), 0.0), marker="osv^D"[k % 5], ms=4, lw=1.2,
                capsize=2, color=f"C{k % 10}", mfc=f"C{k}" if k < 10 else "white", ls=line, label=method)


def _ticks(axis, low, high):
    """Plain numbers at 1, 2 and 5 times the powers of ten; over two decades and more at the powers only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if low > 0 and high / low < 100.0 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=8)
