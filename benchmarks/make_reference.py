"""Make the Gaussian reference that EnKG-R needs of a prior, and put it beside the prior's file.

    python benchmarks/make_reference.py kerr-disc-64              from images of the generator it was trained on
    python benchmarks/make_reference.py FILE.onnx --images images.npy      (N, *event) in physical units, that is
                                                          scale * x + shift by the prior's metadata (1 and 0 if not given)
    python benchmarks/make_reference.py FILE.onnx --samples 2048           from samples of the prior itself
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from enkg_ref.commands.building import REFERENCE_MODES, reference_images
from enkg_ref.enkg_r.reference import LEAST_IMAGES, Reference, file_sha256, from_images, from_prior
from onnx_priors.manifest import read_manifest, register_companion
from onnx_priors.session import OnnxDenoiser


def training_images(name, count):
    """Images of the distribution the shipped prior was trained on, prior units, with its symmetries."""
    if name.startswith("kerr-disc-64"):
        from problems import kerr_disc

        x = (2.0 * kerr_disc.generate(count, 1, dtype="float32") - 1.0).astype("float32")
        flipped = x[:, :, ::-1]
        training = np.concatenate([x, flipped, np.swapaxes(x, 1, 2), np.rot90(x, 2, axes=(1, 2))])
        return np.concatenate([training, (2.0 * kerr_disc.generate(256, 2, dtype="float32") - 1.0).astype("float32")])
    if name.startswith("navier-stokes-"):
        from problems import vorticity

        size = int(name.rsplit("-", 1)[1])
        return (vorticity.fields(size, count, "train") / vorticity.preset(size).scale).astype("float32")
    raise ValueError(f"images: got nothing for prior {name}, expected --images FILE.npy or --samples N")


def photo_reference(denoise, modes, sha):
    """The reference of the prior of photographs: cosines and colours, its errors measured on training patches."""
    import torch

    from problems import photographs

    file = photographs.shipped()
    luminance, colour = file["variances"].astype(float)
    variances = np.stack([luminance, colour, colour])
    made = Reference.cosines(np.full(variances.shape, float(file["mean"])), variances, modes)
    if "gaussian" in denoise.path.stem:
        return dataclasses.replace(made, prior=sha)
    draw = photographs.draws(photographs.photographs("train"))
    return made.with_errors(denoise, draw(256, torch.Generator().manual_seed(99)).numpy(), prior_sha256=sha)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior")
    parser.add_argument("--images", help=".npy file, physical units, at least 32; the last quarter, at most 256, is held "
                        "out for the error table")
    parser.add_argument("--samples", type=int, help="use so many samples of the prior instead of images")
    parser.add_argument("--count", type=int, default=6000, help="images to generate for a shipped prior")
    parser.add_argument("--modes", type=int, default=REFERENCE_MODES)
    options = parser.parse_args(argv)
    try:
        make(options)
    except (ValueError, OSError) as error:
        sys.exit(f"make_reference: error: {error}")


def make(options):
    """Make and write the reference the options ask for. Raises ValueError or OSError for what cannot be made."""
    for name, least in (("samples", LEAST_IMAGES), ("count", LEAST_IMAGES), ("modes", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    denoise = OnnxDenoiser(options.prior, threads=1)
    sha = file_sha256(denoise.path)
    gaussian = "gaussian" in options.prior
    if options.prior.startswith("photo-patches-64") and not (options.samples or options.images):
        made = photo_reference(denoise, options.modes, sha)
    elif options.samples:
        made = from_prior(denoise, denoise.event_shape, denoise.sigma_max, denoise.sigma_min, options.samples,
                          modes=options.modes, prior_sha256=sha)
    else:
        if options.images:
            scale, shift = (float(denoise.metadata.get(name, value)) for name, value in (("scale", 1), ("shift", 0)))
            images = reference_images(options.images, denoise.event_shape, scale, shift)
        else:
            images = training_images(options.prior, options.count)
        made = from_images(images, None if gaussian else denoise, modes=options.modes, prior_sha256=sha)
    path = Path(denoise.path)
    path = path.with_name(f"{path.stem}.reference.npz")
    made.save(path)
    if options.prior in read_manifest():
        register_companion(options.prior, "reference", path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, std {made.std:.4g}, {made.variances.size} modes, "
          f"{made.active_modes(0.99)} with 99 % of the variance, rest {made.rest:.3g}")
    for s, row in zip(made.table_sigmas, [] if made.table is None else made.table):
        print(f"  sigma {s:8.4f}   r of the first 16 modes {row[:16].mean():.2f}, of all {row[:-1].mean():.2f}")


if __name__ == "__main__":
    main()
