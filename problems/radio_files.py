"""What an astronomer takes away from a reconstruction: a FITS image with its coordinates, and a table of closures."""

from __future__ import annotations

import csv

import numpy as np

BLOCK, CARD = 2880, 80  # bytes


def write_fits_image(path, image, field_of_view, about=None):
    """A FITS image in Jy per pixel with a celestial coordinate system, readable by astropy, ehtim, DS9 and CASA.

    Parameters
    ----------
    image : array (n, n)     Jy per pixel, row 0 North, column 0 East
    field_of_view : float    micro-arcseconds
    about : mapping or None  of the observation: object, ra_deg, dec_deg, date (ISO), frequency_hz; what is missing is
        left out, and right ascension and declination of the centre are then 0

    Rows of a FITS file run from South to North. Format: FITS Standard 4.0, 64-bit numbers, no extension. A file that is
    there already is not touched: FileExistsError.
    """
    about, n = about or {}, len(image)
    size = field_of_view / n / 3.6e9  # degrees
    ra, dec = about.get("ra_deg", 0.0), about.get("dec_deg", 0.0)
    cards = [("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 2), ("NAXIS1", n), ("NAXIS2", n), ("BUNIT", "JY/PIXEL"),
             ("CTYPE1", "RA---SIN"), ("CRPIX1", (n + 1) / 2), ("CRVAL1", ra), ("CDELT1", -size), ("CUNIT1", "deg"),
             ("CTYPE2", "DEC--SIN"), ("CRPIX2", (n + 1) / 2), ("CRVAL2", dec), ("CDELT2", size), ("CUNIT2", "deg"),
             ("RADESYS", "FK5"), ("EQUINOX", 2000.0), ("OBSRA", ra), ("OBSDEC", dec)]
    cards += [(key, about[name]) for key, name in (("OBJECT", "object"), ("DATE-OBS", "date"), ("FREQ", "frequency_hz"),
                                                   ("MJD", "mjd")) if name in about]
    header = "".join(_card(key, value) for key, value in cards) + "END".ljust(CARD)
    data = np.asarray(image, dtype=">f8")[::-1].tobytes()
    with open(path, "xb") as file:
        file.write(header.ljust(-(-len(header) // BLOCK) * BLOCK).encode("ascii"))
        file.write(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"))


def _card(key, value):
    """One header line of 80 characters."""
    if isinstance(value, str):
        text = f"'{value.replace(chr(39), 2 * chr(39)).encode('ascii', 'replace').decode():8s}'"
    else:
        text = ("T" if value else "F") if isinstance(value, bool) else repr(value).upper()
        text = text.rjust(20)
    return f"{key:8s}= {text}".ljust(CARD)[:CARD]


def write_closure_table(path, observation, closures, data, model):
    """Closures of data and model as CSV: time, stations, datum, its error, prediction.

    Parameters
    ----------
    observation : vlbi.Visibilities;  closures : vlbi.ClosureSet of its rows
    data : `problem.Observation` with the blocks "cp" and "lca";  model : array (m,), prediction of its y

    Columns: kind (cp: closure phase, radians; lca: log closure amplitude), time_utc_h (the earliest of its baselines),
    stations (A-B-C: phase of V_AB V_BC V_CA; A-B C-D / A-D B-C: ln |V_AB V_CD / (V_AD V_BC)|), data, sigma, model.
    A file that is there already is not touched: FileExistsError.
    """
    with open(path, "x", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["kind", "time_utc_h", "stations", "data", "sigma", "model"])
        for kind, index, words in (("cp", closures.triangles, _triangle), ("lca", closures.quadrangles, _quadrangle)):
            part = data.blocks[kind]
            numbers = (np.asarray(values)[part] for values in (data.y, data.noise, model))
            for rows, *values in zip(index, *numbers):
                pairs = [(observation.stations[observation.first[r]], observation.stations[observation.second[r]])
                         for r in rows]
                table.writerow([kind, f"{observation.time[rows].min():.6f}", words(pairs),
                                *(f"{value:.9g}" for value in values)])


def _triangle(pairs):
    (a, b), (_, c), _ = pairs
    return f"{a}-{b}-{c}"


def _quadrangle(pairs):
    above, below = pairs[:2], pairs[2:]
    return " / ".join(" ".join("-".join(pair) for pair in side) for side in (above, below))
