"""The runs of a comparison: every method at every budget on every item with every seed, and the tuning before them.

A budget is a number of forward equivalents, F = forward calls + c_vjp x forward VJPs. c_vjp is what a gradient costs
beside its value, which is among the forward calls: see `vjp_cost`. Each method spends the budget by its own ``plan``;
a run that diverges stays in the table as a failure.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._xp import member_normals, to_numpy
from ..methods import METHODS, Item, check
from ..protocol import solve
from ..run import metrics
from ..run.folder import alone
from ..run.ledger import Ledger
from ..run.report import write_json
from . import folder
from .statistics import known_rows
from .tables import tabulate


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where.

    items : of one problem, with a truth each;  methods : names of ``METHODS``;  budgets : forward equivalents
    seeds : number of seeds;  out : folder
    settings : {method: {setting: value}}, tuned on other items
    c_vjp : what a gradient costs beside its value, in forward calls; None: measured on the first item. The folder
        keeps it
    about : JSON-able, what the comparison is of; a folder of another comparison is refused
    tuned : sentences on how ``settings`` were found, for the foot of the table
    """

    items: Sequence[Item]
    methods: Sequence[str]
    budgets: Sequence[int]
    seeds: int
    out: Any
    settings: Mapping[str, Mapping] = field(default_factory=dict)
    c_vjp: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    tuned: Sequence[str] = ()


# ------------------------------------------------------------------------------------------------------------- one run
def run(item, name, budget, seed, c_vjp, settings=None):
    """One run: {"status", "scores", "ledger", "cost", "config", "rows", ...}; a failure is a result too."""
    ledger = Ledger()
    with ledger.clock("setup"):
        counted = item.counted(ledger)
        plan = METHODS[name].plan(counted, budget, c_vjp, seed, settings or {})
        noise = member_normals(seed, 0, plan.rows, item.problem.event_shape).astype(item.dtype)
    record = {"method": name, "budget": budget, "seed": seed, "rows": plan.rows, "config": dict(plan.settings),
              "data": item.digest(), "status": "done", "scores": {}}
    started = time.perf_counter()
    try:
        with np.errstate(all="ignore"), ledger.clock("update"):
            state = solve(plan.method, plan.around(counted.forward), noise)
        wall = time.perf_counter() - started
        with ledger.clock("record"):
            record["scores"] = score(item, to_numpy(state.x), ledger)
    except (FloatingPointError, np.linalg.LinAlgError) as error:
        wall = time.perf_counter() - started
        record |= {"status": "failed", "why": str(error)}
    if "correction" in METHODS[name].access:
        ledger.counts["offline_fwd"] = getattr(item.correction, "offline_forward", 0)
    counts = ledger.as_dict()
    return {**record, "ledger": counts, "cost": {**_cost(counts, c_vjp), "seconds": wall}}


def _cost(counts, c_vjp):
    parts = counts["wall"]
    method_wall = parts["total"] - parts["record"]  # without the scores
    return {"forward_equivalents": counts["fwd_total"] + c_vjp * counts["fwd_vjp_total"],
            "depth": counts["fwd_seq"] + c_vjp * counts["fwd_vjp_seq"],
            "denoiser": counts["den_total"] + counts["den_vjp_total"], "network": counts["net_total"],
            "offline": counts["offline_fwd"],
            "own_percent": 100.0 * (1.0 - (parts["forward"] + parts["denoiser"]) / method_wall)}


def beside_truth(problem, physical):
    """An ensemble in physical units and the truth, to be compared: ``pool`` undoes what the data do not determine."""
    known = np.concatenate([np.asarray(problem.truth, dtype=np.float64)[None], physical])
    if problem.pool is not None:  # the data do not see where it stands: every particle moves to where the truth is
        known = problem.pool(known, np.arange(len(known)))
    return known[1:], known[0]


def score(item, x, ledger=None):
    """Figures of merit of an ensemble in prior units. Its predictions are diagnostic forward calls."""
    problem = item.problem
    physical = problem.scale * x.astype(np.float64) + problem.shift
    if not np.all(np.isfinite(physical)) or np.abs(physical).max() > 1e12:
        raise FloatingPointError("answer: got particles that are not finite or beyond 1e12, expected finite numbers")
    seen, truth = beside_truth(problem, physical)
    scores = metrics.score_ensemble(seen, truth)
    g = to_numpy(item.forward(x)).reshape(len(x), -1).astype(np.float64)
    if ledger is not None:
        ledger.counts["diag_fwd"] += len(x)
    finite = np.all(np.isfinite(g), axis=1)
    chi2 = metrics.chi2(item.likelihood, g[finite]) if finite.any() else np.array([math.inf])
    scores["chi2"] = float(np.mean(chi2))
    if finite.any():  # the chain that fits best: chosen by the data, never by the truth
        best = np.flatnonzero(finite)[chi2.argmin()]
        scores["relative_l2_of_best_fit"] = metrics.relative_l2_of_mean(seen[best:best + 1], truth)
    if problem.score is not None:
        scores |= {key: value for key, value in problem.score(physical).items() if isinstance(value, (int, float))}
    return {key: float(value) for key, value in scores.items()}


