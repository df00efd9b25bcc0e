"""Runs of EnKG-R on linear-Gaussian problems and on Navier-Stokes flows, and of what stands beside them.

Each function yields (key, work): the key of a record, and the call that makes its scores and costs.
"""

import dataclasses
import functools
import itertools
import time

import numpy as np
from enkg_r_records import FFT, calibration, run, shipped

from enkg_ref import Gaussian, member_normals
from enkg_ref.enkg_r import method as regressed
from enkg_ref.enkg_r import rule
from enkg_ref.enkg_r.reference import Reference, from_images
from enkg_ref.enkg_r.regression import Surrogate
from problems.problem import assumed_noise


def linear_gaussian(options):
    from problems.linear_gaussian import linear_gaussian as problem_of

    budget = options.budget or 256
    for (d, m), noise, seed, by in itertools.product(((128, 32), (1024, 128)), (0.05, 0.5, 2.0),
                                                     range(options.seeds or 8), ("linear", "rule")):
        def work(d=d, m=m, noise=noise, seed=seed, by=by):
            problem = problem_of("B", noise=noise, seed=seed, d=d, m=m)
            likelihood, reference = Gaussian(problem.observation.y, noise), Reference.gaussian(problem.mu, problem.Sigma)
            if by == "rule":
                config = rule.settings_by_rule(reference, likelihood, budget, seed=seed)
            else:  # the problem is known to be linear: nothing is forgotten, every evaluation counts everywhere
                config = regressed.Config(particles=32, levels=budget // 32, sigma_start=1.0, sigma_end=0.1, memory=1.0,
                                          locality=0.0, metric=0.0, model_noise=1.0, seed=seed)
            x, facts = run(regressed.EnKGR(problem.denoise, likelihood, reference, config), problem.forward,
                           problem.event_shape, seed, "float64")
            m_p, P = problem.posterior
            moved = np.linalg.norm(m_p - problem.mu)
            return {"error_to_posterior_mean": float(np.linalg.norm(x.mean(0) - m_p) / moved),
                    "error_of_exact_draws": float(np.sqrt(np.trace(P) / len(x)) / moved),
                    **calibration(x, problem.truth), **facts}

        yield {"by": by, "d": d, "noise": noise, "budget": budget, "seed": seed}, work


