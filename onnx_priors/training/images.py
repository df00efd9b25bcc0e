"""Train a prior on anybody's images: from an .npy file to a prior file in the minutes one has.

    images = read_images("images.npy")
    trained = train(images, "prior.onnx", minutes=30.0)      # prior.onnx, prior_vjp.onnx, prior-samples.png

The recipe is that of the shipped priors (``edm.py``): the Gaussian of the images, and a small U-Net for what that
Gaussian does not know. Stopped at any time, the same call goes on from the last checkpoint. Needs the ``train`` extra.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnx_priors.errors import denoising_errors, relative_levels, table
from onnx_priors.export import export_prior
from onnx_priors.fit import best_number_of_modes, principal
from onnx_priors.gaussian import GaussianPrior, Principal
from onnx_priors.images import STD, Images
from onnx_priors.metadata import model_shape
from onnx_priors.samples import draw, sheet
from onnx_priors.session import OnnxDenoiser
from onnx_priors.training import edm
from onnx_priors.training.gaussians import ModesGaussian
from onnx_priors.training.network import UNet

SYMMETRIES = ("none", "mirror", "square", "shift")
GAUSSIAN_NUMBERS = 400_000  # of the modes inside the network's file: 1.6 MB
CHANNELS = (32, 64, 128)


@dataclass(frozen=True)
class Trained:
    """A trained prior.

    path, vjp, sheet : its files; vjp is None, and ``note`` says why, where the Jacobian cannot be exported
    images : what it was trained on, prior units
    table : errors on the held-out images as Markdown, beside those of the Gaussian of the training images
    """

    path: Path
    vjp: Path | None
    sheet: Path
    images: Images
    table: str
    note: str


class Padded(nn.Module):
    """A network for sizes that its patches divide, on images of any size: zeros are added around, and cut off again."""

    def __init__(self, network, size, whole):
        super().__init__()
        self.network = network
        for name, n, m in zip(("rows", "columns"), size, whole):
            self.register_buffer(name, torch.eye(m)[:, (m - n) // 2:(m - n) // 2 + n].contiguous())

    def forward(self, features, level):
        out = self.network(self.rows @ features @ self.columns.T, level)
        return self.rows.T @ out @ self.columns


def train(images, out, minutes=30.0, symmetry="none", work=None, seed=0):
    """Train a prior on `Images` and write it to ``out``, its Jacobian and a sheet of samples beside it.

    Parameters
    ----------
    images : Images              of ``read_images``
    out : path                   of the .onnx file
    minutes : float              wall time of training; in all, where a call goes on from a checkpoint
    symmetry : what leaves an image as likely as it was, used to make more of them: "none"; "mirror" left and right;
        "square", the eight turns and mirror images; "shift", any periodic shift (the network is then periodic too)
    work : path or None          folder of the checkpoint; None: OUT-training beside ``out``
    seed : int                   of the first weights and of all noise

    Returns `Trained`. Raises ValueError for another symmetry, minutes <= 0, or a folder with the training of other
    images.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ValueError(f"out: got {path}, expected a file name that ends in .onnx")
    if symmetry not in SYMMETRIES:
        raise ValueError(f"symmetry: got {symmetry!r}, expected one of {', '.join(SYMMETRIES)}")
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes: got {minutes}, expected a number > 0")
    shape = model_shape(images.event_shape)
    if symmetry == "square" and shape[1] != shape[2]:
        raise ValueError(f"symmetry: got square for events of shape {images.event_shape}, expected square images")
    work = Path(work or path.with_name(f"{path.stem}-training"))
    _claim(work, images, symmetry, seed)
    torch.set_num_threads(1)
    denoiser, gaussian = build(images, symmetry == "shift", seed)
    drawn = images.training.reshape(-1, *shape)
    shift = math.log(images.std / STD)  # the noise levels follow the size of the images
    judging = torch.from_numpy(images.judging.reshape(-1, *shape)[:96])
    sigmas = [s * images.std for s in relative_levels()]
    least = edm.denoising_errors(denoiser.gaussian, judging, sigmas)

    def evaluate(average):
        ratios = np.divide(edm.denoising_errors(average, judging, sigmas), least)
        return "error/Gaussian " + " ".join(f"{s / images.std:g}:{r:.3f}" for s, r in zip(sigmas, ratios))

    average, _ = edm.train(denoiser, augmented(drawn, symmetry), work=work, minutes=minutes, seed=seed,
                           log_sigma=(-1.0 + shift, 1.3), evaluate=evaluate, report=9_600)
    form = "D = W + c F inside the graph: W a Gaussian of principal components, c its deviation, F a U-Net"
    facts = images.facts(form) | {"training_minutes": float(minutes), "seed": int(seed), "symmetry": symmetry}
    path, vjp, note = export_prior(average, path, images.event_shape, facts)
    denoise = OnnxDenoiser(path, threads=1)
    errors = {"network": denoising_errors(denoise, images.judging, sigmas, seed),
              "Gaussian": denoising_errors(gaussian.denoise, images.judging, sigmas, seed)}
    picture = path.with_name(f"{path.stem}-samples.png")
    some = draw(denoise, 16, seed=seed)
    sheet(picture, *(images.scale * x + images.shift for x in (some, images.judging[:16])))
    return Trained(path, vjp, picture, images, table(errors, sigmas), note)


