"""The Navier-Stokes inverse problem: initial vorticity from a later, sparse, noisy one.

(N2)  G(x) = every second grid point, in both axes, of omega(T) from omega(0) = scale x; omega(T) by
      `navier_stokes_solver.NavierStokes`.
"""

from __future__ import annotations

import math
import textwrap

import numpy as np

from problems import vorticity
from problems._xp import array_namespace
from problems.calibration_figure import draw_calibration
from problems.files import read_array
from problems.navier_stokes_solver import STEP_CAP, NavierStokes
from problems.problem import (
    ITEM,
    OBSERVATION,
    TRUTH,
    Entry,
    Observation,
    Option,
    Problem,
    assumed_noise,
    integer,
    nonnegative,
)
from problems.spectral import resample

STRIDE = 2  # observed: every second point in both axes
DATA_SOLVERS = ("same", "padded")


def observe(omega):
    """O: (J, n, n) -> (J, m), every second point in both axes, row by row; m = (n/2)^2."""
    return array_namespace(omega).reshape(omega[:, ::STRIDE, ::STRIDE], (omega.shape[0], -1))


def observe_adjoint(y, n):
    """O^T: (J, m) -> (J, n, n), zero between the observed points."""
    xp = array_namespace(y)
    y = xp.reshape(y, (y.shape[0], n // STRIDE, 1, n // STRIDE, 1))
    y = xp.concat((y, xp.zeros_like(y)), axis=4)
    return xp.reshape(xp.concat((y, xp.zeros_like(y)), axis=2), (y.shape[0], n, n))


def padded_observation(omega, flow):
    """G by a finer discretisation: the same start on 2n points with a true 2/3 mask, seen at the same points.

    Not exact: at n = 64 its own error against 256^2 (relative, at the observed points) was 1.1e-2, 1.1e-2 and 5.8e-3 on
    three fields, where the n-point grid itself is 4.5e-2 to 6.6e-2 off.
    """
    n = omega.shape[-1]
    fine = NavierStokes(2 * n, flow, cutoff=(2 * n - 1) // 3)(resample(omega, 2 * n))
    return observe(fine[:, ::2, ::2])


def relative_l2(x, truth):
    """||x_j - truth|| / ||truth|| of each row of x (J, n, n) -> (J,)."""
    return np.sqrt(np.sum((x - truth) ** 2, axis=(1, 2)) / np.sum(truth**2))


def navier_stokes(size=32, noise=0.0, seed=0, data_solver="same", truth=None, observation=None, steps=None,
                  fft="scipy"):
    """The inverse problem: initial vorticity from every second point of the vorticity at time 1.

    Parameters
    ----------
    size : 32, 64 or 128           grid points per axis; Reynolds number, data and scale belong to it: see
                                   `vorticity.PRESETS`
    noise : float >= 0             standard deviation of the noise on y, vorticity units. 0 leaves y clean; it is then
                                   inverted with `problem.assumed_noise` (EnKG's step does not depend on that scale)
    seed : int >= 0                number of the held-out field, and seed of the noise (a generator of its own)
    data_solver : "same" | "padded"   what makes y: the forward model itself, or a run on twice the grid, see
                                   `padded_observation`
    truth : array (n, n), path of an .npy file, or None   a field of the caller instead of the held-out one, physical
                                   units; not zero
    observation : array (m,) or (n/2, n/2), path, or None   measured data instead of simulated ones; there is then no
                                   truth unless ``truth`` is given too
    steps, fft                     see `NavierStokes`
    """
    own = vorticity.preset(size)
    _check(noise, seed, data_solver)
    solver = NavierStokes(own.n, own.flow, courant=own.courant, rate_min=own.rate_min, steps=steps, fft=fft)
    gaussian, shape = vorticity.prior_gaussian(size), (own.n, own.n)

    def forward(x):
        """(J, n, n) prior units -> (J, m) vorticity at time 1; a row that cannot be solved is NaN."""
        return observe(solver(x * own.scale))

    def forward_vjp(x, v):
        """(x (J, n, n), v (J, m)) -> J_G(x)^T v (J, n, n), prior units."""
        return own.scale * solver.value_and_vjp(x * own.scale, observe_adjoint(v, own.n))[1]

    def score(ensemble):
        return {} if truth is None else scores(ensemble, truth, gaussian, own.scale)

    if truth is not None:
        truth = _field("truth", truth, shape)
        if not np.any(truth):
            raise ValueError("truth: got zeros everywhere, expected another field: errors are relative to its norm")
    elif observation is None:
        truth = vorticity.fields(size, 1, "test", first=seed)[0].astype("float64")
    notes, measured = _notes(own, noise, data_solver, observation is not None), observation is not None
    if measured:
        y = _field("observation", observation, (own.n // STRIDE, own.n // STRIDE)).reshape(-1)
    else:
        y = _clean(truth, solver, own.flow, data_solver)
        y = y + noise * np.random.default_rng([seed, size]).standard_normal(y.shape)
    assumed = not noise
    if assumed:
        noise = assumed_noise(y)
        notes += (f"{' No noise was given: the data' if measured else ' The noise-free data'} were inverted with an "
                  f"assumed noise of {noise:.3g}.")
    return Problem(
        name=f"navier-stokes-{own.n}", event_shape=shape, forward=forward, forward_vjp=forward_vjp, truth=truth,
        observation=Observation(y, noise, noise_is_assumed=assumed), scale=own.scale,
        units="vorticity (box 2 pi, time unit = observation time)", prior=own.prior, gaussian=gaussian,
        known={"prior mean": own.scale * gaussian.mean}, score=score, figure=draw, notes=notes,
        preset="navier-stokes-official",
        defaults={"particles": 256, "steps": 40, "guidance": 2.0, "updates": 2})


def scores(ensemble, truth, gaussian, scale):
    """Relative L2, particle mean (M1) and ensemble mean (M2), beside what no data would score.

    The prior sample's entry is the root of its mean square under the Gaussian with the prior's moments.
    """
    rows = ensemble[np.all(np.isfinite(ensemble), axis=(1, 2))].astype("float64")
    distance, variance = np.sum((truth - scale * gaussian.mean) ** 2), scale**2 * gaussian.total_variance
    return {"relative_l2_of_particles": float(relative_l2(rows, truth).mean()),
            "relative_l2_of_mean": float(relative_l2(rows.mean(axis=0)[None], truth)[0]),
            "relative_l2_zero_field": 1.0,
            "relative_l2_prior_mean": float(np.sqrt(distance / np.sum(truth**2))),
            "relative_l2_prior_sample": float(np.sqrt((distance + variance) / np.sum(truth**2)))}


def _check(noise, seed, data_solver):
    if not (math.isfinite(noise) and noise >= 0.0):
        raise ValueError(f"noise: got {noise}, expected a standard deviation >= 0")
    if data_solver not in DATA_SOLVERS:
        raise ValueError(f"data_solver: got {data_solver!r}, expected 'same' or 'padded'")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected a number >= 0")


def _clean(truth, solver, flow, data_solver):
    """Noise-free data (m,) of a truth (n, n)."""
    start = truth[None, :, :]
    y = observe(solver(start))[0] if data_solver == "same" else padded_observation(start, flow)[0]
    if not np.all(np.isfinite(y)):
        raise ValueError(f"truth: got a flow whose largest speed needs more than {STEP_CAP} time steps, expected a "
                         "weaker one")
    return y


def _field(name, host, shape):
    """``host``, an array or the path of an .npy file, as a finite float64 array of this shape; else ValueError."""
    host = read_array(host, name)
    if host.shape not in (shape, (math.prod(shape),)):
        raise ValueError(f"{name}: got shape {host.shape}, expected {shape}")
    return host.reshape(shape)


def _notes(own, noise, data_solver, measured):
    made = {"same": "by the forward model itself",
            "padded": f"by a run on {2 * own.n} x {2 * own.n} points (itself about 1 % off, at size 64)"}
    parts = [
        f"{own.n} x {own.n} grid points, Re = {own.flow.reynolds:g}; the paper uses 128 x 128, Re = 200.",
    ]
    if measured:
        parts.append("The observation was given by the caller.")
    else:
        parts.append("The held-out fields are stand-ins, Gaussian random fields evolved for five time units; the "
                     "paper's data are not public.")
        parts.append(f"The observation was made {made[data_solver]}, noise {noise:g}.")
    if own.prior is None:
        parts.append("No prior is shipped for this size: train one with python -m onnx_priors.training.navier_stokes "
                     f"--size {own.n}, or use --prior gaussian.")
    return " ".join(parts)


def draw(result, time=1):
    """Truth, observation at ``time`` (unobserved points grey), mean, error and spread; below, particles and, where the
    truth is known, the calibration of the spread. ``result`` holds physical units.
    """
    from matplotlib.figure import Figure

    mean, spread, truth = np.asarray(result["mean"]), np.asarray(result["std"]), result.get("truth")
    n = mean.shape[-1]
    side = math.isqrt(np.size(result["observation"]))
    seen = np.full((n, n), np.nan)
    seen[:: n // side, :: n // side] = np.reshape(result["observation"], (side, side))
    panels = [(f"observation at time {time:g}", seen), ("mean", mean), ("spread", spread)]
    if truth is not None:
        truth = np.asarray(truth)
        panels = [("truth", truth), *panels[:2], ("error (mean - truth)", mean - truth), panels[2]]
    ensemble = np.asarray(result["ensemble"])
    particles = [(f"particle {j}", ensemble[j]) for j in range(min(3, len(ensemble)))]
    top = float(np.nanmax(np.abs(seen if truth is None else truth)))
    figure = Figure(figsize=(3.2 * len(panels), 6.4), layout="constrained")
    axes = figure.subplots(2, len(panels))
    for axis, (title, image) in zip([*axes[0], *axes[1]], [*panels, *particles]):
        axis.set_facecolor("0.8")
        limits = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if title != "spread" else {"cmap": "viridis", "vmin": 0}
        drawn = axis.imshow(image.T, origin="lower", interpolation="nearest", **limits)
        figure.colorbar(drawn, ax=axis, shrink=0.75)
        axis.set(title=title, xticks=[], yticks=[])
    rest = list(axes[1][len(particles):])
    if "calibration" in result:
        draw_calibration(rest.pop(0), rest.pop(0), result["calibration"])
    for axis in rest:
        axis.set_axis_off()
    sentences = [*result.get("caption", ()), "x to the right, y upwards."]
    words = [line for sentence in sentences for line in textwrap.wrap(sentence, 200)]
    figure.text(0.5, -0.01, "\n".join(words), ha="center", va="top", fontsize=8)
    return figure


def build(size=32, noise=0.0, item=0, truth=None, observation=None, data_solver="same", fft="scipy"):
    """Problem ``item`` of a size: the held-out field and the noise of that number, see `navier_stokes`."""
    return navier_stokes(size, noise, item, data_solver, truth, observation, fft=fft)


ENTRY = Entry(
    build, "initial vorticity from a later, sparse, noisy one: --size 32, 64 or 128",
    (Option("size", integer, "grid points per axis: 32 (Reynolds number 50), 64 or 128 (Reynolds number 200)", 32),
     Option("data_solver", str, "what makes the data: same (the forward model) or padded (a run on twice the grid)",
            "same", DATA_SOLVERS, data="simulated"),
     Option("fft", str, "scipy, ducc0 or pyfftw; the last two need the extra fast", "scipy"),
     Option("noise", nonnegative, "standard deviation of the data; 0 inverts them with an assumed 2 % of theirs", 0.0),
     ITEM, OBSERVATION, TRUTH))
