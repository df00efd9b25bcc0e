"""Black-hole forward model: (BH1)-(BH2), closures (BH8)-(BH10), losses (BH13)-(BH15), goldens on the real M87 data."""

from __future__ import annotations

import numpy as np
import pytest

from problems import vlbi
from problems.black_hole import m87
from problems.closure_forward import ClosureForward, fourier_table
from problems.visibility_files import read_m87

MICROARCSECOND = np.pi / 180 / 3600e6
PIXEL = 2.5 * MICROARCSECOND
BLOBS = [(-12.5, 8, 7, 1.0), (15, -4, 5, 0.6), (3, -18.5, 9, 0.8), (20, 16, 4.5, 0.35), (-22, -10, 6, 0.5),
         (0, 2, 11, 0.4)]
"""Test image T: (East, North, sigma in micro-arcseconds, weight)."""


def test_image():
    """T in Jy per pixel, total 0.6 Jy; asymmetric, so that no parity error can hide."""
    axis = (31.5 - np.arange(64)) * 2.5
    east, north = np.meshgrid(axis, axis)
    image = sum(w * np.exp(-((east - e) ** 2 + (north - s) ** 2) / 2 / k**2) for e, s, k, w in BLOBS)
    return 0.6 * image / image.sum()


test_image.__test__ = False


def observation(day):
    return read_m87(day)


def visibilities(image, data, **options):
    parts = fourier_table(data.u, data.v, **options) @ image.reshape(-1)
    return parts[:len(data)] + 1j * parts[len(data):]


GOLDEN = {  # computed by ehtim 1.3.2 (direct) and by an independent transcription, equal to 12 digits
    "101": {"vis": 49626.2383664, "amp": 71935.6684762, "cp": 1044.13542935, "lca": 38.4395489999, "rows": (0, 100, -1),
            "V": (0.035286157299 + 0.024331440731j, 0.494077101454 - 0.050894844674j, 0.047073809459 - 0.018581083191j),
            "cos": 139914.1475, "square": 394629.5177, "beyond": 16, "wrapped": 274821.3836, "lca sum": 4343.669037,
            "sigma": (20.1613514505, 28.7684363041), "cp sums": (-17.4322879897, 43.1647216910),
            "lca sums": (-98.5044175238, -120.7294165982), "r": (4910.56106, -232885.5346, -159.8513732)},
    "096": {"vis": 194010.966846, "amp": 45871.705861, "cp": 389.55962108, "lca": 21.4026352411, "rows": (0, 100, -1),
            "V": (0.035276852922 + 0.024273913624j, 0.046995611429 - 0.009294040652j, 0.048766909939 - 0.020627248241j),
            "cos": 67393.81445, "square": 191970.5131, "beyond": 24, "wrapped": 131995.5032, "lca sum": 3188.992651,
            "sigma": (27.7457292813, 41.9350071803), "cp sums": (-9.8385065072, 67.8555527649),
            "lca sums": (-119.5283308544, -152.7480022001), "r": (6976.414163, -105484.4415, 3582.505769)},
}


@pytest.fixture(params=["101", "096"])
def golden(request):
    data = observation(request.param)
    closures = vlbi.minimal_set(data)
    model = visibilities(test_image(), data)
    sigmas = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    parts = {"cp": (vlbi.closure_phases(model, closures), vlbi.closure_phases(data.vis, closures), sigmas[0]),
             "lca": (vlbi.log_closure_amplitudes(model, closures), vlbi.log_closure_amplitudes(data.vis, closures),
                     sigmas[1])}
    return GOLDEN[request.param], data, model, parts


def test_the_test_image_is_the_one_of_the_goldens():
    image = test_image()
    assert image.max() == pytest.approx(0.003486561296009, rel=1e-12)
    assert np.unravel_index(image.argmax(), image.shape) == (29, 36)
    assert np.sum(image**2) == pytest.approx(9.692598935685e-4, rel=1e-12)


