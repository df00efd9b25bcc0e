"""Requests from parsed words: any object with the options of a command as attributes, and ``words``, all of them."""

from __future__ import annotations

from pathlib import Path

from ..run import folder
from . import compare, options, solve


def solve_request(given):
    """`solve.SolveRequest` of parsed words."""
    of_problem = {name for _, name, _ in options.of_problems({"observation", "noise", "truth", "seed"})}
    return solve.SolveRequest(
        command=tuple(given.words), out=out_of(given), figure=not given.no_figure, quiet=bool(given.quiet),
        resume=bool(given.resume), settings=chosen(given, options.METHOD_OPTIONS), options=chosen(given, of_problem),
        **{name: getattr(given, name) for name in (
            "problem", "forward", "observation", "noise", "truth", "method", "budget", "prior", "reference", "seed",
            "ensembles", "workers", "device", "dtype", "chunk", "timeout")})


def compare_request(given):
    """`compare.CompareRequest` of parsed words."""
    of_problem = {name for _, name, _ in options.of_problems({"item", "seed", "truth", "observation", "noise"})}
    return compare.CompareRequest(
        given.problem, given.methods, given.budget, out_of(given, "out-compare-"), chosen(given, of_problem),
        **{name: getattr(given, name) for name in ("seeds", "items", "tune", "c_vjp", "prior", "noise")})


def queue_request(given, parse):
    """`solve.SolveRequest` of the run in ``given.run``, a folder that knows its words; parse : words -> parsed words"""
    words = folder.command(given.run) or (given.words if given.command == "ask" else None)
    if words is None or words[0] != "ask":
        raise ValueError(f"run: got {given.run}, which holds no run to ask, expected one begun by enkg ask with the "
                         "options of solve")
    first = parse(words)
    return solve.SolveRequest(
        out=Path(given.run), command=tuple(words), figure=not first.no_figure,
        settings=chosen(first, options.METHOD_OPTIONS), **{name: getattr(first, name) for name in (
            "observation", "noise", "truth", "method", "budget", "prior", "reference", "seed", "device", "dtype",
            "chunk")})


def chosen(given, names):
    return {name: getattr(given, name) for name in sorted(names) if getattr(given, name, None) is not None}


def out_of(given, prefix="out-"):
    return Path(given.out or f"{prefix}{given.problem or 'own'}")


def kept(given):
    """What an interrupted command has left to go on with."""
    command = getattr(given, "command", None)
    if command == "compare":
        return "; what is done is kept: repeat the command to go on"
    if command == "solve" and folder.begun(out_of(given) / "run"):
        return "; what is done is kept: repeat the command with --resume to go on"
    return ""
