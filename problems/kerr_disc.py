"""Images of a thin, textured accretion disc around a Kerr black hole: the stand-in image set of the black-hole problem.

Label: "kerr-disc-grf: equatorial Kerr disc with log-normal texture, not GRMHD". Emission comes from the equatorial
plane only, without optical depth, jet or magnetic field; spin and inclination lie on a grid. Fair for exercising code,
priors and comparisons among algorithms, no substitute for GRMHD simulations.

Units M = G = c = 1; the observer is at infinity, inclination i from the spin axis, mu_o = cos i, s_o = sin i. Rays are
traced backwards from the screen in Mino time; u = 1/r and mu = cos(theta) obey second-order equations, so turning
points need no bookkeeping. Equations (K1) ... (K7): radial and polar potentials of Carter (1968) and Bardeen (1973);
redshift of circular orbits (Bardeen, Press and Teukolsky 1972) and of the plunge inside the innermost stable orbit
(Cunningham 1975; Mummery and Balbus 2022).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

LABEL = "kerr-disc-grf: equatorial Kerr disc with log-normal texture, not GRMHD"
SPINS = (-0.5, 0.0, 0.5, 0.75, 0.94)
INCLINATIONS = (5.0, 20.0, 35.0, 50.0, 65.0, 80.0)
WEIGHTS = (0.21, 0.21, 0.21, 0.21, 0.09, 0.07)  # of the inclinations: mostly M87-like views
SIZE = 64  # pixels of an image
FIELD_OF_VIEW = 160.0  # micro-arcseconds

_SCREEN = 128  # pixels of the screen of a table, and of the fine image before averaging 2 x 2
_HALF_WIDTH = 28.0  # of the screen, in M
_CROSSINGS = 2  # direct image n = 0 and first photon-ring image n = 1; n = 2 is below a pixel
_EDGE = 0.1  # largest edge pixel of an accepted image, peak 1
_CELLS_R, _CELLS_PHI, _R_MAX = 96, 192, 60.0  # of the texture in ln r and phi


# ---------------------------------------------------------------------------------------------------------------- rays


class Crossings(NamedTuple):
    """Equatorial crossings of traced rays, each array (2, *rays): n = 0 and n = 1; r = 0 where there is none."""

    r: np.ndarray  # Boyer-Lindquist radius
    phi: np.ndarray  # azimuth (mirrored: it runs with the forward motion), radians
    direction: np.ndarray  # sign of du/dtau: +1 while the backward ray approaches the hole


def screen(pixels=_SCREEN):
    """alpha (right) and beta (up), each (pixels, pixels), in M; row 0 is the top. Shifted by 1e-6 off the axes."""
    centres = (np.arange(pixels) + 0.5) * (2 * _HALF_WIDTH / pixels) - _HALF_WIDTH
    return np.meshgrid(centres + 1e-6, -centres + 1e-6)


def constants(alpha, beta, spin, inclination):
    """lam and eta of a ray, (K1): axial angular momentum and Carter constant per energy. Inclination in degrees."""
    mu_o, s_o = np.cos(np.radians(inclination)), np.sin(np.radians(inclination))
    return -alpha * s_o, (alpha**2 - spin**2) * mu_o**2 + beta**2


def trace(alpha, beta, spin, inclination, step=0.05, observe=None):
    """Trace rays backwards from the screen to their first two equatorial crossings, (K1)-(K5).

    Parameters
    ----------
    alpha, beta : array            screen coordinates in M, any common shape
    spin : float                   0 < |spin| < 1 (use 1e-4 for a Schwarzschild hole)
    inclination : float            degrees, 0 < inclination < 90
    step : float                   of the angle b dtau, radians; classical fourth-order Runge-Kutta
    observe : callable or None     observe(rays, state) after every step, for tests: indices of running rays (n,), their
                                   (u, u', mu, mu', phi_r, Re w, Re w', Im w, Im w') as an array (9, n)

    Returns
    -------
    Crossings, arrays (2, *shape). The crossing is interpolated linearly within a step: r is ~2e-4 relative too large.
    """
    a = float(spin)
    if not 0 < abs(a) < 1:
        raise ValueError(f"spin: got {spin!r}, expected 0 < |spin| < 1 (1e-4 for a hole without spin)")
    if not 0 < inclination < 90:
        raise ValueError(f"inclination: got {inclination!r}, expected an angle between 0 and 90 degrees, both excluded")
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    shape, alpha, beta = alpha.shape, alpha.reshape(-1), beta.reshape(-1)
    mu_o, s_o = np.cos(np.radians(inclination)), np.sin(np.radians(inclination))
    lam, eta = constants(alpha, beta, a, inclination)
    horizon = 0.995 / (1 + np.sqrt(1 - a * a))
    dtau = step / np.maximum(np.hypot(alpha, beta), 2.0)

    dmu = np.sign(beta) * np.sqrt(np.maximum(eta - (eta + lam**2 - a * a) * mu_o**2 - a * a * mu_o**4, 0.0))
    one, zero = np.ones_like(lam), np.zeros_like(lam)
    # rows: u, u', mu, mu', phi_r, Re w, Re w', Im w, Im w'
    state = np.stack([zero, one, mu_o * one, dmu, zero, s_o * one, -mu_o * dmu / s_o, zero, lam / s_o])
    # rows: lam, A1, K, eta + lam^2, dtau
    ray = np.stack([lam, a * a - a * lam, eta + (lam - a) ** 2, eta + lam**2, dtau])

    r, phi, direction = (np.zeros((_CROSSINGS, lam.size)) for _ in range(3))
    found = np.zeros(lam.size, dtype=np.int64)
    running = np.arange(lam.size)
    for _ in range(int((_CROSSINGS + 0.9) * np.pi / step)):
        new = _runge_kutta(state, ray, a)
        crossed = np.flatnonzero(state[2] * new[2] < 0)
        f = state[2, crossed] / (state[2, crossed] - new[2, crossed])
        at = state[:, crossed] + f * (new[:, crossed] - state[:, crossed])
        keep = (at[0] > 1e-3) & (at[0] < horizon)
        who, at = running[crossed[keep]], at[:, keep]
        n = found[who]
        r[n, who], direction[n, who] = 1 / at[0], np.sign(at[1])
        phi[n, who] = at[4] + np.arctan2(at[7], at[5])
        found[who] += 1
        if observe is not None:
            observe(running, new)
        alive = (new[0] < horizon) & (new[0] > -1e-9) & (found[running] < _CROSSINGS)
        state, ray, running = new[:, alive], ray[:, alive], running[alive]
        if running.size == 0:
            break
    return Crossings(*(array.reshape(_CROSSINGS, *shape) for array in (r, phi, direction)))


def _runge_kutta(state, ray, a):
    h = ray[4]
    k1 = _derivative(state, ray, a)
    k2 = _derivative(state + 0.5 * h * k1, ray, a)
    k3 = _derivative(state + 0.5 * h * k2, ray, a)
    k4 = _derivative(state + h * k3, ray, a)
    return state + (h / 6) * (k1 + 2 * (k2 + k3) + k4)


def _derivative(state, ray, a):
    """d/dtau of (u, u', mu, mu', phi_r, Re w, Re w', Im w, Im w')."""
    u, du, mu, dmu, _, wr, dwr, wi, dwi = state
    lam, a1, k, total, _ = ray
    u2, mu2, aa = u * u, mu * mu, a * a
    lift = 1 + a1 * u2
    out = np.empty_like(state)
    out[0] = du
    out[1] = 2 * a1 * u * lift - k * (u - 3 * u2 + 2 * aa * u * u2)  # (K2)
    out[2] = dmu
    out[3] = -(total - aa) * mu - 2 * aa * mu * mu2  # (K3)
    out[4] = a * lift / np.maximum(1 - 2 * u + aa * u2, 1e-3) - a  # (K4)
    c = -(total + 2 * aa * mu2)  # (K5): w = sin(theta) exp(i psi), regular at the poles where lam / sin^2(theta) is not
    out[5], out[6], out[7], out[8] = dwr, c * wr, dwi, c * wi
    return out


# ------------------------------------------------------------------------------------------------------------ redshift


def isco(spin):
    """Radius of the innermost stable circular orbit; spin < 0 is a retrograde disc."""
    a = float(spin)
    z1 = 1 + np.cbrt(1 - a * a) * (np.cbrt(1 + a) + np.cbrt(1 - a))
    z2 = np.sqrt(3 * a * a + z1 * z1)
    return float(3 + z2 - (-1.0 if a < 0 else 1.0) * np.sqrt((3 - z1) * (3 + z1 + 2 * z2)))


def redshift(r, direction, lam, eta, spin):
    """g = observed / emitted frequency; circular orbits (K6), plunging inside the innermost stable one (K7).

    r, direction, lam, eta : arrays of one shape (r = 0: no crossing). Returns g in [0, 4], 0 without a crossing.
    """
    a, r_i = float(spin), isco(spin)
    hit, r = r > 0, np.maximum(r, 1.01)

    omega = 1 / (r**1.5 + a)
    norm = 1 - 2 / r + 4 * a * omega / r - omega**2 * (r * r + a * a + 2 * a * a / r)
    circular = np.sqrt(np.maximum(norm, 0.0)) / (1 - omega * lam)

    omega_i = 1 / (r_i**1.5 + a)
    ut_i = (1 - 2 / r_i + 4 * a * omega_i / r_i - omega_i**2 * (r_i * r_i + a * a + 2 * a * a / r_i)) ** -0.5
    g_tt, g_tp, g_pp = -(1 - 2 / r_i), -2 * a / r_i, r_i * r_i + a * a + 2 * a * a / r_i
    energy, momentum = -ut_i * (g_tt + g_tp * omega_i), ut_i * (g_tp + g_pp * omega_i)
    g_tt, g_tp, g_pp, delta = -(1 - 2 / r), -2 * a / r, r * r + a * a + 2 * a * a / r, r * r - 2 * r + a * a
    ut = (g_pp * energy + g_tp * momentum) / delta
    up = -(g_tp * energy + g_tt * momentum) / delta
    ur = -np.sqrt(2 / (3 * r_i)) * np.maximum(r_i / r - 1, 0.0) ** 1.5
    potential = (r * r + a * a - a * lam) ** 2 - delta * (eta + (lam - a) ** 2)
    kr = direction * np.sqrt(np.maximum(potential, 0.0)) / delta
    plunging = 1 / np.maximum(ut - lam * up - kr * ur, 1e-3)

    return np.where(hit, np.clip(np.where(r >= r_i, circular, plunging), 0.0, 4.0), 0.0)


class Table(NamedTuple):
    """What the screen sees at one spin and inclination: arrays (2, 128, 128), n = 0 and 1; r = 0 without a crossing."""

    r: np.ndarray
    phi: np.ndarray  # radians
    g: np.ndarray


@lru_cache(maxsize=64)
def table(spin, inclination):
    """Ray table of one spin and inclination (degrees), half a second to compute, kept in memory."""
    a = float(spin) or 1e-4
    alpha, beta = screen()
    r, phi, direction = trace(alpha, beta, a, inclination)
    lam, eta = constants(alpha, beta, a, inclination)
    result = Table(r, phi, redshift(r, direction, lam, eta, a))
    for array in result:
        array.flags.writeable = False
    return result


# -------------------------------------------------------------------------------------------------------------- images


class _Lookup(NamedTuple):
    """The crossings of a table inside the texture, as flat arrays over the visible pixels of each n."""

    pixel: np.ndarray
    r: np.ndarray
    log_g: np.ndarray
    cells: np.ndarray  # (4, pixels) flat indices of the four neighbouring cells
    weights: np.ndarray  # (4, pixels) bilinear


@lru_cache(maxsize=64)
def _lookup(spin, inclination):
    lookups = []
    for r, phi, g in zip(*table(spin, inclination)):
        pixel = np.flatnonzero((r > 1) & (r < 58) & (g > 0))
        r, phi, g = (array.reshape(-1)[pixel] for array in (r, phi, g))
        row, column = (_CELLS_R - 1) * np.log(r) / np.log(_R_MAX), _CELLS_PHI * (phi % (2 * np.pi)) / (2 * np.pi)
        i, j = row.astype(np.int64), column.astype(np.int64)
        s, t = row - i, column - j
        left, right = j % _CELLS_PHI, (j + 1) % _CELLS_PHI
        top, bottom = i * _CELLS_PHI, (i + 1) * _CELLS_PHI
        cells = np.stack([top + left, top + right, bottom + left, bottom + right])
        weights = np.stack([(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t])
        lookups.append(_Lookup(pixel, r, np.log(g), cells, weights))
    return tuple(lookups)


def texture(rng, length_r, length_phi, pitch):
    """Gaussian random field of mean 0 and sd 1 on (96, 192) cells of (ln r, phi): Matern-like, sheared into spirals."""
    k_r = 2 * np.pi * np.fft.fftfreq(_CELLS_R, np.log(_R_MAX) / _CELLS_R)[:, None]
    k_phi = np.arange(_CELLS_PHI // 2 + 1.0)[None, :]
    q = (length_r * (k_r + pitch * k_phi)) ** 2 + (length_phi * k_phi) ** 2
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((_CELLS_R, _CELLS_PHI))) / (1 + q), s=(_CELLS_R, _CELLS_PHI))
    return (field - field.mean()) / field.std()


def _blur(image, width):
    """Gaussian blur with standard deviation ``width`` in pixels; nothing comes in from outside the screen."""
    n = np.arange(image.shape[0], dtype=np.float64)
    kernel = np.exp(-0.5 * (n / width) ** 2)
    kernel /= 2 * kernel.sum() - 1
    rows = kernel[np.abs(n[:, None] - n[None, :]).astype(np.int64)]
    return rows @ image @ rows


def _place(image, scale, angle, dx, dy):
    """Screen image (128, 128) -> (64, 64) on the sky: scaled, rotated, shifted, bilinear, averaged 2 x 2."""
    fine = FIELD_OF_VIEW / _SCREEN
    x = (np.arange(_SCREEN) + 0.5) * fine - FIELD_OF_VIEW / 2
    x, y = x[None, :] - dx * fine, -x[:, None] - dy * fine
    c, s = np.cos(angle) / scale, np.sin(angle) / scale
    pixel = 2 * _HALF_WIDTH / _SCREEN
    # one ring of zeros around the screen stands for everything outside
    column = np.clip((c * x + s * y + _HALF_WIDTH) / pixel + 0.5, 0.0, _SCREEN + 0.999)
    row = np.clip((_HALF_WIDTH - (c * y - s * x)) / pixel + 0.5, 0.0, _SCREEN + 0.999)
    i, j = row.astype(np.int64), column.astype(np.int64)
    s, t = row - i, column - j
    flat, width = np.pad(image, 1).reshape(-1), _SCREEN + 2
    at = i * width + j
    upper = (1 - t) * flat[at] + t * flat[at + 1]
    lower = (1 - t) * flat[at + width] + t * flat[at + width + 1]
    placed = (1 - s) * upper + s * lower
    return placed.reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))


def _draw(rng, lookups):
    """One image (64, 64) with peak 1 from freshly drawn parameters; it may still touch the edge."""
    r0, th, skew, sig = rng.uniform(1.2, 5.5), rng.uniform(0.5, 3.5), rng.uniform(-2, 0.3), rng.uniform(0.2, 0.9)
    length_r, length_phi = rng.uniform(0.15, 0.6), rng.uniform(0.3, 1.2)
    pitch = rng.uniform(0.2, 1.2) * rng.choice((-1.0, 1.0))
    p, fn, thick = rng.uniform(2, 3.5), rng.uniform(1, 1.5), rng.uniform(0.3, 1.1)
    halo = rng.uniform(0.02, 0.15) if rng.uniform() < 1 / 3 else 0.0
    md, pa = rng.uniform(3.0, 4.6), rng.uniform(0, 2 * np.pi)
    dx, dy = 3 * rng.standard_normal(2)

    log_texture = sig * texture(rng, length_r, length_phi, pitch).reshape(-1)
    bright = np.exp(log_texture)
    image = np.zeros(_SCREEN * _SCREEN)
    for f, (pixel, r, log_g, cells, weights) in zip((1.0, fn), lookups):
        profile = np.exp(p * log_g - 0.5 * (skew + np.arcsinh((r - r0) / th)) ** 2) / np.sqrt((r - r0) ** 2 + th * th)
        image[pixel] += f * profile * (weights * bright[cells]).sum(axis=0)
    image = image.reshape(_SCREEN, _SCREEN)

    cell = 2 * _HALF_WIDTH / _SCREEN
    image = _blur(image, thick / cell)
    if halo > 0:
        image = image + 8 * halo * _blur(image, 3.5 / cell)
    image = _place(image, md, pa, dx, dy)
    return image / image.max()


def generate(count, seed, *, start=0, spins=SPINS, inclinations=INCLINATIONS, weights=None, dtype="float64"):
    """Draw images start ... start + count - 1 of the set ``seed``. Image k depends on (seed, k) and the grid only.

    Parameters
    ----------
    count : int
    seed : int >= 0                different seeds give independent sets
    start : int                    index of the first image
    spins : sequence of float      of the tables, drawn uniformly
    inclinations : sequence of float   degrees
    weights : sequence of float or None   of the inclinations; None: ``WEIGHTS`` on the full grid, else uniform
    dtype : str                    of the result

    Returns
    -------
    array (count, 64, 64) in [0, 1], peak 1, edge pixels <= 0.1; 160 micro-arcseconds across. Images that reach the edge
    are rejected and redrawn on the same table. Every new (spin, inclination) costs about half a second once.
    """
    if count < 0 or seed < 0 or start < 0:
        raise ValueError(f"count, seed and start must not be negative, got {count}, {seed}, {start}")
    spins, inclinations = tuple(map(float, spins)), tuple(map(float, inclinations))
    if weights is None:
        weights = WEIGHTS if inclinations == INCLINATIONS else (1.0,) * len(inclinations)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(inclinations),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"weights: got {weights}, expected {len(inclinations)} numbers >= 0, one per inclination")
    images = np.empty((count, SIZE, SIZE), dtype=dtype)
    for k in range(count):
        rng = np.random.default_rng([seed, start + k])
        spin = spins[rng.integers(len(spins))]
        inclination = inclinations[rng.choice(len(inclinations), p=weights / weights.sum())]
        lookups = _lookup(spin, inclination)
        while True:
            image = _draw(rng, lookups)
            edge = max(image[0].max(), image[-1].max(), image[:, 0].max(), image[:, -1].max())
            if edge <= _EDGE:
                break
        images[k] = image
    return images
