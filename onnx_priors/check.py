"""Is this file a prior? ``check("prior.onnx", "held_out.npy")`` says what holds, what does not, and what that means.

Without images the file's contract, noise range, batch independence, limits and speed are checked; with held-out
images also whether it denoises: its error at every level beside that of the Gaussian with the images' mean and
covariance, and, where it does not, which other quantity of diffusion models it returns instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_priors.errors import denoising_errors, relative_levels, table
from onnx_priors.fit import best_number_of_modes, principal
from onnx_priors.gaussian import GaussianPrior
from onnx_priors.images import LEAST, Images, physical_images
from onnx_priors.manifest import resolve
from onnx_priors.samples import draw
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP

MOST_IMAGES = 256  # judged
ROWS_TOLERANCE = 1e-4  # of the largest entry: float32 operators in another order


@dataclass(frozen=True)
class Report:
    """What `check` found: ``facts`` that hold, ``problems`` in words, and the error table (Markdown) or ""."""

    facts: tuple
    problems: tuple
    table: str = ""

    @property
    def ok(self):
        return not self.problems

    @property
    def text(self):
        """The whole report for a terminal."""
        lines = [f"  {fact}" for fact in self.facts]
        lines += ["", *("  " + line for line in self.table.splitlines()), ""] if self.table else []
        lines += [f"  PROBLEM: {problem}" for problem in self.problems]
        return "\n".join([*lines, "no problem found" if self.ok else f"{len(self.problems)} problem"
                          f"{'s' if len(self.problems) > 1 else ''} found"])


def check(name_or_path, images=None, seed=0):
    """A `Report` on a prior file, or a shipped prior by its name.

    images : held-out images (N, *event) like those it was trained on, N >= 32, in physical units (scale * x + shift by
        the prior's metadata), an array or the path of an .npy file; None: none

    Raises FileNotFoundError or ValueError for a name or images that cannot be read. A file that is no prior is no
    error: the report says so.
    """
    path = resolve(name_or_path)
    try:
        denoise = OnnxDenoiser(name_or_path, threads=1)
    except ValueError as error:
        return Report((), (f"{error}. A model with inputs x (J, C, H, W), sigma (J,) and output denoised gets its "
                           "metadata from onnx_priors.export.attach_metadata; networks of other families become one "
                           "by enkg prior import",))
    scale, shift = (float(denoise.metadata.get(name, value)) for name, value in (("scale", 1.0), ("shift", 0.0)))
    facts = [f"{path.name}: event {denoise.event_shape}, sigma {denoise.sigma_min:g} to {denoise.sigma_max:g}, "
             f"physical = {scale:g} x + {shift:g}"]
    clean = None if images is None else physical_images(images, denoise.event_shape, scale, shift)
    if clean is not None and len(clean) < LEAST:
        raise ValueError(f"images: got {len(clean)}, expected at least {LEAST}")
    problems, errors = [], ""
    x0 = _stand_ins(denoise, clean, seed)
    if x0 is None:
        return Report(tuple(facts), ("the output is not finite at the largest noise level for white noise",))
    std = float(np.sqrt(np.mean(np.var(x0, axis=0)))) or 1.0
    for part in (_range, _rows, _limits, _speed):
        found, wrong = part(denoise, x0, std, seed)
        facts += found
        problems += wrong
    found, wrong = _jacobian(path, denoise, x0, std, seed)
    facts, problems = facts + found, problems + wrong
    if clean is not None:
        found, wrong, errors = _judged(denoise, clean, seed)
        facts, problems = facts + found, problems + wrong
    return Report(tuple(facts), tuple(problems), errors)


def _stand_ins(denoise, clean, seed):
    """Up to 64 images in prior units: the user's, else samples of the prior; None where they are not finite."""
    if clean is not None:
        return clean[:64]
    x = draw(denoise, 32, 16, seed)
    return x if np.all(np.isfinite(x)) else None


def _range(denoise, x0, std, seed):
    low, high = denoise.sigma_min / std, denoise.sigma_max / std
    facts, problems = [f"standard deviation of its images {std:.3g}: noise from {low:.2g} to {high:.3g} of it"], []
    if high < 10:
        problems.append(f"sigma_max is only {high:.2g} standard deviations of the images: noise of that level still "
                        "shows the image, so a run that starts from pure noise starts wrong; at least 10 are expected")
    if low > 0.1:
        problems.append(f"sigma_min is {low:.2g} standard deviations of the images: results keep noise of that size; "
                        "at most 0.1 is expected")
    return facts, problems


def _rows(denoise, x0, std, seed):
    """Whether a row depends on itself only, and every batch size works."""
    sigma = float(np.clip(std, denoise.sigma_min, denoise.sigma_max))
    x = x0[:7] + np.float32(sigma) * np.random.default_rng([seed, 1]).standard_normal(x0[:7].shape, dtype=np.float32)
    try:
        together = denoise(x, sigma)
        alone = np.concatenate([denoise(x[i:i + 1], sigma) for i in range(len(x))])
        among = denoise(np.concatenate([100 * x[::-1], x]), sigma)[len(x):]
    except Exception as error:  # onnxruntime has no public base class of its errors
        reason = " ".join(str(error).split())[:200]
        return [], [f"not every batch size works ({reason}): export with a symbolic batch axis"]
    worst = max(np.max(np.abs(other - together)) for other in (alone, among)) / max(np.max(np.abs(together)), 1e-30)
    if not worst < ROWS_TOLERANCE:
        return [], [f"a row changes by {worst:.1e} of the largest entry with the other rows of its batch: the network "
                    "mixes the batch (batch normalisation in training mode, or statistics over the batch)"]
    return [f"rows are independent of each other (deviation {worst:.0e})"], []


def _limits(denoise, x0, std, seed):
    """D(x, sigma) -> x for small noise, -> a constant for large noise."""
    rng, problems = np.random.default_rng([seed, 2]), []
    low, high = denoise.sigma_min, denoise.sigma_max
    noise = rng.standard_normal(x0.shape, dtype=np.float32)
    moved = float(np.sqrt(np.mean((denoise(x0 + np.float32(low) * noise, low) - x0) ** 2)))
    if not moved < 2 * max(low, 1e-3 * std):
        problems.append(f"at sigma_min = {low:g} an image comes back changed by {moved:.3g} (root mean square), "
                        f"expected at most {low:.2g}: another normalisation of x, or the output is not the clean image")
    answers = denoise(np.float32(high) * noise, high)
    spread = float(np.sqrt(np.mean(np.var(answers, axis=0))))
    if high > 10 * std and not spread < 0.5 * std:
        problems.append(f"at sigma_max = {high:g} pure noise gives answers with a standard deviation of {spread:.3g}, "
                        f"expected the mean image, at most {0.5 * std:.2g}: the noise level is not understood")
    return [f"at the least noise an image moves by {moved:.2g}, at the largest answers vary by {spread:.2g}"], problems


def _speed(denoise, x0, std, seed):
    sigma, x = float(np.clip(std, denoise.sigma_min, denoise.sigma_max)), np.concatenate([x0, x0])[:64]
    denoise(x[:16], sigma)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        denoise(x, sigma)
        count += len(x)
    return [f"{count / (time.perf_counter() - start):.0f} images per second on one thread"], []


def _jacobian(path, denoise, x0, std, seed):
    """The VJP file beside it, where there is one, against differences of the denoiser."""
    beside = path.with_name(f"{path.stem}_vjp.onnx")
    if not beside.is_file():
        return [f"no {beside.name} beside it: methods that differentiate the denoiser are not available"], []
    try:
        pull = OnnxDenoiserVJP(Path(beside), threads=1)
    except ValueError as error:
        return [], [str(error)]
    sigma = float(np.clip(0.5 * std, denoise.sigma_min, denoise.sigma_max))
    x, v = x0[:4], np.random.default_rng([seed, 3]).standard_normal(x0[:4].shape, dtype=np.float32)
    h = np.float32(1e-2 * sigma)
    slope = np.sum(v * (denoise(x + h * v, sigma).astype(np.float64) - denoise(x - h * v, sigma)), dtype=np.float64)
    product = np.sum(v * pull(x, sigma, v)[1].astype(np.float64))
    gap = abs(slope / (2 * h) - product) / max(abs(product), 1e-30)
    if not gap < 0.05:
        return [], [f"{beside.name} is not the Jacobian of {path.name}: v . J v differs by {gap:.0%} from a difference"]
    return [f"{beside.name} is its Jacobian (v . J v agrees to {gap:.1g})"], []


def _judged(denoise, clean, seed):
    """The error table on the user's images, and what a denoiser that is none returns instead."""
    half = len(clean) // 2
    std = float(np.sqrt(np.mean(np.var(clean, axis=0))))
    judging = clean[half:][:MOST_IMAGES]
    images = Images(np.concatenate([clean[:half], judging]), 1.0, 0.0, std, len(judging), "", "")
    gaussian = GaussianPrior.from_principal(principal(images.training, best_number_of_modes(images)))
    sigmas = [s * std for s in relative_levels() if denoise.sigma_min <= s * std <= denoise.sigma_max]
    if not sigmas:
        return [], [f"the images have a standard deviation of {std:.3g} in prior units, far from all noise levels: "
                    "their units are not those of scale * x + shift"], ""
    errors = {"this prior": denoising_errors(denoise, judging, sigmas, seed),
              f"Gaussian of {half} of the images": denoising_errors(gaussian.denoise, judging, sigmas, seed)}
    prior, simple = (np.array(e) for e in errors.values())
    worse = np.minimum(np.array(sigmas) ** 2, np.mean(np.var(clean, axis=0)))  # x itself, or the mean image
    problems, ratio = [], float(np.exp(np.mean(np.log(prior / simple))))
    if np.any(prior > 1.1 * worse):
        at = [f"{s:.3g}" for s, bad in zip(sigmas, prior > 1.1 * worse) if bad]
        problems.append(f"at sigma {', '.join(at)} the error is larger than that of no denoising or of the mean image"
                        f"{_instead(denoise, gaussian, judging, sigmas, seed) or _scaled(denoise, std, seed)}")
    elif ratio > 1.1:
        problems.append(f"the error is {ratio:.2f} times that of a Gaussian made from {half} of the images: trained on "
                        "other images, too briefly, or another normalisation")
    return [f"error {ratio:.2f} times that of the Gaussian (mean over the levels)"], problems, table(errors, sigmas)


def _scaled(denoise, std, seed):
    """In words, that the prior's own samples are of another size than the images; "" if they are not."""
    own = _stand_ins(denoise, None, seed)
    found = np.nan if own is None else float(np.sqrt(np.mean(np.var(own, axis=0))))
    if not (found > 0 and max(found / std, std / found) > 1.5):
        return ""
    return (f"; samples of the prior have a standard deviation of {found:.3g}, the images {std:.3g} in prior units: "
            "are they in units of scale * x + shift?")


def _instead(denoise, gaussian, clean, sigmas, seed):
    """In words, which other reading of the output is about as good as the Gaussian; "" if none is."""
    readings = {
        "the noise n (then D = x - sigma n; import it as epsilon)": lambda x, s: x - s * denoise(x, s),
        "the noise sigma n (then D = x - output)": lambda x, s: x - denoise(x, s),
        "the score (then D = x + sigma^2 score)": lambda x, s: x + s * s * denoise(x, s),
        "v (then D = x/(1 + sigma^2) - sigma v/sqrt(1 + sigma^2); import it as v)":
            lambda x, s: x / (1 + s * s) - s / (1 + s * s) ** 0.5 * denoise(x, s),
        "the velocity n - x0 (then D = (x - sigma u)/(1 + sigma); import it as flow)":
            lambda x, s: (x - s * denoise(x, s)) / (1 + s),
        "D for images in [0, 1] where [-1, 1] was said": lambda x, s: 2 * denoise((x + 1) / 2, s / 2) - 1,
        "D for images in [-1, 1] where [0, 1] was said": lambda x, s: (denoise(2 * x - 1, 2 * s) + 1) / 2,
        "D at another noise level (sigma^2 given in place of sigma)": lambda x, s: denoise(x, s**0.5),
    }
    usable = [s for s in sigmas if all(denoise.sigma_min <= t <= denoise.sigma_max
                                       for t in (s, s / 2, 2 * s, s**0.5))]
    limit = np.array(denoising_errors(gaussian.denoise, clean[:64], usable, seed))
    best, words = 1.3, ""
    for reading, function in readings.items():
        with np.errstate(all="ignore"):
            error = np.array(denoising_errors(function, clean[:64], usable, seed))
        score = float(np.exp(np.mean(np.log(error / limit)))) if usable and np.all(error > 0) else np.inf
        if score < best:
            best, words = score, f"; its output would make sense as {reading}"
    return words
