"""Images from which a prior is made: checked, in prior units, the last ones held out.

    x = (image - shift)/scale        prior units; scale * x + shift is what a simulator receives

Unless the user says otherwise shift is the mean of all pixels and scale twice the root of the mean variance of a pixel,
so that x has a standard deviation of 0.5: the noise levels 0.002 to 80 then span all that a sampler needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_priors.metadata import model_shape

STD, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0  # std of x for which the noise levels are made; they scale with it
LEAST, MOST_HELD_OUT = 32, 512


@dataclass(frozen=True)
class Images:
    """Images of one kind: x (N, *event) float32 in prior units; the last ``held_out`` of them judge, the others teach.

    std : root of the mean variance of a pixel of x;  data : what they are, in words;  units : of the images
    """

    x: np.ndarray
    scale: float
    shift: float
    std: float
    held_out: int
    data: str
    units: str

    @property
    def event_shape(self):
        return self.x.shape[1:]

    @property
    def training(self):
        return self.x[: len(self.x) - self.held_out]

    @property
    def judging(self):
        return self.x[len(self.x) - self.held_out:]

    def facts(self, parametrisation):
        """Metadata of a prior made from these images."""
        levels = self.std / STD
        return {"event_shape": self.event_shape, "sigma_min": SIGMA_MIN * levels, "sigma_max": SIGMA_MAX * levels,
                "sigma_data": round(self.std, 6), "scale": self.scale, "shift": self.shift, "data": self.data,
                "units": self.units, "normalisation": f"x = (image - {self.shift:.6g}) / {self.scale:.6g}",
                "parametrisation": parametrisation}


def read_images(images, scale=None, shift=None, data="", units="", seed=0):
    """`Images` from an array (N, *event) of real numbers in physical units, or from the path of its .npy file.

    The images are shuffled by ``seed`` before the last eighth (at most 512) is held out: files are often sorted.

    Raises ValueError for fewer than 32 images, an event of more than three axes, values that are not finite numbers,
    images that are all alike, or a scale that is not a positive number.
    """
    raw, name = _array(images)
    n = len(raw)
    order = np.random.default_rng(seed).permutation(n)
    mean = raw.mean(axis=0, dtype=np.float64)
    std = float(np.sqrt(np.mean(np.var(raw, axis=0, dtype=np.float64))))
    if not std > 1e-12 * max(float(np.abs(mean).max()), 1e-300):
        raise ValueError(f"images: got {n} images that are all alike in {name}, expected different ones")
    shift = float(mean.mean()) if shift is None else float(shift)
    scale = std / STD if scale is None else float(scale)
    if not (np.isfinite(shift) and np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale, shift: got {scale}, {shift}, expected finite numbers, scale > 0")
    x = ((raw[order] - shift) / scale).astype(np.float32)
    data = data or f"{n} images of shape {raw.shape[1:]}{f' from {name}' if name != 'the array' else ''}"
    return Images(x, scale, shift, std / scale, min(n // 8, MOST_HELD_OUT), data, units)


def physical_images(images, event_shape, scale, shift):
    """Images (N, *event) in physical units, or the .npy file of them, in prior units, float32; ValueError for another
    shape.
    """
    raw, name = _array(images, least=1)
    if raw.shape[1:] != tuple(event_shape):
        raise ValueError(f"images: got events of shape {raw.shape[1:]} in {name}, expected {tuple(event_shape)}")
    return ((raw - shift) / scale).astype(np.float32)


def _array(images, least=LEAST):
    """(N, *event) floating array and what to call it."""
    name = "the array"
    if not hasattr(images, "shape"):
        name = Path(images).name
        try:
            images = np.load(images, allow_pickle=False)
        except OSError as error:
            raise ValueError(f"images: got {name}, which cannot be read ({error}), expected an .npy file") from None
        except ValueError:
            raise ValueError(f"images: got {name}, which is no array of numbers, expected an .npy file") from None
        if not hasattr(images, "shape"):
            raise ValueError(f"images: got {name} with several arrays, expected an .npy file with one")
    images = np.asarray(images)
    if images.dtype.kind not in "fiub":
        raise ValueError(f"images: got dtype {images.dtype} in {name}, expected real numbers")
    if not 2 <= images.ndim <= 4 or len(images) < least or 0 in images.shape:
        raise ValueError(f"images: got shape {images.shape} in {name}, expected (N, *event), N at least {least} and an "
                         "event of 1, 2 or 3 axes")
    model_shape(images.shape[1:])
    images = images.astype(np.float64 if images.dtype.kind in "iu" and images.dtype.itemsize > 2 else np.float32)
    if not np.all(np.isfinite(images)):
        raise ValueError(f"images: got {int(np.sum(~np.isfinite(images)))} values that are not finite in {name}, "
                         "expected none")
    return images, name
