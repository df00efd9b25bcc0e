"""The comparisons of RESULTS.md: ``enkg compare`` with the numbers of items, seeds and budgets that we could afford.

    python benchmarks/arena.py linear-gaussian navier-stokes black-hole          from the root of the repository
    python benchmarks/arena.py navier-stokes --tables                            tables of what is there, nothing is run
    python benchmarks/arena.py navier-stokes --page                              results/ as Markdown, for the page

Tables and numbers go to benchmarks/results/arena-NAME.txt, .json and .md (for results_page.py), run records and plots to
out-arena/ (not kept in the repository). The same command goes on where it was stopped. --only NAME takes one of the
comparisons. The row of eht-imaging in the black-hole table is made by benchmarks/peer_ehtim.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path

from enkg_ref.commands.compare import CompareRequest, compare, items_of
from enkg_ref.compare import folder
from enkg_ref.compare.plots import pareto_figure
from enkg_ref.compare.statistics import differences, known_rows
from enkg_ref.compare.tables import tabulate, to_text
from enkg_ref.methods import METHODS
from enkg_ref.run.report import plain

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EHTIM = RESULTS / "ehtim-black-hole.json"
EVERY = tuple(name for name in METHODS if name != "deft")
CHEAP = tuple(name for name in EVERY if name not in ("pnpdm", "blade"))  # those need 107 and 80 calls
NEW_NAMES = {"relative_l2": "relative_l2_of_particles"}  # of scores in tables made before
SHOWN = ("navier-stokes-noise-0.55",)  # plots that a page shows


def _linear_gaussian(name, noise):
    return [CompareRequest("linear-gaussian", EVERY, (512, 2048), _out(name), noise=noise, items=10, tune=2048)]


def _navier_stokes(name, noise):
    """A gradient at 1.8 calls beside its value: measured 1.2 to 1.9 in batches of 1, 8 and 32, in CPU time.

    The FFTs differ by rounding; ducc0 is a third faster for a single chain. DEFT spends nothing online: it is the same
    at every budget.
    """
    given = {"options": {"fft": "ducc0"} if noise != 0.55 else {}, "noise": noise, "items": 5, "c_vjp": 1.8}
    return [CompareRequest("navier-stokes", EVERY, (128, 256, 512, 1024), _out(name), tune=256, **given),
            CompareRequest("navier-stokes", CHEAP, (64,), _out(name), tune=256, **given),
            CompareRequest("navier-stokes", ("deft",), (128,), _out(name), **given)]


def _black_hole(name):
    return [CompareRequest("black-hole", EVERY, (384,), _out(name), items=5, c_vjp=1.1, tune=384)]


def _out(name):
    return HERE.parent / "out-arena" / name


COMPARISONS = {  # problem: {name of the table: () -> requests, several where a method cannot pay a budget}
    "linear-gaussian": {name: partial(_linear_gaussian, name, noise) for noise in (0.05, 0.3, 1.0)
                        for name in [f"linear-gaussian-noise-{noise:g}"]},
    "navier-stokes": {name: partial(_navier_stokes, name, noise) for noise in (0.55, 0.0, 1.1)
                      for name in [f"navier-stokes-noise-{noise:g}"]},
    "black-hole": {"black-hole": partial(_black_hole, "black-hole")},
}


def ehtim_row():
    """Row of eht-imaging, made on the same data by benchmarks/peer_ehtim.py: {name: row}, empty where it was not run."""
    if not EHTIM.exists():
        return {}
    found = json.loads(EHTIM.read_text())
    runs = [run for run in found["runs"] if run["regulariser"] == found["chosen"] and run["item"] < 5]
    per_item = {name: {run["item"]: run[name] for run in runs} for name in ("psnr_aligned", "chi2_cp", "chi2_lca")}
    row = {"mean": {name: sum(values.values()) / len(runs) for name, values in per_item.items()}, "per_item": per_item,
           "seconds": sum(run["seconds"] for run in runs) / len(runs)}
    return {f"eht-imaging, {found['chosen']}": row}


def tables(request):
    """The tables of the folder of ``request`` anew, with the row of eht-imaging beside black holes.  -> the summary"""
    out = Path(request.out)
    old = json.loads((out / "results.json").read_text())
    records = [folder.read_record(out / file) for row in old["table"] for file in row["files"]]
    order = list(METHODS)
    records.sort(key=lambda record: (order.index(record["method"]), record["budget"], record["item"], record["seed"]))
    items = items_of(request, range(max(record["item"] for record in records) + 1))
    known = known_rows(items) | (ehtim_row() if request.problem == "black-hole" else {})
    problem = items[0].problem
    return tabulate(records, known, {**old, "metric": problem.metric, "larger_is_better": problem.larger_is_better}, out)


def renewed(name, made):
    """The committed summary with the rows of ``made``, a new one of some of its methods, in the place of its own."""
    old = committed(name)
    new = {(row["method"], row["budget"]): row for row in made["table"]}
    table = [new.get((row["method"], row["budget"]), row) for row in old["table"]]
    words = [line for line in old["tuned"] if line.split(":")[0] not in {method for method, _ in new}] + made["tuned"]
    zero, before = (of["known"]["zero field"]["per_item"][old["metric"]] for of in (made, old))
    if set(zero) - set(before) or any(not math.isclose(zero[k], before[k], rel_tol=1e-6) for k in zero):
        raise ValueError(f"items: got others than those of the committed {name}, expected the same truths")
    differences(table, old["known"], old["metric"])
    return {**old, "larger_is_better": made["larger_is_better"], "table": table, "tuned": words}


def committed(name):
    """The summary in results/: item numbers are numbers again, what was not finite is NaN, scores have today's names."""
    summary = json.loads((RESULTS / f"arena-{name}.json").read_text())
    for row in (*summary["table"], *summary["known"].values()):
        for kind in {"mean", "low", "high", "median", "per_item"} & set(row):
            row[kind] = {NEW_NAMES.get(score, score): value for score, value in row[kind].items()}
        for kind in {"low", "high"} & set(row):
            row[kind] = {score: math.nan if value is None else value for score, value in row[kind].items()}
        row["per_item"] = {score: {int(item): value for item, value in values.items()}
                           for score, values in row["per_item"].items()}
    summary.setdefault("larger_is_better", summary["metric"].startswith("psnr"))
    return summary


