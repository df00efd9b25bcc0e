"""The Gaussian reference of a prior: mean, modes, variances, and how much the denoiser leaves open (E1).

EnKG-R needs Cov[x0 | x_s]. For a Gaussian prior N(mu, V diag(l) V') it is V diag(l s^2/(l + s^2)) V'. For a network
prior its diagonal in the modes is multiplied by r_k(s), the measured squared error of the denoiser relative to that of
the Gaussian one. Made once per prior from images, kept beside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._xp import array_namespace, device, like, member_normals, to_numpy

RATIO_BOUNDS = (0.05, 1.0)
FLOAT16_NUMBERS = 1_000_000  # entries of the modes that a file holds in half precision
LEAST_IMAGES = 32  # of a reference: fewer show too few directions


@dataclass(frozen=True)
class Reference:
    """N(mean, V diag(variances) V' + rest (I - V V')) and the error table of the denoiser. Host arrays, float64.

    mean : (*event);  modes V : (d, r), orthonormal columns, in falling order of variance;  variances : (r,)
    rest : variance of each of the d - r directions outside the modes
    table_sigmas : (S,), rising;  table : (S, r + 1), r_k(s) in [0.05, 1], the last column for the rest. Empty: r = 1,
    which is exact for a Gaussian prior
    prior : sha256 of the prior's file, or ""
    waves : (r, number of axes) frequencies where the modes are products of cosines, see `cosines`: a file of those
    takes the place of one of modes; None: other modes

    Raises ValueError for shapes, orders or values other than these.
    """

    mean: Any
    modes: Any
    variances: Any
    rest: float = 0.0
    table_sigmas: Any = field(default_factory=lambda: np.empty(0))
    table: Any = None
    prior: str = ""
    waves: Any = None
    _moved: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        for name in ("mean", "modes", "variances", "table_sigmas"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "rest", float(self.rest))  # a numpy number would make float32 particles float64
        d, r = self.mean.size, self.variances.size
        if self.modes.shape != (d, r):
            raise ValueError(f"modes: got shape {self.modes.shape}, expected ({d}, {r})")
        if not np.all(np.isfinite(self.mean)):
            raise ValueError("mean: got a non-finite value, expected numbers")
        every = np.append(self.variances, self.rest)
        if not (np.all(np.isfinite(every)) and np.all(every >= 0)):
            raise ValueError("variances: got a negative or non-finite value, expected numbers >= 0")
        if np.any(np.diff(self.variances) > 0):
            raise ValueError("variances: got a rising order, expected a falling one")
        if not np.allclose(self.modes.T @ self.modes, np.eye(r), atol=1e-6):
            raise ValueError("modes: got columns that are not orthonormal")
        if len(self.table_sigmas):
            object.__setattr__(self, "table", np.asarray(self.table, dtype=np.float64))
            levels = np.append(0.0, self.table_sigmas)
            if not (np.all(np.isfinite(levels)) and np.all(np.diff(levels) > 0)):
                raise ValueError("table_sigmas: got levels that do not rise, expected rising ones above 0")
            if self.table.shape != (len(self.table_sigmas), r + 1):
                raise ValueError(f"table: got shape {self.table.shape}, expected ({len(self.table_sigmas)}, {r + 1})")
            if not (np.all(self.table > 0) and np.all(self.table <= 1)):
                raise ValueError("table: got a ratio that is not in (0, 1], expected all there")

    @classmethod
    def gaussian(cls, mean, covariance):
        """The reference of the Gaussian prior N(mean, covariance): all modes, r = 1.  (*event), (d, d)"""
        variances, modes = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
        return cls(mean, modes[:, ::-1], np.maximum(variances[::-1], 0.0))

    @classmethod
    def stationary(cls, mean, spectrum, modes=1024):
        """The reference of a stationary Gaussian on a periodic grid: its leading Fourier modes, r = 1.

        mean : (n, n), n even;  spectrum : (n, n//2 + 1), eigenvalues of the covariance by the wave numbers of ``rfft2``
        modes : how many to keep, at most n^2 (then it is exact); the variance of the others is spread evenly
        """
        mean, spectrum = np.asarray(mean, dtype=np.float64), np.asarray(spectrum, dtype=np.float64)
        n = mean.shape[0]
        k1, k2 = np.meshgrid(np.arange(n), np.arange(n // 2 + 1), indexing="ij")
        own = (k1 % (n // 2) == 0) & (k2 % (n // 2) == 0)  # (-1)^x or the constant: a cosine only
        twice = (k2 % (n // 2) == 0) & (k1 > n // 2)  # the conjugate of n - k1 in the same column
        waves = [(k1[use], k2[use], phase, spectrum[use]) for use, phase in ((~twice, 0), (~twice & ~own, 1))]
        a, b, sine, variances = (np.concatenate([np.broadcast_to(w[i], w[3].shape) for w in waves]) for i in range(4))
        order = np.argsort(-variances, kind="stable")[:modes]
        x = np.arange(n)
        turn = (a[order, None, None] * x[:, None] + b[order, None, None] * x) % n  # exact multiples of 2 pi/n
        table = np.stack([np.cos(2 * np.pi * x / n), np.sin(2 * np.pi * x / n)])
        columns = table[sine[order, None, None], turn].reshape(len(order), -1).T
        columns = columns / np.sqrt(np.sum(columns**2, axis=0))
        left, outside = float(variances.sum() - variances[order].sum()), n * n - len(order)
        return cls(mean, columns, variances[order], max(left, 0.0) / outside if outside else 0.0)

    @classmethod
    def cosines(cls, mean, variances, modes=512):
        """The reference of a Gaussian whose covariance is diagonal in products of cosines (DCT-II), r = 1.

        mean : (*event);  variances : (*event), by the frequencies along every axis
        modes : how many to keep; the variance of the others is spread evenly
        """
        mean, variances = np.asarray(mean, dtype=np.float64), np.asarray(variances, dtype=np.float64)
        flat = variances.reshape(-1)
        order = np.argsort(-flat, kind="stable")[:modes]
        waves = np.stack(np.unravel_index(order, variances.shape), axis=1)
        left, outside = float(flat.sum() - flat[order].sum()), flat.size - len(order)
        return cls(mean, _products_of_cosines(waves, variances.shape), flat[order],
                   max(left, 0.0) / outside if outside else 0.0, waves=waves)

    def with_errors(self, denoise, images, sigmas=None, seed=0, prior_sha256=""):
        """The same reference with the error table r_k(s) of a denoiser, measured as `from_images` says.

        images : (n, *event), prior units
        """
        if sigmas is None:
            low = max(self.std / 50, getattr(denoise, "sigma_min", 0.0))
            high = min(self.std * 20, getattr(denoise, "sigma_max", np.inf))
            if low >= high:
                raise ValueError(f"reference: got images of standard deviation {self.std:.3g} in prior units, "
                                 f"expected it near the prior's noise levels, {denoise.sigma_min:g} to "
                                 f"{denoise.sigma_max:g}")
            sigmas = np.geomspace(low, high, 12)
        table = np.stack([_error_ratio(self, denoise, images, float(s), seed, i) for i, s in enumerate(sigmas)])
        return replace(self, table_sigmas=sigmas, table=table, prior=prior_sha256, _moved={})

    @property
    def event_shape(self):
        return self.mean.shape

    @property
    def std(self):
        """Pointwise standard deviation, the root of the mean variance."""
        return float(np.sqrt(self.total_variance(self.variances, self.rest) / self.mean.size))

    def active_modes(self, share):
        """The number of modes with this share of the variance, at most all that are kept."""
        shares = np.cumsum(self.variances) / self.total_variance(self.variances, self.rest)
        return int(min(np.searchsorted(shares, share) + 1, self.variances.size))

    def total_variance(self, variances, rest):
        """tr (V diag(variances) V' + rest (I - V V'))"""
        return float(np.sum(variances) + rest * (self.mean.size - self.variances.size))

    def conditional(self, sigma):
        """(E1) c_k(s) = r_k(s) l_k s^2/(l_k + s^2) for the modes, and the same for the rest.  -> (r,), float"""
        every = np.append(self.variances, self.rest)
        c = every * sigma**2 / (every + sigma**2)
        if len(self.table_sigmas):
            at = np.clip(np.log(sigma), *np.log(self.table_sigmas[[0, -1]]))
            place = np.interp(at, np.log(self.table_sigmas), np.arange(len(self.table_sigmas)))
            low = min(int(place), len(self.table_sigmas) - 2) if len(self.table_sigmas) > 1 else 0
            high = min(low + 1, len(self.table_sigmas) - 1)
            c = c * ((1 - (place - low)) * self.table[low] + (place - low) * self.table[high])
        return c[:-1], float(c[-1])

    def coordinates(self, x):
        """V'(x - mean).  (J, *event) -> (J, r)"""
        xp = array_namespace(x)
        mean, modes = self._on(x)
        return xp.matmul(xp.reshape(x, (x.shape[0], -1)) - mean, modes)

    def coloured(self, noise, variances, rest):
        """Standard normal noise with the covariance V diag(variances) V' + rest (I - V V').

        noise : (J, *event);  -> (J, *event), and its coordinates (J, r)
        """
        xp = array_namespace(noise)
        _, modes = self._on(noise)
        flat = xp.reshape(noise, (noise.shape[0], -1))
        white = xp.matmul(flat, modes)
        deviations = like(np.sqrt(variances)[None, :], noise)
        x = self.along_modes((deviations - rest**0.5) * white, noise.shape) + rest**0.5 * noise
        return x, deviations * white

    def along_modes(self, coordinates, shape):
        """V a.  (J, r) -> shape (J, *event)"""
        xp = array_namespace(coordinates)
        return xp.reshape(xp.matmul(coordinates, self._on(coordinates)[1].T), shape)

    def start(self, noise):
        """(E2) A draw from the reference: x0 ~ N(mean, V diag(l) V' + rest (I - V V')), from standard normal noise."""
        mean, _ = self._on(noise)
        x, _ = self.coloured(noise, self.variances, self.rest)
        return x + array_namespace(noise).reshape(mean, (1, *self.event_shape))

    def leading(self, count):
        """The same reference with only the first ``count`` modes; the variance of the others is spread evenly."""
        count = min(count, self.variances.size)
        left = self.total_variance(self.variances, self.rest) - float(np.sum(self.variances[:count]))
        outside = self.mean.size - count
        table = None
        if len(self.table_sigmas):
            others = self.table[:, count:-1] @ self.variances[count:]
            others = others + self.table[:, -1] * self.rest * (self.mean.size - self.variances.size)
            rest = others / left if left > 0 else np.ones(len(self.table_sigmas))
            table = np.column_stack([self.table[:, :count], np.clip(rest, *RATIO_BOUNDS)])
        return Reference(self.mean, self.modes[:, :count], self.variances[:count], left / outside if outside else 0.0,
                         self.table_sigmas, table, self.prior, None if self.waves is None else self.waves[:count])

    def _on(self, x):
        """mean (1, d) and modes (d, r) in the namespace, dtype and device of x, moved once."""
        key = (array_namespace(x).__name__, str(x.dtype), str(device(x)))
        if key not in self._moved:
            self._moved[key] = like(self.mean.reshape(1, -1), x), like(self.modes, x)
        return self._moved[key]

    # ------------------------------------------------------------------------------------------------------- files
    def save(self, path):
        """Write an .npz with float16 modes, or the frequencies of cosines, and a float16 table; ``load`` makes the
        modes orthonormal again. Above ``FLOAT16_NUMBERS`` the modes are whole numbers from -127 to 127, each column on
        a scale of its own: rounding turns a column by about 1 %, evenly into all d directions.
        """
        if self.waves is not None:
            modes = {"waves": np.asarray(self.waves, dtype=np.int16)}
        elif self.modes.size <= FLOAT16_NUMBERS:
            modes = {"modes": self.modes.astype(np.float16)}
        else:
            modes = {"modes": np.rint(127 * self.modes / np.abs(self.modes).max(axis=0)).astype(np.int8)}
        np.savez_compressed(
            path, mean=self.mean.astype(np.float32), **modes,
            variances=self.variances.astype(np.float32), rest=np.float64(self.rest),
            table_sigmas=self.table_sigmas.astype(np.float32), prior=np.str_(self.prior),
            table=np.empty(0, np.float16) if self.table is None else self.table.astype(np.float16))

    @classmethod
    def load(cls, path, prior_sha256=None):
        """Read a reference. Raises FileNotFoundError, or ValueError if it is damaged or belongs to another prior.

        prior_sha256 : of the prior it is for, "" where that is no file; None: any
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"reference: {path} does not exist; enkg-r needs the Gaussian reference of its "
                                    "prior, which enkg prior fit, train and import write, or images of it as .npy")
        try:
            with np.load(path, allow_pickle=False) as file:
                parts = {name: file[name] for name in file.files}
            prior = str(parts.pop("prior"))
        except Exception:  # a damaged file may end in an error of zlib or of the header's parser as well
            raise ValueError(f"reference: got {path}, which is damaged or not a reference, expected an .npz file made "
                             "by enkg prior fit, train or import") from None
        if prior_sha256 is not None and prior not in ("", prior_sha256):  # "": made without saying for which
            wanted = f"made for {prior_sha256[:12]}..." if prior_sha256 else "for a prior that is no file"
            raise ValueError(f"reference: got {path}, made for the prior with sha256 {prior[:12]}..., expected one "
                             f"{wanted}")
        try:
            waves, table = parts.get("waves"), parts["table"] if parts["table_sigmas"].size else None
            modes = parts["modes"] if waves is None else _products_of_cosines(waves.astype(int), parts["mean"].shape)
            modes = modes.astype(np.float64)
            if parts.get("modes", modes).dtype == np.int8:  # columns are read up to their length
                modes = modes / np.linalg.norm(modes, axis=0)
            q, upper = np.linalg.qr(modes)  # float16 rounds the columns by 5e-4
            reference = cls(parts["mean"], q * np.sign(np.diag(upper)), parts["variances"], float(parts["rest"]),
                            parts["table_sigmas"], table, prior, waves)
            if not np.abs(upper - np.diag(np.sign(np.diag(upper)))).max(initial=0.0) < 0.02:
                raise ValueError("modes: got columns that are not orthonormal")
            return reference
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"reference: got {path}, which is damaged ({error}), expected an .npz file made by "
                             "enkg prior fit, train or import") from None


def from_images(images, denoise=None, sigmas=None, held_out=None, modes=None, seed=0, prior_sha256=""):
    """Gaussian reference from images in prior units, and the error table r_k(s) of the prior's denoiser.

    r_k(s) = mean (v_k . (D(x, s) - x0))^2 / (l_k s^2/(l_k + s^2)) over the last ``held_out`` images, x = x0 + s noise,
    numerator and denominator each averaged over nine neighbouring modes; clipped to [0.05, 1].

    images : (n, *event), n >= 32, held_out + 3; those of the training set, symmetries included if the prior has them
    denoise : the prior, or None for a Gaussian prior (r = 1)
    sigmas : levels of the table, rising; by default 12 geometric ones from std/50 to 20 std, or as far as the denoiser
        goes (its sigma_min and sigma_max, if it has them)
    held_out : a quarter of the images, at most 256, by default
    modes : how many to keep; all by default. The others become the isotropic rest

    Raises ValueError for too few images, images that are all alike, or a std that no level of the denoiser is near.
    """
    images = np.asarray(images)
    n, shape = images.shape[0], images.shape[1:]
    held_out = 0 if denoise is None else min(256, n // 4) if held_out is None else held_out
    if n < max(LEAST_IMAGES, held_out + 3):
        raise ValueError(f"reference: got {n} images, expected at least {max(LEAST_IMAGES, held_out + 3)}")
    flat = images.reshape(n, -1)
    training = flat[: n - held_out]
    if np.all(training == training[0]):
        raise ValueError("reference: got images that are all alike, expected different ones: they show no variance")
    mean = training.mean(axis=0, dtype=np.float64)
    variances, vectors = _principal((training - mean.astype(flat.dtype)), modes)
    total = float(np.sum(np.var(training, axis=0, dtype=np.float64)))
    outside = flat.shape[1] - variances.size
    rest = max(total - float(variances.sum()), 0.0) / outside if outside else 0.0
    reference = Reference(mean.reshape(shape), vectors, variances, rest, prior=prior_sha256)
    if denoise is None:
        return reference
    return reference.with_errors(denoise, images[n - held_out:], sigmas, seed, prior_sha256)


def from_prior(denoise, event_shape, sigma_max, sigma_min=0.002, count=1024, steps=40, modes=None, seed=0,
               prior_sha256="", dtype="float32", chunk=64):
    """Gaussian reference from samples of the prior itself: ``count`` probability flows (T3c), ``steps`` calls each.

    Raises ValueError for a count below 32.
    """
    from ..diffusion import flow_to_zero

    if count < LEAST_IMAGES:
        raise ValueError(f"reference: got {count} samples, expected at least {LEAST_IMAGES}")
    noise = member_normals(seed, 0, count, event_shape).astype(dtype)
    samples = np.concatenate([
        to_numpy(flow_to_zero(sigma_max * noise[i:i + chunk], sigma_max, denoise, steps, sigma_min))
        for i in range(0, count, chunk)])
    return from_images(samples, denoise, modes=modes, seed=seed + 1, prior_sha256=prior_sha256)


def file_sha256(path):
    """The checksum that ties a reference to its prior."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _products_of_cosines(waves, shape):
    """Orthonormal columns (d, r): the product over the axes of cos(pi k (j + 1/2)/n), k the frequencies (r, axes)."""
    product = np.ones((len(waves), 1))
    for n, k in zip(shape, waves.T):
        rows = np.cos(np.pi * k[:, None] * (np.arange(n) + 0.5) / n) * np.sqrt(np.where(k == 0, 1.0, 2.0) / n)[:, None]
        product = (product[:, :, None] * rows[:, None, :]).reshape(len(waves), -1)
    return product.T


