"""Lorenz-96: conservation, order, tangent and adjoint."""

import numpy as np
import pytest

from problems.lorenz96 import (
    FORCING,
    attractor,
    integrate,
    integrate_adjoint,
    integrate_tangent,
    lorenz96,
    tendency,
    tendency_adjoint,
    tendency_tangent,
)


def states(J=4):
    return attractor(50)[:J]


def test_the_tendency_is_that_of_the_equation_and_its_advection_conserves_energy():
    x = states(2)
    for row, slope in zip(x, tendency(x)):
        for i in range(40):
            by_hand = (row[(i + 1) % 40] - row[i - 2]) * row[i - 1] - row[i] + FORCING
            assert slope[i] == pytest.approx(by_hand, rel=1e-13)
    energy_change = np.sum(x * (tendency(x) + x - FORCING), axis=1)
    np.testing.assert_allclose(energy_change, 0.0, atol=1e-11)


def test_the_integrator_is_of_fourth_order_and_rests_at_the_fixed_point():
    x = states()
    fine = integrate(x, 320, 0.2 / 320)
    errors = [np.linalg.norm(integrate(x, n, 0.2 / n) - fine) for n in (5, 10, 20)]
    assert np.polyfit(np.log([5, 10, 20]), np.log(errors), 1)[0] == pytest.approx(-4, abs=0.3)
    np.testing.assert_allclose(integrate(np.full((1, 40), FORCING), 30), FORCING, rtol=1e-15)


def test_the_tangent_is_the_derivative_to_second_order():
    x, dx = states(), np.random.default_rng(0).standard_normal((4, 40))
    exact = integrate_tangent(x, dx, 20)
    steps = (1e-2, 1e-3, 1e-4)
    errors = [np.linalg.norm((integrate(x + h * dx, 20) - integrate(x - h * dx, 20)) / (2 * h) - exact) for h in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)


def test_the_adjoint_is_the_transpose_of_the_tangent(backend):
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-4)
    rng = np.random.default_rng(1)
    x, dx, v = (backend.array(a, dtype) for a in (states(), *rng.standard_normal((2, 4, 40))))
    for tangent, adjoint in ((tendency_tangent(x, dx), tendency_adjoint(x, v)),
                             (integrate_tangent(x, dx, 20), integrate_adjoint(x, v, 20))):
        left, right = (np.sum(backend.numpy(a) * backend.numpy(b), axis=1) for a, b in ((tangent, v), (dx, adjoint)))
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def test_the_observed_map_and_its_vjp_agree():
    p, rng = lorenz96(0.2), np.random.default_rng(2)
    x, dx, v = states(3), rng.standard_normal((3, 40)), rng.standard_normal((3, 20))
    moved = (p.forward(x + 1e-6 * dx) - p.forward(x - 1e-6 * dx)) / 2e-6
    np.testing.assert_allclose(np.sum(moved * v, 1), np.sum(dx * p.forward_vjp(x, v), 1), rtol=1e-6)
    np.testing.assert_array_equal(lorenz96(0.0).forward(x), x[:, ::2])


def test_the_attractor_has_its_known_mean_and_deviation():
    x = attractor()
    assert x.mean() == pytest.approx(2.34, abs=0.05) and x.std() == pytest.approx(3.63, abs=0.05)


@pytest.mark.parametrize("arguments, word", [({"horizon": -1.0}, "horizon"), ({"horizon": 0.015}, "horizon"),
                                             ({"noise": 0.0}, "noise"), ({"d": 3}, "d:")])
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        lorenz96(**arguments)
