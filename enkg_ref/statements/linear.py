"""Affine maps, frozen: Theorem 6, (T14)-(T19), what rounding does to it (C8), and what gamma = 2 does (C6, C9)."""

from __future__ import annotations

import functools
import math

import numpy as np

from ..ensemble import constant, frobenius
from .line import RULES, statement
from .oracles import (
    contraction_bound,
    mahalanobis_misfit,
    observation_modes,
    random_affine,
    random_covariance,
    relative,
    scalar_recursion,
    schur_complement,
    spread,
    trajectory,
    worst,
)


def _linear_runs(library, measure, count=60, steps=12, shapes=((64, 24, 8), (20, 12, 5), (12, 30, 4))):
    worst, count = -math.inf, max(4, count // library.thinning)
    for seed in range(count):
        rng = np.random.default_rng([11, seed])
        X, H, c, y, Gamma = random_affine(rng, *shapes[seed % len(shapes)])
        rule, gamma = ("frobenius", "trace")[seed % 2], 0.2 + 1.7 * rng.random()
        ensembles, sizes = library.loop(X, lambda x, H=H, c=c: x @ H.T + c, y, Gamma, RULES[rule](gamma), steps)
        worst = np.maximum(worst, measure(ensembles, sizes, H, c, y, Gamma, gamma, rule))
    return worst, count


@statement("T14", "C+ = (I - w C A) C (I - w A C), A = H' Gamma^-1 H", 2e-14)
def _covariance_recursion(library):
    def measure(ensembles, sizes, H, c, y, Gamma, gamma, rule):
        A = H.T @ np.linalg.solve(Gamma, H)
        worst = 0.0
        # the product C A on the right loses eps tau_0/tau: compare while tau > tau_0/100
        resolved = ensembles[:_while_resolved(ensembles, H, c, y, Gamma, 1e-2)]
        for X, X_new, w in zip(resolved, resolved[1:], sizes):
            C, C_new = (np.cov(v.T, bias=True) for v in (X, X_new))
            M = np.eye(len(C)) - w * C @ A
            worst = np.maximum(worst, relative(C_new, M @ C @ M.T))
        return worst

    return _linear_runs(library, measure)


def _while_resolved(ensembles, H, c, y, Gamma, share=1e-8):
    """Number of ensembles with tau > 1e-8 tau_0: later ones lose digits, then are rounding (C8)."""
    tau = [np.trace(np.linalg.solve(Gamma, np.cov((X @ H.T).T, bias=True))) for X in ensembles]
    return next((n for n, t in enumerate(tau) if t <= share * tau[0]), len(tau))


@statement("T17b", "whole trajectory of all particles from r scalars", 1e-12)
def _trajectory(library):
    def measure(ensembles, sizes, H, c, y, Gamma, gamma, rule):
        expected, _ = trajectory(ensembles[0], H, c, y, Gamma, gamma, rule, len(sizes))
        resolved = _while_resolved(ensembles, H, c, y, Gamma)
        return worst(relative(a, b) for a, b in list(zip(ensembles, expected))[:resolved])

    return _linear_runs(library, measure)


@statement("T18", "step sizes and spectrum follow the scalar recursion", 5e-13)
def _recursion(library):
    def measure(ensembles, sizes, H, c, y, Gamma, gamma, rule):
        X = ensembles[0]
        mu, _, kappa2, _ = observation_modes(X, X @ H.T + c, y, Gamma)
        amplitudes, expected = scalar_recursion(mu, kappa2, gamma, rule, len(sizes))
        worst = 0.0
        for n in range(1, _while_resolved(ensembles, H, c, y, Gamma)):
            X = ensembles[n]
            B = (X - X.mean(0)) @ H.T @ np.linalg.inv(np.linalg.cholesky(Gamma)).T
            lam = np.linalg.eigvalsh(B.T @ B / len(X))[-len(mu):]
            exact = mu * amplitudes[n] ** 2
            worst = np.maximum(worst, np.abs(lam - np.sort(exact)).max() / mu.sum())
            if exact.sum() > 1e-4 * mu.sum():  # w is a ratio: its rounding grows like eps tau_0/tau
                worst = np.maximum(worst, abs(sizes[n] / expected[n] - 1) if n < len(sizes) else 0.0)
        return worst

    return _linear_runs(library, measure)


@statement("T16", "unobserved covariance N is invariant", 5e-14)
def _null_covariance(library):
    def measure(ensembles, sizes, H, c, y, Gamma, gamma, rule):
        N = [schur_complement(np.cov(X.T, bias=True), H) for X in (ensembles[0], ensembles[-1])]
        return relative(N[1], N[0])

    return _linear_runs(library, measure, steps=6, shapes=((64, 24, 8), (20, 12, 5)))


@statement("T17 limit", "particles reach x_j + M_0 (y - c - H x_j), also J - 1 < m with dense Gamma", 3e-14)
def _limit(library):
    worst, shapes = 0.0, ((64, 24, 8), (6, 20, 9), (20, 12, 5))
    for seed, (J, d, m) in enumerate(shapes):
        # C_xx a projector and H = L Q V': all non-zero modes of Cw are 1, and w = 1 lands on the limit
        rng = np.random.default_rng([12, seed])
        V, r = np.linalg.svd(spread(rng.standard_normal((J, d)))[0], full_matrices=False), min(J - 1, m)
        X = rng.standard_normal(d) + math.sqrt(J) * V[0][:, :min(J - 1, d)] @ V[2][:min(J - 1, d)]
        Gamma, c, y = random_covariance(rng, m), rng.standard_normal(m), 3 * rng.standard_normal(m)
        Q = np.linalg.qr(rng.standard_normal((m, r)))[0]
        H = np.linalg.cholesky(Gamma) @ Q @ V[2][:r]
        G = X @ H.T + c
        mu, U, _, W = observation_modes(X, G, y, Gamma)
        M_0 = spread(X)[0].T @ (spread(X)[0] @ H.T @ W.T) / J @ (U / mu) @ U.T @ W
        worst = np.maximum(worst, relative(library.correct(X, G, y, Gamma, constant(1.0))[0], X + (y - G) @ M_0.T))
    return worst, len(shapes)


@statement("T17 kappa", "kappa^2 (whitened pseudo-inverse) is invariant, also J - 1 < m", 5e-13)
def _kappa(library):
    def measure(ensembles, sizes, H, c, y, Gamma, gamma, rule):
        kappa2 = [mahalanobis_misfit(X, X @ H.T + c, y, Gamma) for X in (ensembles[0], ensembles[-1])]
        return abs(kappa2[1] / kappa2[0] - 1)

    return _linear_runs(library, measure, steps=4, shapes=((64, 24, 8), (20, 12, 5), (6, 20, 9)))


def _contraction_excess(library, gamma_of, count=400):
    worst, steps = -math.inf, 0
    for seed in range(max(20, count // library.thinning)):
        rng = np.random.default_rng([13, seed])
        r = int(rng.integers(1, 9))
        X, H, c, y, Gamma = random_affine(rng, 24, 10, r, 1e6)
        lam, _, kappa2, _ = observation_modes(X, X @ H.T + c, y, Gamma)
        for rule in ("frobenius", "trace"):
            gamma, floor = gamma_of(rng, rule, kappa2)
            if gamma is None:
                continue
            X_new, _, norm, tau = library.correct(X, X @ H.T + c, y, Gamma, RULES[rule](gamma))
            _, _, norm_new, tau_new = library.correct(X_new, X_new @ H.T + c, y, Gamma, RULES[rule](gamma))
            ratio = (norm_new / norm) ** 2 if rule == "frobenius" else tau_new / tau
            worst = np.maximum(worst, ratio - contraction_bound(gamma, len(lam), kappa2.sum(), rule, floor))
            steps += 1
    return worst, steps


@statement("T19", "one-step contraction bound, 0 < gamma < 2, both rules (ratio - bound)", 5e-15)
def _contraction(library):
    return _contraction_excess(library, lambda rng, rule, kappa2: (2 * rng.random(), 0.0))


@statement("T19b", "frobenius contracts for gamma < 2 sqrt(1 + min kappa_i^2), also above 2 (ratio - bound)", 1e-14)
def _contraction_beyond_two(library):
    def gamma(rng, rule, kappa2):
        if rule == "trace":
            return None, 0.0
        return 2 * math.sqrt(1 + kappa2.min()) * (0.5 + 0.5 * rng.random()), kappa2.min()

    return _contraction_excess(library, gamma)


@statement("T19 rate", "||K||_F^2 ratio -> (1 - gamma/sqrt(r + kappa^2))^4 when that quotient is < 1/2", 1e-13)
def _asymptotic_rate(library):
    X, H, c, y, Gamma = random_affine(np.random.default_rng(14), 64, 24, 8)
    r_kappa = 8 + mahalanobis_misfit(X, X @ H.T + c, y, Gamma)
    ensembles, sizes = library.loop(X, lambda x: x @ H.T + c, y, Gamma, frobenius(1.0), 26)
    ratios = np.divide(sizes[-7:-1], sizes[-6:]) ** 2  # six, for the rounding error of one may vanish
    return np.abs(ratios - (1 - 1 / math.sqrt(r_kappa)) ** 4).max(), 6


@statement("C6", "linear G with a null space: V -> tr N_0 > 0, not 0 (V_60/tr N_0)", 1 + 4e-12, 1 - 4e-12, True)
def _null_space(library):
    X, H, c, y, Gamma = random_affine(np.random.default_rng(15), 64, 24, 8)
    ensembles, _ = library.loop(X, lambda x: x @ H.T + c, y, Gamma, frobenius(1.0), 60)
    return spread(ensembles[-1])[1] / np.trace(schur_complement(np.cov(X.T, bias=True), H)), 1


@functools.lru_cache(maxsize=2)
def _long_linear_run(library, multiple):
    X, H, c, y, Gamma = random_affine(np.random.default_rng(16), 64, 24, 8)
    X_new = library.loop(X, lambda x: x @ H.T + c, y, Gamma, frobenius(2.0), 400, multiple)[0][-1]
    N, N_new = (schur_complement(np.cov(v.T, bias=True), H) for v in (X, X_new))
    return np.trace(N_new) / np.trace(N)


@statement("C8", "after 400 updates rounding destroys the invariant N without a guard (tr N/tr N_0)", 0.01, 0.0, True)
def _rounding(library):
    return _long_linear_run(library, 0.0), 1


@statement("C8 guard", "the same with the guard 64: N is kept", 1 + 1e-5, 1 - 1e-5)
def _rounding_guarded(library):
    return _long_linear_run(library, 64.0), 1


# what is left after n steps is .18/n
@statement("C9", "gamma = 2, kappa = 0: observed spread has a positive limit (lambda_1, from 1 .5 .2 .1)",
           0.48263, 0.48261, True)
def _reflection(library):
    steps, shown = 20_000, 300
    H = np.diag(np.sqrt([1.0, 0.5, 0.2, 0.1]))
    X = math.sqrt(2) * np.concatenate([np.eye(4), -np.eye(4)])  # C_xx = I/2, mean 0
    X *= 1 / math.sqrt(spread(X)[1] / 4)
    ensembles, _ = library.loop(X, lambda x: x @ H, np.zeros(4), 1.0, frobenius(2.0), shown)
    expected, _ = scalar_recursion(np.diag(H) ** 2, np.zeros(4), 2.0, "frobenius", steps)
    got = np.diag(np.cov((ensembles[-1] @ H).T, bias=True))
    if np.abs(got - np.diag(H) ** 2 * expected[shown] ** 2).max() > 1e-10:
        return math.nan, 1
    return expected[-1][0] ** 2, 1
