"""Image restoration: box inpainting, super-resolution, deblurring and phase retrieval of photographs.

    y = G(x) + noise e,   e ~ N(0, I),   noise 0.05                           (I1)

x in prior units, [-1, 1]; results and truths are u = (x + 1)/2 in [0, 1]. The operators: ``imaging_operators.py``; the
figures of merit: ``image_metrics.py``. The configuration is that of devzhk/enkg-pytorch for FFHQ at 256 x 256, scaled
to any size n and 1 or 3 channels. FFHQ and its prior are not available: the shipped truths are twelve patches, 64 x 64,
of photographs that the shipped prior was not trained on (``photographs.py``), a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_priors.gaussian import GaussianPrior
from problems import image_metrics, photographs
from problems.files import read_array
from problems.imaging_operators import FourierMagnitude, Inpainting, MatrixPair, bicubic, blur
from problems.pictures import FITS, read_picture
from problems.problem import ITEM, OBSERVATION, TRUTH, Entry, Observation, Option, Problem, count, integer, positive

NOISE = 0.05
PRIOR = "photo-patches-64"
RANGES = ("unit", "official")
LINEAR = {"method": "mmps", "budget": 1200}  # four chains of a hundred steps
PHASE = {"method": "diffpir", "budget": 1600, "ensembles": 2}  # restarts: twice seven chains of a hundred steps
"""How they are solved unless the user says otherwise, by a study on training photographs: seconds on two cores. EnKG-R,
which needs no gradient, takes minutes where y is as large as x; 64 particles of EnKG span too little of 12,288
dimensions."""


@dataclass(frozen=True)
class Picture:
    """The options that the four problems share.

    noise : float > 0            standard deviation of the data, in units of x
    item : int                   number of the shipped truth, 0 to 11
    seed : int                   of the noise of the data, and of the hole
    observation, truth           array or .npy file: y, (m,) or shaped as G(x); u (*event)
    image : path                 PNG or JPEG file, the truth instead of a shipped one;  fit : see `pictures`
    size, channels : int         n and c of pictures (c, n, n); one channel: (n, n)
    metric_range : str           "unit", or "official": the clipping of the official evaluator, see `image_metrics`
    lpips : callable or None     (u (*event), truth (*event)) -> float, pictures in [0, 1]; none is shipped
    """

    noise: float = NOISE
    item: int = 0
    seed: int = 0
    observation: Any = None
    truth: Any = None
    image: Any = None
    fit: str = "crop"
    size: int = photographs.SIZE
    channels: int = 3
    metric_range: str = "unit"
    lpips: Callable | None = None

    def __post_init__(self):
        for name, known in (("channels", (1, 3)), ("metric_range", RANGES), ("fit", FITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {' or '.join(map(str, known))}")
        if not (np.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise: got {self.noise}, expected a standard deviation > 0")
        if self.size < 8:
            raise ValueError(f"size: got {self.size}, expected at least 8 pixels")
        if self.image is not None and self.truth is not None:
            raise ValueError(f"image: got {self.image} and a truth, expected one of them")

    @property
    def event_shape(self):
        return (self.size, self.size) if self.channels == 1 else (self.channels, self.size, self.size)

    def generator(self, role, *more):
        """One generator per role, 1 the noise of the data, 2 the hole: neither depends on what was drawn before."""
        return np.random.default_rng([self.seed, role, *more])

    def known_truth(self):
        """u (*event) in [0, 1], or None, and where it comes from."""
        if self.image is not None:
            return read_picture(self.image, self.event_shape, self.fit)
        if self.truth is not None:
            u = read_array(self.truth, "truth")
            if u.shape != self.event_shape or u.min() < 0 or u.max() > 1:
                raise ValueError(f"truth: got shape {u.shape} with values {u.min():g} to {u.max():g}, expected "
                                 f"{self.event_shape} with values in [0, 1]")
            return u, "given by the user"
        if self.observation is not None:
            return None, ""
        if self.size != photographs.SIZE:
            raise ValueError(f"image: got nothing, expected a picture of {self.size} x {self.size} pixels: those that "
                             f"are shipped have {photographs.SIZE} x {photographs.SIZE}")
        return self._shipped()

    def _shipped(self):
        file = photographs.shipped()
        if self.item >= len(file["patches"]):
            raise ValueError(f"item: got {self.item}, expected 0 to {len(file['patches']) - 1}")
        u = np.moveaxis(file["patches"][self.item] / 255.0, -1, 0)
        name, (scale, top, left) = str(file["photographs"][self.item]), file["places"][self.item].tolist()
        words = (f"stand-in for a face of FFHQ: 64 x 64 pixels of the photograph {name} at scale 1/{scale} from "
                 f"({top}, {left}), {photographs.CREDITS[name][3]}, not among the training photographs")
        return (u.mean(axis=0) if self.channels == 1 else u), words


def inpainting(hole=None, **picture):
    """A picture behind a box: y = mask * x + noise, (I5).

    hole : (top, left, height, width) in pixels, or None: drawn by the seed, height and width in [105 n/256, 180 n/256),
        n/8 away from the edge, (I6); the same for every item
    picture : see `Picture`
    """
    common = Picture(**picture)
    hole = _drawn_hole(common) if hole is None else hole
    operator = Inpainting(common.event_shape, hole)
    return _problem("inpainting", operator, common, f"hole (top, left, height, width) = {tuple(hole)}")


def super_resolution(factor=4, **picture):
    """A picture reduced by ``factor`` with antialiasing: Y = W X W^T + noise, (I9). picture : see `Picture`

    The configurations of the official code say 2, the table of its paper 4.
    """
    common = Picture(**picture)
    W = bicubic(common.size, factor)
    operator = MatrixPair(W, W, None if common.channels == 1 else common.channels)
    return _problem("super-resolution", operator, common, f"factor {factor}")


def deblurring(blur_std=3.0, **picture):
    """A picture blurred by a Gaussian of ``blur_std`` pixels, reflected at its edge: Y = M X M^T + noise, (I11).

    3 pixels is the paper's number, at n = 256; of a picture of 64 x 64 that is four times as much. picture : `Picture`
    """
    common = Picture(**picture)
    M = blur(common.size, blur_std)
    operator = MatrixPair(M, M, None if common.channels == 1 else common.channels)
    return _problem("deblurring", operator, common, f"blur of {blur_std:g} pixels, "
                    f"{256 * blur_std / common.size:g} at the 256 of the paper")


def phase_retrieval(oversample=2.0, **picture):
    """A picture from the magnitudes of its Fourier transform, oversampled: y = |F p| + noise, (I14).

    x, -x and either of them turned by 180 degrees have the same y, and so have shifts of a picture with an empty edge:
    the figures of merit stand beside those after the best of the four. picture : see `Picture`
    """
    common = Picture(**picture)
    operator = FourierMagnitude(common.event_shape, oversample)
    return _problem("phase-retrieval", operator, common, f"oversampling {oversample:g}, {operator.frame} x "
                    f"{operator.frame} magnitudes; x, -x and both turned by 180 degrees fit alike", resolve=True)


def _drawn_hole(common):
    n, rng = common.size, common.generator(2)
    low, high, margin = 105 * n // 256, 180 * n // 256, n // 8
    height, width = (int(rng.integers(low, high)) for _ in range(2))
    top, left = (int(rng.integers(margin, n - margin - side)) for side in (height, width))
    return top, left, height, width


def _problem(name, operator, common, words, resolve=False):
    truth, origin = common.known_truth()
    if common.observation is None:
        y = operator(2.0 * truth[None] - 1.0)[0]
        y = y + common.noise * common.generator(1, common.item).standard_normal(y.shape)
        made = f"Simulated data, noise {common.noise:g}, seed {common.seed}."
    else:
        y, made = _measured(common.observation, operator.observed_shape), f"Data of the user, noise {common.noise:g}."
    own, gaussian = photographs.SIZE == common.size and common.channels == 3, photo_gaussian(common)
    notes = [f"{words}; {made}", f"Truth: {origin}." if truth is not None else "",
             "The prior knows patches of nine photographs only, a stand-in for that of FFHQ." if own else "",
             "LPIPS: not computed." if common.lpips is None else "",
             "Pictures are scored as the official evaluator does, their dark half clipped away."
             if common.metric_range == "official" else ""]

    def score(ensemble):
        """See `image_metrics.scores`; u (J, *event) -> {name: float}, empty without a truth.

        Where orientations fit alike, also of the particle that fits the data best: restarts, chosen without the truth.
        """
        if truth is None:
            return {}
        x, official = 2.0 * ensemble - 1.0, common.metric_range == "official"
        found = image_metrics.scores(x, 2.0 * truth - 1.0, common.lpips, official, resolve)
        if resolve:
            best = np.argmin(np.sum((operator(x) - y) ** 2, axis=1))
            own = image_metrics.scores(x[best][None], 2.0 * truth - 1.0, common.lpips, official, resolve)
            found |= {name.replace("_of_mean", "_of_best_fit"): value for name, value in own.items()
                      if "_of_mean" in name}
        return found

    def figure(result):
        from problems.imaging_figure import draw

        return draw(result, operator, name)

    return Problem(
        name=name, event_shape=operator.event_shape, forward=operator, observation=Observation(y, common.noise),
        scale=0.5, shift=0.5, units="brightness, 0 black to 1 white", truth=truth, forward_vjp=operator.vjp,
        prior=PRIOR if own else None, gaussian=gaussian,
        known={} if gaussian is None else {"prior mean": 0.5 * (gaussian.mean + 1.0)},
        **(PHASE if resolve else LINEAR), larger_is_better=True,
        metric="psnr_of_mean_ambiguity_resolved" if resolve else "psnr_of_mean",
        score=score, pool=_same_orientation if resolve else None, figure=figure, notes=" ".join(filter(None, notes)))


def photo_gaussian(common):
    """The Gaussian of photographs, prior units, for pictures of the shipped size; None for others."""
    if common.size != photographs.SIZE:
        return None
    file = photographs.shipped()
    luminance, colour = file["variances"].astype(np.float64)
    variances = luminance / 3.0 if common.channels == 1 else np.stack([luminance, colour, colour])
    return GaussianPrior.cosines(float(file["mean"]), variances)


def _measured(observation, shape):
    y = read_array(observation, "observation")
    if y.shape not in (shape, (int(np.prod(shape)),)):
        raise ValueError(f"observation: got shape {y.shape}, expected {shape} or ({int(np.prod(shape))},)")
    return y.reshape(-1)


def _same_orientation(ensemble, index):
    """Every independent ensemble in the orientation in which its mean is nearest to that of the first one. u, (J,)"""
    x = 2.0 * np.asarray(ensemble, dtype=np.float64) - 1.0
    first, out = x[index == index[0]].mean(axis=0), np.empty_like(x)
    for k in np.unique(index):
        rows = index == k
        out[rows] = image_metrics.oriented(x[rows], image_metrics.best_orientation(x[rows].mean(axis=0), first))
    return 0.5 * (out + 1.0)


# ------------------------------------------------------------------------------------------------- entries of the table


def whole_numbers(text):
    """"TOP,LEFT,HEIGHT,WIDTH" as four ints."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise ValueError(f"got {text!r}, expected TOP,LEFT,HEIGHT,WIDTH in pixels")
    return numbers