def test_visibilities_and_chi2_equal_the_goldens(golden):
    expected, data, model, parts = golden
    np.testing.assert_allclose(model[list(expected["rows"])], expected["V"], rtol=0, atol=1e-12)
    assert vlbi.chi2_visibility(model, data) == pytest.approx(expected["vis"], rel=1e-10)
    assert vlbi.chi2_amplitude(model, data) == pytest.approx(expected["amp"], rel=1e-10)
    assert vlbi.chi2_phase(*parts["cp"]) == pytest.approx(expected["cp"], rel=1e-10)
    assert vlbi.chi2_log_amplitude(*parts["lca"]) == pytest.approx(expected["lca"], rel=1e-10)


def test_closures_sigmas_and_chi2_of_a_stack_of_images_are_those_of_each_image(golden):
    _, data, model, parts = golden
    closures, turned = vlbi.minimal_set(data), np.exp(1j * np.linspace(0.0, 0.4, len(model)))
    stack = np.stack([model, 1.1 * model, model * turned])

    def chi2(vis):
        cp, lca = vlbi.closure_phases(vis, closures), vlbi.log_closure_amplitudes(vis, closures)
        return [vlbi.chi2_visibility(vis, data), vlbi.chi2_amplitude(vis, data), vlbi.chi2_phase(cp, *parts["cp"][1:]),
                vlbi.chi2_log_amplitude(lca, *parts["lca"][1:])]

    one_by_one = np.transpose([chi2(vis) for vis in stack])
    assert np.ptp(one_by_one[:2], axis=1).min() > 1e-3  # three different images
    np.testing.assert_allclose(chi2(stack), one_by_one, rtol=1e-12)
    for all_sigmas, *each in zip(vlbi.closure_sigmas(stack, data.sigma, closures),
                                 *(vlbi.closure_sigmas(vis, data.sigma, closures) for vis in stack)):
        np.testing.assert_allclose(all_sigmas, each, rtol=1e-12)


def test_sums_of_closures_and_sigmas_equal_the_goldens(golden):
    expected, _, _, parts = golden
    for kind, index in (("cp", 0), ("lca", 1)):
        model, data, sigma = parts[kind]
        np.testing.assert_allclose((model.sum(), data.sum()), expected[f"{kind} sums"], rtol=1e-10)
        assert sigma.sum() == pytest.approx(expected["sigma"][index], rel=1e-10)


def test_losses_and_half_gradients_equal_the_goldens(golden):
    expected, _, _, parts = golden
    model, data, sigma = parts["cp"]
    d = model - data
    assert np.sum(2 * (1 - np.cos(d)) / sigma**2) == pytest.approx(expected["cos"], rel=1e-9)
    assert np.sum((d / sigma) ** 2) == pytest.approx(expected["square"], rel=1e-9)
    assert np.sum(np.abs(d) > np.pi) == expected["beyond"]
    assert np.sum((vlbi.wrap(d) / sigma) ** 2) == pytest.approx(expected["wrapped"], rel=1e-9)
    assert np.sum(2 * np.sin(d) / sigma**2) == pytest.approx(expected["r"][0], rel=1e-8)  # (BH15a)
    assert np.sum(2 * d / sigma**2) == pytest.approx(expected["r"][1], rel=1e-9)  # (BH15b)
    model, data, sigma = parts["lca"]
    assert np.sum(((model - data) / sigma) ** 2) == pytest.approx(expected["lca sum"], rel=1e-9)
    assert np.sum(2 * (model - data) / sigma**2) == pytest.approx(expected["r"][2], rel=1e-8)  # (BH15c)


