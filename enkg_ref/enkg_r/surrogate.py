"""A likelihood that costs no forward call: Gaussian-process regression on all evaluations made so far.

Part of the Metropolis tail of EnKG-R, our extension. It only has to be close: `metropolis.accept` corrects it. n rows
(evaluations, a few hundred), r inputs, m outputs; one n x n inverse per length scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._xp import array_namespace, like, to_numpy

LENGTHS = (0.2, 0.4, 0.8, 1.6, 3.2)  # of the kernel, in sqrt(r) standard deviations of the prior
LINEAR = 0.3  # variance of the linear part of the kernel beside 1 of the local part
NUGGET = 1e-5  # the forward model is deterministic: what single evaluations scatter beside it
KNEE = 3.0  # whitened differences are logarithmic beyond this many standard deviations of the noise
BEST = 0.75  # share of the rows kept for their misfit; the others are spread over the worse ones


def warp(d):
    """u = c asinh(d/c), c = KNEE: differences far outside the noise need no precision, only their order."""
    return KNEE * array_namespace(d).asinh(d / KNEE)


def unwarp(u):
    """d = c sinh(u/c)"""
    xp = array_namespace(u)
    return KNEE * xp.sinh(xp.clip(u / KNEE, -40.0, 40.0))


def representative(d, rows):
    """At most ``rows`` indices of evaluations to regress on: the best fitting ones, and others of every misfit.

    d : (n, m) whitened differences;  -> host integers, rising
    """
    xp = array_namespace(d)
    order = np.argsort(to_numpy(xp.sum(d * d, axis=1)), kind="stable")
    if len(order) <= rows:
        return np.arange(len(order))
    best = int(BEST * rows)
    others = order[best:][np.linspace(0, len(order) - best - 1, rows - best).astype(int)]
    return np.sort(np.concatenate([order[:best], others]))


@dataclass(frozen=True)
class KernelSurrogate:
    """Posterior of a Gaussian process for u = warp(d), the same kernel for every output:

        k(z, z') = exp(-|z - z'|^2/(2 l^2)) + 0.3 (z.z' + 1),   K = k(z_i, z_j) + 1e-5 I
        mean u_k(z) = mean_k + k(z)' K^-1 (u_k - mean_k),   variance v_k (k(z, z) + 1e-5 - k(z)' K^-1 k(z))

    z (n, r) inputs;  inverse (n, n) = K^-1;  weights (n, m) = K^-1 (u - mean);  mean, variance (1, m);  length = l
    """

    z: Any
    inverse: Any
    weights: Any
    mean: Any
    variance: Any
    length: float

    def predict(self, z):
        """Mean and variance of u.  (J, r) -> (J, m), (J, m)"""
        xp = array_namespace(z)
        k = _kernel(z, self.z, self.length)
        own = 1.0 + LINEAR * (xp.sum(z * z, axis=1) + 1.0) + _nugget(z)
        left = xp.clip(own - xp.sum(xp.matmul(k, self.inverse) * k, axis=1), _nugget(z) * 1e-3, None)
        return self.mean + xp.matmul(k, self.weights), left[:, None] * self.variance

    def log_likelihood(self, z, optimistic=False):
        """log l~(z) = -1/2 sum_k [d_k^2/V_k + log V_k], V = 1 + the variance of d, by linearising `unwarp`.

        The likelihood of the data given what the regression knows; ``optimistic`` leaves out log V, so that places
        where it knows nothing are as good as a perfect fit.  (J, r) -> (J,)
        """
        xp = array_namespace(z)
        u, variance = self.predict(z)
        d = unwarp(u)
        V = 1.0 + variance * (1.0 + (d / KNEE) ** 2)  # (dd/du)^2 = cosh^2(u/c) = 1 + (d/c)^2
        each = d * d / V if optimistic else d * d / V + xp.log(V)
        return -0.5 * xp.sum(each, axis=1)


def kernel_regression(z, d, lengths=LENGTHS):
    """`KernelSurrogate` whose length maximises the likelihood of the evaluations, output variances profiled out.

    minimises  n/2 sum_k log v_k + m/2 log det K,   v_k = (u_k - mean_k)' K^-1 (u_k - mean_k)/n

    z : (n, r);  d : (n, m) whitened differences;  lengths in units of sqrt(r)
    """
    xp = array_namespace(z, d)
    n, r = z.shape
    u = warp(d)
    mean = xp.mean(u, axis=0, keepdims=True)
    best = None
    for length in lengths:
        length = length * math.sqrt(r)
        K = _kernel(z, z, length) + _nugget(z) * like(np.eye(n), z)
        inverse = xp.linalg.inv(K)
        weights = xp.matmul(inverse, u - mean)
        v = xp.clip(xp.mean((u - mean) * weights, axis=0, keepdims=True), 1e-12, None)
        cost = float(0.5 * n * xp.sum(xp.log(v)) + 0.5 * u.shape[1] * xp.linalg.slogdet(K)[1])
        if best is None or cost < best[0]:
            best = cost, KernelSurrogate(z, inverse, weights, mean, v, length)
    return best[1]


def _kernel(a, b, length):
    """(I, r), (n, r) -> (I, n)"""
    xp = array_namespace(a, b)
    products = xp.matmul(a, b.T)
    squares = xp.sum(a * a, axis=1)[:, None] + xp.sum(b * b, axis=1)[None, :] - 2.0 * products
    return xp.exp(-xp.clip(squares, 0.0, None) / (2.0 * length**2)) + LINEAR * (products + 1.0)


def _nugget(x):
    """NUGGET, more in single precision."""
    return max(NUGGET, 1e4 * float(array_namespace(x).finfo(x.dtype).eps))
