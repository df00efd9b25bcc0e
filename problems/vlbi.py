"""Very long baseline interferometry: observation tables, (u, v) geometry, closure sets, data products.

Host code in numpy: it runs once per observation. Conventions: V = sum I exp(+2 pi i (u x + v y)), x East and y North in
radians, u and v in wavelengths; sigma is the thermal error per real and per imaginary part; a row (first, second) means
station ``first`` minus station ``second`` and always has rank(first) < rank(second).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
SPEED_OF_LIGHT = 299792458.0  # m/s
MICROARCSECOND = np.pi / 180 / 3600e6  # rad
SOURCES = {"m87": (12.513728717168174, 12.39112323919932), "sgra": (17.761122472222223, -28.992189444444445)}
"""Right ascension in hours and declination in degrees."""
LARGEST = 1e12
"""Of a visibility in Jy and of its ratio to sigma; beyond, a closure's variance is no number that means anything."""
SCAN_GAP = 0.0165
"""Hours between two samples that separate two scans; 59.4 s (problems/data/README.md)."""


@dataclass(frozen=True)
class Visibilities:
    """One row per baseline and time. ``stations`` is in rank order; ``first`` and ``second`` index it."""

    stations: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    time: np.ndarray  # h, UT of the day
    tint: np.ndarray  # s
    u: np.ndarray  # wavelengths
    v: np.ndarray
    vis: np.ndarray  # Jy, complex128
    sigma: np.ndarray  # Jy
    name: str = "observation"
    about: Mapping = field(default_factory=dict)  # object, ra_deg, dec_deg, date (ISO), mjd, frequency_hz, if known

    def __len__(self):
        return len(self.u)

    @property
    def scan(self):
        """Scan number of each row: a gap longer than ``SCAN_GAP`` between distinct times starts a new scan."""
        times, inverse = np.unique(self.time, return_inverse=True)
        return np.concatenate([[0], np.cumsum(np.diff(times) > SCAN_GAP)])[inverse]

    def rows(self, keep):
        """The rows of the mask or index array ``keep``."""
        columns = ("first", "second", "time", "tint", "u", "v", "vis", "sigma")
        return replace(self, **{c: getattr(self, c)[keep] for c in columns})


def visibility_table(station1, station2, time, tint, u, v, vis, sigma, name="observation", about=None):
    """Check the columns and build a ``Visibilities``.

    Parameters
    ----------
    station1, station2 : sequences (n,) of station codes
    name, about : of the `Visibilities`, whose stations are in alphabetical order

    Raises ValueError for non-finite numbers, sigma <= 0, a visibility or a ratio |V|/sigma beyond `LARGEST` (0 is
    allowed), a station paired with itself, or fewer than three stations.
    """
    columns = {"time": time, "tint": tint, "u": u, "v": v, "vis": vis, "sigma": sigma}
    columns = {k: np.array(c, dtype=complex if k == "vis" else float) for k, c in columns.items()}
    _check_numbers(columns, name)
    stations = tuple(sorted(set(station1) | set(station2)))
    if len(stations) < 3:
        raise ValueError(f"observation: got {name} with {len(stations)} stations ({', '.join(stations)}), expected at "
                         "least three, which closures need")
    rank = {code: k for k, code in enumerate(stations)}
    first = np.array([rank[s] for s in station1])
    second = np.array([rank[s] for s in station2])
    bad = np.flatnonzero(first == second)
    if bad.size:
        raise ValueError(f"observation: got {name} with station {station1[bad[0]]} twice in data row {bad[0]}, "
                         "expected two different stations")
    swap = first > second  # V_ba = conj V_ab
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    for column in ("u", "v"):
        columns[column] = np.where(swap, -columns[column], columns[column])
    columns["vis"] = np.where(swap, columns["vis"].conj(), columns["vis"])
    return Visibilities(stations, first, second, name=name, about=about or {}, **columns)


