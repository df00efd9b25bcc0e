"""Inverse problems as plain array functions. Knows nothing of enkg_ref; how to add a problem: problems/README.md."""

from __future__ import annotations

import difflib
import importlib

PROBLEMS = {
    "m87": "problems.black_hole:M87",
    "black-hole": "problems.black_hole:BLACK_HOLE",
    "navier-stokes": "problems.navier_stokes:ENTRY",
    "inpainting": "problems.imaging:INPAINTING",
    "super-resolution": "problems.imaging:SUPER_RESOLUTION",
    "deblurring": "problems.imaging:DEBLURRING",
    "phase-retrieval": "problems.imaging:PHASE_RETRIEVAL",
    "kolmogorov": "problems.kolmogorov:ENTRY",
    "lorenz96": "problems.lorenz96:ENTRY",
    "linear-gaussian": "problems.linear_gaussian:ENTRY",
    "exact-toys": "problems.exact_toys:ENTRY",
}
"""The table: name -> "module:entry". The module is loaded when the problem is asked for."""

SHARED = ("noise", "item", "seed", "observation", "truth")
"""Options with one meaning for every problem that has them; all others belong to their problem alone."""


def entry(name):
    """The `problem.Entry` of this name; ValueError with the nearest name for one that is not in the table."""
    if name not in PROBLEMS:
        close = difflib.get_close_matches(str(name), PROBLEMS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"problem: got {name!r}, expected one of {', '.join(PROBLEMS)}{hint}")
    module, _, attribute = PROBLEMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def options():
    """{option name: [(problem name, Option), ...]} over the whole table; loads every problem."""
    found = {}
    for name in PROBLEMS:
        for option in entry(name).options:
            found.setdefault(option.name, []).append((name, option))
    return found


def help_of(name):
    """Line of help for an option that several problems may have, with their defaults."""
    words = {}
    for problem, option in options()[name]:
        default = "" if option.default is None else f"; default {option.default}"
        words.setdefault(option.help + default, []).append(problem)
    return next(iter(words)) if len(words) == 1 else ". ".join(
        f"{', '.join(having)}: {line}" for line, having in words.items())


def build(name, **given):
    """The `problem.Problem` of this name. Options that are None count as not given; texts are read by their kind.

    Raises ValueError, "OPTION: got ..., expected ...", for an option that the problem does not use, or not with data of
    this origin, and for whatever the problem itself refuses.
    """
    it, given = entry(name), {key: value for key, value in given.items() if value is not None}
    known = {option.name: option for option in it.options}
    for key in sorted(given):
        reason = _unused(known, key, given)
        if reason is not None:
            raise ValueError(f"{key}: got {given[key]}, expected nothing: problem {name} does not use it{reason}")
    return it.build(**{key: known[key].read(value) for key, value in given.items()})


def _unused(known, key, given):
    """Why the option ``key`` would be ignored without a word; None where it would not be."""
    if key not in known:
        return ""
    measured = "observation" in given
    if "observation" not in known or known[key].data in ("", "measured" if measured else "simulated"):
        return None
    return " with --observation" if measured else " without --observation"


def arguments(name, **given):
    """{option: value} of a simulated problem beside the shared ones, defaults filled in: what a comparison is of."""
    return {option.name: option.default if given.get(option.name) is None else option.read(given[option.name])
            for option in entry(name).options if option.name not in SHARED and option.data != "measured"}
