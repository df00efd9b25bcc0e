"""``ask`` and ``tell``: a run whose simulations somebody else makes, such as a batch queue; no process waits for them.

    ask(request)               the points of the next wave go to RUN/points.npy, (J, *event) in physical units
    tell(request, y)           their predictions, (J, m); the run goes on by one wave

The last wave asks for the predictions of the result itself; telling them writes the files that ``solve`` writes. The
result is that of ``solve`` with the same request, bit for bit. ``request.out`` is RUN, ``request.forward`` is None.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np

from ..run import folder, members, runner
from ..run.ledger import Ledger
from .solve import Setup, finished, write

POINTS = "points.npy"


def ask(request):
    """Write the points of the next wave.  -> (path of points.npy, updates done, updates in all)

    Raises ValueError for bad input, as ``solve`` does, and for a run with several ensembles.
    """
    points, done, total = _turn(request, None)
    path = Path(request.out) / POINTS
    np.save(path, points)
    return path, done, total


def tell(request, predictions):
    """Go on by one wave with ``predictions``, of the rows of points.npy.  -> `solve.Solution` at the end, else None

    Rows that are not finite are failed members. Raises ValueError where nothing was asked, or for another shape.
    """
    path = Path(request.out) / POINTS
    if not path.exists():
        raise ValueError(f"run: got {request.out}, which has asked nothing, expected enkg ask {request.out} before")
    found = _turn(request, predictions)
    path.unlink()
    return found


def _turn(request, predictions):
    """One wave: (points, updates done, updates in all) without predictions, else a Solution or None."""
    if (request.ensembles or 1) != 1:
        raise ValueError(f"ensembles: got {request.ensembles} to be asked, expected 1: give each a folder and a seed")
    started, told = time.perf_counter(), members.Told(predictions)
    request = dataclasses.replace(request, forward=told, ensembles=1, workers=1, resume=True)
    with contextlib.closing(Setup(request)) as setup, folder.claimed(request.out, True, 1, request.command) as work:
        ledger = Ledger()
        run = setup.run(0, ledger)
        book = runner.Book(work, 0, run.about, ledger)
        place, history = book.opened(run)
        book.save(place)
        try:
            if run.plan.method.done(place.state):
                outcome = runner.Outcome(np.asarray(place.state.x), ledger.as_dict(), history)
                solution = finished(setup, [outcome], started)
                write(solution, Path(request.out), work, request.figure)
                return solution
            place, line = next(runner.advance(run, place, ledger))
        except members.Asked as asked:
            return asked.points, place.updates, run.plan.waves
        book.enter(runner.plain({"ensemble": 0, **line}), place, run.plan.method.done(place.state))
        book.save(place)
    return None
