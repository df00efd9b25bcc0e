"""``enkg``: solve, compare, verify, list. The only file that knows the method, the priors and the problems."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import importlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import problems
from problems.files import read_array

from . import __version__, extensions
from .baselines.deft import OnnxCorrection
from .compare import arena
from .enkg import PRESETS, Config, EnKG, guided_window
from .enkg_r import method as regressed
from .enkg_r import rule
from .enkg_r.reference import LEAST_IMAGES, Reference, file_sha256, from_images
from .ensemble import constant, frobenius, trace
from .likelihood import Closures, Gaussian
from .run import ledger, members, report, runner

STEP_RULES = {"frobenius": frobenius, "trace": trace, "constant": constant, "tempered": frobenius}
STOPS = {"none": None, "mean": extensions.mean_discrepancy, "particle": extensions.particle_discrepancy}


class UsageError(ValueError):
    """Bad input: one sentence that names the argument, what was got and what was expected. Exit code 2."""


# ---------------------------------------------------------------------------------------------------------- problems
def _own(options):
    """The user's forward model between a prior file and a data file."""
    for name in sorted({*problems.options(), "item"} - {"noise", "observation", "truth", "seed"}):
        if getattr(options, name) is not None:
            raise UsageError(f"{name}: got {getattr(options, name)}, expected nothing: problem given by --forward does "
                             "not use it")
    for name in ("prior", "observation", "noise"):
        if getattr(options, name) is None:
            raise UsageError(f"{name}: got nothing, expected --{name} together with --forward")
    from onnx_priors.session import load_prior
    from problems.problem import Observation, Problem

    prior = load_prior(options.prior)
    y = read_array(options.observation, "observation")
    scale, shift = (float(prior.metadata.get(name, default)) for name, default in (("scale", 1.0), ("shift", 0.0)))
    forward = _user_forward(options.forward, y.size)
    truth = None if options.truth is None else read_array(options.truth, "truth")
    return Problem(name="own", event_shape=prior.event_shape, forward=lambda x: forward(scale * x + shift),
                   observation=Observation(y.reshape(-1), options.noise), scale=scale, shift=shift, truth=truth,
                   units=prior.metadata.get("units", ""), notes=f"forward model {options.forward}")


def _given(options, *same, **names):
    """The options that were given, as keyword arguments: key = name of the option."""
    names = {**{name: name for name in same}, **names}
    return {key: getattr(options, name) for key, name in names.items() if getattr(options, name) is not None}


def _user_forward(name, size):
    if "{" in name:
        return members.Program(name, size, log=_failed_member)
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"forward: got {name} ({error}), expected package.module:function or a command with "
                         "{input} and {output}") from None
    finally:
        sys.path.pop(0)
    return members.guarded(call, size, log=_failed_member)


def _failed_member(row, error):
    print(f"enkg: member {row} failed: {type(error).__name__}: {error}", file=sys.stderr)


def _nearest(name, known, argument):
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return UsageError(f"{argument}: got {name!r}, expected one of {', '.join(known)}{hint}")


def build_problem(options):
    """The Problem named by the options, checked."""
    if options.forward is not None:
        problem = _own(options)
    elif options.problem is None:
        raise UsageError(f"problem: got nothing, expected one of {', '.join(problems.PROBLEMS)}, or --forward")
    else:
        given = {name: getattr(options, name) for name in problems.options()}
        if "seed" not in {option.name for option in problems.entry(options.problem).options}:
            given.pop("seed")  # of the particles only
        problem = problems.build(options.problem, **given)
    for name in ("stop", "step_rule"):
        if problem.observation.noise_is_assumed and getattr(options, name) in ("mean", "particle", "tempered"):
            raise UsageError(f"{name}: got {getattr(options, name)} with noise-free data, expected --noise above 0")
    return problem


def build_prior(options, problem, threads=None):
    """(name, Denoise): the problem's own exact denoiser, its Gaussian, a shipped prior by name, or an .onnx file."""
    name = options.prior or problem.prior
    if name is None:
        if problem.posterior is None:
            trained = "" if problem.gaussian is None else (
                f", trained with python -m onnx_priors.training.navier_stokes --size {problem.event_shape[0]}, "
                "or --prior gaussian")
            raise UsageError(f"prior: got nothing, expected --prior NAME or FILE.onnx{trained}")
        return "exact", problem.gaussian.denoise
    if name == "gaussian":
        if problem.gaussian is None or problem.posterior is not None:
            raise UsageError(f"prior: got gaussian, which problem {problem.name} does not have, expected a shipped "
                             "prior by name or an .onnx file")
        return name, problem.gaussian.denoise
    from onnx_priors.session import OnnxDenoiser

    denoise = OnnxDenoiser(name, device=options.device, threads=threads, **_given(options, "chunk"))
    if tuple(denoise.event_shape) != tuple(problem.event_shape):
        raise UsageError(f"prior: got {name} for events of shape {tuple(denoise.event_shape)}, expected "
                         f"{tuple(problem.event_shape)} for problem {problem.name}")
    _refuse_foreign_prior(name, denoise.metadata, problem)
    return Path(name).name, denoise


