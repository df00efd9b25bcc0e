"""Methods against each other at equal cost: the same truths, data, prior and forward model, the same forward calls.

    compare(items, methods, budgets, seeds, out)        runs what is missing in ``out``, then tables and a plot

A budget is a number of forward equivalents, F = forward calls + c_vjp x forward VJPs. c_vjp is what a gradient costs
beside its value, which is among the forward calls: see `vjp_cost`. Each method spends the budget by the rule of
``METHODS``; a run that diverges stays in the table as a failure. Intervals are of the mean over items, seeds of an item
kept together (`mean_interval`); differences are paired.

A comparison lives in a folder: arena.json says what it is of, runs/ holds one record per run, and any command for the
same comparison goes on with it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import baselines, enkg
from .._xp import member_normals, to_numpy
from ..baselines import blade, deft, diffpir, dpg, dps, eki, gsg, mmps, pnpdm, scg
from ..diffusion import flow_to_zero
from ..enkg_r import method as regressed
from ..enkg_r import rule
from ..likelihood import Gaussian
from ..run import metrics, runner
from ..run.ledger import Ledger
from ..run.report import write_json


# ------------------------------------------------------------------------------------------------------------- problem
@dataclass(frozen=True)
class Item:
    """One test case with its prior: what every method gets, the same for all.

    problem : a ``Problem`` with a truth;  likelihood : of its observation;  denoise : D(x, sigma)
    denoise_vjp, correction, reference : what gradient methods, DEFT and EnKG-R need beside, or None
    sigma_range : (smallest, largest) noise level of the prior;  std : its pointwise standard deviation, or None
    dtype : of the particles
    norm : item -> ||Gamma^-1/2 J_G||, from which diffpir and pnpdm take their steps
    known : {row name: field in physical units}, answers without a run, such as the prior mean
    """

    problem: Any
    likelihood: Any
    denoise: Callable
    denoise_vjp: Callable | None = None
    correction: Callable | None = None
    reference: Any = None
    sigma_range: tuple[float, float] = (0.002, 80.0)
    std: float | None = None
    dtype: str = "float64"
    norm: Callable = lambda item: operator_norm(item)  # noqa: E731
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forward(self):
        return self.problem.forward

    @property
    def forward_vjp(self):
        return self.problem.forward_vjp

    @property
    def access(self):
        """What a method may ask for."""
        have = {"forward": self.forward, "denoiser": self.denoise, "denoiser_vjp": self.denoise_vjp,
                "forward_vjp": self.forward_vjp, "correction": self.correction, "reference": self.reference}
        return frozenset(name for name, value in have.items() if value is not None)

    def counted(self, ledger):
        """The same item whose calls the ledger counts."""
        forward_vjp = None if self.forward_vjp is None else ledger.forward_vjp(self.forward_vjp)
        problem = _Counted(self.problem, ledger.forward(self.forward), forward_vjp)
        return dataclasses.replace(
            self, problem=problem, denoise=ledger.denoiser(self.denoise),
            denoise_vjp=None if self.denoise_vjp is None else ledger.denoiser_vjp(self.denoise_vjp),
            correction=None if self.correction is None else ledger.network(self.correction))

    def digest(self):
        """Fingerprint of the data."""
        y = np.ascontiguousarray(np.asarray(self.problem.observation.y, dtype=np.float64))
        return hashlib.sha256(y.tobytes()).hexdigest()[:16]


class _Counted:
    """A problem with other callables, everything else unchanged."""

    def __init__(self, problem, forward, forward_vjp):
        self._problem, self.forward, self.forward_vjp = problem, forward, forward_vjp

    def __getattr__(self, name):
        return getattr(self._problem, name)


# ------------------------------------------------------------------------------------------------------------- methods
@dataclass(frozen=True)
class Method:
    """How a method spends a budget: ``plan(item, budget, c_vjp, seed, settings) -> (method, rows of noise)``."""

    plan: Callable
    access: frozenset
    words: str
    spends: str


STEPS = (1000, 500, 250, 100, 50, 25, 10)  # of the diffusion, longest first
ENOUGH_STEPS = 50  # with fewer the unguided VP sampler is itself too coarse to draw from the prior


def _steps(name, budget, cost, rows, settings, least=1):
    """(N, number of rows) of one chain with many calls per step: the largest N that pays ``rows`` rows of cost(N) each.

    At least `ENOUGH_STEPS`, for fewer rows, down to ``least``; fewer steps only where even those cannot be paid.
    ``settings`` may fix "steps".
    Raises ValueError with the least budget.
    """
    steps = (settings["steps"],) if "steps" in settings else STEPS
    enough, few = ([n for n in steps if n >= ENOUGH_STEPS], [n for n in steps if n <= ENOUGH_STEPS])
    for wanted, ladder in ((rows, enough), (least, few or steps)):
        for n in ladder:
            if budget >= wanted * cost(n):
                return n, int(budget // cost(n))
    _at_least(name, budget, math.ceil(least * cost(min(steps))))


def _at_least(name, budget, least):
    if budget < least:
        raise ValueError(f"budget: got {budget} forward calls for {name}, expected at least {least}")


def _chains(name, budget, cost, settings, rows, longest, shortest=10, first=0.0):
    """(N, R): ``rows`` chains of as many steps as the budget pays at ``cost`` each; more chains beyond ``longest``.

    A chain that is too short to fit the data is worth little, however many there are. ``settings`` may fix "rows" or
    "steps"; ``first`` is spent before. Raises ValueError with the least budget.
    """
    rows, steps = settings.pop("rows", rows), settings.get("steps")
    shortest, room = steps or shortest, budget - first
    _at_least(name, budget, math.ceil(first + shortest * cost))
    R = int(min(max(rows, room // ((steps or longest) * cost)), room // (shortest * cost)))
    return steps or int(room // (R * cost)), R


POWER_ITERATIONS = 8


def _norm_cost(c_vjp):
    """Forward equivalents of `operator_norm`."""
    return 1 + POWER_ITERATIONS * (1 + c_vjp)


def _vp(item):
    """The VP grid's start, where the prior ends below sigma(1) = 152."""
    return {"sigma_max": item.sigma_range[1]} if item.sigma_range[1] < 152.0 else {}


