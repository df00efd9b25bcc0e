"""From a request to what a method works on: problem, prior, likelihood, item. Only here the three packages meet.

What a request may hold is said in ``solve.SolveRequest`` and ``compare.CompareRequest``; both are read by name here.
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import problems
from onnx_priors.manifest import read_manifest, resolve

from ..baselines.deft import OnnxCorrection
from ..enkg_r.reference import LEAST_IMAGES, Reference, file_sha256, from_images
from ..likelihood import Closures, Gaussian
from ..methods import METHODS, Item
from ..protocol import one_of
from ..run import members

REFERENCE_MODES = 512  # at most, of a reference from images
GAUSSIAN_MODES = 1024  # at most, of the reference of a Gaussian prior


# -------------------------------------------------------------------------------------------------------------- problem
def problem_of(request, log=None):
    """The Problem of a request: one of the table, the user's object, or the user's forward model with prior and data.

    log : told of failed members, see ``members.guarded``
    """
    shared = {name: getattr(request, name) for name in ("observation", "noise", "truth")}
    given = {**request.options, **{name: value for name, value in shared.items() if value is not None}}
    if request.forward is not None:
        if request.problem is not None:
            raise ValueError(f"problem: got {request.problem} with --forward, expected one of the two")
        return _own(request, given, log)
    if request.problem is None:
        raise ValueError(f"problem: got nothing, expected one of {', '.join(problems.PROBLEMS)}, or --forward")
    if not isinstance(request.problem, str):
        if given:
            raise ValueError(f"{min(given)}: got {given[min(given)]} with a Problem object, expected it "
                             "inside the object")
        return request.problem
    one_of("problem", request.problem, problems.PROBLEMS)
    known = {option.name for option in problems.entry(request.problem).options}
    if "seed" in known and "seed" not in given:
        given["seed"] = request.seed
    return problems.build(request.problem, **given)


def _own(request, given, log):
    """The user's forward model between a prior and data."""
    from problems.files import read_array
    from problems.problem import Observation, Problem

    for name in sorted(set(given) - {"observation", "noise", "truth"}):
        raise ValueError(f"{name}: got {given[name]}, expected nothing: problem given by --forward does not use it")
    for name in ("prior", "observation", "noise"):
        if getattr(request, name) is None:
            raise ValueError(f"{name}: got nothing, expected --{name} together with --forward")
    if isinstance(request.prior, str) and request.prior == "gaussian":
        raise ValueError("prior: got gaussian with --forward, expected a file: enkg prior fit images.npy --out "
                         "prior.onnx makes the Gaussian of images like your fields")
    y = read_array(request.observation, "observation").reshape(-1)
    denoise = _network(request.prior, request) if isinstance(request.prior, (str, Path)) else request.prior
    truth = None if request.truth is None else read_array(request.truth, "truth")
    facts = getattr(denoise, "metadata", {})
    shape = getattr(denoise, "event_shape", None if truth is None else truth.shape)
    if shape is None:
        raise ValueError("prior: got a function without event_shape, expected one with it, or a truth")
    scale, shift = (float(facts.get(name, default)) for name, default in (("scale", 1.0), ("shift", 0.0)))
    forward = _simulator(request, y.size, log)
    return Problem(name="own", event_shape=tuple(shape), forward=lambda x: forward(scale * x + shift),
                   observation=Observation(y, _noise(request.noise)), scale=scale, shift=shift, truth=truth,
                   units=facts.get("units", ""), notes=f"forward model {named(request.forward)}")


def _noise(noise):
    """A standard deviation, one per datum, or a covariance: a number, an array, or an .npy file of one."""
    from problems.files import read_array

    try:
        return float(noise)
    except (TypeError, ValueError):
        return read_array(noise, "noise")


def _simulator(request, size, log):
    """Forward model in physical units from a function, its name, or a command; members side by side with workers."""
    if _is_command(request.forward):
        return members.Program(request.forward, size, request.timeout, log, request.executor)
    if request.timeout is not None:
        raise ValueError(f"timeout: got {request.timeout} with a function, expected it with a command only")
    if isinstance(request.forward, members.Told):
        return lambda x: request.forward(x, size)
    call = members.Named(request.forward) if isinstance(request.forward, str) else request.forward
    if not callable(call):
        raise ValueError(f"forward: got a {type(call).__name__}, expected a function or its name")
    return members.guarded(call, size, log=log, executor=request.executor, rows=request.chunk)


def pool(forward, workers):
    """Where members of one wave run side by side: threads that wait for programs, processes for a function."""
    if _is_command(forward):
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _is_command(forward):
    return isinstance(forward, str) and "{" in forward


