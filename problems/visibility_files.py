"""Files of visibilities: CSV (problems/data/README.md) and UVFITS."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from problems.vlbi import DATA, scan_average, visibility_table

COLUMNS = ("time_utc_h", "tint_s", "t1", "t2", "u_lambda", "v_lambda", "re_jy", "im_jy", "sigma_jy")


def read_csv(path):
    """Visibilities of a CSV file with the columns ``COLUMNS`` (problems/data/README.md), any order of columns.

    Raises FileNotFoundError, or ValueError with the file, the place, what was got and what was expected.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a CSV text file or a UVFITS file, got binary data") from None
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"observation {path}: no such file, expected a CSV or UVFITS file") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the file is empty, expected a header line and rows of {','.join(COLUMNS)}")
    header = [c.strip() for c in lines[0].lstrip("# ").split("(")[0].split(",")]
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise ValueError(f"{path}: missing column {', '.join(missing)}; got the header {lines[0][:80]!r}, "
                         f"expected {','.join(COLUMNS)}")
    if len(lines) == 1:
        raise ValueError(f"{path}: no data rows after the header, expected rows of {','.join(COLUMNS)}")
    table = {c: [] for c in COLUMNS}
    for k, row in enumerate(csv.reader(lines[1:])):
        if len(row) != len(header):
            raise ValueError(f"{path}: data row {k} has {len(row)} fields, expected {len(header)}: a truncated file?")
        for c in COLUMNS:
            text = row[header.index(c)].strip()
            if c in ("t1", "t2"):
                table[c].append(text)
                continue
            try:
                table[c].append(float(text))
            except ValueError:
                raise ValueError(f"{path}: data row {k}, column {c}: expected a number, got {text!r}") from None
    vis = np.array(table["re_jy"]) + 1j * np.array(table["im_jy"])
    return visibility_table(table["t1"], table["t2"], table["time_utc_h"], table["tint_s"], table["u_lambda"],
                            table["v_lambda"], vis, table["sigma_jy"], name=str(path))


def read_m87(day):
    """The shipped observation of M87 on a day of the year 2017, low band: "101" or "096"."""
    return read_observation(DATA / f"m87_2017_{day}_lo_scanavg.csv")


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
