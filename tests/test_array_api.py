"""Every public function of the core on every array back-end: equals numpy, keeps dtype and device, mutates nothing.

The core asks for no extension of the standard: the ``strictest`` back-end has no fft, no linalg, no boolean indexing
and no data-dependent shapes.
"""

import dataclasses

import numpy as np
import pytest

from enkg_ref import (
    Closures,
    Gaussian,
    Poisson,
    Preset,
    State,
    constant,
    correct,
    frobenius,
    iterate,
    member_normals,
    solve,
    step,
    trace,
)
from enkg_ref import ensemble as core
from enkg_ref._xp import array_namespace, device, like, to_numpy
from enkg_ref.diagnostics import Memory, linear_change, observe
from enkg_ref.diffusion import euler_step, flow_to_zero, initial_ensemble
from enkg_ref.extensions import guarded, lowrank, plausible, survivors
from enkg_ref.protocol import evaluate

J, EVENT, M = 9, (2, 3), 4
RNG = np.random.default_rng(60)
X, D0, G = RNG.standard_normal((J, *EVENT)), RNG.standard_normal((J, *EVENT)), RNG.standard_normal((J, M))
Y = RNG.standard_normal(M)
H = RNG.standard_normal((6, M)) / 2.0
A = RNG.standard_normal((M, M))
GAMMA = A @ A.T + np.eye(M)
ALIVE = np.arange(J) != 4
COUNTS = np.array([3.0, 0.0, 1.0, 7.0])
FLAT = X.reshape(J, -1)


def denoise(x, sigma):
    xp = array_namespace(x)
    return xp.tanh(x) / (1.0 + sigma) + x / (2.0 + sigma * sigma)


def forward(x):
    xp = array_namespace(x)
    return xp.tanh(xp.matmul(xp.reshape(x, (x.shape[0], -1)), like(H, x)))


def residual_of(g):
    return Gaussian(Y, GAMMA).residual(g)


def broken(g, alive):
    xp = array_namespace(g)
    return xp.where(xp.reshape(alive, (-1, 1)), g, xp.full_like(g, float("nan")))


def masked(x, g, alive):
    return survivors(correct)(x, broken(g, alive), residual_of, frobenius(1.0))[0]


def absurd(x):
    """Predictions of which the fourth row is 10^7 and has failed, without its NaN."""
    xp = array_namespace(x)
    g = plausible(lambda x: forward(x) + like(1e7 * (np.arange(J)[:, None] == 3), x), Gaussian(Y, GAMMA))(x)
    return xp.where(xp.isnan(g), xp.zeros_like(g), g)


def scalar(x):
    return array_namespace(x).reshape(x, (1,))


# name -> (function, host arguments): floating arrays change dtype and back-end, masks only the back-end
FUNCTIONS = {
    "initial_ensemble": (lambda x: initial_ensemble(x, 80.0), X),
    "euler_step": (lambda x, d: euler_step(x, d, 3.0, 1.0), X, D0),
    "flow_to_zero": (lambda x: flow_to_zero(x, 5.0, denoise, 4), X),
    "ensemble_mean": (core.ensemble_mean, FLAT),
    "anomalies": (core.anomalies, FLAT),
    "coefficients": (lambda r, b: core.coefficients(r, b), G, G[::-1].copy()),
    "correct frobenius": (lambda x, g: correct(x, g, residual_of, frobenius(1.0))[0], X, G),
    "correct trace": (lambda x, g: correct(x, g, residual_of, trace(1.0))[0], X, G),
    "correct constant": (lambda x, g: correct(x, g, residual_of, constant(0.05))[0], X, G),
    "correct guarded": (lambda x, g: guarded(correct)(x, g, residual_of, frobenius(1.0))[0], X, G),
    "correct lowrank": (lambda x, g: lowrank(x, g, residual_of, frobenius(1.0))[0], X, G),
    "correct masked": (masked, X, G, ALIVE),
    "linear change": (lambda g: linear_change(g, Gaussian(Y, GAMMA), 0.1), G),
    "plausible": (absurd, X),
    "Poisson residual": (lambda g: Poisson(COUNTS, 1.0).residual(g), G + 4.0),
    "Poisson misfit": (lambda g: Poisson(COUNTS, 1.0).misfit(g), G + 4.0),
    "step size": (lambda x, g: scalar(correct(x, g, residual_of, frobenius(1.0))[1].step), X, G),
    "norm": (lambda x, g: scalar(correct(x, g, residual_of, frobenius(1.0))[1].norm), X, G),
    "Gaussian residual": (residual_of, G),
    "Gaussian misfit": (lambda g: Gaussian(Y, 0.5).misfit(g), G),
    "Closures residual": (lambda g: Closures(Y, 0.5, Y > 0).residual(g), G),
    "Closures difference": (lambda g: Closures(Y, 0.5, Y > 0).difference(g), G),
    "Closures misfit": (lambda g: Closures(Y, 0.5, Y > 0).misfit(g), G),
    "evaluate": (lambda x: evaluate(forward, x), X),
}


def placed(backend, hosts, dtype):
    return [backend.array(host, "bool" if host.dtype == bool else dtype) for host in hosts]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_equals_numpy_and_keeps_dtype_and_device(backend, name):
    function, *hosts = FUNCTIONS[name]
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-4)):
        if dtype == "float64" and not backend.float64:
            continue
        arrays = placed(backend, hosts, dtype)
        before = [np.array(backend.numpy(a)) for a in arrays]
        out = function(*arrays)
        expected = np.asarray(function(*hosts))
        assert out.dtype == arrays[0].dtype
        assert device(out) == device(arrays[0])
        assert array_namespace(out) is array_namespace(arrays[0])
        np.testing.assert_allclose(backend.numpy(out), expected, rtol=0.0,
                                   atol=tolerance * max(1.0, np.max(np.abs(expected))))
        assert all(np.array_equal(backend.numpy(a), b) for a, b in zip(arrays, before))


