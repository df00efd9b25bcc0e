"""The black-hole tables of RESULTS.md: real M87 data and simulated stand-ins, network against Gaussian prior.

    python benchmarks/black_hole.py m87         both days, three independent ensembles each, network and Gaussian prior
    python benchmarks/black_hole.py simulated   20 held-out images, 2017 array, peak and flux given
    python benchmarks/black_hole.py sparse      10 images with the real coverage and errors of day 101

Each run is kept in benchmarks/results/black_hole_TABLE.json as soon as it ends; a repeated command adds the missing.
The table is benchmarks/results/black_hole_TABLE.md; --show writes it from the runs that are there.
Simulated truths are "kerr-disc-grf" stand-ins, not GRMHD, from another seed than the prior's training images.
"""

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
PRIORS = ("kerr-disc-64", "kerr-disc-64-gaussian")


def one(table, prior, item, seed, settings):
    """One ensemble: figures of merit of its mean, seconds. Runs in a process of its own, one thread."""
    from enkg_ref import Closures, Preset, correct, guided_window, member_normals, solve
    from enkg_ref.extensions import guarded, survivors
    from onnx_priors.session import OnnxDenoiser
    from problems import black_hole

    if table == "m87":
        problem = black_hole.m87(item)
    else:
        coverage = "standard" if table == "simulated" else "m87-101"
        problem = black_hole.black_hole(index=item, seed=item, coverage=coverage)
    defaults = {**problem.defaults, **settings}
    window = guided_window(defaults["steps"], defaults.pop("start"), defaults.pop("end"))
    preset = Preset(window=window).but(**defaults)
    data = problem.observation
    run = preset.method(OnnxDenoiser(prior, threads=1), Closures(data.y, data.noise, data.angular),
                        survivors(guarded(correct)))
    start = time.process_time()
    x = solve(run, problem.forward, member_normals(seed, 0, preset.particles, problem.event_shape)).x
    seconds = time.process_time() - start
    return {"prior": prior, "item": item, "seed": seed, "settings": settings, "cpu_seconds": seconds,
            **problem.score(problem.scale * x + problem.shift)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("m87", "simulated", "sparse"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON; default: those of the problem")
    parser.add_argument("--items", type=int, help="only the first so many")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    path = RESULTS / f"black_hole_{options.table}.json"
    path.parent.mkdir(exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else []
    key = ("prior", "item", "seed", "settings")
    known = [[row[name] for name in key] for row in rows]
    if options.table == "m87":
        wanted = [(prior, day, seed) for prior in PRIORS for day in ("101", "096") for seed in (0, 1, 2)]
    else:
        items = range(options.items or (20 if options.table == "simulated" else 10))
        wanted = [(prior, item, 0) for item in items for prior in PRIORS]
    wanted = [] if options.show else [job for job in wanted if [*job, options.settings] not in known]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(one, options.table, *job, options.settings) for job in wanted]
        for job in as_completed(jobs):
            rows.append(job.result())
            path.write_text(json.dumps(sorted(rows, key=lambda row: [str(row[name]) for name in key]), indent=1) + "\n")
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    table = markdown(options.table, [row for row in rows if row["settings"] == options.settings])
    (RESULTS / f"black_hole_{options.table}.md").write_text(table + "\n")
    print(table)


def markdown(table, rows):
    """The table as Markdown."""
    rows = sorted(rows, key=lambda row: (row["prior"], row["item"], row["seed"]))
    if table == "m87":
        lines = ["| prior | day | seed | diameter (micro-arcseconds) | bright side (degrees E of N) | chi2 closure phases "
                 "| chi2 log closure amplitudes | CPU s |", "|---" * 8 + "|"]
        return "\n".join(lines + [
            f"| {r['prior']} | {r['item']} | {r['seed']} | {r['ring_diameter_uas']:.1f} "
            f"| {r['ring_position_angle_deg']:.0f} | {r['chi2_cp']:.2f} | {r['chi2_lca']:.2f} "
            f"| {r['cpu_seconds']:.0f} |" for r in rows])
    by_prior = {prior: {r["item"]: r for r in rows if r["prior"] == prior} for prior in PRIORS}
    lines = ["| prior | images | PSNR of the mean (dB): median (min .. max) | chi2 phases, amplitudes: median "
             "| both at most 2 | both at most 3 | CPU s |", "|---" * 7 + "|"]
    for prior, found in by_prior.items():
        psnr = [r["psnr_aligned"] for r in found.values()]
        worst = [max(r["chi2_cp"], r["chi2_lca"]) for r in found.values()]
        medians = [np.median([r[name] for r in found.values()]) for name in ("chi2_cp", "chi2_lca", "cpu_seconds")]
        lines.append(f"| {prior} | {len(found)} | {np.median(psnr):.1f} ({min(psnr):.1f} .. {max(psnr):.1f}) "
                     f"| {medians[0]:.2f}, {medians[1]:.2f} | {sum(w <= 2 for w in worst)} "
                     f"| {sum(w <= 3 for w in worst)} | {medians[2]:.0f} |")
    both = sorted(set(by_prior[PRIORS[0]]) & set(by_prior[PRIORS[1]]))
    gain = [by_prior[PRIORS[0]][i]["psnr_aligned"] - by_prior[PRIORS[1]][i]["psnr_aligned"] for i in both]
    return "\n".join([*lines, "", f"Paired gain of the network over the Gaussian prior: median {np.median(gain):+.1f} dB, "
                                  f"better on {sum(g > 0 for g in gain)} of {len(gain)} images."])


if __name__ == "__main__":
    sys.exit(main())
