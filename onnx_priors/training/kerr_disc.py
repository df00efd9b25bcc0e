"""Train and write the black-hole prior ``kerr-disc-64``.

    python -m onnx_priors.training.kerr_disc --work DIR --out onnx_priors/weights/kerr-disc-64.onnx

makes the images (once, kept in DIR), trains, exports, enters the file in the manifest and prints the error table. It
may be stopped and started again; ``--export-only`` writes what the last checkpoint holds. The Gaussian of the same
images is written beside the prior (``kerr-disc-64-gaussian.onnx``) for comparisons. Needs the ``train`` extra.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from onnx_priors.training import command, edm
from onnx_priors.training.gaussians import PrincipalGaussian
from onnx_priors.training.network import UNet
from problems import kerr_disc

NAME = "onnx_priors.training.kerr_disc"
IMAGES = 650_000
TRAINING_SEED, HELD_OUT_SEED = 1, 2  # of kerr_disc.generate; other seeds are free for simulated observations
TRAINING_COUNT, HELD_OUT_COUNT = 40_000, 1024
COMPONENTS = 160  # per parity class, 640 in all


def image_set(work, name, count, seed):
    """(count, 64, 64) float16 in [0, 1], generated once and kept as ``name`` in ``work``."""
    path = Path(work) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, kerr_disc.generate(count, seed, dtype="float16"))
    return np.load(path)


def prior_units(images):
    """Images in [0, 1] -> z = 2 x - 1, float32."""
    return 2 * np.asarray(images, dtype=np.float32) - 1


def draws(images):
    """(count, generator) -> images in prior units under random symmetries of the square."""
    images = torch.from_numpy(images)

    def draw(count, generator):
        x = images[torch.randint(len(images), (count,), generator=generator)].float().mul_(2).sub_(1)
        # one symmetry per eighth of the batch
        parts = [symmetry(part, k) for k, part in enumerate(x.chunk(8))]
        return torch.cat(parts)[:, None]

    return draw


def symmetry(x, k):
    """The k-th of the eight symmetries of the square, x (..., n, n)."""
    x = torch.rot90(x, k % 4, (-2, -1))
    return x.transpose(-2, -1) if k >= 4 else x


def build(work, seed=0):
    """The untrained denoiser around the Gaussian of the training images, their full Wiener denoiser, the images."""
    training = image_set(work, "training-images.npy", TRAINING_COUNT, TRAINING_SEED)
    path = Path(work) / "moments.pt"
    if not path.exists():
        full = PrincipalGaussian.fit(prior_units(training), (kerr_disc.SIZE // 2) ** 2)
        torch.save(full.state_dict(), path)
    moments = {name: value.double().numpy() for name, value in torch.load(path, weights_only=True).items()}
    mean, components, variances = moments["mean"], moments["components"], moments["variances"][:, 0]
    full = PrincipalGaussian(mean, components, variances, np.zeros(4))
    gaussian = PrincipalGaussian(mean, components[:, :, :COMPONENTS], variances[:, :COMPONENTS],
                                     variances[:, COMPONENTS:].mean(axis=1))
    torch.manual_seed(seed)
    network = UNet(features=2, outputs=1, size=(kerr_disc.SIZE, kerr_disc.SIZE))
    return edm.Denoiser(gaussian, network), full, training


def main(arguments=None):
    options = command.parser(NAME, __doc__.split("\n")[0], IMAGES).parse_args(arguments)
    torch.set_num_threads(1)
    denoiser, full, training = build(options.work, options.seed)
    clean = prior_units(image_set(options.work, "held-out-images.npy", HELD_OUT_COUNT, HELD_OUT_SEED))
    wiener = f"Wiener denoiser of {4 * COMPONENTS} principal components and an isotropic rest"
    facts = {
        "units": "image of peak 1, 160 micro-arcseconds across, 64 x 64 pixels",
        "normalisation": "x = 2 * image - 1: -1 is dark, 1 is the peak of the image",
        "data": f"{kerr_disc.LABEL}; {TRAINING_COUNT} images of problems.kerr_disc.generate(seed={TRAINING_SEED})",
    }
    forms = f"D = W + c F inside the graph: W {wiener}, c its posterior deviation, F a U-Net", wiener
    command.train_and_write(options, NAME, denoiser, draws(training), torch.from_numpy(clean)[:, None], facts, forms,
                            wiener=full)
    return 0


if __name__ == "__main__":
    sys.exit(main())
