"""Do the tests notice? One-token mutations of the equations, each run against a fast subset of the tests.

    python benchmarks/mutation.py [--kind tokens | subscripts] [--count 64] [--minutes 60] [--only enkg_ref]

The mutants are generated from the syntax tree of the files below. Tokens: + <-> -, * <-> /, > <-> >=, < <-> <=, a
dropped minus, a doubled constant, a dropped transpose, an anomaly replaced by the field itself, sin <-> cos, a division
by J - 1 for one by J. Subscripts: an index or the bound of a slice off by one, away from zero; the other axis.
Default values, docstrings and error messages are not touched. ``--count`` mutants are taken at equal steps over the
list of all of the kind, so that nobody chooses. Each is applied in a temporary copy; the first failing test kills it.
Writes the kind's section of results/mutation.txt, which serves the next run: a mutant is not run again where the same
mutated file was killed by a test that still exists. Survivors always are. ``--fresh`` runs all.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# the nearest first: the first failing test ends a mutant
CORE_TESTS = ("schedule", "likelihood", "extensions", "paper_equations", "parity_switches", "edge_cases", "trust",
              "counts", "masked_update", "theory_linear", "invariances", "verify")


def core(*nearest):
    """The tests of the method, these first."""
    return (*nearest, *(name for name in CORE_TESTS if name not in nearest))


VLBI_TESTS = ("black_hole_forward", "black_hole_metrics", "black_hole_observation")
TARGETS = {  # file: (functions whose equations are mutated, or None for all; tests)
    "enkg_ref/ensemble.py": (None, core("paper_equations", "counts")),
    "enkg_ref/diffusion.py": (None, core("schedule")),
    "enkg_ref/likelihood.py": (None, core("likelihood")),
    "enkg_ref/enkg.py": (None, core("counts", "parity_switches", "paper_equations", "edge_cases")),
    "enkg_ref/extensions.py": (None, core("extensions", "edge_cases", "masked_update", "paper_equations")),
    "problems/closure_forward.py": (("fourier_table",), VLBI_TESTS),
    "problems/vlbi.py": (("thermal_sigma", "wrap", "closure_phases", "log_closure_amplitudes", "closure_sigmas",
                          "chi2_visibility", "chi2_amplitude", "chi2_phase", "chi2_log_amplitude", "sidereal_time",
                          "station_uv"), VLBI_TESTS),
}
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
         ast.Lt: ast.LtE, ast.LtE: ast.Lt}
NAMES = {"sin": "cos", "cos": "sin"}
DIVISORS = ("J", "r.shape[0]", "x.shape[0]", "X.shape[0]", "G.shape[0]")
RESULT = Path(__file__).parent / "results" / "mutation.txt"
# mutants that no test can kill, because the program is the same for every input; they count as survivors all the same
EQUIVALENT = {
    "Add -> Sub  in  w + 0.0 * norm": "adds 0 either way",
    "Gt -> GtE  in  squares > 0.0": "at squares = 0 both branches are 0",
    "Lt -> LtE  in  sigma < sigma_eps": "at sigma = sigma_eps the next condition, isclose, is false anyway",
}


def mutations(source, kind, functions=None):
    """(description, mutated source) of every mutation of ``kind`` of the function bodies of a file."""
    tree = ast.parse(source)
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]:
        if isinstance(function, ast.FunctionDef) and functions is not None and function.name not in functions:
            continue
        if isinstance(function, ast.Lambda) and functions is not None:
            continue
        body = function.body if isinstance(function.body, list) else [function.body]
        for statement in body:
            if not isinstance(statement, ast.FunctionDef):
                yield from _of_statement(tree, source, statement, KINDS[kind])


def _of_statement(tree, source, statement, changes):
    skipped = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments):  # messages and defaults are not equations
            skipped |= {id(n) for n in ast.walk(node)}
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warn"):
            skipped |= {id(n) for n in ast.walk(node.args[0])}
        if isinstance(node, ast.Subscript) and changes is _token_changes:
            skipped |= {id(n) for n in ast.walk(node.slice)}
    for node in ast.walk(statement):
        if id(node) in skipped or isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        for label, change in changes(node):
            saved = copy.copy(node.__dict__)
            kind = node.__class__
            before = ast.get_source_segment(source, node) or ast.unparse(node)
            change(node)
            text = ast.unparse(tree)
            node.__class__ = kind
            node.__dict__.clear()
            node.__dict__.update(saved)
            yield f"line {node.lineno}: {label}  in  {' '.join(before.split())[:70]}", text


def _subscript_changes(node):
    """An index or a bound one farther from zero, axis 0 <-> 1: what counts rows, levels and components wrongly."""
    if isinstance(node, ast.keyword) and node.arg == "axis" and _integer(node.value) is not None:
        other = 1 if _integer(node.value) == 0 else 0
        yield f"axis {_integer(node.value)} -> {other}", lambda n: setattr(n, "value", ast.Constant(other))
    if not isinstance(node, ast.Subscript):
        return
    entries = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for k, entry in enumerate(entries):
        for part in ("lower", "upper") if isinstance(entry, ast.Slice) else (None,):
            old = getattr(entry, part) if part else entry
            if old is None or isinstance(old, ast.Constant) and not isinstance(old.value, int):
                continue  # no bound, a new axis, an ellipsis, the key of a mapping

            def off_by_one(n, k=k, part=part, old=old):
                new = ast.BinOp(old, ast.Sub() if (_integer(old) or 0) < 0 else ast.Add(), ast.Constant(1))
                if part:
                    bounds = {"lower": entries[k].lower, "upper": entries[k].upper, "step": entries[k].step, part: new}
                    new = ast.Slice(**bounds)
                changed = [*entries[:k], new, *entries[k + 1:]]
                n.slice = ast.Tuple(changed, ast.Load()) if isinstance(node.slice, ast.Tuple) else changed[0]

            yield f"{part or 'index'} {ast.unparse(old)} off by one", off_by_one


def _integer(node):
    """The value of an integer literal, -1 included; None for anything else."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int) else None


