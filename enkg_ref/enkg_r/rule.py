"""How EnKG-R spends a budget of forward calls: its settings from the prior's reference, the data and that number.

Nothing is tuned per problem. The numbers that no theory gives stand below by name, each with what it was chosen by.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..protocol import Method, Plan, at_least
from .method import Config, EnKGR, State, diagonal, isotropic, twice_the_median

LEAST_BUDGET = 64  # four levels of 16 particles
PARTICLES = ((750, 16), (3000, 32), (math.inf, 64))  # up to so many calls; more levels are worth more than particles
HELD_VARIANCE, FEWEST, MOST = 0.95, 100, 500  # evaluations in the regression: the modes with this share of the variance
FALL_PER_RENEWAL = 0.4  # of s while the regression's evaluations are renewed once: faster, and particles outrun it
START = 2.0  # s_1 in pointwise standard deviations of the prior: larger wasted calls, smaller kept the start
START_LEADING = 0.6  # the same in rms standard deviations of the leading modes: noise below theirs hardly moves them
START_MOST = 3.0  # at most, in pointwise standard deviations, unless the budget affords more or some data are angles
SHARE_OF_FALL = 0.5  # a budget affords a start from which s can fall to s_L in this share of its levels
END, END_ANGLES = 0.15, 0.05  # s_L at least, in pointwise standard deviations: below, spread falls and error rises
MODEL_NOISE = 0.25  # c_R: from 0.25 to 1 errors change by less than 10 %, at 0.02 runs blew up


def settings_by_rule(reference, likelihood, budget, sigma_range=(0.0, math.inf), seed=0):
    """Settings from the prior's reference, the data and the number of forward calls.

    J = 16 up to 750 calls, 32 up to 3,000, 64 above; L = budget // J.
    s_1 = 2 x the prior's pointwise standard deviation std, or 0.6 x the rms standard deviation of its leading modes,
    (sum l^2/sum l)^1/2, if that is larger: where a few modes hold most of the variance theirs is many times std, and
    noise of std leaves them where the start put them. At most 3 x std, or what half of the levels suffice to come down
    from if that is larger, 0.15 std 0.4^(-budget/2n); no such bound where some data are angles, whose branches are
    chosen early.
    s_L = max(2 sigma_y/gain, 0.15 std), where some data are angles 0.05 std. At lower levels the spread falls and the
    error of the mean rises again (measured on Navier-Stokes without noise); of two simulated images one lost 4 dB at
    0.15. Both are inside the denoiser's range, s_L at most s_1; geometric.
    rho = 1 - J/n, n the number of modes with 95 % of the variance, in [100, 500]: n evaluations carry the regression.
    Per n new evaluations s falls by the factor 0.4 at most, 0.4^(J/n) per level: particles that outrun the regression
    keep their error and lose their spread. With few calls the levels therefore end above s_L.
    c_R = 0.25, R shrunk towards tr(S)/m I, or, where some data are angles, towards the diagonal; there outliers are
    replaced. The level is held while kappa > 4.

    Parameters
    ----------
    reference : Reference          of the prior
    likelihood                     its ``has_angles`` is all that is asked
    budget : int                   forward calls, at least 64
    sigma_range : (float, float)   smallest and largest noise level of the denoiser

    Raises ValueError if the budget is below 64 calls.
    """
    if budget < LEAST_BUDGET:
        raise ValueError(f"budget: got {budget} forward calls, expected at least {LEAST_BUDGET} "
                         "(4 levels of 16 particles)")
    J = next(particles for most, particles in PARTICLES if budget <= most)
    evaluations = min(max(reference.active_modes(HELD_VARIANCE), FEWEST), MOST)
    lowest, highest = sigma_range
    angles = likelihood.has_angles
    leading = math.sqrt(float(np.sum(reference.variances**2) / np.sum(reference.variances)))
    start = max(START * reference.std, START_LEADING * leading)
    end = max((END_ANGLES if angles else END) * reference.std, lowest)
    if not angles:
        affordable = end * FALL_PER_RENEWAL ** (-SHARE_OF_FALL * min(budget / evaluations, 100.0))
        start = min(start, max(START_MOST * reference.std, affordable))
    start = min(start, highest)
    return Config(
        particles=J, levels=budget // J, sigma_start=start, sigma_end=min(end, start),
        steepest=FALL_PER_RENEWAL ** (J / evaluations), memory=1.0 - J / evaluations, seed=seed,
        model_noise=MODEL_NOISE, shrink_to=diagonal if angles else isotropic,
        outliers=twice_the_median if angles else None)


def default_budget(item):
    """Forward calls where the user names none, those of the tables: 1,504, and 3,840 where data are angles."""
    return 3840 if item.likelihood.has_angles else 1504


def plan(item, budget, c_vjp, seed, settings):
    """`protocol.Plan` for this budget.  settings : fields of `Config` that the caller fixes"""
    at_least("enkg-r", budget, LEAST_BUDGET)
    config = settings_by_rule(item.reference, item.likelihood, budget, item.sigma_range, seed)
    config = dataclasses.replace(config, **settings)
    method = EnKGR(item.denoise, item.likelihood, item.reference, config)
    why = (f"{config.particles} particles at {config.levels} levels spend the {budget} forward calls; noise from "
           f"{config.sigma_start:.3g} down to {config.sigma_end:.3g} in prior units")
    return Plan(method, config.particles, config.describe(), config.levels, State, why=why)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "reference"}),
    words="this project's extension, not in the paper: regressed sensitivities",
    spends="16 to 64 particles, the rest in levels",
    spread="The spread is meant as a posterior standard deviation. Measured, it was about right where the posterior is "
           "near a Gaussian, and down to 0.6 times too small with poor models or data.",
    candidates=({}, {"model_noise": 1.0}, {"model_noise": 0.5}, {"noise_floor": 1.0}), default_budget=default_budget,
    weigh=True)
