"""Train and write the colour-photograph prior ``photo-patches-64``.

    python -m onnx_priors.training.photo_patches --work DIR --out onnx_priors/weights/photo-patches-64.onnx

cuts patches out of the photographs that ship inside scikit-image and scikit-learn (``problems/photographs.py``),
trains, exports, enters the file in the manifest and prints the error table, on photographs that were not trained on and
on those that were. It may be stopped and started again; ``--export-only`` writes what the last checkpoint holds. The
Gaussian of the same patches is written beside the prior (``photo-patches-64-gaussian.onnx``) for comparisons. Needs the
extras ``train`` and ``images``.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import nn

from onnx_priors.training import command, edm
from onnx_priors.training.network import UNet
from problems import photographs

NAME = "onnx_priors.training.photo_patches"
IMAGES = 64_000
NETWORK = {"patch": 2, "channels": (32, 64, 128), "blocks": (1, 1, 1)}


class CosineGaussian(nn.Module):
    """Gaussian of colour pictures: constant mean, covariance diagonal in cosines (DCT-II) and in opponent colours.

    D(x, sigma) = mu + Q^T [l/(l + sigma^2) * Q (x - mu)], (O1), Q the product of a cosine transform of the rows, one of
    the columns and one of the three colours. For patches of a stationary field, whatever their orientation.

    mean : float;  variances : (3, H, W), [colour, row frequency, column frequency]
    """

    def __init__(self, mean, variances):
        super().__init__()
        bases = [cosine_basis(n) for n in variances.shape]
        arrays = {"mean": np.full((1, 1, 1), mean), "variances": variances, "colours": bases[0],
                  "rows": bases[1], "columns": bases[2]}
        for name, value in arrays.items():
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        for name in ("colours", "rows", "columns"):
            self.register_buffer(f"{name}_t", getattr(self, name).T.contiguous())
        self.deviation = math.sqrt(float(variances.mean()))

    def _mix(self, colours, x):
        return (colours @ x.reshape(x.shape[0], 3, -1)).reshape(x.shape)

    def forward(self, x, sigma):
        y = self._mix(self.colours, self.rows @ (x - self.mean) @ self.columns_t)
        y = y * (self.variances / (self.variances + sigma.reshape(-1, 1, 1, 1) ** 2))
        return self.mean + self.rows_t @ self._mix(self.colours_t, y) @ self.columns

    def variance(self, sigma):
        """Posterior variance per pixel, (J,)."""
        s2 = sigma.reshape(-1, 1, 1, 1) ** 2
        return (self.variances * s2 / (self.variances + s2)).mean((1, 2, 3))


def cosine_basis(n):
    """Orthogonal DCT-II matrix (n, n): row k is cos(pi k (j + 1/2) / n), normalised."""
    j, k = np.arange(n) + 0.5, np.arange(n)[:, None]
    return np.cos(np.pi * k * j / n) * np.sqrt(np.where(k == 0, 1.0, 2.0) / n)


def build(draw, seed=0):
    """The untrained denoiser around the Gaussian of the draws."""
    mean, (luminance, colour) = photographs.moments(draw)
    gaussian = CosineGaussian(mean, np.stack([luminance, colour, colour]))
    torch.manual_seed(seed)
    network = UNet(features=6, outputs=3, size=(photographs.SIZE,) * 2, position=False, **NETWORK)
    return edm.Denoiser(gaussian, network)


def held_out():
    """The test patches of ``photographs.grid`` in a seeded order, prior units (N, 3, 64, 64)."""
    patches, _ = photographs.grid(photographs.photographs("test"))
    return photographs.prior_units(patches[np.random.default_rng(0).permutation(len(patches))])


def main(arguments=None):
    options = command.parser(NAME, __doc__.split("\n")[0], IMAGES).parse_args(arguments)
    torch.set_num_threads(1)
    pictures = photographs.photographs("train")
    draw = photographs.draws(pictures)
    denoiser, clean = build(draw, options.seed), torch.from_numpy(held_out())
    facts = {
        "units": "colour photograph, 64 x 64 pixels, channels red, green, blue",
        "normalisation": "x = value / 127.5 - 1 of 8-bit values",
        "data": f"stand-in for the paper's FFHQ faces: random patches of {len(pictures)} photographs shipped inside "
                f"scikit-image and scikit-learn ({', '.join(pictures)}), augmented; see onnx_priors/README.md",
        "data_licence": "; ".join(f"{name}: {photographs.CREDITS[name][3]}" for name in pictures),
    }
    forms = ("Wiener denoiser + posterior deviation x U-Net, inside the graph",
             "Wiener denoiser: constant mean, variances of cosines and opponent colours")
    average = command.train_and_write(options, NAME, denoiser, draw, clean, facts, forms, half=True,
                                      log_sigma=(-1.0, 1.5))
    seen = draw(len(clean), torch.Generator().manual_seed(2**40))
    print("\nThe same on patches drawn as in training:\n")
    print(command.error_table({"network": average, "Wiener": denoiser.gaussian}, seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