def named(thing):
    """What a message or a summary calls a function, a file or an array."""
    if isinstance(thing, (str, Path)):
        return str(thing)
    return getattr(thing, "__qualname__", f"a {type(thing).__name__}")


# ---------------------------------------------------------------------------------------------------------------- prior
@dataclass(frozen=True)
class Prior:
    """The prior of a run: its name, D(x, sigma), and where what belongs to it is found.

    gaussian : the Gaussian it is, or None;  file : of a network, or None;  source : what names that network
    vjp : () -> (x, sigma, v) -> (D, J_D' v), raises where there is none
    """

    name: str
    denoise: Any
    vjp: Any
    gaussian: Any = None
    source: str | None = None

    @cached_property
    def file(self):
        return None if self.source is None else Path(resolve(self.source))

    @cached_property
    def sha256(self):
        return None if self.file is None else file_sha256(self.file)

    @property
    def reference_file(self):
        """Where the reference of a network is looked for."""
        return None if self.file is None else self.file.with_name(f"{self.file.stem}.reference.npz")


def prior_of(request, problem, threads=None):
    """The `Prior` of a request: the problem's exact one or its Gaussian, a network by name or file, or a function."""
    given = problem.prior if request.prior is None else request.prior
    own = problem.gaussian
    if given is None:
        if own is None or problem.posterior is None:
            words = "" if own is None else (", trained with python -m onnx_priors.training.navier_stokes --size "
                                            f"{problem.event_shape[0]}, or --prior gaussian")
            raise ValueError(f"prior: got nothing, expected --prior NAME or FILE.onnx{words}")
        return Prior("exact", own.denoise, lambda: own.denoise_vjp, own)
    if isinstance(given, str) and given == "gaussian":
        if own is None:
            raise ValueError(f"prior: got gaussian, which problem {problem.name} does not have, expected a shipped "
                             f"prior by name ({', '.join(read_manifest())}) or an .onnx file; enkg prior fit makes one "
                             "from images")
        return Prior("gaussian", own.denoise, lambda: own.denoise_vjp, own)
    if isinstance(given, (str, Path)):
        return _network_prior(str(given), request, problem, threads)
    denoise = getattr(given, "denoise", given)
    if not callable(denoise):
        raise ValueError(f"prior: got a {type(given).__name__}, expected a name, a file, or (x, sigma) -> D(x, sigma)")
    return Prior(named(given), denoise, partial(_lacking, "VJP", given), given if hasattr(given, "principal") else None)


def _network_prior(name, request, problem, threads):
    denoise = _network(name, request, threads)
    if tuple(denoise.event_shape) != tuple(problem.event_shape):
        raise ValueError(f"prior: got {name} for events of shape {tuple(denoise.event_shape)}, expected "
                         f"{tuple(problem.event_shape)} for problem {problem.name}")
    _refuse_foreign(name, denoise.metadata, problem)
    return Prior(Path(name).name, denoise, partial(_network_vjp, name, request), source=name)


def _network(name, request, threads=None):
    from onnx_priors.session import OnnxDenoiser

    return OnnxDenoiser(name, device=request.device, threads=threads, chunk=request.chunk)


def _network_vjp(name, request):
    from onnx_priors.session import OnnxDenoiserVJP

    file = name.removesuffix(".onnx") + "_vjp.onnx" if name.endswith(".onnx") else name
    return OnnxDenoiserVJP(file, device=request.device, chunk=request.chunk)


def _lacking(what, prior):
    found = getattr(prior, "denoise_vjp", None)
    if found is None:
        raise ValueError(f"prior: got {named(prior)} without a {what}, expected one that has it")
    return found


def _refuse_foreign(name, metadata, problem):
    """ValueError for a prior made for another problem, which one of our training commands says in its metadata.

    What others write there, or leave out, is theirs to know.
    """
    shipped = {prior: entry["metadata"] for prior, entry in read_manifest().items()}
    units, expected = metadata.get("units"), shipped.get(problem.prior, {}).get("units", problem.units)
    if units in {facts["units"] for facts in shipped.values()} and units != expected:
        raise ValueError(f"prior: got {name}, made for {units!r}, expected one for {expected!r}")


