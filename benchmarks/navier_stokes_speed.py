"""Time of the Navier-Stokes forward model and its adjoint, beside the official scheme, in one run.

    python benchmarks/navier_stokes_speed.py [--out FILE.json]

Fixture `vorticity.bench16`, float32, one thread, CPU seconds per field, minimum of three interleaved rounds. One unit
is the mean of a forward and an inverse scipy float32 transform per field on the same core (chunk 4 at 128^2, 16 at
64^2). The official scheme is this project's transcription with scipy transforms, at its better chunk size.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import scipy.fft  # noqa: E402

from problems import vorticity  # noqa: E402
from problems.navier_stokes_official import OfficialSolver  # noqa: E402
from problems.navier_stokes_solver import NavierStokes  # noqa: E402

CHUNK = {128: 4, 64: 16}
TARGET_UNITS = {128: 2075, 64: 1610}


def unit(n):
    """Seconds of one transform of one field."""
    x = np.zeros((CHUNK[n], n, n), "float32")
    h = scipy.fft.rfftn(x, axes=(-2, -1))
    rounds = 400
    start = time.process_time()
    for _ in range(rounds):
        scipy.fft.rfftn(x, axes=(-2, -1))
        scipy.fft.irfftn(h, s=(n, n), axes=(-2, -1))
    return (time.process_time() - start) / (2 * rounds * CHUNK[n])


def cpu(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def measure(n, rounds=3):
    omega = vorticity.bench16(n).astype("float32")
    solvers = {fft: NavierStokes(n, fft=fft) for fft in ("scipy", "ducc0", "pyfftw")}
    official, some = OfficialSolver(n), CHUNK[n]
    times = {name: [] for name in ("unit", *solvers, "gradient", "official")}
    for _ in range(rounds):
        times["unit"].append(unit(n))
        for name, solve in solvers.items():
            times[name].append(cpu(solve, omega) / 16)
        times["gradient"].append(cpu(solvers["scipy"].value_and_vjp, omega, omega) / 16)
        times["official"].append(cpu(official, omega[:some]) / some)
    best = {name: min(values) for name, values in times.items()}
    exact = NavierStokes(n, steps=320)(omega.astype("float64"))
    out = solvers["scipy"](omega)
    error = np.sqrt((((out - exact) ** 2).sum((1, 2)) / (exact**2).sum((1, 2))).mean())
    fast = min("ducc0", "pyfftw", key=best.get)
    return {
        "n": n, "unit_us": best["unit"] * 1e6, "ms": {name: best[name] * 1e3 for name in times if name != "unit"},
        "units": {name: best[name] / best["unit"] for name in (*solvers, "official")}, "target_units": TARGET_UNITS[n],
        "fast": fast, "official_over": {name: best["official"] / best[name] for name in solvers},
        "vjp_over_forward": best["gradient"] / best["scipy"] - 1, "time_error_rms": float(error),
    }  # fmt: skip


def _solve(rows):
    return NavierStokes(128)(vorticity.bench16()[rows].astype("float32")).sum()


def two_processes():
    """Wall time of sixteen fields by one worker process over that of two, workers started before."""
    wall = {}
    blocks = [slice(k, k + 2) for k in range(0, 16, 2)]
    for workers in (1, 2):
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            list(pool.map(_solve, blocks[:2]))
            rounds = []
            for _ in range(2):
                start = time.perf_counter()
                list(pool.map(_solve, blocks))
                rounds.append(time.perf_counter() - start)
            wall[workers] = min(rounds)
    return wall[1] / wall[2]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    result = {"sizes": [measure(n) for n in (128, 64)], "two_processes": two_processes(), "load": os.getloadavg()}
    print("| grid | FFT | ms | units | target | official / this | time error rms | VJP / forward |")
    print("|---" * 8 + "|")
    for row in result["sizes"]:
        for name in ("scipy", "ducc0", "pyfftw", "official"):
            more = (f"{row['official_over'][name]:.1f} | {row['time_error_rms']:.1e} | {row['vjp_over_forward']:.2f}"
                    if name != "official" else "1 | - | -")
            print(f"| {row['n']} | {name} | {row['ms'][name]:.1f} | {row['units'][name]:.0f} | "
                  f"{row['target_units']} | {more} |")
    print(f"two processes against one: {result['two_processes']:.2f} x; load average {result['load'][0]:.1f}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
