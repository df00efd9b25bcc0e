"""The online trust number: how well the linear model behind an update foretold the next predictions."""

import numpy as np
import pytest

from enkg_ref import Gaussian, Preset, correct, frobenius, iterate
from enkg_ref.diagnostics import Memory, linear_change, observe, trust
from enkg_ref.extensions import guarded, survivors
from problems.linear_gaussian import linear_gaussian


def case(seed=0, J=12, d=7, m=4):
    rng = np.random.default_rng(seed)
    C = rng.standard_normal((m, m))
    x, H, y = rng.standard_normal((J, d)), rng.standard_normal((m, d)), rng.standard_normal(m)
    return x, H, Gaussian(y, C @ C.T + np.eye(m))


@pytest.mark.parametrize("J, m", [(12, 4), (5, 9)])
def test_for_an_affine_map_the_expected_change_is_the_change(backend, J, m):
    x, H, likelihood = case(1, J, 7, m)
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 1e-4)
    X, G = backend.array(x, dtype), backend.array(x @ H.T + 1.0, dtype)
    x_new, done = correct(X, G, likelihood.residual, frobenius(1.3))
    change = backend.numpy(x_new) @ H.T + 1.0 - (x @ H.T + 1.0)
    expected = linear_change(G, likelihood, float(done.step))
    np.testing.assert_allclose(backend.numpy(expected), change, atol=tolerance * np.abs(change).max())
    after = backend.array(x @ H.T + 1.0 + change, dtype)
    assert trust(expected, G, after, likelihood) == pytest.approx(1.0, abs=tolerance)


def test_the_number_is_the_cosine_in_the_metric_of_the_noise():
    _, _, likelihood = case()
    rng = np.random.default_rng(2)
    expected, before, now = rng.standard_normal((3, 6, 4))
    W = likelihood.whiten(np.eye(4))
    a, b = (expected @ W).ravel(), ((now - before) @ W).ravel()
    assert trust(expected, before, now, likelihood) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert trust(-(now - before), before, now, likelihood) == pytest.approx(-1.0)
    assert trust(expected, before, before, likelihood) is None


def test_failed_members_do_not_count():
    x, H, likelihood = case()
    g = x @ H.T
    alive = np.arange(12) != 3
    broken = np.where(alive[:, None], g, np.nan)
    x_new, done = survivors(correct)(x, broken, likelihood.residual, frobenius(1.0))
    expected = linear_change(broken, likelihood, float(done.step))
    np.testing.assert_allclose(expected[alive], (x_new - x)[alive] @ H.T, atol=1e-13)
    now = np.where((np.arange(12) != 5)[:, None], x_new @ H.T, np.inf)
    assert trust(expected, broken, now, likelihood) == pytest.approx(1.0, abs=1e-12)


def test_a_run_reports_it_from_the_second_update_on_and_an_affine_problem_within_a_level_earns_one():
    p = linear_gaussian("A")
    run = Preset(64, 20).but(guidance=0.2).method(p.denoise, Gaussian(p.observation.y, 0.1))
    memory, lines = Memory(), []
    for _, info in iterate(run, p.forward, run.init(np.random.default_rng(0).standard_normal((64, 32)))):
        memory, line = observe(memory, info, run.likelihood)
        lines.append(line)
    assert lines[0]["trust"] is None
    within = [line["trust"] for line in lines if line["update"] == 1]
    np.testing.assert_allclose(within, 1.0, atol=1e-9)
    assert all(-1 <= line["trust"] <= 1 + 1e-12 for line in lines[1:])


def test_a_non_linear_map_earns_less_the_wider_the_ensemble():
    measured = []
    for rho in (1e-3, 0.1, 1.0):
        x, H, likelihood = case(3, 40)
        x = rho * x
        x_new, done = correct(x, np.sin(x @ H.T), likelihood.residual, frobenius(1.0))
        expected = linear_change(np.sin(x @ H.T), likelihood, float(done.step))
        measured.append(trust(expected, np.sin(x @ H.T), np.sin(x_new @ H.T), likelihood))
    assert measured[0] > 0.999 and measured == sorted(measured, reverse=True) and measured[-1] < 0.5


@pytest.mark.filterwarnings("ignore:level")
def test_after_an_update_that_was_skipped_or_never_made_nothing_is_foretold():
    _, _, likelihood = case()
    run = Preset(12, 6).method(lambda x, sigma: 0.5 * x, likelihood, survivors(guarded(correct)))
    state, memory = run.init(np.random.default_rng(0).standard_normal((12, 7))), Memory()
    for g, skipped in ((np.ones((12, 4)), True), (np.random.default_rng(1).standard_normal((12, 4)), False),
                       (np.random.default_rng(2).standard_normal((12, 4)), False)):
        before = memory.expected
        state, info = run.tell(state, g)
        memory, line = observe(memory, info, likelihood)
        assert line["skipped"] is skipped is (memory.expected is None)
        assert (line["trust"] is None) is (before is None)
