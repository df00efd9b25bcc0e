"""A prior from images by their mean and covariance, or by a Gaussian mixture: seconds, numpy and scipy, no training.

    images = read_images("images.npy")
    fitted = fit(images, "prior.onnx")          # prior.onnx, prior_vjp.onnx; fitted.table: errors on held-out images

Principal components and an isotropic rest describe the covariance; as many are kept as denoise the held-out images
best. A mixture replaces the leading ones by a Gaussian mixture fitted by expectation maximisation. ``fitted.principal``
is what a Gaussian reference of the same images is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_priors.borrow import borrow_weights
from onnx_priors.errors import denoising_errors, relative_levels, table
from onnx_priors.gaussian import GaussianPrior, Principal
from onnx_priors.images import Images
from onnx_priors.mixture import MixturePrior, PrincipalMixture

KINDS = ("gaussian", "mixture")
FILE_NUMBERS = 1_000_000  # of all modes: 4 MB in float32
MOST_ROWS = 4096  # images or pixels of the matrix whose eigenvectors are the principal components
MIXTURE_MODES, MIXTURE_IMAGES, MIXTURE_SIZES = 24, 20_000, (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Fitted:
    """A prior made from images.

    prior : GaussianPrior or PrincipalMixture;  path, vjp : its files;  images : what it was made from, prior units
    principal : gaussian.Principal of the images;  components : of the mixture, or None
    table : errors on held-out images as Markdown, of a prior made from the others
    """

    prior: GaussianPrior | PrincipalMixture
    path: Path
    vjp: Path
    images: Images
    principal: Principal
    components: int | None
    table: str


def fit(images, out, kind="gaussian", components=None, modes=None, seed=0):
    """Make a prior from `Images` and write it to ``out`` (.onnx) and, with its Jacobian, to the _vjp.onnx beside it.

    Parameters
    ----------
    images : Images              of `read_images`
    kind : "gaussian" or "mixture"
    components : int or None     of the mixture; None: as many as make held-out images most likely, at most 32
    modes : int or None          principal components; None: as many as denoise held-out images best
    seed : int                   of the start of the mixture and of the noise in the error table

    Returns `Fitted`. Raises ValueError for another kind, a number below 1, an ``out`` that is not an .onnx file.
    """
    path = Path(out)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    for name, value in (("components", components), ("modes", modes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if path.suffix != ".onnx":
        raise ValueError(f"out: got {path}, expected a file name that ends in .onnx")
    count = modes or best_number_of_modes(images)
    judged = GaussianPrior.from_principal(principal(images.training, count))
    sigmas = [s * images.std for s in relative_levels()]
    errors = {"Gaussian": denoising_errors(judged.denoise, images.judging, sigmas, seed)}
    whole = principal(images.x, count)
    prior = GaussianPrior.from_principal(whole)
    if kind == "mixture":
        components = components or best_number_of_components(images, count, seed)
        judge = mixture(images.training, principal(images.training, count), components, seed)
        errors = {"mixture": denoising_errors(judge.denoise, images.judging, sigmas, seed), **errors}
        prior = mixture(images.x, whole, components, seed)
    errors["noise itself"] = [s**2 for s in sigmas]
    form = f"Gaussian of {count} principal components and an isotropic rest"
    facts = images.facts(form if kind == "gaussian" else f"mixture of {components} Gaussians within a {form}")
    vjp = path.with_name(f"{path.stem}_vjp.onnx")
    prior.to_onnx(path, facts, storage="float32")
    prior.to_onnx(vjp, facts, vjp=True, storage="float32")
    borrow_weights(vjp, path, least=50_000)
    return Fitted(prior, path, vjp, images, whole, components, table(errors, sigmas))


def principal(x, count):
    """`Principal` (mean, modes, variances, rest) of images (N, *event): at most ``count`` components, N - 1, d."""
    import scipy.linalg

    n, flat = len(x), x.reshape(len(x), -1)
    mean = flat.mean(axis=0, dtype=np.float64)
    centred = flat - mean.astype(flat.dtype)
    total, d = float(np.sum(np.var(flat, axis=0, dtype=np.float64))), flat.shape[1]
    count = min(count, d, n - 1)
    if d <= MOST_ROWS and d < n:
        count = min(count, MOST_ROWS)
        _, vectors = scipy.linalg.eigh(centred.T.astype(np.float64) @ centred, subset_by_index=(d - count, d - 1))
    else:  # the matrix of inner products of images is the smaller one
        some = centred[:MOST_ROWS].astype(np.float64)
        count = min(count, len(some) - 1)
        values, u = scipy.linalg.eigh(some @ some.T, subset_by_index=(len(some) - count, len(some) - 1))
        vectors = some.T @ (u / np.sqrt(np.maximum(values, 1e-300)))
    vectors, _ = np.linalg.qr(vectors[:, ::-1])
    variances = np.mean((centred @ vectors.astype(centred.dtype)).astype(np.float64) ** 2, axis=0)
    order = np.argsort(-variances, kind="stable")
    variances, outside = variances[order], d - count
    rest = max(total - float(variances.sum()), 0.0) / outside if outside else 0.0
    return Principal(mean.reshape(x.shape[1:]), vectors[:, order], variances, rest)


def best_number_of_modes(images):
    """How many principal components of the training images denoise the judging ones best.

    Too few lose structure, too many take the accidents of few images for structure. The error of each number is a
    closed form: with a held-out image's square a_k^2 along mode k, and g = l/(l + s^2),
    E |D - x0|^2 = sum_k [(1 - g_k)^2 a_k^2 + s^2 g_k^2], and the same for the rest. The number with the smallest mean
    logarithm of it over the noise levels is taken, among those that fit into a file of 4 MB.
    """
    d = int(np.prod(images.event_shape))
    mean, vectors, variances, rest = principal(images.training, max(1, FILE_NUMBERS // d))
    away = (images.judging - mean).reshape(images.held_out, -1)
    squares = np.mean((away @ vectors) ** 2, axis=0)
    kept = np.arange(len(variances) + 1)  # every number of modes, 0 included
    outside = d - kept
    left_square = np.sum(np.mean(away**2, axis=0)) - np.append(0.0, np.cumsum(squares))
    left_variance = np.append(variances[::-1].cumsum()[::-1], 0.0) + rest * (d - len(variances))
    rests = np.maximum(left_variance, 0.0) / np.maximum(outside, 1)
    score = np.zeros(len(kept))
    for s2 in (images.std * np.array(relative_levels())) ** 2:
        g, g_rest = variances / (variances + s2), rests / (rests + s2)
        inside = np.append(0.0, np.cumsum((1 - g) ** 2 * squares + s2 * g**2))
        score += np.log(inside + (1 - g_rest) ** 2 * np.maximum(left_square, 0.0) + s2 * g_rest**2 * outside)
    return int(max(kept[np.argmin(score)], 1))


# ----------------------------------------------------------------------------------------------------------- mixtures


def mixture(x, whole, components, seed):
    """`PrincipalMixture` of images (N, *event) in the leading modes of ``whole``, their `Principal`."""
    a = _coordinates(x, whole, _leading(len(x), whole))
    weights, means, covariances = expectation_maximisation(a, components, np.random.default_rng(seed))
    return PrincipalMixture(whole, MixturePrior.from_covariances(weights, means, covariances))


def best_number_of_components(images, modes, seed):
    """The size of `MIXTURE_SIZES` under which the judging images are most likely; sizes grow until that gets worse."""
    whole = principal(images.training, modes)
    r = _leading(len(images.training), whole)
    a, judging = (_coordinates(x, whole, r) for x in (images.training, images.judging))
    best, size = -np.inf, 1
    for components in MIXTURE_SIZES:
        if components * 10 > len(a):
            break
        found = expectation_maximisation(a, components, np.random.default_rng(seed))
        likely = float(np.mean(_log_sum(_log_densities(judging, *found))))
        if likely <= best:
            break
        best, size = likely, components
    return size


def expectation_maximisation(a, components, rng, rounds=200):
    """Weights (K,), means (K, r), covariances (K, r, r) of a Gaussian mixture that fits rows a (n, r).

    The start draws distant rows as means. Each covariance is drawn towards the mean covariance within the clusters
    of the start with the weight of r + 2 rows, so that a component of few rows stays regular. Ends when the mean
    logarithm of the likelihood gains less than 1e-4, or after ``rounds``.
    """
    n, r = a.shape
    if not 1 <= components <= n:
        raise ValueError(f"components: got {components}, expected 1 to {n}, the number of images")
    means = a[rng.integers(n)][None]
    for _ in range(components - 1):
        far = np.min(np.sum((a[:, None] - means) ** 2, axis=2), axis=1)
        means = np.concatenate([means, a[rng.choice(n, p=far / far.sum())][None]])
    nearest = np.argmin(np.sum((a[:, None] - means) ** 2, axis=2), axis=1)
    shares, last = np.eye(components)[nearest], -np.inf
    within = np.cov((a - means[nearest]).T, bias=True).reshape(r, r) + 1e-6 * np.var(a) * np.eye(r)
    for _ in range(rounds):
        counts = shares.sum(axis=0) + 1e-9
        weights, means = counts / counts.sum(), (shares.T @ a) / counts[:, None]
        covariances = np.stack([
            ((share[:, None] * (a - mean)).T @ (a - mean) + (r + 2) * within) / (count + r + 2)
            for share, mean, count in zip(shares.T, means, counts)])
        logs = _log_densities(a, weights, means, covariances)
        total = _log_sum(logs)
        shares = np.exp(logs - total[:, None])
        if np.mean(total) - last < 1e-4:
            break
        last = np.mean(total)
    return weights, means, covariances


def _leading(n, whole):
    """How many coordinates the mixture describes: the covariances of r coordinates need some 40 r of the n images."""
    return max(1, min(MIXTURE_MODES, len(whole.variances), n // 40))


def _coordinates(x, whole, r):
    """The r leading coordinates (n, r) of at most 20,000 images."""
    some = x[:MIXTURE_IMAGES]
    return (some - whole.mean).reshape(len(some), -1) @ whole.modes[:, :r]


def _log_densities(a, weights, means, covariances):
    """log(weight x density) of every row under every component, (n, K)."""
    import scipy.linalg

    logs = []
    for weight, mean, covariance in zip(weights, means, covariances):
        factor = np.linalg.cholesky(covariance)
        z = scipy.linalg.solve_triangular(factor, (a - mean).T, lower=True)
        half_log_det = np.sum(np.log(np.diag(factor))) + 0.5 * len(mean) * np.log(2 * np.pi)
        logs.append(np.log(weight) - half_log_det - 0.5 * np.sum(z * z, axis=0))
    return np.stack(logs, axis=1)


def _log_sum(logs):
    top = logs.max(axis=1)
    return top + np.log(np.sum(np.exp(logs - top[:, None]), axis=1))
