"""Small inverse problems on which no method of this project was tuned: what a stranger's own problem may look like.

Ten families, each with two noise levels and several truths: `cases("choose")` for choosing defaults, `cases("judge")`
for judging them, which nothing else may use, and `cases("rod")`, six truths of the first problem that a stranger
tried. A truth is a draw of the prior; data are G(truth) + noise.

    heat            temperature at t = 0 on a rod from 12 sensors at a later time          d = 64,  m = 12
    darcy           log-permeability of a 1-D aquifer from 15 pressures                    d = 64,  m = 15
    lorenz96        initial state of a chaotic ring from every second later coordinate     d = 40,  m = 20
    deblurring      a signal from its blurred values                                       d = 96,  m = 96
    saturation      a field from sensors that saturate, tanh(3 a.x)                        d = 32,  m = 16
    program         a compiled program: amplitude and decay from a damped oscillation      d = 8,   m = 25
    three           three weighted means of a field                                        d = 20,  m = 3
    many            2,000 noisy linear observations of 50 numbers                          d = 50,  m = 2000
    mixture         linear observations under a prior with three modes                     d = 10,  m = 6
    learned         a vorticity field from coarse means under the network navier-stokes-32 d = 1024, m = 64

The priors are closed forms (Gaussian, mixture) but for the last, so that a wrong answer is never the prior's fault.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from problems.problem import Observation, Problem

GRID = np.linspace(0.0, 1.0, 64)


@dataclass(frozen=True)
class Case:
    """One problem with its prior. ``noise_share``: noise over the standard deviation of the noise-free prior data."""

    name: str
    noise_share: float
    problem: Problem
    prior: Any
    prior_mean: np.ndarray
    reference: Any


# ----------------------------------------------------------------------------------------------------------- priors
def smooth_gaussian(d, length, std=0.5, mean=0.0):
    """Mean and covariance of a stationary Gaussian process on d points of [0, 1], squared-exponential."""
    t = np.linspace(0.0, 1.0, d)
    covariance = std**2 * np.exp(-0.5 * ((t[:, None] - t[None, :]) / length) ** 2) + 1e-6 * np.eye(d)
    return np.full(d, mean), covariance


def _gaussian(mean, covariance):
    from enkg_ref.enkg_r.reference import Reference
    from onnx_priors.gaussian import GaussianPrior

    return GaussianPrior.from_covariance(mean, covariance), lambda prior: Reference.gaussian(mean, covariance)


def _mixture(d=10):
    from enkg_ref.enkg_r.reference import from_images
    from onnx_priors.mixture import MixturePrior

    rng = np.random.default_rng(5)
    means = 1.2 * rng.standard_normal((3, d))
    prior = MixturePrior(np.array([0.5, 0.3, 0.2]), means, np.full(3, 0.15))
    draws = prior.sample(np.random.default_rng(6), 4000)
    return prior, draws, lambda prior: from_images(draws, prior.denoise)


# ------------------------------------------------------------------------------------------------------ forward models
def heat(x):
    """Temperature at 12 sensors at time 0.005 of a rod with insulated ends: cosine modes decay as exp(-k^2 pi^2 t)."""
    d = x.shape[1]
    k, t = np.arange(d), (np.arange(d) + 0.5) / d
    basis = np.cos(np.pi * np.outer(t, k)) * np.where(k == 0, np.sqrt(1 / d), np.sqrt(2 / d))
    decayed = (x @ basis) * np.exp(-((np.pi * k) ** 2) * 0.005)
    return (decayed @ basis.T)[:, 2::5][:, :12]


def darcy(x):
    """Pressures at 15 points of -(exp(2 x) p')' = 1, p(0) = p(1) = 0, by finite volumes: x is half the log-permeability.

    The flux is q = c - s; p' = q exp(-2 x), with c such that p(1) = 0.
    """
    d = x.shape[1]
    s, resistance = (np.arange(d) + 0.5) / d, np.exp(-2.0 * x) / d
    c = (resistance @ s) / resistance.sum(axis=1)
    pressure = np.cumsum((c[:, None] - s) * resistance, axis=1)
    return pressure[:, 3::4][:, :15]


def blur(x):
    """Convolution with a Gaussian of four points' width, zero beyond the ends."""
    d = x.shape[1]
    i = np.arange(d)
    kernel = np.exp(-0.5 * ((i[:, None] - i[None, :]) / 4.0) ** 2)
    return x @ (kernel / kernel.sum(axis=1, keepdims=True)).T


def saturation(x):
    """tanh(3 a.x) of 16 local means."""
    return np.tanh(3.0 * x.reshape(len(x), 16, -1).mean(axis=2))


def three(x):
    """Three overlapping weighted means."""
    t = np.linspace(0.0, 1.0, x.shape[1])
    weights = np.exp(-0.5 * ((t[:, None] - np.array([0.2, 0.5, 0.8])) / 0.15) ** 2)
    return x @ (weights / weights.sum(axis=0))


def many(x):
    """2,000 random combinations."""
    return x @ (np.random.default_rng(8).standard_normal((x.shape[1], 2000)) / np.sqrt(x.shape[1]))


def mixed(x):
    """Six random combinations."""
    return x @ np.random.default_rng(9).standard_normal((x.shape[1], 6))


def coarse(x):
    """Means of 4 x 4 blocks."""
    n = x.shape[-1] // 4
    return x.reshape(len(x), n, 4, n, 4).mean(axis=(2, 4)).reshape(len(x), -1)


OSCILLATION = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
/* reads lines of 8 numbers, writes lines of 25: four damped oscillations, amplitude exp(a) and rate from pairs */
int main(void) {
  double a[8];
  while (scanf("%lf %lf %lf %lf %lf %lf %lf %lf", a, a+1, a+2, a+3, a+4, a+5, a+6, a+7) == 8) {
    for (int i = 0; i < 25; i++) {
      double t = i / 24.0, y = 0.0;
      for (int k = 0; k < 4; k++)
        y += exp(a[2*k]) * exp(-2.0 * t * exp(0.5 * a[2*k+1])) * cos(6.2831853 * (k + 1) * t);
      printf("%.17g ", y);
    }
    printf("\n");
  }
  return 0;
}
"""


def compiled_program():
    """The oscillation as a compiled C program, run once for every wave of members; None where no compiler is found."""
    if shutil.which("cc") is None:
        return None
    folder = tempfile.mkdtemp(prefix="oscillation-")
    source, program = Path(folder, "oscillation.c"), Path(folder, "oscillation")
    source.write_text(OSCILLATION)
    subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-lm"], check=True)

    def call(x):
        text = "\n".join(" ".join(repr(float(v)) for v in row) for row in x)
        out = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout
        return np.array([line.split() for line in out.splitlines()], dtype=float)

    return call


# -------------------------------------------------------------------------------------------------------------- cases
def _families():
    """(name, forward, (prior, draws, reference), noise levels as shares of the data's standard deviation)"""
    from problems.lorenz96 import attractor, integrate

    def gaussian(mean, covariance):
        prior, reference = _gaussian(mean, covariance)
        root = np.linalg.cholesky(covariance)
        draws = mean + np.random.default_rng(4).standard_normal((4000, len(mean))) @ root.T
        return prior, draws, reference

    states = attractor()
    yield "heat", heat, gaussian(*smooth_gaussian(64, 0.12)), (0.05, 0.3)
    yield "darcy", darcy, gaussian(*smooth_gaussian(64, 0.15)), (0.01, 0.1)
    yield "lorenz96", lambda x: integrate(x, 20)[:, ::2], gaussian(states.mean(axis=0), np.cov(states.T)), (0.1, 1.0)
    yield "deblurring", blur, gaussian(*smooth_gaussian(96, 0.03)), (0.02, 0.3)
    yield "saturation", saturation, gaussian(*smooth_gaussian(32, 0.1)), (0.05, 0.3)
    program = compiled_program()
    if program is not None:
        yield "program", program, gaussian(np.zeros(8), 0.25 * np.eye(8)), (0.02, 0.2)
    yield "three", three, gaussian(*smooth_gaussian(20, 0.1)), (0.05, 0.5)
    yield "many", many, gaussian(*smooth_gaussian(50, 0.05)), (0.3, 1.0)
    yield "mixture", mixed, _mixture(), (0.05, 0.5)


def _learned():
    from enkg_ref.enkg_r.reference import Reference
    from onnx_priors.manifest import resolve
    from onnx_priors.session import OnnxDenoiser
    from problems.vorticity import fields, preset

    path = resolve("navier-stokes-32")
    prior = OnnxDenoiser("navier-stokes-32")
    draws = fields(32, 48, "validation").astype(float) / preset(32).scale
    reference = Reference.load(path.with_name(f"{path.stem}.reference.npz"))
    return "learned", coarse, (prior, draws, lambda prior: reference), (0.1, 0.5)


PARTS = {"choose": (0, 1), "judge": (2, 3), "rod": (4, 5, 6, 7, 8, 9)}  # numbers of the truths


def cases(part, learned=True):
    """The `Case` list of a part: every family at every noise level, "rod" only the first at the first."""
    if part == "rod":
        family = next(_families())
        return [_case(family, family[3][0], number) for number in PARTS[part]]
    families = [*_families(), *([_learned()] if learned else [])]
    return [_case(family, share, number) for family in families for share in family[3] for number in PARTS[part]]


def _case(family, share, number):
    name, forward, (prior, draws, reference), _ = family
    rng = np.random.default_rng([15, number, int(1000 * share), len(name)])
    clean = forward(draws[16:])
    truth = draws[number].astype(float)
    noise = share * float(clean.std(axis=0).mean())
    y = forward(truth[None])[0] + noise * rng.standard_normal(clean.shape[1])
    problem = Problem(name=name, event_shape=truth.shape, forward=forward, observation=Observation(y, noise),
                      truth=truth)
    return Case(f"{name}-{share:g}-{number}", share, problem, prior, draws.mean(axis=0), reference(prior))