def _token_changes(node):
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        swapped = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} -> {swapped.__name__}", lambda n: setattr(n, "op", swapped())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        swapped = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {swapped.__name__}", lambda n: setattr(n, "ops", [swapped()])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "minus dropped", lambda n: setattr(n, "op", ast.UAdd())
    if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value not in (0.0,):
        yield f"{node.value} doubled", lambda n: setattr(n, "value", 2 * n.value)
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).split(".")[-1]
        if name in NAMES and isinstance(node.func, ast.Attribute):
            yield f"{name} -> {NAMES[name]}", lambda n: setattr(
                n, "func", ast.Attribute(n.func.value, NAMES[name], ast.Load()))
        if name in ("matrix_transpose", "anomalies", "conj"):
            argument = node.args[0]

            def replace(n):
                n.__class__ = argument.__class__
                n.__dict__.update(copy.copy(argument.__dict__))

            yield f"{name} dropped", replace
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and ast.unparse(node.right) in DIVISORS:
        yield "divided by J - 1", lambda n: setattr(n, "right", ast.BinOp(n.right, ast.Sub(), ast.Constant(1)))


KINDS = {"tokens": _token_changes, "subscripts": _subscript_changes}


def run(folder, path, text, tests, seconds):
    """The first failing test, "time" if the tests do not end, or None: the mutant survives."""
    target = folder / path
    original = target.read_text(encoding="utf-8")
    target.write_text(text, encoding="utf-8")
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "--no-header",
             "-k", "not torch and not jax and not strict", *(f"tests/test_{name}.py" for name in tests)],
            cwd=folder, capture_output=True, text=True, timeout=seconds,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        return "time"
    finally:
        target.write_text(original, encoding="utf-8")
    if shown.returncode == 0:
        return None
    failed = [line for line in shown.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" ")[1].split(" - ")[0] if failed else "collection"


def digest(path, text):
    return hashlib.sha256(f"{path}\n{text}".encode()).hexdigest()[:10]


def killed_before():
    """{digest: killer} of the result file, for killers that still exist."""
    found = {}
    for line in RESULT.read_text(encoding="utf-8").splitlines() if RESULT.exists() else ():
        words = line.split()
        if line.startswith("killed ") and "::" in words[-1]:
            file, name = words[-1].split("::")[:2]
            if (ROOT / file).exists() and f"def {name.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"):
                found[words[1]] = words[-1]
    return found


