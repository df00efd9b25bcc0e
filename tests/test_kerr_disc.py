"""The Kerr-disc image generator: first integrals and closed forms of the rays, redshift, image set."""

import numpy as np
import pytest

from problems import kerr_disc

CASES = ((0.94, 20.0), (0.5, 50.0), (-0.5, 80.0))


@pytest.mark.parametrize("spin, inclination", CASES)
def test_the_first_integrals_hold_along_almost_every_ray(spin, inclination):
    rng = np.random.default_rng(0)
    alpha, beta = rng.uniform(-28, 28, (2, 1000))
    lam, eta = kerr_disc.constants(alpha, beta, spin, inclination)
    a1, k = spin**2 - spin * lam, eta + (lam - spin) ** 2
    worst = np.zeros(alpha.size)

    def observe(rays, state):
        u, du, mu, dmu, _, wr, dwr, wi, dwi = state
        outside = (u > 0) & (u < 0.9 / (1 + np.sqrt(1 - spin**2)))  # a step may end past the horizon or past infinity
        l, e = lam[rays], eta[rays]
        radial = (1 + a1[rays] * u**2) ** 2 - k[rays] * (u**2 - 2 * u**3 + spin**2 * u**4)
        polar = e - (e + l**2 - spin**2) * mu**2 - spin**2 * mu**4
        scale = 1 + np.abs(e) + l**2
        errors = [np.abs(wr**2 + wi**2 + mu**2 - 1), np.abs(wr * dwi - wi * dwr - l) / np.sqrt(scale),
                  np.abs(du**2 - radial), np.abs(dmu**2 - polar) / scale]  # fmt: skip
        worst[rays] = np.maximum(worst[rays], np.where(outside, np.max(errors, axis=0), 0.0))

    kerr_disc.trace(alpha, beta, spin, inclination, observe=observe)
    assert np.quantile(worst, 0.99) < 1e-6


def test_face_on_schwarzschild_rays_reach_the_radius_of_the_deflection_integral():
    b = np.array([3.7252, 7.2221, 14.2204, 24.7197])
    exact = np.array([2.845341, 6.287347, 13.254545, 23.739594])  # integral_0^u du / sqrt(1/b^2 - u^2 + 2 u^3) = pi / 2
    # The exact radii themselves, by Gauss-Legendre: the deflection must be pi / 2.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = 0.5 * (nodes + 1)[:, None] / exact
    deflection = (0.5 * weights[:, None] / exact / np.sqrt(1 / b**2 - u**2 + 2 * u**3)).sum(axis=0)
    np.testing.assert_allclose(deflection, np.pi / 2, rtol=3e-5)
    r = kerr_disc.trace(b, np.full(4, 1e-6), 1e-6, 0.5).r[0]
    np.testing.assert_allclose(r, exact, rtol=5e-4)


@pytest.mark.parametrize(
    "spin, inclination, pixel, expected",
    [
        (0.94, 20.0, (64, 80), (6.1665, 4.7964, 0.6524)),
        (0.94, 20.0, (50, 64), (4.5011, 3.2962, 0.6583)),
        (0.94, 20.0, (40, 90), (14.3382, 3.9675, 0.8332)),
        (0.5, 50.0, (64, 80), (6.2443, 4.7865, 0.5510)),
        (0.5, 50.0, (64, 40), (9.4288, 1.5486, 1.1357)),
        (0.5, 50.0, (90, 70), (18.1123, 6.1287, 0.8896)),
    ],
)
def test_pixels_of_two_tables_agree_with_an_independent_ray_tracer(spin, inclination, pixel, expected):
    alpha, beta = (grid[pixel] for grid in kerr_disc.screen())
    r, phi, direction = kerr_disc.trace(alpha, beta, spin, inclination, step=0.0125)
    g = kerr_disc.redshift(r, direction, *kerr_disc.constants(alpha, beta, spin, inclination), spin)
    np.testing.assert_allclose((r[0], phi[0] % (2 * np.pi), g[0]), expected, atol=7e-5)


def test_the_innermost_stable_orbits_are_those_of_bardeen_press_and_teukolsky():
    radii = [kerr_disc.isco(a) for a in (-0.5, 0.0, 0.5, 0.75, 0.94)]
    np.testing.assert_allclose(radii, (7.554585, 6, 4.233003, 3.158039, 2.023593), atol=1e-6)
    np.testing.assert_allclose((kerr_disc.isco(-1.0), kerr_disc.isco(1.0)), (9, 1), atol=1e-9)


