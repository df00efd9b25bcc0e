"""Reading observations, (u, v) geometry (BH3)-(BH7), closure sets, noise, simulated problems."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from problems import vlbi
from problems.black_hole import black_hole, from_visibilities, m87
from problems.closure_forward import fourier_table
from problems.visibility_files import COLUMNS, read_m87, read_observation

DAY = {"101": vlbi.DATA / "m87_2017_101_lo_scanavg.csv", "096": vlbi.DATA / "m87_2017_096_lo_scanavg.csv"}


def crescent(radius=20.0, width=5.0, asymmetry=0.6, position_angle=195.0, centre=(0.0, 0.0)):
    """A ring brighter on one side: lengths in micro-arcseconds, angle in degrees East of North."""
    axis = (31.5 - np.arange(64)) * 2.5
    east, north = np.meshgrid(axis - centre[0], axis - centre[1])
    side = 1 + asymmetry * np.cos(np.arctan2(east, north) - np.deg2rad(position_angle))
    return np.exp(-(np.hypot(east, north) - radius) ** 2 / (2 * width**2)) * side


# -------------------------------------------------------------------------------------------------------- closure sets


@pytest.mark.parametrize("day, cut, rows, minimal, independent, candidates", [
    ("101", True, 189, (70, 69), (107, 91), (171, 340)), ("096", True, 242, (93, 90), (141, 117), (220, 433)),
    ("101", False, 216, (134, 113), (134, 113), (257, 564)), ("096", False, 274, (173, 149), (173, 149), (334, 741))])
def test_the_greedy_set_reaches_full_rank_where_the_minimal_set_falls_short(day, cut, rows, minimal, independent,
                                                                            candidates):
    data = read_m87(day)
    if cut:
        data = data.rows(np.hypot(data.u, data.v) >= 0.1e9)
    assert len(data) == rows
    small, full = vlbi.minimal_set(data), vlbi.full_rank_set(data)
    assert (len(small.triangles), len(small.quadrangles)) == minimal
    assert (len(full.triangles), len(full.quadrangles)) == independent == vlbi.independent_closures(data)
    assert full.shortfall == (0, 0)
    assert small.shortfall == tuple(np.subtract(independent, minimal))
    groups = list(vlbi.closure_candidates(data))
    assert tuple(sum(len(g[k]) for g in groups) for k in (0, 1)) == candidates
    for chosen in (small, full):  # as many closures as the rank of their incidence: none depends on the others
        assert np.linalg.matrix_rank(chosen.phase_matrix(rows)) == len(chosen.triangles)
        assert np.linalg.matrix_rank(chosen.amplitude_matrix(rows)) == len(chosen.quadrangles)


@pytest.mark.parametrize("source, rows, minimal, triangles", [("m87", 610, (400, 355), 798),
                                                             ("sgra", 759, (519, 471), 1141)])
def test_the_standard_simulations_have_the_published_numbers_of_closures(source, rows, minimal, triangles):
    coverage = vlbi.simulated_coverage(source)
    assert len(coverage) == rows
    closures = vlbi.minimal_set(coverage)
    assert (len(closures.triangles), len(closures.quadrangles)) == minimal == vlbi.independent_closures(coverage)
    assert sum(len(group[0]) for group in vlbi.closure_candidates(coverage)) == triangles


def named(data, closures):
    """The closures as sets of (time, baselines): independent of the numbering of rows."""
    def key(rows, plus):
        edges = [(data.time[r], data.first[r], data.second[r]) for r in rows]
        return tuple(sorted(edges[:plus])), tuple(sorted(edges[plus:]))
    return ({key(rows, 2) for rows in closures.triangles}, {key(rows, 2) for rows in closures.quadrangles})


def test_closure_sets_do_not_depend_on_the_order_of_rows():
    data = read_m87("096")
    data = data.rows(np.hypot(data.u, data.v) >= 0.1e9)
    shuffled = data.rows(np.random.default_rng(0).permutation(len(data)))
    for build in (vlbi.minimal_set, vlbi.full_rank_set):
        assert named(data, build(data)) == named(shuffled, build(shuffled))


def test_greedy_triangles_have_the_least_total_variance_of_any_full_rank_set():
    data = read_m87("101")
    full, small = vlbi.full_rank_set(data), vlbi.minimal_set(data)  # both of full rank here
    greedy, chain = (vlbi.closure_sigmas(data.vis, data.sigma, c) for c in (full, small))
    for ours, theirs in zip(greedy, chain):  # a greedy basis of a matroid is optimal element by element
        assert np.all(np.sort(ours) <= np.sort(theirs) * (1 + 1e-12))
    assert np.sum(greedy[1]) < 0.95 * np.sum(chain[1])  # phases gain nothing: ALMA, the reference, is the best station


def test_a_chordless_cycle_of_baselines_is_reported_as_a_shortfall():
    """AA-JC-AP-SM without the two intra-site baselines: one independent phase that no triangle sees."""
    pairs = [("AA", "JC"), ("AP", "JC"), ("AP", "SM"), ("AA", "SM")]
    triangle = [("AA", "LM"), ("LM", "PV"), ("AA", "PV")]
    rows = [(0.0, *p) for p in pairs] + [(1.0, *p) for p in triangle]
    n = len(rows)
    data = vlbi.visibility_table([r[1] for r in rows], [r[2] for r in rows], [r[0] for r in rows], np.ones(n),
                                 np.arange(n) * 1e9, np.ones(n), np.ones(n) + 0.5j, np.ones(n))
    closures = vlbi.full_rank_set(data)
    assert closures.independent == (2, 1) and closures.shortfall == (1, 0)


def test_the_cut_on_integration_times_leaves_no_unequal_closure():
    data = read_m87("096")
    assert np.mean(data.tint[vlbi.minimal_set(data).triangles].max(1)
                   > 1.5 * data.tint[vlbi.minimal_set(data).triangles].min(1)) == pytest.approx(0.214, abs=5e-4)
    for build in (vlbi.minimal_set, vlbi.full_rank_set):
        closures = build(data, max_tint_ratio=1.5)
        for index in (closures.triangles, closures.quadrangles):
            assert np.all(data.tint[index].max(axis=1) <= 1.5 * data.tint[index].min(axis=1))
        assert min(closures.shortfall) > 0


# ------------------------------------------------------------------------------------------------------------ geometry


def test_uv_and_elevation_equal_the_golden_table():
    stations = {s.code: s for s in vlbi.read_stations()}
    gmst = vlbi.sidereal_time(57854, 3.0)
    assert vlbi.sidereal_time(57854, 0.0) == pytest.approx(13.29351173, abs=5e-9)
    assert gmst == pytest.approx(16.30172546, abs=5e-9)
    seen = {code: vlbi.station_uv(s.position, gmst, *vlbi.SOURCES["m87"], 230e9) for code, s in stations.items()}
    for a, b, u, v, nominal, real in (
            ("PV", "AZ", 6437468643.330, 329190630.175, 4.339560e-3, 1.180944e-2),
            ("PV", "AA", 3996369037.194, 5175742654.833, 5.822131e-4, 8.233737e-4),
            ("AZ", "LM", -288477964.619, 1246742943.450, 2.840909e-3, 1.180944e-2),
            ("LM", "AA", -2152621641.518, 3599809081.209, 3.811480e-4, 8.233737e-4),
            ("AA", "AP", 492647.266, -1626576.538, 9.205598e-4, 9.606026e-4)):
        assert seen[a][0] - seen[b][0] == pytest.approx(u, abs=0.01)
        assert seen[a][1] - seen[b][1] == pytest.approx(v, abs=0.01)
        for column, expected in (("nominal", nominal), ("m87", real)):
            sigma = vlbi.thermal_sigma(stations[a].sefd[column], stations[b].sefd[column], 2e9, 60.0)
            assert sigma == pytest.approx(expected, rel=1e-6)
    for code, elevation in (("PV", 36.4616), ("AZ", 37.6008), ("LM", 50.5550), ("AA", 53.1282), ("AP", 53.1491),
                            ("SM", -3.7871), ("JC", -3.7884), ("SP", -12.3911)):
        assert seen[code][2] == pytest.approx(elevation, abs=5e-5)


@pytest.mark.parametrize("day, mjd, worst_u, worst_v", [("101", 57854, 4.0e6, 1.9e6), ("096", 57849, 8.4e6, 2.0e6)])
def test_the_station_table_reproduces_the_observed_uv(day, mjd, worst_u, worst_v):
    data = read_m87(day)
    stations = {s.code: s for s in vlbi.read_stations()}
    gmst = vlbi.sidereal_time(mjd, data.time + data.tint / 7200)
    seen = [vlbi.station_uv(stations[c].position, gmst, *vlbi.SOURCES["m87"], 227.070703125e9) for c in data.stations]
    east, north, elevation = np.array(seen).transpose(1, 0, 2)
    k = np.arange(len(data))
    assert np.max(np.abs(east[data.first, k] - east[data.second, k] - data.u)) < 1.05 * worst_u
    assert np.max(np.abs(north[data.first, k] - north[data.second, k] - data.v)) < 1.05 * worst_v
    assert np.min(elevation[data.first, k]) > 5  # a telescope does not look through the Earth


# --------------------------------------------------------------------------------------------------------------- noise


def test_thermal_noise_makes_chi2_of_the_truth_one():
    coverage = vlbi.simulated_coverage()
    parts = fourier_table(coverage.u, coverage.v) @ (crescent() / crescent().sum() * 0.6).reshape(-1)
    truth = parts[:len(coverage)] + 1j * parts[len(coverage):]
    clean = vlbi.replace(coverage, vis=truth)
    rng = np.random.default_rng(0)
    chi2 = [vlbi.chi2_visibility(truth, vlbi.add_thermal_noise(clean, rng)) for _ in range(200)]
    assert np.mean(chi2) == pytest.approx(1, abs=3 / np.sqrt(610 * 200))  # sd of one chi2: sqrt(2/(2 610))


def test_closures_of_the_truth_fit_under_gains_phases_and_noise_although_visibilities_do_not():
    rng = np.random.default_rng(4)
    coverage = vlbi.simulated_coverage(sefd="nominal")
    parts = fourier_table(coverage.u, coverage.v) @ (crescent() / crescent().sum() * 0.6).reshape(-1)
    truth = parts[:len(coverage)] + 1j * parts[len(coverage):]
    noisy = vlbi.corrupt_stations(vlbi.add_thermal_noise(vlbi.replace(coverage, vis=truth), rng), rng)
    closures = vlbi.minimal_set(noisy)
    sigmas = vlbi.closure_sigmas(noisy.vis, noisy.sigma, closures)
    cp = vlbi.chi2_phase(vlbi.closure_phases(truth, closures), vlbi.closure_phases(noisy.vis, closures), sigmas[0])
    assert cp == pytest.approx(1, abs=0.3)
    assert vlbi.chi2_visibility(truth, noisy) > 1000


@pytest.mark.parametrize("noise", ["vis_thermal", "gaussian", "eht"])
def test_noise_depends_on_the_seed_only_and_fits_the_truth(noise):
    problem, same, other = (black_hole(truth=crescent(), noise=noise, seed=s, sefd="nominal") for s in (3, 3, 4))
    np.testing.assert_array_equal(problem.observation.y, same.observation.y)
    assert np.max(np.abs(problem.observation.y - other.observation.y)) > 0.1
    z = (problem.truth - problem.shift)[None] / problem.scale
    g, data = problem.forward(z)[0], problem.observation
    d = (g - data.y) / data.noise
    strong = data.noise < 0.2  # the delta method holds there
    assert strong.sum() > 200 and np.mean(d[strong] ** 2) == pytest.approx(1, abs=4 * np.sqrt(2 / strong.sum()))
    flux = data.blocks["flux"]
    if noise == "eht":  # the intra-site amplitude carries station gains of about ten per cent
        assert 0.02 < abs(data.y[flux][0] / g[flux][0] - 1) < 0.5
    else:
        assert data.y[flux][0] == pytest.approx(g[flux][0], rel=1e-12)
    assert data.noise[flux][0] == 2.0


def test_coverage_of_a_real_day_takes_its_baselines_and_errors():
    problem = black_hole(truth=crescent(), coverage="m87-101", seed=1)
    assert {k: b.stop - b.start for k, b in problem.observation.blocks.items()} == {"cp": 134, "lca": 113, "flux": 1}
    half = black_hole(truth=crescent(), time_fraction=0.5)
    assert 0.3 < len(half.observation.y) / len(black_hole(truth=crescent()).observation.y) < 0.7


def test_real_data_carry_no_flux_term_and_a_systematic_error():
    problem, bare = m87("101"), m87("101", systematic=0.0)
    assert set(problem.observation.blocks) == {"cp", "lca"} and len(problem.observation.y) == 107 + 91
    cp, lca = (problem.observation.blocks[k] for k in ("cp", "lca"))
    added = problem.observation.noise**2 - bare.observation.noise**2
    np.testing.assert_allclose(added[cp], 3 * 0.02**2, rtol=1e-9)
    np.testing.assert_allclose(added[lca], 4 * 0.02**2, rtol=1e-9)
    np.testing.assert_array_equal(problem.observation.angular, np.arange(198) < 107)


# ------------------------------------------------------------------------------------------------------------- reading


def write_csv(path, data):
    lines = [",".join(COLUMNS)]
    for k in range(len(data)):
        lines.append(f"{data.time[k]!r},{data.tint[k]!r},{data.stations[data.first[k]]},{data.stations[data.second[k]]},"
                     f"{data.u[k]!r},{data.v[k]!r},{data.vis[k].real!r},{data.vis[k].imag!r},{data.sigma[k]!r}"
                     .replace("np.float64(", "").replace(")", ""))
    path.write_text("\n".join(lines))


def test_a_row_of_swapped_stations_means_the_same(tmp_path):
    data = read_m87("101")
    text = DAY["101"].read_text().splitlines()
    cells = text[1].split(",")
    cells[2], cells[3] = cells[3], cells[2]
    for k in (4, 5, 7):
        cells[k] = repr(-float(cells[k]))
    path = tmp_path / "swapped.csv"
    path.write_text("\n".join([text[0], ",".join(cells), *text[2:]]))
    again = read_observation(path)
    for column in ("first", "second", "u", "v", "vis"):
        np.testing.assert_array_equal(getattr(again, column), getattr(data, column))


def test_an_unaveraged_file_is_averaged_by_scan(tmp_path):
    """Split every average into samples 10 s apart around its value: averaging must restore it."""
    data = read_m87("101")
    n, k = len(data), 4
    offset = np.array([-3, -1, 1, 3.0])[:, None]
    samples = vlbi.replace(data, first=np.tile(data.first, k), second=np.tile(data.second, k),
                           time=(data.time + np.arange(k)[:, None] * 10 / 3600).reshape(-1),
                           tint=np.tile(data.tint / k, k), u=(data.u + 1e5 * offset).reshape(-1),
                           v=(data.v - 2e5 * offset).reshape(-1), vis=(data.vis * (1 + 0.1j * offset)).reshape(-1),
                           sigma=np.tile(data.sigma * np.sqrt(k), k))
    path = tmp_path / "samples.csv"
    write_csv(path, samples)
    averaged = read_observation(path)
    order, back = (np.lexsort((d.second, d.first, d.time)) for d in (data, averaged))
    assert len(averaged) == n
    for column in ("first", "second", "time", "tint", "u", "v", "vis", "sigma"):
        np.testing.assert_allclose(getattr(averaged, column)[back], getattr(data, column)[order], rtol=1e-12,
                                   atol=1e-9)


def broken(tmp_path, edit):
    lines = DAY["101"].read_text().splitlines()
    path = tmp_path / "broken.csv"
    path.write_text("\n".join(edit(lines)))
    return path


def cell(column, text):
    """Replace one cell of data row 5."""
    def edit(lines):
        cells = lines[6].split(",")
        cells[column] = text
        return [*lines[:6], ",".join(cells), *lines[7:]]
    return edit


@pytest.mark.parametrize("edit, message", [
    (lambda lines: [], "which is empty"),
    (lambda lines: lines[:1], "without data rows"),
    (lambda lines: [lines[0].replace("sigma_jy", "error"), *lines[1:]], "without sigma_jy, expected the columns"),
    (lambda lines: ["hello", "world"], "without time_utc_h"),
    (lambda lines: [*lines[:50], lines[50][:40]], r"with \d fields in data row 49, expected 9"),
    (cell(6, "nan"), r"with vis = \(?nan.* in data row 5, expected a finite number"),
    (cell(4, "inf"), "with u = inf in data row 5, expected a finite number"),
    (cell(8, "1e-300"), r"with \|V\|/sigma = .*e\+300 in data row 5, expected at most 1e\+12"),
    (cell(6, "1e300"), r"with \|V\| = 1e\+300 in data row 5, expected at most 1e\+12"),
    (cell(8, "0"), "with sigma = 0.0 in data row 5, expected a positive number"),
    (cell(8, "-1e-3"), "with sigma = -0.001 in data row 5, expected a positive"),
    (cell(6, "abc"), "with re_jy = 'abc' in data row 5, expected a number"),
    (cell(3, "AA"), "with station AA twice in data row 5, expected two different"),
    (lambda lines: [lines[0]] + [row for row in lines[1:] if ",AA,PV," in row],
     r"with 2 stations \(AA, PV\), expected at least three"),
])
def test_a_bad_file_is_refused_with_the_place_and_the_reason(tmp_path, edit, message):
    path = broken(tmp_path, edit)
    with pytest.raises(ValueError, match=message) as error:
        black_hole(observation=path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_bad_input_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="which does not exist, expected a CSV or UVFITS file"):
        black_hole(observation=tmp_path / "none.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="with binary data, expected a CSV"):
        black_hole(observation=path)
    data = read_m87("101")
    with pytest.raises(ValueError, match="without a closed triangle"):
        from_visibilities(data.rows(data.first == 0))  # a star of baselines from ALMA
    with pytest.raises(ValueError, match="day: got '100', expected 101 "):
        m87("100")
    for name, value in (("coverage", "vlba"), ("noise", "none"), ("closure_set", "max"), ("branch", "cut"),
                        ("time_fraction", 0.0), ("truth", np.zeros((64, 64))), ("truth", np.ones((32, 32)))):
        with pytest.raises(ValueError, match=name):
            black_hole(**{"truth": crescent(), name: value})
    with pytest.raises(ValueError, match="truth: got .*none.npy, which does not exist, expected an .npy file"):
        black_hole(truth=str(tmp_path / "none.npy"))


def test_uvfits_without_astropy_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "data.uvfits"
    path.write_bytes(b"SIMPLE  =                    T" + b" " * 50)
    real_import = builtins.__import__

    def without_astropy(name, *args, **kwargs):
        if name.startswith("astropy"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_astropy)
    with pytest.raises(ImportError, match=r"needs astropy, expected the extra eht.*enkg_ref\[eht\]"):
        read_observation(path)


def write_uvfits(path, data, fits, stokes=(-1, -2), two_dates=True, flag=(), offsets=(0.0,)):
    """A random-groups file after AIPS memo 117, from scratch: Stokes I, or circular polarisations with a V part.

    offsets : Hz, of the IFs. The visibility of each is that of the table, turned by 0.01 rad per IF.
    """
    n, frequency, mjd = len(data), 227.070703125e9, 57854.0
    cube = np.zeros((n, 1, 1, len(offsets), 1, len(stokes), 3))
    for k, s in enumerate(stokes):
        circular = {1: 0.0, -1: 0.3 + 0.1j, -2: -0.3 - 0.1j, -5: 0.3 + 0.1j, -6: -0.3 - 0.1j}[s]  # cancels in Stokes I
        for window in range(len(offsets)):
            vis = data.vis * (1 + circular) * np.exp(0.01j * window)
            sigma = data.sigma * (1.0 if s == 1 else np.sqrt(2))
            cube[:, 0, 0, window, 0, k] = np.stack([vis.real, vis.imag, sigma**-2.0], axis=1)
    for row in flag:
        cube[row][..., 2] = 0
    code = 256.0 * (data.first + 1) + data.second + 1
    day = data.time / 24
    dates = [np.full(n, mjd + 2400000.5), day] if two_dates else [np.full(n, mjd + 2400000.5) + day]
    names = ["UU---SIN", "VV---SIN", "WW---SIN", "BASELINE", *["DATE", "_DATE"][:len(dates)], "INTTIM"]
    values = [data.u / frequency, data.v / frequency, np.zeros(n), code, *dates, data.tint]
    groups = fits.GroupData(cube, bitpix=-64, parnames=names, pardata=values)
    hdu = fits.GroupsHDU(groups)
    axes = (("COMPLEX", 1, 1), ("STOKES", stokes[0], -1), ("FREQ", frequency, 1.856e9), ("IF", 1, 1), ("RA", 187.7, 1),
            ("DEC", 12.4, 1))
    for axis, (name, value, step) in enumerate(axes, start=2):
        hdu.header[f"CTYPE{axis}"], hdu.header[f"CRVAL{axis}"] = name, value
        hdu.header[f"CDELT{axis}"], hdu.header[f"CRPIX{axis}"] = step, 1.0
    hdu.header["OBJECT"] = "M87"
    antennas = fits.BinTableHDU.from_columns([
        fits.Column("ANNAME", "8A", array=np.array(data.stations)),
        fits.Column("NOSTA", "1J", array=np.arange(len(data.stations)) + 1)], name="AIPS AN")
    windows = fits.BinTableHDU.from_columns([
        fits.Column("FRQSEL", "1J", array=[1]),
        fits.Column("IF FREQ", f"{len(offsets)}D", array=np.array([offsets]))], name="AIPS FQ")
    fits.HDUList([hdu, antennas, *[windows] * (len(offsets) > 1)]).writeto(path)


@pytest.mark.parametrize("stokes, two_dates", [((-1, -2), True), ((1,), False), ((-1,), True), ((-5, -6), True)])
def test_a_uvfits_file_gives_the_same_closures_as_the_table_it_was_made_of(tmp_path, stokes, two_dates):
    fits = pytest.importorskip("astropy.io.fits")
    data = read_m87("101")
    path = tmp_path / "day101.uvfits"
    write_uvfits(path, data, fits, stokes, two_dates, flag=(3,))
    again = read_observation(path)
    assert again.stations == data.stations and len(again) == len(data) - 1  # the flagged row is gone
    data = data.rows(np.arange(len(data)) != 3)
    for column, tolerance in (("time", 1e-6), ("tint", 1e-9), ("u", 1e-3), ("v", 1e-3)):
        np.testing.assert_allclose(getattr(again, column), getattr(data, column), rtol=0, atol=tolerance)
    one_hand = stokes == (-1,)
    np.testing.assert_allclose(again.vis, data.vis * (1.3 + 0.1j if one_hand else 1), rtol=1e-9)
    np.testing.assert_allclose(again.sigma, data.sigma * (np.sqrt(2) if one_hand else 1), rtol=1e-9)
    if not one_hand:
        np.testing.assert_allclose(from_visibilities(again).observation.y, from_visibilities(data).observation.y,
                                   rtol=0, atol=1e-6)


def test_a_uvfits_file_of_several_ifs_gives_their_mean_at_their_mean_frequency_without_the_flagged(tmp_path):
    """Two IFs 2 GHz apart, the second turned by 0.01 rad: means of V, u, v; where one is flagged, the other alone."""
    fits = pytest.importorskip("astropy.io.fits")
    data, offsets, path = read_m87("101"), (0.0, 2e9), tmp_path / "two.uvfits"
    write_uvfits(path, data, fits, offsets=offsets, flag=(5, (7, 0, 0, 1)))
    again = read_observation(path)
    assert len(again) == len(data) - 1 and again.stations == data.stations
    assert again.about == pytest.approx({"object": "M87", "ra_deg": 187.7, "dec_deg": 12.4, "date": "2017-04-11",
                                         "mjd": 57854, "frequency_hz": 228.070703125e9})
    keep = np.arange(len(data)) != 5
    kept, one = data.rows(keep), np.flatnonzero(keep) == 7
    order, back = (np.lexsort((d.second, d.first, np.round(d.time, 4))) for d in (kept, again))
    one, again, kept = one[order], again.rows(back), kept.rows(order)
    stretch = np.where(one, 1.0, 1.0 + 1e9 / 227.070703125e9)
    np.testing.assert_allclose(again.u, kept.u * stretch, rtol=1e-9)
    np.testing.assert_allclose(again.vis, kept.vis * np.where(one, 1.0, (1 + np.exp(0.01j)) / 2), rtol=1e-9)
    np.testing.assert_allclose(again.sigma, kept.sigma * np.where(one, 1.0, np.sqrt(0.5)), rtol=1e-9)
    np.testing.assert_allclose(again.tint, kept.tint * np.where(one, 0.5, 1.0), rtol=1e-9)
    write_uvfits(tmp_path / "bad.uvfits", data, fits, offsets=offsets)
    with fits.open(tmp_path / "bad.uvfits") as hdus:
        hdus[:2].writeto(tmp_path / "no-table.uvfits")
    with pytest.raises(ValueError, match="with 2 IFs, expected as many offsets in a table AIPS FQ"):
        read_observation(tmp_path / "no-table.uvfits")


def test_a_table_from_excel_with_visibilities_of_zero_loses_them_only(tmp_path):
    """A byte-order mark is no part of the first column's name; a visibility of 0 has no phase and forms no closure."""
    lines = DAY["101"].read_text().splitlines()
    for k, values in ((4, ("0", "0")), (9, ("1e-300", "0"))):
        cells = lines[k].split(",")
        cells[6:8] = values
        lines[k] = ",".join(cells)
    path = tmp_path / "excel.csv"
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    problem = from_visibilities(read_observation(path), min_baseline=0.0)
    data = read_m87("101")
    same = from_visibilities(data.rows(~np.isin(np.arange(len(data)), (3, 8))), min_baseline=0.0)
    assert np.array_equal(problem.observation.y, same.observation.y) and "2 dropped" in problem.notes
    assert np.array_equal(problem.observation.noise, same.observation.noise)
    path.write_text("\n".join([lines[0], *(",".join([*line.split(",")[:6], "0", "0", "1"]) for line in lines[1:])]))
    with pytest.raises(ValueError, match="none of whose 216 visibilities is kept"):
        from_visibilities(read_observation(path))