def page(name):
    """Markdown of a table in results/: mean and median of the metric, best at the largest budget first.

    best start: of the seed that fits an item's data best; one particle: relative L2 of the particles, averaged; both and
    the number of rows at the largest budget.
    """
    summary = committed(name)
    metric, sign = summary["metric"], -1 if summary["larger_is_better"] else 1
    digits = 2 if sign > 0 else 1
    rows = {(row["method"], row["budget"]): row for row in summary["table"]}
    budgets = sorted({budget for _, budget in rows})
    usual = summary["items"], summary["seeds"]

    def cell(row):
        if row is None:
            return "-"
        note = "" if (row["items"], row["seeds"]) == usual else f" ({row['items']} x {row['seeds']})"
        failed = f", {row['failed']} failed" if row["failed"] else ""
        value, median = row["mean"].get(metric), row["median"].get(metric)
        return ("-" if value is None else f"{value:.{digits}f} / {median:.{digits}f}") + note + failed

    def number(value):
        return "-" if value is None else f"{value:.{digits}f}"

    def difference(row):
        if "difference" not in row or row.get("method") == summary["base"]:
            return ""
        mean, low, high = row["difference"]
        at = f" at {row['budget']:,}" if len(budgets) > 1 and "budget" in row else ""
        return f"{mean:+.{digits}f}" + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]") + at

    def paired(method):  # at the largest budget that the base has too
        return max((row for (other, _), row in rows.items() if other == method),
                   key=lambda row: ("difference" in row, row["budget"]))

    def last(method):
        return rows[method, max(budget for other, budget in rows if other == method)]

    methods = sorted({method for method, _ in rows}, key=lambda method: sign * last(method)["mean"].get(metric, sign * 99))
    lines = [f"**{name}**: {metric.replace('_', ' ')}, mean / median over {usual[0]} items x {usual[1]} seeds; a gradient counts "
             f"{summary['c_vjp']:g} calls beside its value", "",
             "| method | " + " | ".join(f"F = {budget:,}" for budget in budgets)
             + f" | minus {summary['base']}, paired [95 %] | best start | rows | one particle |"
             + " depth | denoiser, network | s | own % |", "|---" * (len(budgets) + 9) + "|"]
    for method in methods:
        row = last(method)
        cost = row["cost"]
        lines.append(f"| {method} | " + " | ".join(cell(rows.get((method, budget))) for budget in budgets)
                     + f" | {difference(paired(method))} | {number(row['best_start'])} | {row['rows']} | "
                       f"{number(row['mean'].get('relative_l2_of_particles'))} |"
                     + f" {cost['depth']:,.0f} | {cost['denoiser'] + cost['network']:,.0f} | {cost['seconds']:.1f} | "
                       f"{cost['own_percent']:.0f} |")
    for label, row in summary["known"].items():
        value = f"{row['mean'][metric]:.{digits}f}" if metric in row["mean"] else "-"
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        lines.append(f"| {label} |" + " |" * (len(budgets) - 1) + f" {value} | {difference(row)} | | | |"
                     + f" | | {seconds} | |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=COMPARISONS)
    parser.add_argument("--only", metavar="NAME", help="one comparison, such as navier-stokes-noise-0")
    parser.add_argument("--renew", metavar="A,B,..", help="run these methods only, the other rows stay as committed")
    parser.add_argument("--tables", action="store_true", help="run nothing, tabulate what is there")
    parser.add_argument("--page", action="store_true", help="run nothing, print the tables in results/ as Markdown")
    options = parser.parse_args()
    for name, requests in ((name, found()) for problem in options.problems
                           for name, found in COMPARISONS[problem].items() if options.only in (None, name)):
        if options.page:
            print(f"{page(name)}\n")
            continue
        if options.renew:
            requests = [dataclasses.replace(requests[0], methods=tuple(options.renew.split(",")))]
        for request in () if options.tables else requests:
            print(f"{name}: {', '.join(request.methods)} at {request.budgets}", flush=True)
            compare(request, say=lambda words: print(words, flush=True))
        publish(name, renewed(name, tables(requests[0])) if options.renew else tables(requests[0]))
    return 0


def publish(name, summary):
    """The tables of a comparison into results/."""
    (RESULTS / f"arena-{name}.txt").write_text(to_text(summary) + "\n")
    if name in SHOWN:
        pareto_figure(summary).savefig(RESULTS / f"arena-{name}.png", dpi=130)
    (RESULTS / f"arena-{name}.json").write_text(json.dumps(plain(summary)) + "\n")
    (RESULTS / f"arena-{name}.md").write_text(page(name) + "\n")
    print(to_text(summary))


if __name__ == "__main__":
    sys.exit(main())
