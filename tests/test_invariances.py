"""Invariances I1-I17 of the correction and of whole runs, and the one-step identities T9-T13.

Random ensembles, a non-linear psi (sine plus quadratic), dense noise covariance. No reference output is needed: each
property holds for every psi, so a sign, a transposed product or a wrong divisor breaks at least one of them.
"""

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from enkg_ref import Closures, Gaussian, Preset, State, constant, correct, frobenius, iterate, solve, trace
from enkg_ref.diffusion import edm_sigmas, euler_step
from enkg_ref.ensemble import anomalies, coefficients
from enkg_ref.extensions import guarded, lowrank
from enkg_ref.run.members import chunked

RULES = {"frobenius": frobenius, "trace": trace, "constant": constant}
NORMALISED = {"frobenius": frobenius, "trace": trace}


class Snapshot:
    """One update: particles X (J, d), predictions G (J, m) of a non-linear psi, data y, covariance gamma."""

    def __init__(self, seed, J=None, d=None, m=None, scale=1.0):
        rng = self.rng = np.random.default_rng(seed)
        sizes = [int(rng.integers(low, high)) for low, high in ((2, 41), (1, 31), (1, 21))]
        self.J, self.d, self.m = J or sizes[0], d or sizes[1], m or sizes[2]
        self.H = rng.standard_normal((self.d, self.m)) / math.sqrt(self.d)
        self.X = scale * rng.standard_normal((self.J, self.d))
        self.G = self.psi(self.X)
        self.y = rng.standard_normal(self.m)
        a = rng.standard_normal((self.m, self.m)) / math.sqrt(self.m)
        self.gamma = a @ a.T + 0.3 * np.eye(self.m)

    def psi(self, x):
        return np.sin(x @ self.H) + 0.3 * (x @ self.H) ** 2

    @property
    def residual(self):
        return Gaussian(self.y, self.gamma).residual

    def moved(self, rule, **changes):
        """X+ with some of X, G, y, gamma replaced."""
        v = {"X": self.X, "G": self.G, "y": self.y, "gamma": self.gamma} | changes
        return correct(v["X"], v["G"], Gaussian(v["y"], v["gamma"]).residual, rule)[0]


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def conditioned(rng, n, condition=100.0):
    """A random matrix with that condition number."""
    return orthogonal(rng, n) @ np.diag(np.geomspace(1.0, condition, n)) @ orthogonal(rng, n)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


seeds = st.integers(0, 2**32 - 1)
rules = st.sampled_from(sorted(RULES))
normalised = st.sampled_from(sorted(NORMALISED))
gammas = st.floats(0.05, 2.0)
ONCE = (Phase.explicit, Phase.generate)  # a case is a seed: there is nothing to shrink, and shrinking takes minutes
LONG = settings.get_current_profile_name() == "long"


def instances(count):
    return settings(max_examples=settings().max_examples if LONG else count, deadline=None, derandomize=not LONG,
                    database=None, phases=ONCE)


few, many = instances(120), instances(500)


def rule_of(name, gamma):
    """Constant steps are kept small enough not to blow the particles up, where rounding would be all there is."""
    return RULES[name](gamma if name != "constant" else 0.02 * gamma)


# ---------------------------------------------------------------------------------------------- I1-I8: transformations


@few
@given(seeds, rules, gammas)
def test_i1_the_order_of_the_particles_does_not_matter(seed, name, gamma):
    s = Snapshot(seed)
    order = s.rng.permutation(s.J)
    moved = s.moved(rule_of(name, gamma))
    assert distance(s.moved(rule_of(name, gamma), X=s.X[order], G=s.G[order]), moved[order]) <= 1e-13


@few
@given(seeds, rules, gammas)
def test_i2_an_affine_change_of_state_variables_commutes_with_the_correction(seed, name, gamma):
    s = Snapshot(seed)
    t, a = conditioned(s.rng, s.d), s.rng.standard_normal(s.d)
    moved = s.moved(rule_of(name, gamma))
    assert distance(s.moved(rule_of(name, gamma), X=s.X @ t.T + a), moved @ t.T + a) <= 1e-12


@few
@given(seeds, rules, gammas)
def test_i3_a_translation_of_the_state_by_a_million_costs_only_rounding(seed, name, gamma):
    s = Snapshot(seed)
    moved = s.moved(rule_of(name, gamma))
    far = s.moved(rule_of(name, gamma), X=s.X + 1e6)
    assert distance(far - 1e6, moved) <= 1e-9


