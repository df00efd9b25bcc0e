"""Exact denoisers (O1)-(O6): limits, Jacobians, flow, back-ends, and their ONNX files against the array functions."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_priors.gaussian import GaussianPrior
from onnx_priors.mixture import MixturePrior

STRICTEST_EXTENSIONS = ("fft",)

SIGMAS = (0.002, 0.05, 0.3, 1.0, 7.0, 80.0)
D = 12


def covariance(rng, d=D, rank=None):
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    variances = np.geomspace(4.0, 1e-3, d)
    if rank is not None:
        variances[rank:] = 0.05
    return (basis * variances) @ basis.T, variances, basis.T


def gaussians():
    rng = np.random.default_rng(1)
    mean = rng.standard_normal(D)
    full, _, _ = covariance(rng)
    _, variances, rows = covariance(rng, rank=4)
    return {
        "full": GaussianPrior.from_covariance(mean, full),
        "low rank": GaussianPrior(mean, variances[:4], rows[:4], rest=0.05),
        "diagonal": GaussianPrior(mean, np.geomspace(4.0, 1e-3, D)),
        "white": GaussianPrior(mean, 0.49),
    }


def mixtures():
    rng = np.random.default_rng(2)
    means = rng.standard_normal((5, D))
    weights = np.array([0.1, 0.3, 0.2, 0.15, 0.25])
    return {
        "isotropic": MixturePrior(weights, means, np.array([0.3, 0.05, 0.2, 0.4, 0.1]) ** 2),
        "equal": MixturePrior(weights, means, 0.3**2),
        "diagonal": MixturePrior(weights, means, rng.uniform(0.01, 0.5, (5, D))),
        "full": MixturePrior.from_covariances(weights, means, [covariance(rng)[0] for _ in range(5)]),
    }


PRIORS = {**{f"gaussian {k}": p for k, p in gaussians().items()}, **{f"mixture {k}": p for k, p in mixtures().items()}}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]


def noisy(prior, sigma, J=6, seed=0):
    rng = np.random.default_rng(seed)
    x0 = prior.sample(rng, J)
    return x0 + sigma * rng.standard_normal(x0.shape)


def jacobian(prior, x, sigma):
    """J_D of one row by central differences, (d, d) with columns along the input."""
    h = 1e-4 * max(sigma, 0.1)
    steps = h * np.eye(x.size)
    return ((prior.denoise(x + steps, sigma) - prior.denoise(x - steps, sigma)) / (2 * h)).T


def literal_mixture_denoiser(weights, means, covariances, x, sigma):
    """(O4) of one point, term by term with matrix inverses."""
    logs, posterior_means = [], []
    for pi, mu, C in zip(weights, means, covariances):
        v = C + sigma**2 * np.eye(len(x))
        logs.append(np.log(pi) - 0.5 * (x - mu) @ np.linalg.inv(v) @ (x - mu) - 0.5 * np.linalg.slogdet(v)[1])
        posterior_means.append(mu + C @ np.linalg.inv(v) @ (x - mu))
    r = np.exp(np.array(logs) - max(logs))
    return (r / r.sum()) @ np.array(posterior_means)


def test_gaussian_denoiser_is_the_conditional_mean_of_the_joint_gaussian():
    rng = np.random.default_rng(3)
    C, variances, rows = covariance(rng, rank=4)
    mean, x = rng.standard_normal(D), rng.standard_normal((5, D))
    for sigma in SIGMAS:
        wanted = mean + (x - mean) @ np.linalg.inv(C + sigma**2 * np.eye(D)) @ C
        for prior in (GaussianPrior.from_covariance(mean, C), GaussianPrior(mean, variances[:4], rows[:4], rest=0.05)):
            np.testing.assert_allclose(prior.denoise(x, sigma), wanted, atol=1e-9)


def test_mixture_denoiser_equals_the_literal_sum_over_components():
    rng = np.random.default_rng(4)
    weights, means = np.array([0.5, 0.2, 0.3]), rng.standard_normal((3, D))
    covariances = [covariance(rng)[0] for _ in range(3)]
    prior = MixturePrior.from_covariances(weights, means, covariances)
    isotropic = MixturePrior(weights, means, np.array([0.2, 0.3, 0.1]))
    for sigma in SIGMAS[1:]:
        x = noisy(prior, sigma)
        wanted = [literal_mixture_denoiser(weights, means, covariances, row, sigma) for row in x]
        np.testing.assert_allclose(prior.denoise(x, sigma), wanted, atol=1e-9)
        wanted = [literal_mixture_denoiser(weights, means, [t2 * np.eye(D) for t2 in (0.2, 0.3, 0.1)], row, sigma)
                  for row in x]
        np.testing.assert_allclose(isotropic.denoise(x, sigma), wanted, atol=1e-9)


def test_mixture_with_one_component_is_the_gaussian():
    rng = np.random.default_rng(5)
    C, _, _ = covariance(rng)
    mean, x, v = rng.standard_normal(D), rng.standard_normal((4, D)), rng.standard_normal((4, D))
    gaussian, mixture = GaussianPrior.from_covariance(mean, C), MixturePrior.from_covariances([1.0], mean[None], [C])
    white, isotropic = GaussianPrior(mean, 0.3), MixturePrior([2.0], mean[None], 0.3)
    for sigma in SIGMAS:
        for one, other in ((gaussian, mixture), (white, isotropic)):
            for a, b in zip(one.denoise_vjp(x, sigma, v), other.denoise_vjp(x, sigma, v)):
                np.testing.assert_allclose(a, b, atol=1e-9)


def test_isotropic_diagonal_and_full_forms_of_one_mixture_agree():
    rng = np.random.default_rng(6)
    weights, means, t2 = rng.uniform(1, 2, 4), rng.standard_normal((4, D)), np.array([0.01, 0.2, 0.04, 0.5])
    forms = (MixturePrior(weights, means, t2), MixturePrior(weights, means, np.repeat(t2[:, None], D, 1)),
             MixturePrior.from_covariances(weights, means, [t * np.eye(D) for t in t2]))
    for sigma in SIGMAS:
        x, v = noisy(forms[0], sigma), rng.standard_normal((6, D))
        outputs = [form.denoise_vjp(x, sigma, v) for form in forms]
        for other in outputs[1:]:
            np.testing.assert_allclose(other[0], outputs[0][0], atol=1e-9)
            np.testing.assert_allclose(other[1], outputs[0][1], atol=1e-8)


def test_denoiser_tends_to_x_at_small_noise_and_to_the_mean_at_large_noise(prior):
    x = noisy(prior, 0.0)
    mean = prior.mean if isinstance(prior, GaussianPrior) else np.exp(prior._log_weights) @ prior._means
    assert prior.denoise(x, 0.0) is x
    # |D - x| <= sigma^2 |score|, and every score here is below 1e4; |D - mean| <= |Cov| |x| / sigma^2.
    assert np.max(np.abs(prior.denoise(x, 1e-7) - x)) < 1e-9
    assert np.max(np.abs(prior.denoise(x, 1e6) - mean)) < 1e-9


def test_modes_without_variance_denoise_to_the_mean():
    prior = GaussianPrior(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    np.testing.assert_allclose(prior.denoise(np.array([[5.0, 2.0]]), 1e-3), [[1.0, 2.0]], atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_vjp_is_the_jacobian_by_central_differences_symmetric_and_positive(prior, sigma):
    x = noisy(prior, sigma, J=1)
    rows = np.repeat(x, D, axis=0)
    D_rows, J_D = prior.denoise_vjp(rows, sigma, np.eye(D))
    np.testing.assert_allclose(D_rows[:1], prior.denoise(x, sigma), atol=1e-12)
    np.testing.assert_allclose(J_D, jacobian(prior, x, sigma), atol=2e-7 * max(1.0, np.max(np.abs(J_D))))
    np.testing.assert_allclose(J_D, J_D.T, atol=1e-9)
    assert np.linalg.eigvalsh(J_D)[0] > -1e-9


def test_jacobian_times_noise_variance_is_the_covariance_of_the_posterior():
    # Second-order Tweedie (O6) against the law of total covariance of the posterior mixture, written with inverses.
    rng = np.random.default_rng(7)
    weights, means = np.array([0.4, 0.6]), 0.5 * rng.standard_normal((2, 4))
    covariances = [covariance(rng, 4)[0] for _ in range(2)]
    prior, sigma, x = MixturePrior.from_covariances(weights, means, covariances), 0.7, rng.standard_normal(4)
    v = [C + sigma**2 * np.eye(4) for C in covariances]
    r = np.array([w * np.exp(-0.5 * (x - m) @ np.linalg.solve(V, x - m)) / np.sqrt(np.linalg.det(V))
                  for w, m, V in zip(weights, means, v)])
    r /= r.sum()
    m = np.array([mu + C @ np.linalg.solve(V, x - mu) for mu, C, V in zip(means, covariances, v)])
    S = [np.linalg.inv(np.linalg.inv(C) + np.eye(4) / sigma**2) for C in covariances]
    D_x = r @ m
    total = sum(rk * (Sk + np.outer(mk - D_x, mk - D_x)) for rk, Sk, mk in zip(r, S, m))
    J_D = prior.denoise_vjp(np.repeat(x[None], 4, 0), sigma, np.eye(4))[1]
    np.testing.assert_allclose(J_D * sigma**2, total, atol=1e-9)


@pytest.mark.parametrize("kind", gaussians())
@pytest.mark.parametrize(("order", "steps"), [(1, (400, 800)), (2, (100, 200))])
def test_euler_flow_converges_to_the_exact_flow_with_order_one_and_heun_with_two(kind, order, steps):
    prior = gaussians()[kind]
    high, low = 5.0, 0.2  # smooth grid that ends above zero, so that the order is visible
    x = noisy(prior, high)
    errors = []
    for n in steps:
        sigmas = (high ** (1 / 7) + np.arange(n + 1) / n * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        z = x
        for s, t in zip(sigmas[:-1], sigmas[1:]):
            slope = (z - prior.denoise(z, s)) / s
            euler = z + (t - s) * slope
            z = euler if order == 1 else z + (t - s) * 0.5 * (slope + (euler - prior.denoise(euler, t)) / t)
        errors.append(np.max(np.abs(z - prior.flow(x, high, low))))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


def test_flow_composes_and_ends_in_the_prior_distribution():
    prior = gaussians()["low rank"]
    x = noisy(prior, 3.0)
    np.testing.assert_allclose(prior.flow(prior.flow(x, 3.0, 0.4), 0.4), prior.flow(x, 3.0), atol=1e-12)
    np.testing.assert_allclose(prior.flow(prior.flow(x, 3.0, 0.4), 0.4, 3.0), x, atol=1e-12)
    # F (C + s^2) F^T = C for the linear part F of the flow.
    F = (prior.flow(np.eye(D), 3.0) - prior.flow(np.zeros((D, D)), 3.0)).T
    C = (prior.denoise(np.eye(D), 1.0) - prior.denoise(np.zeros((D, D)), 1.0)).T
    C = np.linalg.solve(np.eye(D) - C, C)  # from S = C (C + 1)^-1
    np.testing.assert_allclose(F @ (C + 9.0 * np.eye(D)) @ F.T, C, atol=1e-9)


def test_samples_have_the_moments_of_the_prior():
    n = 40_000
    for prior in (gaussians()["low rank"], mixtures()["full"], mixtures()["equal"]):
        draws = prior.sample(np.random.default_rng(8), n)
        sigma = 1e4  # at huge noise sigma^2 J_D is the prior covariance and D the prior mean
        mean, J_D = prior.denoise_vjp(np.zeros((D, D)), sigma, np.eye(D))
        covariance = sigma**2 * J_D
        error = np.sqrt(np.diag(covariance) / n)
        assert np.all(np.abs(draws.mean(0) - mean[0]) < 5 * error)
        sd = np.sqrt(np.diag(covariance))
        assert np.max(np.abs(np.cov(draws.T) - covariance) / np.outer(sd, sd)) < 5 * np.sqrt(3 / n)


def test_gaussian_samples_do_not_depend_on_the_size_of_the_ensemble():
    prior = gaussians()["full"]
    few, many = (prior.sample(np.random.default_rng(9), J) for J in (3, 8))
    np.testing.assert_allclose(many[:3], few, atol=1e-12)


@pytest.mark.parametrize("prior", ["gaussian low rank", "gaussian diagonal", "mixture isotropic", "mixture full"],
                         indirect=True)
def test_every_backend_computes_what_numpy_computes_and_keeps_dtype_and_device(backend, prior):
    from array_api_compat import device

    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-4)):
        if dtype == "float64" and not backend.float64:
            continue
        sigma = np.float64(0.3)  # a numpy scalar must not promote
        x_host, v_host = noisy(prior, sigma).astype(dtype), noisy(prior, 1.0, seed=1).astype(dtype)
        x, v = backend.array(x_host, dtype), backend.array(v_host, dtype)
        wanted = prior.denoise_vjp(x_host.astype("float64"), float(sigma), v_host.astype("float64"))
        outputs = (prior.denoise(x, sigma), *prior.denoise_vjp(x, sigma, v))
        for out, want in zip(outputs, (wanted[0], *wanted)):
            assert out.dtype == x.dtype and device(out) == device(x)
            np.testing.assert_allclose(backend.numpy(out), want, atol=tolerance * max(1.0, np.max(np.abs(want))))
        np.testing.assert_array_equal(backend.numpy(x), x_host)
        if isinstance(prior, GaussianPrior):
            out = prior.flow(x, sigma, 0.1)
            assert out.dtype == x.dtype and device(out) == device(x)
            want = prior.flow(x_host.astype("float64"), float(sigma), 0.1)
            np.testing.assert_allclose(backend.numpy(out), want, atol=tolerance)


@pytest.mark.parametrize("storage", ["float64", "float32"])
def test_onnx_files_equal_the_array_functions(prior, storage, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP

    prior.to_onnx(tmp_path / "d.onnx", storage=storage)
    prior.to_onnx(tmp_path / "v.onnx", {"sigma_max": 100.0, "data": "none"}, vjp=True, storage=storage)
    denoise, denoise_vjp = OnnxDenoiser(tmp_path / "d.onnx"), OnnxDenoiserVJP(tmp_path / "v.onnx")
    assert denoise_vjp.metadata["data"] == "none" and denoise_vjp.sigma_max == 100.0
    for sigma in map(np.float32, SIGMAS):  # as the file will see it
        x, v = noisy(prior, sigma).astype(np.float32), noisy(prior, 0.0, seed=1).astype(np.float32)
        want_d, want_v = prior.denoise_vjp(x.astype(np.float64), float(sigma), v.astype(np.float64))
        got = denoise(x, sigma), *denoise_vjp(x, sigma, v)
        # The scale is that of x (and of D, v), O(1) except for the tails; 2e-7 is the rounding of the output.
        for out, want in zip(got, (want_d, want_d, want_v)):
            tolerance = (2e-7 if storage == "float64" else 2e-5) * max(1.0, np.max(np.abs(want)))
            np.testing.assert_allclose(out, want, rtol=0, atol=tolerance)


def test_a_mixture_of_all_training_points_survives_the_round_trip_through_onnx(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_priors.session import OnnxDenoiser

    rng = np.random.default_rng(10)
    points = rng.uniform(0, 1, (600, 8, 8))
    prior = MixturePrior(np.ones(600), points, 0.05**2)
    prior.to_onnx(tmp_path / "points.onnx")
    denoise = OnnxDenoiser(tmp_path / "points.onnx")
    for sigma in map(np.float32, SIGMAS):
        x = noisy(prior, sigma).astype(np.float32)
        wanted = prior.denoise(x.astype(np.float64), float(sigma))
        np.testing.assert_allclose(denoise(x, sigma), wanted, rtol=0, atol=2e-7)


def test_float32_storage_halves_the_file(tmp_path):
    pytest.importorskip("onnx")
    d = 64
    prior = GaussianPrior.from_covariance(np.zeros(d), covariance(np.random.default_rng(11), d)[0])
    sizes = []
    for storage in ("float64", "float32"):
        prior.to_onnx(tmp_path / "g.onnx", storage=storage)
        sizes.append((tmp_path / "g.onnx").stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(4 * d * d, abs=200)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: GaussianPrior(np.zeros(3), np.array([1.0, -1.0, 1.0])), "variances: got -1 to 1, expected finite"),
    (lambda: GaussianPrior(np.zeros(3), [1.0], np.ones((1, 3))), "modes: got vectors that are not orthonormal"),
    (lambda: GaussianPrior(np.zeros(3), [1.0], np.eye(3)), r"variances: got shape \(1,\), expected \(3,\)"),
    (lambda: GaussianPrior.from_covariance(np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "covariance: got an eigenvalue -1,"),
    (lambda: MixturePrior([1.0, 0.0], np.zeros((2, 3)), 1.0), r"weights: got shape \(2,\), expected 2 positive"),
    (lambda: gaussians()["white"].denoise(np.zeros((2, 5)), 1.0), r"x: got shape \(2, 5\), expected \(J, 12\)"),
    (lambda: gaussians()["white"].denoise(np.zeros((2, D), dtype=int), 1.0), "x: got dtype int64, expected"),
    (lambda: gaussians()["white"].denoise(np.zeros((2, D)), -1.0), "sigma: got -1.0, expected a finite"),
    (lambda: gaussians()["white"].flow(np.zeros((2, D)), 0.0, 1.0), "sigma: got 0, where modes"),
])
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_that_the_stationary_gaussian_is_the_gaussian_of_its_circulant_covariance(backend):
    n, rng = 6, np.random.default_rng(3)
    spectrum = rng.uniform(0.1, 2.0, (n, n // 2 + 1))
    spectrum[:, [0, -1]] = (spectrum[:, [0, -1]] + spectrum[:, [0, -1]][-np.arange(n) % n]) / 2  # of a real covariance
    mean = rng.standard_normal((n, n))
    impulses = np.eye(n * n).reshape(-1, n, n)
    covariance = np.fft.irfft2(spectrum * np.fft.rfft2(impulses), s=(n, n)).reshape(n * n, n * n)
    dense, fast = GaussianPrior.from_covariance(mean, covariance), GaussianPrior.stationary(mean, spectrum)
    x, v = rng.standard_normal((2, 4, n, n))
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 2e-6)
    for sigma in (0.0, *SIGMAS):
        denoised, pulled = fast.denoise_vjp(backend.array(x, dtype), sigma, backend.array(v, dtype))
        expected = dense.denoise_vjp(x, sigma, v)
        assert np.abs(backend.numpy(denoised) - expected[0]).max() < tolerance * np.abs(x).max()
        assert np.abs(backend.numpy(pulled) - expected[1]).max() < tolerance * np.abs(v).max()


def test_that_a_spectrum_of_another_shape_sign_or_symmetry_is_refused():
    lopsided = np.ones((4, 3))
    lopsided[1, 0] = 2.0
    for spectrum, message in ((np.ones((4, 4)), r"spectrum: got shape \(4, 4\)"),
                              (-np.ones((4, 3)), "variances: got -1"),
                              (lopsided, "spectrum: got different values for the wave numbers k and -k")):
        with pytest.raises(ValueError, match=message):
            GaussianPrior.stationary(np.zeros((4, 4)), spectrum)


def stationary(shape, seed=4):
    """A stationary Gaussian on a periodic grid: the spectrum of a real covariance, no variance in its constant."""
    rng = np.random.default_rng(seed)
    power = np.abs(np.fft.fftn(rng.standard_normal(shape))) ** 2 / 10
    power.flat[0] = 0.0
    return GaussianPrior.stationary(rng.standard_normal(shape), power[..., : shape[-1] // 2 + 1])


@pytest.mark.parametrize("shape", [(7,), (8,), (5, 6), (6, 5), (4, 4)])
def test_the_cosines_and_sines_of_a_stationary_gaussian_diagonalise_its_covariance(shape):
    prior = stationary(shape)
    d = int(np.prod(shape))
    mean, V, variances, rest = prior.principal()
    np.testing.assert_allclose(V.T @ V, np.eye(d), atol=1e-12)
    assert rest == 0.0 and np.all(np.diff(variances) <= 0.0)
    C = GaussianPrior.from_covariance(mean, (V * variances) @ V.T)
    x, v = noisy(prior, 1.0), noisy(prior, 1.0, seed=1)
    np.testing.assert_allclose(prior.denoise_vjp(x, 0.7, v), C.denoise_vjp(x, 0.7, v), atol=1e-12)
    np.testing.assert_allclose(prior.flow(x, 2.0, 0.1), C.flow(x, 2.0, 0.1), atol=1e-12)
    np.testing.assert_allclose(prior.sample(np.random.default_rng(0), 3), C.sample(np.random.default_rng(0), 3),
                               atol=1e-7)  # roots of variances that are zero up to 1e-16
    assert prior.total_variance == pytest.approx(C.total_variance) and prior.std == pytest.approx(C.std)


@pytest.mark.parametrize("shape", [(8,), (7,), (6, 8), (5, 7)])
def test_the_file_of_a_stationary_gaussian_equals_its_array_functions(shape, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_priors.session import OnnxDenoiserVJP

    prior = stationary(shape)
    prior.to_onnx(tmp_path / "v.onnx", vjp=True)
    run = OnnxDenoiserVJP(tmp_path / "v.onnx")
    for sigma in map(np.float32, SIGMAS):
        x, v = noisy(prior, sigma).astype(np.float32), noisy(prior, 1.0, seed=1).astype(np.float32)
        wanted = prior.denoise_vjp(x.astype(np.float64), float(sigma), v.astype(np.float64))
        for out, want in zip(run(x, sigma, v), wanted):
            np.testing.assert_allclose(out, want, rtol=0, atol=2e-7 * max(1.0, np.max(np.abs(want))))


@pytest.mark.parametrize("kind", gaussians())
def test_principal_components_keep_the_variance_and_spread_what_is_left_evenly(kind):
    prior = gaussians()[kind]
    C = 1e12 * prior.denoise_vjp(np.zeros((D, D)), 1e6, np.eye(D))[1]  # sigma^2 J_D at huge noise
    values = np.linalg.eigvalsh(C)[::-1]
    mean, V, variances, rest = prior.principal(3)
    np.testing.assert_allclose(variances, values[:3], rtol=1e-8)
    np.testing.assert_allclose(V.T @ C @ V, np.diag(values[:3]), atol=1e-8)
    assert rest == pytest.approx(values[3:].mean(), rel=1e-8)
    assert np.array_equal(mean, prior.mean) and prior.total_variance == pytest.approx(values.sum(), rel=1e-8)


def cosines(shape, seed=5):
    rng = np.random.default_rng(seed)
    return GaussianPrior.cosines(rng.standard_normal(shape), rng.uniform(0.0, 2.0, shape))


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 6)])
def test_that_a_gaussian_in_cosines_is_that_of_its_dense_covariance(shape, backend):
    prior, scipy_fft = cosines(shape), pytest.importorskip("scipy.fft")
    d, axes = int(np.prod(shape)), tuple(range(1, len(shape) + 1))
    rows = scipy_fft.dctn(np.eye(d).reshape(-1, *shape), axes=axes, norm="ortho").reshape(d, d)
    dense = GaussianPrior.from_covariance(prior.mean, (rows * prior._basis.variances.reshape(-1)) @ rows.T)
    x, v = noisy(prior, 1.0), noisy(prior, 1.0, seed=1)
    dtype, tolerance = ("float64", 1e-12) if backend.float64 else ("float32", 2e-6)
    for got, expected in zip(prior.denoise_vjp(backend.array(x, dtype), 0.7, backend.array(v, dtype)),
                             dense.denoise_vjp(x, 0.7, v)):
        np.testing.assert_allclose(backend.numpy(got), expected, atol=tolerance * np.abs(x).max())
    assert prior.total_variance == pytest.approx(dense.total_variance)
    mean, V, variances, rest = prior.principal(5)
    np.testing.assert_allclose(V.T @ V, np.eye(5), atol=1e-12)
    np.testing.assert_allclose((rows * prior._basis.variances.reshape(-1)) @ rows.T @ V, V * variances, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 6)])
def test_that_the_file_of_a_gaussian_in_cosines_equals_its_array_functions(shape, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_priors.session import OnnxDenoiserVJP

    prior = cosines(shape)
    prior.to_onnx(tmp_path / "v.onnx", vjp=True)
    run = OnnxDenoiserVJP(tmp_path / "v.onnx")
    for sigma in map(np.float32, SIGMAS):
        x, v = noisy(prior, sigma).astype(np.float32), noisy(prior, 1.0, seed=1).astype(np.float32)
        wanted = prior.denoise_vjp(x.astype(np.float64), float(sigma), v.astype(np.float64))
        for out, want in zip(run(x, sigma, v), wanted):
            np.testing.assert_allclose(out, want, rtol=0, atol=2e-7 * max(1.0, np.max(np.abs(want))))
