"""UVFITS files as the Event Horizon Telescope publishes them: Stokes I visibilities from random groups.

Needs astropy, the extra ``eht``. Layout of AIPS memo 117: u, v in seconds, BASELINE = 256 first + second, weight =
1/sigma^2 with sigma per real and per imaginary part, time as a Julian date in one or two parts, any number of IFs
(frequency windows) and channels.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from problems.vlbi import visibility_table

STOKES_I, PARALLEL_HANDS = 1, ((-1, -2), (-5, -6))
"""Codes of Stokes I and of the pairs RR, LL and XX, YY, half the sum of which it is."""
WANTED = "expected a UVFITS file with random groups, axes COMPLEX, STOKES, FREQ, and parameters UU, VV, BASELINE, DATE"


def read_uvfits(path):
    """Stokes I visibilities (``vlbi.Visibilities``) of a UVFITS file: a row per baseline, time, IF and channel.

    I = (RR + LL)/2 or (XX + YY)/2 with sigma = sqrt(sigma_1^2 + sigma_2^2)/2 where both are valid, else the valid one;
    or Stokes I as it stands. Flagged samples (weight <= 0 or none) and autocorrelations are left out. u and v are those
    at the frequency of the channel; the integration time is shared among the channels of a sample, so that the sum over
    a scan is the time that was spent.

    Raises ImportError without astropy, FileNotFoundError, or ValueError "observation: got ..., expected ...".
    """
    path = Path(path)
    header, groups, tables = _opened(path)
    axes = {header.get(f"CTYPE{k}", "").strip(): k for k in range(2, header["NAXIS"] + 1)}
    names = [header[f"PTYPE{k}"].strip() for k in range(1, header["PCOUNT"] + 1)]
    missing = [name for name in ("COMPLEX", "STOKES", "FREQ") if name not in axes]
    missing += [name for name in ("UU", "VV", "BASELINE", "DATE") if not any(p.startswith(name) for p in names)]
    if missing:
        raise ValueError(f"observation: got {path} without {', '.join(missing)}, {WANTED}")

    def parameter(name):
        """Sum of the parameters of this name in double precision; DATE may come in two parts."""
        columns = [k for k, p in enumerate(names) if p.strip("_").startswith(name)]
        return sum(np.asarray(groups.par(k), dtype=np.float64) for k in columns)

    data = _ordered(np.asarray(groups.data, dtype=np.float64), header, axes, path)
    frequency = _frequencies(header, axes, tables, data.shape[1:3], path)
    vis, sigma = _total_intensity(data, _axis_values(header, axes["STOKES"], data.shape[3]), path)
    stations = {int(number): str(name).strip()
                for number, name in zip(tables["AIPS AN"]["NOSTA"], tables["AIPS AN"]["ANNAME"])}
    code = np.floor(parameter("BASELINE") + 1e-3).astype(int)  # the fraction numbers a sub-array
    unknown = {*(code // 256), *(code % 256)} - stations.keys()
    if unknown:
        raise ValueError(f"observation: got {path} with antenna number {min(unknown)}, expected one of its antenna "
                         f"table: {', '.join(map(str, sorted(stations)))}")
    keep = np.isfinite(sigma) & (code // 256 != code % 256)[:, None, None]
    if not keep.any():
        raise ValueError(f"observation: got {path} with {len(code)} samples, all flagged, expected positive weights")
    sample, window, channel = np.nonzero(keep)
    first, second = ([stations[k] for k in index[sample]] for index in (code // 256, code % 256))
    date, hertz = (parameter("DATE") - 2400000.5)[sample], frequency[window, channel]
    tint = parameter("INTTIM")[sample] if "INTTIM" in names else np.full(len(sample), np.nan)
    return visibility_table(
        first, second, (date - np.floor(date.min())) * 24, np.where(np.isfinite(tint), tint, 1.0) / frequency.size,
        parameter("UU")[sample] * hertz, parameter("VV")[sample] * hertz, vis[keep], sigma[keep], str(path),
        _about(header, axes, date.min(), frequency))


def _opened(path):
    """(header, groups, {name: extension table}) of the file."""
    try:
        from astropy.io import fits
    except ImportError:
        raise ImportError(f"observation: got {path}, a UVFITS file, which needs astropy, expected the extra eht: "
                          "pip install enkg_ref[eht]") from None
    if not path.is_file():
        raise FileNotFoundError(f"observation: got {path}, which does not exist, expected a UVFITS file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns of a truncated file, then fails with an error of numpy
            with fits.open(path, memmap=False) as hdus:
                header, groups, tables = hdus[0].header, hdus[0].data, {h.name: h.data for h in hdus[1:]}
                if groups is not None:
                    np.asarray(groups.data)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"observation: got {path}, which cannot be read ({error}), expected a whole UVFITS "
                         "file") from None
    if groups is None or not hasattr(groups, "par") or "AIPS AN" not in tables:
        raise ValueError(f"observation: got {path} with the extensions {', '.join(tables) or 'none'}, {WANTED}, and an "
                         "antenna table AIPS AN")
    return header, groups, tables


def _ordered(data, header, axes, path):
    """Data as (samples, IFs, channels, Stokes, 3): real part, imaginary part, weight."""
    wanted = [name for name in ("IF", "FREQ", "STOKES", "COMPLEX") if name in axes]
    data = np.moveaxis(data, [header["NAXIS"] + 1 - axes[name] for name in wanted], range(-len(wanted), 0))
    shape = data.shape[-len(wanted):] if "IF" in axes else (1, *data.shape[-len(wanted):])
    if shape[-1] != 3 or data.size != len(data) * np.prod(shape):
        raise ValueError(f"observation: got {path} with data of shape {data.shape}, expected real part, imaginary part "
                         "and weight per sample, IF, channel and polarisation, for one position on the sky")
    return data.reshape(-1, *shape)


def _frequencies(header, axes, tables, shape, path):
    """Hz, array (IFs, channels) of this shape: the axis of channels plus the offset of each IF."""
    offsets = np.zeros(shape[0])
    if "AIPS FQ" in tables:
        offsets = np.reshape(tables["AIPS FQ"]["IF FREQ"][0], -1).astype(float)
    if len(offsets) != shape[0] or (shape[0] > 1 and "AIPS FQ" not in tables):
        raise ValueError(f"observation: got {path} with {shape[0]} IFs, expected as many offsets in a table AIPS FQ")
    return offsets[:, None] + _axis_values(header, axes["FREQ"], shape[1])


def _axis_values(header, axis, size):
    """World coordinates along FITS axis ``axis``."""
    pixel = np.arange(1, size + 1) - header.get(f"CRPIX{axis}", 1.0)
    return header[f"CRVAL{axis}"] + pixel * header.get(f"CDELT{axis}", 1.0)


def _total_intensity(data, stokes, path):
    """Stokes I and its sigma from data (.., n_stokes, 3), each (..); sigma is infinite where nothing is valid."""
    found = {int(round(s)): k for k, s in enumerate(stokes)}
    chosen = [found[STOKES_I]] if STOKES_I in found else next(
        (some for some in ([found[s] for s in pair if s in found] for pair in PARALLEL_HANDS) if some), None)
    if chosen is None:
        raise ValueError(f"observation: got {path} with the Stokes codes {sorted(found)}, expected Stokes I (1), RR or "
                         "LL (-1, -2), XX or YY (-5, -6)")
    value, weight = data[..., chosen, 0] + 1j * data[..., chosen, 1], data[..., chosen, 2]
    valid = (weight > 0) & np.isfinite(weight) & np.isfinite(value)
    count = valid.sum(axis=-1)
    variance = np.where(valid, 1 / np.where(valid, weight, 1.0), 0.0).sum(axis=-1)
    vis = np.where(valid, value, 0).sum(axis=-1) / np.maximum(count, 1)
    return vis, np.where(count > 0, np.sqrt(variance) / np.maximum(count, 1), np.inf)


def _about(header, axes, mjd, frequency):
    """What the header tells of the source and the day, see ``vlbi.Visibilities``."""
    day = int(np.floor(mjd))
    about = {"date": str(np.datetime64("1858-11-17") + day), "mjd": day, "frequency_hz": float(frequency.mean())}
    if str(header.get("OBJECT", "")).strip():
        about["object"] = str(header["OBJECT"]).strip()
    for name, axis in (("ra_deg", "RA"), ("dec_deg", "DEC")):
        if axis in axes:
            about[name] = float(header[f"CRVAL{axes[axis]}"])
    return about
