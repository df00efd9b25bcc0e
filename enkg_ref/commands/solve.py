"""``solve``: reconstruct one observation. What ``enkg solve`` does, as a function of a frozen request.

>>> from enkg_ref.commands.solve import SolveRequest, solve
>>> found = solve(SolveRequest("linear-gaussian", settings={"particles": 64}))
>>> found.mean, found.std, found.summary["verdict"]["kind"], found.figure()      # doctest: +SKIP

Nothing is written unless the request names a folder ``out``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._xp import member_normals
from ..methods import METHODS, check, choose
from ..protocol import one_of
from ..run import checkpoint, folder, ledger, members, runner
from . import building, results
from .sizes import refuse_impossible

VJP_COST = 2.0  # forward calls that a gradient of the forward model costs beside its value: the usual guess
FAILURE_FILE = "forward-error.txt"


@dataclass(frozen=True)
class SolveRequest:
    """What to solve, how, and where to put it.

    problem : name of ``problems.PROBLEMS``, a Problem object, or None with ``forward``
    options : of a named problem, {name: value or its text}
    forward : the user's simulator, (J, *event) -> (J, m) in physical units: a function, "package.module:function", or a
        command with {input} and {output} in it
    observation, noise, truth : arrays or .npy files; for a named problem as its options say. noise: one standard
        deviation, one per datum, or a covariance
    method : name of ``methods.METHODS``; None: `methods.choose`;  settings : {name: value} of its options
    budget : forward calls of one ensemble, or None
    prior : shipped name, .onnx file, "gaussian", or (x, sigma) -> D(x, sigma); None: the problem's
    reference : of enkg-r: a Reference, its .npz file, or images (array or .npy file)
    paper : the published settings exactly (enkg)
    seed : of the start; ensemble k uses seed + k;  ensembles : independent ones; None: the problem's number
    workers : processes for the ensembles; beyond them, members of one wave side by side (with ``forward``)
    executor : of concurrent.futures, for the members, in place of workers
    device, dtype : of the particles;  chunk : rows per call of prior and forward model
    timeout : seconds that one run of a command may take
    out : folder, or None;  resume : go on with what is in it;  figure : draw figure.png there
    quiet : no line about failed members;  command : what a resume by the folder alone repeats
    """

    problem: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    forward: Any = None
    observation: Any = None
    noise: Any = None
    truth: Any = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    prior: Any = None
    reference: Any = None
    paper: bool = False
    seed: int = 0
    ensembles: int | None = None
    workers: int | None = None
    executor: Any = None
    device: str = "cpu"
    dtype: str = "float64"
    chunk: int | None = None
    timeout: float | None = None
    out: Any = None
    resume: bool = False
    figure: bool = True
    quiet: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self):
        if self.method is not None:
            one_of("method", self.method, METHODS)
        for name, least in (("ensembles", 1), ("workers", 1), ("chunk", 1), ("budget", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name, most in (("ensembles", 10_000), ("workers", 1_000)):
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at most {most}")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected a number >= 0")
        one_of("dtype", self.dtype, ("float64", "float32"))
        one_of("device", self.device, ("cpu", "cuda"))
        if self.device == "cuda":
            _require_cuda()


@dataclass(frozen=True)
class Solution:
    """What ``solve`` found. Fields in physical units, J particles over all ensembles, m data.

    mean, std : (*event);  ensemble : (J, *event);  ensemble_index : (J,), whose each particle is
    observation : (m,);  predictions : (J, m) of the last particles, NaN where they failed;  truth : (*event) or None
    summary : what summary.json holds;  history : one {name: number} per update
    """

    mean: Any
    std: Any
    ensemble: Any
    ensemble_index: Any
    observation: Any
    predictions: Any
    truth: Any
    summary: dict
    history: list
    problem: Any = field(repr=False)

    def arrays(self):
        """{name: array}, as in result.npz."""
        names = ("mean", "std", "ensemble", "ensemble_index", "observation", "predictions", "truth")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def figure(self):
        """A matplotlib Figure; the problem's own picture where it has one. The verdict is its head."""
        return results.drawn(self)


def solve(request, progress=None):
    """Check everything, run the ensembles, and write the folder if the request names one.  -> `Solution`

    progress : called with (updates done, updates in all, last history line or None)

    Raises ValueError, OSError or ImportError for bad input, in one sentence, before anything is written;
    FloatingPointError where the run cannot go on (its last good state stays in the folder, to resume).
    """
    started = time.perf_counter()
    with contextlib.closing(Setup(request)) as setup, _place(setup) as work:
        total = setup.request.ensembles * setup.plan(0).waves
        outcomes = runner.run_ensembles(
            Build(setup.request, setup), setup.request.ensembles, setup.processes, work,
            lambda done, line: progress(done, total, line) if progress is not None else None)
        try:
            solution = finished(setup, outcomes, started)
        except (ValueError, OSError, ImportError) as error:  # the input was good: this is a fault of ours
            raise RuntimeError(f"{error} (the run is kept and can be resumed)") from error
        if request.out is not None:
            write(solution, Path(request.out), work, request.figure)
    return solution


