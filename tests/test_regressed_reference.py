"""EnKG-R, the Gaussian reference of a prior: (E1), (E2), files and their checks."""

import dataclasses

import numpy as np
import pytest

from enkg_ref.enkg_r import reference as stored
from enkg_ref.enkg_r.reference import Reference, from_images, from_prior


def _gaussian(d=12, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    variances = 1.0 / (1.0 + np.arange(d))
    return Reference(rng.standard_normal(d), Q, variances)


def test_images_of_a_gaussian_give_its_moments_and_an_error_ratio_of_one():
    truth, n = _gaussian(), 20_000
    images = truth.start(np.random.default_rng(1).standard_normal((n, 12)))

    def denoise(x, s):  # (O1)
        a = truth.coordinates(x) * truth.variances / (truth.variances + s * s)
        return truth.mean + truth.along_modes(a, x.shape)

    made = from_images(images, denoise, sigmas=[0.1, 1.0, 10.0], held_out=5000)
    covariance, expected = ((r.modes * r.variances) @ r.modes.T for r in (made, truth))
    sd = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / (n - 5000))
    assert np.all(np.abs(covariance - expected) < 5 * sd)
    assert np.all(np.abs(made.mean - truth.mean) < 5 * np.sqrt(np.diag(expected) / (n - 5000)))
    # mean square over 5000 draws and nine modes: standard error below .02, and the reference is itself estimated
    assert np.all(made.table[:, :-1] > 0.93) and made.table.max() <= 1.0


def test_the_conditional_variances_are_interpolated_in_the_logarithm_of_the_level():
    reference = _gaussian(3)
    table = np.array([[0.2, 0.4, 0.6, 1.0], [0.8, 0.6, 1.0, 1.0]])
    tabled = Reference(reference.mean, reference.modes, reference.variances, 0.0, [0.1, 10.0], table)
    for s, ratio in ((0.1, table[0]), (10.0, table[1]), (1.0, table.mean(0)), (0.01, table[0]), (99.0, table[1])):
        plain = reference.variances * s * s / (reference.variances + s * s)
        np.testing.assert_allclose(tabled.conditional(s)[0], ratio[:3] * plain, rtol=1e-12)
        np.testing.assert_allclose(reference.conditional(s)[0], plain, rtol=1e-15)


def test_fewer_modes_keep_the_total_variance_of_the_prior_and_nearly_that_of_a_level():
    whole = _gaussian(40)
    part = whole.leading(25)
    assert part.variances.size == 25 and np.isclose(part.std, whole.std, rtol=1e-12)
    open_variances = [r.total_variance(*r.conditional(0.2)) for r in (part, whole)]
    assert np.isclose(*open_variances, rtol=0.01)


def test_the_start_has_the_moments_of_the_reference_rest_included():
    reference = _gaussian(6).leading(3)
    J = 200_000
    x = reference.start(np.random.default_rng(2).standard_normal((J, 6)))
    V = reference.modes
    expected = (V * reference.variances) @ V.T + reference.rest * (np.eye(6) - V @ V.T)
    sd = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / J)
    assert np.all(np.abs(np.cov(x.T) - expected) < 4.5 * sd)


def test_the_fourier_modes_of_a_stationary_gaussian_give_the_derivative_of_its_exact_denoiser():
    """Cov[x0 | x] = s^2 dD/dx, for any prior; here by differences of the denoiser, which is affine."""
    from onnx_priors.gaussian import GaussianPrior

    n, rng = 8, np.random.default_rng(4)
    mean = rng.standard_normal((n, n))
    spectrum = np.mean(np.abs(np.fft.rfft2(rng.standard_normal((50, n, n)))) ** 2, axis=0)
    prior, whole = GaussianPrior.stationary(mean, spectrum), Reference.stationary(mean, spectrum)
    for s in (0.3, 2.0, 20.0):
        slopes = (prior.denoise(mean + np.eye(n * n).reshape(-1, n, n), s) - mean).reshape(n * n, n * n)
        C = (whole.modes * whole.conditional(s)[0]) @ whole.modes.T
        np.testing.assert_allclose(C, s * s * slopes, rtol=0, atol=1e-11)
    part = Reference.stationary(mean, spectrum, modes=20)
    assert part.variances.size == 20 and np.isclose(part.std, whole.std, rtol=1e-12)
    np.testing.assert_allclose(part.variances, np.sort(whole.variances)[::-1][:20])