def test_first_closures_of_day_101_are_those_named_in_the_golden():
    data = observation("101")
    closures = vlbi.minimal_set(data)
    names = [[f"{data.stations[data.first[r]]}-{data.stations[data.second[r]]}" for r in rows]
             for rows in (closures.triangles[0], closures.quadrangles[0])]
    assert names == [["AA-AP", "AP-PV", "AA-PV"], ["AA-PV", "AP-AZ", "AA-AZ", "AP-PV"]]
    model = visibilities(test_image(), data)
    sigmas = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    assert vlbi.closure_phases(model, closures)[0] == pytest.approx(0.00984091, abs=5e-9)
    assert vlbi.closure_phases(data.vis, closures)[0] == pytest.approx(-0.11410997, abs=5e-9)
    assert sigmas[0][0] == pytest.approx(0.12489524, abs=5e-9)
    assert vlbi.log_closure_amplitudes(model, closures)[0] == pytest.approx(-1.59864274e-3, abs=5e-12)
    assert vlbi.log_closure_amplitudes(data.vis, closures)[0] == pytest.approx(-0.053003, abs=5e-7)
    assert sigmas[1][0] == pytest.approx(0.07569289, abs=5e-9)


@pytest.mark.parametrize("day, cp, lca", [("101", (1368.149, 824.172, 438.029), (71.6772, 65.2886, 52.4766)),
                                          ("096", (503.044, 409.578, 276.531), (36.7272, 35.1481, 31.2968))])
def test_chi2_of_the_full_rank_set_falls_with_systematic_noise_as_in_the_golden(day, cp, lca):
    z = 2 * test_image()[None] / test_image().max() - 1
    for f, expected_cp, expected_lca in zip((0, 0.01, 0.02), cp, lca):
        problem = m87(day, systematic=f)
        predicted, data = problem.forward(z)[0], problem.observation
        for kind, statistic, expected in (("cp", vlbi.chi2_phase, expected_cp),
                                          ("lca", vlbi.chi2_log_amplitude, expected_lca)):
            part = data.blocks[kind]
            assert statistic(predicted[part], data.y[part], data.noise[part]) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("turn, cp, lca", [
    (lambda t: t[:, ::-1], 507.751, 39.2047), (lambda t: t[::-1], 266.704, 39.2047),
    (lambda t: t[::-1, ::-1], 652.62, 38.4395), (lambda t: t.T, 1092.43, 49.4123)])
def test_a_parity_error_would_show_in_the_closure_phases(turn, cp, lca):
    data = observation("101")
    closures = vlbi.minimal_set(data)
    sigmas = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    model = visibilities(turn(test_image()), data)
    phases, amplitudes = vlbi.closure_phases(data.vis, closures), vlbi.log_closure_amplitudes(data.vis, closures)
    assert vlbi.chi2_phase(vlbi.closure_phases(model, closures), phases, sigmas[0]) == pytest.approx(cp, rel=1e-5)
    assert vlbi.chi2_log_amplitude(vlbi.log_closure_amplitudes(model, closures), amplitudes, sigmas[1]) \
        == pytest.approx(lca, rel=1e-5)


def test_visibility_of_a_point_source_is_its_phase_times_the_pulse():
    rng = np.random.default_rng(1)
    u, v = rng.uniform(-8e9, 8e9, (2, 50))
    for i, j in ((0, 0), (31, 32), (10, 55)):
        image = np.zeros((64, 64))
        image[i, j] = 0.7
        x, y = (31.5 - j) * PIXEL, (31.5 - i) * PIXEL
        for pulse in (0, 1, 2):
            parts = fourier_table(u, v, pulse=pulse) @ image.reshape(-1)
            taper = (np.sinc(u * PIXEL) * np.sinc(v * PIXEL)) ** pulse
            expected = 0.7 * taper * np.exp(2j * np.pi * (u * x + v * y))
            np.testing.assert_allclose(parts[:50] + 1j * parts[50:], expected, rtol=0, atol=1e-12)


def test_visibility_at_the_origin_is_the_total_flux():
    image = test_image()
    np.testing.assert_allclose(fourier_table([0.0], [0.0]) @ image.reshape(-1), [image.sum(), 0], atol=1e-14)


