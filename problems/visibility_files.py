"""Files of visibilities: CSV (problems/data/README.md) and UVFITS."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from problems.vlbi import DATA, SOURCES, scan_average, visibility_table

M87_DAYS = {"101": "2017-04-11", "096": "2017-04-06"}
"""Day of the year and date of the observations of M87 in the package."""

COLUMNS = ("time_utc_h", "tint_s", "t1", "t2", "u_lambda", "v_lambda", "re_jy", "im_jy", "sigma_jy")


def read_csv(path):
    """Visibilities of a CSV file with the columns ``COLUMNS`` (problems/data/README.md), any order of columns.

    Raises FileNotFoundError, or ValueError with the file, the place, what was got and what was expected.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Excel writes a byte-order mark
    except UnicodeDecodeError:
        raise ValueError(f"observation: got {path} with binary data, expected a CSV or UVFITS file") from None
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"observation: got {path}, which does not exist, expected a CSV or UVFITS "
                                "file") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"observation: got {path}, which is empty, expected a header and rows of {','.join(COLUMNS)}")
    header = [c.strip() for c in lines[0].lstrip("# ").split("(")[0].split(",")]
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise ValueError(f"observation: got {path} with the header {lines[0][:80]!r}, without {', '.join(missing)}, "
                         f"expected the columns {','.join(COLUMNS)}")
    if len(lines) == 1:
        raise ValueError(f"observation: got {path} without data rows, expected rows of {','.join(COLUMNS)}")
    table = {c: [] for c in COLUMNS}
    for k, row in enumerate(csv.reader(lines[1:])):
        if len(row) != len(header):
            raise ValueError(f"observation: got {path} with {len(row)} fields in data row {k}, expected {len(header)}; "
                             "is the file cut off?")
        for c in COLUMNS:
            text = row[header.index(c)].strip()
            if c in ("t1", "t2"):
                table[c].append(text)
                continue
            try:
                table[c].append(float(text))
            except ValueError:
                raise ValueError(f"observation: got {path} with {c} = {text!r} in data row {k}, expected a "
                                 "number") from None
    vis = np.array(table["re_jy"]) + 1j * np.array(table["im_jy"])
    return visibility_table(table["t1"], table["t2"], table["time_utc_h"], table["tint_s"], table["u_lambda"],
                            table["v_lambda"], vis, table["sigma_jy"], name=str(path))


def read_m87(day):
    """The shipped observation of M87 on a day of the year 2017, low band: "101" or "096"."""
    hours, dec = SOURCES["m87"]
    mjd = {"096": 57849, "101": 57854}[day]
    about = {"object": "M87", "ra_deg": 15 * hours, "dec_deg": dec, "date": M87_DAYS[day], "mjd": mjd,
             "frequency_hz": 227.070703125e9}
    return replace(read_observation(DATA / f"m87_2017_{day}_lo_scanavg.csv"), about=about)


def read_observation(path):
    """Visibilities of a CSV or a UVFITS file; unaveraged files are averaged per scan (``scan_average``)."""
    path = Path(path)
    if path.is_file() and path.open("rb").read(9) == b"SIMPLE  =":
        from problems.uvfits import read_uvfits

        observation = read_uvfits(path)
    else:
        observation = read_csv(path)
    baselines = list(zip(observation.scan, observation.first, observation.second))
    return observation if len(set(baselines)) == len(baselines) else scan_average(observation)