def _check_numbers(columns, name):
    """ValueError for the first number of a table that cannot be."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        size = np.abs(columns["vis"])
        wrong = [(column, values, ~np.isfinite(values), "a finite number") for column, values in columns.items()]
        wrong += [("sigma", columns["sigma"], columns["sigma"] <= 0, "a positive number"),
                  ("|V|", size, size > LARGEST, f"at most {LARGEST:g}"),
                  ("|V|/sigma", size / columns["sigma"], size / columns["sigma"] > LARGEST, f"at most {LARGEST:g}")]
    for what, values, bad, expected in wrong:
        if bad.any():
            row = np.flatnonzero(bad)[0]
            raise ValueError(f"observation: got {name} with {what} = {values[row]} in data row {row}, expected "
                             f"{expected}")


def scan_average(observation):
    """Coherent scan averages, one row per scan and baseline.

    V, u, v are arithmetic means, tint the sum, time the earliest sample, sigma = sqrt(sum sigma_k^2)/N.
    """
    key = np.stack([observation.scan, observation.first, observation.second], axis=1)
    groups, inverse, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)

    def total(values):
        return np.bincount(inverse, values, minlength=len(groups))

    time = np.full(len(groups), np.inf)
    np.minimum.at(time, inverse, observation.time)
    vis = (total(observation.vis.real) + 1j * total(observation.vis.imag)) / count
    return replace(observation, first=groups[:, 1], second=groups[:, 2], time=time, tint=total(observation.tint),
                   u=total(observation.u) / count, v=total(observation.v) / count, vis=vis,
                   sigma=np.sqrt(total(observation.sigma**2)) / count)


# ------------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Station:
    """One telescope: two-letter code, ECEF position in metres, system equivalent flux densities in Jy."""

    code: str
    position: tuple[float, float, float]
    sefd: dict = field(default_factory=dict)


def read_stations():
    """The eight sites of 2017 in table order, which is their rank."""
    lines = [line for line in (DATA / "stations.csv").read_text().splitlines() if not line.startswith("#")]
    return [Station(r["code"], (float(r["x_m"]), float(r["y_m"]), float(r["z_m"])),
                    {"nominal": float(r["sefd_nominal_jy"]), "m87": float(r["sefd_m87_jy"])})
            for r in csv.DictReader(lines)]


def sidereal_time(mjd, ut):
    """Greenwich mean sidereal time in hours at ``ut`` hours of the day ``mjd``, (BH6)."""
    days = np.floor(mjd) + 2400000.5 - 2451545.0
    return (6.697374558 + 0.06570982441908 * days + 1.00273790935 * np.asarray(ut)) % 24


def station_uv(position, gmst, right_ascension, declination, frequency):
    """East and North coordinates of a station in wavelengths and its elevation in degrees, (BH3)-(BH5).

    ``position`` ECEF metres (3,), ``gmst`` and ``right_ascension`` hours, ``declination`` degrees, ``frequency`` Hz.
    """
    x, y, z = position
    theta = np.deg2rad(15 * (np.asarray(gmst) - right_ascension))
    delta = np.deg2rad(declination)
    rotated_x = np.cos(theta) * x - np.sin(theta) * y  # (BH3)
    rotated_y = np.sin(theta) * x + np.cos(theta) * y
    wavelength = SPEED_OF_LIGHT / frequency
    east = rotated_y / wavelength  # (BH4)
    north = (-np.sin(delta) * rotated_x + np.cos(delta) * z) / wavelength
    height = (np.cos(delta) * rotated_x + np.sin(delta) * z) / np.linalg.norm(position)  # (BH5)
    return east, north, np.rad2deg(np.arcsin(height))


def thermal_sigma(sefd1, sefd2, bandwidth, tint):
    """Thermal error of a Stokes I visibility per real and per imaginary part, Jy, (BH7)."""
    return np.sqrt(sefd1 * sefd2 / (2 * bandwidth * tint)) / 0.88 / np.sqrt(2)


def simulated_coverage(source="m87", hours=None, mjd=57854, frequency=230e9, bandwidth=2e9, tint=60.0, cadence=600.0,
                       elevation=(10.0, 85.0), sefd="m87"):
    """Baselines of the 2017 array without data (vis = 0): the standard simulation.

    ``hours`` (start, stop) UT; 0.5-8 h for M87 (610 rows), 8-16 h for Sgr A* (759 rows).
    """
    if hours is None:
        hours = (0.5, 8.0) if source == "m87" else (8.0, 16.0)
    right_ascension, declination = SOURCES[source]
    stations = read_stations()
    time = hours[0] + np.arange(int(np.ceil((hours[1] - hours[0]) * 3600 / cadence - 1e-9))) * cadence / 3600
    gmst = sidereal_time(mjd, time)
    east, north, height = np.array([station_uv(s.position, gmst, right_ascension, declination, frequency)
                                    for s in stations]).transpose(1, 0, 2)
    up = (height > elevation[0]) & (height < elevation[1])
    rows = [(k, a, b) for k in range(len(time)) for a, b in combinations(np.flatnonzero(up[:, k]), 2)]
    k, a, b = np.array(rows).T
    flux_density = np.array([s.sefd[sefd] for s in stations])
    return Visibilities(tuple(s.code for s in stations), a, b, time[k], np.full(len(k), tint), east[a, k] - east[b, k],
                        north[a, k] - north[b, k], np.zeros(len(k), complex),
                        thermal_sigma(flux_density[a], flux_density[b], bandwidth, tint), name=f"simulated {source}")


# ------------------------------------------------------------------------------------------------------------- closures


@dataclass(frozen=True)
class ClosureSet:
    """Which rows of a ``Visibilities`` form the closures.

    Attributes
    ----------
    triangles : int (n_cp, 3)      rows ab, bc, ac with signs +1, +1, -1
    quadrangles : int (n_lca, 4)   rows with signs +1, +1, -1, -1
    independent : (int, int)       how many independent phases and amplitudes the baselines allow
    """

    triangles: np.ndarray
    quadrangles: np.ndarray
    independent: tuple[int, int]

    @property
    def shortfall(self):
        """Independent closures that this set does not reach, (phases, amplitudes)."""
        return self.independent[0] - len(self.triangles), self.independent[1] - len(self.quadrangles)

    def phase_matrix(self, rows):
        """(n_cp, rows) with entries 0, +-1: closure phase = matrix @ phase."""
        return _incidence(self.triangles, (1, 1, -1), rows)

    def amplitude_matrix(self, rows):
        """(n_lca, rows) with entries 0, +-1: log closure amplitude = matrix @ ln|V|."""
        return _incidence(self.quadrangles, (1, 1, -1, -1), rows)


def _incidence(index, signs, rows):
    matrix = np.zeros((len(index), rows))
    for column, sign in enumerate(signs):
        matrix[np.arange(len(index)), index[:, column]] = sign
    return matrix


def independent_closures(observation):
    """Number of independent closure phases and log closure amplitudes.

    Per scan: baselines minus the rank of the signed (phases) or unsigned (amplitudes) baseline-station incidence.
    """
    phases = amplitudes = 0
    scan = observation.scan
    for s in range(scan.max() + 1):
        rows = np.flatnonzero(scan == s)
        signed = np.zeros((len(rows), len(observation.stations)))
        signed[np.arange(len(rows)), observation.first[rows]] = 1
        signed[np.arange(len(rows)), observation.second[rows]] = -1
        phases += len(rows) - np.linalg.matrix_rank(signed)
        amplitudes += len(rows) - np.linalg.matrix_rank(np.abs(signed))
    return int(phases), int(amplitudes)


def _scans(observation):
    """Per scan: {(a, b): row} and the stations present in rank order."""
    scan = observation.scan
    for s in range(scan.max() + 1):
        edges = {(int(observation.first[r]), int(observation.second[r])): int(r) for r in np.flatnonzero(scan == s)}
        yield edges, sorted({station for edge in edges for station in edge})


def _pair(a, b):
    return (a, b) if a < b else (b, a)


def _closure_set(observation, triangles, quadrangles, max_tint_ratio):
    triangles = np.array(triangles, int).reshape(-1, 3)
    quadrangles = np.array(quadrangles, int).reshape(-1, 4)
    if max_tint_ratio is not None:
        triangles, quadrangles = (index[_tint_ratio(observation, index) <= max_tint_ratio]
                                  for index in (triangles, quadrangles))
    if len(triangles) == 0:
        raise ValueError(f"observation: got {observation.name} without a closed triangle of stations at any time, "
                         "expected some, for closure phases")
    return ClosureSet(triangles, quadrangles, independent_closures(observation))


def _tint_ratio(observation, rows):
    tint = observation.tint[rows]
    return tint.max(axis=-1) / tint.min(axis=-1)


def minimal_set(observation, max_tint_ratio=None):
    """The 'min' closure set of ehtim: all triangles and a chain of quadrangles through one reference station per scan.

    Of full rank as long as no baseline is missing; otherwise it falls short (``ClosureSet.shortfall``).
    """
    triangles, quadrangles = [], []
    for edges, s in _scans(observation):
        for a, b in combinations(s[1:], 2):
            sides = [(s[0], a), (a, b), (s[0], b)]
            if all(side in edges for side in sides):
                triangles.append([edges[side] for side in sides])
        for i in range(3, len(s)):
            for j in range(1, i):
                k = 1 if j == i - 1 else j + 1
                sides = [_pair(s[0], s[i]), _pair(s[j], s[k]), _pair(s[0], s[k]), _pair(s[i], s[j])]
                if all(side in edges for side in sides):
                    quadrangles.append([edges[side] for side in sides])
    return _closure_set(observation, triangles, quadrangles, max_tint_ratio)


def closure_candidates(observation, max_tint_ratio=None):
    """Per scan, all triangles and all quadrangles in three variants: two lists of (station ranks, variant, rows)."""
    for edges, s in _scans(observation):
        triangles = [((a, b, c), 0, (edges[a, b], edges[b, c], edges[a, c])) for a, b, c in combinations(s, 3)
                     if {(a, b), (b, c), (a, c)} <= edges.keys()]
        quadrangles = []
        for a, b, c, d in combinations(s, 4):
            pairings = [((a, b), (c, d)), ((a, c), (b, d)), ((a, d), (b, c))]
            for variant, (plus, minus) in enumerate(combinations(pairings, 2)):
                if {*plus, *minus} <= edges.keys():
                    quadrangles.append(((a, b, c, d), variant, tuple(edges[e] for e in plus + minus)))
        if max_tint_ratio is not None:
            triangles, quadrangles = ([q for q in group if _tint_ratio(observation, list(q[2])) <= max_tint_ratio]
                                      for group in (triangles, quadrangles))
        yield triangles, quadrangles


def full_rank_set(observation, max_tint_ratio=None):
    """A largest independent closure set of minimal total thermal error: greedy on the linear matroid, per scan.

    Candidates are sorted by (thermal sigma, station ranks, variant): the set does not depend on the order of rows.
    Triangles alone can miss a chordless cycle of baselines: see ``ClosureSet.shortfall``.
    """
    variance = (observation.sigma / np.abs(observation.vis)) ** 2
    triangles, quadrangles = [], []
    for group in closure_candidates(observation, max_tint_ratio):
        for chosen, candidates, signs in zip((triangles, quadrangles), group, ((1, 1, -1), (1, 1, -1, -1))):
            candidates = sorted(candidates, key=lambda c: (sum(variance[r] for r in c[2]), c[0], c[1]))
            chosen.extend(c[2] for c in sorted(_independent(candidates, signs)))
    return _closure_set(observation, triangles, quadrangles, None)


def _independent(candidates, signs):
    """Those candidates, in order, that raise the rank of their incidence rows (Gram-Schmidt)."""
    columns = {r: k for k, r in enumerate(sorted({r for c in candidates for r in c[2]}))}
    basis = np.zeros((0, len(columns)))
    accepted = []
    for candidate in candidates:
        row = np.zeros(len(columns))
        row[[columns[r] for r in candidate[2]]] = signs
        for _ in range(2):  # the second pass removes the rounding of the first
            row = row - basis.T @ (basis @ row)
        norm = np.linalg.norm(row)
        if norm > 1e-6:
            basis = np.vstack([basis, row / norm])
            accepted.append(candidate)
    return accepted


# -------------------------------------------------------------------------------------------------------- data products


def wrap(angle):
    """``angle`` (numpy, radians) in [-pi, pi]."""
    return angle - 2 * np.pi * np.round(angle / (2 * np.pi))


def closure_phases(vis, closures):
    """Closure phases in radians of complex visibilities (..., n_vis), (BH8)."""
    return wrap(np.angle(vis) @ closures.phase_matrix(vis.shape[-1]).T)


def log_closure_amplitudes(vis, closures):
    """Log closure amplitudes of complex visibilities (..., n_vis), (BH9); no debiasing."""
    return np.log(np.abs(vis)) @ closures.amplitude_matrix(vis.shape[-1]).T


def closure_sigmas(vis, sigma, closures, systematic=0.0):
    """Errors of the closure phases (rad) and log closure amplitudes from measured amplitudes, (BH10).

    ``systematic`` = f adds (f |V|)^2 to the variance of every visibility, (BH11). Correlations between closures that
    share a baseline are ignored.
    """
    relative = (sigma / np.abs(vis)) ** 2 + systematic**2
    return (np.sqrt(relative[..., closures.triangles].sum(axis=-1)),
            np.sqrt(relative[..., closures.quadrangles].sum(axis=-1)))


def chi2_visibility(model, observation):
    """Mean of |dV/sigma|^2 over the 2 n_vis real and imaginary parts; model (..., n_vis) complex, Jy."""
    return np.mean(np.abs((model - observation.vis) / observation.sigma) ** 2, axis=-1) / 2


def chi2_amplitude(model, observation):
    """Mean of (d|V|/sigma)^2, no debiasing."""
    return np.mean(((np.abs(model) - np.abs(observation.vis)) / observation.sigma) ** 2, axis=-1)


def chi2_phase(model, data, sigma):
    """2 mean (1 - cos d)/sigma^2 of closure phases, over the last axis."""
    return 2 * np.mean((1 - np.cos(model - data)) / sigma**2, axis=-1)


def chi2_log_amplitude(model, data, sigma):
    """Mean of (d/sigma)^2 of log closure amplitudes, over the last axis."""
    return np.mean(((model - data) / sigma) ** 2, axis=-1)


# ----------------------------------------------------------------------------------------------------------- corruption


def add_thermal_noise(observation, rng):
    """Complex normal noise of ``sigma`` per real and per imaginary part; ``rng`` a numpy Generator."""
    noise = rng.standard_normal((2, len(observation)))
    return replace(observation, vis=observation.vis + observation.sigma * (noise[0] + 1j * noise[1]))


def corrupt_stations(observation, rng, gain=0.1):
    """Multiply V and sigma by station gains g_1 g_2, and V by exp(i (p_2 - p_1)); closures feel neither.

    g = |(1 + gain e)(1 + gain e_t)|^(1/2), e standard normal per station, e_t per station and scan; p uniform per
    station and scan.
    """
    stations, scan = len(observation.stations), observation.scan
    constant = 1 + gain * rng.standard_normal((stations, 1))
    varying = 1 + gain * rng.standard_normal((stations, scan.max() + 1))
    g = np.sqrt(np.abs(constant * varying))
    phase = rng.uniform(0, 2 * np.pi, (stations, scan.max() + 1))
    factor = g[observation.first, scan] * g[observation.second, scan]
    turn = np.exp(1j * (phase[observation.second, scan] - phase[observation.first, scan]))
    return replace(observation, vis=observation.vis * factor * turn, sigma=observation.sigma * factor)
