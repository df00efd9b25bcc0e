"""The comparisons of the README: ``enkg compare`` with the numbers of items, seeds and budgets that we could afford.

    python benchmarks/arena.py linear-gaussian navier-stokes black-hole          from the root of the repository
    python benchmarks/arena.py navier-stokes --tables                            tables of what is there, nothing is run
    python benchmarks/arena.py navier-stokes --page                              results/ as Markdown, for the page

Tables, numbers and plots go to benchmarks/results/arena-NAME.txt, .json and .png, run records to out-arena/ (not kept in
the repository). The same command goes on where it was stopped. --only NAME takes one of the comparisons. The row of
eht-imaging in the black-hole table is made by benchmarks/peer_ehtim.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from enkg_ref import cli
from enkg_ref.compare import arena

HERE = Path(__file__).resolve().parent
EHTIM = HERE / "results" / "ehtim-black-hole.json"
EVERY = [name for name in arena.METHODS if name != "deft"]
EVERYWHERE = "--methods " + ",".join(EVERY)
CHEAP = "--methods " + ",".join(name for name in EVERY if name not in ("pnpdm", "blade"))  # those need 107 and 80 calls
DEFT = "--methods deft --budget 128"  # spends nothing online: the same at every budget


def _navier_stokes(noise):
    """A gradient at 1.8 calls beside its value: measured 1.2 to 1.9 in batches of 1, 8 and 32, in CPU time.

    The FFTs differ by rounding; ducc0 is a third faster for a single chain.
    """
    fft = " --fft ducc0" if noise != 0.55 else ""
    parts = (f"{EVERYWHERE} --budget 128,256,512,1024 --tune 256", f"{CHEAP} --budget 64 --tune 256", DEFT)
    return [f"navier-stokes --noise {noise} {part} --items 5 --seeds 3 --c-vjp 1.8{fft}" for part in parts]


COMPARISONS = {  # problem: {name of the table: arguments of `enkg compare`, several where a method cannot pay a budget}
    "linear-gaussian": {
        f"linear-gaussian-noise-{noise:g}": [f"linear-gaussian --noise {noise:g} {EVERYWHERE} --budget 512,2048 "
                                             "--items 10 --seeds 3 --tune 2048"] for noise in (0.05, 0.3, 1.0)},
    "navier-stokes": {f"navier-stokes-noise-{noise:g}": _navier_stokes(noise) for noise in (0.55, 0, 1.1)},
    "black-hole": {"black-hole": [f"black-hole {EVERYWHERE} --budget 384 --items 5 --seeds 3 --c-vjp 1.1 --tune 384"]},
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


def tabulate(out, command, files=None, tuned=()):
    """Tables of the records ``files`` of a folder (None: of all that are there), which may be those of many commands."""
    options = cli._parser().parse_args(["compare", *command.split()])
    saved = json.loads((out / "arena.json").read_text())
    records = [arena.read_record(out / file) for file in files or sorted(out.glob("runs/*.json"))]
    order = list(arena.METHODS)
    records.sort(key=lambda record: (order.index(record["method"]), record["budget"], record["item"], record["seed"]))
    items = cli.build_items(options, options.methods, range(max(record["item"] for record in records) + 1))
    metric = items[0].problem.metric
    known = arena.known_rows(items) | (ehtim_row() if options.problem == "black-hole" else {})
    return arena.tabulate(records, known, {**saved, "settings": {}, "tuned": list(tuned), "metric": metric}, out)


def page(name, costs=True):
    """Markdown of a table in results/: mean and median of the metric, best at the largest budget first.

    best start: of the seed that fits an item's data best; one particle: relative L2 of the particles, averaged; both and
    the number of rows at the largest budget. Without ``costs`` the short form of the README.
    """
    summary = json.loads((HERE / "results" / f"arena-{name}.json").read_text())
    metric, sign = summary["metric"], -1 if summary["metric"] in arena.LARGER_IS_BETTER else 1
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
             + " depth | denoiser, network | s | own % |" * costs, "|---" * (len(budgets) + 5 + 4 * costs) + "|"]
    for method in methods:
        row = last(method)
        cost = row["cost"]
        lines.append(f"| {method} | " + " | ".join(cell(rows.get((method, budget))) for budget in budgets)
                     + f" | {difference(paired(method))} | {number(row['best_start'])} | {row['rows']} | "
                       f"{number(row['mean'].get('relative_l2'))} |"
                     + costs * (f" {cost['depth']:,.0f} | {cost['denoiser'] + cost['network']:,.0f} | "
                                f"{cost['seconds']:.1f} | {cost['own_percent']:.0f} |"))
    for label, row in summary["known"].items():
        value = f"{row['mean'][metric]:.{digits}f}" if metric in row["mean"] else "-"
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        lines.append(f"| {label} |" + " |" * (len(budgets) - 1) + f" {value} | {difference(row)} | | | |"
                     + f" | | {seconds} | |" * costs)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=COMPARISONS)
    parser.add_argument("--only", metavar="NAME", help="one comparison, such as navier-stokes-noise-0")
    parser.add_argument("--tables", action="store_true", help="run nothing, tabulate what is there")
    parser.add_argument("--page", action="store_true", help="run nothing, print the tables in results/ as Markdown")
    options = parser.parse_args()
    results = HERE / "results"
    for problem in options.problems:
        for name, commands in COMPARISONS[problem].items():
            out, files, tuned = HERE.parent / "out-arena" / name, [], {}
            if options.only not in (None, name):
                continue
            if options.page:
                print(f"{page(name)}\n")
                continue
            for command in () if options.tables else commands:
                print(f"enkg compare {command}", flush=True)
                if cli.main(["compare", *command.split(), "--out", str(out), "--quiet"]):
                    return 1
                made = json.loads((out / "results.json").read_text())
                files += [file for row in made["table"] for file in row["files"]]
                tuned |= dict.fromkeys(made["tuned"])  # each sentence once
            if options.tables or len(commands) > 1 or name == "black-hole":
                tabulate(out, commands[0], files, tuned)
            print((out / "table.txt").read_text())
            for source, suffix in (("table.txt", "txt"), ("pareto.png", "png")):
                shutil.copy(out / source, results / f"arena-{name}.{suffix}")
            summary = json.loads((out / "results.json").read_text())
            (results / f"arena-{name}.json").write_text(json.dumps(summary) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