def test_direct_transform_equals_the_fft_at_grid_frequencies():
    image, n = test_image(), 64
    k, l = np.meshgrid(np.arange(-5, 6), np.arange(-5, 6))
    u, v = k.reshape(-1) / (n * PIXEL), l.reshape(-1) / (n * PIXEL)
    parts = fourier_table(u, v, pulse=0) @ image.reshape(-1)
    # exp(+2 pi i u x) with x = (31.5 - j) pixel: the FFT's exp(-2 pi i k j / n) times a phase of the centre
    centre = np.exp(2j * np.pi * (u + v) * 31.5 * PIXEL)
    expected = centre * np.fft.fft2(image)[l.reshape(-1) % n, k.reshape(-1) % n]
    np.testing.assert_allclose(parts[:121] + 1j * parts[121:], expected, rtol=0, atol=1e-12)


def test_closures_do_not_feel_station_gains_and_phases():
    data = observation("101")
    closures = vlbi.full_rank_set(data)
    clean = vlbi.replace(data, vis=visibilities(test_image(), data))
    corrupted = vlbi.corrupt_stations(clean, np.random.default_rng(3), gain=0.3)
    assert np.max(np.abs(np.angle(corrupted.vis / clean.vis))) > 3  # the corruption is not small
    assert np.max(np.abs(np.log(np.abs(corrupted.vis / clean.vis)))) > 0.3
    d = vlbi.closure_phases(corrupted.vis, closures) - vlbi.closure_phases(clean.vis, closures)
    np.testing.assert_allclose(vlbi.wrap(d), 0, atol=1e-12)
    np.testing.assert_allclose(vlbi.log_closure_amplitudes(corrupted.vis, closures),
                               vlbi.log_closure_amplitudes(clean.vis, closures), atol=1e-12)
    np.testing.assert_allclose(vlbi.closure_sigmas(corrupted.vis, corrupted.sigma, closures)[0],
                               vlbi.closure_sigmas(clean.vis, clean.sigma, closures)[0], rtol=1e-12)


def test_closures_do_not_feel_position_and_flux():
    data = vlbi.simulated_coverage()  # its triangles close exactly; those of real scan averages do not
    closures = vlbi.minimal_set(data)
    image = np.pad(test_image()[8:-8, 8:-8], 8)  # a zero margin, so that the shift is exact
    reference = visibilities(image, data)
    for changed in (np.roll(image, (5, -3), (0, 1)), 2 * image):
        model = visibilities(changed, data)
        d = vlbi.closure_phases(model, closures) - vlbi.closure_phases(reference, closures)
        np.testing.assert_allclose(vlbi.wrap(d), 0, atol=1e-12)
        np.testing.assert_allclose(vlbi.log_closure_amplitudes(model, closures),
                                   vlbi.log_closure_amplitudes(reference, closures), atol=1e-12)


def test_a_half_turn_conjugates_closure_phases_and_a_mirror_does_not():
    data = observation("101")
    closures = vlbi.minimal_set(data)
    phases = vlbi.closure_phases(visibilities(test_image(), data), closures)
    turned = vlbi.closure_phases(visibilities(test_image()[::-1, ::-1], data), closures)
    np.testing.assert_allclose(vlbi.wrap(turned + phases), 0, atol=1e-12)
    mirrored = vlbi.closure_phases(visibilities(test_image()[:, ::-1], data), closures)
    assert np.median(np.abs(vlbi.wrap(mirrored + phases))) > 0.01 < np.median(np.abs(vlbi.wrap(mirrored - phases)))


def official_loss(cp, lca, flux, data, sigmas, flux_data, phase_loss):
    """(BH14) with the official weights (0, 1, 1, 0.5), literally."""
    d = cp - data[0]
    phase = 2 * (1 - np.cos(d)) if phase_loss == "cos" else d**2
    return 2 * (np.sum(phase / sigmas[0] ** 2) + np.sum(((lca - data[1]) / sigmas[1]) ** 2)
                + 0.5 * ((flux - flux_data) / 2) ** 2)


