"""The four image problems, measured: operators, settings, and every method against every other at equal cost.

    python benchmarks/imaging.py operators             each forward model against the bare products or FFTs it needs
    python benchmarks/imaging.py study                 candidates for the defaults of solve, on training photographs
    python benchmarks/imaging.py run --out DIR         all methods x problems x items x seeds; goes on where it stopped
    python benchmarks/imaging.py tables --out DIR      benchmarks/results/imaging-*.md and imaging.json from what is there

The truths are the twelve shipped patches, a stand-in for FFHQ; every setting was chosen on training photographs. Linear
problems are run a second time with the Gaussian of photographs as the prior, where the exact posterior is known.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import numpy as np

import problems
from enkg_ref.compare import Comparison, compare
from enkg_ref.compare.folder import read_record
from enkg_ref.compare.run import run as one_run
from enkg_ref.compare.statistics import summarise
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.likelihood import Gaussian
from enkg_ref.methods import Item
from onnx_priors.manifest import resolve
from onnx_priors.session import load_prior
from problems import image_metrics, imaging, photographs
from problems.imaging_operators import FourierMagnitude, Inpainting, MatrixPair, bicubic, blur
from problems.imaging_posterior import Posterior

NAMES = ("inpainting", "super-resolution", "deblurring", "phase-retrieval")
METHODS = ("enkg", "enkg-r", "dps", "diffpir", "mmps", "eki", "scg", "dpg", "forward-gsg", "central-gsg")
SLOW = ("pnpdm", "blade")  # many denoiser calls per forward call: they come last
PRIORS = ("photo-patches-64", "gaussian")
ITEMS, SEEDS = 10, 3
BUDGET = 128
C_VJP = 1.0  # of these operators an adjoint costs as much as a forward call
SETTINGS = {"dps": {"strength": 16.0}, "pnpdm": {"outer": 10}, "blade": {"prior_steps": 10}}
TUNED = ("dps: strength 16, the best of 1, 4, 16 and 64 on two training patches; pnpdm: 10 outer steps, blade: 10 prior "
         "steps, for cost; everything else as shipped",)
RESULTS = Path(__file__).parent / "results"


def operators(options):
    """Time of each forward model over that of its bare products or transform, both timed in turn, the fastest counts."""
    rng = np.random.default_rng(0)
    W, M = bicubic(64, 4), blur(64, 3.0)
    found = {}
    for dtype in ("float32", "float64"):
        x = rng.standard_normal((64, 3, 64, 64)).astype(dtype)
        mask = Inpainting((3, 64, 64), (10, 10, 30, 30))
        pairs = {"inpainting": (mask, functools.partial(np.multiply, mask.mask.astype(dtype))),
                 "super-resolution": (MatrixPair(W, W, 3), functools.partial(both_sides, W.astype(dtype))),
                 "deblurring": (MatrixPair(M, M, 3), functools.partial(both_sides, M.astype(dtype))),
                 "phase-retrieval": (FourierMagnitude((3, 64, 64)),
                                     functools.partial(np.fft.rfft2, s=(96, 96), norm="ortho"))}
        for name, (forward, bare) in pairs.items():
            times = [], []
            for _ in range(options.repeats):
                for seconds, call in zip(times, (forward, bare)):
                    start = time.perf_counter()
                    call(x)
                    seconds.append(time.perf_counter() - start)
            own, least = (min(seconds[2:]) for seconds in times)
            found[f"{name}, {dtype}"] = {"forward_ms": 1e3 * own, "bare_ms": 1e3 * least, "ratio": own / least}
            print(f"{name:18s} {dtype}  {1e3 * own:8.2f} ms for 64 pictures, bare {1e3 * least:8.2f} ms, ratio {own / least:.2f}")
    write("imaging_operators.json", found)


def both_sides(A, x):
    return A @ (x @ A.T)


def write(name, content):
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")


def both_conventions(problem):
    """The same problem whose score has the PSNR with the official clipping beside ours, labelled."""
    def score(ensemble):
        x, truth = 2.0 * ensemble - 1.0, image_metrics.unit(2.0 * problem.truth - 1.0, official=True)
        particles, mean = (image_metrics.psnr(image_metrics.unit(pictures, official=True), truth)
                           for pictures in (x, x.mean(axis=0, keepdims=True)))
        return problem.score(ensemble) | {"psnr_of_mean_official_range": float(mean[0]),
                                          "psnr_of_particles_official_range": float(particles.mean())}

    return dataclasses.replace(problem, score=score)


def graded(problem, posterior):
    """The same problem whose score has the distance to the exact posterior: of the mean, and of the spread.

    error_to_posterior_mean : ||mean - m|| / ||m - mu||;  spread_over_posterior_spread : root of the ratio of variances
    """
    m, std = posterior.mean(problem.observation.y), posterior.std

    def score(ensemble):
        x = 2.0 * ensemble - 1.0
        mean = x.mean(axis=0)
        far = np.linalg.norm(mean - m) / np.linalg.norm(m - posterior.prior_mean)
        spread = np.sqrt(x.var(axis=0, ddof=1).sum() / np.sum(std**2)) if len(x) > 1 else float("nan")
        return problem.score(ensemble) | {"error_to_posterior_mean": float(far),
                                          "spread_over_posterior_spread": float(spread)}

    known = {"posterior mean": 0.5 * (m + 1.0)}
    return dataclasses.replace(problem, score=score), known


def gaussian_variances():
    luminance, colour = photographs.shipped()["variances"].astype(float)
    return np.stack([luminance, colour, colour])


def items_of(name, prior, count):
    """The `Item` of the first ``count`` shipped truths."""
    made = [problems.build(name, item=k) for k in range(count)]
    gaussian = made[0].gaussian
    if prior == "gaussian":
        file = photographs.shipped()
        posterior = Posterior(made[0].forward, imaging.NOISE, file["mean"], file["variances"])
        denoise, vjp, std = gaussian.denoise, gaussian.denoise_vjp, gaussian.std
        reference = Reference.cosines(gaussian.mean, gaussian_variances())
    else:
        denoise, vjp = load_prior(prior, threads=1), load_prior(prior, vjp=True, threads=1)
        reference, std = Reference.load(resolve(prior, "reference")), denoise.metadata["sigma_data"]
    items = []
    for problem in made:
        known = dict(problem.known)
        if prior == "gaussian":
            problem, more = graded(problem, posterior)
            known |= more
        items.append(Item(
            both_conventions(problem), Gaussian(problem.observation.y, problem.observation.noise), denoise,
            denoise_vjp=vjp, reference=reference, sigma_range=(0.002, 80.0), std=std, dtype="float32", known=known))
    return items


cached_items = functools.cache(items_of)


def study(options):
    """What `enkg solve` does with the linear problems by default: candidates on two patches of training photographs."""
    patches, _ = photographs.grid(photographs.photographs("train"), scales=(photographs.TRUTH_SCALE,))
    order = np.random.default_rng(11).permutation(len(patches))
    denoise, vjp = load_prior(PRIORS[0], threads=1), load_prior(PRIORS[0], vjp=True, threads=1)
    for k in (2, 3):
        for name in NAMES[:3]:
            problem = problems.build(name, truth=np.moveaxis(patches[order[k]] / 255.0, -1, 0), seed=100 + k)
            item = Item(problem, Gaussian(problem.observation.y, problem.observation.noise), denoise, denoise_vjp=vjp,
                        sigma_range=(0.002, 80.0), std=0.47, dtype="float32")
            for method, budget, given in (("diffpir", 160, {}), ("diffpir", 480, {}), ("mmps", 480, {"rows": 4})):
                scores = one_run(item, method, budget, 0, C_VJP, given)["scores"]
                print(f"patch {k}, {name:17s} {method:8s} F {budget}: PSNR of mean {scores['psnr_of_mean']:.2f}, "
                      f"SSR {scores['ssr']:.2f}, chi2 {scores['chi2']:.2f}", flush=True)


def comparisons():
    """(problem, prior) of every table: all with the network, the linear ones with the Gaussian too."""
    return [(name, prior) for prior in PRIORS for name in NAMES if prior != "gaussian" or name != "phase-retrieval"]


def run(options):
    """Run what is missing, seed by seed, so that whatever is there is balanced; stops after --seconds."""
    end = time.monotonic() + options.seconds

    def progress(record, done, total):
        if done % 20 == 0:
            print(f"  {done} of {total}", flush=True)
        if time.monotonic() > end:
            sys.exit("imaging: time is up, the same command goes on")

    stages = [(1, METHODS), (1, SLOW), *((seeds, METHODS + SLOW) for seeds in range(2, SEEDS + 1))]
    for seeds, methods in stages:
        for name, prior in comparisons():
            if options.only in (None, name, prior, f"{name}/{prior}"):
                print(f"{name}, prior {prior}, {seeds} seeds of {', '.join(methods)}", flush=True)
                compare(Comparison(cached_items(name, prior, ITEMS), methods, [BUDGET], seeds,
                                   Path(options.out) / f"{name}-{prior}", SETTINGS, C_VJP, {"prior": prior}, TUNED),
                        progress)


WORDS = {"photo-patches-64": "prior photo-patches-64", "gaussian": "Gaussian prior, exact posterior known"}
COLUMNS = (  # heading, score, format
    ("PSNR of particles", "psnr_of_particles", ".2f"), ("SSIM of mean", "ssim_of_mean", ".3f"),
    ("SSIM of particles", "ssim_of_particles", ".3f"), ("PSNR of mean, official range", "psnr_of_mean_official_range", ".2f"),
    ("SSR", "ssr", ".2f"), ("chi2", "chi2", ".2f"))
RESOLVED = (("PSNR of mean, resolved", "psnr_of_mean_ambiguity_resolved", ".2f"),
            ("PSNR of best fit, resolved", "psnr_of_best_fit_ambiguity_resolved", ".2f"))
EXACT = (("error to posterior mean", "error_to_posterior_mean", ".2f"),
         ("spread / posterior spread", "spread_over_posterior_spread", ".2f"))


def tables(options):
    """results/imaging-PROBLEM-PRIOR.md for every comparison in the folder, and their numbers in results/imaging.json."""
    kept = {}
    for name, prior in comparisons():
        folder = Path(options.out) / f"{name}-{prior}"
        records = complete([read_record(path) for path in sorted((folder / "runs").glob("*.json"))])
        if not records:
            continue
        finished = folder / "results.json"
        known = json.loads(finished.read_text())["known"] if finished.exists() else {}
        summary = {"metric": "psnr_of_mean", "known": known, "table": summarise(records, "psnr_of_mean")}
        (RESULTS / f"imaging-{name}-{prior}.md").write_text(table(summary, name, prior))
        kept[f"{name}, {prior}"] = {
            "tuned": TUNED, "known": {key: row["mean"] for key, row in summary["known"].items()},
            "rows": [{key: row[key] for key in ("method", "budget", "rows", "items", "seeds", "failed", "mean", "low", "high", "cost")}
                     for row in summary["table"]]}
    write("imaging.json", kept)


def complete(records):
    """Without the runs of a seed that a method has made on some of its items only: its table is balanced."""
    made = {}
    for record in records:
        made.setdefault((record["method"], record["seed"]), set()).add(record["item"])
    return [record for record in records if made[record["method"], record["seed"]] == made[record["method"], 0]]


def table(summary, name, prior):
    """One comparison in markdown, best mean first."""
    columns = [*COLUMNS[:4], *(RESOLVED if name == "phase-retrieval" else ()), *COLUMNS[4:], *(EXACT if prior == "gaussian" else ())]
    lines = ["| method | budget | runs | failed | PSNR of mean, dB [95 %] | " + " | ".join(heading for heading, _, _ in columns)
             + " | denoiser calls | s |", "|---" * (len(columns) + 7) + "|"]

    def cell(row, score, form):
        value = row["mean"].get(score)
        return "" if value is None else f"{value:{form}}"

    metric = summary["metric"]
    for row in sorted(summary["table"], key=lambda row: (row["budget"], -row["mean"].get(metric, -1e9))):
        mean, low, high = (row[kind].get("psnr_of_mean") for kind in ("mean", "low", "high"))
        within = "" if mean is None else f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "")
        lines.append(f"| {row['method']} | {row['budget']} | {row['items']} x {row['seeds']} | {row['failed']} | {within} | "
                     + " | ".join(cell(row, score, form) for _, score, form in columns)
                     + f" | {row['cost']['denoiser']:.0f} | {row['cost']['seconds']:.1f} |")
    for key, row in summary["known"].items():
        if "psnr_of_mean" in row["mean"] and key != "zero field":
            lines.append(f"| {key} | | | | {row['mean']['psnr_of_mean']:.2f} | " + " | ".join(
                cell(row, score, form) for _, score, form in columns) + " | | |")
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for call in (operators, study, run, tables):
        command = commands.add_parser(call.__name__)
        command.set_defaults(call=call)
        if call is operators:
            command.add_argument("--repeats", type=int, default=40)
        elif call is not study:
            command.add_argument("--out", required=True)
        if call is run:
            command.add_argument("--seconds", type=float, default=1e9)
            command.add_argument("--only", help="problem, prior, or problem/prior")
    options = parser.parse_args(arguments)
    options.call(options)


if __name__ == "__main__":
    main()
