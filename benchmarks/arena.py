"""The comparisons of the README: ``enkg compare`` with the numbers of items, seeds and budgets that we could afford.

    python benchmarks/arena.py linear-gaussian navier-stokes black-hole          from the root of the repository

Tables, numbers and plots go to benchmarks/results/arena-NAME.txt, .json and .png, run records to out-arena/ (not kept in
the repository). The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from enkg_ref import arena, cli

HERE = Path(__file__).resolve().parent
EVERY = ",".join(name for name in arena.METHODS if name != "deft")
FEW = "enkg,enkg-r,eki,scg,dps,mmps,deft"
COMPARISONS = {  # name of the table: arguments of `enkg compare`, by problem
    "linear-gaussian": {
        f"linear-gaussian-noise-{noise:g}": f"linear-gaussian --noise {noise:g} --methods {EVERY} --budget 512,2048 "
        "--items 10 --seeds 3 --tune 2048" for noise in (0.05, 0.3, 1.0)},
    "navier-stokes": {
        f"navier-stokes-noise-{noise:g}": f"navier-stokes --noise {noise:g} --methods {methods} --budget {budgets} "
        "--items 3 --seeds 1" for noise, budgets, methods in (
            (0.55, "192,512,1024", f"{EVERY},deft"), (0.0, "256", FEW), (1.1, "256", FEW))},
    "black-hole": {"black-hole": f"black-hole --methods {EVERY} --budget 384 --items 5 --seeds 1"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=COMPARISONS)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for problem in parser.parse_args().problems:
        for name, command in COMPARISONS[problem].items():
            out = HERE.parent / "out-arena" / name
            print(f"enkg compare {command}", flush=True)
            if cli.main(["compare", *command.split(), "--out", str(out)]):
                return 1
            for source, suffix in (("table.txt", "txt"), ("pareto.png", "png")):
                shutil.copy(out / source, results / f"arena-{name}.{suffix}")
            summary = json.loads((out / "results.json").read_text())
            (results / f"arena-{name}.json").write_text(json.dumps(summary) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
