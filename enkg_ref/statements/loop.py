"""What a run does at which level: noise levels of the inner flow and of the predictor, guidance, calls, budget."""

from __future__ import annotations

import math

import numpy as np

from .._xp import to_numpy
from ..diagnostics import Memory, observe
from ..enkg import Config, EnKG, State
from ..ensemble import correct
from ..extensions import guarded
from ..likelihood import Gaussian
from ..presets import PRESETS, Preset
from ..protocol import iterate
from .line import instances, statement
from .oracles import observation_modes, relative, worst


def _grid(n, high, low, rho):
    """(T1) written out, with its final 0."""
    if n == 1:
        return [high, 0.0]
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + i / (n - 1) * (ends[1] - ends[0])) ** rho for i in range(n)] + [0.0]


def _sigmas_of_a_run(preset):
    """The noise levels at which a run must ask the denoiser, in order: (T1), (T3), (T7)."""
    c, levels, expected = preset.config, _grid(preset.steps, preset.sigma_max, preset.sigma_min, preset.rho), []
    for i, sigma in enumerate(levels[:-1]):
        if preset.window[0] <= i <= preset.window[1]:
            n = min(1 + (preset.steps - i) // c.inner_factor, c.inner_cap)
            expected += c.updates * _grid(n, sigma, c.sigma_eps, c.rho_inner)[:-1]
        expected.append(sigma)
    return expected


@statement("T3, T7 sigma", "noise level of every denoiser call, inner flow and predictor (relative difference)", 1e-13)
def _noise_levels(library):
    deviations = []
    for preset in (PRESETS["navier-stokes-official"], PRESETS["inversebench"],
                   Preset(3, 9, (1, 8), 20.0, 0.05, 5.0).but(updates=3, sigma_eps=0.02, rho_inner=3.0, inner_factor=2)):
        asked = []
        method = preset.method(lambda x, s, asked=asked: asked.append(s) or x / (1.0 + s * s), Gaussian([0.0, 0.0]),
                               guarded(correct))
        library.run(method, lambda x: x, [[1.0, 0.5], [-0.5, 0.2]])
        expected = _sigmas_of_a_run(preset)
        if len(asked) != len(expected):
            return math.nan, len(asked)
        deviations += [abs(a / b - 1) for a, b in zip(asked, expected)]
    return worst(deviations), len(deviations)


@statement("T3c", "phi(x), any sigma_eps and rho_inner, and the predictor after it, equal the written loop", 5e-15)
def _inner_flow(library):
    centre = library.array([[0.4, -1.0, 0.2]])

    def measure(rng):
        n, rho, eps = int(rng.integers(2, 12)), rng.uniform(2.0, 9.0), 10 ** rng.uniform(-4, -2)
        sigmas = tuple(_grid(5, 10 ** rng.uniform(0, 2), 0.02, 7.0))
        method = EnKG(lambda x, s: centre + (x - centre) / (1.0 + s * s), None, sigmas, (0, 5),
                      Config(inner_factor=1, inner_cap=n, sigma_eps=eps, rho_inner=rho))
        level, x = int(rng.integers(5)), rng.standard_normal((4, 3))
        mu, flow = np.array([[0.4, -1.0, 0.2]]), x
        grid = _grid(min(6 - level, n), sigmas[level], eps, rho)
        for s, following in zip(grid, grid[1:]):
            flow = flow + (following - s) * (flow - mu - (flow - mu) / (1 + s * s)) / s
        s, following = sigmas[level:level + 2]
        predicted = x + (following - s) * (x - mu - (x - mu) / (1 + s * s)) / s
        state = State(library.array(x), level)
        return worst([relative(to_numpy(method.ask(state)), flow),
                      relative(to_numpy(method.advance(state).x), predicted)])

    return instances(library, np.random.default_rng(44), 60, measure)


def _guidance(name, floor_scale):
    """Worst relative deviation of gamma_i over the levels of a run from gamma (1 - r)(N - i)/N + floor_scale r."""

    def line(library):
        preset = PRESETS["black-hole-official"].but(**name)
        method = preset.method(lambda x, s: x / (1.0 + s * s), Gaussian([0.0, 0.0]), guarded(correct))
        state = method.init(library.array([[1.0, 0.5], [-0.5, 0.2]]))
        found = [(info.level, info.gamma) for _, info in iterate(method, lambda x: x, state)]
        return worst(abs(gamma / (3.5 * 0.999 * (80 - i) / 80 + floor_scale * 1e-3) - 1) for i, gamma in found), 63

    return line


statement("T8 official", "guidance of the black-hole preset: gamma (1 - r)(N - i)/N + r, r not scaled", 1e-14)(
    _guidance({}, 1.0))
statement("T8", "guidance as intended: gamma ((1 - r)(N - i)/N + r)", 5e-15)(
    _guidance({"guidance_schedule": Config().guidance_schedule}, 3.5))


@statement("budget", "collapse budget of a run's history = sum of gamma/sqrt(r + kappa^2), r = 3 data", 1e-9)
def _collapse_budget(library):
    rng, H, y = np.random.default_rng(45), np.random.default_rng(46).standard_normal((3, 6)), np.array([0.3, -1.0, 0.5])
    H_there, likelihood = library.array(H.T), Gaussian(y, 0.4)
    method = Preset(16, 12).but(guidance=0.3).method(lambda x, s: x / (1.0 + s * s), likelihood, guarded(correct))
    memory, budget, count = Memory(), 0.0, 0
    state = method.init(library.array(rng.standard_normal((16, 6))))
    for _, info in iterate(method, lambda x: library.xp.tanh(library.xp.matmul(x, H_there)), state):
        memory, history = observe(memory, info, likelihood)
        g = to_numpy(info.y_pred)
        budget += 0.3 / math.sqrt(3 + observation_modes(g, g, y, 0.16 * np.eye(3))[2].sum())
        count += 1
    return abs(history["collapse_budget"] / budget - 1), count


def _counted(name, what):
    def line(library):
        calls = {"denoiser": 0}

        def denoise(x, sigma):
            calls["denoiser"] += 1
            return x / (1.0 + sigma**2)

        method = PRESETS[name].method(denoise, Gaussian(np.zeros(2), 1.0), guarded(correct))
        calls["forward"] = library.run(method, lambda x: x, [[1.0, 0.5], [-0.5, 0.2]])[1]
        return calls[what] if PRESETS[name].counts()[what] == calls[what] else math.nan, 1

    return line


for _preset, _forward, _denoiser in (("navier-stokes-official", 142, 1588), ("black-hole-official", 63, 749),
                                     ("inversebench", 158, 958)):
    statement("counts", f"{_preset}: sequential forward calls, counted in a run", _forward, _forward)(
        _counted(_preset, "forward"))
    statement("counts", f"{_preset}: denoiser calls per particle, counted in a run", _denoiser, _denoiser)(
        _counted(_preset, "denoiser"))
