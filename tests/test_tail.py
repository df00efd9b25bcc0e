"""The Metropolis tail: its surrogate equals plain loops, it ends any method, resumes, and samples the posterior."""

import dataclasses
import math

import numpy as np
import pytest
import tail_equations as spec

from enkg_ref import Gaussian, member_normals, methods, metropolis, solve
from enkg_ref.baselines import eki
from enkg_ref.enkg_r import surrogate, tail
from enkg_ref.enkg_r.method import Config, EnKGR, State
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.protocol import iterate
from enkg_ref.run.checkpoint import load, save
from enkg_ref.run.ledger import Ledger
from problems.exact_toys import exact_toy
from problems.linear_gaussian import linear_gaussian

STRICTEST_EXTENSIONS = ("linalg",)
KIND = {EnKGR: State, eki.EKI: eki.State}
STANDARD = Reference(np.zeros(2), np.eye(2), np.ones(2))


def _case(seed=0, n=12):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 2))
    return z, np.stack([5.0 * np.sin(z[:, 0]), 20.0 * z[:, 0] * z[:, 1]], axis=1)


# -------------------------------------------------------------------------------------------------------- the surrogate
@pytest.mark.parametrize("optimistic", [False, True])
def test_the_surrogate_equals_the_loops_on_every_backend(backend, optimistic):
    z, d = _case()
    dtype = "float64" if backend.float64 else "float32"
    model = surrogate.kernel_regression(backend.array(z, dtype), backend.array(d, dtype), lengths=(0.8,))
    points = np.random.default_rng(1).standard_normal((3, 2))
    got = backend.numpy(model.log_likelihood(backend.array(points, dtype), optimistic))
    if backend.float64:
        expected = [spec.log_likelihood(z.tolist(), d.tolist(), 0.8 * math.sqrt(2), p, optimistic)
                    for p in points.tolist()]
    else:  # single precision has a larger nugget
        plain = surrogate.kernel_regression(z.astype("float32"), d.astype("float32"), lengths=(0.8,))
        expected = plain.log_likelihood(points.astype("float32"), optimistic)
    tolerance = 1e-7 if backend.float64 else 0.01
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_the_length_is_the_one_of_least_cost_by_the_loops():
    z, d = _case(2)
    model = surrogate.kernel_regression(z, d)
    costs = [spec.cost(z.tolist(), d.tolist(), length * math.sqrt(2)) for length in surrogate.LENGTHS]
    assert model.length == surrogate.LENGTHS[int(np.argmin(costs))] * math.sqrt(2)


def test_at_its_evaluations_the_surrogate_is_the_likelihood():
    z, d = _case(3, 30)
    near = np.sum(d * d, axis=1) < 15
    got = surrogate.kernel_regression(z, d).log_likelihood(z)[near]
    np.testing.assert_allclose(got, -0.5 * np.sum(d * d, axis=1)[near], rtol=0.05, atol=0.1)


def test_far_from_all_evaluations_it_claims_little_and_optimism_calls_that_good():
    z, d = _case(4, 30)
    model = surrogate.kernel_regression(0.1 * z, d, lengths=(0.2,))
    away = np.array([[4.0, -4.0]])
    assert model.log_likelihood(away, optimistic=True) > model.log_likelihood(away) + 3.0
    assert model.log_likelihood(away, optimistic=True) > -1.0 - 0.5 * 2


def test_the_rows_kept_are_the_best_fitting_and_some_of_every_misfit():
    d = np.arange(100.0)[np.random.default_rng(5).permutation(100)][:, None]
    kept = d[surrogate.representative(d, 40)][:, 0]
    assert set(kept) >= set(range(30)) and len(set(kept)) == 40 and kept.max() == 99


