"""The denoising error table and the picture of onnx_priors/README.md, from the shipped files.

    python benchmarks/prior_quality.py --prior kerr-disc-64

prints the table (mean squared error per pixel on held-out images: network, shipped Gaussian, full-covariance Wiener
denoiser of the training images) and the speed, and writes onnx_priors/NAME.png, samples of the prior beside images of
the generator. Makes the training images anew (some minutes) unless ``--work DIR`` of the training is given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from onnx_priors import session

FOLDER = Path(__file__).resolve().parent.parent / "onnx_priors"
PRIORS = ("kerr-disc-64",)


def samples(denoise, count, seed=0, steps=40, sigma_max=80.0, sigma_min=0.002, rho=7.0):
    """Draw from a prior by Heun's method on the probability flow, sigma spaced as in EDM; (count, *event)."""
    rng = np.random.default_rng(seed)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = [float((ends[0] + k / (steps - 1) * (ends[1] - ends[0])) ** rho) for k in range(steps)]
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    x = sigma_max * rng.standard_normal((count, *denoise.event_shape))
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (sigma_next - sigma) * slope
        x = x + (sigma_next - sigma) * 0.5 * (slope + (euler - denoise(euler, sigma_next)) / sigma_next)
    return denoise(x, sigma_min)


def picture(drawn, made, path):
    """Two sheets of 6 x 6 images in [0, 1], prior samples left, generator right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.1), layout="constrained")
    for axis, images, title in zip(axes, (drawn, made), ("samples of the prior", "images of the generator")):
        sheet = images[:36].reshape(6, 6, *images.shape[1:]).transpose(0, 2, 1, 3).reshape(6 * images.shape[1], -1)
        axis.imshow(sheet, cmap="afmhot", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def kerr_disc_64(work):
    import torch

    from onnx_priors.training import command, kerr_disc

    torch.set_num_threads(1)
    _, full, training = kerr_disc.build(work)
    clean = kerr_disc.image_set(work, "held-out-images.npy", kerr_disc.HELD_OUT_COUNT, kerr_disc.HELD_OUT_SEED)
    clean = torch.from_numpy(kerr_disc.prior_units(clean))[:, None]
    denoise = session.load_prior("kerr-disc-64", threads=1)
    gaussian = session.load_prior("kerr-disc-64-gaussian", threads=1)

    def rows(prior):
        return lambda x, sigma: torch.from_numpy(prior(x[:, 0].numpy(), float(sigma[0])))[:, None]

    denoisers = {"network": rows(denoise), "shipped Gaussian": rows(gaussian), "full Wiener": full}
    print(command.error_table(denoisers, clean))

    x = clean[:256, 0].numpy()
    begin = time.process_time()
    for _ in range(4):
        denoise(x, 0.5)
    print(f"speed: {4 * len(x) / (time.process_time() - begin):.0f} images per CPU second, one thread")

    drawn = (samples(denoise, 36) + 1) / 2
    peaks = np.quantile(drawn.max(axis=(1, 2)), (0, 0.5, 1)).round(3)
    print(f"samples: peak min/median/max {peaks}, lowest pixel {drawn.min():.3f}, mean {drawn.mean():.4f} "
          f"(generator {(clean.mean().item() + 1) / 2:.4f})")
    picture(drawn, training[:36].astype(np.float32), FOLDER / "kerr-disc-64.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prior", choices=PRIORS, default=PRIORS[0])
    parser.add_argument("--work", help="directory of the training, with its images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        {"kerr-disc-64": kerr_disc_64}[options.prior](options.work or scratch)


if __name__ == "__main__":
    main()
