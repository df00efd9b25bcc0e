"""Sizes that cannot be: refused by the memory and the calls they would need, before they are tried."""

from __future__ import annotations

import math
import os

MOST_CALLS = 10**11  # forward calls; of a simulator that takes a microsecond, more than a day
MOST_STEPS = 10**6  # levels of noise
COPIES = 8  # arrays of the size of an ensemble that a run holds at a time, float64


def refuse_impossible(settings, budget, rows=None, event_shape=()):
    """ValueError that names the argument and what it needs.

    settings : of a method, {name: value};  rows : particles of one ensemble, where they are known
    """
    for name in ("steps", "iterations", "levels"):
        if _number(settings.get(name)) > MOST_STEPS:
            raise ValueError(f"{name}: got {settings[name]}, expected at most {MOST_STEPS}")
    if _number(budget) > MOST_CALLS:
        raise ValueError(f"budget: got {budget} forward calls, expected at most {MOST_CALLS}")
    if rows is None:
        return
    particles = rows
    calls = particles * max(_number(settings.get("steps")), 1) * max(_number(settings.get("updates")), 1)
    memory, needed = installed(), particles * math.prod(event_shape) * 8 * COPIES
    if needed > memory:
        raise ValueError(f"particles: got {particles:.0f} of {math.prod(event_shape)} numbers, which need "
                         f"{needed / 1e9:.3g} GB of memory, expected at most the {memory / 1e9:.3g} GB of this machine")
    if calls > MOST_CALLS:
        raise ValueError(f"particles: got {particles:.0f} with {settings.get('steps')} steps, which need {calls:.2g} "
                         f"forward calls, expected at most {MOST_CALLS:.0g}")


def installed():
    """Bytes of memory of this machine; unknown: infinite."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _number(value):
    return value if isinstance(value, (int, float)) else 0