def _refuse_foreign_prior(name, metadata, problem):
    """UsageError for a prior made for another problem, which one of our training commands says in its metadata.

    What others write there, or leave out, is theirs to know.
    """
    from onnx_priors.manifest import read_manifest

    shipped = {prior: entry["metadata"] for prior, entry in read_manifest().items()}
    units, expected = metadata.get("units"), shipped.get(problem.prior, {}).get("units", problem.units)
    if units in {facts["units"] for facts in shipped.values()} and units != expected:
        raise UsageError(f"prior: got {name}, made for {units!r}, expected one for {expected!r}")


def build_likelihood(problem):
    """What the problem's observation means: Gaussian, or closures where some data are angles."""
    data = problem.observation
    if data.angular is None:
        return Gaussian(data.y, data.noise)
    return Closures(data.y, data.noise, data.angular)


def build_vjp(options, problem):
    """(x, sigma, v) -> (D, J_D' v) of the same prior; raises where it has none."""
    name = options.prior or problem.prior
    if name is None:
        return problem.gaussian.denoise_vjp
    if name == "gaussian":
        return problem.gaussian.denoise_vjp
    from onnx_priors.session import OnnxDenoiserVJP

    file = name.removesuffix(".onnx") + "_vjp.onnx" if name.endswith(".onnx") else name
    return OnnxDenoiserVJP(file, device=options.device, **_given(options, "chunk"))


def build_item(options, problem, denoise, methods, lenient=False):
    """`arena.Item`: the problem with all that ``methods`` ask of its prior.

    lenient : what is not there is None, and the methods that need it can be refused; else it raises
    """
    needs = frozenset().union(*(arena.METHODS[name].access for name in methods))

    def given(name, build):
        if name not in needs:
            return None
        try:
            return build(options, problem)
        except (ValueError, OSError):
            if not lenient:
                raise
            return None

    reference, known = given("reference", build_reference), problem.known
    if not known and reference is not None:
        known = {"prior mean": problem.scale * reference.mean + problem.shift}
    std = getattr(denoise, "metadata", {}).get("sigma_data")
    if problem.posterior is not None:
        std = problem.gaussian.std
    return arena.Item(problem, build_likelihood(problem), denoise, std=std, reference=reference,
                      denoise_vjp=given("denoiser_vjp", build_vjp), correction=given("correction", build_correction),
                      sigma_range=(getattr(denoise, "sigma_min", 0.002), getattr(denoise, "sigma_max", 80.0)),
                      dtype=options.dtype, known=known)


def build_correction(options, problem):
    """h(x, D, sigma) of DEFT for these data; raises where no network was trained for the problem and its prior."""
    from onnx_priors.manifest import read_manifest, resolve

    prior = options.prior or problem.prior
    if "correction" not in read_manifest().get(prior, {}):
        raise UsageError(f"method: got deft, which has no network for problem {problem.name} with this prior, expected "
                         "navier-stokes with navier-stokes-32")
    return OnnxCorrection(resolve(prior, "correction"), problem.observation.y, problem.observation.noise)


def build_config(options, problem, denoise):
    """Config: a preset or the problem's defaults within the prior's noise levels, then whatever the options say."""
    if options.preset is not None:
        if options.preset not in PRESETS:
            raise _nearest(options.preset, PRESETS, "preset")
        for name in ("steps", "window"):
            if getattr(options, name) is not None:
                raise UsageError(f"{name}: got {getattr(options, name)} with a preset, expected nothing: the preset "
                                 "fixes its levels and its window")
        settings = {f.name: getattr(PRESETS[options.preset], f.name) for f in dataclasses.fields(Config)}
    else:
        lowest = max(Config.sigma_min, getattr(denoise, "sigma_min", 0.0))
        settings = {"sigma_min": lowest, "sigma_eps": lowest,
                    "sigma_max": min(Config.sigma_max, getattr(denoise, "sigma_max", Config.sigma_max)),
                    **problem.defaults}
    start, end = settings.pop("start", 0.05), settings.pop("end", 0.05)
    settings.update(_given(options, "particles", "steps", "updates", "guidance", "failed"))
    if options.step_rule is not None:
        settings["step_rule"] = STEP_RULES[options.step_rule]
    if options.stop is not None:
        settings["stop"] = STOPS[options.stop]
    if options.window is not None:
        start, end = options.window
    if options.preset is None:
        first, last = settings["window"] = guided_window(max(2, settings.get("steps", Config.steps)), start, end)
        if last < first:
            raise UsageError(f"window: got {start:g},{end:g}, which guides none of {settings.get('steps')} levels, "
                             "expected smaller fractions")
    return Config(**settings)