def test_the_redshift_without_spin_is_that_of_circular_schwarzschild_orbits():
    alpha, beta = kerr_disc.screen(32)
    lam, eta = kerr_disc.constants(alpha, beta, 1e-4, 50.0)
    r, _, direction = kerr_disc.trace(alpha, beta, 1e-4, 50.0)
    g = kerr_disc.redshift(r, direction, lam, eta, 0.0)
    outside = r >= 6
    lam = np.broadcast_to(lam, r.shape)[outside]
    assert outside.sum() > 800
    np.testing.assert_allclose(g[outside], np.sqrt(1 - 3 / r[outside]) / (1 - lam * r[outside] ** -1.5), rtol=1e-9)


@pytest.mark.parametrize("spin", kerr_disc.SPINS)
def test_the_redshift_is_continuous_at_the_innermost_stable_orbit(spin):
    r_i, lam, eta = kerr_disc.isco(spin), np.linspace(-3, 3, 7), np.full(7, 12.0)
    radii = (np.full(7, r_i * f) for f in (1 - 1e-6, 1 + 1e-6))
    inside, outside = (kerr_disc.redshift(r, np.ones(7), lam, eta, spin) for r in radii)
    np.testing.assert_allclose(inside, outside, atol=1e-3)
    assert (outside > 0).all()


def test_a_hole_without_spin_looks_the_same_left_and_right():
    alpha, beta = np.array([3.0, 8.0, 15.0]), np.array([7.0, 0.5, -4.0])
    left, right = (kerr_disc.trace(sign * alpha, beta, 1e-6, 35.0).r[0] for sign in (-1, 1))
    np.testing.assert_allclose(left, right, rtol=1e-5)


def test_the_texture_is_a_standardised_field_of_the_stated_spectrum():
    fields = np.stack([kerr_disc.texture(np.random.default_rng(k), 0.3, 0.6, 0.7) for k in range(400)])
    np.testing.assert_allclose(fields.mean(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(fields.std(axis=(1, 2)), 1, atol=1e-12)
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(axis=0)
    k_r = 2 * np.pi / np.log(60)
    for m, n in ((1, 2), (2, -3), (0, 5)):  # 400 exponential variates each: 5 % standard error per mode
        q = (0.3 * (m * k_r + 0.7 * n)) ** 2 + (0.6 * n) ** 2
        q_0 = (0.3 * k_r) ** 2
        expected = ((1 + q_0) / (1 + q)) ** 2
        assert power[m, n] / power[1, 0] == pytest.approx(expected, rel=4 * 0.05 * np.sqrt(2))


def test_image_k_depends_on_seed_and_k_only_and_is_accepted_by_the_stated_rule():
    grid = {"spins": (0.5,), "inclinations": (20.0, 50.0)}
    images = kerr_disc.generate(12, 3, **grid)
    np.testing.assert_array_equal(kerr_disc.generate(5, 3, **grid), images[:5])
    np.testing.assert_array_equal(kerr_disc.generate(4, 3, start=8, **grid), images[8:])
    assert np.abs(kerr_disc.generate(12, 4, **grid) - images).max(axis=(1, 2)).min() > 0.05
    np.testing.assert_array_equal(images.max(axis=(1, 2)), 1)
    edges = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert images.min() >= 0 and edges.max() <= 0.1


def test_the_weights_choose_the_inclination():
    only = kerr_disc.generate(3, 5, spins=(0.5,), inclinations=(20.0, 50.0), weights=(0.0, 1.0))
    both = kerr_disc.generate(3, 5, spins=(0.5,), inclinations=(20.0, 50.0), weights=(1.0, 0.0))
    assert np.abs(only - both).max(axis=(1, 2)).min() > 0.02


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kerr_disc.generate(-1, 0), "must not be negative"),
        (lambda: kerr_disc.generate(1, 0, weights=(1.0, 2.0)), "one per inclination"),
        (lambda: kerr_disc.trace(1.0, 1.0, 0.0, 20.0), "spin"),
        (lambda: kerr_disc.trace(1.0, 1.0, 0.5, 90.0), "inclination"),
    ],
)
def test_senseless_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