def build(images, periodic=False, seed=0):
    """The untrained denoiser around the Gaussian of the training images, and that Gaussian as a prior."""
    shape = model_shape(images.event_shape)
    count = min(best_number_of_modes(images), max(1, GAUSSIAN_NUMBERS // math.prod(shape)))
    found = principal(images.training, count)
    torch.manual_seed(seed)
    size, channels = shape[1:], shape[0]
    patch, levels = patches(size)
    step = patch * 2 ** (levels - 1)
    whole = tuple(n if n == 1 else -(-n // step) * step for n in size)
    network = UNet(features=2 * channels, outputs=channels, size=whole, patch=patch, channels=CHANNELS[:levels],
                   blocks=(1,) * levels, circular=periodic and whole == size)
    if whole != size:
        network = Padded(network, size, whole)
    gaussian = ModesGaussian(Principal(found.mean.reshape(shape), *found[1:]))
    return edm.Denoiser(gaussian, network, taper=30 * images.std), GaussianPrior.from_principal(found)


def patches(size):
    """Side of the patches and number of levels of the network for images of this size."""
    longest = max(size)
    patch = 1 if longest <= 16 else 2 if longest <= 32 else 4
    shortest = min(n for n in size if n > 1) if longest > 1 else 1
    levels = 1 + sum(shortest // (patch * 2**k) >= 4 for k in (1, 2))
    return patch, levels


def augmented(images, symmetry):
    """(count, torch.Generator) -> images (count, C, H, W) float32 under random symmetries, one for each eighth."""
    images = torch.from_numpy(np.ascontiguousarray(images))

    def turned(x, generator):
        k = int(torch.randint(8, (), generator=generator))
        if symmetry == "mirror":
            return torch.flip(x, (-1,)) if k % 2 else x
        if symmetry == "square":
            x = torch.rot90(x, k % 4, (-2, -1))
            return x.transpose(-2, -1) if k >= 4 else x
        if symmetry == "shift":
            steps = [int(torch.randint(n, (), generator=generator)) for n in x.shape[-2:]]
            return torch.roll(x, steps, (-2, -1))
        return x

    def draw_batch(count, generator):
        x = images[torch.randint(len(images), (count,), generator=generator)]
        return torch.cat([turned(part, generator) for part in x.chunk(8)])

    return draw_batch


def _claim(work, images, symmetry, seed):
    """Enter what is trained into the folder, or see that it is the same."""
    work.mkdir(parents=True, exist_ok=True)
    about = {"images": hashlib.sha256(np.ascontiguousarray(images.x).tobytes()).hexdigest(), "symmetry": symmetry,
             "seed": seed}
    record = work / "training.json"
    if not record.exists():
        record.write_text(json.dumps(about) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = {}
    other = [name for name, value in about.items() if before.get(name) != value]
    if other:
        raise ValueError(f"work: got {work} with a training of other {', '.join(other)}, expected a new folder, or "
                         "the same images, symmetry and seed to go on")
