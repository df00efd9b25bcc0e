"""Agreement with ehtim, an independent implementation (GPLv3, optional)."""

from __future__ import annotations

import numpy as np
import pytest

from problems import vlbi
from problems.closure_forward import ClosureForward, fourier_table
from problems.visibility_files import read_m87, read_observation

eh = pytest.importorskip("ehtim")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

FREQUENCY = 227.070703125e9
BLOBS = [(-12.5, 8, 7, 1.0), (15, -4, 5, 0.6), (3, -18.5, 9, 0.8), (20, 16, 4.5, 0.35), (-22, -10, 6, 0.5)]


def blobs():
    """An asymmetric image, 0.6 Jy."""
    axis = (31.5 - np.arange(64)) * 2.5
    east, north = np.meshgrid(axis, axis)
    image = sum(w * np.exp(-((east - e) ** 2 + (north - s) ** 2) / 2 / k**2) for e, s, k, w in BLOBS)
    return 0.6 * image / image.sum()


def crescent():
    """The source of the simulated data: not the image that is judged, so that chi2 is not near one."""
    axis = (31.5 - np.arange(64)) * 2.5
    east, north = np.meshgrid(axis, axis)
    image = np.exp(-(np.hypot(east, north) - 20) ** 2 / 50) * (1 + 0.6 * np.cos(np.arctan2(east, north) - 3))
    return 0.6 * image / image.sum()


@pytest.fixture
def to_peer(load_benchmark):
    """Our rows as an observation of ehtim, the mapping of the benchmark."""
    peer = load_benchmark("peer_ehtim")
    assert peer.FREQUENCY == FREQUENCY
    return lambda data: peer.to_peer(data, eh)


def peer_image(image):
    right_ascension, declination = vlbi.SOURCES["m87"]
    return eh.image.Image(image, 2.5 * vlbi.MICROARCSECOND, right_ascension, declination, rf=FREQUENCY, source="M87",
                          mjd=57854)


def ours(data, image):
    parts = fourier_table(data.u, data.v) @ image.reshape(-1)
    return parts[:len(data)] + 1j * parts[len(data):]


@pytest.fixture(scope="module", params=["101", "096", "simulated"])
def data(request):
    if request.param != "simulated":
        return read_m87(request.param)
    coverage = vlbi.simulated_coverage(sefd="nominal")
    clean = vlbi.replace(coverage, vis=ours(coverage, crescent()))
    rng = np.random.default_rng(0)
    return vlbi.corrupt_stations(vlbi.add_thermal_noise(clean, rng), rng)


def test_visibilities_equal_the_peer(data, to_peer):
    peer = peer_image(blobs()).observe_same_nonoise(to_peer(data), ttype="direct", verbose=False)
    key = {(round(float(t), 6), str(a), str(b)): v for t, a, b, v in
           zip(peer.data["time"], peer.data["t1"], peer.data["t2"], peer.data["vis"])}
    model = ours(data, blobs())
    assert len(key) == len(data)
    for k in range(len(data)):
        a, b = data.stations[data.first[k]], data.stations[data.second[k]]
        time = round(float(data.time[k]), 6)
        expected = key[time, a, b] if (time, a, b) in key else np.conj(key[time, b, a])
        assert abs(model[k] - expected) < 1e-13


def test_minimal_closures_and_their_sigmas_equal_the_peer(data, to_peer):
    peer, closures = to_peer(data), vlbi.minimal_set(data)
    sigma_cp, sigma_lca = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    cp, lca = vlbi.closure_phases(data.vis, closures), vlbi.log_closure_amplitudes(data.vis, closures)

    table = peer.c_phases(count="min", vtype="vis")
    assert len(table) == len(cp)
    theirs = {(round(float(r["time"]), 6), frozenset((str(r["t1"]), str(r["t2"]), str(r["t3"])))): r for r in table}
    for k, rows in enumerate(closures.triangles):
        a, b, c = (data.stations[s] for s in (data.first[rows[0]], data.second[rows[0]], data.second[rows[1]]))
        row = theirs[round(float(data.time[rows[0]]), 6), frozenset((a, b, c))]
        order = [str(row[t]) for t in ("t1", "t2", "t3")]
        sign = 1 if order in ([a, b, c], [b, c, a], [c, a, b]) else -1
        assert abs(vlbi.wrap(cp[k] - sign * np.deg2rad(row["cphase"]))) < 1e-12
        assert np.deg2rad(row["sigmacp"]) == pytest.approx(sigma_cp[k], rel=1e-12)

    table = peer.c_amplitudes(count="min", vtype="vis", ctype="logcamp", debias=False)
    assert len(table) == len(lca)
    theirs = sorted((round(float(r["time"]), 6), abs(float(r["camp"])), float(r["sigmaca"])) for r in table)
    mine = sorted((round(float(data.time[rows[0]]), 6), abs(value), sigma)
                  for rows, value, sigma in zip(closures.quadrangles, lca, sigma_lca))
    np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-12)


