"""The update against the matrix products it cannot do without, in one run: pytest -s benchmarks/test_update_speed.py

The low-rank form where it is chosen (J > 2 m), the paper's form where that is (J <= 2 m), each beside its own products.
"""

import time

import numpy as np
import pytest

from enkg_ref import Gaussian, correct, frobenius
from enkg_ref.extensions import guarded, lowrank, survivors

SIZES = {"lowrank": (1024, 4096, 200), "pairwise": (512, 4096, 2048)}  # J, d, m
FORMS = {"lowrank": lowrank, "pairwise": correct}
# R differs from G: a product of a matrix with its own transpose takes half the operations of R B'
PRODUCTS = {"lowrank": lambda X, R, G: R @ (G.T @ X), "pairwise": lambda X, R, G: (R @ G.T) @ X}


def calls(form):
    """The update, the same with the safe set around it, and the bare products, as functions without arguments."""
    J, d, m = SIZES[form]
    rng = np.random.default_rng(0)
    X, G, R = rng.standard_normal((J, d)), rng.standard_normal((J, m)), rng.standard_normal((J, m))
    residual = Gaussian(rng.standard_normal(m), 0.5).residual
    return {"update": lambda: FORMS[form](X, G, residual, frobenius(2.0)),
            "safe": lambda: survivors(guarded(FORMS[form]))(X, G, residual, frobenius(2.0)),
            "products": lambda: PRODUCTS[form](X, R, G)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["update", "safe", "products"])
def test_update_and_plain_products(benchmark, form, name):
    benchmark.pedantic(calls(form)[name], rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("form", FORMS)
def test_that_the_update_takes_at_most_one_and_a_half_times_the_plain_products(form):
    chosen, ratios = calls(form), {"update": [], "safe": []}
    for _ in range(15):  # in turn, so that a drift of the machine cancels
        seconds = {}
        for name, call in chosen.items():
            start = time.process_time()
            call()
            seconds[name] = time.process_time() - start
        for name in ratios:
            ratios[name].append(seconds[name] / seconds["products"])
    for name, found in ratios.items():
        print(f"\n{form}, {name} / plain products, J, d, m = {SIZES[form]}: median {np.median(found):.2f}, "
              f"{min(found):.2f} to {max(found):.2f}")
        assert np.median(found) <= 1.5