METHOD = Preset(J, 6, (1, 4), sigma_max=10.0).but(updates=2, guidance=0.5).method(
    denoise, Gaussian(Y, GAMMA), survivors(guarded(correct)))


def test_one_step_from_a_common_state_is_the_same_on_every_backend(backend):
    states, memories = [METHOD.init(X)], [Memory()]
    for state, info in iterate(METHOD, forward, states[0]):
        states.append(state)
        memories.append(observe(memories[-1], info, METHOD.likelihood)[0])
    for state, memory in list(zip(states, memories))[:-1:3]:
        expected, info = step(METHOD, state, forward)
        expected_line = observe(memory, info, METHOD.likelihood)[1]
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-4)):
            if dtype == "float64" and not backend.float64:
                continue
            here = dataclasses.replace(state, x=backend.array(state.x, dtype))
            there = {name: value if value is None else backend.array(value, dtype)
                     for name in ("y_pred", "expected") for value in [getattr(memory, name)]}
            after, info = step(METHOD, here, forward)
            line = observe(dataclasses.replace(memory, **there), info, METHOD.likelihood)[1]
            assert after.x.dtype == here.x.dtype and device(after.x) == device(here.x)
            scale = np.max(np.abs(expected.x))
            np.testing.assert_allclose(backend.numpy(after.x), expected.x, rtol=0.0, atol=tolerance * scale)
            assert (after.level, after.update) == (expected.level, expected.update)
            for field in ("step", "norm_k", "misfit", "mean_misfit", "spread", "spread_obs", "alignment",
                          "w_lambda_max", "collapse_budget", "trust"):
                if field == "trust" and memory.expected is None:
                    assert line["trust"] is None
                    continue
                assert type(line[field]) is float
                assert line[field] == pytest.approx(expected_line[field], rel=10 * tolerance), field


def test_a_member_that_fails_on_any_backend_fails_alone(backend):
    dtype = "float64" if backend.float64 else "float32"

    def failing(x):
        return broken(forward(x), like(np.arange(J), x) != 4.0)

    after, info = step(METHOD, METHOD.init(backend.array(X, dtype)), failing)
    expected, _ = step(METHOD, METHOD.init(X), failing)
    with pytest.warns(UserWarning, match="5 %"):
        assert observe(Memory(), info, METHOD.likelihood)[1]["failed_rows"] == [4]
    np.testing.assert_allclose(backend.numpy(after.x), expected.x, rtol=0.0,
                               atol=(1e-10 if backend.float64 else 1e-4) * np.max(np.abs(expected.x)))


def test_float32_stays_float32_through_a_whole_run(backend):
    state = solve(METHOD, forward, backend.array(X, "float32"))
    assert state.x.dtype == backend.array(X, "float32").dtype
    assert device(state.x) == device(backend.array(X, "float32"))


def test_a_state_holds_one_array_and_plain_numbers(backend):
    state = solve(METHOD, forward, backend.array(X, "float32"))
    assert {f.name: type(getattr(state, f.name)) for f in dataclasses.fields(State) if f.name != "x"} == {
        "level": int, "update": int}


@pytest.mark.parametrize("form", [correct, lowrank])
def test_a_correction_can_be_compiled_by_jax(form):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    x, g = jax.numpy.asarray(X), jax.numpy.asarray(G)
    compiled = jax.jit(lambda x, g: form(x, g, residual_of, frobenius(1.3)))
    moved, record = compiled(x, g)
    expected, expected_record = form(X, G, residual_of, frobenius(1.3))
    np.testing.assert_allclose(np.asarray(moved), expected, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose([float(v) for v in record], [float(v) for v in expected_record], rtol=1e-12)
    # and differentiated: the displacement is homogeneous of degree one in x
    slope = jax.jvp(lambda t: form(t * x, g, residual_of, frobenius(1.3))[0], (1.0,), (1.0,))[1]
    np.testing.assert_allclose(np.asarray(slope), expected, rtol=0.0, atol=1e-12)


def test_the_same_seed_gives_the_same_ensemble_on_every_backend(backend):
    if not backend.float64:
        pytest.skip("compared bit by bit in double precision")
    noise = member_normals(7, 0, 16, (2, 3))
    x = initial_ensemble(like(noise, backend.array(X)), 80.0)
    assert np.array_equal(backend.numpy(x), 80.0 * noise)
    assert np.array_equal(noise[:8], member_normals(7, 0, 8, (2, 3)))


def test_host_data_follow_an_array_and_come_back(backend):
    anchor = backend.array(X, "float32")
    there = like(np.arange(3.0), anchor)
    assert there.dtype == anchor.dtype and device(there) == device(anchor)
    back = to_numpy(there)
    assert isinstance(back, np.ndarray) and back.dtype == np.float32 and np.array_equal(back, np.arange(3.0))


def test_no_numpy_function_touches_an_array_of_another_device():
    # arrays of this device refuse __array__, so a stray numpy call inside the core would raise
    strict = pytest.importorskip("array_api_strict")
    other = next(d for d in strict.__array_namespace_info__().devices() if "device1" in str(d))
    x = strict.asarray(X, device=other)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        np.exp(x)
    moved, record = correct(x, forward(x), residual_of, frobenius(1.0))
    assert device(moved) == other and device(record.step) == other
    assert device(solve(METHOD, forward, x).x) == other
