"""``fit``, ``train``, ``check``, ``bring``: a prior of one's own. What ``enkg prior fit|train|check|import`` does.

Each writes the prior's files and beside them the Gaussian reference that EnKG-R needs (NAME.reference.npz), and returns
`Made`: the files and words for people. Nothing here is needed to use a prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..enkg_r.reference import Reference, file_sha256, from_images
from .building import REFERENCE_MODES


@dataclass(frozen=True)
class Made:
    """What a command wrote, and what it has to say."""

    files: tuple
    text: str


def fit(images, out, kind="gaussian", components=None, modes=None, scale=None, shift=None, units="", data="", seed=0):
    """A prior from images (an array or .npy file, (N, *event), physical units): see ``onnx_priors.fit.fit``."""
    from onnx_priors.fit import fit as fit_prior
    from onnx_priors.images import read_images

    _require_folder(out)
    fitted = fit_prior(read_images(images, scale, shift, data, units, seed), out, kind, components, modes, seed)
    sha = file_sha256(fitted.path)
    if kind == "gaussian":
        mean, vectors, variances, rest = fitted.prior.principal(min(REFERENCE_MODES, len(fitted.principal.variances)))
        reference = Reference(mean, vectors, variances, rest, prior=sha)
    else:
        reference = _reference(fitted.images, fitted.prior.denoise, sha)
    size = f"mixture of {fitted.components} Gaussians" if kind == "mixture" else "Gaussian"
    words = f"{size} of {len(fitted.principal.variances)} principal components from {len(fitted.images.x)} images\n"
    words += _judged(fitted)
    return _made((fitted.path, fitted.vjp), reference, words)


def train(images, out, minutes=30.0, symmetry="none", work=None, scale=None, shift=None, units="", data="", seed=0):
    """A trained prior from images: see ``onnx_priors.training.images.train``. Needs the extra ``train``."""
    from onnx_priors.images import read_images

    _require_folder(out)
    images = read_images(images, scale, shift, data, units, seed)
    trained = _training().train(images, out, minutes, symmetry, work, seed)
    words = (f"{trained.note}\n" if trained.note else "") + _judged(trained)
    reference = _reference(images, _denoiser(trained.path), file_sha256(trained.path))
    return _made((trained.path, trained.vjp, trained.sheet), reference, words)


def check(prior, images=None):
    """``onnx_priors.check.check``: a report with ``ok`` and ``text``."""
    from onnx_priors.check import check as check_prior

    return check_prior(prior, images)


def bring(source, kind, out, images=None, schedule="linear", no_jacobian=False, **facts):
    """A diffusion model of another family as a prior: see ``onnx_priors.importers.import_prior``; extra ``train``.

    images : like those it was trained on, physical units, for the reference of EnKG-R; None: no reference
    facts : of the metadata: shape (of an event), scale, shift, units, ...; those that are None are left out
    """
    _require_folder(out)
    metadata = {"event_shape" if name == "shape" else name: value for name, value in facts.items() if value is not None}
    made = _importers().import_prior(source, kind, out, metadata, schedule, not no_jacobian)
    reference = None
    if images is not None:
        from onnx_priors.images import Images, physical_images

        denoise = _denoiser(made.path)
        scale, shift = (float(denoise.metadata.get(name, value)) for name, value in (("scale", 1.0), ("shift", 0.0)))
        x = physical_images(images, made.event_shape, scale, shift)
        reference = _reference(Images(x, scale, shift, float(np.std(x)), max(1, len(x) // 4), "", ""), denoise,
                               file_sha256(made.path))
    low, high = made.sigma_range
    words = f"event {made.event_shape}, noise levels {low:.3g} to {high:.3g}" + (f"; {made.note}" if made.note else "")
    return _made((made.path, made.vjp), reference, words)


VERBS = {"fit": fit, "train": train, "import": bring}


def _judged(made):
    return f"mean squared error on {made.images.held_out} held-out images, prior units:\n{made.table}"


def _made(files, reference, words):
    files = [Path(path) for path in files if path is not None]
    if reference is not None:
        path = files[0].with_name(f"{files[0].stem}.reference.npz")
        reference.save(path)
        files.append(path)
    return Made(tuple(files), words)


def _reference(images, denoise, sha256):
    """The Gaussian of the images with the error table of the denoiser on the held-out ones."""
    held_out = min(256, images.held_out)
    return from_images(images.x, denoise, held_out=held_out, modes=REFERENCE_MODES, prior_sha256=sha256)


def _denoiser(path):
    from onnx_priors.session import OnnxDenoiser

    return OnnxDenoiser(Path(path))


def _training():
    _require_torch()
    from onnx_priors.training import images

    return images


def _importers():
    _require_torch()
    from onnx_priors import importers

    return importers


def _require_torch():
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name}: not installed, expected the extra train: pip install 'enkg_ref[train]'"
                          ) from None


def _require_folder(out):
    """Before an hour's work: whether its result can be written."""
    folder = Path(out).parent
    if not folder.is_dir():
        raise ValueError(f"out: got {out}, expected a file in a folder that exists")