def sections():
    """{kind: its part of the result file}."""
    parts = (RESULT.read_text(encoding="utf-8") if RESULT.exists() else "").split("== ")[1:]
    return {part.split(" ==\n", 1)[0]: part.split(" ==\n", 1)[1].strip() for part in parts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="tokens")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time and say how far it came")
    parser.add_argument("--list", action="store_true", help="show the mutants and run none")
    parser.add_argument("--fresh", action="store_true", help="run every mutant, whatever the result file says")
    parser.add_argument("--only", default="", help="files whose path begins so; what is known of the others is kept")
    options = parser.parse_args()
    every = [(path, label, text, tests) for path, (functions, tests) in TARGETS.items() if path.startswith(options.only)
             for label, text in mutations((ROOT / path).read_text(encoding="utf-8"), options.kind, functions)]
    every = [m for m in every if m[2] != ast.unparse(ast.parse((ROOT / m[0]).read_text(encoding="utf-8")))]
    count = min(options.count, len(every))
    chosen = [every[k * len(every) // count] for k in range(count)]
    # the order of a fixed shuffle: an interrupted run is a fair sample too
    chosen = [chosen[k * 37 % len(chosen)] for k in range(len(chosen))] if len(chosen) % 37 else chosen
    if options.list:
        print("\n".join(f"{path} {label}" for path, label, *_ in chosen), f"\n{len(every)} in all")
        return
    before = {} if options.fresh else killed_before()
    text = RESULT.read_text(encoding="utf-8") if RESULT.exists() else ""
    chosen.sort(key=lambda m: f"survived  {digest(m[0], m[2])}" not in text)  # so that no survivor is left out
    started, lines, survivors = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("enkg_ref", "problems", "onnx_priors", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "runs"))
        shutil.copy(ROOT / "setup.cfg", folder)
        wanted = {tuple(sorted(tests)): (path, tests) for path, _, text, tests in chosen
                  if digest(path, text) not in before}
        for path, tests in wanted.values():
            broken = run(folder, path, (folder / path).read_text(encoding="utf-8"), tests, 600)
            if broken:
                raise SystemExit(f"tests: {broken} fails without a mutation, expected a green subset")
        for path, label, text, tests in chosen:
            key = digest(path, text)
            if key not in before and time.monotonic() - started > 60 * options.minutes:
                continue
            killer = before.get(key) or run(folder, path, text, tests, 300)
            lines.append(f"{'survived' if killer is None else 'killed':8}  {key}  {path} {label}   {killer or ''}"
                         .rstrip())
            if killer is None:
                survivors.append((lines[-1], EQUIVALENT.get(label.split(": ", 1)[1])))
            if key not in before:
                print(lines[-1], flush=True)
    if options.only:
        kept = [line for line in sections().get(options.kind, "").splitlines()
                if line.startswith(("killed ", "survived ")) and not line.split()[2].startswith(options.only)]
        lines += dict.fromkeys(kept)
    killed, same = len(lines) - len(survivors), sum(reason is not None for _, reason in survivors)
    share = f"{100 * killed / max(len(lines), 1):.1f} %"
    head = [f"{killed} of {len(lines)} mutants killed ({share}); {same} of the {len(survivors)} survivors are "
            f"equivalent programs: {killed} of {len(lines) - same} that differ are killed",
            f"{len(every)} possible, {len(chosen)} chosen at equal steps, {len(lines)} run; "
            f"python benchmarks/mutation.py --kind {options.kind} --count {options.count}", ""]
    listed = [f"{line}\n          {'equivalent: ' + reason if reason else 'NOT EXPLAINED'}" for line, reason in survivors]
    RESULT.parent.mkdir(exist_ok=True)
    found = sections() | {
        options.kind: "\n".join([*head, "Survivors:", *(listed or ["none"]), "", "All:", *sorted(lines)])}
    RESULT.write_text("\n\n".join(f"== {kind} ==\n{found[kind]}" for kind in KINDS if kind in found) + "\n",
                      encoding="utf-8")
    print("\n".join(head[:2]))


if __name__ == "__main__":
    main()