def _start(item):
    """Where dps and mmps start: ten times the prior's standard deviation, which spends their few steps better."""
    high = item.sigma_range[1]
    return high if item.std is None else min(high, 10.0 * item.std)


def _noise(item):
    """Scale that turns a published guidance, for the un-weighted loss, into one for the whitened loss."""
    noise = np.asarray(item.problem.observation.noise, dtype=float)
    return 1.0 if hasattr(item.likelihood, "phase_loss") or noise.ndim else float(noise)


def _plan_enkg(item, budget, c_vjp, seed, settings):
    settings = {**dict(item.problem.defaults), **settings}
    start, end = settings.pop("start", 0.05), settings.pop("end", 0.05)
    chosen = settings.pop("steps", 40)
    settings.setdefault("sigma_max", min(80.0, item.sigma_range[1]))
    settings.setdefault("sigma_min", max(0.002, item.sigma_range[0]))
    settings.setdefault("sigma_eps", settings["sigma_min"])
    settings.pop("particles", None)  # the budget decides
    updates = settings.get("updates", 2)

    def waves(n):
        first, last = enkg.guided_window(n, start, end)
        return updates * (last - first + 1)

    ladder = [n for n in (chosen, 40, 20, 10) if n <= chosen]
    steps = next((n for J in (64, 32, 16) for n in ladder if budget >= J * waves(n)), ladder[-1])
    _at_least("enkg", budget, 2 * waves(steps))
    particles = int(budget // waves(steps))
    config = enkg.Config(particles=particles, steps=steps, window=enkg.guided_window(steps, start, end), **settings)
    return enkg.EnKG(item.denoise, item.likelihood, config), particles


def _plan_eki(item, budget, c_vjp, seed, settings):
    settings = dict(settings)
    _at_least("eki", budget, 4)
    J = settings.pop("particles", max(2, math.isqrt(budget)))
    high = item.sigma_range[1]

    def initial(noise):  # draws of the prior, forty denoiser calls each
        return flow_to_zero(high * noise, high, item.denoise, 40, item.sigma_range[0])

    config = eki.Config(iterations=max(1, budget // J), seed=seed, **settings)
    return eki.EKI(item.likelihood, config, initial), J


def _plan_scg(item, budget, c_vjp, seed, settings):
    threshold = settings.get("threshold", 0.25)
    steps, candidates = _steps("scg", budget, lambda n: n - 1 - int(threshold * n), 8, settings, 2)  # one is no choice
    config = scg.Config(**{**_vp(item), "seed": seed, **settings, "steps": steps, "candidates": candidates})
    return scg.SCG(item.denoise, item.likelihood, config), 1


def _plan_dpg(item, budget, c_vjp, seed, settings):
    steps, wave = _steps("dpg", budget, lambda n: n, 17, settings, 3)
    config = dpg.Config(**{**_vp(item), "seed": seed, **settings, "steps": steps, "queries": wave - 1})
    likelihood = item.likelihood
    if isinstance(likelihood, Gaussian):  # its radius sqrt(Z/d)/2 is meant for the loss without weights
        likelihood = Gaussian(item.problem.observation.y, 1.0)
    return dpg.DPG(item.denoise, item.denoise_vjp, likelihood, config), 1


def _plan_gsg(mode):
    def plan(item, budget, c_vjp, seed, settings):
        steps, wave = _steps(f"{mode}-gsg", budget, lambda n: n, 17, settings, 3 if mode == "central" else 2)
        queries = (wave - 1) // 2 * 2 if mode == "central" else wave - 1
        settings = dict(settings)
        guidance = settings.pop("strength", 1.0) * 0.1 * _noise(item)
        config = gsg.Config(**{**_vp(item), "guidance": guidance, "seed": seed, **settings, "mode": mode,
                               "steps": steps, "queries": queries})
        return gsg.GSG(item.denoise, item.denoise_vjp, item.likelihood, config), 1
    return plan


def _plan_dps(item, budget, c_vjp, seed, settings):
    settings = dict(settings)
    steps, R = _chains("dps", budget, 1 + c_vjp, settings, 1, 500)
    guidance = settings.pop("strength", 1.0) * min(1.0, 40.0 / steps) * _noise(item)  # gamma falls as 1/N
    config = dps.Config(**{"sigma_max": min(_start(item), 152.0), "guidance": guidance, "failed": "keep",
                           "seed": seed, **settings, "steps": steps})
    return dps.DPS(item.denoise, item.denoise_vjp, item.forward_vjp, item.likelihood, config), R


def _plan_diffpir(item, budget, c_vjp, seed, settings):
    settings = dict(settings)
    steps, R = _chains("diffpir", budget, 1 + c_vjp, settings, 8, 250, first=_norm_cost(c_vjp))
    lam = max(1.0, 0.5 * item.norm(item) ** 2)  # the least at which a gradient step is stable
    config = diffpir.Config(**{**_vp(item), "lam": lam, "failed": "keep", "seed": seed, **settings, "steps": steps})
    return diffpir.DiffPIR(item.denoise, item.likelihood, config, forward_vjp=item.forward_vjp), R


def _plan_mmps(item, budget, c_vjp, seed, settings):
    settings = dict(settings)
    settings.setdefault("solver", 1)
    cost = 1 + settings["solver"] * (1 + c_vjp)
    steps, R = _chains("mmps", budget, cost, settings, 1, 100, shortest=5)
    config = mmps.Config(**{"sigma_max": _start(item), "sigma_min": item.sigma_range[0], "failed": "keep",
                            "seed": seed, **settings, "steps": steps})
    return mmps.MMPS(item.denoise, item.denoise_vjp, item.forward_vjp, item.likelihood, config), R


def _plan_pnpdm(item, budget, c_vjp, seed, settings):
    settings = {"outer": 30, "decay": 0.83, "rho_max": 10.0, **settings}
    rows = settings.pop("rows", 4)
    cost, first = settings["outer"] * (1 + c_vjp), _norm_cost(c_vjp)
    _at_least("pnpdm", budget, math.ceil(first + cost))
    budget = budget - first
    R = max(1, min(rows, int(budget // cost)))
    low, high = item.sigma_range
    stiffness = item.norm(item) ** 2 + 1.0 / settings.get("rho_min", pnpdm.Config.rho_min) ** 2
    config = pnpdm.Config(**{"step": 0.5 / stiffness, "sigma_max": high, "sigma_min": max(low, 0.01), "seed": seed,
                             "inner": max(1, int(budget // (cost * R))), **settings})
    return pnpdm.PnPDM(item.denoise, item.forward_vjp, item.likelihood, config), R


def _plan_blade(item, budget, c_vjp, seed, settings):
    settings = {"outer": 10, **settings}
    J = settings.pop("particles", None) or int(min(512, max(8, budget // (settings["outer"] * 20))))
    _at_least("blade", budget, J * settings["outer"])
    low, high = item.sigma_range
    config = blade.Config(**{"inner": int(budget // (J * settings["outer"])), "sigma_max": min(10.0, high),
                             "sigma_min": max(low, 0.001), "prior_steps": 40, "seed": seed, **settings})
    return blade.Blade(item.denoise, item.likelihood, config), J


def _plan_deft(item, budget, c_vjp, seed, settings):
    settings = dict(settings)
    rows = settings.pop("rows", 8)
    low, high = item.sigma_range
    config = deft.Config(**{"sigma_max": high, "sigma_min": low, **settings})
    return deft.DEFT(item.denoise, item.correction, config), rows


METHODS = {
    "enkg": Method(_plan_enkg, enkg.EnKG.ACCESS, "Ensemble Kalman Diffusion Guidance, arXiv 2409.20175",
                   "J particles at 40 levels, fewer levels rather than J below 64, 32, 16"),
    "enkg-r": Method(rule.plan, regressed.EnKGR.ACCESS | {"reference"},
                     "our extension, not in the paper: regressed sensitivities",
                     "16 to 64 particles, the rest in levels"),
    "eki": Method(_plan_eki, baselines.EKI.ACCESS, "ensemble Kalman inversion, Iglesias et al. 2013",
                  "as many iterations as particles; starts from draws of the prior"),
    "scg": Method(_plan_scg, baselines.SCG.ACCESS, "stochastic control guidance, Huang et al. 2024",
                  "at least 50 steps where it can pay them, the longest chain with 8 candidates per step"),
    "dpg": Method(_plan_dpg, baselines.DPG.ACCESS, "diffusion policy gradient, Tang et al. 2024",
                  "at least 50 steps where it can pay them, the longest chain with 16 queries per step"),
    "forward-gsg": Method(_plan_gsg("forward"), baselines.GSG.ACCESS, "DPS with a smoothed gradient, one-sided",
                          "as dpg"),
    "central-gsg": Method(_plan_gsg("central"), baselines.GSG.ACCESS, "DPS with a smoothed gradient, two-sided",
                          "as dpg"),
    "dps": Method(_plan_dps, baselines.DPS.ACCESS, "diffusion posterior sampling, Chung et al. 2023",
                  "one chain of up to 500 steps, more chains beyond"),
    "diffpir": Method(_plan_diffpir, baselines.DiffPIR.ACCESS, "denoise, fit, re-noise, Zhu et al. 2023",
                      "8 chains in one batch, more beyond 250 steps"),
    "mmps": Method(_plan_mmps, baselines.MMPS.ACCESS, "moment matching posterior sampling, Rozet et al. 2024",
                   "one chain of up to 100 steps, more chains beyond"),
    "pnpdm": Method(_plan_pnpdm, baselines.PnPDM.ACCESS, "split Gibbs with Langevin steps, Wu et al. 2024",
                    "Langevin steps of 4 chains, 30 outer steps"),
    "deft": Method(_plan_deft, baselines.DEFT.ACCESS, "a correction network trained beforehand, Denker et al. 2024",
                   "nothing online; its forward calls were spent in training"),
    "blade": Method(_plan_blade, baselines.Blade.ACCESS, "ensemble split Gibbs, arXiv 2510.10968",
                    "particles, then likelihood steps, 10 outer steps"),
}
MISSING = {
    "denoiser_vjp": "a prior with a VJP (the *_vjp.onnx beside the denoiser, or an analytic prior)",
    "forward_vjp": "a forward model with a hand-written adjoint (forward_vjp of the problem)",
    "correction": "a trained correction network (one is shipped for navier-stokes-32)",
    "reference": "a Gaussian reference of the prior",
    "denoiser": "a denoiser", "forward": "a forward model",
}


def operator_norm(item, iterations=POWER_ITERATIONS):
    """||Gamma^-1/2 J_G|| at the start of every chain, x = 0, by power iteration with the adjoint and differences.

    Costs ``iterations`` VJPs and one forward call more than that, which the ledger of the run counts.
    """
    x = np.zeros((1, *item.problem.event_shape), dtype=item.dtype)
    rng = np.random.default_rng(0)
    x = x + (0.01 * rng.standard_normal(x.shape)).astype(item.dtype)
    base = np.asarray(item.forward(x)).reshape(1, -1)
    w, norm = rng.standard_normal(x.shape).astype(item.dtype), 1.0
    for _ in range(iterations):
        w = w / np.sqrt(np.mean(w * w)) * 1e-3
        change = item.likelihood.difference(np.asarray(item.forward(x + w)).reshape(1, -1) - base + item.likelihood.y)
        white = item.likelihood.whiten(change)
        norm = float(np.linalg.norm(white) / np.linalg.norm(w))
        w = item.forward_vjp(x, item.likelihood.whiten(white).astype(item.dtype))
    return norm


def check(methods, item, budgets, c_vjp, settings):
    """Raises ValueError for the first method that is unknown, named twice, lacks something or cannot pay a pass.

    Makes no forward call.
    """
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"methods: got {name!r}, expected some of {', '.join(METHODS)}")
        if methods.count(name) > 1:
            raise ValueError(f"methods: got {name} twice, expected each method once")
        lacking = sorted(METHODS[name].access - item.access)
        if lacking:
            raise ValueError(f"methods: {name} needs {MISSING[lacking[0]]}, which problem {item.problem.name} with "
                             "this prior does not have")
    dry = dataclasses.replace(item, norm=lambda item: 1.0)
    for name in methods:
        for budget in budgets:
            METHODS[name].plan(dry, budget, c_vjp, 0, settings.get(name, {}))


# ---------------------------------------------------------------------------------------------------------------- runs
def run(item, name, budget, seed, c_vjp, settings=None):
    """One run: {"status", "scores", "ledger", "cost", "config", "rows", ...}; a failure is a result too."""
    settings, ledger = settings or {}, Ledger()
    with ledger.clock("setup"):
        counted = item.counted(ledger)
        method, rows = METHODS[name].plan(counted, budget, c_vjp, seed, settings)
        noise = member_normals(seed, 0, rows, item.problem.event_shape).astype(item.dtype)
    record = {"method": name, "budget": budget, "seed": seed, "rows": rows, "config": method.config.describe(),
              "data": item.digest(), "status": "done", "scores": {}}
    started = time.perf_counter()
    try:
        with np.errstate(all="ignore"), ledger.clock("update"):
            state = enkg.solve(method, counted.forward, noise)
        wall = time.perf_counter() - started
        with ledger.clock("record"):
            record["scores"] = score(item, to_numpy(state.x), ledger)
    except (FloatingPointError, np.linalg.LinAlgError) as error:
        wall = time.perf_counter() - started
        record |= {"status": "failed", "why": str(error)}
    if "correction" in METHODS[name].access:
        ledger.counts["offline_fwd"] = getattr(item.correction, "offline_forward", 0)
    counts = ledger.as_dict()
    parts = counts["wall"]
    method_wall = parts["total"] - parts["record"]  # without the scores
    record["ledger"] = counts
    record["cost"] = {"forward_equivalents": counts["fwd_total"] + c_vjp * counts["fwd_vjp_total"],
                      "depth": counts["fwd_seq"] + c_vjp * counts["fwd_vjp_seq"], "seconds": wall,
                      "denoiser": counts["den_total"] + counts["den_vjp_total"], "network": counts["net_total"],
                      "offline": counts["offline_fwd"],
                      "own_percent": 100.0 * (1.0 - (parts["forward"] + parts["denoiser"]) / method_wall)}
    return record


def beside_truth(problem, physical):
    """An ensemble in physical units and the truth, to be compared: ``pool`` undoes what the data do not determine."""
    known = np.concatenate([np.asarray(problem.truth, dtype=np.float64)[None], physical])
    if problem.pool is not None:  # the data do not see where it stands: every particle moves to where the truth is
        known = problem.pool(known, np.arange(len(known)))
    return known[1:], known[0]


def score(item, x, ledger=None):
    """Figures of merit of an ensemble in prior units. Its predictions are diagnostic forward calls."""
    problem = item.problem
    physical = problem.scale * x.astype(np.float64) + problem.shift
    if not np.all(np.isfinite(physical)) or np.abs(physical).max() > 1e12:
        raise FloatingPointError("answer: got particles that are not finite or beyond 1e12, expected finite numbers")
    seen, truth = beside_truth(problem, physical)
    scores = metrics.score_ensemble(seen, truth)
    g = to_numpy(item.forward(x)).reshape(len(x), -1).astype(np.float64)
    if ledger is not None:
        ledger.counts["diag_fwd"] += len(x)
    finite = np.all(np.isfinite(g), axis=1)
    chi2 = metrics.chi2(item.likelihood, g[finite]) if finite.any() else np.array([math.inf])
    scores["chi2"] = float(np.mean(chi2))
    if finite.any():  # the chain that fits best: chosen by the data, never by the truth
        best = np.flatnonzero(finite)[chi2.argmin()]
        scores["relative_l2_of_best_fit"] = metrics.relative_l2_of_mean(seen[best:best + 1], truth)
    if problem.score is not None:
        scores |= {key: value for key, value in problem.score(physical).items() if isinstance(value, (int, float))}
    return {key: float(value) for key, value in scores.items()}


def vjp_cost(item, rows=32, seconds=2.0):
    """c_vjp: what a gradient costs beside its value, in forward calls; 0 without an adjoint.

    t_vjp/t_forward - 1, for the VJPs of our problems march forward once more before they turn back, and the value at
    the same point is already among the forward calls. At least 1: no reverse sweep is cheaper than its forward one, and
    the VJP of a linear map has no value to compute anew. Both are timed in turn for ``seconds``, three times at least,
    and the fastest counts: other work on the machine only slows down.
    """
    if item.forward_vjp is None:
        return 0.0
    x = np.zeros((rows, *item.problem.event_shape), dtype=item.dtype)
    if item.problem.truth is not None:
        truth = np.asarray(item.problem.truth)
        x = x + ((truth - item.problem.shift) / item.problem.scale).astype(item.dtype)
    v = np.ones((rows, item.likelihood.size), dtype=item.dtype)

    def clock(call, *args):
        start = time.perf_counter()
        call(*args)
        return time.perf_counter() - start

    pairs, end = [], time.perf_counter() + seconds
    while len(pairs) < 4 or time.perf_counter() < end:
        pairs.append((clock(item.forward_vjp, x, v), clock(item.forward, x)))
    vjp, forward = (min(times) for times in zip(*pairs[1:]))  # the first calls may compile or make plans
    return max(vjp / forward - 1.0, 1.0)


def begin(items, methods, budgets, out, settings=None, c_vjp=None, about=None):
    """Refuse what can be refused and open the folder of a comparison; nothing is computed but c_vjp.

    Arguments as for `compare`, which calls this itself. Returns (identity, c_vjp). Raises ValueError for the folder of
    another comparison, another c_vjp, and whatever `check` finds.
    """
    out = Path(out)
    identity = {"problem": items[0].problem.name, "data": [item.digest() for item in items], **(about or {})}
    identity = json.loads(json.dumps(identity))
    manifest, known = out / "arena.json", 0
    if manifest.exists():
        saved = _read(manifest, MANIFEST)
        known = len(saved["identity"]["data"])
        shared = min(len(items), known)  # more or fewer items are the same comparison
        for key in sorted(set(identity) | set(saved["identity"]), key=lambda key: (key == "data", key)):
            old, new = saved["identity"].get(key), identity.get(key)
            if (old[:shared] != new[:shared]) if key == "data" else (old != new):
                raise ValueError(f"out: got {out}, a comparison with {key} = {old}, expected {new}; choose another "
                                 "folder")
        if c_vjp not in (None, saved["c_vjp"]):
            raise ValueError(f"c_vjp: got {c_vjp:g} for {out}, a comparison with {saved['c_vjp']:g}, expected the same")
        c_vjp = saved["c_vjp"]
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"out: got {out}, which holds other files, expected an empty folder or a comparison")
    if c_vjp is None:
        c_vjp = round(vjp_cost(items[0]), 2)
    check(methods, items[0], budgets, c_vjp, settings or {})
    (out / "runs").mkdir(parents=True, exist_ok=True)
    if known < len(items):
        write_json(manifest, {"identity": identity, "c_vjp": c_vjp})
    return identity, c_vjp


def compare(items, methods, budgets, seeds, out, settings=None, c_vjp=None, about=None, progress=None,
            metric="relative_l2_of_mean", tuned=()):
    """Run every method at every budget on every item with every seed, and write the tables. Continues what is there.

    items : sequence of `Item`;  methods : names of ``METHODS``;  seeds : number of seeds;  out : folder
    settings : {method: {setting: value}}, tuned on other items
    c_vjp : what a gradient costs beside its value, in forward calls; measured on the first item if None, and kept in
        the folder
    about : JSON-able, what the comparison is of; a folder of another comparison is refused
    progress : called with (record, runs done, runs in all);  metric : the score that the tables sort and pair by
    tuned : sentences on how ``settings`` were found, for the foot of the table

    Returns the summary that is also written to ``results.json``, beside table.txt, table.csv, pareto.png (from two rows
    on) and one record per run in ``runs``; see `tabulate`. Raises ValueError where another process is at work in the
    folder.
    """
    items, methods, budgets, settings = list(items), list(methods), list(budgets), settings or {}
    out = Path(out)
    identity, c_vjp = begin(items, methods, budgets, out, settings, c_vjp, about)
    wanted = [(k, name, budget, seed) for k in range(len(items)) for seed in range(seeds) for name in methods
              for budget in budgets]
    records = []
    with runner.alone(out / "arena.lock", out):
        for k, name, budget, seed in wanted:
            used = dict(settings.get(name, {}))
            if "correction" in METHODS[name].access:  # trained anew, it is another run
                used["correction"] = getattr(items[k].correction, "sha256", None)
            path = out / "runs" / f"{name}_{budget}_{k}_{seed}_{_digest(used)}.json"
            if not path.exists():
                write_json(path, {"item": k, **run(items[k], name, budget, seed, c_vjp, settings.get(name))})
            records.append(read_record(path))
            if progress is not None:
                progress(records[-1], len(records), len(wanted))
        summary = {"identity": identity, "c_vjp": c_vjp, "settings": settings, "tuned": list(tuned), "metric": metric}
        return tabulate(records, known_rows(items), summary, out)


COSTS = ("forward_equivalents", "depth", "denoiser", "network", "offline", "seconds", "own_percent")
RECORD = {"method": str, "budget": int, "item": int, "seed": int, "status": str, "scores": dict, "rows": int,
          "config": dict, "cost": dict.fromkeys(COSTS, (int, float))}
MANIFEST = {"identity": {"data": list}, "c_vjp": (int, float)}


def read_record(path):
    """The record of a run, and "file", its place in the comparison's folder.

    Raises ValueError that names the file if it is damaged or of another run than its name says.
    """
    record, path = _read(path, RECORD), Path(path)
    if not path.name.startswith("{method}_{budget}_{item}_{seed}_".format(**record)):
        raise _damaged(path, "it is of another run")
    return {**record, "file": "/".join(path.parts[-2:])}


def _read(path, form):
    """A JSON file that must have the ``form`` {key: type, or the form of a dict}."""
    def wrong(content, form, name):
        if not isinstance(form, dict):
            return None if isinstance(content, form) else f"{name} is {content!r:.40}"
        if not isinstance(content, dict) or set(form) - set(content):
            return f"{name} lacks {', '.join(sorted(set(form) - set(content if isinstance(content, dict) else ())))}"
        return next(filter(None, (wrong(content[key], form[key], key) for key in form)), None)

    try:
        content = json.loads(Path(path).read_text())
        why = wrong(content, form, "it")
    except ValueError as error:
        why = str(error)
    if why is None:
        return content
    raise _damaged(path, why)


def _damaged(path, why):
    remedy = "choose another folder" if Path(path).name == "arena.json" else (
        "delete it, and the same command makes it anew")
    return ValueError(f"out: got a damaged file {path} ({why}), expected what was written there; {remedy}")


def tabulate(records, known, summary, out):
    """Add table, known rows, differences to ``summary`` (identity, c_vjp, settings, tuned, metric); write to ``out``.

    records : of runs, `read_record`. Rows may have different numbers of items and seeds.
    known : `known_rows`, and answers of other programs in the same form, which may have "seconds"
    """
    table, metric = summarise(records, summary["metric"]), summary["metric"]
    base = differences(table, known, metric)
    summary = {**summary, "items": max(row["items"] for row in table), "seeds": max(row["seeds"] for row in table),
               "base": base, "known": known, "table": table}
    out = Path(out)
    write_json(out / "results.json", summary)
    (out / "table.csv").write_text(to_csv(summary))
    (out / "table.txt").write_text(to_text(summary) + "\n")
    (out / "pareto.png").unlink(missing_ok=True)
    if len(table) > 1:  # one point is no front
        try:
            pareto_figure(summary).savefig(out / "pareto.png", dpi=130)
        except ImportError:  # the plot needs matplotlib; the tables do not
            pass
    return summary


def _digest(settings):
    """Fingerprint of a method's settings: a run with others is another run."""
    text = json.dumps(settings, sort_keys=True, default=lambda value: getattr(value, "__name__", str(value)))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


CANDIDATES = {  # four per method; {} is the default or, translated to the whitened loss, the published setting
    "enkg": [{}, {"guidance": 1.0}, {"guidance": 0.5}, {"updates": 1}],
    "enkg-r": [{}, {"model_noise": 1.0}, {"model_noise": 0.5}, {"noise_floor": 1.0}],
    "eki": [{}, {"guidance": 1.0}, {"guidance": 0.5}, {"kalman": True}],
    "scg": [{}, {"threshold": 0.0}, {"threshold": 0.5}, {"steps": 25}],
    "dpg": [{}, {"guidance": 16.0}, {"guidance": 4.0}, {"guidance": 1.0}],
    "forward-gsg": [{}, {"strength": 3.0}, {"strength": 0.3}, {"strength": 0.1}],  # strength: times the default gamma
    "central-gsg": [{}, {"strength": 3.0}, {"strength": 0.3}, {"strength": 0.1}],
    "dps": [{}, {"strength": 0.3}, {"strength": 0.1}, {"rows": 8, "strength": 0.3}],
    "diffpir": [{}, {"xi": 0.3}, {"xi": 0.1}, {"rows": 2}],
    "mmps": [{}, {"solver": 2}, {"solver": 3, "rows": 8}, {"solver": 3, "rows": 8, "sigma_max": 10.0}],
    "pnpdm": [{}, {"rho_max": 3.0, "rho_min": 0.1}, {"rho_max": 3.0, "rho_min": 0.3}, {"outer": 15, "decay": 0.7}],
    "blade": [{}, {"mode": "correction", "guidance": 1.0, "rho_max": 4.0, "rho_min": 0.1},
              {"guidance": 1.0, "rho_max": 2.0, "rho_min": 0.1}, {"guidance": 40.0, "rho_max": 4.0, "rho_min": 0.1}],
}


def tune(items, name, budget, out, c_vjp=None, metric="relative_l2_of_mean", candidates=None, about=None):
    """The candidate settings with the best median ``metric`` over items that no test uses, and all medians.

    candidates : list of {setting: value}, ``CANDIDATES[name]`` if None; one that cannot pay ``budget`` is left out, a
    failure counts as worst. Every candidate is one ``compare`` in a folder of its own under ``out``: a tuning that was
    killed goes on, and the folders of another tuning (``about``, as for `compare`) are refused.
    Returns (settings, trials).
    """
    trials, sign = [], -1.0 if metric in LARGER_IS_BETTER else 1.0
    c_vjp = round(vjp_cost(items[0]), 2) if c_vjp is None else c_vjp
    for settings in candidates or CANDIDATES.get(name, [{}]):
        try:
            check([name], items[0], [budget], c_vjp, {name: settings})
        except ValueError as error:
            trials.append({"settings": settings, "median": None, "failed": str(error), "forward_equivalents": 0.0})
            continue
        folder = Path(out) / name / _digest(settings)
        row = compare(items, [name], [budget], 1, folder, {name: settings}, c_vjp, about, metric=metric)["table"][0]
        trials.append({"settings": settings, "median": row["median"].get(metric), "failed": row["failed"],
                       "forward_equivalents": row["cost"]["forward_equivalents"]})

    def rank(trial):
        return math.inf if trial["median"] is None or trial["failed"] else sign * trial["median"]

    return min(trials, key=rank)["settings"], trials


# ---------------------------------------------------------------------------------------------------------- statistics
def _per_item(scores):
    """(items,) or (items, seeds) -> (items,): seeds of an item are averaged."""
    scores = np.asarray(scores, dtype=np.float64)
    return scores.mean(axis=1) if scores.ndim == 2 else scores


def bootstrap_t(scores, level=0.95, resamples=10_000, seed=0):
    """Studentised bootstrap interval of the mean over items.  scores : (items,) or (items, seeds); -> (mean, low, high)

    Seeds of an item are averaged first. With fewer than three items, or no scatter, the interval is (nan, nan).
    The percentile bootstrap, which is common, is too narrow at ten items: it covers 90 % where this one covers 94 %.
    """
    values = _per_item(scores)
    n, mean = len(values), float(values.mean())
    error = values.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    if n < 3 or not 0.0 < error < math.inf:  # NaN too
        return mean, math.nan, math.nan
    draws = values[np.random.default_rng(seed).integers(0, n, size=(resamples, n))]
    errors = draws.std(axis=1, ddof=1) / math.sqrt(n)
    live = errors > 1e-12 * error
    t = (draws.mean(axis=1)[live] - mean) / errors[live]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return mean, mean - float(high) * error, mean - float(low) * error


def student_t(scores, level=0.95):
    """Student's interval of the mean over items. Arguments and result as for `bootstrap_t`."""
    from scipy.stats import t

    values = _per_item(scores)
    n, mean = len(values), float(values.mean())
    error = values.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    if n < 3 or not 0.0 < error < math.inf:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + level) / 2, n - 1) * error)
    return mean, mean - half, mean + half


ENOUGH_ITEMS = 10  # for the bootstrap: its "95 %" interval of three normal items covers 79 %, that of five is very wide


def mean_interval(scores, level=0.95):
    """Interval of the mean over items: `student_t` for fewer than `ENOUGH_ITEMS`, else `bootstrap_t`."""
    return (bootstrap_t if len(scores) >= ENOUGH_ITEMS else student_t)(scores, level)


def paired_difference(first, second, level=0.95):
    """Interval of mean(first - second) paired by item.  first, second : (items,) or (items, seeds)"""
    return mean_interval(_per_item(first) - _per_item(second), level)


def known_rows(items):
    """Rows like those of `summarise` ("mean", "per_item") for answers without a run: the zero field, what items know.

    Only scores of the mean: an answer without a run has no particles.
    """
    rows = {}
    for k, item in enumerate(items):
        truth = np.asarray(item.problem.truth, dtype=np.float64)
        for name, answer in {"zero field": np.zeros_like(truth), **item.known}.items():
            answer = np.asarray(answer, dtype=np.float64)[None]
            scores = {"relative_l2_of_mean": metrics.relative_l2_of_mean(answer, truth)}
            if item.problem.score is not None:
                with np.errstate(all="ignore"):  # a zero field has no visibilities
                    found = item.problem.score(answer)
                scores |= {key: found[key] for key in ("psnr_aligned", "error_to_posterior_mean") if key in found}
            for key, value in scores.items():
                rows.setdefault(name, {}).setdefault(key, {})[k] = float(value)
    return {name: {"mean": {key: float(np.mean(list(values.values()))) for key, values in row.items()},
                   "per_item": row} for name, row in rows.items()}


def differences(table, known, metric, base=None):
    """Add to every row, known ones too, its ``metric`` minus that of ``base``, paired by item: (mean, low, high).

    base : method; "enkg" where it is in the table, else the first. A row of ``table`` is compared at its own budget, a
    known one at the largest. Items that failed on either side are left out.
    """
    names = [row["method"] for row in table]
    base = base or ("enkg" if "enkg" in names else names[0])
    of_base = {row["budget"]: row["per_item"].get(metric, {}) for row in table if row["method"] == base}
    last = of_base[max(of_base)]
    for row in (*table, *known.values()):
        own = row["per_item"].get(metric, {})
        other = of_base.get(row["budget"], {}) if "budget" in row else last
        both = sorted(set(own) & set(other))
        if both:
            row["difference"] = paired_difference([own[k] for k in both], [other[k] for k in both])
    return base


def summarise(records, metric="relative_l2_of_mean"):
    """One row per method and budget: runs, failures, mean with 95 % interval and median of every score, mean cost.

    ``ssr`` is pooled over items and seeds before the root. Scores are those of the runs that did not fail.
    "best_start": mean over items of ``metric``, of the seed whose ``chi2`` is smallest: several starts, chosen without
    the truth.
    """
    table = []
    groups = {}
    for record in records:
        groups.setdefault((record["method"], record["budget"]), []).append(record)
    for (method, budget), group in groups.items():
        done = [record for record in group if record["status"] == "done"]
        names = sorted({name for record in done for name, value in record["scores"].items()
                        if value is not None and math.isfinite(value)})
        row = {"method": method, "budget": budget, "runs": len(group), "failed": len(group) - len(done),
               "items": len({record["item"] for record in group}), "seeds": len({record["seed"] for record in group}),
               "mean": {}, "low": {}, "high": {}, "median": {}, "per_item": {},
               "rows": group[0]["rows"], "steps": group[0]["config"].get("steps"),
               "cost": {key: float(np.mean([record["cost"][key] for record in group])) for key in group[0]["cost"]},
               "files": [record.get("file") for record in group]}
        for name in names:
            by_item = {}
            for record in done:
                value = record["scores"].get(name)
                if value is not None and math.isfinite(value):  # a ring fit may find no ring; a file says null
                    by_item.setdefault(record["item"], []).append(value)
            per_item = {item: float(np.mean(values)) for item, values in by_item.items()}
            mean, low, high = mean_interval(list(per_item.values()))
            row["mean"][name], row["low"][name], row["high"][name] = mean, low, high
            row["median"][name] = float(np.median([v for values in by_item.values() for v in values]))
            row["per_item"][name] = per_item
        starts = {}
        for record in done:
            start = record["scores"].get("chi2"), record["scores"].get(metric)
            if None not in start:  # a file says null for what is not finite
                starts.setdefault(record["item"], []).append(start)
        row["best_start"] = float(np.mean([min(of)[1] for of in starts.values()])) if starts else None
        for name in ("low", "high"):  # pooled below, its interval would be of something else
            row[name].pop("ssr", None)
        if "spread2" in row["mean"]:
            row["mean"]["ssr"] = metrics.spread_skill_ratio(
                *((record["scores"]["spread2"], record["scores"]["skill2"]) for record in done))
        table.append(row)
    return table


COLUMNS = ("relative_l2", "crps", "ssr", "coverage_90", "chi2", "error_to_posterior_mean",
           "spread_over_posterior_spread", "relative_l2_of_best_fit", "chi2_cp", "chi2_lca")
LARGER_IS_BETTER = ("psnr_aligned",)


def to_text(summary, columns=COLUMNS):
    """The table for a terminal, best rows first.

    Mean and 95 % interval of the metric, its paired difference to the base method, means of the other scores, costs;
    costs that no row has are left out.
    """
    spent = [name for name in ("network", "offline") if any(row["cost"][name] for row in summary["table"])]
    found = set().union(*(row["mean"] for row in summary["table"]))
    columns, wide = [summary["metric"], *(name for name in columns if name in found)], 24
    sign = -1.0 if columns[0] in LARGER_IS_BETTER else 1.0
    against = f"minus {summary['base']}, paired"
    lines = [f"{'method':12s} {'budget':>8s} {'rows':>5s} {'steps':>5s} {'runs':>5s} {'failed':>6s} "
             f"{columns[0]:>{wide}s} {against:>{wide}s} {'median':>8s}"
             + "".join(f" {name[:12]:>12s}" for name in columns[1:])
             + f" {'F':>9s} {'depth':>8s} {'denoiser':>9s}" + "".join(f" {name:>8s}" for name in spent)
             + f" {'seconds':>8s} {'own %':>6s}"]

    def number(value):
        return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"

    def interval(mean, low, high, sign=""):
        if mean is None or not math.isfinite(mean):
            return "-"
        return f"{mean:{sign}.3g}" + (f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else "")

    for row in sorted(summary["table"], key=lambda row: (row["budget"],
                                                                 sign * row["mean"].get(columns[0], sign * math.inf))):
        error = interval(*(row[kind].get(columns[0], math.nan) for kind in ("mean", "low", "high")))
        difference = "" if row["method"] == summary["base"] else interval(*row.get("difference", (None,) * 3), "+")
        cost, runs = row["cost"], f"{row['items']}x{row['seeds']}"
        lines.append(f"{row['method']:12s} {row['budget']:8d} {row['rows']:5d} {row['steps'] or '-':>5} "
                     f"{runs:>5s} {row['failed']:6d} {error:>{wide}s} {difference:>{wide}s} "
                     f"{number(row['median'].get(columns[0])):>8s}"
                     + "".join(f" {number(row['mean'].get(name)):>12s}" for name in columns[1:])
                     + f" {cost['forward_equivalents']:9.0f} {cost['depth']:8.0f} {cost['denoiser']:9.0f}"
                     + "".join(f" {cost[name]:8.0f}" for name in spent)
                     + f" {cost['seconds']:8.2f} {cost['own_percent']:6.1f}")
    for name, row in summary["known"].items():
        cells = [number(row["mean"][column]) if column in row["mean"] else "" for column in columns[1:]]
        seconds = " " * (30 + 9 * len(spent)) + f"{row['seconds']:8.2f}" if "seconds" in row else ""
        lines.append((f"{name:46s} {number(row['mean'].get(columns[0])):>{wide}s} "
                      f"{interval(*row.get('difference', (None,) * 3), '+'):>{wide}s} {'':8s}"
                      + "".join(f" {cell:>12s}" for cell in cells) + seconds).rstrip())
    lines.append(f"runs: items x seeds, means over them [95 % over items, Student's t below ten]; F = forward calls + "
                 f"{summary['c_vjp']:g} x forward VJPs; seconds: one run, machine shared; own %: share of the method's "
                 "arithmetic, without forward model and networks, in its wall time")
    return "\n".join([*lines, *summary["tuned"]])


def to_csv(summary):
    """Means, intervals, medians and costs, one line per method, budget and score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "budget", "items", "seeds", "failed", "score", "mean", "low", "high", "median", *COSTS])
    for name, row in summary["known"].items():
        for score_name, mean in row["mean"].items():
            writer.writerow([name, "", "", "", "", score_name, mean, *[""] * (3 + len(COSTS))])
    for row in summary["table"]:
        cost = [row["cost"][key] for key in COSTS]
        start = [row[key] for key in ("method", "budget", "items", "seeds", "failed")]
        for name in row["mean"] or [""]:
            values = [row[kind].get(name, "") for kind in ("mean", "low", "high", "median")]
            writer.writerow([*start, name, *values, *cost])
        if "difference" in row:
            writer.writerow([*start, f"{summary['metric']} minus {summary['base']}", *row["difference"], "", *cost])
    return file.getvalue()


def pareto_figure(summary):
    """The metric against each cost axis, one line per method. Returns a matplotlib Figure."""
    from matplotlib.figure import Figure

    metric = summary["metric"]
    page = Figure(figsize=(13, 4.6), layout="constrained")
    axes = page.subplots(1, 3, sharey=True)
    names = {"forward_equivalents": "forward equivalents", "depth": "sequential depth in solves", "seconds": "wall, s"}
    methods = list(dict.fromkeys(row["method"] for row in summary["table"]))
    for ax, (key, label) in zip(axes, names.items()):
        ax.set_xscale("log"), ax.set_yscale("log"), ax.set_xlabel(label)
        spent = [row["cost"][key] for row in summary["table"] if row["cost"][key] > 0] or [1.0]
        ax.set_xlim(0.8 * min(spent), 1.25 * max(spent))  # of equal costs matplotlib finds none itself
        for k, method in enumerate(methods):
            rows = sorted((row for row in summary["table"] if row["method"] == method and metric in row["mean"]),
                          key=lambda row: row["budget"])
            x, y = [row["cost"][key] or math.nan for row in rows], [row["mean"][metric] for row in rows]
            bars = [[max(0.0, row["mean"][metric] - row["low"][metric]) if math.isfinite(row["low"][metric]) else 0.0,
                     max(0.0, row["high"][metric] - row["mean"][metric]) if math.isfinite(row["high"][metric]) else 0.0]
                    for row in rows]
            ax.errorbar(x, y, yerr=np.array(bars).T if bars else None, marker="osv^D"[k % 5], ms=4, lw=1.2,
                        capsize=2, color=f"C{k % 10}", ls="-" if k < 10 else "--", label=method)
        for name, row in summary["known"].items():
            level = row["mean"].get(metric, math.nan)
            ax.axhline(level, color="grey", lw=0.8, ls=":")
            ax.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), fontsize=7)
    axes[0].set_ylabel(metric.replace("_", " "))
    page.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    page.suptitle(f"{summary['identity']['problem']}: {summary['items']} items x {summary['seeds']} seeds", fontsize=10)
    return page