@few
@given(seeds, rules, gammas)
def test_i4_an_orthogonal_change_of_observation_basis_does_not_matter(seed, name, gamma):
    s = Snapshot(seed)
    q, unit = orthogonal(s.rng, s.m), np.eye(s.m)
    moved = s.moved(rule_of(name, gamma), gamma=unit)
    assert distance(s.moved(rule_of(name, gamma), G=s.G @ q.T, y=q @ s.y, gamma=unit), moved) <= 1e-13


@few
@given(seeds, rules, gammas)
def test_i5_an_invertible_change_of_observation_basis_does_not_matter(seed, name, gamma):
    s = Snapshot(seed, m=6)
    a = conditioned(s.rng, s.m, 10.0)
    gamma_a = a @ s.gamma @ a.T
    moved = s.moved(rule_of(name, gamma))
    other = s.moved(rule_of(name, gamma), G=s.G @ a.T, y=a @ s.y, gamma=0.5 * (gamma_a + gamma_a.T))
    assert distance(other, moved) <= 1e-12


@few
@given(seeds, rules, gammas)
def test_i6_a_shift_of_predictions_and_data_does_not_matter(seed, name, gamma):
    s = Snapshot(seed)
    c = s.rng.standard_normal(s.m)
    assert distance(s.moved(rule_of(name, gamma), G=s.G + c, y=s.y + c), s.moved(rule_of(name, gamma))) <= 1e-12


@few
@given(seeds, normalised, gammas, st.sampled_from([1e-6, 0.25, 3.0, 1e6]))
def test_i7_normalised_steps_ignore_the_noise_level_and_the_units_of_the_data(seed, name, gamma, c):
    s = Snapshot(seed)
    moved = s.moved(RULES[name](gamma))
    assert distance(s.moved(RULES[name](gamma), gamma=c * s.gamma), moved) <= 1e-13
    assert distance(s.moved(RULES[name](gamma), G=c * s.G, y=c * s.y), moved) <= 1e-13


def test_i7_a_constant_step_does_see_the_noise_level():
    s = Snapshot(1, 24, 10, 6)
    assert distance(s.moved(constant(0.02), gamma=2.0 * s.gamma), s.moved(constant(0.02))) > 1e-3


@few
@given(seeds, normalised, gammas)
def test_i8_repeated_observations_change_nothing(seed, name, gamma):
    s = Snapshot(seed)
    twice = np.block([[s.gamma, np.zeros_like(s.gamma)], [np.zeros_like(s.gamma), s.gamma]])
    doubled = s.moved(RULES[name](gamma), G=np.hstack([s.G, s.G]), y=np.tile(s.y, 2), gamma=twice)
    assert distance(doubled, s.moved(RULES[name](gamma))) <= 1e-13


@few
@given(seeds, rules, gammas)
def test_i8_an_observation_that_no_particle_disagrees_about_changes_nothing(seed, name, gamma):
    s = Snapshot(seed)
    one = np.zeros((s.m + 1, s.m + 1))
    one[:-1, :-1], one[-1, -1] = s.gamma, 0.7
    more = s.moved(rule_of(name, gamma), G=np.hstack([s.G, np.full((s.J, 1), 4.0)]), y=np.append(s.y, -1.0), gamma=one)
    assert distance(more, s.moved(rule_of(name, gamma))) <= 1e-13


# ------------------------------------------------------------------------------------------------ I9-I14: the ensemble


@few
@given(seeds, rules, gammas)
def test_i9_a_replicated_ensemble_moves_as_the_single_one(seed, name, gamma):
    s = Snapshot(seed)
    alone, record = correct(s.X, s.G, s.residual, rule_of(name, gamma))
    both, twice = correct(np.tile(s.X, (2, 1)), np.tile(s.G, (2, 1)), s.residual, rule_of(name, gamma))
    assert distance(both[:s.J], alone) <= 1e-13
    assert distance(both[s.J:], both[:s.J]) <= 1e-14
    assert float(twice.step) == pytest.approx(float(record.step), rel=1e-12)


@few
@given(seeds, rules, gammas)
def test_i10_particles_move_in_the_span_of_the_anomalies(seed, name, gamma):
    s = Snapshot(seed, J=5, d=40)
    displacement = s.moved(rule_of(name, gamma)) - s.X
    span = np.linalg.qr(anomalies(s.X)[:4].T)[0]
    assert np.linalg.norm(displacement - displacement @ span @ span.T) <= 1e-12 * np.linalg.norm(s.X)
    assert np.linalg.norm(displacement) > 1e-6 * np.linalg.norm(s.X)
    assert np.linalg.matrix_rank(anomalies(s.X + displacement), tol=1e-10) <= 4