# ---------------------------------------------------------------------------------------------- what belongs to a prior
def reference_of(request, problem, prior):
    """(Gaussian reference of the prior, which enkg-r needs; denoiser calls that it cost)

    The user's (a `Reference`, its FILE.npz, or images FILE.npy), that of a Gaussian, or the one beside the prior.
    """
    given = request.reference
    if isinstance(given, Reference):
        return given, 0
    if given is not None and (not isinstance(given, (str, Path)) or str(given).endswith(".npy")):
        images = reference_images(given, problem.event_shape, problem.scale, problem.shift)
        exact = prior.gaussian is not None
        found = from_images(images, None if exact else prior.denoise, modes=REFERENCE_MODES,
                            prior_sha256=prior.sha256 or "")
        return found, 0 if exact else getattr(prior.denoise, "phys_net", 0)
    if given is not None:
        found = Reference.load(given, prior.sha256 or "")
        if tuple(found.mean.shape) != tuple(problem.event_shape):
            raise ValueError(f"reference: got {given} for events of shape {tuple(found.mean.shape)}, expected "
                             f"{tuple(problem.event_shape)}")
        return found, 0
    if prior.gaussian is not None:
        return Reference(*prior.gaussian.principal(min(GAUSSIAN_MODES, prior.gaussian.mean.size))), 0
    if prior.reference_file is None or not prior.reference_file.exists():
        beside = "" if prior.reference_file is None else (
            f", or {prior.reference_file.name} beside it, which enkg prior fit, train and import write")
        raise ValueError(f"reference: got nothing for prior {prior.source or prior.name}, expected --reference "
                         f"images.npy (images like those it was trained on){beside}")
    return Reference.load(prior.reference_file, prior.sha256), 0


def has_reference(request, prior):
    """Whether `reference_of` will find one, as far as can be seen without making it."""
    return (request.reference is not None or prior.gaussian is not None
            or prior.reference_file is not None and prior.reference_file.exists())


def reference_images(source, shape, scale, shift):
    """The user's images, (N, *event) in physical units, as float32 in prior units, checked."""
    from problems.files import read_array

    images = read_array(source, "reference")
    if images.shape[1:] != tuple(shape) or len(images) < LEAST_IMAGES:
        named = f"{source} with an array" if isinstance(source, (str, Path)) else "an array"
        raise ValueError(f"reference: got {named} of shape {images.shape}, expected at least "
                         f"{LEAST_IMAGES} images of shape {tuple(shape)} in physical units")
    return ((images - shift) / scale).astype(np.float32)


def reference_sha256(request, prior):
    """Of the file the reference comes from; None where it comes from none."""
    path = prior.reference_file if request.reference is None else request.reference
    return file_sha256(path) if isinstance(path, (str, Path)) and Path(path).exists() else None


def correction_of(problem, prior):
    """h(x, D, sigma) of DEFT for these data; raises where no network was trained for the problem and its prior."""
    if "correction" not in read_manifest().get(prior.source, {}):
        raise ValueError(f"method: got deft, which has no network for problem {problem.name} with this prior, expected "
                         "navier-stokes with navier-stokes-32")
    return OnnxCorrection(resolve(prior.source, "correction"), problem.observation.y, problem.observation.noise)


# ----------------------------------------------------------------------------------------------------------------- item
def likelihood_of(problem):
    """What the problem's observation means: the likelihood it brings, closures where some data are angles, Gaussian."""
    data = problem.observation
    if getattr(problem, "likelihood", None) is not None:
        return problem.likelihood
    return Gaussian(data.y, data.noise) if data.angular is None else Closures(data.y, data.noise, data.angular)


def item_of(request, problem, prior, methods, lenient=False):
    """(`Item` with all that ``methods`` ask of the prior, denoiser calls that its reference cost)

    lenient : what is not there is None, and the methods that need it can be refused; else it raises
    """
    needs = frozenset().union(*(METHODS[name].access for name in methods))
    if getattr(request, "settings", {}).get("tail"):
        needs = needs | {"reference"}

    def given(name, build):
        if name not in needs:
            return None
        try:
            return build()
        except (ValueError, OSError):
            if not lenient:
                raise
            return None

    reference, spent = given("reference", lambda: reference_of(request, problem, prior)) or (None, 0)
    known = dict(getattr(problem, "known", {}))
    if not known and reference is not None:
        known = {"prior mean": problem.scale * reference.mean + problem.shift}
    std = getattr(prior.denoise, "metadata", {}).get("sigma_data") if prior.gaussian is None else prior.gaussian.std
    low, high = (getattr(prior.denoise, name, default) for name, default in (("sigma_min", 0.002), ("sigma_max", 80.0)))
    item = Item(problem, likelihood_of(problem), prior.denoise, denoise_vjp=given("denoiser_vjp", prior.vjp),
                correction=given("correction", lambda: correction_of(problem, prior)), reference=reference,
                sigma_range=(low, high), std=std, dtype=request.dtype, known=known)
    return item, spent


def chunked_item(item, chunk):
    """The same item whose forward model sees at most ``chunk`` rows at a time."""
    if chunk is None:
        return item
    problem = dataclasses.replace(item.problem, forward=members.chunked(item.problem.forward, chunk))
    return dataclasses.replace(item, problem=problem)


def threads_per_worker(workers):
    return max(1, (os.cpu_count() or 1) // max(1, workers))