def test_chi2_of_every_kind_equals_the_peer(data, to_peer):
    peer, image, closures = to_peer(data), peer_image(blobs()), vlbi.minimal_set(data)
    model = ours(data, blobs())
    sigma_cp, sigma_lca = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    mine = {"vis": vlbi.chi2_visibility(model, data), "amp": vlbi.chi2_amplitude(model, data),
            "cphase": vlbi.chi2_phase(vlbi.closure_phases(model, closures), vlbi.closure_phases(data.vis, closures),
                                      sigma_cp),
            "logcamp": vlbi.chi2_log_amplitude(vlbi.log_closure_amplitudes(model, closures),
                                               vlbi.log_closure_amplitudes(data.vis, closures), sigma_lca)}
    for kind, value in mine.items():
        theirs = peer.chisq(image, dtype=kind, ttype="direct", debias=False, cp_uv_min=False)
        assert value == pytest.approx(theirs, rel=1e-12), kind


def test_gradients_of_chi2_equal_the_peer(data, to_peer):
    """The closed-form vector-Jacobian product of the closures gives the peer's image gradients."""
    from ehtim.imaging import imager_utils

    peer, closures = to_peer(data), vlbi.minimal_set(data)
    n = len(closures.triangles)
    forward = ClosureForward(fourier_table(data.u, data.v), closures, scale=1.0, shift=0.0)
    image = blobs()[None]
    g = forward(image)[0]
    sigma_cp, sigma_lca = vlbi.closure_sigmas(data.vis, data.sigma, closures)
    d_cp = g[:n] - vlbi.closure_phases(data.vis, closures)
    d_lca = g[n:] - vlbi.log_closure_amplitudes(data.vis, closures)
    cotangents = {"cphase": np.concatenate([2 * np.sin(d_cp) / sigma_cp**2 / n, np.zeros(len(d_lca))]),
                  "logcamp": np.concatenate([np.zeros(n), 2 * d_lca / sigma_lca**2 / len(d_lca)])}
    mask = np.ones(64 * 64, bool)
    for kind, cotangent in cotangents.items():
        values, sigma, matrices = imager_utils.chisqdata(peer, peer_image(blobs()), mask, kind, ttype="direct",
                                                         debias=False, systematic_noise=0.0)
        theirs = imager_utils.chisqgrad(blobs().reshape(-1), matrices, values, sigma, kind, ttype="direct", mask=mask)
        mine = forward.vjp(image, cotangent[None])[0].reshape(-1)
        assert np.max(np.abs(mine - theirs)) < 1e-12 * np.max(np.abs(theirs)), kind


def test_a_uvfits_file_written_by_the_peer_gives_the_same_closures(data, tmp_path, to_peer):
    pytest.importorskip("astropy")
    if data.name.startswith("simulated"):
        pytest.skip("station order of the file is alphabetical; covered by the real days")
    path = tmp_path / "peer.uvfits"
    to_peer(data).save_uvfits(str(path))
    again = read_observation(path)
    assert len(again) == len(data) and again.stations == data.stations
    for build in (vlbi.minimal_set, vlbi.full_rank_set):
        mine, theirs = build(data), build(again)
        d = vlbi.closure_phases(again.vis, theirs) - vlbi.closure_phases(data.vis, mine)
        np.testing.assert_allclose(vlbi.wrap(d), 0, atol=1e-6)
        np.testing.assert_allclose(vlbi.log_closure_amplitudes(again.vis, theirs),
                                   vlbi.log_closure_amplitudes(data.vis, mine), rtol=0, atol=1e-6)
        np.testing.assert_allclose(vlbi.closure_sigmas(again.vis, again.sigma, theirs)[0],
                                   vlbi.closure_sigmas(data.vis, data.sigma, mine)[0], rtol=1e-6)


def test_scan_averages_equal_the_peer(to_peer):
    """Ten-second samples made of the shipped averages, averaged by both."""
    data = read_m87("101")
    k, rng = 5, np.random.default_rng(1)
    time = (data.time + np.arange(k)[:, None] * 10 / 3600).reshape(-1)
    samples = vlbi.replace(data, first=np.tile(data.first, k), second=np.tile(data.second, k), time=time,
                           tint=np.full(k * len(data), 10.0), u=np.tile(data.u, k) + rng.normal(0, 1e6, k * len(data)),
                           v=np.tile(data.v, k), sigma=np.tile(data.sigma, k) * rng.uniform(1, 3, k * len(data)),
                           vis=np.tile(data.vis, k) + 0.01 * rng.standard_normal(k * len(data)))
    averaged = vlbi.scan_average(samples)
    peer = to_peer(samples)
    peer.add_scans(dt=vlbi.SCAN_GAP)
    peer = peer.avg_coherent(0.0, scan_avg=True)
    theirs = {(str(r["t1"]), str(r["t2"]), round(float(r["time"]), 2)): r for r in peer.data}
    assert len(theirs) == len(averaged) == len(data)
    for j in range(len(averaged)):
        a, b = averaged.stations[averaged.first[j]], averaged.stations[averaged.second[j]]
        row = theirs[a, b, round(float(averaged.time[j]), 2)]
        assert row["vis"] == pytest.approx(averaged.vis[j], rel=1e-9)
        assert row["sigma"] == pytest.approx(averaged.sigma[j], rel=1e-9)
        assert row["u"] == pytest.approx(averaged.u[j], rel=1e-9) and row["tint"] == pytest.approx(averaged.tint[j])