def vjp_cost(item, rows=32, seconds=2.0):
    """c_vjp: what a gradient costs beside its value, in forward calls; 0 without an adjoint.

    t_vjp/t_forward - 1, for the VJPs of our problems march forward once more before they turn back, and the value at
    the same point is already among the forward calls. At least 1: no reverse sweep is cheaper than its forward one, and
    the VJP of a linear map has no value to compute anew. Both are timed in turn for ``seconds``, three times at least,
    and the fastest counts: other work on the machine only slows down.
    """
    if item.forward_vjp is None:
        return 0.0
    x = np.zeros((rows, *item.problem.event_shape), dtype=item.dtype)
    if item.problem.truth is not None:
        truth = np.asarray(item.problem.truth)
        x = x + ((truth - item.problem.shift) / item.problem.scale).astype(item.dtype)
    v = np.ones((rows, item.likelihood.size), dtype=item.dtype)

    def clock(call, *args):
        start = time.perf_counter()
        call(*args)
        return time.perf_counter() - start

    pairs, end = [], time.perf_counter() + seconds
    while len(pairs) < 4 or time.perf_counter() < end:
        pairs.append((clock(item.forward_vjp, x, v), clock(item.forward, x)))
    vjp, forward = (min(times) for times in zip(*pairs[1:]))  # the first calls may compile or make plans
    return max(vjp / forward - 1.0, 1.0)


# --------------------------------------------------------------------------------------------------------- all of them
def begin(comparison):
    """The same comparison with c_vjp settled, its folder opened; whatever can be refused is refused.

    Nothing is computed but c_vjp. Raises ValueError for the folder of another comparison, another c_vjp, and whatever
    `methods.check` finds.
    """
    c = comparison
    c_vjp, known = folder.belongs(c.out, _identity(c), c.c_vjp)
    if c_vjp is None:
        c_vjp = round(vjp_cost(c.items[0]), 2)
    check(list(c.methods), c.items[0], c.budgets, c_vjp, c.settings)
    folder.start(c.out, _identity(c), c_vjp, known)
    return dataclasses.replace(c, c_vjp=c_vjp)


def compare(comparison, progress=None):
    """Make the runs that are missing in the folder, and write the tables. Any command for the same comparison goes on.

    progress : called with (record, runs done, runs in all)

    Returns the summary that is also written to ``results.json``, beside table.txt, table.csv, pareto.png (from two rows
    on) and one record per run in ``runs``; see `tables.tabulate`. Rows of earlier commands in the same folder stay in
    it. Raises ValueError where another process is at work in the folder.
    """
    c = begin(comparison)
    out, wanted = Path(c.out), [(k, name, budget, seed) for k in range(len(c.items)) for seed in range(c.seeds)
                                for name in c.methods for budget in c.budgets]
    records = []
    with alone(out / "arena.lock", out):
        for k, name, budget, seed in wanted:
            path = folder.record_path(out, name, budget, k, seed, _used(c, k, name))
            if not path.exists():
                write_json(path, {"item": k, **run(c.items[k], name, budget, seed, c.c_vjp, c.settings.get(name))})
            records.append(folder.read_record(path))
            if progress is not None:
                progress(records[-1], len(records), len(wanted))
        problem = c.items[0].problem
        summary = {"identity": _identity(c), "c_vjp": c.c_vjp, "settings": dict(c.settings), "tuned": list(c.tuned),
                   "metric": problem.metric, "larger_is_better": problem.larger_is_better}
        known, records, summary = folder.with_earlier(out, known_rows(c.items), records, summary)
        return tabulate(records, known, summary, out)


def _identity(c):
    return {"problem": c.items[0].problem.name, "data": [item.digest() for item in c.items], **c.about}


def _used(c, k, name):
    """What makes a run another run: its settings, and the network, which may be trained anew."""
    used = dict(c.settings.get(name, {}))
    if "correction" in METHODS[name].access:
        used["correction"] = getattr(c.items[k].correction, "sha256", None)
    return used


def tune(comparison, name, budget, candidates=None):
    """The candidate settings with the best median metric over items that no table uses, and all medians.

    comparison : its items, out, c_vjp and about are those of the tuning
    candidates : of {setting: value}, those of the method if None; one that cannot pay ``budget`` is left out, a failure
        counts as worst

    Every candidate is one `compare` in a folder of its own under ``out``: a tuning that was killed goes on, and the
    folders of another tuning are refused. Returns (settings, trials).
    """
    trials, problem = [], comparison.items[0].problem
    c_vjp = round(vjp_cost(comparison.items[0]), 2) if comparison.c_vjp is None else comparison.c_vjp
    for settings in candidates or METHODS[name].candidates:
        one = dataclasses.replace(comparison, methods=[name], budgets=[budget], seeds=1, settings={name: settings},
                                  c_vjp=c_vjp, out=Path(comparison.out) / name / folder.digest(settings))
        try:
            check([name], one.items[0], [budget], c_vjp, one.settings)
        except ValueError as error:
            trials.append({"settings": settings, "median": None, "failed": str(error), "forward_equivalents": 0.0})
            continue
        row = next(row for row in compare(one)["table"] if row["budget"] == budget)
        trials.append({"settings": settings, "median": row["median"].get(problem.metric), "failed": row["failed"],
                       "forward_equivalents": row["cost"]["forward_equivalents"]})

    def rank(trial):
        if trial["median"] is None or trial["failed"]:
            return math.inf
        return -trial["median"] if problem.larger_is_better else trial["median"]

    return min(trials, key=rank)["settings"], trials
