"""One correction of any map: its two forms, the identities (T9)-(T13), monotonicity, trust region, failed members."""

from __future__ import annotations

import functools
import math

import numpy as np

from .._xp import to_numpy
from ..ensemble import anomalies, constant, correct, frobenius, trace
from ..extensions import lowrank, survivors
from .line import RULES, instances, statement
from .oracles import SHAPES, moments, random_case, relative, spread, worst


def _by_loops(X, G, y, P, gamma):
    """(T4)-(T6) as sums over scalars: X+ under the Frobenius rule, and ||K||_F."""
    J, d, m = len(X), len(X[0]), len(y)
    mean_x = [sum(X[k][a] for k in range(J)) / J for a in range(d)]
    mean_g = [sum(G[k][p] for k in range(J)) / J for p in range(m)]
    K = [[sum((G[j][p] - y[p]) * P[p][q] * (G[k][q] - mean_g[q]) for p in range(m) for q in range(m)) / J
          for k in range(J)] for j in range(J)]
    norm = math.sqrt(sum(v * v for row in K for v in row))
    w = gamma / norm
    return [[X[j][a] - w * sum(K[j][k] * (X[k][a] - mean_x[a]) for k in range(J)) for a in range(d)]
            for j in range(J)], norm


@statement("T4-T6", "update equals the literal double sum over particles", 5e-15)
def _update_is_the_double_sum(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng, SHAPES[rng.integers(5)])
        expected, norm = _by_loops(X.tolist(), G.tolist(), y.tolist(), np.linalg.inv(Gamma).tolist(), 1.3)
        got, _, got_norm, *_ = library.correct(X, G, y, Gamma, frobenius(1.3))
        return worst([relative(got, expected), abs(got_norm / norm - 1)])

    return instances(library, np.random.default_rng(1), 60, measure)


@statement("T6a=T6b", "pairwise and low-rank forms agree, and their ||K||_F (I12)", 5e-15)
def _both_forms_agree(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng)
        pairwise, *_ = library.correct(X, G, y, Gamma, constant(0.3))
        low, _, norm, _ = library.correct(X, G, y, Gamma, constant(0.3), form=lowrank)
        K = moments(X, G, y, Gamma)["K"]
        return worst([relative(pairwise, low), abs(norm / np.linalg.norm(K) - 1)])

    return instances(library, np.random.default_rng(2), 200, measure)


def _random_step(library, rng, dtype="float64"):
    """A random case as ``dtype`` holds it, and the library's correction of it: (X, G, y, Gamma, X+, w, ||K||_F)."""
    X, G, y, Gamma = random_case(rng)
    X, G = (to_numpy(library.array(v, dtype)).astype(np.float64) for v in (X, G))
    rule, gamma = RULES[("frobenius", "trace")[rng.integers(2)]], 2 * (1 - rng.random())
    X_new, w, norm, *_ = library.correct(X, G, y, Gamma, rule(gamma), dtype)
    return X, G, y, Gamma, X_new.astype(np.float64), w, norm


def _size(X, X_new):
    """Norm that the rounding of one step is measured against."""
    return math.sqrt(np.sum(X * X) + np.sum(X_new * X_new))


def _pair_distance(library, X, dtype="float64"):
    pairs = np.mean(np.sum((X[:, None] - X[None]) ** 2, axis=2))
    Z = to_numpy(anomalies(library.array(X, dtype))).astype(np.float64)
    return abs(pairs * len(X) / (2 * np.sum(Z * Z)) - 1)


def _anomalies_contract(q, X, X_new, w, norm):
    return relative(spread(X_new)[0], q["Z"] - w * q["S"] @ q["Z"], _size(X, X_new))


def _mean_moves(q, X, X_new, w, norm):
    move = w * q["C_xy"] @ q["P"] @ q["E"].mean(0)
    return relative(X_new.mean(0), X.mean(0) - move, _size(X, X_new) / math.sqrt(len(X)))


def _spread_changes(q, X, X_new, w, norm):
    V, V_new = spread(X)[1], spread(X_new)[1]
    A = q["C_xy"] @ q["P"]
    first, second = np.trace(A @ q["C_xy"].T), np.trace(A @ q["C_yy"] @ A.T)
    lam = np.linalg.eigvalsh(q["S"])[-1]
    exact = abs(V_new - (V - 2 * w * first + w * w * second))
    return worst([exact, V_new - (V - w * (2 - w * lam) * first)]) * len(X) / _size(X, X_new) ** 2


def _norm_identity(q, X, X_new, w, norm):
    e = q["P"] @ q["E"].mean(0)
    squared = np.sum(q["S"] ** 2) + e @ q["C_yy"] @ e
    return worst([abs(norm**2 / squared - 1), np.linalg.eigvalsh(q["S"])[-1] / norm - 1])


def _covariance_excess(X, X_new):
    """Largest eigenvalue of C_xx+ - C_xx, relative to the rounding it is made of."""
    Z, Z_new = X - X.mean(0), X_new - X_new.mean(0)
    return np.linalg.eigvalsh(Z_new.T @ Z_new - Z.T @ Z)[-1] / _size(X, X_new) ** 2


def _move_excess(X, X_new, w, norm):
    """||X+ - X||_F beyond w ||K||_F ||Z||_2, which is gamma ||Z||_2 under the Frobenius rule."""
    return (np.linalg.norm(X_new - X) - w * norm * np.linalg.norm(X - X.mean(0), 2)) / _size(X, X_new)