class Build:
    """(k, ledger) -> `runner.Run` of ensemble k; a process of its own makes everything from the request anew."""

    def __init__(self, request, setup=None):
        self.request, self.setup = request, setup

    def __call__(self, k, ledger):
        if self.setup is None:
            self.setup = Setup(self.request)
        return self.setup.run(k, ledger)

    def __reduce__(self):
        return Build, (dataclasses.replace(self.request, executor=None),)


class Setup:
    """What is made of a request before anything runs: problem, prior, item, and the plan of each ensemble."""

    def __init__(self, request):
        refuse_impossible(request.settings, request.budget)
        path = None if request.out is None else Path(request.out) / FAILURE_FILE
        log = members.FailureLog(path, request.quiet)
        self._pool = None
        request = self._with_executor(request)
        self.problem = building.problem_of(request, log)
        count = self.problem.ensembles if request.ensembles is None else request.ensembles
        workers = request.workers or (1 if request.device == "cuda" else min(count, os.cpu_count() or 1))
        request = dataclasses.replace(request, ensembles=count, workers=workers)
        self.processes = 1 if request.executor is not None else min(workers, count)
        self.prior = building.prior_of(request, self.problem, building.threads_per_worker(self.processes))
        request, self.chosen = self._with_method(request)
        self.method = METHODS[request.method]
        self.settings = self._settings(request)
        item, self.reference_calls = building.item_of(request, self.problem, self.prior, [request.method])
        self.item = building.chunked_item(item, None if request.executor is not None else request.chunk)
        self.reference_sha256 = building.reference_sha256(request, self.prior)
        if self.item.reference is not None and request.reference is not None:
            request = dataclasses.replace(request, reference=self.item.reference)  # it may have cost denoiser calls
        self.budget = request.budget
        if self.budget is None and request.method == getattr(self.problem, "method", None):
            self.budget = self.problem.budget
        if self.budget is None and self.method.default_budget is not None:
            self.budget = self.method.default_budget(self.item)
        check([request.method], self.item, [self.budget], VJP_COST, {request.method: self.settings})
        self.request = request
        if self.processes > 1 and not _picklable(Build(request)):
            self.processes = 1  # functions of a notebook do not travel to other processes
        refuse_impossible(self.plan(0).settings, self.budget, self.plan(0).rows, self.problem.event_shape)

    def close(self):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _with_method(self, request):
        """(the request with a method, why it is this one where the user named none)"""
        if request.method is not None:
            return request, ""
        own = {**request.settings, **({"paper": True} if request.paper else {})}
        name, why = choose(self.problem, building.has_reference(request, self.prior), own)
        return dataclasses.replace(request, method=name), f"{name}: {why}"

    def _with_executor(self, request):
        """The request with the pool that its ``workers`` ask for beyond the ensembles."""
        inner = (request.workers or 1) // (request.ensembles or 1)
        if request.forward is None or request.executor is not None or inner < 2 or (request.ensembles or 1) > 1:
            return request
        self._pool = building.pool(request.forward, inner)
        return dataclasses.replace(request, executor=self._pool)

    def _settings(self, request):
        """The user's settings, refused where the method would ignore them."""
        settings, method = dict(request.settings), self.method
        if request.paper:
            settings["paper"] = True
        known = {*method.options, *(name for candidate in method.candidates for name in candidate)}
        for name in settings:
            if name not in known:
                raise ValueError(f"{name}: got {settings[name]} with method {request.method}, expected "
                                 f"{', '.join(sorted(known)) or '--budget CALLS'} only")
        if request.reference is not None and "reference" not in method.access and not settings.get("tail"):
            raise ValueError(f"reference: got {building.named(request.reference)} with method {request.method}, which "
                             "needs none")
        return settings

    def plan(self, k, ledger=None):
        """`protocol.Plan` of ensemble k; without a ledger it is only looked at, and no call is made."""
        item = dataclasses.replace(self.item, norm=lambda item: 1.0) if ledger is None else self.item.counted(ledger)
        return self.method.plan(item, self.budget, VJP_COST, self.request.seed + k, self.settings)

    def run(self, k, ledger):
        """`runner.Run` of ensemble k, whose calls the ledger counts."""
        if k == 0:  # once, not for every ensemble
            ledger.counts["offline_fwd"] = getattr(self.item.correction, "offline_forward", 0)
        plan, request = self.plan(k, ledger), self.request
        noise = member_normals(request.seed + k, 0, plan.rows, self.problem.event_shape).astype(request.dtype)
        if request.device != "cpu":
            import cupy

            noise = cupy.asarray(noise)
        forward = plan.around(ledger.forward(self.item.forward))
        return runner.Run(plan, forward, noise, self.method.observe, self.method.memory, self.item.likelihood,
                          self._about(plan, request.seed + k))

    def _about(self, plan, seed):
        request, problem, data = self.request, self.problem, self.problem.observation
        return {**plan.settings, "problem": problem.name, "method": request.method, "prior": self.prior.name,
                "seed": seed, "prior_sha256": self.prior.sha256, "scale": problem.scale, "shift": problem.shift,
                "reference": self.reference_sha256 if "reference" in self.method.access else None,
                "forward": None if request.forward is None else building.named(request.forward),
                "chunk": request.chunk, "version": __version__, "dtype": request.dtype, "device": request.device,
                "observation": checkpoint.described(data.y), "noise": checkpoint.described(data.noise)}


