"""The exact posterior of a linear image problem under the Gaussian of photographs: what a linear problem is graded by.

    x ~ N(mu, C),  y = H x + noise e:   m = mu + C H^T (H C H^T + noise^2)^-1 (y - H mu),
                                        C_p = C - C H^T (H C H^T + noise^2)^-1 H C        (B7)

C is diagonal in cosines and in the colours of `photographs.moments`, H treats channels alike: one posterior per colour
after the data have been turned to these colours, which leaves white noise white.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.fft import dct, dctn, idct, idctn
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from problems.imaging_operators import Inpainting, MatrixPair

SEEN = 1e-8
"""Directions of which the data hold less than this, relative to the best one, are left out: exact to SEEN^2/noise^2."""


class Posterior:
    """The posterior of all observations that share an operator and a noise level.

    Parameters
    ----------
    operator : Inpainting or MatrixPair   for events (n1, n2) or (3, n1, n2)
    noise : float > 0
    mean : float;  variances : (2, n1, n2), luminance and opponent colours, as `photographs.moments` gives them

    Prior units. Raises ValueError for an operator that is not linear.
    """

    def __init__(self, operator, noise, mean, variances):
        if not isinstance(operator, (Inpainting, MatrixPair)):
            raise ValueError(f"operator: got {type(operator).__name__}, expected Inpainting or MatrixPair")
        self.operator, self.noise, self.prior_mean = operator, float(noise), float(mean)
        if len(operator.event_shape) == 2:  # the mean of three channels is 1/sqrt 3 of their luminance
            self.variances = [np.asarray(variances[0], dtype=np.float64) / 3.0]
        else:
            self.variances = [np.asarray(v, dtype=np.float64) for v in variances]

    def mean(self, y):
        """Posterior mean (*event) of y (m,)."""
        grey = len(self.operator.event_shape) == 2
        shift = self.operator(np.full((1, *self.operator.event_shape), self.prior_mean))[0]
        data = (np.asarray(y, dtype=np.float64) - shift).reshape(self.operator.observed_shape)
        colours = data[None] if grey else dct(data, axis=0, norm="ortho")
        found = []
        for k, colour in enumerate(colours):
            factor, variances = self._factors[min(k, 1)], self.variances[min(k, 1)]
            seen = cho_solve(factor, self._turned_data(colour)) @ self._rows
            found.append(idctn(variances * seen.reshape(variances.shape), norm="ortho"))
        return self.prior_mean + (found[0] if grey else idct(np.stack(found), axis=0, norm="ortho"))

    @cached_property
    def std(self):
        """Posterior standard deviation of every entry, (*event)."""
        own = [self._variance(factor, variances) for factor, variances in zip(self._factors, self.variances)]
        if len(self.operator.event_shape) == 2:
            return np.sqrt(own[0])
        share = dct(np.eye(3), axis=0, norm="ortho")[0] ** 2  # of the luminance in every channel
        return np.sqrt(share[:, None, None] * own[0] + (1.0 - share)[:, None, None] * own[1])

    @cached_property
    def _rows(self):
        """H in the basis of the cosines, one channel, as far as the data see: (m', n1 n2)."""
        if isinstance(self.operator, Inpainting):
            visible = np.flatnonzero(self.operator.mask)
            pixels = np.zeros((visible.size, self.operator.mask.size))
            pixels[np.arange(visible.size), visible] = 1.0
            pixels = pixels.reshape(-1, *self.operator.mask.shape)
        else:
            (_, s1, V1), (_, s2, V2) = self._svd
            i, j = self._kept
            pixels = (s1[i] * s2[j])[:, None, None] * V1[i][:, :, None] * V2[j][:, None, :]
        return dctn(pixels, axes=(1, 2), norm="ortho").reshape(len(pixels), -1)

    def _turned_data(self, colour):
        if isinstance(self.operator, Inpainting):
            return colour[self.operator.mask > 0]
        (U1, _, _), (U2, _, _) = self._svd
        return (U1.T @ colour @ U2)[self._kept]

    @cached_property
    def _svd(self):
        return [np.linalg.svd(A, full_matrices=False) for A in (self.operator.A1, self.operator.A2)]

    @cached_property
    def _kept(self):
        (_, s1, _), (_, s2, _) = self._svd
        size = np.outer(s1, s2)
        return np.nonzero(size > SEEN * size.max())

    @cached_property
    def _factors(self):
        """Cholesky factors of H C H^T + noise^2, one per different colour."""
        return [cho_factor((self._rows * v.reshape(-1)) @ self._rows.T + self.noise**2 * np.eye(len(self._rows)),
                           lower=True) for v in self.variances]

    def _variance(self, factor, variances):
        """Diagonal of C_p in pixels."""
        shape = variances.shape
        prior = _diagonal(variances)
        known = solve_triangular(factor[0], self._rows * variances.reshape(-1), lower=True)
        return prior - np.sum(idctn(known.reshape(-1, *shape), axes=(1, 2), norm="ortho") ** 2, axis=0)


def _diagonal(variances):
    """Variance of every pixel of a field with these variances of its cosines."""
    one, two = (idct(np.eye(n), axis=0, norm="ortho") ** 2 for n in variances.shape)  # (pixel, frequency)
    return one @ variances @ two.T