# ------------------------------------------------------------------------------------------------------------- solve
VJP_COST = 2.0  # forward calls that a gradient of the forward model costs beside its value: the usual guess
NO_BUDGET = ("steps", "updates", "guidance", "window", "step_rule", "stop", "failed", "preset", "particles")


def build_method(options, problem, denoise, seed, account=None):
    """(method, rows of noise) named by the options, with settings for this problem; calls go through ``account``."""
    if options.reference is not None and "reference" not in arena.METHODS[options.method].access:
        raise UsageError(f"reference: got {options.reference} with method {options.method}, which needs none")
    if options.method == "enkg" and options.budget is None:
        likelihood, config = build_likelihood(problem), build_config(options, problem, denoise)
        denoise = denoise if account is None else account.denoiser(denoise)
        if options.step_rule == "tempered":
            return extensions.TemperedEnKG(denoise, likelihood, config, seed=seed), config.particles
        return EnKG(denoise, likelihood, config), config.particles
    for name in NO_BUDGET:
        if getattr(options, name) is not None:
            what = f"method {options.method}" if options.method != "enkg" else "a budget"
            raise UsageError(f"{name}: got {getattr(options, name)} with {what}, expected --budget CALLS only")
    if options.budget is None and options.method == "enkg-r":
        options.budget = rule.default_budget(problem)
    if options.budget is None:
        raise UsageError(f"budget: got nothing, expected --budget CALLS with method {options.method}")
    item = build_item(options, problem, denoise, [options.method])
    arena.check([options.method], item, [options.budget], VJP_COST, {})
    if account is not None:
        if seed == options.seed:  # once, not for every ensemble
            account.counts["offline_fwd"] = getattr(item.correction, "offline_forward", 0)
        item = item.counted(account)
    elif arena.METHODS[options.method].access >= {"forward_vjp"}:
        item = dataclasses.replace(item, norm=lambda item: 1.0)  # only looked at: no call is made
    return arena.METHODS[options.method].plan(item, options.budget, VJP_COST, seed, {})


REFERENCE_MODES = 512  # at most, of a reference from images


def build_reference(options, problem):
    """Gaussian reference of the prior, which enkg-r needs.

    --reference FILE.npz or images FILE.npy, the exact one of a Gaussian prior, or the one beside the prior's file.
    """
    if options.reference is not None and options.reference.endswith(".npy"):
        if getattr(options, "reference_of_images", None) is None:  # once for all ensembles: it costs denoiser calls
            options.reference_of_images = _reference_of_images(options, problem)
        return options.reference_of_images
    if options.reference is not None:
        reference = Reference.load(options.reference, _prior_sha256(options, problem) or "")
        if tuple(reference.mean.shape) != tuple(problem.event_shape):
            raise UsageError(f"reference: got {options.reference} for events of shape {tuple(reference.mean.shape)}, "
                             f"expected {tuple(problem.event_shape)}")
        return reference
    name = options.prior or problem.prior
    if name in (None, "gaussian"):
        return Reference(*problem.gaussian.principal(min(1024, problem.gaussian.mean.size)))
    beside = _reference_beside(options, problem)
    if not beside.exists():
        raise UsageError(f"reference: got nothing for prior {name}, expected --reference images.npy (images like those "
                         f"it was trained on), or {beside.name} beside it, made from its own samples by "
                         f"python benchmarks/make_reference.py {name} --samples 2048")
    return Reference.load(beside, _prior_sha256(options, problem))


def _reference_beside(options, problem):
    """Where the reference of the prior's file is looked for, or None for a prior that is no file."""
    name = options.prior or problem.prior
    if name in (None, "gaussian"):
        return None
    from onnx_priors.manifest import resolve

    path = resolve(name)
    return path.with_name(f"{path.stem}.reference.npz")


def _reference_sha256(options, problem):
    """Of the file the reference comes from; None where it comes from none."""
    path = options.reference or _reference_beside(options, problem)
    return file_sha256(path) if path and Path(path).exists() else None


def reference_images(path, shape, scale, shift):
    """The user's images, (N, *event) in physical units, as float32 in prior units, checked."""
    images = read_array(path, "reference")
    if images.shape[1:] != tuple(shape) or len(images) < LEAST_IMAGES:
        raise UsageError(f"reference: got {path} with an array of shape {images.shape}, expected at least "
                         f"{LEAST_IMAGES} images of shape {tuple(shape)} in physical units")
    return ((images - shift) / scale).astype(np.float32)


