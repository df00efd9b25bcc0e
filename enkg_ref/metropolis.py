"""Moves that leave a posterior of a diffusion prior invariant, and how far chains of them have come.

x_s = x0 + s eps, then x0' ~ p(x0 | x_s): the pair (x0, x0') has the density p(x0, x_s) p(x0', x_s)/p(x_s), symmetric,
so the prior p is invariant and no density of it is ever needed. L is the likelihood, l~ any positive function that
does not change while the chains run. Names (X1)-(X5) are used in the code:

    (X1)  accept x0' with probability min(1, L(x0')/L(x0))
    (X2)  the same for x_s = x0 + nu(x0) + s eps: `noising_log_ratio`
    (X3)  a proposal that is reversible for p l~: accept with min(1, w(x0')/w(x0)), w = L/l~: `accept`
    (X4)  M draws x0^1 ... x0^M of one x_s: go to one of x0, x0^1 ... x0^M with probability proportional to l~: `choose`
    (X5)  n moves (X4) with s independent of the state are together reversible for p l~; then (X3) decides. One
          evaluation of L for n M draws

(X1), (X2): Takao et al. 2026, "Noise, Denoise, Correct". (X4) is iterated sampling importance resampling given x_s
(Andrieu, Lee, Vihola 2018): the M + 1 points are exchangeable given x_s. (X5) is the surrogate transition of Liu 2001.
"""

from __future__ import annotations

import math

import numpy as np

from ._xp import array_namespace, like, to_numpy


class Streams:
    """One host generator per chain: what chain j draws depends on (seed, number, j) and on the order of its draws."""

    def __init__(self, seed, number, rows):
        self._each = [np.random.default_rng([seed, number, row]) for row in range(rows)]

    def normals(self, shape, x):
        """Standard normal numbers (rows, *shape) like x."""
        return like(np.stack([each.standard_normal(shape) for each in self._each]), x)

    def uniforms(self, shape=()):
        """Numbers in (0, 1], numpy float64 (rows, *shape)."""
        return np.stack([1.0 - np.asarray(each.random(shape)) for each in self._each])


def ancestral_levels(s, calls, ratio=20.0, least=0.0):
    """``calls`` levels from s down to s/ratio, geometric, not below ``least``: those of `ancestral_draw`."""
    end = min(max(s / ratio, least), s)
    return tuple(s * (end / s) ** (i / max(calls - 1, 1)) for i in range(calls))


def ancestral_draw(x, levels, denoise, normals, residual=None, order=2):
    """A draw of p(x0 | x_s = x), s = levels[0], by the reverse chain on levels a_0 > a_1 > ... > a_n.

    x <- D* + (b/a)^2 (x - D*) + b sqrt(1 - (b/a)^2) eps for a -> b;  at a_n the answer is D + r, r ~ N(0, C_a).

    order 1, the published chain: D* = D(x, a), exact where D does not change on the way; it draws too little variance.
    order 2: D* = D + (D - D_before) log(a/b)/(2 log(a_before/a)), the denoiser extrapolated to the middle of the step,
    as in DPM-Solver++(2M) SDE (Lu et al. 2022), at the same number of calls.

    x : (rows, *event);  normals : () -> standard normal array like x
    residual : (standard normal array, a) -> r, what D leaves open at the last level, or None: r = 0
    Costs len(levels) denoiser calls per row. Its error is one of the prior that the chains have: see the tests.
    """
    before, step_before = None, 1.0
    for here, following in zip(levels, levels[1:]):
        denoised, step = denoise(x, here), math.log(here / following)
        ahead = denoised
        if order == 2 and before is not None:
            ahead = denoised + step / (2.0 * step_before) * (denoised - before)
        kept = (following / here) ** 2
        x = ahead + kept * (x - ahead) + following * math.sqrt(1.0 - kept) * normals()
        before, step_before = denoised, step
    x0 = denoise(x, levels[-1])
    return x0 if residual is None else x0 + residual(normals(), levels[-1])


