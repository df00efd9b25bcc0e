"""Kolmogorov flow: long trajectories of the forced Navier-Stokes equation at Reynolds number 40, and the inverse
problem of its initial vorticity.

    d omega/dt + u . grad omega = (1/40) Laplace omega - 4 cos(4 y)   on [0, 2 pi)^2, 64 x 64 points, no drag      (K1)
    y = every fourth grid point, in both axes, of omega(T) + noise,   T = 1 or 5, m = 256                           (K2)

The equation is (N1) of `navier_stokes` with other constants, solved by its solver. The recipe is that of Takao et al.
(2026), "Noise, Denoise, Correct"; their data set is not public, this one is made by our own solver.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from onnx_priors.gaussian import GaussianPrior
from problems._xp import array_namespace
from problems.files import read_array
from problems.navier_stokes import draw, relative_l2
from problems.navier_stokes_solver import Flow, NavierStokes
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
from problems.vorticity import gaussian_random_field, moments

SIZE, STRIDE = 64, 4  # grid points per axis; every fourth one is observed
FLOW = Flow(reynolds=40.0, amplitude=4.0, k_f=4, time=1.0)
SCALE = 4.3  # physical = SCALE * x: about twice the standard deviation of the fields
TIMES = (1, 5)
SPIN_UP = 30  # time units from the random field to the first snapshot of a trajectory
SPACING = 2  # time units between snapshots
SNAPSHOTS = 112  # of each trajectory
TRAJECTORIES = {"train": range(0, 90), "validation": range(180, 190), "test": range(190, 200)}
STORED = Path(__file__).parent / "data" / "kolmogorov.npz"  # test fields and moments of the training fields

# ------------------------------------------------------------------------------------------------------------ data set


def solver(fft="scipy", courant=5.0):
    """omega(t) -> omega(t + 1), (J, 64, 64), physical units, in 21 steps at usual speeds.

    The time step's error was at most 1.3e-5 on the ten test fields (relative, against 300 steps), 2.2e-4 on fields with
    white noise of half their deviation added; ``courant`` 8 blew up on some. The data set was made with 3.
    """
    return NavierStokes(SIZE, FLOW, courant=courant, rate_min=0.0, chunk=32, fft=fft)


def start(trajectories):
    """Random fields from which the trajectories of these numbers start, float32 (count, 64, 64)."""
    normals = [np.random.default_rng([SIZE, 40, i]).standard_normal((2, SIZE, SIZE)) for i in trajectories]
    xi, eta = np.stack(normals, axis=1)
    return (10.0 * gaussian_random_field(xi, eta, 4.0, 3.0)).astype("float32")


def snapshots(trajectories, count, fft="scipy"):
    """``count`` snapshots of each trajectory after the spin-up, float32 (trajectories, count, 64, 64), physical."""
    march, omega, kept = solver(fft, courant=3.0), start(trajectories), []
    for unit in range(SPIN_UP + SPACING * (count - 1) + 1):
        if unit >= SPIN_UP and (unit - SPIN_UP) % SPACING == 0:
            kept.append(omega)
        omega = march(omega)
    return np.stack(kept, axis=1)


def make(directory, split, count=SNAPSHOTS, block=30, fft="scipy"):
    """All snapshots of a split, (trajectories * count, 64, 64); blocks of trajectories are kept in ``directory`` as
    they are finished, and not made again.
    """
    directory, numbers, parts = Path(directory), TRAJECTORIES[split], []
    directory.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(numbers), block):
        path = directory / f"kolmogorov-{split}-{first:03d}-{count}.npy"
        if not path.exists():
            made = snapshots(numbers[first : first + block], count, fft)
            np.save(f"{path}.new.npy", made)
            os.replace(f"{path}.new.npy", path)
            print(f"{path.name}: {made.shape[0]} trajectories, standard deviation {made.std():.4f}", flush=True)
        parts.append(np.load(path))
    return np.concatenate(parts).reshape(-1, SIZE, SIZE)


def prior_fields(directory, split):
    """Snapshots of a split in prior units, for training; made where they are missing.  (N, 64, 64) float32"""
    return make(directory, split) / np.float32(SCALE)


def store(directory):
    """Write `STORED`: one field in the middle of every test trajectory, and mean, spectrum and standard deviation of
    the training fields.
    """
    train, test = make(directory, "train"), make(directory, "test")
    profile, spectrum = moments(train)
    np.savez_compressed(STORED, test=test.reshape(-1, SNAPSHOTS, SIZE, SIZE)[:, SNAPSHOTS // 2], profile=profile,
                        spectrum=spectrum.astype("float32"), deviation=np.float64(train.std(dtype="float64")))


def stored(name):
    """"test" (10, 64, 64), "profile" (64,), "spectrum" (64, 33) or "deviation", physical units, float64."""
    with np.load(STORED) as file:
        return file[name].astype("float64")


# ------------------------------------------------------------------------------------------------- the inverse problem


def observe(omega):
    """O: (J, 64, 64) -> (J, 256), every fourth point in both axes, row by row."""
    return array_namespace(omega).reshape(omega[:, ::STRIDE, ::STRIDE], (omega.shape[0], -1))


def observe_adjoint(y):
    """O^T: (J, 256) -> (J, 64, 64), zero between the observed points."""
    xp = array_namespace(y)
    side = SIZE // STRIDE
    y = xp.reshape(y, (y.shape[0], side, 1, side, 1))
    y = xp.concat((y, *(xp.zeros_like(y),) * (STRIDE - 1)), axis=4)
    return xp.reshape(xp.concat((y, *(xp.zeros_like(y),) * (STRIDE - 1)), axis=2), (y.shape[0], SIZE, SIZE))


def build(time=1, noise=0.1, item=0, truth=None, observation=None, fft="scipy"):
    """The inverse problem: initial vorticity from every fourth point of the vorticity at ``time``, (K2).

    Parameters
    ----------
    time : 1 or 5                  time units between the field and its observation
    noise : float >= 0             standard deviation of the noise, in units of the standard deviation of the fields;
                                   0 leaves y clean, it is then inverted with `problem.assumed_noise`
    item : int in 0 ... 9          number of the held-out field, and seed of its noise
    truth, observation             arrays or paths of .npy files, physical units: (64, 64), and (256,) or (16, 16)
    fft : str                      see `spectral.transforms`
    """
    if time not in TIMES:
        raise ValueError(f"time: got {time}, expected 1 or 5")
    fields, side, march = stored("test"), SIZE // STRIDE, solver(fft)
    if not 0 <= item < len(fields):
        raise ValueError(f"item: got {item}, expected a number in 0 ... {len(fields) - 1}: as many fields are stored")
    deviation = float(stored("deviation"))
    mean = np.tile(stored("profile"), (SIZE, 1))
    gaussian = GaussianPrior.stationary(mean / SCALE, stored("spectrum") / SCALE**2)

    def forward(x):
        """(J, 64, 64) prior units -> (J, 256) vorticity at ``time``; a row that cannot be solved is NaN."""
        omega = x * SCALE
        for _ in range(time):  # unit by unit: the step follows the speed
            omega = march(omega)
        return observe(omega)

    def forward_vjp(x, v):
        """(x (J, 64, 64), v (J, 256)) -> J_G(x)^T v (J, 64, 64), prior units."""
        starts = [x * SCALE]
        for _ in range(time - 1):
            starts.append(march(starts[-1]))
        cotangent = observe_adjoint(v)
        for omega in reversed(starts):
            cotangent = march.value_and_vjp(omega, cotangent)[1]
        return SCALE * cotangent

    if truth is not None:
        truth = _field("truth", truth, (SIZE, SIZE))
    elif observation is None:
        truth = fields[item]
    if observation is not None:
        y = _field("observation", observation, (side, side)).reshape(-1)
    else:
        y = forward(truth[None] / SCALE)[0]
        if not np.all(np.isfinite(y)):
            raise ValueError("truth: got a flow that is too strong for the solver, expected a weaker one")
        y = y + noise * deviation * np.random.default_rng([item, SIZE, time]).standard_normal(y.shape)

    def score(ensemble):
        """Relative L2 of the particles and of their mean; the prior mean and a prior draw beside them."""
        if truth is None:
            return {}
        rows = ensemble[np.all(np.isfinite(ensemble), axis=(1, 2))].astype("float64")
        distance, size = np.sum((truth - mean) ** 2), np.sum(truth**2)
        return {
            "relative_l2_of_particles": float(relative_l2(rows, truth).mean()),
            "relative_l2_of_mean": float(relative_l2(rows.mean(axis=0)[None], truth)[0]),
            "relative_l2_of_prior_mean": float(np.sqrt(distance / size)),
            "relative_l2_of_prior_sample": float(np.sqrt((distance + SCALE**2 * gaussian.total_variance) / size)),
        }

    return Problem(
        name=f"kolmogorov-{time}",
        event_shape=(SIZE, SIZE),
        forward=forward,
        observation=Observation(y, noise * deviation or assumed_noise(y), noise_is_assumed=not noise),
        scale=SCALE,
        units="vorticity (box 2 pi)",
        truth=truth,
        forward_vjp=forward_vjp,
        prior="kolmogorov",
        gaussian=gaussian,
        known={"prior mean": mean},
        defaults={"particles": 256, "steps": 40, "guidance": 2.0, "updates": 2},
        score=score,
        figure=lambda result: draw(result, time),
        notes=_notes(noise, deviation, observation is not None),
    )


def _field(name, source, shape):
    array = read_array(source, name)
    if array.size != np.prod(shape):
        raise ValueError(f"{name}: got shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def _notes(noise, deviation, measured):
    data = "The observation was given by the caller." if measured else (
        "The field is one of a trajectory that the prior was not trained on; the forward model itself made the data.")
    return ("64 x 64 points, Re = 40, the equation and recipe of Takao et al. (2026) with fields and prior of our own: "
            f"theirs are not public. {data} The noise is {noise:g} standard deviations of the fields "
            f"({deviation:.3g}).")


ENTRY = Entry(
    build, "initial vorticity of a Kolmogorov flow (Re = 40, 64 x 64) from 16 x 16 points: --time 1 or 5",
    (Option("time", integer, "time units between the field and its observation, 1 or 5", 1, TIMES),
     Option("noise", nonnegative, "standard deviation of the data's noise, in standard deviations of the fields", 0.1),
     Option("fft", str, "scipy, ducc0 or pyfftw; the last two need the extra fast", "scipy"),
     ITEM, OBSERVATION, TRUTH),
)


def main(arguments=None):
    """Write the snapshots of every split to a directory: what the shipped prior is trained on."""
    parser = argparse.ArgumentParser(prog="python -m problems.kolmogorov", description=main.__doc__)
    parser.add_argument("--out", required=True, help="directory; blocks already there are kept")
    parser.add_argument("--fft", default="scipy", help="scipy, ducc0 or pyfftw")
    parser.add_argument("--store", action="store_true", help="also renew the stored test fields and moments")
    options = parser.parse_args(arguments)
    for split in TRAJECTORIES:
        make(options.out, split, fft=options.fft)
    if options.store:
        store(options.out)


if __name__ == "__main__":
    main()
