"""Methods against each other at equal cost: the same truths, data, prior and forward model, the same forward calls.

``run.py`` makes the runs, ``folder.py`` keeps their records, ``statistics.py`` condenses them to rows with intervals,
``tables.py`` and ``plots.py`` show the rows.
"""

from .run import Comparison, begin, compare, tune

__all__ = ["Comparison", "begin", "compare", "tune"]
