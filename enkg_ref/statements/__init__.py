"""What the update rule and the convergence statements are worth, measured: the lines of ``enkg verify``.

Each line is one statement of THEORY.md, or of enkg_r/README.md for names such as (E4), measured by one function, which
the tests call too. It runs the library on the chosen array back-end and compares with an oracle on the host: plain
loops, closed forms, exact posteriors.

What is expected is a bound that the mathematics gives, or about ten times the rounding error found in float64; where
the claim is about an average over random problems, ``measured`` is the end of its 95 % confidence interval that the
claim must hold for. Every back-end sees the same problems; the random instances of one step are a twentieth where each
call is slow.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from . import enkg_r, invariance, limit, linear, loop, posterior, proposition, update
from .line import STATEMENTS, Library, Record, measured

__all__ = ["STATEMENTS", "Library", "Record", "measured", "run", "statements"]
SUBJECTS = (update, limit, linear, proposition, posterior, loop, invariance, enkg_r)
STATEMENTS.sort(key=lambda line: [s.__name__ for s in SUBJECTS].index(line.measure.__module__))


def statements(backend="numpy"):
    """Generator of `Record`, one per statement, measured as it is asked for.

    Raises ValueError for an unknown back-end, ImportError for one that is not installed.
    """
    library = Library(backend)
    return (measured(library, line) for line in STATEMENTS)


def run(json_path=None, backend="numpy"):
    """Print every line; 0 if none fails, 1 otherwise. ``json_path``: the same for machines."""
    lines = statements(backend)
    print(f"{'verdict':8} {'statement':14} {'claim':94} {'measured':>10}  {'expected':18} {'instances':>9}")
    records = []
    for r in lines:
        print(f"{r.verdict:8} {r.name:14} {r.claim:94} {r.measured:10.4g}  {_expected(r):18} {r.instances:9d}",
              flush=True)
        records.append(r)
    count = {verdict: sum(r.verdict == verdict for r in records) for verdict in ("pass", "finding", "fail")}
    print(f"{count['pass']} pass, {count['finding']} findings, {count['fail']} fail on {backend}")
    if json_path is not None:
        plain = [{k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(r).items()}
                 for r in records]
        Path(json_path).write_text(json.dumps({"backend": backend, "statements": plain}, indent=1), encoding="utf-8")
    return 1 if count["fail"] else 0


def _expected(r):
    if r.low == -math.inf:
        return f"<= {r.high:.4g}"
    if r.high == math.inf:
        return f">= {r.low:.4g}"
    middle, half = 0.5 * (r.low + r.high), 0.5 * (r.high - r.low)
    return f"{middle:.5g} +- {half:.0e}" if half < 1e-2 * middle else f"{r.low:.4g} .. {r.high:.4g}"
