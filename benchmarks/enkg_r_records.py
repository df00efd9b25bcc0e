"""What the tables of EnKG-R share: one run with its costs, its calibration, the kept records, and their summary.

A record is one line of benchmarks/results/enkg_r_TABLE.jsonl: the key of a run (those of `KEYS` that the table has),
its scores, and its costs. CPU seconds are those of one thread.
"""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import numpy as np

from enkg_ref import iterate, member_normals
from enkg_ref.compare.statistics import mean_interval
from enkg_ref.enkg_r.reference import Reference, file_sha256
from enkg_ref.run import metrics

RESULTS = Path(__file__).parent / "results"
FFT = "ducc0" if importlib.util.find_spec("ducc0") else "scipy"  # differ by rounding
KEYS = ("prior", "data", "noise", "budget", "item", "setting", "seed", "particles", "by", "d", "assimilations",
        "members", "command")


def run(method, forward, event_shape, seed, dtype):
    """Last particles, last Info, CPU seconds in all and in forward and denoiser."""
    spent = {"forward": 0.0, "denoiser": 0.0}

    def timed(name, function):
        def call(*arguments):
            start = time.process_time()
            out = function(*arguments)
            spent[name] += time.process_time() - start
            return out
        return call

    method = dataclasses.replace(method, denoise=timed("denoiser", method.denoise))
    start = time.process_time()
    state = method.init(member_normals(seed, 0, method.config.particles, event_shape).astype(dtype))
    retries = replaced = lost = 0
    levels = iterate(method, timed("forward", forward), state)
    for state, info in levels:  # noqa: B007 - the last state is the answer
        retries, replaced, lost = retries + info.retries, replaced + len(info.replaced), lost + info.lost
    seconds = time.process_time() - start
    return state.x, {"cpu_seconds": seconds, "forward_seconds": spent["forward"], "retries": retries, "lost": lost,
                     "denoiser_seconds": spent["denoiser"], "kappa": info.kappa, "noise_ratio": info.noise_ratio,
                     "chi2_of_particles": info.mean_misfit, "replaced": replaced,
                     "forward_calls": info.forward_calls * method.config.particles}


def calibration(x, truth):
    spread, skill = metrics.spread_and_skill(x, truth)
    inside, nominal = metrics.coverage(x, truth)
    return {"m2": float(metrics.relative_l2_of_mean(x, truth)), "m1": float(metrics.relative_l2_of_particles(x, truth)),
            "spread": float(spread), "skill": float(skill), "coverage90": float(inside), "nominal": float(nominal),
            "crps": float(metrics.fair_crps(x, truth))}


def shipped(prior):
    from onnx_priors.session import OnnxDenoiser

    denoise = OnnxDenoiser(prior, threads=1)
    reference = Reference.load(str(denoise.path).removesuffix(".onnx") + ".reference.npz", file_sha256(denoise.path))
    return denoise, reference, (denoise.sigma_min, denoise.sigma_max)


def kept(table):
    """The rows of a table, the first of every key: two commands at once may have made the same run."""
    path = RESULTS / f"enkg_r_{table}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    first = {}
    for r in rows:
        first.setdefault(tuple(r.get(name) for name in KEYS), r)
    return list(first.values())


def summary(rows, first="m2"):
    """Means of all numbers over fields, the seeds of a field averaged first; interval of ``first``; pooled SSR."""
    by_field = {}
    for r in rows:
        by_field.setdefault(r.get("item", r["seed"]), []).append(r)
    numbers = [n for n, value in rows[0].items() if isinstance(value, float | int)]
    mean = {n: float(np.mean([np.mean([r[n] for r in of]) for of in by_field.values()])) for n in numbers}
    return {**mean, "fields": len(by_field), "worst": max(r[first] for r in rows),
            "ssr": (mean["spread"] / mean["skill"]) ** 0.5,
            "words": interval([np.mean([r[first] for r in of]) for of in by_field.values()])}


def interval(values, sign=""):
    """mean [95 % interval]; the mean alone for fewer than five values."""
    mean, low, high = mean_interval(values)
    return f"{mean:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if len(values) >= 5 else "")