# --------------------------------------------------------------------------------------------------------- the protocol
def small(letter="C", **settings):
    toy = exact_toy(letter, 1)
    likelihood = Gaussian(toy.observation.y, toy.observation.noise)
    method = EnKGR(toy.denoise, likelihood, STANDARD, Config(particles=8, levels=6, sigma_start=2.0, sigma_end=0.3))
    config = tail.Config(**{"chains": 8, "waves": 9, "burn_in": 4, "moves": 2, "draws": 3, "calls": 3, "rows": 60,
                            **settings})
    return toy, tail.Tail(method, KIND[type(method)], toy.denoise, likelihood, STANDARD, config)


def test_it_is_the_method_until_that_is_done_and_then_the_chains():
    toy, whole = small()
    noise = member_normals(0, 0, 8, (2,))
    alone = [s.x for s, _ in iterate(whole.method, toy.forward, whole.method.init(noise))]
    infos = [info for _, info in iterate(whole, toy.forward, whole.init(noise))]
    assert len(infos) == 6 + 9 and [isinstance(i, tail.Info) for i in infos] == [False] * 6 + [True] * 9
    assert [i.exact for i in infos[6:]] == [False] * 5 + [True] * 4
    state = whole.init(noise)
    for _ in range(6):
        state, _ = whole.tell(state, toy.forward(whole.ask(state)))
    np.testing.assert_array_equal(state.x, alone[-1])
    np.testing.assert_array_equal(whole.ask(state), alone[-1])


def test_the_ledger_counts_its_calls():
    toy, whole = small()
    ledger = Ledger()
    counted = ledger.denoiser(toy.denoise)
    whole = dataclasses.replace(whole, denoise=counted, method=dataclasses.replace(whole.method, denoise=counted))
    solve(whole, ledger.forward(toy.forward), member_normals(0, 0, 8, (2,)))
    assert ledger.counts["fwd_total"] == (6 + 9) * 8 and ledger.counts["fwd_seq"] == 15
    assert ledger.counts["den_total"] == 6 * 8 + 8 * (2 * 3 * 3) * 8  # 8 proposals, 2 moves of 3 levels, 3 draws


@pytest.mark.parametrize("at", [3, 8, 12])
def test_a_run_taken_up_from_a_checkpoint_ends_bit_for_bit_the_same(tmp_path, at):
    toy, whole = small()
    states = [s for s, _ in iterate(whole, toy.forward, whole.init(member_normals(0, 0, 8, (2,))))]
    save(tmp_path / "state.npz", states[at], {"method": "tail"})
    _, again = small()
    state, *_ = load(tmp_path / "state.npz", tail.state_class(again.kind), {"method": "tail"}, states[at].x)
    resumed = [s for s, _ in iterate(again, toy.forward, state)]
    np.testing.assert_array_equal(resumed[-1].x, states[-1].x)
    np.testing.assert_array_equal(resumed[-1].trace, states[-1].trace)


def test_ask_and_tell_are_pure():
    toy, whole = small()
    state = whole.init(member_normals(0, 0, 8, (2,)))
    for _ in range(8):
        state, _ = whole.tell(state, toy.forward(whole.ask(state)))
    g = toy.forward(whole.ask(state))
    first, second = whole.tell(state, g)[0], whole.tell(state, g)[0]
    for f in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, f.name), getattr(second, f.name))


@pytest.mark.parametrize("propose", [tail.kernel_moves, tail.linear_moves])
def test_every_backend_gives_the_numbers_of_numpy(backend, propose):
    if not backend.float64:
        pytest.skip("acceptances are decisions: single precision takes other ones")
    if backend.name == "strictest":
        pytest.skip("a level chosen among rows reads values on the host, which the strictest namespace forbids")
    if backend.name == "jax" and propose is tail.linear_moves:
        pytest.skip("compiling operation by operation takes too long; the strict back-ends see the same code")

    def run(like, xp):
        likelihood = Gaussian(np.array([1.0, 0.3]), 0.3)

        def forward(x):
            return xp.stack([x[:, 0] ** 2, x[:, 1]], axis=1)
        denoise = lambda x, s: x / (1.0 + s * s)  # noqa: E731
        method = eki.EKI(likelihood, eki.Config(1))
        whole = tail.Tail(method, KIND[type(method)], denoise, likelihood, STANDARD, tail.Config(
            chains=4, waves=3, burn_in=1, moves=1, draws=2, calls=2, rows=40, propose=propose))
        return solve(whole, forward, like(member_normals(1, 0, 4, (2,)))).x
    got = run(lambda v: backend.array(v, "float64"), backend.xp)
    np.testing.assert_allclose(backend.numpy(got), run(np.asarray, np), rtol=1e-7, atol=1e-7)