@few
@given(seeds)
def test_i11_coefficients_annihilate_constants_and_are_symmetric_up_to_the_mean(seed):
    s = Snapshot(seed)
    k = coefficients(s.residual(s.G), anomalies(s.G))
    size = np.linalg.norm(k)
    assert np.linalg.norm(k @ np.ones(s.J)) <= 1e-13 * size * math.sqrt(s.J)
    assert distance(k @ anomalies(s.X), k @ s.X) <= 1e-13
    pk = k - k.mean(axis=0)
    assert np.linalg.norm(pk - pk.T) <= 1e-13 * size
    assert np.linalg.eigvalsh(0.5 * (pk + pk.T))[0] >= -1e-13 * size


def test_i11_symmetry_needs_an_affine_residual():
    s = Snapshot(2, 24, 10, 6)
    k = coefficients(Closures(s.y, 0.3, np.ones(6, bool)).residual(3.0 * s.G), anomalies(3.0 * s.G))
    pk = k - k.mean(axis=0)
    assert np.linalg.norm(pk - pk.T) > 0.1 * np.linalg.norm(pk)


@many
@given(seeds, st.booleans())
def test_i12_the_form_without_coefficients_is_the_same_update(seed, angles):
    s = Snapshot(seed)
    likelihood = Closures(s.y, 0.5, s.y > 0) if angles else Gaussian(s.y, s.gamma)
    k, z = coefficients(likelihood.residual(s.G), anomalies(s.G)), anomalies(s.X)
    w = 1.3 / np.linalg.norm(k)
    moved, (step, norm, trace_of_k) = lowrank(s.X, s.G, likelihood.residual, frobenius(1.3))
    pairwise, record = correct(s.X, s.G, likelihood.residual, frobenius(1.3))
    assert float(norm) == pytest.approx(np.linalg.norm(k), rel=1e-12)
    assert float(step) == pytest.approx(w, rel=1e-12) and float(trace_of_k) == float(record.trace)
    assert distance(moved, pairwise) <= 1e-12
    assert distance(moved, s.X - w * k @ z) <= 1e-12


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 2e-5)])
def test_i12_the_norm_stays_exact_when_the_mean_residual_hides_the_anomalies(dtype, tolerance):
    # the mean is far off in one direction, the ensemble spreads a little in another; sum((R'R)*(B'B)) loses all digits
    worst = 0.0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        m, spread = 4, 10.0 ** rng.uniform(-6 if dtype == "float64" else -3, -1)
        g = np.zeros((40, m)) + rng.standard_normal(m)
        g[:, 1] += spread * rng.standard_normal(40)
        q = orthogonal(rng, m)
        residual = Gaussian((g.mean(axis=0) - 10.0 * np.eye(m)[0]) @ q).residual
        g = (g @ q).astype(dtype)
        _, record = guarded(lowrank)(rng.standard_normal((40, 3)).astype(dtype), g, residual, frobenius(1.0))
        if float(record.step) == 0.0:
            continue
        k = coefficients(residual(g).astype(float), anomalies(g).astype(float))
        worst = max(worst, abs(float(record.norm) / np.linalg.norm(k) - 1.0))
    assert 0.0 < worst <= tolerance


@few
@given(seeds, st.floats(-2.0, 3.0))
def test_i13_at_a_fixed_step_the_displacement_is_affine_in_the_data(seed, t):
    s = Snapshot(seed)
    other = s.rng.standard_normal(s.m)
    w = constant(0.02)
    moved, moved_other = s.moved(w), s.moved(w, y=other)
    between = s.moved(w, y=(1.0 - t) * s.y + t * other)
    assert distance(between, (1.0 - t) * moved + t * moved_other) <= 1e-12


@few
@given(seeds)
def test_i13_the_mean_moves_by_the_mean_residual_only(seed):
    s = Snapshot(seed)
    z, b = anomalies(s.X), anomalies(s.G)
    gain = (z.T @ b / s.J) @ np.linalg.inv(s.gamma)
    expected = s.X.mean(axis=0) - 0.02 * gain @ (s.G.mean(axis=0) - s.y)
    error = np.linalg.norm(s.moved(constant(0.02)).mean(axis=0) - expected)
    assert error <= 1e-12 * (np.linalg.norm(expected) + np.linalg.norm(s.X) / math.sqrt(s.J))


