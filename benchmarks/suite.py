"""How well the defaults serve a problem that nobody tuned on: two tables of RESULTS.md.

    python benchmarks/suite.py choose        the half of `suite_cases` on which the defaults were chosen
    python benchmarks/suite.py judge         the other half, looked at only to judge them: results/suite.md
    python benchmarks/suite.py rod           heat flow in a rod, twelve sensors, six truths: results/suite-rod.md
    python benchmarks/suite.py judge --show  the table of the runs that are there

Every method that needs neither adjoint nor training gets the same 1,504 forward calls through `enkg solve`'s own
function, with its default settings for a problem without settings of its own. "default" is what `enkg solve` chooses
when no method is named. One line of results/suite_PART.jsonl per run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import suite_cases

from enkg_ref.commands.solve import SolveRequest, solve

RESULTS = Path(__file__).parent / "results"
BUDGET = 1504
RUNS = {  # name of the row: fields of the request
    "default": {},
    "enkg": {"method": "enkg"},
    "enkg, guidance 2": {"method": "enkg", "settings": {"guidance": 2.0, "stop": "none"}},
    "enkg, --paper, 8,960 calls": {"method": "enkg", "paper": True, "budget": None},
    "enkg, tempered step": {"method": "enkg", "settings": {"step_rule": "tempered"}},
    **{name: {"method": name} for name in ("eki", "scg", "blade", "dpg", "forward-gsg", "central-gsg")},
}


def one(case, row):
    """One run: error, spread, misfit, verdict, seconds; a run that fails has the reason under "failed"."""
    record, started = {"case": case.name, "row": row}, time.process_time()
    fields = RUNS[row]
    reference = case.reference if fields.get("method", "enkg-r") == "enkg-r" else None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = solve(SolveRequest(case.problem, prior=case.prior, reference=reference, quiet=True,
                                       dtype="float32" if case.problem.name == "learned" else "float64",
                                       **{"budget": BUDGET, **fields}))
    except (FloatingPointError, ValueError, np.linalg.LinAlgError) as error:
        return {**record, "failed": str(error)}
    summary = found.summary
    if not np.all(np.isfinite(found.mean)):
        return {**record, "failed": "particles that are not finite"}
    return {**record, "method": summary["method"], "error": float(np.linalg.norm(found.mean - case.problem.truth)),
            "ssr": summary.get("calibration", {}).get("ssr"), "verdict": summary["verdict"]["kind"],
            "why": summary["verdict"]["why"], "chi2": summary["metrics"].get("chi2_median_particle"),
            "calls": summary["ledger"]["fwd_total"], "seconds": time.process_time() - started}


def run(part, only=None):
    """Make the runs of one part that are missing; return all records."""
    path = RESULTS / f"suite_{part}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(record["case"], record["row"]) for record in records}
    with open(path, "a") as file:
        for case in suite_cases.cases(part):
            if only is not None and not case.name.startswith(only):
                continue
            prior_error = float(np.linalg.norm(case.prior_mean - case.problem.truth))
            norm = float(np.linalg.norm(case.problem.truth))
            for row in RUNS:
                if (case.name, row) in known:
                    continue
                record = {**one(case, row), "prior_error": prior_error, "norm": norm}
                file.write(json.dumps(record) + "\n")
                file.flush()
                records.append(record)
            print(case.name, {r["row"]: round(r["error"] / prior_error, 2) for r in records
                              if r["case"] == case.name and "error" in r}, flush=True)
    return records


def best_errors(records):
    """{case: the smallest error of any method}"""
    best = {}
    for r in records:
        if "error" in r:
            best[r["case"]] = min(best.get(r["case"], math.inf), r["error"])
    return best


def is_bad(record, best):
    """An answer that wants a warning: error above 1.5 times the best method's, or spread off by more than 2 times."""
    ssr = record["ssr"]
    return record["error"] > 1.5 * best[record["case"]] or ssr is not None and not 0.5 <= ssr <= 2.0


def table(records):
    """Markdown: for every row, how its error stands to the prior mean's and to the best method's of the same case."""
    best = best_errors(records)
    lines = ["| method | runs | error / prior mean's: median (worst) | above 1.05 | error / best method's: median "
             "| at most 1.5 | spread-skill ratio: median | bad answers, of these warned of | good answers, of these "
             "warned of |", "|---" * 9 + "|"]
    for row in RUNS:
        done = [r for r in records if r["row"] == row and "error" in r]
        if not done:
            continue
        to_prior = [r["error"] / r["prior_error"] for r in done]
        to_best = [r["error"] / best[r["case"]] for r in done]
        ssr = [r["ssr"] for r in done if r["ssr"] is not None]
        bad, good = ([r for r in done if is_bad(r, best) is wanted] for wanted in (True, False))
        warned = [sum(r["verdict"] != "fitted, spread believable" for r in some) for some in (bad, good)]
        lines.append(f"| {row} | {len(done)} | {np.median(to_prior):.2f} ({max(to_prior):.2f}) "
                     f"| {sum(e > 1.05 for e in to_prior)} | {np.median(to_best):.2f} "
                     f"| {np.mean([e <= 1.5 for e in to_best]):.0%} | {f'{np.median(ssr):.2f}' if ssr else '-'} "
                     f"| {len(bad)}, {warned[0]} | {len(good)}, {warned[1]} |")
    return "\n".join(lines)


def rod_table(records):
    """Markdown: relative L2 error of the mean for every truth."""
    cases = list(dict.fromkeys(record["case"] for record in records))
    lines = ["| truth | prior mean | " + " | ".join(RUNS) + " |", "|---" * (len(RUNS) + 2) + "|"]
    for number, case in enumerate(cases):
        rows = {r["row"]: r for r in records if r["case"] == case}
        first = next(iter(rows.values()))
        cells = [f"{rows[row]['error'] / first['norm']:.2f}" + ("" if rows[row]["verdict"].startswith("fitted, spread b")
                 else f" ({rows[row]['verdict']})") if "error" in rows[row] else "failed" for row in RUNS]
        lines.append(f"| {number} | {first['prior_error'] / first['norm']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(suite_cases.PARTS))
    parser.add_argument("--only", metavar="PREFIX", help="only cases whose name begins so")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    path = RESULTS / f"suite_{options.part}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if options.show else run(
        options.part, options.only)
    words = rod_table(records) if options.part == "rod" else table(records)
    print(words)
    name = {"judge": "suite.md", "rod": "suite-rod.md", "choose": "suite-choose.md"}[options.part]
    if options.only is None:
        (RESULTS / name).write_text(words + "\n")


if __name__ == "__main__":
    main()