def test_it_ends_a_method_with_another_number_of_rows():
    toy, whole = small(chains=7)
    whole = dataclasses.replace(whole, method=eki.EKI(whole.likelihood, eki.Config(4)), kind=eki.State)
    state = solve(whole, toy.forward, member_normals(0, 0, 3, (2,)))
    assert state.x.shape == (7, 2) and state.history_x.shape[0] == 4 * 3 + 5 * 7


def test_a_row_that_fails_is_never_accepted_and_not_remembered():
    toy, whole = small()
    state = whole.init(member_normals(0, 0, 8, (2,)))
    for _ in range(8):
        state, _ = whole.tell(state, toy.forward(whole.ask(state)))
    g = np.array(toy.forward(whole.ask(state)))
    g[2] = np.nan
    following, info = whole.tell(state, g)
    np.testing.assert_array_equal(following.x[2], state.x[2])
    assert info.failed_rows == (2,) and following.history_x.shape[0] == state.history_x.shape[0] + 7
    with pytest.raises(ValueError, match=r"forward: got an output of shape \(7, 2\), expected \(8, 2\)"):
        whole.tell(state, g[:7])


# ------------------------------------------------------------------------------------------------------------ exactness
def test_an_acceptance_is_that_of_the_loops():
    toy, whole = small()
    state = whole.init(member_normals(0, 0, 8, (2,)))
    for _ in range(12):
        state, _ = whole.tell(state, toy.forward(whole.ask(state)))
    model = whole.model(state, whole.inputs, surrogate.kernel_regression)
    before, after = (model.log_likelihood(whole.inputs(x)) for x in (state.x, state.proposal))
    np.testing.assert_allclose(state.balance, after - before, rtol=1e-9, atol=1e-9)
    misfit = whole.likelihood.misfit(toy.forward(state.x))
    np.testing.assert_allclose(state.misfit, misfit, rtol=1e-12)
    new = whole.likelihood.misfit(toy.forward(state.proposal))
    u = metropolis.Streams(0, tail.FIRST_STREAM + 9 + state.wave, 8).uniforms()
    moves = [math.log(u[j]) < spec.delayed_log_ratio(misfit[j], new[j], before[j], after[j]) for j in range(8)]
    following, _ = whole.tell(state, toy.forward(state.proposal))
    expected = np.where(np.asarray(moves)[:, None], state.proposal, state.x)
    assert np.any(expected != state.x)
    np.testing.assert_array_equal(following.x, expected)


def test_exact_draws_stay_exact_draws_though_the_surrogate_is_poor():
    """300 chains from the exact posterior of C, a surrogate of few evaluations, never refitted: 9,000 proposals."""
    toy = exact_toy("C", 1)
    likelihood = Gaussian(toy.observation.y, toy.observation.noise)
    J, n = 300, 31
    start = toy.exact.draw(np.random.default_rng(1), J)
    method = eki.EKI(likelihood, eki.Config(1, guidance=0.0), lambda noise: start)
    whole = tail.Tail(method, KIND[type(method)], toy.denoise, likelihood, STANDARD, tail.Config(
        chains=J, waves=n, burn_in=1, moves=2, draws=3, calls=5, rows=40, smallest=0.1))
    for state, info in iterate(whole, toy.forward, whole.init(member_normals(0, 0, J, (2,)))):  # noqa: B007
        pass
    assert 0.05 < info.mean_acceptance < 0.95 and np.mean(np.any(state.x != start, axis=1)) > 0.95
    np.testing.assert_allclose((state.x.mean(axis=0) - toy.exact.mean) / toy.exact.sd, 0.0, atol=4 / math.sqrt(J))
    share, right = np.mean(state.x[:, 0] > 0), toy.exact.weights[toy.exact.points[:, 0] > 0].sum()
    assert abs(share - right) < 4 * 0.5 / math.sqrt(J)
    assert np.mean(np.abs(state.x[:, 0])) == pytest.approx(
        toy.exact.weights @ np.abs(toy.exact.points[:, 0]), abs=4 * 0.2 / math.sqrt(J))