def _reference_of_images(options, problem):
    """The reference and error table of the prior from the user's images."""
    images = reference_images(options.reference, problem.event_shape, problem.scale, problem.shift)
    name, denoise = build_prior(options, problem)
    exact = name in ("exact", "gaussian")
    reference = from_images(images, None if exact else denoise, modes=REFERENCE_MODES,
                            prior_sha256=_prior_sha256(options, problem) or "")
    options.reference_calls = 0 if exact else denoise.phys_net
    return reference


def build_run(options, k, account):
    """`runner.Run` of ensemble k: everything from the options anew, so that a process can do it on its own."""
    problem = build_problem(options)
    prior, denoise = build_prior(options, problem, threads=max(1, (os.cpu_count() or 1) // options.workers))
    seed = options.seed + k
    method, rows = build_method(options, problem, denoise, seed, account)
    noise = _member_noise(seed, rows, problem.event_shape, options)
    forward = members.chunked(problem.forward, options.chunk) if options.chunk else problem.forward
    about = {"problem": problem.name, "method": _method_name(options), "prior": prior, "seed": seed,
             "prior_sha256": _prior_sha256(options, problem), "scale": problem.scale, "shift": problem.shift,
             "reference": _reference_sha256(options, problem) if isinstance(method, regressed.EnKGR) else None,
             "forward": options.forward, "chunk": options.chunk, "version": __version__,
             "dtype": options.dtype, "device": options.device, **method.config.describe(),
             "observation": _digest(problem.observation.y), "noise": _digest(problem.observation.noise)}
    return runner.Run(method, account.forward(forward), noise, method.STATE, about)


def _prior_sha256(options, problem):
    name = options.prior or problem.prior
    if name in (None, "gaussian"):
        return None
    from onnx_priors.manifest import resolve

    return file_sha256(resolve(name))


def _method_name(options):
    return "enkg-tempered" if options.step_rule == "tempered" else options.method


def _member_noise(seed, particles, event_shape, options):
    from ._xp import member_normals

    noise = member_normals(seed, 0, particles, event_shape).astype(options.dtype)
    if options.device == "cpu":
        return noise
    import cupy

    return cupy.asarray(noise)


def _digest(array):
    return hashlib.sha256(np.ascontiguousarray(np.asarray(array, dtype=np.float64)).tobytes()).hexdigest()[:16]


def solve(options):
    """``enkg solve``: check everything, run the ensembles, write the folder, print the summary."""
    started = time.perf_counter()
    if options.method not in arena.METHODS:
        raise _nearest(options.method, arena.METHODS, "method")
    if options.ensembles is not None and options.ensembles < 1:
        raise UsageError(f"ensembles: got {options.ensembles}, expected at least 1")
    for name in ("seed", "item"):
        if (getattr(options, name) or 0) < 0:
            raise UsageError(f"{name}: got {getattr(options, name)}, expected a number >= 0")
    _check_device(options.device)
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"workers: got {options.workers}, expected at least 1")
    problem = build_problem(options)
    if options.ensembles is None:
        options.ensembles = problem.ensembles
    if options.workers is None:
        options.workers = 1 if options.device == "cuda" else min(options.ensembles, os.cpu_count() or 1)
    prior, denoise = build_prior(options, problem)
    method, rows = build_method(options, problem, denoise, options.seed)
    config = {"particles": rows, **method.config.describe()}
    waves = method.counts(rows).get("fwd_seq", 0) if hasattr(method, "counts") else method.config.counts()["forward"]
    likelihood = build_likelihood(problem)
    folder, work = _prepare_folder(options)

    bar = _progress_bar(options.ensembles * waves, options.quiet)
    try:
        runner.run_ensembles(build_run, options, options.ensembles, options.workers, work, partial(_advance, bar))
    except BaseException:
        if not runner.begun(work):  # nothing to go on with: the corrected command may use the folder
            runner.clear(work)
        raise
    finally:
        bar.close()
    options.computed = True

    parts = runner.collect(work, options.ensembles)
    history = [line for _, _, lines in parts for line in lines]
    particles = np.concatenate([fields["x"] for fields, _, _ in parts]).astype(np.float64)
    ensemble = problem.scale * particles + problem.shift
    index = np.repeat(np.arange(len(parts)), [len(fields["x"]) for fields, _, _ in parts])
    counts = ledger.add(extra["ledger"] for _, extra, _ in parts)
    predictions = np.asarray(problem.forward(particles))
    counts["diag_fwd"] += len(particles)
    counts["diag_den"] += getattr(options, "reference_calls", 0)
    predictions = predictions.reshape(len(predictions), -1)
    with np.errstate(over="ignore", invalid="ignore"):  # rows that failed
        misfit = np.asarray(likelihood.misfit(predictions))
    finite = np.isfinite(misfit)

    def score(rows):
        return (problem.score(poolable[rows]) if problem.score else
                _score(poolable[rows], predictions[rows][finite[rows]], problem, likelihood))

    poolable = problem.pool(ensemble, index) if problem.pool and len(parts) > 1 else ensemble
    weights = np.full(len(parts), 1.0 / len(parts))
    if options.method == "enkg-r":  # each ensemble samples the mode it found: modes count by how well they fit
        weights = report.weights_by_misfit([misfit[index == k] for k in range(len(parts))])
    rows = report.resampled((weights / np.bincount(index))[index])
    pooled = poolable[rows]
    stopped = sum(line.get("stopped", False) for line in history)
    summary = {
        "problem": problem.name, "method": _method_name(options), "prior": prior, "seed": options.seed,
        "ensembles": options.ensembles, "config": config, "metrics": score(rows),
        "metrics_per_ensemble": [score(index == k) for k in range(options.ensembles)],
        "failed_rows": sum(len(line.get("failed_rows", ())) for line in history),
        "failed_predictions": int(np.sum(~finite)), "trust": report.trust(history, options.ensembles),
        "collapsed_updates": sum(line.get("collapsed", False) for line in history),
        "lost_levels": sum(line.get("lost", False) for line in history),
        "stop_reason": "all levels done" + (f"; {stopped} updates ended by {options.stop}" if stopped else ""),
        "ledger": counts, "seconds": time.perf_counter() - started, "notes": problem.notes,
        "spread": report.SPREAD[options.method], "versions": _versions(),
        "command": " ".join(["enkg", *options.argv]),
    }
    result = {"mean": pooled.mean(axis=0), "std": pooled.std(axis=0), "ensemble": ensemble,
              "ensemble_index": index, "observation": np.asarray(problem.observation.y), "predictions": predictions}
    if problem.truth is not None:
        result["truth"] = np.asarray(problem.truth)

    if len(parts) > 1:
        summary |= {"disagreement": report.disagreement(poolable, index), "weights": weights,
                    "separation": report.separation(poolable, index)}
    if problem.truth is not None and len(pooled) > 1:
        summary["calibration"] = report.calibration(*arena.beside_truth(problem, pooled))
    shown = {**result, "history": history, "caption": report.caption(summary)}
    shown.pop("predictions")
    if finite.any():
        shown["predictions"] = predictions[finite]
    if "calibration" in summary:
        shown["calibration"] = summary["calibration"]
    title = f"{problem.name}: {summary['method']}, prior {prior}"
    page = problem.figure(shown) if problem.figure else report.figure(shown, history, title)
    page.savefig(folder / "figure.png", dpi=110, bbox_inches="tight")
    np.savez(folder / "result.npz", **result)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    summary["seconds"] = time.perf_counter() - started
    report.write_json(folder / "summary.json", summary)  # the last: with it the run is finished
    runner.clear(work)
    if not options.quiet:
        print(report.text(summary))
        print(f"  written to {folder}/: figure.png, result.npz, summary.json, history.jsonl")
    return 0


def _score(ensemble, predictions, problem, likelihood):
    """Figures of merit of a problem that brings none: misfit of the predictions, errors where the truth is known.

    predictions : (R, m), the finite ones, maybe none
    """
    out, m = {}, likelihood.size
    if len(predictions):
        out = {"chi2_mean_prediction": float(likelihood.misfit(predictions.mean(axis=0, keepdims=True))[0]) / m,
               "chi2_median_particle": float(np.median(likelihood.misfit(predictions))) / m}
    if problem.truth is not None:
        from .run import metrics

        out["relative_l2_of_mean"] = metrics.relative_l2_of_mean(ensemble, problem.truth)
        out["relative_l2_particles"] = metrics.relative_l2_of_particles(ensemble, problem.truth)
    return out


def _check_device(device):
    if device == "cuda":
        try:
            import cupy

            available = cupy.is_available()
        except ImportError:
            raise UsageError("device: got cuda without cupy, expected it installed: pip install -e '.[gpu]'") from None
        if not available:
            raise UsageError("device: got cuda, expected a CUDA device, but cupy finds none")


OUTPUTS = ("summary.json", "result.npz", "history.jsonl", "figure.png")


def _prepare_folder(options):
    """The output folder and its working folder; nothing that is there already is touched."""
    folder = Path(options.out or f"out-{options.problem or 'own'}")
    work = folder / "run"
    try:
        there = [name for name in OUTPUTS if (folder / name).exists()]
        begun = (work / runner.MARKER).exists() and runner.begun(work)
        if "summary.json" in there:
            word = "resume" if options.resume else "out"
            raise UsageError(f"{word}: got {folder}, which holds a finished run, expected another folder")
        if work.exists() and not (work / runner.MARKER).exists():
            raise UsageError(f"out: got {folder}, which holds a folder 'run' of another origin, expected another "
                             "folder")
        if there and not begun:
            raise UsageError(f"out: got {folder}, which holds a file {there[0]}, expected another folder")
        if begun and not options.resume:
            raise UsageError(f"out: got {folder}, which holds an unfinished run (go on with --resume), expected "
                             "another folder")
        if options.resume and not begun:
            raise UsageError(f"resume: got {folder}, which holds no unfinished run, expected one")
        if begun and runner.ensembles(work) > options.ensembles:
            raise UsageError(f"ensembles: got {options.ensembles}, expected at least {runner.ensembles(work)}: so many "
                             f"are begun in {folder}")
        work.mkdir(parents=True, exist_ok=True)
        (work / runner.MARKER).touch()
    except OSError as error:
        raise UsageError(f"out: got {folder}, which cannot be written ({error.strerror}), expected a writable "
                         "folder") from None
    return folder, work


def _progress_bar(total, quiet):
    try:
        from tqdm import tqdm
    except ImportError:
        raise UsageError("tqdm: not installed, expected the extra cpu or gpu: pip install -e '.[cpu]'") from None
    return tqdm(total=total, disable=quiet, unit="update", dynamic_ncols=True)


def _advance(bar, done, line):
    if line is not None:
        shown = {name: "-" if line.get(name) is None else f"{line[name]:.3g}" for name in ("sigma", "misfit")}
        bar.set_postfix_str(f"sigma {shown['sigma']}, misfit {shown['misfit']}", refresh=False)
    bar.update(done - bar.n)


def _versions():
    from importlib import metadata

    names = ("numpy", "scipy", "array-api-compat", "onnxruntime", "onnxruntime-gpu")
    found = {"enkg_ref": __version__, "python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# ----------------------------------------------------------------------------------------------------------- compare
TUNING_ITEM = 100  # number of the first tuning item; tables use 0, 1, ...


def build_items(options, methods, numbers):
    """[`arena.Item`, one per number of a simulated truth], with whatever ``methods`` need and the prior has."""
    if not problems.entry(options.problem).simulated:
        raise UsageError(f"problem: got {options.problem}, whose truth nobody knows, expected a simulated one")
    items = []
    for number in numbers:
        own = argparse.Namespace(**{**vars(options), "item": number, "seed": number})
        problem = build_problem(own)
        name, denoise = build_prior(own, problem)
        own.dtype = "float64" if name == "exact" else "float32"  # what the prior computes in
        items.append(build_item(own, problem, denoise, methods, lenient=True))
    return items


def _identity(options, problem):
    """What a comparison is of, beside the data of its items: nothing of it may change while it goes on."""
    noise = np.asarray(problem.observation.noise)
    arguments = problems.arguments(options.problem, **vars(options))
    return {"prior": options.prior or problem.prior or "exact", "prior_sha256": _prior_sha256(options, problem),
            "reference_sha256": _reference_sha256(options, problem), "version": __version__, **arguments,
            "noise": _digest(noise) if noise.ndim else float(noise)}


def compare(options):
    """``enkg compare``: methods at equal cost on the same items; tables, a plot, one record per run."""
    for name in ("seeds", "items"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name}: got {getattr(options, name)}, expected at least 1")
    if (options.tune or 0) < 0:
        raise UsageError(f"tune: got {options.tune}, expected a budget of at least 1")
    for name in options.methods:
        if name not in arena.METHODS:
            raise _nearest(name, arena.METHODS, "methods")
    items = build_items(options, options.methods, range(options.items))
    metric = items[0].problem.metric
    out, about = Path(options.out or f"out-compare-{options.problem}"), _identity(options, items[0].problem)
    tuned_at = [] if options.tune is None else [options.tune or max(options.budget)]
    _, c_vjp = arena.begin(items, options.methods, options.budget + tuned_at, out, {}, options.c_vjp, about)
    settings, tuned = {}, []
    for budget in tuned_at:
        tuning = build_items(options, options.methods, range(TUNING_ITEM, TUNING_ITEM + 2))
        for name in options.methods:
            settings[name], trials = arena.tune(tuning, name, budget, out / "tuning", c_vjp, metric,
                                                about=about)
            spent = sum(trial["forward_equivalents"] for trial in trials)
            tuned.append(f"{name}: tuned to {settings[name]}, the best of {len(trials)} on two other items at budget "
                         f"{budget}, {spent:.0f} forward equivalents per item")
            if not options.quiet:
                print(tuned[-1], flush=True)
    bar = _progress_bar(len(items) * options.seeds * len(options.methods) * len(options.budget), options.quiet)

    def advance(record, done, total):
        bar.set_postfix_str(f"{record['method']} {record['budget']}", refresh=False)
        bar.update(done - bar.n)

    try:
        summary = arena.compare(items, options.methods, options.budget, options.seeds, out, settings, c_vjp, about,
                                advance, metric, tuned)
    finally:
        bar.close()
    if not options.quiet:
        print(arena.to_text(summary))
        plot = "pareto.png, " if (out / "pareto.png").exists() else ""
        print(f"  written to {out}/: table.txt, table.csv, results.json, {plot}runs/")
    return 0


# ------------------------------------------------------------------------------------------------------ other commands
def verify(options):
    """``enkg verify``: the statements of THEORY.md, measured."""
    from .statements import verify as statements

    return statements.run(json_path=options.json, backend=options.backend)


def list_known(options):
    """``enkg list``: problems, methods with what each needs, priors."""
    from onnx_priors.manifest import read_manifest

    print("problems")
    for name in problems.PROBLEMS:
        print(f"  {name:20s} {problems.entry(name).words}")
    print("methods: what they are, what they need, how they spend --budget (a number of forward calls)")
    for name, method in arena.METHODS.items():
        print(f"  {name:20s} {method.words}")
        print(f"  {'':20s} needs {', '.join(sorted(method.access))}; {method.spends}")
    print("priors")
    for name, entry in read_manifest().items():
        metadata = entry["metadata"]
        print(f"  {name:20s} {'x'.join(map(str, metadata['event_shape'])):10s} {metadata.get('data', '')}")
    return 0


def _number(kind):
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            wanted = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {wanted}") from None
        if kind is int and abs(value) >= 10**18:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at most 18 digits")
        if not np.isfinite(value):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a finite number")
        return value
    return read


def _positive(text):
    value = _number(float)(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number >= 0")
    return value


def _names(text):
    return text.split(",")


def _budgets(text):
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers separated by commas") from None
    if len(set(budgets)) < len(budgets) or min(budgets) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected different numbers >= 1")
    return sorted(budgets)


def _window(text):
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected START,END as fractions of the steps") from None
    if not (start >= 0.0 and end >= 0.0 and start + end < 1.0):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected two fractions >= 0 with a sum below 1")
    return start, end


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(message.replace("argument ", "", 1))


def _parser():
    parser = _Parser(prog="enkg", description="Ensemble Kalman Diffusion Guidance (arXiv 2409.20175): inverse problems "
                     "with a diffusion prior and evaluations of the forward model only.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    run = commands.add_parser("solve", help="reconstruct one observation")
    run.set_defaults(call=solve)
    add = run.add_argument
    add("problem", nargs="?", help=f"one of {', '.join(problems.PROBLEMS)}; none with --forward")
    add("--method", default="enkg", help=f"one of {', '.join(arena.METHODS)}; default enkg")
    add("--prior", help="shipped prior by name, an .onnx file, or gaussian (navier-stokes: the Gaussian of its "
        "fields); default: the problem's own")
    add("--particles", type=_number(int), help="J, ensemble size; default: the problem's")
    add("--steps", type=_number(int), help="N, diffusion steps; default: the problem's")
    add("--updates", type=_number(int), help="U, corrections per guided level; default: the problem's")
    add("--guidance", type=_positive, help="gamma; monotone up to 2; default: the problem's")
    add("--window", type=_window, metavar="START,END", help="unguided fractions of the steps at both ends; "
        "default: the problem's")
    add("--step-rule", choices=STEP_RULES, help="(T5); default frobenius. 'tempered' is an extension, not in the paper")
    add("--stop", choices=STOPS, help="discrepancy stop, an extension, not in the paper; default none")
    add("--failed", choices=("shift", "keep", "raise"), help="what a failed forward call does to its particle; "
        "default shift")
    add("--preset", help="a released configuration of the sampler (data and misfit stay the problem's): "
        f"{', '.join(PRESETS)}")
    add("--budget", type=_number(int), metavar="CALLS", help="forward calls of one ensemble, from which all "
        f"settings follow; every method but enkg and enkg-r (1504; black holes 3840) needs it. A gradient costs "
        f"{VJP_COST:g} calls beside its value")
    add("--reference", metavar="FILE", help="enkg-r with a prior of your own: images like those it was trained on, "
        ".npy, (N, *event) in physical units, N >= 32; or a reference .npz made by benchmarks/make_reference.py")
    add("--seed", type=_number(int), default=0, help="of the initial noise; ensemble k uses seed + k; default 0")
    add("--ensembles", type=_number(int), help="independent ensembles; default 3 for m87, else 1")
    add("--workers", type=_number(int), help="processes; default: one per ensemble, at most one per core")
    add("--noise", type=_positive, metavar="SIGMA", help="standard deviation of the data")
    add("--observation", metavar="FILE", help="data: CSV or UVFITS (black-hole), .npy (navier-stokes, "
        "--forward)")
    add("--truth", metavar="FILE.npy", help="known truth, for the error only (black-hole: simulated from it)")
    add("--forward", metavar="NAME", help="your simulator: package.module:function, (J, *event) -> (J, m) in physical "
        "units, or a command with {input} and {output} (.npy, one member each)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu; cuda needs the extra gpu")
    add("--dtype", choices=("float64", "float32"), default="float64", help="of the particles, default float64; priors "
        "run in float32")
    add("--chunk", type=_number(int), help="rows per call of prior and forward model")
    add("--out", metavar="DIR", help="output folder; default out-PROBLEM")
    add("--resume", action="store_true", help="go on with the unfinished run in --out")
    add("--quiet", action="store_true", help="print nothing")
    add("--item", type=_number(int), help="number of the simulated truth; default 0")
    _add_problem_options(run)

    versus = commands.add_parser("compare", help="methods at equal cost on the same simulated data")
    versus.set_defaults(call=compare, **dict.fromkeys(NO_BUDGET), method=None, forward=None, observation=None,
                        truth=None, reference=None, chunk=None, device="cpu", dtype=None, item=None)
    add = versus.add_argument
    add("problem", help="linear-gaussian, navier-stokes or black-hole (simulated)")
    add("--methods", type=_names, required=True, metavar="A,B,..", help=f"some of {', '.join(arena.METHODS)}")
    add("--budget", type=_budgets, required=True, metavar="N[,N..]", help="forward calls of one run, a gradient at its "
        "measured cost; a method spends it as enkg list says")
    add("--c-vjp", type=_positive, metavar="CALLS", help="what a gradient costs beside its value, in forward calls; "
        "default: measured once, at least 1, and kept in --out")
    add("--seeds", type=_number(int), default=3, help="runs per method, budget and item; default 3")
    add("--items", type=_number(int), default=10, help="simulated truths, numbers 0, 1, ...; default 10")
    add("--tune", nargs="?", type=_number(int), const=0, metavar="N", help="first choose the settings, of four, "
        "on two other items at budget N (the largest)")
    add("--prior", help="as for solve")
    add("--noise", type=_positive, metavar="SIGMA", help="standard deviation of the data")
    add("--out", metavar="DIR", help="output folder; default out-compare-PROBLEM. The same command goes on with it")
    add("--quiet", action="store_true", help="print nothing")
    _add_problem_options(versus)

    check = commands.add_parser("verify", help="measure the statements of THEORY.md")
    check.set_defaults(call=verify)
    check.add_argument("--json", metavar="FILE", help="the same for machines")
    check.add_argument("--backend", default="numpy", help="numpy, torch, jax, strict or cupy")

    known = commands.add_parser("list", help="problems, methods and what each needs, priors")
    known.set_defaults(call=list_known)
    return parser


def _add_problem_options(command):
    """The options of the problems, grouped by who has them; `problems.build` reads their texts."""
    groups = {}
    for name, having in problems.options().items():
        if name not in problems.SHARED:
            title = ", ".join(problem for problem, _ in having)
            groups[title] = groups.get(title) or command.add_argument_group(title)
            option = having[0][1]
            default = "" if option.default is None else f"; default {option.default}"
            groups[title].add_argument("--" + name.replace("_", "-"), help=option.help.replace("%", "%%") + default)


def main(argv=None):
    """Entry point. Returns the exit code: 0 done, 1 a run or a statement failed, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = None
    try:
        options = _parser().parse_args(argv)
        options.argv = argv
        code = options.call(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `enkg list | head`: the reader has what it wanted; nothing is left for the last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.call is list_known else 1
    except FloatingPointError as error:
        print(f"enkg: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        call = getattr(options, "call", None)
        kept = {solve: "; what is done is kept: repeat the command with --resume to go on",
                compare: "; what is done is kept: repeat the command to go on"}.get(call, "")
        if call is solve and not runner.begun(Path(options.out or f"out-{options.problem or 'own'}") / "run"):
            kept = " before anything was done"
        print(f"enkg: interrupted{kept}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if getattr(options, "computed", False):  # the input was good: this is a fault of ours, and the run is kept
            raise
        print(f"enkg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
