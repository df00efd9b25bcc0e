"""EnKG as the table of methods offers it: settings from the problem, a budget or a preset; the safe set around it."""

from __future__ import annotations

import math

from . import ensemble, extensions
from .diagnostics import Memory, observe
from .enkg import State
from .presets import PRESETS, Preset, guided_window
from .protocol import Method, Plan, at_least, one_of

STEP_RULES = {"frobenius": ensemble.frobenius, "trace": ensemble.trace, "constant": ensemble.constant,
              "tempered": ensemble.frobenius}
OWN_BUDGET = 1504  # forward calls on a problem without settings of its own, as for EnKG-R
COLLAPSED = 64.0  # multiple of the rounding error, see ``extensions.guarded``
STOPS = {"none": None, "mean": extensions.mean_discrepancy, "particle": extensions.particle_discrepancy}


def plan(item, budget, c_vjp, seed, settings):
    """EnKG for ``item`` with ``settings`` by name: those of `OPTIONS`, or any field of a ``Preset`` and its ``Config``.

    Without a budget the problem's defaults hold (a preset: its own settings) and the settings given override them.
    With one, J and N follow from it: 40 levels (or those given), fewer levels rather than J below 64, 32, 16.
    A problem without defaults has a budget of `OWN_BUDGET` calls unless J or N is given, and where nobody names a
    guidance, `cautious_guidance` and the particle stop take its place.
    "paper": the published settings exactly, those of the preset that the problem names where it names one; no row is
    judged implausible and no ensemble collapsed.
    """
    settings, why = dict(settings), ""
    paper, step_rule = settings.pop("paper", False), settings.pop("step_rule", "frobenius")
    stop, failed = settings.pop("stop", None), settings.pop("failed", "shift")
    one_of("step_rule", step_rule, STEP_RULES)
    one_of("stop", stop or "none", STOPS)
    _refuse_without_noise(item.problem.observation, stop=stop, step_rule=step_rule)
    named = paper or item.problem.defaults or "preset" in settings
    if not named and budget is None and not {"particles", "steps"} & set(settings):
        budget = OWN_BUDGET
    cautious = not named and "guidance" not in settings and step_rule == "frobenius"
    preset, multiple = _preset(item, budget, settings, paper)
    preset = preset.but(step_rule=STEP_RULES[step_rule])
    if cautious:
        stop = stop or "particle"
        preset, why = cautious_guidance(item, preset, stop)
    stop = stop or "none"
    if preset.window[1] < preset.window[0]:
        raise ValueError(f"window: got fractions that guide none of {preset.steps} levels, expected smaller ones")
    method = _compose(item, preset, seed, step_rule, stop, failed, multiple)
    described = {**preset.describe(), "step_rule": step_rule, "stop": stop, "failed": failed, "guard": multiple}
    around = (lambda forward: forward) if paper else (lambda forward: extensions.plausible(forward, item.likelihood))
    return Plan(method, preset.particles, described, preset.counts()["forward"], State, around, why)


def cautious_guidance(item, preset, stop):
    """(preset with the guidance at which the collapse budget of the whole run is `collapse_budget(N)`, why in words)

    Every update takes about gamma/sqrt(r) off the logarithm of the spread of the predictions (THEORY.md 1.5), r their
    rank, at most m, J - 1 and d. The published guidance 2 spends a budget of 40 where twelve data are updated 74 times:
    the particles have no spread left to follow the denoiser long before the end. Never above 2.
    """
    rank = min(item.likelihood.size, preset.particles - 1, math.prod(item.problem.event_shape))
    budget = collapse_budget(preset.steps)
    gamma = min(2.0, budget * math.sqrt(rank) / max(preset.counts()["forward"], 1))
    ends = "; the updates of a level end once the data are fitted" if stop != "none" else ""
    return preset.but(guidance=gamma), (
        f"{preset.particles} particles at {preset.steps} levels; guidance {gamma:.2g}, with which the updates shrink "
        f"the spread of the predictions about exp({budget:g}) times in all{ends}")