def test_a_saved_reference_comes_back_with_orthonormal_modes_to_half_precision(tmp_path):
    reference = _gaussian(64)
    reference.save(tmp_path / "a.npz")
    loaded = Reference.load(tmp_path / "a.npz")
    np.testing.assert_allclose(loaded.modes.T @ loaded.modes, np.eye(64), atol=1e-12)
    # float16 rounds entries by 2^-11 relative; the orthonormal columns move by no more than that in norm, times few
    assert np.max(np.sqrt(np.sum((loaded.modes - reference.modes) ** 2, axis=0))) < 5e-3
    np.testing.assert_allclose(loaded.conditional(0.3)[0], reference.conditional(0.3)[0], rtol=1e-6)


def test_a_large_reference_in_bytes_keeps_its_variances_and_turns_each_mode_by_one_percent_into_all_directions(
        tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FLOAT16_NUMBERS", 0)
    reference = _gaussian(256).leading(40)
    reference.save(tmp_path / "a.npz")
    loaded = Reference.load(tmp_path / "a.npz")
    overlap = loaded.modes.T @ reference.modes
    assert np.all(np.diag(overlap) > np.cos(0.02))
    # a rounding error of 0.02 in norm, spread over 256 directions, gives each of them 0.02/16; five times that
    assert np.max(np.abs(overlap - np.diag(np.diag(overlap)))) < 5 * 0.02 / 16
    np.testing.assert_allclose(loaded.variances, reference.variances, rtol=1e-6)
    np.testing.assert_allclose(loaded.modes.T @ loaded.modes, np.eye(40), atol=1e-12)


def test_a_missing_file_or_the_reference_of_another_prior_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="reference: .* does not exist; enkg-r needs the Gaussian reference"):
        Reference.load(tmp_path / "none.npz")
    dataclasses.replace(_gaussian(), prior="4567").save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="made for the prior with sha256 4567..., expected one made for 0123"):
        Reference.load(tmp_path / "a.npz", "0123")
    (tmp_path / "b.npz").write_bytes(b"not a reference")
    np.save(tmp_path / "c.npy", np.zeros(3))
    for name in ("b.npz", "c.npy"):
        with pytest.raises(ValueError, match="damaged or not a reference"):
            Reference.load(tmp_path / name)


@pytest.mark.parametrize("name,change,message", [
    ("mean", lambda a: a * np.nan, "mean: got a non-finite value"),
    ("variances", lambda a: a[::-1], "variances: got a rising order"),
    ("rest", lambda a: -a - 1, "variances: got a negative"),
    ("modes", lambda a: a * np.nan, "modes: got columns that are not orthonormal"),
    ("modes", lambda a: a[:, ::-1] + a, "modes: got columns that are not orthonormal"),
    ("modes", lambda a: a[:5], r"modes: got shape \(5, 5\)"),
    ("table", lambda a: a * np.nan, "table: got a ratio that is not in"),
    ("table", lambda a: -a, "table: got a ratio that is not in"),
    ("table_sigmas", lambda a: a[::-1], "table_sigmas: got levels that do not rise"),
    ("table_sigmas", lambda a: 0 * a, "table_sigmas: got levels that do not rise"),
    ("table", lambda a: None, "'table'"),
])
def test_a_damaged_file_is_named_when_it_is_read(name, change, message, tmp_path):
    tabled = dataclasses.replace(_gaussian(), table_sigmas=[0.1, 10.0], table=np.full((2, 13), 0.5))
    tabled.save(tmp_path / "a.npz")
    parts = dict(np.load(tmp_path / "a.npz"))
    parts[name] = change(parts[name])
    np.savez(tmp_path / "a.npz", **{key: value for key, value in parts.items() if value is not None})
    with pytest.raises(ValueError, match=rf"^reference: got \S+a.npz, which is damaged \({message}"):
        Reference.load(tmp_path / "a.npz")


def test_the_reference_of_a_file_is_refused_where_the_prior_is_no_file(tmp_path):
    dataclasses.replace(_gaussian(), prior="4567").save(tmp_path / "a.npz")
    assert Reference.load(tmp_path / "a.npz").prior == "4567"
    with pytest.raises(ValueError, match="sha256 4567..., expected one for a prior that is no file"):
        Reference.load(tmp_path / "a.npz", "")


class _Narrow:
    """The exact denoiser of N(0, 1) that knows only some noise levels, as a file of a prior does."""

    def __init__(self, low, high):
        self.sigma_min, self.sigma_max = low, high

    def __call__(self, x, sigma):
        assert self.sigma_min <= sigma <= self.sigma_max
        return x / (1 + sigma * sigma)