def test_linear_moves_leave_the_posterior_of_a_map_that_is_not_linear_where_it_is():
    """400 chains from the exact posterior of H, whose prior is Gaussian: (X3) is exact however wrong its model is."""
    toy = exact_toy("H", 2)
    likelihood = Gaussian(toy.observation.y, toy.observation.noise)
    J = 400
    start = toy.exact.draw(np.random.default_rng(3), J)
    method = eki.EKI(likelihood, eki.Config(1, guidance=0.0), lambda noise: start)
    whole = tail.Tail(method, eki.State, toy.denoise, likelihood, STANDARD, tail.Config(
        chains=J, waves=25, burn_in=1, rows=100, propose=tail.linear_moves, smallest=0.2, largest=1.0))
    for state, info in iterate(whole, toy.forward, whole.init(member_normals(0, 0, J, (2,)))):  # noqa: B007
        pass
    assert 0.2 < info.mean_acceptance < 0.98 and np.mean(np.any(state.x != start, axis=1)) > 0.95
    np.testing.assert_allclose((state.x.mean(axis=0) - toy.exact.mean) / toy.exact.sd, 0.0, atol=4 / math.sqrt(J))
    np.testing.assert_allclose(state.x.std(axis=0) / toy.exact.sd, 1.0, atol=4 * 0.8 / math.sqrt(J))


def test_the_rule_takes_linear_moves_where_the_prior_has_many_modes():
    many = Reference(np.zeros(60), np.eye(60), np.ones(60))
    assert tail.settings_by_rule(many, 32, 640).propose is tail.linear_moves
    few = tail.settings_by_rule(STANDARD, 32, 640, sigma_range=(0.1, 2.0))
    assert few.propose is tail.kernel_moves and (few.smallest, few.largest, few.least) == (0.1, 2.0, 0.1)
    assert (few.waves, few.burn_in) == (20, 10)


def test_with_a_linear_model_and_gaussian_prior_every_linear_move_is_accepted():
    problem = linear_gaussian("LG6")
    likelihood = Gaussian(problem.observation.y, 0.3)
    reference = Reference.gaussian(problem.mu, problem.Sigma)
    rng = np.random.default_rng(2)
    start = rng.multivariate_normal(*problem.posterior, 60)
    method = eki.EKI(likelihood, eki.Config(1, guidance=0.0), lambda noise: start)
    whole = tail.Tail(method, KIND[type(method)], problem.denoise, likelihood, reference, tail.Config(
        chains=60, waves=12, burn_in=1, propose=tail.linear_moves, rows=60))
    infos = [i for _, i in iterate(whole, problem.forward, whole.init(member_normals(0, 0, 60, (6,))))]
    assert infos[-1].mean_acceptance > 0.999
    assert infos[-1].drift < 5


def test_the_second_branch_of_a_square_is_found_and_weighed():
    """EnKG-R keeps one branch or both by chance, the chains end with both."""
    distances = []
    for item in (0, 1):
        toy = exact_toy("C", item)
        likelihood = Gaussian(toy.observation.y, toy.observation.noise)
        whole = tail.Tail(
            EnKGR(toy.denoise, likelihood, STANDARD, Config(particles=32, levels=23, sigma_start=2.0, sigma_end=0.15)),
            State, toy.denoise, likelihood, STANDARD, tail.settings_by_rule(STANDARD, 32, 752))
        state = solve(whole, toy.forward, member_normals(item, 0, 32, (2,)))
        right = toy.exact.weights[toy.exact.points[:, 0] > 0].sum()
        distances.append(abs(np.mean(state.x[:, 0] > 0) - right))
    assert np.mean(distances) < 0.25  # all in one branch: 0.5