def collapse_budget(steps):
    """4 from 20 levels on, else 2: what was best, or within 5 % of it, on the choosing half of benchmarks/suite.py."""
    return 4.0 if steps >= 20 else 2.0


def _preset(item, budget, settings, paper):
    """(Preset, multiple of the rounding error at which an ensemble counts as collapsed)"""
    if paper and item.problem.preset:
        settings.setdefault("preset", item.problem.preset)
    if "preset" in settings:
        name = settings.pop("preset")
        one_of("preset", name, PRESETS)
        for fixed in ("steps", "window"):
            if fixed in settings:
                raise ValueError(f"{fixed}: got {settings[fixed]} with a preset, expected nothing: the preset fixes "
                                 "its levels and its window")
        if budget is not None:
            raise ValueError(f"budget: got {budget} with a preset, expected nothing: the preset fixes its calls")
        return PRESETS[name].but(**settings), 0.0
    if budget is not None and "particles" in settings:
        raise ValueError(f"particles: got {settings['particles']} with a budget, expected one of the two: a budget "
                         "decides")
    low, high = item.sigma_range
    defaults = {} if paper else item.problem.defaults
    settings = {"sigma_min": max(Preset.sigma_min, low), "sigma_eps": max(Preset.sigma_min, low),
                "sigma_max": min(Preset.sigma_max, high), **defaults, **settings}
    fractions = settings.pop("start", 0.05), settings.pop("end", 0.05)
    fractions = settings.pop("window", fractions)
    if budget is not None:
        settings["steps"], settings["particles"] = _spend(budget, fractions, settings)
    preset = Preset().but(**{name: value for name, value in settings.items() if name != "window"})
    return preset.but(window=guided_window(preset.steps, *fractions)), 0.0 if paper else COLLAPSED


def _refuse_without_noise(observation, **chosen):
    """ValueError for a setting that rests on the noise level where nobody stated one."""
    for name, value in chosen.items():
        if getattr(observation, "noise_is_assumed", False) and value in ("mean", "particle", "tempered"):
            raise ValueError(f"{name}: got {value} with noise-free data, expected --noise above 0")


def _spend(budget, fractions, settings):
    """(N, J) that a number of forward calls pays."""
    chosen, updates = settings.get("steps", 40), settings.get("updates", 2)

    def waves(n):
        first, last = guided_window(n, *fractions)
        return updates * (last - first + 1)

    ladder = [n for n in (chosen, 40, 20, 10) if n <= chosen]
    steps = next((n for J in (64, 32, 16) for n in ladder if budget >= J * waves(n)), ladder[-1])
    at_least("enkg", budget, 2 * waves(steps))
    return steps, budget // max(waves(steps), 1)


def _compose(item, preset, seed, step_rule, stop, failed, multiple):
    denoise = extensions.finite(item.denoise)
    if step_rule == "tempered":
        method = extensions.TemperedEnKG(denoise, item.likelihood, preset.sigmas, preset.window, preset.config,
                                         seed=seed)
    else:
        correct = extensions.lowrank if preset.particles > 2 * item.likelihood.size else ensemble.correct
        correct = extensions.survivors(extensions.guarded(correct, multiple), failed)
        method = preset.method(denoise, item.likelihood, correct)
    return extensions.StopWhenFitted(method, STOPS[stop]) if STOPS[stop] else method


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="Ensemble Kalman Diffusion Guidance, arXiv 2409.20175",
    spends="J particles at 40 levels, fewer levels rather than J below 64, 32, 16",
    spread="The spread of the ensemble is not a posterior standard deviation, and more particles do not make it one.",
    candidates=({}, {"guidance": 1.0}, {"guidance": 0.5}, {"updates": 1}),
    options=("particles", "steps", "updates", "guidance", "window", "step_rule", "stop", "failed", "preset",
             "paper"),
    default_budget=None, observe=observe, memory=Memory())
