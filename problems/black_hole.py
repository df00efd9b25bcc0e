"""Black-hole imaging: closure quantities of a radio interferometer, simulated or the real M87 data of April 2017.

Images are normalised, x in [0, 1] with peak 1 when the peak is known; prior units z = 2 x - 1. Closure phases and log
closure amplitudes do not depend on the flux scale, so Jy never enter the forward model; total flux is in peak pixels.

Set-up after devzhk/enkg-pytorch and InverseBench; data: The Event Horizon Telescope Collaboration 2019, ApJL 875, L3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from problems import vlbi
from problems._xp import to_numpy
from problems.closure_forward import FIELD_OF_VIEW, PIXELS, ClosureForward, fourier_table
from problems.files import read_array
from problems.problem import (
    ITEM,
    OBSERVATION,
    TRUTH,
    Entry,
    Observation,
    Option,
    Problem,
    count,
    integer,
    nonnegative,
    positive,
)
from problems.radio_files import write_closure_table, write_fits_image
from problems.radio_metrics import aligned_psnr, best_shifts, blurred_psnr, ring_fit, shifted
from problems.visibility_files import M87_DAYS, read_m87, read_observation

COMPACT_FLUX = 0.6  # Jy, M87 in April 2017; for display, and for the flux of a simulated source
FLUX_SIGMA = 2.0  # peak pixels; the official code has the same with weight 0.5, the default here is 1
OFFICIAL_WEIGHTS = {"cp": 1.0, "lca": 1.0, "flux": 0.5}
HELD_OUT_SEED = 20250611
"""Seed of the simulated truths; priors must be trained on other seeds."""
COVERAGES = ("standard", "sgra", "m87-101", "m87-096")
NOISE_MODES = ("vis_thermal", "gaussian", "eht")
CLOSURE_SETS = {"full": vlbi.full_rank_set, "min": vlbi.minimal_set}
PRIOR = "kerr-disc-64"
EDGE = 0.1  # of the peak: no image of the prior has a brighter edge pixel
DEFAULTS = {"particles": 128, "steps": 40, "updates": 2, "guidance": 2.0, "start": 0.1, "end": 0.1}
"""Window 0.1/0.1: levels 5..35. Guidance 3.5, held constant, diverged in every trial, to peaks of 1e3 without a NaN."""


# ------------------------------------------------------------------------------------------------------------- problems


def m87(day="101", **options):
    """M87 as observed on 11 April ("101") or 6 April 2017 ("096"), low band, by the recipe of ``from_visibilities``.

    ``day`` is the day of the year or the date: "101", 101, "2017-04-11", "096", "96", "2017-04-06".
    """
    number = _day(day)
    observation = read_m87(number)
    return replace(from_visibilities(observation, name=f"m87-{number}", **options), ensembles=3)


def _day(day):
    """Number of the day, three digits, from its number or date."""
    for number, date in M87_DAYS.items():
        if str(day).strip() in (number, number.lstrip("0"), date):
            return number
    known = " or ".join(f"{number} ({date})" for number, date in M87_DAYS.items())
    raise ValueError(f"day: got {day!r}, expected {known}; data of another day are given to black-hole --observation")


def black_hole(observation=None, truth=None, seed=0, *, index=0, coverage="standard", noise="vis_thermal",
               total_flux=COMPACT_FLUX, closure_set="full", flux_sigma=FLUX_SIGMA, branch="data", time_fraction=1.0,
               sefd="m87", **options):
    """Black-hole imaging from a file of visibilities, or simulated.

    Parameters
    ----------
    observation : path or None    CSV or UVFITS file; then as ``from_visibilities(..., **options)``, all other
        arguments but ``truth``, ``closure_set`` and ``branch`` unused
    truth : array (64, 64), path of a .npy file, or None   image, any scale; None: number ``index`` of the held-out
        stand-in images (problems/kerr_disc.py)
    seed : int                    of the noise
    coverage : str                "standard": M87 by the 2017 array, 610 rows; "sgra": 759 rows; "m87-101", "m87-096":
        baselines, times and errors of the real observations
    noise : str                   "vis_thermal": thermal noise on V; "gaussian": independent noise on every closure;
        "eht": thermal noise, station gains and phases, the flux datum being the median ALMA-APEX amplitude
    total_flux : float            Jy of the truth
    flux_sigma : float            error of the flux datum in peak pixels; the official weight 0.5 amounts to 2 sqrt 2
    time_fraction : float         use only this first fraction of the observing times
    sefd : str                    "m87" or "nominal" sensitivities of the stations
    closure_set, branch           as in ``from_visibilities``
    """
    if observation is not None:
        return from_visibilities(read_observation(observation), truth=truth, closure_set=closure_set,
                                 branch=branch, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: got values without an observation, expected them with one only")
    for argument, value, known in (("coverage", coverage, COVERAGES), ("noise", noise, NOISE_MODES)):
        if value not in known:
            raise ValueError(f"{argument}: got {value!r}, expected one of {', '.join(known)}")
    if truth is None:
        from problems import kerr_disc

        truth, origin = kerr_disc.generate(1, HELD_OUT_SEED, start=index)[0], kerr_disc.LABEL
    else:
        truth, origin = _image(truth), "given by the user"
    truth = truth / truth.max()
    peak_jy = total_flux / truth.sum()

    rng = np.random.default_rng(seed)
    clean = _noiseless(truth, coverage, peak_jy, sefd, time_fraction)
    measured = clean if noise == "gaussian" else vlbi.add_thermal_noise(clean, rng)
    flux = truth.sum()
    if noise == "eht":
        measured = vlbi.corrupt_stations(measured, rng)
        flux = _intra_site_flux(measured) / peak_jy
    closures = _closures(measured, closure_set)
    phases = vlbi.closure_phases(measured.vis, closures)
    amplitudes = vlbi.log_closure_amplitudes(measured.vis, closures)
    sigmas = vlbi.closure_sigmas(measured.vis, measured.sigma, closures)
    if noise == "gaussian":
        phases = vlbi.wrap(phases + sigmas[0] * rng.standard_normal(len(phases)))
        amplitudes = amplitudes + sigmas[1] * rng.standard_normal(len(amplitudes))
    return _problem(f"black-hole-{coverage}", measured, closures, _data(phases, amplitudes, sigmas, (flux, flux_sigma)),
                    View(flux_jy=total_flux), truth, branch,
                    f"Simulated: coverage {coverage}, noise {noise}, seed {seed}; peak and flux of the truth are "
                    f"given. Truth: {origin}.")


def from_visibilities(observation, *, name="black-hole", systematic=0.02, min_baseline=0.1e9, min_snr=0.0,
                      max_tint_ratio=None, closure_set="full", compact_flux=COMPACT_FLUX, branch="data", truth=None,
                      fov=FIELD_OF_VIEW, npix=PIXELS):
    """The problem of a real observation (``vlbi.Visibilities``).

    Recipe: drop baselines too short to be inside the field of view, form a full-rank closure set, add systematic noise.
    There is no flux term, for the peak is unknown: the total of an image is free, and is rescaled for display only.

    Parameters
    ----------
    systematic : float            f of (BH11), a fraction of |V|
    min_baseline : float          wavelengths; shorter ones see extended emission outside the field of view
    min_snr : float               drop visibilities of a lower |V|/sigma; those that are zero are dropped anyway
    max_tint_ratio : float or None   drop closures whose integration times differ by more (gains then do not cancel)
    closure_set : str             "full": greedy set of full rank; "min": through one reference station, as in ehtim
    compact_flux : float          Jy, for display
    branch : str                  "data" or "principal", see ``ClosureForward``
    truth : array or path         image to compare with, if there is one
    fov, npix : float, int        field of view in micro-arcseconds and pixels per side; the shipped priors know 160 and
        64 only, others need a prior of one's own
    """
    view = View(npix, fov, compact_flux)
    size = np.abs(observation.vis)
    keep = (np.hypot(observation.u, observation.v) >= min_baseline) & (size >= min_snr * observation.sigma)
    keep &= size * vlbi.LARGEST > observation.sigma  # a visibility of 0 has no phase
    if not keep.any():
        raise ValueError(f"observation: got {observation.name}, none of whose {len(observation)} visibilities is kept, "
                         f"expected some on baselines of at least {min_baseline:g} wavelengths with a ratio |V|/sigma "
                         f"above 0 and of at least {min_snr:g}")
    dropped, observation = len(observation) - int(keep.sum()), observation.rows(keep)
    closures = _closures(observation, closure_set, max_tint_ratio)
    phases = vlbi.closure_phases(observation.vis, closures)
    amplitudes = vlbi.log_closure_amplitudes(observation.vis, closures)
    sigmas = vlbi.closure_sigmas(observation.vis, observation.sigma, closures, systematic)
    if truth is not None:
        truth = _image(truth, npix)
        truth = truth / truth.max()
    return _problem(
        name, observation, closures, _data(phases, amplitudes, sigmas), view, truth, branch,
        f"Real data {Path(observation.name).name}: {len(observation)} visibilities, {dropped} dropped (baseline below "
        f"{min_baseline:g} wavelengths, |V|/sigma below {min_snr:g}, or zero); {len(phases)} closure phases and "
        f"{len(amplitudes)} log closure amplitudes, {_rank(closures)}; systematic noise {systematic:g}; no flux term, "
        f"image rescaled to {compact_flux:g} Jy for display only. The prior knows stand-in images only, not GRMHD.")


@dataclass(frozen=True)
class View:
    """How an image is laid out and shown: pixels per side, field of view in micro-arcseconds, total flux in Jy."""

    pixels: int = PIXELS
    field_of_view: float = FIELD_OF_VIEW
    flux_jy: float = COMPACT_FLUX

    def __post_init__(self):
        if not 8 <= self.pixels <= 512:
            raise ValueError(f"npix: got {self.pixels}, expected 8 to 512 pixels per side")
        if not 0 < self.field_of_view < math.inf:
            raise ValueError(f"fov: got {self.field_of_view}, expected a field of view > 0 micro-arcseconds")
        if not 0 < self.flux_jy < math.inf:
            raise ValueError(f"compact_flux: got {self.flux_jy}, expected a flux > 0 Jy")

    @property
    def shipped(self):
        """Whether the shipped priors are for images like this."""
        return (self.pixels, self.field_of_view) == (PIXELS, FIELD_OF_VIEW)

    def in_jy(self, image):
        """A normalised image (n, n) in Jy per pixel, with the total flux of the view."""
        total = image.sum()
        return image * (self.flux_jy / total) if total > 0 else image


def _rank(closures):
    """How far a closure set is from full rank, in words."""
    phases, amplitudes = closures.shortfall
    if not (phases or amplitudes):
        return "all that are independent"
    return f"{phases} and {amplitudes} fewer than are independent"


def _data(phases, amplitudes, sigmas, flux=None):
    """`Observation` of closures and, as (value, error), the total flux."""
    n_cp, n_lca = len(phases), len(amplitudes)
    blocks = {"cp": slice(0, n_cp), "lca": slice(n_cp, n_cp + n_lca)}
    y, sigma = [phases, amplitudes], list(sigmas)
    if flux is not None:
        blocks["flux"] = slice(n_cp + n_lca, n_cp + n_lca + 1)
        y.append([flux[0]])
        sigma.append([flux[1]])
    return Observation(np.concatenate(y), np.concatenate(sigma), np.arange(sum(map(len, y))) < n_cp, blocks)


def _problem(name, observation, closures, data, view, truth, branch, notes):
    if branch not in ("data", "principal"):
        raise ValueError(f"branch: got {branch!r}, expected 'data' (phases around the measured ones) or 'principal'")
    table = fourier_table(observation.u, observation.v, view.pixels, view.field_of_view)
    has_flux = "flux" in data.blocks
    forward = ClosureForward(table, closures, data.y[data.blocks["cp"]] if branch == "data" else None, has_flux)

    def score(ensemble):
        return scores(ensemble, forward, data, truth, view.field_of_view)

    def pool(ensemble, index):
        return aligned_ensembles(ensemble, index, rescale=not has_flux)

    def figure(result):
        from problems.black_hole_figure import draw

        return draw(result, forward, data, observation, view.field_of_view, view.flux_jy, name)

    def export(result, folder):
        """image.fits and closures.csv in ``folder``, of the mean image."""
        mean = np.asarray(result["mean"], dtype=np.float64)
        write_fits_image(folder / "image.fits", view.in_jy(mean), view.field_of_view, observation.about)
        model = forward((mean[None] - forward.shift) / forward.scale)[0]
        write_closure_table(folder / "closures.csv", observation, closures, data, model)
        return ["image.fits", "closures.csv"]

    def remarks(ensemble):
        return edge_remark(ensemble.mean(axis=0), view.field_of_view)

    units = "peak pixel" if view.shipped else (
        f"image of peak 1, {view.field_of_view:g} micro-arcseconds across, {view.pixels} x {view.pixels} pixels")
    return Problem(name=name, event_shape=(view.pixels, view.pixels), forward=forward, observation=data,
                   scale=forward.scale, shift=forward.shift, units=units, truth=truth, forward_vjp=forward.vjp,
                   prior=PRIOR if view.shipped else None, defaults=DEFAULTS, preset="black-hole-official",
                   metric="psnr_aligned",
                   larger_is_better=True, score=score, pool=pool, figure=figure, export=export, remarks=remarks,
                   notes=notes)


def edge_remark(image, field_of_view):
    """A sentence where an image (n, n) goes on beyond its field of view; "" where it does not.

    The sign is an edge pixel brighter than a tenth of the peak: the images of the prior have none.
    """
    edge = max(image[0].max(), image[-1].max(), image[:, 0].max(), image[:, -1].max())
    if not edge > EDGE * image.max():
        return ""
    return (f"The image reaches the edge of its field of view of {field_of_view:g} micro-arcseconds (brightest edge "
            f"pixel: {100 * edge / image.max():.0f} % of the peak): what lies outside is folded into it.")


def aligned_ensembles(ensemble, index, rescale):
    """Every ensemble moved by whole pixels to where the first one stands; with ``rescale``, also to the mean flux.

    Closures see neither position nor flux: without this the mean of two good images is a blurred one. (J, n, n), (J,)
    """
    means = np.stack([ensemble[index == k].mean(axis=0) for k in np.unique(index)])
    fluxes = means.sum(axis=(1, 2))
    factors = fluxes.mean() / fluxes if rescale else np.ones(len(means))
    moves = best_shifts(factors[:, None, None] * means, factors[0] * means[0])
    number = np.searchsorted(np.unique(index), index)
    return np.stack([factors[k] * shifted(image, int(moves[k][0]), int(moves[k][1]))
                     for image, k in zip(ensemble, number)])


def scores(ensemble, forward, data, truth=None, field_of_view=FIELD_OF_VIEW):
    """Figures of merit of an ensemble (J, n, n) of normalised images x; definitions in ``radio_metrics`` and ``vlbi``.

    chi2 of the ensemble mean and its median over particles; ring diameter (micro-arcseconds) and position angle of the
    bright side (degrees East of North) of the mean; total flux of the mean in peak pixels (free to drift without a
    flux datum). With a truth: PSNR after alignment by whole pixels, plain and blurred. Closures do not see the flux
    scale, so the flux alignment of the official evaluators changes neither chi2.
    """
    ensemble = to_numpy(ensemble).astype(np.float64)
    mean = ensemble.mean(axis=0)
    chi2 = {}
    for label, images in (("", mean[None]), ("_particles", ensemble)):
        predicted = forward((images - forward.shift) / forward.scale)
        for block, statistic in (("cp", vlbi.chi2_phase), ("lca", vlbi.chi2_log_amplitude)):
            part = data.blocks[block]
            if part.start == part.stop:  # three stations have a triangle but no quadrangle
                continue
            values = statistic(predicted[:, part], data.y[part], data.noise[part])
            chi2[f"chi2_{block}" + (label and "_median_particle")] = float(np.median(values))
    ring = ring_fit(mean, field_of_view)
    result = {**chi2, "ring_diameter_uas": ring.diameter, "ring_position_angle_deg": ring.position_angle,
              "total_flux_over_peak": float(mean.sum())}
    if truth is not None:
        result["psnr_aligned"] = float(aligned_psnr(mean[None], truth)[0])
        for width in (10, 15, 20):
            result[f"psnr_blurred_{width}uas"] = float(blurred_psnr(mean[None], truth, width, field_of_view)[0])
        result["psnr_aligned_median_particle"] = float(np.median(aligned_psnr(ensemble, truth)))
    return result


def _closures(observation, closure_set, max_tint_ratio=None):
    if closure_set not in CLOSURE_SETS:
        raise ValueError(f"closure_set: got {closure_set!r}, expected 'full' or 'min'")
    return CLOSURE_SETS[closure_set](observation, max_tint_ratio)


def _image(truth, pixels=PIXELS):
    """A truth as a float64 array (pixels, pixels); from an array or the path of a .npy file."""
    truth = read_array(truth, "truth")
    if truth.shape != (pixels, pixels) or truth.max() <= 0:
        raise ValueError(f"truth: got shape {truth.shape}, maximum {truth.max() if truth.size else None}, "
                         f"expected an image ({pixels}, {pixels}) with a positive maximum")
    return truth


def _noiseless(truth, coverage, peak_jy, sefd, time_fraction):
    """Visibilities of ``truth`` in Jy on the baselines of ``coverage``."""
    if coverage.startswith("m87-"):
        observation = read_m87(coverage[4:])
        observation = replace(observation, name=f"simulated {coverage}")
    else:
        observation = vlbi.simulated_coverage("m87" if coverage == "standard" else coverage, sefd=sefd)
    if not 0 < time_fraction <= 1:
        raise ValueError(f"time_fraction: got {time_fraction!r}, expected a number in (0, 1]")
    scan = observation.scan
    observation = observation.rows(scan < math.ceil(time_fraction * (scan.max() + 1)))
    parts = fourier_table(observation.u, observation.v) @ (peak_jy * truth.reshape(-1))
    return replace(observation, vis=parts[:len(observation)] + 1j * parts[len(observation):])


def _intra_site_flux(observation):
    """Median ALMA-APEX amplitude in Jy: the total flux as that 2 km baseline sees it."""
    site = {observation.stations.index("AA"), observation.stations.index("AP")}
    rows = [set(pair) == site for pair in zip(observation.first, observation.second)]
    return np.median(np.abs(observation.vis[rows]))


# ------------------------------------------------------------------------------------------------- entries of the table


def build_m87(day="101", truth=None, **recipe):
    """`m87` with the options of its entry."""
    return m87(day, truth=truth, **recipe)


def build(observation=None, truth=None, item=0, seed=0, coverage="standard", noise_mode="vis_thermal",
          closure_set="full", **recipe):
    """`black_hole` with the options of its entry: a file of visibilities, or simulated data of image ``item``."""
    if observation is not None:
        return black_hole(observation, truth, closure_set=closure_set, **recipe)
    return black_hole(truth=truth, seed=seed, index=item, coverage=coverage, noise=noise_mode, closure_set=closure_set)


RECIPE = (
    Option("systematic", nonnegative, "noise added to real data, as a fraction of |V|", 0.02, data="measured"),
    Option("min_baseline", nonnegative, "drop visibilities of baselines shorter than this, wavelengths", 0.1e9,
           data="measured"),
    Option("min_snr", nonnegative, "drop visibilities with a lower ratio |V|/sigma", 0.0, data="measured"),
    Option("max_tint_ratio", nonnegative, "drop closures whose integration times differ by a larger factor; default: "
           "none is dropped", data="measured"),
    Option("compact_flux", positive, "flux of the displayed image, Jy", COMPACT_FLUX, data="measured"),
    Option("fov", positive, "field of view, micro-arcseconds; another needs a --prior of your own", FIELD_OF_VIEW,
           data="measured"),
    Option("npix", integer, "pixels per side; another number needs a --prior of your own", PIXELS, data="measured"))
CLOSURE_SET = Option("closure_set", str, "full (of full rank) or min (through one reference station)", "full",
                     tuple(CLOSURE_SETS))

M87 = Entry(
    build_m87, "M87* from the EHT data of 11 (--day 101) or 6 April 2017 (--day 096)",
    (Option("day", str, "day of the observation: 101 or 2017-04-11, 096 or 2017-04-06", "101"), *RECIPE, CLOSURE_SET,
     TRUTH), simulated=False)

BLACK_HOLE = Entry(
    build, "black-hole imaging: simulated, or --observation FILE (CSV, UVFITS)",
    (Option("coverage", str, "baselines and times of the simulated data: standard, sgra, m87-101 or m87-096",
            "standard", COVERAGES, data="simulated"),
     Option("noise_mode", str, "noise of the simulated data: vis_thermal, gaussian or eht", "vis_thermal", NOISE_MODES,
            data="simulated"),
     *RECIPE, CLOSURE_SET, ITEM, Option("seed", count, "of the simulated noise", 0), OBSERVATION, TRUTH))
