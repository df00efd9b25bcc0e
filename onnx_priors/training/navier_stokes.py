"""Train and write a vorticity prior, ``navier-stokes-32`` or ``navier-stokes-64``.

    python -m onnx_priors.training.navier_stokes --size 32 --work DIR --out onnx_priors/weights/navier-stokes-32.onnx

makes the fields (once, kept in DIR), trains, exports, enters the file in the manifest and prints the error table. It
may be stopped and started again; ``--export-only`` writes what the last checkpoint holds. The Gaussian with the
moments of the same fields is written beside the prior (``navier-stokes-32-gaussian.onnx``) for comparisons. Needs the
``train`` extra.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from onnx_priors.training import command, edm
from onnx_priors.training.gaussians import FourierGaussian
from onnx_priors.training.network import UNet
from problems import vorticity

NAME = "onnx_priors.training.navier_stokes"
COUNTS = {32: 20_000, 64: 12_000, 128: 4_000}  # training fields
HELD_OUT_COUNT = 512
# noise levels in units of the fields' standard deviation, at which the error is reported
RELATIVE_SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 3.0, 10.0)
NETWORKS = {  # pixels per patch, channels per level
    32: {"patch": 2, "channels": (32, 64, 128), "blocks": (1, 1, 1)},
    64: {"patch": 4, "channels": (64, 128), "blocks": (1, 1)},
    128: {"patch": 4, "channels": (32, 64, 128), "blocks": (1, 1, 1)},
}


def field_set(work, size, split, count, fft):
    """(count, n, n) float32, prior units, made once and kept in ``work``; fields the solver gave up are left out."""
    path = Path(work) / f"vorticity-{size}-{split}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [vorticity.fields(size, min(256, count - k), split, first=k, fft=fft) for k in range(0, count, 256)]
        np.save(path, np.concatenate(blocks))
    omega = np.load(path)[:count]
    return omega[np.all(np.isfinite(omega), axis=(1, 2))] / np.float32(vorticity.preset(size).scale)


def symmetry(x, k, shift):
    """A symmetry of the forced flow, x (J, n, n): 16 classes k of (turn, reflection, shift in y), and any ``shift``
    in x.
    """
    n = x.shape[-1]
    if k & 1:  # omega(-x, -y)
        x = torch.roll(torch.flip(x, (-2, -1)), (1, 1), (-2, -1))
    if k & 2:  # -omega(-x, y + n/8)
        x = -torch.roll(torch.flip(x, (-2,)), (1, -(n // 8)), (-2, -1))
    return torch.roll(x, (shift, (k >> 2) * n // 4), (-2, -1))


def draws(fields):
    """(count, generator) -> fields under random symmetries, another one for each eighth of the batch."""
    fields = torch.from_numpy(fields)

    def draw(count, generator):
        parts = fields[torch.randint(len(fields), (count,), generator=generator)].chunk(8)
        classes = torch.randint(16, (len(parts),), generator=generator).tolist()
        shifts = torch.randint(fields.shape[-1], (len(parts),), generator=generator).tolist()
        return torch.cat([symmetry(x, k, shift) for x, k, shift in zip(parts, classes, shifts)])[:, None]

    return draw


def build(fields, size, seed=0):
    """The untrained denoiser around the Gaussian of the training fields (mean profile, power spectrum)."""
    profile, _ = vorticity.moments(fields)
    gaussian = FourierGaussian.fit(fields[:, None], np.tile(profile, (1, size, 1)))
    torch.manual_seed(seed)
    # the learned map after the first convolution tells the network where the forcing is
    network = UNet(features=2, outputs=1, size=(size, size), circular=True, position=True, **NETWORKS[size])
    return edm.Denoiser(gaussian, network)


def main(arguments=None):
    parser = command.parser(NAME, __doc__.split("\n")[0], 400_000)
    parser.add_argument("--size", type=int, choices=NETWORKS, required=True)
    parser.add_argument("--fft", default="scipy", help="FFT that makes the fields: scipy, ducc0 or pyfftw")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size, own = options.size, vorticity.preset(options.size)
    fields = field_set(options.work, size, "train", COUNTS[size], options.fft)
    clean = torch.from_numpy(field_set(options.work, size, "validation", HELD_OUT_COUNT, options.fft))[:, None]
    facts = {
        "units": f"vorticity, Re = {own.flow.reynolds:g}, {size} x {size} points, y along the last axis",
        "normalisation": f"x = vorticity / {own.scale:g}",
        "data": f"stand-in fields: Gaussian random field evolved for five time units; {len(fields)} fields of "
                f"problems.vorticity.fields({size}, split='train', seed=0)",
    }
    forms = ("Wiener denoiser + posterior deviation x U-Net, inside the graph",
             "Wiener denoiser: mean profile and power spectrum")
    command.train_and_write(options, f"{NAME} --size {size}", build(fields, size, options.seed), draws(fields), clean,
                            facts, forms, sigmas=RELATIVE_SIGMAS, unit=float(clean.std()), log_sigma=(-1.4, 1.2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