def _principal(centred, modes):
    """Leading principal variances (falling) and directions of centred rows."""
    import scipy.linalg

    n, d = centred.shape
    keep = min(modes or d, d, n - 1)
    if n < d:  # the smaller Gram matrix
        ev, u = scipy.linalg.eigh(centred.astype(np.float64) @ centred.T, subset_by_index=(n - keep, n - 1))
        vectors = centred.T @ u / np.sqrt(np.maximum(ev, 1e-300))
        vectors, _ = np.linalg.qr(vectors[:, ::-1])
        return np.maximum(ev[::-1], 0.0) / n, vectors
    ev, v = scipy.linalg.eigh(centred.T @ centred / n, subset_by_index=(d - keep, d - 1))
    return np.maximum(ev[::-1], 0.0).astype(np.float64), np.linalg.qr(v[:, ::-1].astype(np.float64))[0]


def _error_ratio(reference, denoise, images, sigma, seed, stream, chunk=64):
    noise = member_normals(seed, 1 + stream, len(images), images.shape[1:])
    x = (images + sigma * noise).astype(images.dtype)
    error = np.concatenate([to_numpy(denoise(x[i:i + chunk], sigma)) for i in range(0, len(x), chunk)]) - images
    along = reference.coordinates(error.astype(np.float64) + reference.mean)
    squares = np.mean(along**2, axis=0)
    total = float(np.mean(np.sum(error.reshape(len(error), -1).astype(np.float64) ** 2, axis=1)))
    gaussian, gaussian_rest = reference.conditional(sigma)
    smooth = np.convolve(np.pad(squares, 4, mode="reflect"), np.ones(9) / 9, mode="valid")
    expected = np.convolve(np.pad(gaussian, 4, mode="reflect"), np.ones(9) / 9, mode="valid")
    outside = reference.mean.size - reference.variances.size
    rest = (total - float(squares.sum())) / (outside * gaussian_rest) if outside and gaussian_rest > 0 else 1.0
    return np.clip(np.append(smooth / np.maximum(expected, 1e-300), rest), *RATIO_BOUNDS)