def test_the_table_has_the_levels_that_the_denoiser_has():
    images = np.random.default_rng(0).standard_normal((400, 3))
    made = from_images(images, _Narrow(0.1, 5.0))
    assert made.table_sigmas[0] == 0.1 and made.table_sigmas[-1] == 5.0 and made.table.shape == (12, 4)
    # 100 images held out, three modes averaged: standard error of a mean square below (2/100)^1/2
    assert np.all(made.table > 1 - 5 * np.sqrt(2 / 100))
    wide = from_images(images, _Narrow(1e-6, 1e6)).table_sigmas
    assert np.allclose(wide[[0, -1]], [made.std / 50, made.std * 20])


def test_images_that_make_no_reference_are_refused_in_words():
    images = np.random.default_rng(0).standard_normal((100, 3))
    for alike in (0 * images, np.full((100, 3), 2.5)):
        for denoise in (None, _Narrow(0.1, 5.0)):
            with pytest.raises(ValueError, match="reference: got images that are all alike, expected different ones"):
                from_images(alike, denoise)
    for factor in (1e-4, 1e4):
        with pytest.raises(ValueError, match="reference: got images of standard deviation .*, expected it near the "
                                             "prior's noise levels, 0.1 to 5"):
            from_images(factor * images, _Narrow(0.1, 5.0))
    with pytest.raises(ValueError, match="reference: got 31 images, expected at least 32"):
        from_images(images[:31])
    with pytest.raises(ValueError, match="reference: got 31 samples, expected at least 32"):
        from_prior(_Narrow(0.1, 5.0), (3,), 5.0, 0.1, count=31)


def test_a_reference_made_from_the_samples_of_a_prior_has_its_variances():
    variances = np.array([1.0, 0.25, 0.04])
    made = from_prior(lambda x, s: x * (variances / (variances + s * s)).astype(x.dtype), (3,), 20.0, 0.01, count=2000,
                      steps=60, dtype="float64")
    # 1,500 samples: standard error 4 %; 60 Euler steps: some percent more
    np.testing.assert_allclose(made.variances, variances, rtol=0.2)


@pytest.mark.parametrize("change,message", [({"modes": np.ones((12, 3))}, "modes: got shape"),
                                            ({"modes": np.ones((12, 12))}, "not orthonormal"),
                                            ({"variances": -np.ones(12)}, "variances: got a negative")])
def test_a_reference_that_is_none_is_refused(change, message):
    good = _gaussian()
    with pytest.raises(ValueError, match=message):
        Reference(**{"mean": good.mean, "modes": good.modes, "variances": good.variances, **change})


def test_that_the_reference_of_cosines_is_the_gaussian_and_its_file_holds_frequencies_only(tmp_path):
    from scipy.fft import dctn

    rng, shape = np.random.default_rng(0), (3, 6, 8)
    variances = rng.uniform(0.1, 1.0, shape) * np.linspace(3.0, 0.1, 8)
    d = variances.size
    rows = dctn(np.eye(d).reshape(-1, *shape), axes=(1, 2, 3), norm="ortho").reshape(d, d)  # column k: frequency k
    whole = Reference.cosines(rng.standard_normal(shape), variances, d)
    np.testing.assert_allclose((whole.modes * whole.variances) @ whole.modes.T, (rows * variances.reshape(-1)) @ rows.T,
                               atol=1e-12)
    part = Reference.cosines(whole.mean, variances, 20)
    leading = whole.leading(20)
    np.testing.assert_allclose(part.modes, leading.modes, atol=1e-12)
    assert part.rest == pytest.approx(leading.rest) and np.array_equal(part.waves, leading.waves)
    part.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        assert "modes" not in file.files and file["waves"].shape == (20, 3)
    again = Reference.load(tmp_path / "r.npz")
    np.testing.assert_allclose(again.modes, part.modes, atol=1e-12)


def test_that_the_error_table_of_a_reference_is_that_of_from_images():
    truth, rng = _gaussian(), np.random.default_rng(1)
    images = truth.start(rng.standard_normal((400, 12)))
    made = from_images(images, lambda x, s: x / (1 + s * s), sigmas=[0.1, 1.0], held_out=100)
    plain = from_images(images[:300])
    again = plain.with_errors(lambda x, s: x / (1 + s * s), images[300:], [0.1, 1.0])
    np.testing.assert_array_equal(made.table, again.table)
