"""UVFITS files as the Event Horizon Telescope publishes them: Stokes I visibilities from random groups.

Needs astropy, the extra ``eht``. Layout of AIPS memo 117: u, v in seconds, BASELINE = 256 first + second, weight =
1/sigma^2 with sigma per real and per imaginary part, time as a Julian date in one or two parts.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from problems.vlbi import visibility_table

STOKES_I, RR, LL = 1, -1, -2


def read_uvfits(path):
    """Stokes I visibilities (``vlbi.Visibilities``) of a UVFITS file with one frequency channel.

    I = (RR + LL)/2 with sigma = sqrt(sigma_RR^2 + sigma_LL^2)/2 where both are valid, else the valid one; or Stokes I
    as it stands. Flagged samples (weight <= 0) and autocorrelations are left out.

    Raises ImportError without astropy, FileNotFoundError, or ValueError with the file, what was got and expected.
    """
    path = Path(path)
    try:
        from astropy.io import fits
    except ImportError:
        raise ImportError(f"{path}: reading UVFITS needs astropy, which is not installed; "
                          "install the extra with: pip install enkg_ref[eht]") from None
    if not path.is_file():
        raise FileNotFoundError(f"observation {path}: no such file, expected a UVFITS file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns of a truncated file, then fails with an error of numpy
            with fits.open(path, memmap=False) as hdus:
                header, groups, tables = hdus[0].header, hdus[0].data, {h.name: h.data for h in hdus[1:]}
                data = None if groups is None else np.asarray(groups.data, dtype=np.float64)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable UVFITS file, truncated perhaps ({error})") from None
    if data is None or not hasattr(groups, "par") or "AIPS AN" not in tables:
        raise ValueError(f"{path}: expected a UVFITS file with random groups and an antenna table AIPS AN, "
                         f"got a FITS file with the extensions {', '.join(tables) or 'none'}")

    axes = {header.get(f"CTYPE{k}", "").strip(): k for k in range(2, header["NAXIS"] + 1)}
    missing = [name for name in ("COMPLEX", "STOKES", "FREQ") if name not in axes]
    parameters = [header[f"PTYPE{k}"].strip() for k in range(1, header["PCOUNT"] + 1)]
    missing += [name for name in ("UU", "VV", "BASELINE", "DATE") if not any(p.startswith(name) for p in parameters)]
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}; expected axes COMPLEX, STOKES, FREQ and parameters "
                         f"UU, VV, BASELINE, DATE, got {', '.join([*axes, *parameters])}")
    data = np.moveaxis(data, (header["NAXIS"] + 1 - axes["STOKES"], header["NAXIS"] + 1 - axes["COMPLEX"]), (-2, -1))
    stokes, parts = data.shape[-2:]
    channels = data.size // (len(data) * stokes * parts)
    if channels != 1 or parts != 3:
        raise ValueError(f"{path}: expected one frequency channel with real part, imaginary part and weight, "
                         f"got {channels} channel(s) with {parts} parts; average over frequency first")

    def parameter(name):
        """Sum of the parameters of this name in double precision; DATE may come in two parts."""
        columns = [k for k, p in enumerate(parameters) if p.strip("_").startswith(name)]
        return sum(np.asarray(groups.par(k), dtype=np.float64) for k in columns)

    vis, sigma = _total_intensity(data.reshape(-1, stokes, 3), _axis_values(header, axes["STOKES"], stokes), path)
    frequency = _axis_values(header, axes["FREQ"], 1)[0]
    if "AIPS FQ" in tables:
        frequency = frequency + float(np.reshape(tables["AIPS FQ"]["IF FREQ"][0], -1)[0])
    antennas = tables["AIPS AN"]
    names = {int(number): str(name).strip() for number, name in zip(antennas["NOSTA"], antennas["ANNAME"])}
    code = np.floor(parameter("BASELINE") + 1e-3).astype(int)  # the fraction numbers a sub-array
    unknown = {*(code // 256), *(code % 256)} - names.keys()
    if unknown:
        raise ValueError(f"{path}: antenna number {min(unknown)} is not in the antenna table, which has "
                         f"{', '.join(map(str, sorted(names)))}")
    date = parameter("DATE") - 2400000.5
    tint = parameter("INTTIM") if "INTTIM" in parameters else np.full(len(code), np.nan)

    keep = np.isfinite(sigma) & (code // 256 != code % 256)
    if not keep.any():
        raise ValueError(f"{path}: expected visibilities with positive weights, got none among {len(code)}")
    first, second = ([names[k] for k in index[keep]] for index in (code // 256, code % 256))
    return visibility_table(first, second, (date[keep] - np.floor(date[keep].min())) * 24,
                            np.where(np.isfinite(tint), tint, 1.0)[keep], parameter("UU")[keep] * frequency,
                            parameter("VV")[keep] * frequency, vis[keep], sigma[keep], name=str(path))


def _axis_values(header, axis, size):
    """World coordinates along FITS axis ``axis``."""
    pixel = np.arange(1, size + 1) - header.get(f"CRPIX{axis}", 1.0)
    return header[f"CRVAL{axis}"] + pixel * header.get(f"CDELT{axis}", 1.0)


def _total_intensity(data, stokes, path):
    """Stokes I and its sigma from data (n, n_stokes, 3); sigma is infinite where nothing is valid."""
    found = {int(round(s)): k for k, s in enumerate(stokes)}
    if STOKES_I in found:
        chosen = [found[STOKES_I]]
    elif RR in found or LL in found:
        chosen = [found[s] for s in (RR, LL) if s in found]
    else:
        raise ValueError(f"{path}: expected Stokes I or circular polarisations RR, LL, got Stokes codes "
                         f"{sorted(found)}")
    value, weight = data[:, chosen, 0] + 1j * data[:, chosen, 1], data[:, chosen, 2]
    valid = (weight > 0) & np.isfinite(value)
    count = valid.sum(axis=1)
    variance = np.where(valid, 1 / np.where(valid, weight, 1.0), 0.0).sum(axis=1)
    vis = np.where(valid, value, 0).sum(axis=1) / np.maximum(count, 1)
    return vis, np.where(count > 0, np.sqrt(variance) / np.maximum(count, 1), np.inf)
