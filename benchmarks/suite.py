"""How well the defaults serve a problem that nobody tuned on: the table of RESULTS.md on a stranger's own problem.

    python benchmarks/suite.py choose        the half of `suite_cases` on which the defaults were chosen
    python benchmarks/suite.py judge         the other half, looked at only to judge them; writes results/suite.md
    python benchmarks/suite.py judge --show  the table of the runs that are there

Every method that needs neither adjoint nor training gets the same 1,504 forward calls, with its own default settings;
"default" is what `enkg solve` takes for an own problem. One line of results/suite_HALF.jsonl per run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import suite_cases

from enkg_ref import Gaussian, member_normals
from enkg_ref.methods import METHODS, Item
from enkg_ref.protocol import step
from enkg_ref.run import metrics

RESULTS = Path(__file__).parent / "results"
BUDGET = 1504
RUNS = {  # name of the row: (method, settings)
    "enkg": ("enkg", {}), "enkg, guidance 0.5, particle stop": ("enkg", {"guidance": 0.5, "stop": "particle"}),
    "enkg, tempered": ("enkg", {"step_rule": "tempered"}), "enkg-r": ("enkg-r", {}), "eki": ("eki", {}),
    "scg": ("scg", {}), "blade": ("blade", {}), "dpg": ("dpg", {}), "forward-gsg": ("forward-gsg", {}),
    "central-gsg": ("central-gsg", {}),
}


def item_of(case):
    """`Item` of a case, with what an own problem can offer: a prior with its VJP and a reference, no adjoint."""
    data, prior = case.problem.observation, case.prior
    vjp = getattr(getattr(prior, "__self__", None), "denoise_vjp", None)
    std = float(np.sqrt(np.mean(case.prior_variance)))
    return Item(case.problem, Gaussian(data.y, data.noise), prior, denoise_vjp=vjp, reference=case.reference(), std=std,
                sigma_range=(getattr(prior, "sigma_min", 0.002), getattr(prior, "sigma_max", 80.0)),
                dtype="float32" if case.problem.name == "learned" else "float64")


def one(case, item, row):
    """One run: errors, spread, misfit, seconds; a run that fails has the reason under "failed"."""
    name, settings = RUNS[row]
    record = {"case": case.name, "row": row}
    started = time.process_time()
    try:
        if METHODS[name].access - item.access:
            return {**record, "failed": "not applicable"}
        plan = METHODS[name].plan(item, BUDGET, 1.0, 0, settings)
        noise = member_normals(0, 0, plan.rows, case.problem.event_shape).astype(item.dtype)
        last = {}
        with np.errstate(all="ignore"):
            state, forward = plan.method.init(noise), plan.around(case.problem.forward)
            while not plan.method.done(state):
                state, info = step(plan.method, state, forward)
                last = {"kappa": info.kappa} if hasattr(info, "kappa") else {}
            x = np.asarray(state.x, dtype=float)
            misfit = item.likelihood.misfit(np.asarray(case.problem.forward(x)).reshape(len(x), -1))
        truth = case.problem.truth
        if not np.all(np.isfinite(x)):
            raise FloatingPointError("particles that are not finite")
        spread2, skill2 = metrics.spread_and_skill(x, truth) if len(x) > 1 else (math.nan, math.nan)
        return {**record, "error": float(np.linalg.norm(x.mean(axis=0) - truth)), "ssr": float(np.sqrt(spread2 / skill2)),
                "chi2": float(np.median(misfit)) / item.likelihood.size, "m": item.likelihood.size, **last,
                "seconds": time.process_time() - started}
    except (FloatingPointError, ValueError, np.linalg.LinAlgError) as error:
        return {**record, "failed": str(error)}


def run(part, only=None):
    """Make the runs of one half that are missing; return all records."""
    path = RESULTS / f"suite_{part}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(record["case"], record["row"]) for record in records}
    with open(path, "a") as file:
        for case in suite_cases.cases(part):
            if only is not None and not case.name.startswith(only):
                continue
            wanted = [row for row in RUNS if (case.name, row) not in known]
            if not wanted:
                continue
            item = item_of(case)
            prior_error = float(np.linalg.norm(case.prior_mean - case.problem.truth))
            for row in wanted:
                record = {**one(case, item, row), "prior_error": prior_error}
                file.write(json.dumps(record) + "\n")
                file.flush()
                records.append(record)
            shown = {r["row"]: round(r["error"] / prior_error, 2) for r in records if r["case"] == case.name and "error" in r}
            print(case.name, shown, flush=True)
    return records


def table(records):
    """Markdown: for every row, how its error stands to the prior mean's and to the best method's of the same case."""
    cases = sorted({record["case"] for record in records})
    best = {case: min((r["error"] for r in records if r["case"] == case and "error" in r), default=math.inf)
            for case in cases}
    lines = ["| method | runs | median error / prior mean's | worst | worse than the prior mean by over 5 % | median error / best "
             "method's | within 1.5 x of the best | spread-skill ratio, median |", "|---" * 8 + "|"]
    for row in RUNS:
        done = [r for r in records if r["row"] == row and "error" in r]
        if not done:
            continue
        to_prior = [r["error"] / r["prior_error"] for r in done]
        to_best = [r["error"] / best[r["case"]] for r in done]
        ssr = [r["ssr"] for r in done if math.isfinite(r["ssr"])]
        lines.append(f"| {row} | {len(done)} | {np.median(to_prior):.2f} | {max(to_prior):.2f} "
                     f"| {sum(e > 1.05 for e in to_prior)} | {np.median(to_best):.2f} "
                     f"| {np.mean([e <= 1.5 for e in to_best]):.0%} | {f'{np.median(ssr):.2f}' if ssr else '-'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("choose", "judge"))
    parser.add_argument("--only", metavar="PREFIX", help="only cases whose name begins so")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    path = RESULTS / f"suite_{options.part}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if options.show else run(
        options.part, options.only)
    words = table(records)
    print(words)
    if options.part == "judge" and options.only is None:
        (RESULTS / "suite.md").write_text(words + "\n")


if __name__ == "__main__":
    main()