@pytest.mark.parametrize("phase_loss", ["cos", "square"])
def test_half_gradients_in_closed_form_equal_central_differences_of_the_official_loss(phase_loss):
    rng = np.random.default_rng(5)
    data, sigmas = (rng.uniform(-3, 3, 6), rng.normal(size=4)), (rng.uniform(0.1, 1, 6), rng.uniform(0.1, 1, 4))
    g, flux_data = np.concatenate([rng.uniform(-3, 3, 6), rng.normal(size=4), [180.0]]), 171.0

    def loss(g):
        return official_loss(g[:6], g[6:10], g[10], data, sigmas, flux_data, phase_loss)

    d = g[:6] - data[0]
    closed = np.concatenate([2 * (np.sin(d) if phase_loss == "cos" else d) / sigmas[0] ** 2,
                             2 * (g[6:10] - data[1]) / sigmas[1] ** 2, [0.25 * (g[10] - flux_data)]])
    h = 1e-5
    differences = [(loss(g + h * e) - loss(g - h * e)) / (4 * h) for e in np.eye(11)]
    np.testing.assert_allclose(closed, differences, rtol=1e-6)


def test_delta_method_sigmas_equal_the_scatter_of_noisy_closures():
    rng = np.random.default_rng(7)
    data = observation("101")
    closures = vlbi.minimal_set(data)
    model = visibilities(test_image(), data)
    strong = vlbi.replace(data, vis=model, sigma=np.abs(model) / 10)  # SNR 10 everywhere
    noise = rng.standard_normal((2, 2000, len(data)))
    noisy = model + strong.sigma * (noise[0] + 1j * noise[1])
    sigma_cp, sigma_lca = vlbi.closure_sigmas(model, strong.sigma, closures)
    cp = vlbi.wrap(vlbi.closure_phases(noisy, closures) - vlbi.closure_phases(model, closures))
    lca = vlbi.log_closure_amplitudes(noisy, closures)
    # the relative error of a standard deviation of 2000 draws is 1.6 %: the mean over closures must agree within 5 %
    assert np.mean(cp.std(axis=0) / sigma_cp) == pytest.approx(1, abs=0.05)
    assert np.mean(lca.std(axis=0) / sigma_lca) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(sigma_cp, np.sqrt(0.03), rtol=1e-12)
    np.testing.assert_allclose(sigma_lca, np.sqrt(0.04), rtol=1e-12)


def test_systematic_noise_adds_three_and_four_f_squared():
    data = observation("096")
    closures = vlbi.minimal_set(data)
    plain = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    more = vlbi.closure_sigmas(data.vis, data.sigma, closures, systematic=0.02)
    np.testing.assert_allclose(more[0] ** 2 - plain[0] ** 2, 3 * 0.02**2, rtol=1e-9)
    np.testing.assert_allclose(more[1] ** 2 - plain[1] ** 2, 4 * 0.02**2, rtol=1e-9)


# ------------------------------------------------------------------------------------------- forward model on back-ends


def particles(count, seed=0):
    """Prior-unit images: T with random point sources, so that no baseline sits close to a null of the visibility."""
    rng = np.random.default_rng(seed)
    images = np.repeat(test_image()[None] / test_image().max(), count, axis=0)
    for image in images:
        image[rng.integers(8, 56, 20), rng.integers(8, 56, 20)] += rng.uniform(0.2, 1, 20)
    return 2 * images / images.max(axis=(1, 2), keepdims=True) - 1


def forward_of(data, branch=True, flux=True):
    closures = vlbi.full_rank_set(data)
    centre = vlbi.closure_phases(data.vis, closures) if branch else None
    return ClosureForward(fourier_table(data.u, data.v), closures, centre, flux), closures


def test_forward_equals_complex_arithmetic_on_the_host():
    data = observation("101")
    forward, closures = forward_of(data, branch=False)
    z = particles(5)
    x = (z + 1) / 2
    model = np.stack([visibilities(image, data) for image in x])
    expected = np.concatenate([vlbi.closure_phases(model, closures), vlbi.log_closure_amplitudes(model, closures),
                               x.sum(axis=(1, 2))[:, None]], axis=1)
    np.testing.assert_allclose(forward(z), expected, rtol=0, atol=1e-11)