def test_levels_that_move_far_are_drawn_more_often():
    jumps = np.zeros((tail.SCALES, 2))
    np.testing.assert_allclose(tail.scale_chances(jumps), 1 / tail.SCALES)
    jumps[:, 1] = 2.0
    jumps[3, 0] = 5.0
    expected = np.full(tail.SCALES, 0.5 / tail.SCALES)
    expected[3] += 0.5
    np.testing.assert_allclose(tail.scale_chances(jumps), expected)


def test_the_certificate_doubts_what_it_should():
    assert tail.doubts(0.6, 1.05, 200.0) == []
    assert "accepted 3 %" in tail.doubts(0.03, 1.05, 200.0)[0]
    assert "R-hat is 2.40" in tail.doubts(0.6, 2.4, 200.0)[0]
    assert len(tail.doubts(math.nan, math.nan, math.nan)) == 3


@pytest.mark.parametrize("settings, message", [
    ({"waves": 4, "burn_in": 4}, "burn_in, waves: got 4, 4, expected 1 <= burn_in < waves"),
    ({"chains": 0}, "chains: got 0, expected at least 1"),
    ({"smallest": 0.0}, "smallest, largest: got 0.0, 3.0"),
])
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tail.Config(**settings)
    with pytest.raises(ValueError, match="tail: got 100 forward calls for 32 chains, expected at least 128"):
        tail.settings_by_rule(STANDARD, 32, 100)


# ------------------------------------------------------------------------------------------------- a setting of methods
def _item():
    toy = exact_toy("C", 1)
    return methods.Item(toy, Gaussian(toy.observation.y, 0.2), toy.denoise, reference=STANDARD, std=1.0)


@pytest.mark.parametrize("name", ["enkg", "enkg-r", "eki"])
def test_a_share_of_the_budget_of_any_method_goes_to_the_chains(name):
    item = _item()
    plan = methods.METHODS[name].plan(item, 600, 1.0, 3, {"tail": 0.4})
    alone = methods.METHODS[name].plan(item, 360, 1.0, 3, {})
    assert plan.rows == alone.rows
    chains = plan.method.config.chains
    assert plan.waves == alone.waves + 240 // chains
    assert plan.state is tail.state_class(alone.state)
    assert f"then {chains} Metropolis chains of {240 // chains} forward calls each" in plan.why
    assert methods.METHODS[name].plan(item, 360, 1.0, 3, {"tail": 0.0}).settings == alone.settings


def test_the_history_has_the_lines_of_the_method_and_of_the_chains():
    item, method = _item(), methods.METHODS["enkg"]
    plan = method.plan(item, 400, 1.0, 3, {"tail": 0.4})
    whole = dataclasses.replace(plan.method, config=dataclasses.replace(plan.method.config, moves=1, draws=2, calls=2))
    memory, lines = method.memory, []
    for _, info in iterate(whole, item.forward, whole.init(member_normals(0, 0, plan.rows, (2,)))):
        memory, line = method.observe(memory, info, item.likelihood)
        lines.append(line)
    assert "step" in lines[0] and "r_hat" in lines[-1]
    assert tail.certificate({**lines[-1], "r_hat": None})[-1:] != [] and len(lines) == plan.waves


def test_a_share_that_cannot_be_is_named():
    item = _item()
    with pytest.raises(ValueError, match="tail: got 1.5, expected a share of the forward calls"):
        methods.METHODS["enkg"].plan(item, 600, 1.0, 0, {"tail": 1.5})
    with pytest.raises(ValueError, match="tail: got 0.5 without a reference of the prior"):
        methods.METHODS["enkg"].plan(dataclasses.replace(item, reference=None), 600, 1.0, 0, {"tail": 0.5})
    with pytest.raises(ValueError, match="tail: got 0.5 without a budget"):
        methods.METHODS["enkg"].plan(item, None, 1.0, 0, {"tail": 0.5})
