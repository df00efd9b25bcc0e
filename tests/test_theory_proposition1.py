"""THEORY.md, Theorem 7: how close the ensemble correction is to the preconditioned gradient, and in what order.

(T20) (1/J) sum_k <psi(x_k) - psibar, psi(x_j) - y>_Gamma z_k  ~  C_xx Dpsi(x_j)' Gamma^-1 (psi(x_j) - y)
"""

import numpy as np
import pytest

from enkg_ref import Gaussian, constant, correct, frobenius, trace
from enkg_ref.statements import verify

LIBRARY = verify.Library()


@pytest.mark.parametrize("rule", [frobenius(1.3), trace(0.7), constant(0.05)])
def test_for_an_affine_map_the_correction_is_the_preconditioned_gradient(backend, rule):
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-5)
    for seed in range(5):
        x, H, c, y, noise = verify._linear(np.random.default_rng(seed), 20, 12, 5)
        g = x @ H.T + c
        x_new, done = correct(backend.array(x, dtype), backend.array(g, dtype), Gaussian(y, noise).residual, rule)
        move = float(done.step) * (g - y) @ np.linalg.solve(noise, H) @ np.cov(x.T, bias=True)
        error = np.linalg.norm(backend.numpy(x_new) - (x - move))
        assert error <= tolerance * np.linalg.norm(move) + (1e-6 if dtype == "float32" else 0) * np.linalg.norm(x)


def test_t21_the_error_is_the_weighted_taylor_remainder_exactly():
    assert verify._remainder_identity(LIBRARY)[0] < 1e-12


def test_t22_bounds_the_error_of_quadratic_maps():
    measured, count = verify._remainder_bound(LIBRARY)
    assert count == 40 and 0.01 < measured <= 1.0  # a bound that holds and is not vacuous


def test_the_form_first_published_is_identically_zero():
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    z, b, e = x - x.mean(0), g - g.mean(0), g - rng.standard_normal(3)
    with_j = np.mean([[np.dot(b[k], e[j]) * z[j] for k in range(9)] for j in range(9)], axis=1)
    with_k = np.mean([[np.dot(b[k], e[j]) * z[k] for k in range(9)] for j in range(9)], axis=1)
    assert np.abs(with_j).max() < 1e-14 and np.abs(with_k).max() > 0.1
    np.testing.assert_allclose(x - correct(x, g, lambda _: e, constant(1.0))[0], with_k, atol=1e-14)


@pytest.mark.parametrize("kind, order", [("per particle", 3), ("size", 2), ("relative", 1), ("no residual", 4),
                                         ("mean", 3), ("mean, antithetic", 4)])
def test_the_error_falls_with_the_spread_in_the_stated_order(kind, order):
    measured, _ = verify._slope_of_error(LIBRARY, kind)
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("rule, order", [(frobenius(1.0), 2), (trace(1.0), 1)])
def test_the_normalised_displacements_lose_one_and_two_orders(rule, order):
    def error(rng, rho):
        psi, jacobian = verify._network(rng)
        centre = rng.standard_normal(8)
        x = centre + rho * rng.standard_normal((64, 8))
        y = psi(centre[None])[0] + rng.standard_normal(5)
        x_new, done = correct(x, psi(x), Gaussian(y).residual, rule, guard=None)
        C = np.cov(x.T, bias=True)
        exact = np.stack([C @ jacobian(row).T @ (g - y) for row, g in zip(x, psi(x))])
        return np.median(np.linalg.norm(x - x_new - float(done.step) * exact, axis=1))

    assert verify.slope(error) == pytest.approx(order, abs=0.1)


def test_at_fixed_spread_more_particles_do_not_reduce_the_error():
    errors = {J: np.mean([verify._at_fixed_spread(LIBRARY, J, s) for s in range(100, 108)])
              for J in (32, 128, 512, 2048)}
    assert max(errors.values()) / min(errors.values()) < 1.4  # sixty-four times the particles
    assert errors[2048] > 0.15


def test_the_covariance_quotient_tends_to_the_averaged_jacobian_like_one_over_root_j():
    sizes, errors = (128, 512, 2048, 8192), []
    for J in sizes:
        row = []
        for seed in range(8):
            rng = np.random.default_rng([2, seed])
            psi, jacobian = verify._network(rng)
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
