"""The update against the matrix products it cannot do without, in one run: pytest benchmarks/test_update_speed.py"""

import numpy as np
import pytest

from enkg_ref import Gaussian, correct, frobenius

J, D, M = 1024, 4096, 200
rng = np.random.default_rng(0)
X, G = rng.standard_normal((J, D)), rng.standard_normal((J, M))
LIKELIHOOD = Gaussian(rng.standard_normal(M), 0.5)


def update():
    return correct(X, G, LIKELIHOOD.residual, frobenius(2.0))[0]


def products():
    return G @ (G.T @ X)  # R (B'Z) with nothing around it


@pytest.mark.parametrize("call", [update, products])
def test_update_and_plain_products(benchmark, call):
    benchmark.pedantic(call, rounds=15, warmup_rounds=2)


def test_that_the_update_takes_at_most_one_and_a_half_times_the_plain_products():
    import time

    ratios = []
    for _ in range(15):  # in pairs, so that a drift of the machine cancels
        start = time.perf_counter()
        update()
        middle = time.perf_counter()
        products()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    print(f"\nupdate / plain products, J = {J}, d = {D}, m = {M}: median {np.median(ratios):.2f}")
    assert np.median(ratios) <= 1.5