@many
@given(seeds, st.floats(0.01, 5.0), st.booleans(), st.sampled_from([0.1, 1.0, 10.0]))
def test_i14_the_frobenius_step_stays_in_its_trust_region(seed, gamma, angles, scale):
    s = Snapshot(seed, scale=scale)
    residual = Closures(s.y, 0.5, s.y > 0).residual if angles else s.residual  # any callback (Corollary 3)
    moved, _ = correct(s.X, s.G, residual, frobenius(gamma))
    bound = gamma * np.linalg.norm(anomalies(s.X), 2)
    assert np.linalg.norm(moved - s.X) <= (1.0 + 1e-12) * bound + 1e-14 * np.linalg.norm(s.X)


# ------------------------------------------------------------------------------------------ one-step identities T9-T13


@many
@given(seeds, st.sampled_from(sorted(NORMALISED)), gammas, st.sampled_from([0.1, 1.0, 10.0]))
def test_t9_to_t13_hold_for_every_psi(seed, name, gamma, scale):
    s = Snapshot(seed, scale=scale)
    X, (moved, record) = s.X, correct(s.X, s.G, s.residual, RULES[name](gamma))
    w, J = float(record.step), s.J
    Z, B, ginv = X - X.mean(axis=0), s.G - s.G.mean(axis=0), np.linalg.inv(s.gamma)
    ebar = s.G.mean(axis=0) - s.y
    Cxx, Cxy, Cyy, S = Z.T @ Z / J, Z.T @ B / J, B.T @ B / J, B @ ginv @ B.T / J
    V = np.trace(Cxx)
    pairs = sum(np.sum((X - row) ** 2) for row in X) / J**2
    assert pairs == pytest.approx(2.0 * V, rel=1e-13)  # (T9)
    Z_new = moved - moved.mean(axis=0)
    size = np.linalg.norm(X)
    assert np.linalg.norm(Z_new - (Z - w * S @ Z)) <= 1e-13 * size  # (T10)
    step = w * Cxy @ ginv @ ebar
    assert np.linalg.norm(moved.mean(axis=0) - (X.mean(axis=0) - step)) <= 1e-13 * size  # (T11)
    gain = np.trace(Cxy @ ginv @ Cxy.T)
    V_new = np.sum(Z_new**2) / J
    predicted = V - 2.0 * w * gain + w**2 * np.trace(Cxy @ ginv @ Cyy @ ginv @ Cxy.T)
    assert abs(V_new - predicted) <= 1e-13 * V  # (T12)
    assert V_new <= V * (1.0 + 1e-13)  # Corollary 2, gamma <= 2
    white = np.linalg.cholesky(ginv)
    Cw = white.T @ Cyy @ white
    norm2 = np.sum(Cw**2) + ebar @ ginv @ Cyy @ ginv @ ebar
    assert float(record.norm) ** 2 == pytest.approx(norm2, rel=1e-11)  # (T13)
    assert float(record.trace) == pytest.approx(np.trace(Cw), rel=1e-11)
    assert np.linalg.eigvalsh(S)[-1] <= float(record.norm) * (1.0 + 1e-12)


@few
@given(seeds, rules, gammas)
def test_for_an_affine_map_the_correction_is_the_preconditioned_gradient_step(seed, name, gamma):
    s = Snapshot(seed)
    c = s.rng.standard_normal(s.m)
    G = s.X @ s.H + c
    moved, record = correct(s.X, G, s.residual, rule_of(name, gamma))
    z = anomalies(s.X)
    gradient = (G - s.y) @ np.linalg.inv(s.gamma) @ s.H.T
    expected = s.X - float(record.step) * gradient @ (z.T @ z / s.J)
    assert distance(moved, expected) <= 1e-12


# ------------------------------------------------------------------------------------------------- I15-I17: whole runs


@few
@given(seeds, st.floats(1e-3, 80.0), st.floats(0.0, 1.0))
def test_i15_the_predictor_is_a_convex_combination(seed, sigma, ratio):
    rng = np.random.default_rng(seed)
    x, d = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    moved = euler_step(x, d, sigma, ratio * sigma)
    assert np.all(moved <= np.maximum(x, d) + 1e-14) and np.all(moved >= np.minimum(x, d) - 1e-14)
    assert np.max(np.abs(moved - (x + (ratio * sigma - sigma) * (x - d) / sigma))) <= 1e-14
    assert np.array_equal(euler_step(x, d, sigma, 0.0), d)


CENTRE = np.array([0.3, -0.7, 1.1])


