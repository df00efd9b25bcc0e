"""What a reconstruction leaves for an astronomer: coordinates of the image, a table of closures, notes on the field."""

import csv
import json
import warnings

import numpy as np
import pytest

from enkg_ref import cli
from problems import vlbi
from problems.black_hole import View, black_hole, edge_remark, from_visibilities, m87
from problems.radio_files import write_fits_image
from problems.visibility_files import read_m87


def blob(east, north, pixels=64, fov=160.0, width=8.0):
    """A round Gaussian at this offset in micro-arcseconds, peak 1."""
    offset = ((pixels - 1) / 2 - np.arange(pixels)) * fov / pixels
    return np.exp(-((offset[None, :] - east) ** 2 + (offset[:, None] - north) ** 2) / (2 * width**2))


def test_astropy_finds_a_source_of_the_fits_image_where_it_is_on_the_sky(tmp_path):
    fits, wcs = pytest.importorskip("astropy.io.fits"), pytest.importorskip("astropy.wcs")
    about = read_m87("101").about
    image = View(flux_jy=0.6).in_jy(blob(20.0, -35.0))
    write_fits_image(tmp_path / "image.fits", image, 160.0, about)
    assert (tmp_path / "image.fits").stat().st_size % 2880 == 0
    with fits.open(tmp_path / "image.fits") as hdus:
        hdus.verify("exception")
        header, data = hdus[0].header, hdus[0].data
    assert data.sum() == pytest.approx(0.6) and header["BUNIT"] == "JY/PIXEL"
    assert (header["OBJECT"], header["DATE-OBS"], header["MJD"]) == ("M87", "2017-04-11", 57854)
    assert np.array_equal(data[::-1], image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy tells that it derives MJD-OBS from DATE-OBS
        frame = wcs.WCS(header)
    rows, columns = np.indices(data.shape)
    ra, dec = frame.wcs_pix2world((data * columns).sum() / data.sum(), (data * rows).sum() / data.sum(), 0)
    east = (ra - about["ra_deg"]) * np.cos(np.deg2rad(about["dec_deg"])) * 3.6e9
    assert east == pytest.approx(20.0, abs=0.01) and (dec - about["dec_deg"]) * 3.6e9 == pytest.approx(-35.0, abs=0.01)


def test_a_fits_image_of_an_unknown_source_is_readable_and_touches_no_file(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    write_fits_image(tmp_path / "image.fits", blob(0, 0, 20), 100.0, {"object": "O'Brien"})
    assert fits.getdata(tmp_path / "image.fits").shape == (20, 20)
    header = fits.getheader(tmp_path / "image.fits")
    assert header["OBJECT"] == "O'Brien" and header["CRVAL1"] == 0 and "DATE-OBS" not in header
    assert header["CDELT2"] == pytest.approx(100 / 20 / 3.6e9)
    with pytest.raises(FileExistsError):
        write_fits_image(tmp_path / "image.fits", blob(0, 0), 160.0)


def test_the_closure_table_holds_data_errors_and_predictions_of_the_named_stations(tmp_path):
    """Every row anew from the visibilities of the stations that it names."""
    problem, observed = m87("101", systematic=0.0, min_baseline=0.0), read_m87("101")
    image = blob(10.0, 5.0)
    assert problem.export({"mean": image}, tmp_path) == ["image.fits", "closures.csv"]
    with open(tmp_path / "closures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    model = problem.forward(2 * image[None] - 1)[0]
    np.testing.assert_allclose([float(row["model"]) for row in rows], model, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose([float(row["sigma"]) for row in rows], problem.observation.noise, rtol=1e-8)
    kinds = [row["kind"] for row in rows]
    assert kinds.count("cp") == len(problem.observation.y[problem.observation.blocks["cp"]]) == kinds.index("lca")
    scan = observed.scan

    def vis(time, first, second):
        """V of a baseline in the scan of this time; the other way round it is the conjugate."""
        a, b = (observed.stations.index(name) for name in (first, second))
        same = scan == scan[np.argmin(abs(observed.time - time))]
        (row,) = np.flatnonzero(same & (observed.first == min(a, b)) & (observed.second == max(a, b)))
        return observed.vis[row] if a < b else observed.vis[row].conj()

    for row in rows:
        time, names = float(row["time_utc_h"]), row["stations"]
        if row["kind"] == "cp":
            a, b, c = names.split("-")
            found = np.angle(vis(time, a, b) * vis(time, b, c) * vis(time, c, a))
            assert abs(vlbi.wrap(found - float(row["data"]))) < 1e-6
        else:
            above, below = ([abs(vis(time, *pair.split("-"))) for pair in side.split()] for side in names.split(" / "))
            assert np.log(np.prod(above) / np.prod(below)) == pytest.approx(float(row["data"]), abs=1e-6)


def test_an_image_that_goes_on_beyond_its_field_of_view_is_remarked_upon():
    assert edge_remark(blob(0, 0), 160.0) == ""
    words = edge_remark(blob(70.0, 0.0, width=10.0), 160.0)
    share = np.exp(-((78.75 - 70.0) ** 2) / 200) / blob(70.0, 0.0, width=10.0).max()
    assert f"brightest edge pixel: {100 * share:.0f} % of the peak" in words and "160 micro-arcseconds" in words
    problem = black_hole(truth=blob(0, 0))
    assert problem.remarks(np.stack([blob(0, 0)] * 2)) == "" != problem.remarks(np.stack([blob(70.0, 0.0)] * 2))


def test_another_field_of_view_predicts_the_same_sky_and_needs_a_prior_of_its_own():
    """The same Gaussian on the sky in two grids gives the same closures; no shipped prior fits the other grid."""
    data = read_m87("101")
    usual, wide = from_visibilities(data), from_visibilities(data, fov=240.0, npix=96)
    assert wide.event_shape == (96, 96) and wide.prior is None and usual.prior == "kerr-disc-64"
    assert "240 micro-arcseconds across, 96 x 96 pixels" in wide.units
    one, other = (p.forward(2 * blob(12.0, -7.0, n, fov)[None] - 1)[0] for p, n, fov in
                  ((usual, 64, 160.0), (wide, 96, 240.0)))
    np.testing.assert_allclose(one, other, atol=1e-6)
    for given, sentence in (({"npix": 3}, "npix: got 3, expected 8 to 512"), ({"fov": 0.0}, "fov: got 0.0, expected"),
                            ({"compact_flux": 0.0}, "compact_flux: got 0.0, expected a flux > 0")):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            from_visibilities(data, **given)


def test_solve_leaves_the_files_in_its_folder_and_tells_of_the_edge(tmp_path, capsys, monkeypatch):
    """Whatever stands at the edge is too bright here."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("problems.black_hole.EDGE", -10.0)
    out = tmp_path / "out"
    assert cli.main(["solve", "black-hole", "--prior", "kerr-disc-64-gaussian", "--particles", "4", "--steps", "4",
                     "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "image.fits" in printed and (out / "closures.csv").stat().st_size > 1000
    mean = np.load(out / "result.npz")["mean"]
    words = edge_remark(mean, 160.0)
    assert words and words in json.loads((out / "summary.json").read_text())["notes"]
