"""Vorticity fields: the Gaussian-random-field generator, the sizes this project solves, and the fields made by its own
solver.

The real data set of the paper is not public. These fields are stand-ins made by its documented recipe: draw a Gaussian
random field, evolve the forced equation for five time units.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_priors.gaussian import GaussianPrior
from problems.navier_stokes_solver import Flow, NavierStokes
from problems.spectral import resample

SPIN_UP = 5  # time units from the random field to a field of the data set
SPLITS = {"train": 0, "validation": 1, "test": 2}
DATA = Path(__file__).parent / "data"
BENCH16, MOMENTS = DATA / "vorticity-bench16.npz", DATA / "vorticity-moments.npz"


@dataclass(frozen=True)
class Preset:
    """One size of the problem. Owns the only copy of its scale constant.

    Attributes
    ----------
    n : int                   grid points per axis
    flow : Flow               constants of the equation
    scale : float             physical = scale * x; twice the standard deviation of the fields, so that x has 0.5
    alpha, tau : float        spectrum of the random field (N3)
    amplitude : float         factor on the random field
    courant, rate_min : float   step rule of the forward model, see `NavierStokes`
    prior : str or None       name of the shipped prior
    """

    n: int
    flow: Flow
    scale: float
    alpha: float
    tau: float
    amplitude: float
    courant: float
    rate_min: float
    prior: str | None


# rate_min 5 at 32 points, where `NavierStokes` has 15: the temporal error is then 8.7e-5 rms, 2.8e-4 at most, on
# sixteen test fields (14 to 26 steps; 1.2e-6 with 15): far below any noise of the data, at a third of the cost.
PRESETS = {
    32: Preset(32, Flow(reynolds=50.0), 5.6, alpha=4.0, tau=3.0, amplitude=10.0, courant=3.0, rate_min=5.0,
               prior="navier-stokes-32"),
    64: Preset(64, Flow(), 10.0, alpha=2.5, tau=3.0, amplitude=1.0, courant=3.0, rate_min=15.0,
               prior="navier-stokes-64"),
    128: Preset(128, Flow(), 10.0, alpha=2.5, tau=3.0, amplitude=1.0, courant=3.0, rate_min=15.0, prior=None),
}


def preset(size):
    """The preset of this size; ValueError where there is none."""
    if size not in PRESETS:
        raise ValueError(f"size: got {size}, expected {', '.join(map(str, PRESETS))} grid points per axis")
    return PRESETS[size]


def gaussian_random_field(xi, eta, alpha, tau):
    """(N3): sum over a half plane of (sqrt 2/L) tau^(alpha-1) (|k|^2 + tau^2)^(-alpha/2) (xi_k sin k.x + eta_k cos
    k.x), L = 2 pi.

    xi, eta : standard normal (J, n, n), in the order of `numpy.fft.fftfreq` -> float64 (J, n, n). Half plane: k1 + k2
    > 0, or k1 + k2 = 0 and k1 > 0.
    """
    n = xi.shape[-1]
    k = np.fft.fftfreq(n, 1 / n)
    k1, k2 = k[:, None], k[None, :]
    half = (k1 + k2 > 0) | ((k1 + k2 == 0) & (k1 > 0))
    amplitude = half * (np.sqrt(2.0) / (2 * np.pi)) * tau ** (alpha - 1.0) * (k1**2 + k2**2 + tau**2) ** (-alpha / 2)
    return np.fft.ifft2(n * n * amplitude * (xi + 1j * eta)).imag


def fields(size, count, split="train", seed=0, first=0, fft="scipy"):
    """``count`` vorticity fields of a preset, physical units, float32 (count, n, n).

    Field i depends on (size, split, seed, first + i) only, up to rounding of the FFT back-end.
    """
    own = preset(size)
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    streams = [np.random.default_rng([size, SPLITS[split], seed, first + i]) for i in range(count)]
    normals = [stream.standard_normal((2, own.n, own.n)) for stream in streams]
    xi, eta = np.stack(normals, axis=1) if count else np.zeros((2, 0, own.n, own.n))
    omega = own.amplitude * gaussian_random_field(xi, eta, own.alpha, own.tau)
    # five intervals, so that the step count follows the growing speed; stability is enough here
    march = NavierStokes(own.n, own.flow, courant=own.courant, rate_min=0.0, fft=fft)
    omega = omega.astype("float32")
    for _ in range(SPIN_UP):
        omega = march(omega)
    return omega


def moments(omega):
    """Mean profile (n,) along y and power spectrum (n, n//2 + 1) of fields (J, n, n), averaged over the symmetries.

    The flow is statistically invariant under any shift in x, a shift of n/4 in y, omega(-x, -y) and -omega(-x, y +
    n/8): the mean depends on y only, with period n/4, even, and odd under a shift of n/8. The spectrum is E |h_k -
    mean_k|^2 / n^2, the eigenvalues of the covariance.
    """
    n = omega.shape[-1]
    profile = omega.mean(axis=(0, 1), dtype="float64").reshape(4, n // 4).mean(axis=0)
    profile = (profile + np.roll(profile[::-1], 1)) / 2
    profile = np.tile((profile - np.roll(profile, -(n // 8))) / 2, 4)
    power = np.zeros((n, n // 2 + 1))
    for first in range(0, len(omega), 256):
        power += np.sum(np.abs(np.fft.rfft2(omega[first : first + 256] - profile)) ** 2, axis=0)
    power = power / (len(omega) * n * n)
    return profile, (power + np.roll(power[::-1], 1, axis=0)) / 2


def prior_moments(size):
    """Mean (n, n) and spectrum (n, n//2 + 1), as in `moments`, of the training fields of a preset; stored, physical
    units.
    """
    stored = np.load(MOMENTS)
    return np.tile(stored[f"profile_{size}"], (size, 1)), stored[f"spectrum_{size}"]


def prior_gaussian(size):
    """The stationary Gaussian with the moments of the training fields of a preset, prior units."""
    (mean, spectrum), scale = prior_moments(size), preset(size).scale
    return GaussianPrior.stationary(mean / scale, spectrum / scale**2)


def bench16(n=128, rows=None):
    """The fixture behind every accuracy and speed table: sixteen fields at Re = 200, float64 (16, n, n).

    Made at 256^2 in float64 (five unit intervals of 100, 150, 200, 300, 300 steps, mask |k_i| <= 85) from random
    fields of seed 0 with alpha = 4, tau = 3, then cut to |k_i| < n/2. With ``rows`` (indices) these rows are made
    anew, about five CPU seconds each; without, the stored copy (float32) is read.
    """
    if rows is None:
        omega = np.load(BENCH16)["omega"].astype("float64")
    else:
        rng = np.random.default_rng(0)
        xi, eta = rng.standard_normal((16, 128, 128)), rng.standard_normal((16, 128, 128))
        omega = resample(gaussian_random_field(xi, eta, 4.0, 3.0)[np.asarray(rows)], 256)
        for steps in (100, 150, 200, 300, 300):
            omega = NavierStokes(256, cutoff=85, steps=steps)(omega)
        omega = resample(omega, 128)
    return omega if n == 128 else resample(omega, n)


def main(arguments=None):
    """Write the fields of one split to a file: what the shipped priors are trained on."""
    parser = argparse.ArgumentParser(prog="python -m problems.vorticity", description=main.__doc__)
    parser.add_argument("--size", type=int, choices=PRESETS, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fft", default="scipy", help="scipy, ducc0 or pyfftw")
    parser.add_argument("--out", required=True, help=".npy file, float32 (count, n, n), physical units")
    parser.add_argument("--moments", action="store_true", help="also renew the stored moments of this size")
    options = parser.parse_args(arguments)
    block = 256
    made = [fields(options.size, min(block, options.count - first), options.split, options.seed, first, options.fft)
            for first in range(0, options.count, block)]
    made = np.concatenate(made)
    np.save(options.out, made)
    if options.moments:
        stored = dict(np.load(MOMENTS)) if MOMENTS.exists() else {}
        names = f"profile_{options.size}", f"spectrum_{options.size}"
        np.savez_compressed(MOMENTS, **(stored | dict(zip(names, moments(made[np.isfinite(made[:, 0, 0])])))))


if __name__ == "__main__":
    main()