def denoise(x, sigma):
    return CENTRE + (x - CENTRE) / (1.0 + sigma * sigma) + 0.1 * np.sin(x) / (1.0 + sigma)


def forward(x):
    return np.stack([np.sin(x[:, 0]) + x[:, 1], x[:, 2] + 0.2 * x[:, 0] ** 2], axis=1)


LIKELIHOOD = Gaussian([0.5, -0.4], [[0.3, 0.1], [0.1, 0.5]])
NOISE = np.random.default_rng(40).standard_normal((12, 3))


def method(denoise=denoise, likelihood=LIKELIHOOD, **more):
    settings = {"steps": 12, "updates": 2, "window": (1, 10), "guidance": 0.6, "sigma_max": 10.0} | more
    return Preset().but(**settings).method(denoise, likelihood)


def plain_euler(noise):
    """The unguided sampler, written out."""
    sigmas = edm_sigmas(12, 10.0)
    x = sigmas[0] * noise
    for here, following in zip(sigmas, sigmas[1:]):
        x = euler_step(x, denoise(x, here), here, following)
    return x


@pytest.mark.parametrize("off", [{"guidance": 0.0}, {"window": (1, 0)}])
def test_i16_without_guidance_every_particle_is_a_plain_sample_of_its_own(off):
    whole = solve(method(**off), forward, NOISE).x
    assert np.array_equal(whole, plain_euler(NOISE))
    for J in (2, 5):
        fewer = solve(method(**off), forward, NOISE[:J]).x
        assert np.array_equal(fewer, whole[:J])
    guided = solve(method(), forward, NOISE).x
    assert distance(guided, whole) > 0.01


@pytest.mark.parametrize("size", [1, 5, 7, 12, 64])
def test_i17_the_chunk_size_of_denoiser_and_forward_model_does_not_matter(size):
    whole = solve(method(), forward, NOISE).x
    assert distance(solve(method(chunked(denoise, size)), chunked(forward, size), NOISE).x, whole) <= 1e-12


def test_i17_holds_where_chunks_change_the_rounding_of_matrix_products():
    rng = np.random.default_rng(41)
    t, h = np.eye(40) + 0.02 * rng.standard_normal((40, 40)), rng.standard_normal((40, 5)) / 6.0
    maps = (lambda x, s: (x @ t) / (1.0 + s * s)), (lambda x: np.tanh(x @ h))
    noise = rng.standard_normal((30, 40))
    weak = {"likelihood": Gaussian(np.zeros(5)), "guidance": 0.3, "updates": 1}
    whole = solve(method(maps[0], **weak), maps[1], noise).x
    parts = solve(method(chunked(maps[0], 7), **weak), chunked(maps[1], 4), noise).x
    assert distance(parts, whole) <= 1e-12


def test_i1_and_i2_hold_for_whole_runs():
    rng = np.random.default_rng(42)
    whole = solve(method(), forward, NOISE).x
    order = rng.permutation(12)
    assert distance(solve(method(), forward, NOISE[order]).x, whole[order]) <= 1e-11
    q = orthogonal(rng, 3)  # x' = q x; the noise stays isotropic
    turned = method(lambda x, s: denoise(x @ q, s) @ q.T)
    assert distance(solve(turned, lambda x: forward(x @ q), NOISE @ q.T).x, whole @ q.T) <= 1e-11


@pytest.mark.parametrize("window", [(1, 11), (4, 9), (6, 6)])
def test_the_order_of_the_loop_is_bitwise_immaterial_inside_the_ends(window):
    # the paper's loop, predict then correct, written with the library's own steps
    run = method(window=window)
    x = run.sigmas[0] * NOISE
    for i in range(12):
        x = euler_step(x, denoise(x, run.sigmas[i]), run.sigmas[i], run.sigmas[i + 1])
        if window[0] <= i + 1 <= window[1]:
            for update in range(2):
                g = forward(run.ask(State(x=x, level=i + 1, update=update)))
                x, _ = correct(x, g, LIKELIHOOD.residual, frobenius(0.6))
    assert np.array_equal(x, solve(run, forward, NOISE).x)


def test_a_run_is_deterministic_and_mutates_nothing():
    noise = NOISE.copy()
    noise.flags.writeable = False
    run = method()
    first = [state.x.copy() for state, _ in iterate(run, forward, run.init(noise))]
    second = [state.x for state, _ in iterate(run, forward, run.init(noise))]
    assert all(np.array_equal(a, b) for a, b in zip(first, second)) and len(first) == 20