def _picklable(thing):
    try:
        pickle.dumps(thing)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


@contextlib.contextmanager
def _place(setup):
    """The working folder, or None where nothing is to be written."""
    request = setup.request
    if request.out is not None:
        with folder.claimed(request.out, request.resume, request.ensembles, request.command) as work:
            yield work
    elif setup.processes > 1:  # they tell how far they are by their files
        with tempfile.TemporaryDirectory() as out:
            yield Path(out)
    else:
        yield None


def finished(setup, outcomes, started):
    request, problem = setup.request, setup.problem
    particles = np.concatenate([one.x for one in outcomes]).astype(np.float64)
    index = np.repeat(np.arange(len(outcomes)), [len(one.x) for one in outcomes])
    history = [line for one in outcomes for line in one.history]
    predictions = np.asarray(setup.item.forward(particles), dtype=np.float64).reshape(len(particles), -1)
    counts = ledger.add(one.ledger for one in outcomes)
    counts["diag_fwd"] += len(particles)
    counts["diag_den"] += setup.reference_calls
    found = results.Found(problem, setup.item.likelihood, problem.scale * particles + problem.shift, index, predictions,
                          history, setup.method.weigh)
    plan = setup.plan(0)
    stopped = sum(line.get("stopped", False) for line in history)
    summary = {
        "problem": problem.name, "method": request.method, "prior": setup.prior.name, "seed": request.seed,
        "ensembles": len(outcomes), "config": {"particles": plan.rows, **plan.settings}, **found.summary(counts),
        "chosen": "; ".join(words for words in (setup.chosen, plan.why) if words),
        "stop_reason": "all levels done" + (f"; {stopped} updates ended as the data were fitted" if stopped else ""),
        "ledger": counts, "notes": _notes(problem, found.poolable), "spread": setup.method.spread,
        "versions": _versions(),
        "command": " ".join(["enkg", *request.command]) if request.command else None,
        "seconds": time.perf_counter() - started,
    }
    return Solution(*found.moments(), found.ensemble, index, np.asarray(problem.observation.y), predictions,
                    None if problem.truth is None else np.asarray(problem.truth), summary, history, problem)


def _notes(problem, ensemble):
    """What the reader of this result must know; the problem may remark on the ensemble itself."""
    remarks = "" if problem.remarks is None or not np.all(np.isfinite(ensemble)) else problem.remarks(ensemble)
    return f"{problem.notes} {remarks}".strip()


def write(solution, out, work, draw):
    """result.npz, history.jsonl, summary.json, with which the run is finished; then the problem's own files and the
    picture, which may fail.
    """
    try:
        with open(out / "result.npz.partial", "wb") as file:
            np.savez(file, **solution.arrays())
        os.replace(out / "result.npz.partial", out / "result.npz")
        (out / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in solution.history))
        results.write_json(out / "summary.json", solution.summary)
    except OSError as error:
        (out / "result.npz.partial").unlink(missing_ok=True)
        raise ValueError(f"out: got {out}, which cannot be written ({error.strerror}), expected a writable folder; the "
                         "run is kept: repeat the command with --resume") from None
    folder.clear(work)
    if solution.problem.export is not None:
        try:
            solution.summary["files"] = solution.problem.export(solution.arrays(), out)
        except Exception as error:  # as for the picture
            warnings.warn(f"files: not written ({type(error).__name__}: {' '.join(str(error).split())}); the numbers "
                          f"are in {out}", stacklevel=2)
    if not draw:
        return
    try:
        solution.figure().savefig(out / "figure.png", dpi=110, bbox_inches="tight")
    except Exception as error:  # foreign code draws, and a result is more than its picture
        (out / "figure.png").unlink(missing_ok=True)
        warnings.warn(f"figure: not drawn ({type(error).__name__}: {' '.join(str(error).split())}); the numbers are in "
                      f"{out}", stacklevel=2)


def _require_cuda():
    try:
        import cupy
    except ImportError:
        raise ValueError("device: got cuda without cupy, expected it installed: pip install -e '.[gpu]'") from None
    if not cupy.is_available():
        raise ValueError("device: got cuda, expected a CUDA device, but cupy finds none")


def _versions():
    from importlib import metadata

    found = {"enkg_ref": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "scipy", "array-api-compat", "onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