def test_triple_products_and_amplitude_ratios_are_the_definition():
    data = observation("101")
    closures = vlbi.minimal_set(data)
    v = visibilities(test_image(), data)
    bispectrum = [np.angle(v[a] * v[b] * np.conj(v[c])) for a, b, c in closures.triangles]
    np.testing.assert_allclose(vlbi.closure_phases(v, closures), bispectrum, atol=1e-12)
    ratio = [np.log(abs(v[a] * v[b]) / abs(v[c] * v[d])) for a, b, c, d in closures.quadrangles]
    np.testing.assert_allclose(vlbi.log_closure_amplitudes(v, closures), ratio, atol=1e-12)


def test_phases_lie_in_the_branch_around_the_data_and_differ_by_whole_turns():
    data = observation("101")
    forward, closures = forward_of(data)
    raw, _ = forward_of(data, branch=False)
    n = len(closures.triangles)
    z = particles(4)
    d = forward(z)[:, :n] - vlbi.closure_phases(data.vis, closures)
    assert np.max(np.abs(d)) <= np.pi + 1e-12
    turns = (forward(z) - raw(z)) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-12)
    assert np.any(np.round(turns) != 0)


def test_rows_of_the_forward_model_are_independent_on_every_backend(backend):
    data = observation("101")
    forward, closures = forward_of(data)
    host = particles(4)
    reference = forward(host)
    flux = (host.sum(axis=(1, 2)) + 64**2)[:, None] / 2
    # rounding of V is a fraction of the flux; a closure sees flux/|V| times that, summed over its baselines
    small = flux / np.hypot(*forward.visibilities(host))
    amplification = np.concatenate([small[:, closures.triangles].sum(axis=-1),
                                    small[:, closures.quadrangles].sum(axis=-1), flux], axis=1)
    for dtype, rounding in (("float64", 2.2e-16), ("float32", 1.2e-7)):
        if dtype == "float64" and not backend.float64:
            continue
        z = backend.array(host, dtype)
        whole = forward(z)
        assert str(whole.dtype).endswith(dtype)
        for chunk in (1, 3):
            parts = np.concatenate([backend.numpy(forward(z[i:min(i + chunk, 4), ...])) for i in range(0, 4, chunk)])
            assert np.max(np.abs(parts - backend.numpy(whole)) / amplification) < 4 * rounding
        assert np.max(np.abs(backend.numpy(whole) - reference) / amplification) < 4 * rounding
    np.testing.assert_array_equal(host, particles(4))


def test_single_precision_errs_by_less_than_a_ten_thousandth_of_sigma():
    for day in ("101", "096"):
        problem = m87(day, systematic=0.0)
        z = 2 * test_image()[None] / test_image().max() - 1
        error = problem.forward(z.astype("float32")) - problem.forward(z)
        part = problem.observation.blocks["cp"]
        assert np.max(np.abs(error[:, part]) / problem.observation.noise[part]) < 1e-4


def test_closed_form_vjp_equals_central_differences(backend):
    if not backend.float64:
        pytest.skip("needs float64")
    data = observation("101")
    forward, _ = forward_of(data)
    rng = np.random.default_rng(11)
    z = particles(2, seed=4)
    v = rng.standard_normal(forward(z).shape)
    direction = rng.standard_normal(z.shape)
    gradient = backend.numpy(forward.vjp(backend.array(z), backend.array(v)))
    h = 1e-6
    difference = (forward(z + h * direction) - forward(z - h * direction)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient * direction, axis=(1, 2)), np.sum(v * difference, axis=1), rtol=1e-6)


def test_a_visibility_null_gives_a_non_finite_row_and_leaves_the_others_alone():
    data = observation("101")
    forward, _ = forward_of(data)
    z = particles(3)
    z[1] = -1.0  # the empty image
    with np.errstate(divide="ignore", invalid="ignore"):
        g = forward(z)
    assert not np.isfinite(g[1]).all()
    np.testing.assert_allclose(g[[0, 2]], forward(z[[0, 2]]), rtol=1e-12, atol=1e-12)
