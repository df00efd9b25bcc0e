"""THEORY.md, Theorem 7: how close the ensemble correction is to the preconditioned gradient, and in what order.

(T20) (1/J) sum_k <psi(x_k) - psibar, psi(x_j) - y>_Gamma z_k  ~  C_xx Dpsi(x_j)' Gamma^-1 (psi(x_j) - y)
"""

import numpy as np
import pytest

from enkg_ref import Gaussian, constant, correct, frobenius, trace
from enkg_ref.statements import oracles, proposition


@pytest.mark.parametrize("rule", [frobenius(1.3), trace(0.7), constant(0.05)])
def test_for_an_affine_map_the_correction_is_the_preconditioned_gradient(backend, rule):
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    for seed in range(5):
        x, H, c, y, noise = oracles.random_affine(np.random.default_rng(seed), 20, 12, 5)
        g = x @ H.T + c
        x_new, done = correct(backend.array(x, dtype), backend.array(g, dtype), Gaussian(y, noise).residual, rule)
        move = float(done.step) * (g - y) @ np.linalg.solve(noise, H) @ np.cov(x.T, bias=True)
        error = np.linalg.norm(backend.numpy(x_new) - (x - move))
        assert error <= tolerance * np.linalg.norm(move) + (1e-6 if dtype == "float32" else 0) * np.linalg.norm(x)


@pytest.mark.parametrize("rule, order", [(frobenius(1.0), 2), (trace(1.0), 1)])
def test_the_normalised_displacements_lose_one_and_two_orders(rule, order):
    def error(rng, rho):
        psi, jacobian = proposition.network(rng)
        centre = rng.standard_normal(8)
        x = centre + rho * rng.standard_normal((64, 8))
        y = psi(centre[None])[0] + rng.standard_normal(5)
        x_new, done = correct(x, psi(x), Gaussian(y).residual, rule)
        C = np.cov(x.T, bias=True)
        exact = np.stack([C @ jacobian(row).T @ (g - y) for row, g in zip(x, psi(x))])
        return np.median(np.linalg.norm(x - x_new - float(done.step) * exact, axis=1))

    assert proposition.slope(error) == pytest.approx(order, abs=0.1)


def test_the_covariance_quotient_tends_to_the_averaged_jacobian_like_one_over_root_j():
    sizes, errors = (128, 512, 2048, 8192), []
    for J in sizes:
        row = []
        for seed in range(8):
            rng = np.random.default_rng([2, seed])
            psi, jacobian = proposition.network(rng)
            centre = rng.standard_normal(8)
            nodes = centre + 0.3 * np.random.default_rng(3).standard_normal((40_000, 8))
            A, mean_jacobian = None, np.zeros((5, 8))
            for part in np.array_split(nodes, 40):  # E[Dpsi] = Cov(psi, x) / rho^2 (Stein), by a control variate
                A = jacobian(centre) if A is None else A
                mean_jacobian += (psi(part) - psi(centre[None]) - (part - centre) @ A.T).T @ (part - centre)
            mean_jacobian = A + mean_jacobian / (len(nodes) * 0.09)
            x = centre + 0.3 * rng.standard_normal((J, 8))
            z, g = x - x.mean(0), psi(x)
            quotient = np.linalg.solve(z.T @ z, z.T @ (g - g.mean(0))).T
            row.append(np.linalg.norm(quotient - mean_jacobian) / np.linalg.norm(mean_jacobian))
        errors.append(np.mean(row))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.12)