COMMON = (
    Option("image", str, "PNG or JPEG file of your own, the truth instead of a shipped one", data="simulated"),
    Option("fit", str, "what to do with a larger picture: crop (its middle) or shrink", "crop", FITS, data="simulated"),
    Option("size", integer, "pixels per side, those of the prior", photographs.SIZE),
    Option("channels", integer, "3, or 1 for grey pictures", 3, (1, 3)),
    Option("metric_range", str, "what is scored: unit, or official (clips the dark half of pictures away)", "unit",
           RANGES),
    Option("noise", positive, "standard deviation of the data, for pictures in [-1, 1]", NOISE),
    ITEM, Option("seed", count, "of the simulated noise and the hole", 0), OBSERVATION, TRUTH)

INPAINTING = Entry(
    inpainting, "a photograph behind a box (stand-in for FFHQ)",
    (Option("hole", whole_numbers, "TOP,LEFT,HEIGHT,WIDTH in pixels; default: drawn by the seed"), *COMMON))
SUPER_RESOLUTION = Entry(
    super_resolution, "a photograph from one of a quarter of its size: --factor 4 (stand-in for FFHQ)",
    (Option("factor", integer, "by which the picture was reduced", 4), *COMMON))
DEBLURRING = Entry(
    deblurring, "a photograph out of focus: --blur-std 3 pixels (stand-in for FFHQ)",
    (Option("blur_std", positive, "standard deviation of the blur in pixels", 3.0), *COMMON))
PHASE_RETRIEVAL = Entry(
    phase_retrieval, "a photograph from Fourier magnitudes: --oversample 2 (stand-in for FFHQ)",
    (Option("oversample", positive, "a frame 1 + oversample/4 times as wide as the picture", 2.0), *COMMON))
