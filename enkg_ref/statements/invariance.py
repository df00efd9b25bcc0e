"""What changes nothing: invariances of one correction."""

from __future__ import annotations

import numpy as np

from ..ensemble import frobenius
from .line import instances, statement
from .oracles import random_case, relative


def _invariance(change):
    """Worst relative difference of X+ - X under ``change(rng, X, G, y, Gamma)``, which also says how to undo it."""

    def line(library):
        def measure(rng):
            X, G, y, Gamma = random_case(rng)
            rule = frobenius(1.3)
            changed, undo = change(rng, X, G, y, Gamma)
            reference = library.correct(X, G, y, Gamma, rule)[0]
            return relative(undo(library.correct(*changed, rule)[0]), reference)

        return instances(library, np.random.default_rng(28), 100, measure)

    return line


def _permuted(rng, X, G, y, Gamma):
    order = rng.permutation(len(X))
    return (X[order], G[order], y, Gamma), lambda v: v[np.argsort(order)]


def _state_mapped(rng, X, G, y, Gamma):
    T = rng.standard_normal((X.shape[1],) * 2) + 3 * np.eye(X.shape[1])
    return (X @ T.T + 1.0, G, y, Gamma), lambda v: (v - 1.0) @ np.linalg.inv(T).T


def _data_mapped(rng, X, G, y, Gamma):
    A = rng.standard_normal((len(y),) * 2) + 3 * np.eye(len(y))
    return (X, G @ A.T, A @ y, A @ Gamma @ A.T), lambda v: v


def _data_shifted(rng, X, G, y, Gamma):
    c = rng.standard_normal(len(y))
    return (X, G + c, y + c, Gamma), lambda v: v


def _data_doubled(rng, X, G, y, Gamma):
    return (X, np.tile(G, 2), np.tile(y, 2), np.kron(np.eye(2), Gamma)), lambda v: v


def _replicated(rng, X, G, y, Gamma):
    return (np.tile(X, (2, 1)), np.tile(G, (2, 1)), y, Gamma), lambda v: v[:len(X)]


statement("I1", "permutation of particles commutes with the update", 3e-15)(_invariance(_permuted))
statement("I2", "affine change of the state x -> Tx + a commutes with the update", 1e-12)(_invariance(_state_mapped))
statement("I5", "invertible change of the data, Gamma -> A Gamma A', changes nothing", 1e-12)(_invariance(_data_mapped))
statement("I6", "shift of the data changes nothing", 1e-14)(_invariance(_data_shifted))
statement("I8", "duplicated observations change nothing", 3e-15)(_invariance(_data_doubled))
statement("I9", "replicated ensemble gives the same update", 5e-15)(_invariance(_replicated))


@statement("I10", "the update stays in span{x_k - xbar} (J = 5, d = 40)", 5e-14)
def _subspace(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng, (5, 40, 3))
        move = library.correct(X, G, y, Gamma, frobenius(1.3))[0] - X
        Q = np.linalg.svd(X - X.mean(0), full_matrices=False)[2][:4]
        return relative(move @ Q.T @ Q, move)

    return instances(library, np.random.default_rng(29), 100, measure)
