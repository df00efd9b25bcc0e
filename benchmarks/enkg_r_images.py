"""Runs of EnKG-R on black-hole images, simulated and real, and seconds of whole commands."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from enkg_r_records import kept, run, shipped

from enkg_ref import Closures
from enkg_ref.enkg_r import method as regressed
from enkg_ref.enkg_r import rule
from enkg_ref.run import report

COVERAGE = {"simulated": "standard", "sparse": "m87-101"}


def black_hole(options):
    from problems import black_hole as source

    prior = options.prior or "kerr-disc-64"
    files = shipped(prior)
    jobs = [(day, seed) for day in ("101", "096") for seed in range(options.seeds or 3)]
    if options.table != "m87":
        jobs = [(item, seed) for seed in range(options.seeds or 1) for item in range(options.items or 10)]
    for item, seed in jobs:
        key = {"prior": prior, "budget": options.budget or 3840, "item": item, "seed": seed}

        def work(key=key, item=item, seed=seed):
            problem = source.m87(item) if options.table == "m87" else simulated(item, COVERAGE[options.table])
            x, facts = image(problem, files, key["budget"], seed)
            if options.table == "m87":
                facts["diameter_sd"] = diameter_sd(x)
            return {**problem.score(x), **facts}

        yield key, work


def simulated(item, coverage):
    from problems.black_hole import black_hole as problem_of

    return problem_of(index=item, seed=item, coverage=coverage)


def image(problem, files, budget, seed):
    """Ensemble of images by rule, and the facts of the run."""
    denoise, reference, sigma_range = shipped
    data = problem.observation
    likelihood = Closures(data.y, data.noise, data.angular)
    config = rule.settings_by_rule(reference, likelihood, budget, sigma_range, seed)
    x, facts = run(regressed.EnKGR(denoise, likelihood, reference, config), problem.forward, problem.event_shape, seed,
                   "float32")
    return problem.scale * x.astype("float64") + problem.shift, facts


def diameter_sd(images):
    """Standard deviation over the particles of the ring diameter, micro-arcseconds."""
    from problems.black_hole import FIELD_OF_VIEW
    from problems.radio_metrics import ring_fit

    return float(np.nanstd([ring_fit(image, FIELD_OF_VIEW).diameter for image in images]))


def failed(row):
    """A simulated image that was not solved: a wrong mode, or data that are not fitted."""
    return row["psnr_aligned"] < 24 or max(row["chi2_cp"], row["chi2_lca"]) > 3


def multimodal(options):
    """What `enkg solve --ensembles 3` says of images whose seed 0 failed, and of the first five whose did not."""
    prior, budget, seeds = options.prior or "kerr-disc-64", options.budget or 3840, range(3)
    files = shipped(prior)
    known = [r for r in kept("simulated") if r["seed"] == 0 and r["prior"] == prior and r["budget"] == budget]
    for row in [r for r in known if failed(r)] + [r for r in known if not failed(r)][:5]:
        def work(item=row["item"]):
            problem = simulated(item, "standard")
            data = problem.observation
            likelihood = Closures(data.y, data.noise, data.angular)
            images, facts = zip(*(image(problem, files, budget, seed) for seed in seeds))
            scores = [problem.score(x) for x in images]
            index = np.repeat(np.arange(len(images)), [len(x) for x in images])
            misfits = [np.asarray(likelihood.misfit(problem.forward((x - problem.shift) / problem.scale)))
                       for x in images]
            weights = report.weights_by_misfit(misfits)
            poolable = problem.pool(np.concatenate(images), index)
            pooled = poolable[report.resampled((weights / np.bincount(index))[index])]
            return {**{name: [s[name] for s in scores] for name in ("psnr_aligned", "chi2_cp", "chi2_lca")},
                    "kappa": [f["kappa"] for f in facts], "chi2_of_particles": [f["chi2_of_particles"] for f in facts],
                    "disagreement": report.disagreement(poolable, index), "weights": weights.tolist(),
                    "separation": report.separation(poolable, index),
                    "psnr_of_pool": problem.score(pooled)["psnr_aligned"],
                    "cpu_seconds": sum(f["cpu_seconds"] for f in facts)}

        yield {"prior": prior, "budget": budget, "item": row["item"]}, work


def wall(options):
    """Seconds of whole commands, from the shell; the load says whether the machine was quiet."""
    for command in ("m87 --day 101 --ensembles 1", "m87 --day 096 --ensembles 1", "m87 --day 101", "m87 --day 096",
                    "m87 --day 101 --workers 3", "navier-stokes --size 32"):
        def work(command=command):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([sys.executable, "-m", "enkg_ref", "solve", *command.split(), "--method", "enkg-r",
                                "--quiet", "--out", folder], check=True,
                               env={name: value for name, value in os.environ.items() if not name.endswith("_THREADS")})
                seconds = time.perf_counter() - start
                summary = json.loads((Path(folder) / "summary.json").read_text())
            return {"seconds": seconds, "load": os.getloadavg()[0], "cores": os.cpu_count(),
                    "ensembles": summary["ensembles"], "forward_calls": summary["ledger"]["fwd_total"]}

        yield {"command": command}, work
