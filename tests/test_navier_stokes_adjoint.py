"""Tangent and adjoint of the Navier-Stokes map against finite differences, the dot test and golden gradients;
(N13)-(N16).
"""

import numpy as np
import pytest
from test_navier_stokes import n7, points

from problems import vorticity
from problems.navier_stokes import navier_stokes, observe, observe_adjoint
from problems.navier_stokes_solver import PAPER, Basdevant, NavierStokes
from problems.spectral import disc_mask

GOLDEN = [  # n, L, norm of the gradient, p1 .. p4
    (32, 4128.2007607924, 156.0548053963, 0.9380346016, 6.5159589754, -9.1138784920, 3.4535648610),
    (64, 16939.0844026808, 141.4992332012, 1.9743929381, 3.2199618540, -0.9633372075, -0.6542917245),
    (128, 67520.6053361464, 271.8405669749, 1.9448844537, 3.0686364313, -0.6939823399, -0.6310235534),
]


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda row: row[0])
def test_the_gradient_of_the_observed_energy_has_its_golden_values(golden):
    n, loss, norm, *values = golden
    omega, solve = n7(n), NavierStokes(n, steps=50)
    y = observe(solve(omega))
    _, gradient = solve.value_and_vjp(omega, observe_adjoint(2 * y, n))
    assert abs((y**2).sum() / loss - 1) < 1e-11
    assert abs(np.sqrt((gradient**2).sum()) / norm - 1) < 1e-10
    assert np.abs(points(gradient)[1:] / values - 1).max() < 1e-8


@pytest.mark.parametrize("n", [32, 64, 128])
@pytest.mark.parametrize("steps", [None, 30], ids=["step rule", "fixed steps"])
@pytest.mark.parametrize("square", [False, True], ids=["disc", "square"])
def test_tangent_and_adjoint_satisfy_the_dot_product_identity(square, steps, n):
    solve = NavierStokes(n, cutoff=(n - 1) // 3 if square else None, steps=steps)
    omega = np.concatenate([n7(n), 0.3 * n7(n), normal(0, (2, n, n))])  # three different step counts under the rule
    omega = omega if n == 32 else 0.5 * omega[:2]  # stable in 30 steps; two rows are a second at 128^2
    direction, y = normal(1, omega.shape), normal(2, (len(omega), n * n // 4))
    value, tangent = solve.value_and_jvp(omega, direction)
    same, gradient = solve.value_and_vjp(omega, observe_adjoint(y, n))
    left, right = (observe(tangent) * y).sum(1), (direction * gradient).sum((1, 2))
    assert np.abs(left - right).max() < 1e-10 * np.abs(left).min()
    assert np.array_equal(value, same) and np.array_equal(value, solve(omega))


def test_the_observation_and_its_adjoint_satisfy_the_dot_product_identity():
    field, y = normal(0, (3, 16, 16)), normal(1, (3, 64))
    assert abs((observe(field) * y).sum() - (field * observe_adjoint(y, 16)).sum()) < 1e-12
    assert np.array_equal(observe(field)[1].reshape(8, 8), field[1, ::2, ::2])


def test_the_tangent_of_the_nonlinear_term_is_its_derivative():
    n = 32
    omega, direction = n7(n), normal(0, (1, n, n))
    equation = Basdevant(n, PAPER, disc_mask(n), omega)
    h, dh = equation.mask * equation.r2c(omega), equation.mask * equation.r2c(direction)
    plus, minus = (equation.slope(equation.velocity(h + s * 1e-4 * dh)) for s in (1, -1))
    exact = equation.tangent(equation.velocity(h), dh)
    assert np.abs((plus - minus) / 2e-4 - exact).max() < 1e-7 * np.abs(exact).max()


@pytest.mark.parametrize("n", [32, 64])
def test_the_tangent_of_the_map_is_its_derivative(n):
    omega, direction, eps = vorticity.bench16(64)[:1] if n == 64 else n7(n), normal(0, (1, n, n)), 1e-5
    solve = NavierStokes(n, steps=60)
    _, tangent = solve.value_and_jvp(omega, direction)
    difference = (solve(omega + eps * direction) - solve(omega - eps * direction)) / (2 * eps)
    assert np.sqrt(((difference - tangent) ** 2).sum() / (tangent**2).sum()) < 1e-7


def test_the_linearisation_error_falls_with_the_square_of_the_step():
    n, steps = 64, np.array([1e-2, 5e-3, 2.5e-3, 1.25e-3])
    problem = navier_stokes(size=n, seed=3, steps=60)
    y, x = problem.observation.y + 0.1, problem.truth[None] / problem.scale
    direction = normal(5, x.shape) * 0.1

    def loss(x):
        return ((problem.forward(x) - y) ** 2).sum()

    slope = (problem.forward_vjp(x, 2 * (problem.forward(x) - y)) * direction).sum()
    errors = np.array([abs(loss(x + e * direction) - loss(x) - e * slope) for e in steps])
    assert np.abs(np.polyfit(np.log(steps), np.log(errors), 1)[0] - 2) < 0.05


@pytest.mark.parametrize("size", [32, 64])
def test_the_gradient_in_prior_units_is_scale_times_the_physical_one_and_the_derivative_of_the_loss(size):
    problem = navier_stokes(size=size, seed=1, steps=40)
    physical = NavierStokes(size, vorticity.preset(size).flow, steps=40)
    x = vorticity.fields(size, 1, "validation").astype("float64") / problem.scale
    residual = problem.forward(x) - problem.observation.y
    gradient = problem.forward_vjp(x, 2 * residual)
    _, other = physical.value_and_vjp(problem.scale * x, observe_adjoint(2 * residual, size))
    assert np.allclose(gradient, problem.scale * other, rtol=1e-13, atol=0)
    direction, eps = normal(0, x.shape), 1e-5
    losses = [((problem.forward(x + s * eps * direction) - problem.observation.y) ** 2).sum() for s in (1, -1)]
    assert abs((losses[0] - losses[1]) / (2 * eps) / (gradient * direction).sum() - 1) < 1e-6


def test_a_float32_gradient_agrees_with_the_float64_one():
    omega = vorticity.bench16(64)[:1]
    solve = NavierStokes(64, steps=60)
    _, exact = solve.value_and_vjp(omega, solve(omega))
    _, single = solve.value_and_vjp(omega.astype("float32"), solve(omega).astype("float32"))
    assert single.dtype == np.float32
    assert np.sqrt(((single - exact) ** 2).sum() / (exact**2).sum()) < 2e-5
