"""The Kolmogorov flow of the published comparison (Takao et al. 2026): our methods with our prior on our fields.

    python benchmarks/kolmogorov.py --time 1 5 --noise 0.1 1.0 --items 5 --methods enkg-r,enkg,eki --budget 2496
    python benchmarks/kolmogorov.py --table                             the table from the kept runs, nothing is run

Every run is one line of benchmarks/results/kolmogorov.jsonl as soon as it ends; a repeated command adds the missing. The
table, benchmarks/results/kolmogorov.md, has the published numbers beside ours: the same equation and recipe, but their
prior and fields are not public, so that only rows of one block are of the same fields. Settings by rule, seed 0.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from enkg_ref.commands.compare import CompareRequest, items_of
from enkg_ref.compare.run import run
from problems import kolmogorov

RESULTS = Path(__file__).parent / "results"
RUNS, PAGE = RESULTS / "kolmogorov.jsonl", RESULTS / "kolmogorov.md"
REGIMES = ((1, 0.1), (1, 1.0), (5, 0.1), (5, 1.0))  # time units, noise in standard deviations of the fields
C_VJP = 2.0  # a gradient beside its value, in forward calls: forward again, then back
PUBLISHED = {  # relative L2 of the mean / spread-skill ratio by regime, and forward calls
    "EnKG": ("0.129 / 0.08", "0.617 / 0.07", "0.418 / 0.10", "0.812 / 0.08", ""),
    "Blade": ("0.069 / 1.80", "0.296 / 0.98", "0.421 / 2.31", "0.442 / 1.33", "250,000"),
    "DW-EKCN": ("0.086 / 1.40", "0.220 / 1.08", "0.247 / 1.05", "0.435 / 0.95", "25,000"),
    "MMPS, gradient of a surrogate": ("0.064 / 0.98", "0.254 / 0.93", "0.560 / 1.57", "0.523 / 1.46", ""),
}
FIGURES = (("l2", "relative L2 of the mean"), ("crps", "fair CRPS, in standard deviations of the fields"),
           ("ssr", "spread-skill ratio"), ("chi2", "chi2 per datum of the particles"))


def kept():
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def measure(method, budget, at, noise, item, prior):
    """One run of a method in one regime on one held-out field: its record."""
    request = CompareRequest("kolmogorov", (method,), (budget,), out=None, prior=prior,
                             options={"time": at, "noise": noise, "fft": "ducc0"})
    (it,), start = items_of(request, [item]), time.process_time()
    found = run(it, method, budget, 0, C_VJP)
    scores = found["scores"]
    record = {"method": method, "budget": budget, "time": at, "noise": noise, "item": item, "status": found["status"],
              "particles": found["rows"], "calls": found["cost"]["forward_equivalents"],
              "own_percent": found["cost"]["own_percent"], "cpu_seconds": time.process_time() - start}
    if scores:
        record |= {"l2": scores["relative_l2_of_mean"], "chi2": scores["chi2"]}
    if "crps" in scores:  # of more than one row
        record |= {"crps": scores["crps"] / float(kolmogorov.stored("deviation")), "spread2": scores["spread2"],
                   "skill2": scores["skill2"]}
    return record


def cell(rows, name):
    """Mean over the fields that have it, None where none has; the spread-skill ratio is pooled before the root."""
    rows = [r for r in rows if r["status"] == "done" and ("spread2" if name == "ssr" else name) in r]
    if not rows:
        return None
    if name == "ssr":
        return (sum(r["spread2"] for r in rows) / sum(r["skill2"] for r in rows)) ** 0.5
    return float(np.mean([r[name] for r in rows]))


def table(rows):
    """Markdown: published figures, then ours by figure of merit; an error of EnKG-R above the best published is bold."""
    head = " | ".join(f"T = {at}, noise {noise:g}" for at, noise in REGIMES)
    lines = ["Published, J = 100, five fields: relative L2 of the mean / spread-skill ratio.\n",
             f"| method | {head} | forward calls |", "|---" * 6 + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in PUBLISHED.items()]
    best = [min(float(cells[k].split(" / ")[0]) for cells in PUBLISHED.values()) for k in range(4)]
    lines += ["\nOurs, with our prior on our held-out fields; in brackets the number of fields. Bold: worse than the best "
              "published row.\n", f"| method, calls | figure | {head} | CPU s |", "|---" * 7 + "|"]
    for method, budget in sorted({(r["method"], r["budget"]) for r in rows}, key=lambda of: (of[0] != "enkg-r", of)):
        own = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
        for name, words in FIGURES:
            cells = []
            for k, regime in enumerate(REGIMES):
                of = [r for r in own if (r["time"], r["noise"]) == regime]
                value = cell(of, name)
                text = "-" if value is None else f"{value:.3f}" + (f" ({len(of)})" if name == "l2" else "")
                lost = name == "l2" and method == "enkg-r" and value is not None and value > best[k]
                cells.append(f"**{text}**" if lost else text)
            seconds = f"{np.mean([r['cpu_seconds'] for r in own]):.0f}" if name == "l2" else ""
            lines.append(f"| {method}, {budget:,} | {words} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--items", type=int, default=5)
    parser.add_argument("--methods", default="enkg-r,enkg,eki")
    parser.add_argument("--budget", type=int, default=2496)
    parser.add_argument("--prior", help="another prior file than the shipped one")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    jobs = [] if options.table else [
        (method, options.budget, at, noise, item) for item in range(options.items) for at in options.time
        for noise in options.noise for method in options.methods.split(",")]
    for job in jobs:
        if job not in {tuple(r[key] for key in ("method", "budget", "time", "noise", "item")) for r in kept()}:
            record = measure(*job, options.prior)
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    PAGE.write_text(table(kept()), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