ONE_STEP = {
    "T10": (_anomalies_contract, 5e-15, "anomalies: Z+ = (I - w S) Z for any psi"),
    "T11": (_mean_moves, 1e-14, "mean: xbar+ = xbar - w C_xy Gamma^-1 ebar for any psi"),
    "T12": (_spread_changes, 3e-15, "spread: V+ = V - 2w ||C_xy Gamma^-1/2||^2 + w^2 tr(...), and its bound"),
    "T13": (_norm_identity, 1e-14, "||K||_F^2 = ||Cw||_F^2 + ebar' Gamma^-1 C_yy Gamma^-1 ebar >= lambda_max(S)^2"),
}


@statement("T9", "mean squared pair distance = 2 tr C_xx", 5e-15)
def _spread_is_pair_distance(library):
    return instances(library, np.random.default_rng(3), 200, lambda rng: _pair_distance(library, random_case(rng)[0]))


def _one_step(quantity):
    def line(library):
        def measure(rng):
            X, G, y, Gamma, X_new, w, norm = _random_step(library, rng)
            return quantity(moments(X, G, y, Gamma), X, X_new, w, norm)

        return instances(library, np.random.default_rng(4), 200, measure)

    return line


@statement("T5", "step sizes: frobenius gamma/||K||_F, trace gamma/tr(Gamma^-1 C_yy), constant w", 1e-12)
def _step_sizes(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng)
        q = moments(X, G, y, Gamma)
        exact = {frobenius: 1.3 / np.linalg.norm(q["K"]), trace: 1.3 / np.trace(q["P"] @ q["C_yy"]), constant: 1.3}
        return worst(abs(library.correct(X, G, y, Gamma, rule(1.3))[1] / w - 1) for rule, w in exact.items())

    return instances(library, np.random.default_rng(43), 100, measure)


for _name, (_quantity, _bound, _claim) in ONE_STEP.items():
    statement(_name, _claim, _bound)(_one_step(_quantity))


@statement("T9-T13", "the same five, Cor. 2 and Cor. 3 in float32", 5e-6)
def _in_single_precision(library):
    def measure(rng):
        X, G, y, Gamma, X_new, w, norm = _random_step(library, rng, "float32")
        q = moments(X, G, y, Gamma)
        return worst([_pair_distance(library, X, "float32"), _covariance_excess(X, X_new),
                       _move_excess(X, X_new, w, norm),
                       *(quantity(q, X, X_new, w, norm) for quantity, *_ in ONE_STEP.values())])

    return instances(library, np.random.default_rng(6), 200, measure)


@functools.lru_cache(maxsize=2)
def _any_psi(library):
    """Worst of 10,000 random steps, both rules, 0 < gamma <= 2: growth of C_xx (Loewner order), move too long."""
    def measure(rng):
        X, *_, X_new, w, norm = _random_step(library, rng)
        return _covariance_excess(X, X_new), _move_excess(X, X_new, w, norm)

    count = 10_000 // library.thinning
    rng = np.random.default_rng(5)
    return np.max([measure(rng) for _ in range(count)], axis=0), count


@statement("Cor.2", "C_xx, hence V, never grows (Loewner order), 0 < gamma <= 2, both rules, any psi (growth)", 1e-15)
def _never_grows(library):
    worst, count = _any_psi(library)
    return worst[0], count


@statement("Cor.3", "trust region, any psi: ||X+ - X||_F <= w ||K||_F ||Z||_2 (excess over it)", 5e-15)
def _trust_region(library):
    worst, count = _any_psi(library)
    return worst[1], count


def _sharp(gamma):
    def line(library):
        def measure(rng):
            X, G, y, Gamma = random_case(rng)
            return spread(library.correct(X, G, y, Gamma, frobenius(gamma))[0])[1] / spread(X)[1]

        worst, count = instances(library, np.random.default_rng(7), 1000, measure)
        X = np.random.default_rng(8).standard_normal((20, 1))
        attained = spread(library.correct(X, X, X.mean(0), 1.0, frobenius(gamma))[0])[1] / spread(X)[1]
        return np.maximum(worst, attained), count + 1

    return line


for _gamma, _ratio in ((2.5, 2.25), (3.5, 6.25)):
    statement("Cor.2 sharp", f"gamma = {_gamma} makes the spread grow, at most by (gamma - 1)^2 = {_ratio}",
              _ratio * (1 + 1e-14), _ratio * (1 - 1e-14))(_sharp(_gamma))


@statement("masked", "failed members: others move as without them, they by the mean (shift) or not (keep)", 3e-15)
def _masked(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng, ((5, 8, 3), (12, 20, 6), (24, 10, 4))[rng.integers(3)])
        alive = rng.permutation(len(X)) < round(0.7 * len(X))  # one size per shape: compilers work by shape
        broken = np.where(alive[:, None], G, math.nan)
        expected = library.correct(X[alive], G[alive], y, Gamma, frobenius(1.3))[0]
        shift = (expected - X[alive]).mean(0)
        kept, shifted = (library.correct(X, broken, y, Gamma, frobenius(1.3), form=survivors(correct, failed))[0]
                         for failed in ("keep", "shift"))
        return worst([relative(kept[alive], expected), relative(shifted[alive], expected),
                      np.abs(kept[~alive] - X[~alive]).max(),
                      np.abs(shifted[~alive] - X[~alive] - shift).max() / np.abs(X).max()])

    return instances(library, np.random.default_rng(30), 1000, measure)
