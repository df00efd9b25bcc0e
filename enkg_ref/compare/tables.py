"""The rows of a comparison as text for a terminal and as CSV, and everything that is written to its folder."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from pathlib import Path

from ..run.report import write_json
from .folder import COSTS
from .plots import pareto_figure
from .statistics import differences, summarise

COLUMNS = ("relative_l2_of_particles", "crps", "ssr", "coverage_90", "chi2", "error_to_posterior_mean",
           "spread_over_posterior_spread", "relative_l2_of_best_fit", "chi2_cp", "chi2_lca")
FOOT = ("runs: items x seeds, means over them [95 % over items, Student's t below ten]. F = forward calls + {c_vjp:g} "
        "x forward VJPs. seconds: one run, machine shared. own %: share of the method's arithmetic, without forward "
        "model and networks, in its wall time.")


def tabulate(records, known, summary, out):
    """Add table, known rows, differences to ``summary`` (identity, c_vjp, settings, tuned, metric); write to ``out``.

    records : of runs, `folder.read_record`. Rows may have different numbers of items and seeds.
    known : `statistics.known_rows`, and answers of other programs in the same form, which may have "seconds"
    """
    table, metric = summarise(records, summary["metric"]), summary["metric"]
    base = differences(table, known, metric)
    summary = {"larger_is_better": False, **summary, "items": max(row["items"] for row in table),
               "seeds": max(row["seeds"] for row in table), "base": base, "known": known, "table": table}
    out = Path(out)
    write_json(out / "results.json", summary)
    (out / "table.csv").write_text(to_csv(summary))
    (out / "table.txt").write_text(to_text(summary) + "\n")
    (out / "pareto.png").unlink(missing_ok=True)
    if len(table) > 1:  # one point is no front
        try:
            pareto_figure(summary).savefig(out / "pareto.png", dpi=130)
        except ImportError:  # the plot needs matplotlib; the tables do not
            pass
    return summary


# ---------------------------------------------------------------------------------------------------------------- text
def to_text(summary):
    """Three tables for a terminal, best rows first: the metric, the means of the other scores, the costs of a run.

    The metric has its mean and 95 % interval, and its paired difference to the base method. Columns that no row has are
    left out.
    """
    sign = -1.0 if summary["larger_is_better"] else 1.0
    rows = sorted(summary["table"], key=lambda row: (row["budget"],
                                                     sign * row["mean"].get(summary["metric"], sign * math.inf)))
    blocks = [_metric_table(summary, rows), _score_table(summary, rows), _cost_table(summary, rows)]
    foot = textwrap.wrap(FOOT.format(c_vjp=summary["c_vjp"]), 116)
    return "\n".join(["\n\n".join(filter(None, blocks)), "", *foot, *summary["tuned"]])


def _metric_table(summary, rows):
    metric = summary["metric"]
    lines = []
    for row in rows:
        error = _interval(*(row[kind].get(metric) for kind in ("mean", "low", "high")))
        against = "" if row["method"] == summary["base"] else _interval(*row.get("difference", (None,) * 3), "+")
        lines.append([row["method"], row["budget"], row["rows"], row["steps"] or "-",
                      f"{row['items']}x{row['seeds']}", row["failed"], error, against,
                      _number(row["median"].get(metric))])
    for name, row in summary["known"].items():
        lines.append([name, *[""] * 5, _number(row["mean"].get(metric)),
                      _interval(*row.get("difference", (None,) * 3), "+"), ""])
    return _block(["method", "budget", "rows", "steps", "runs", "failed", metric,
                   f"minus {summary['base']}, paired", "median"], lines, 24)


def _score_table(summary, rows):
    everything = [*rows, *summary["known"].values()]
    columns = [name for name in COLUMNS if name != summary["metric"] and any(name in row["mean"] for row in everything)]
    lines = [[row["method"], row["budget"], *(_number(row["mean"].get(name)) for name in columns)] for row in rows]
    lines += [[name, "", *(_number(row["mean"].get(column)) for column in columns)]
              for name, row in summary["known"].items() if any(column in row["mean"] for column in columns)]
    return _block(["method", "budget", *columns], lines) if columns else None


def _cost_table(summary, rows):
    spent = [name for name in ("network", "offline") if any(row["cost"][name] for row in rows)]
    lines = [[row["method"], row["budget"],
              *(f"{row['cost'][name]:.0f}" for name in ("forward_equivalents", "depth", "denoiser", *spent)),
              f"{row['cost']['seconds']:.2f}", f"{row['cost']['own_percent']:.1f}"] for row in rows]
    lines += [[name, *[""] * (4 + len(spent)), f"{row['seconds']:.2f}", ""]
              for name, row in summary["known"].items() if "seconds" in row]
    return _block(["method", "budget", "F", "depth", "denoiser", *spent, "seconds", "own %"], lines)


def _block(headings, lines, wrap=12):
    """Columns with their headings in words; long headings and long names take several lines."""
    heads = [textwrap.wrap(name.replace("_", " "), wrap) for name in headings]
    tall = max(map(len, heads))
    table = list(zip(*[[""] * (tall - len(words)) + words for words in heads]))
    for name, *cells in lines:
        *before, last = textwrap.wrap(name, 24)
        table += [(words, *[""] * len(cells)) for words in before]
        table.append((last, *map(str, cells)))
    wide = [max(map(len, column)) for column in zip(*table)]
    padded = ([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])] for line in table)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _number(value):
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _interval(mean, low, high, sign=""):
    if mean is None or not math.isfinite(mean):
        return "-"
    bounded = low is not None and math.isfinite(low)
    return f"{mean:{sign}.3g}" + (f" [{low:.3g}, {high:.3g}]" if bounded else "")


# ----------------------------------------------------------------------------------------------------------------- csv
def to_csv(summary):
    """Means, intervals, medians and costs, one line per method, budget and score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "budget", "items", "seeds", "failed", "score", "mean", "low", "high", "median", *COSTS])
    for name, row in summary["known"].items():
        for score_name, mean in row["mean"].items():
            writer.writerow([name, "", "", "", "", score_name, mean, *[""] * (3 + len(COSTS))])
    for row in summary["table"]:
        cost = [row["cost"][key] for key in COSTS]
        start = [row[key] for key in ("method", "budget", "items", "seeds", "failed")]
        for name in row["mean"] or [""]:
            values = [row[kind].get(name, "") for kind in ("mean", "low", "high", "median")]
            writer.writerow([*start, name, *values, *cost])
        if "difference" in row:
            writer.writerow([*start, f"{summary['metric']} minus {summary['base']}", *row["difference"], "", *cost])
    return file.getvalue()