def navier_stokes(options):
    """Seeds outermost: a run that is stopped leaves whole tables of fewer seeds."""
    from problems import vorticity
    from problems.navier_stokes import navier_stokes as problem_of
    from problems.navier_stokes import observe
    from problems.navier_stokes_solver import NavierStokes

    size, prior = options.size, options.prior or "gaussian"
    denoise, reference, sigma_range = (gaussian_of_fields(vorticity) if prior == "gaussian" else shipped(prior))
    noises = options.noise if options.noise is not None else (0.0, 0.55, 1.1) if size == 32 else (1.0,)
    fields = range(options.first, options.first + (options.items or 10))
    for seed, noise, field in itertools.product(range(options.seeds or 1), noises, fields):
        key = {"prior": prior, "data": options.data, "noise": noise, "budget": options.budget or 1504, "item": field,
               "seed": seed, "particles": options.particles}

        def work(key=key, noise=noise, field=field, seed=seed):
            problem = problem_of(size, noise=noise, seed=field, fft=FFT,
                                 data_solver="padded" if key["data"] == "padded" else "same")
            forward, y = problem.forward, problem.observation.y
            if key["data"] == "forcing":  # the inversion's forcing is 10 % too strong
                own = vorticity.preset(size)
                solver = NavierStokes(own.n, dataclasses.replace(own.flow, amplitude=1.1 * own.flow.amplitude),
                                      courant=own.courant, rate_min=own.rate_min, fft=FFT)

                def forward(x):
                    return observe(solver(x * own.scale))
            elif key["data"] == "8x8":  # every fourth grid point
                half = size // 2

                def forward(x):
                    return problem.forward(x).reshape(-1, half, half)[:, ::2, ::2].reshape(len(x), -1)
                y = y.reshape(half, half)[::2, ::2].reshape(-1)
            elif key["data"] == "failed":
                forward = unreliable(forward, [seed, field])
            likelihood = Gaussian(y, noise or assumed_noise(y))
            config = rule.settings_by_rule(reference, likelihood, key["budget"], sigma_range, seed)
            if options.particles:
                config = dataclasses.replace(config, particles=options.particles,
                                             levels=key["budget"] // options.particles)
            method = regressed.EnKGR(denoise, likelihood, reference, config)
            if key["data"] == "exact":
                slope = exact_slope(problem, reference, noise or assumed_noise(y), config.particles)
                method = dataclasses.replace(method, config=dataclasses.replace(config, locality=0.0, metric=0.0),
                                             regress=slope)
            x, facts = run(method, forward, problem.event_shape, seed, "float32")
            return {**calibration(problem.scale * x.astype("float64"), problem.truth), **facts,
                    "farthest": farthest(x, reference)}

        yield key, work


def tuned(options):
    """The rule beside settings changed by hand, one at a time: fields 200 and on, one seed, prior navier-stokes-32."""
    from problems.navier_stokes import navier_stokes as problem_of

    denoise, reference, sigma_range = shipped("navier-stokes-32")
    budget = options.budget or 1504
    settings = list(by_hand(rule.settings_by_rule(reference, Gaussian(np.zeros(1)), budget), budget))
    settings.remove("steepest 0" if budget > 1000 else "s_L / 3")  # without effect there
    if budget > 3000:  # dear
        settings = ["rule", "s_1 / 1.5", "s_L / 3", "c_R .5", "c_R 1", "J 32"]
    for noise, field, name in itertools.product(options.noise if options.noise is not None else (0.0, 0.55, 1.1),
                                                range(200, 200 + (options.items or 3)), settings):
        def work(noise=noise, field=field, name=name):
            problem = problem_of(32, noise=noise, seed=field, fft=FFT)
            likelihood = Gaussian(problem.observation.y, noise or assumed_noise(problem.observation.y))
            by_rule = rule.settings_by_rule(reference, likelihood, budget, sigma_range)
            x, facts = run(regressed.EnKGR(denoise, likelihood, reference, by_hand(by_rule, budget)[name]),
                           problem.forward, problem.event_shape, 0, "float32")
            return {**calibration(problem.scale * x.astype("float64"), problem.truth), **facts}

        yield {"noise": noise, "budget": budget, "setting": name, "item": field}, work


def by_hand(rule, budget):
    """{name: settings}; a memory of n evaluations is kept where J changes."""
    n = rule.particles / (1.0 - rule.memory)
    change = functools.partial(dataclasses.replace, rule)
    return {"rule": rule, "s_1 x 1.5": change(sigma_start=1.5 * rule.sigma_start),
            "s_1 / 1.5": change(sigma_start=rule.sigma_start / 1.5), "s_L / 3": change(sigma_end=rule.sigma_end / 3),
            "c_R .5": change(model_noise=0.5),
            "c_R 1": change(model_noise=1.0), "memory x 1.5": change(memory=1.0 - rule.particles / (1.5 * n)),
            "memory / 1.5": change(memory=max(1.0 - 1.5 * rule.particles / n, 0.3)), "locality 0": change(locality=0.0),
            "steepest 0": change(steepest=0.0),
            **{f"J {J}": change(particles=J, levels=budget // J, memory=max(1.0 - J / n, 0.3), steepest=0.4 ** (J / n))
               for J in (16, 32, 64) if J != rule.particles}}


def es_mda(x, forward, y, noise, assimilations, rng):
    """Ensemble smoother with multiple data assimilation (Emerick and Reynolds 2013), alpha = number of assimilations.

    x_j += C_xy (C_yy + alpha noise^2)^-1 (y + sqrt(alpha) noise eta_j - g_j), in all ``assimilations`` times. Rows that
    fail leave the ensemble.  x : (J, *event);  forward : (J, *event) -> (J, m);  y : (m,)
    """
    for _ in range(assimilations):
        g = np.asarray(forward(x), dtype=np.float64)
        x, g = x[np.isfinite(g).all(axis=1)], g[np.isfinite(g).all(axis=1)]
        a, b = (v.reshape(len(v), -1) - v.reshape(len(v), -1).mean(axis=0) for v in (x, g))
        noisy = y + assimilations**0.5 * noise * rng.standard_normal(g.shape) - g
        weight = np.linalg.solve(b.T @ b + assimilations * noise**2 * (len(x) - 1) * np.eye(y.size), noisy.T)
        x = x + (a.T @ b @ weight).T.reshape(x.shape)
    return x


ES_MDA = ((8, 2240), (4, 376))  # assimilations, members: 17,920 and 1,504 forward calls


def es_mda_table(options):
    from problems.navier_stokes import navier_stokes as problem_of
    from problems.vorticity import preset, prior_moments

    mean, spectrum = prior_moments(32)
    prior = Reference.stationary(mean / preset(32).scale, spectrum / preset(32).scale ** 2)
    noises = options.noise if options.noise is not None else (0.0, 0.55)
    for (assimilations, members), noise, field in itertools.product(ES_MDA, noises, range(options.items or 5)):
        key = {"noise": noise, "item": field, "seed": 0, "assimilations": assimilations, "members": members}

        def work(noise=noise, field=field, assimilations=assimilations, members=members):
            problem = problem_of(32, noise=noise, seed=field, fft=FFT)
            y = problem.observation.y
            start = time.process_time()
            x = es_mda(prior.start(member_normals(0, 0, members, (32, 32))),
                       lambda x: problem.forward(x.astype("float32")), y, noise or assumed_noise(y),
                       assimilations, np.random.default_rng([0, field]))
            return {**calibration(problem.scale * x + problem.shift, problem.truth), "failed": members - len(x),
                    "cpu_seconds": time.process_time() - start, "forward_calls": assimilations * members}

        yield key, work


def dps(options):
    """1 chain at 1,504, 8 chains at 6,016 forward equivalents, a gradient at 1.8 calls as in the arena.

    Of 8 chains the mean, and the one whose data are fitted best, chosen without the truth: some end in a wrong branch.
    """
    from enkg_ref.commands.compare import CompareRequest, items_of
    from enkg_ref.compare.run import run as compared

    noises = options.noise if options.noise is not None else (0.0, 0.55)
    for noise, field, (chains, budget) in itertools.product(noises, range(options.items or 5), ((1, 1504), (8, 6016))):
        key = {"noise": noise, "item": field, "seed": 0, "budget": budget, "members": chains}

        def work(noise=noise, field=field, chains=chains, budget=budget):
            request = CompareRequest("navier-stokes", ("dps",), (budget,), out=None,
                                     options={"noise": noise, "fft": FFT})
            (item,) = items_of(request, [field])
            start = time.process_time()
            record = compared(item, "dps", budget, 0, 1.8, {"rows": chains})
            return {"cpu_seconds": time.process_time() - start, "m2": record["scores"]["relative_l2_of_mean"],
                    "m2_of_best_fit": record["scores"]["relative_l2_of_best_fit"],
                    "forward_calls": record["cost"]["forward_equivalents"], "steps": record["config"]["steps"],
                    "spread": record["scores"].get("spread2", 0.0), "skill": record["scores"].get("skill2", 1.0),
                    "coverage90": record["scores"].get("coverage_90", float("nan")), "nominal": float("nan")}

        yield key, work


def unreliable(forward, seed):
    """Every fifth row, at random, is lost."""
    broken = np.random.default_rng(seed)

    def call(x):
        g = np.array(forward(x))
        g[broken.random(len(g)) < 0.2] = np.nan
        return g

    return call


def exact_slope(problem, reference, noise, particles):
    """In place of the regression: the Jacobian of G at the mean of D, by the adjoint; R from this level's residuals.

    The bound of what a better slope could give. Its m adjoint solves per level are not counted as forward calls.
    """
    def regress(x, d, weight, output_scale):
        a, now = x[-particles:], d[-particles:]
        mean, centre = a.mean(axis=0, keepdims=True), now.mean(axis=0, keepdims=True)
        at = reference.along_modes(mean, (1, *reference.event_shape)) + reference.mean.astype(x.dtype)
        rows = problem.forward_vjp(np.repeat(at, d.shape[1], axis=0), np.eye(d.shape[1], dtype=x.dtype))
        slope = (rows.reshape(d.shape[1], -1) @ reference.modes / noise).T.astype(x.dtype)
        residual = (now - centre - (a - mean) @ slope) / particles**0.5
        return Surrogate(mean, centre, slope, residual, 0.0)

    return regress


def farthest(x, reference):
    """Largest distance of a particle from the prior mean in units of the root of the prior's total variance."""
    total = reference.total_variance(reference.variances, reference.rest)
    return float(np.sqrt(np.max(np.sum((x - reference.mean) ** 2, axis=tuple(range(1, x.ndim)))) / total))


def gaussian_of_fields(vorticity):
    """The exact denoiser of a Gaussian with the moments of 6,144 training fields."""
    fields = vorticity.fields(32, 6144, "train") / vorticity.preset(32).scale
    reference = from_images(fields)

    def denoise(x, s):  # (O1)
        shrink = (reference.variances / (reference.variances + s * s)).astype(x.dtype)
        return reference.along_modes(reference.coordinates(x) * shrink, x.shape) + reference.mean.astype(x.dtype)

    return denoise, reference, (0.0, float("inf"))