def test_a_broken_uvfits_file_is_refused_in_one_sentence(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    data = read_m87("101")
    path, cut, image = tmp_path / "whole.uvfits", tmp_path / "cut.uvfits", tmp_path / "image.fits"
    write_uvfits(path, data, fits)
    cut.write_bytes(path.read_bytes()[:9000])
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(image)
    for bad in (cut, image):
        with pytest.raises(ValueError, match="UVFITS") as error:
            read_observation(bad)
        assert str(bad) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ the sky is the right way up


@pytest.mark.parametrize("day", ["101", "096"])
def test_the_best_ring_through_the_real_closures_is_40_microarcseconds_wide_and_bright_in_the_south(day):
    problem = m87(day, systematic=0.0)
    parameters = [(r, w, a, pa) for r in range(16, 26) for w in (3, 5, 7) for a in (0.3, 0.6, 0.9)
                  for pa in range(0, 360, 15)]
    rings = np.stack([crescent(*p) for p in parameters])
    g = problem.forward(2 * rings / rings.max(axis=(1, 2), keepdims=True) - 1)
    data = problem.observation
    cp, lca = data.blocks["cp"], data.blocks["lca"]
    chi2 = vlbi.chi2_phase(g[:, cp], data.y[cp], data.noise[cp]) \
        + vlbi.chi2_log_amplitude(g[:, lca], data.y[lca], data.noise[lca])
    radius, _, _, angle = parameters[int(np.argmin(chi2))]
    assert 38 <= 2 * radius <= 44 and 135 <= angle <= 210
    north = [c for c, p in zip(chi2, parameters) if p[3] <= 60 or p[3] >= 300]
    assert min(north) > 10 * chi2.min()