def noising_log_ratio(x_s, x, nu, x_new, nu_new, s):
    """(X2) log q(x_s | x0') p(x0 | x_s) / q(x_s | x0) p(x0' | x_s) + log p(x0')/p(x0), where q = N(x0 + nu(x0), s^2):

    [|x_s - x0 - nu|^2 - |x_s - x0' - nu'|^2 + |x_s - x0'|^2 - |x_s - x0|^2]/(2 s^2);  0 for nu = nu' = 0.
    Everything (rows, *event); -> (rows,), to be added to the log-ratio of the likelihoods.
    """
    there = _squares(x_s - x - nu) - _squares(x_s - x)
    back = _squares(x_s - x_new - nu_new) - _squares(x_s - x_new)
    return (there - back) / (2.0 * s * s)


def accept(log_ratio, uniforms):
    """(X1)-(X3) Which chains move: log u < log a.  (rows,), host (rows,) -> (rows,) of bool"""
    return like(np.log(uniforms), log_ratio) < log_ratio


def choose(log_weights, uniforms):
    """(X4) One index per row, with probability proportional to exp(log_weights).  (rows, n), host (rows, n) -> one-hot

    The largest of log w - log(-log u) (Gumbel's trick).  -> (rows, n) of 0 and 1
    """
    scores = to_numpy(log_weights) - np.log(np.maximum(-np.log(uniforms), 1e-300))
    return like(scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1]), log_weights)


def where_rows(mask, a, b):
    """a in the rows of the mask, b in the others.  (rows,) of bool, (rows, *event) twice"""
    xp = array_namespace(a, b)
    return xp.where(xp.reshape(mask, (mask.shape[0],) + (1,) * (a.ndim - 1)), a, b)


def potential_scale(chains):
    """Gelman and Rubin's R-hat of every coordinate: sqrt of the variance over chains and steps over that within chains.

    ((n - 1)/n W + B)/W with W the mean of the chains' variances and B the variance of their means. Independent
    ensembles are chains as well, their particles the steps.

    chains : host (steps n >= 2, chains >= 2, k);  -> (k,), 1 where the chains cannot be told apart
    """
    chains = np.asarray(chains, dtype=np.float64)
    n = chains.shape[0]
    within = chains.var(axis=0, ddof=1).mean(axis=0)
    between = chains.mean(axis=0).var(axis=0, ddof=1)
    safe = np.where(within > 0, within, 1.0)
    ratio = np.where(within > 0, ((n - 1) / n * within + between) / safe, np.where(between > 0, np.inf, 1.0))
    return np.sqrt(np.maximum(ratio, 0.0))


def effective_size(chains):
    """Effective number of independent draws among steps x chains, for every coordinate, from R-hat's variances.

    The mean of all draws has the variance B/chains; N independent draws of the total variance V = (n - 1)/n W + B would
    have V/N: N = chains V/B, at most steps x chains.  chains : host (steps n >= 2, chains >= 2, k);  -> (k,)
    """
    chains = np.asarray(chains, dtype=np.float64)
    n, count = chains.shape[:2]
    within = chains.var(axis=0, ddof=1).mean(axis=0)
    between = chains.mean(axis=0).var(axis=0, ddof=1)
    total = (n - 1) / n * within + between
    return np.minimum(count * total / np.where(between > 0, between, np.inf), n * count)


def drift(chains):
    """Student's t of every coordinate's paired change over the chains, the second half of the steps beside the first.

    Chains whose law does not change have t of order 1 whether they mix or not.  chains : as above;  -> (k,)
    """
    chains = np.asarray(chains, dtype=np.float64)
    half = chains.shape[0] // 2
    change = chains[-half:].mean(axis=0) - chains[:half].mean(axis=0)
    spread = change.std(axis=0, ddof=1) / math.sqrt(change.shape[0])
    return np.where(spread > 0, change.mean(axis=0) / np.where(spread > 0, spread, 1.0), 0.0)


def _squares(x):
    xp = array_namespace(x)
    return xp.sum(xp.reshape(x * x, (x.shape[0], -1)), axis=1)
