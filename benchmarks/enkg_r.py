"""The tables of EnKG-R, our extension (not in the paper).

    python benchmarks/enkg_r.py linear-gaussian      set-up B and d = 1024, 32 particles, 8 levels (--budget 256), 8 seeds
    python benchmarks/enkg_r.py navier-stokes        settings by rule; --prior, --budget, --items, --seeds, --noise;
                                                     --data padded | forcing (10 % too strong) | failed (20 % of rows)
                                                     | 8x8 (a quarter of the observations)
                                                     | exact (Jacobian by the adjoint instead of the regression)
    python benchmarks/enkg_r.py tuned                the rule beside settings changed by hand; --budget, --noise
    python benchmarks/enkg_r.py es-mda               Emerick and Reynolds (2013) from the Gaussian of the fields
    python benchmarks/enkg_r.py dps                  gradients: DPS with the adjoint, as in the arena, untuned
    python benchmarks/enkg_r.py sparse | simulated   black hole: day-101 coverage and errors | 2017 array; by rule
    python benchmarks/enkg_r.py multimodal           three ensembles each of simulated images that failed and that did not
    python benchmarks/enkg_r.py m87                  both days, settings by rule
    python benchmarks/enkg_r.py wall                 seconds of `enkg solve`, start of the interpreter included
    python benchmarks/enkg_r.py hard                 the runs with --particles: few levels, failing rows
    python benchmarks/enkg_r.py trust                how the runs' own trust numbers rank their true errors
    python benchmarks/enkg_r.py paired | plots       beside the runs of benchmarks/navier_stokes.py, same fields
    python benchmarks/enkg_r.py aims                 what was aimed at, what was reached
    python benchmarks/enkg_r.py document             puts all of this into enkg_ref/enkg_r/README.md, at its marks

Every run is one line of benchmarks/results/enkg_r_TABLE.jsonl as soon as it ends; a repeated command adds the missing, and
several commands may run at once. CPU seconds are those of one thread. Intervals are 95 %, over five fields or more, the
seeds of a field averaged first; Student's t below ten fields, bootstrap-t from ten.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from enkg_ref import Closures, Gaussian, iterate, member_normals
from enkg_ref.compare.arena import mean_interval
from enkg_ref.enkg_r import method as regressed
from enkg_ref.enkg_r import rule
from enkg_ref.enkg_r.reference import Reference, file_sha256, from_images
from enkg_ref.enkg_r.regression import Surrogate
from enkg_ref.run import metrics, report
from problems.problem import assumed_noise

RESULTS = Path(__file__).parent / "results"
FFT = "ducc0" if importlib.util.find_spec("ducc0") else "scipy"  # differ by rounding


def run(method, forward, event_shape, seed, dtype):
    """Last particles, last Info, CPU seconds in all and in forward and denoiser."""
    spent = {"forward": 0.0, "denoiser": 0.0}

    def timed(name, function):
        def call(*arguments):
            start = time.process_time()
            out = function(*arguments)
            spent[name] += time.process_time() - start
            return out
        return call

    method = dataclasses.replace(method, denoise=timed("denoiser", method.denoise))
    start = time.process_time()
    state = method.init(member_normals(seed, 0, method.config.particles, event_shape).astype(dtype))
    retries = replaced = lost = 0
    levels = iterate(method, timed("forward", forward), state)
    for state, info in levels:  # noqa: B007 - the last state is the answer
        retries, replaced, lost = retries + info.retries, replaced + len(info.replaced), lost + info.lost
    seconds = time.process_time() - start
    return state.x, {"cpu_seconds": seconds, "forward_seconds": spent["forward"], "retries": retries, "lost": lost,
                     "denoiser_seconds": spent["denoiser"], "kappa": info.kappa, "noise_ratio": info.noise_ratio,
                     "chi2_of_particles": info.mean_misfit, "replaced": replaced,
                     "forward_calls": info.forward_calls * method.config.particles}


def calibration(x, truth):
    spread, skill = metrics.spread_and_skill(x, truth)
    inside, nominal = metrics.coverage(x, truth)
    return {"m2": float(metrics.relative_l2_of_mean(x, truth)), "m1": float(metrics.relative_l2_of_particles(x, truth)),
            "spread": float(spread), "skill": float(skill), "coverage90": float(inside), "nominal": float(nominal),
            "crps": float(metrics.fair_crps(x, truth))}


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
    denoise, reference, sigma_range = (_gaussian_of_fields(vorticity) if prior == "gaussian" else _shipped(prior))
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
                forward = _unreliable(forward, [seed, field])
            likelihood = Gaussian(y, noise or assumed_noise(y))
            config = rule.settings_by_rule(reference, likelihood, key["budget"], sigma_range, seed)
            if options.particles:
                config = dataclasses.replace(config, particles=options.particles,
                                             levels=key["budget"] // options.particles)
            method = regressed.EnKGR(denoise, likelihood, reference, config)
            if key["data"] == "exact":
                slope = _exact_slope(problem, reference, noise or assumed_noise(y), config.particles)
                method = dataclasses.replace(method, config=dataclasses.replace(config, locality=0.0, metric=0.0),
                                             regress=slope)
            x, facts = run(method, forward, problem.event_shape, seed, "float32")
            return {**calibration(problem.scale * x.astype("float64"), problem.truth), **facts,
                    "farthest": _farthest(x, reference)}

        yield key, work


def tuned(options):
    """The rule beside settings changed by hand, one at a time: fields 200 and on, one seed, prior navier-stokes-32."""
    from problems.navier_stokes import navier_stokes as problem_of

    denoise, reference, sigma_range = _shipped("navier-stokes-32")
    budget = options.budget or 1504
    settings = list(_by_hand(rule.settings_by_rule(reference, Gaussian(np.zeros(1)), budget), budget))
    settings.remove("steepest 0" if budget > 1000 else "s_L / 3")  # without effect there
    if budget > 3000:  # dear
        settings = ["rule", "s_1 / 1.5", "s_L / 3", "c_R .5", "c_R 1", "J 32"]
    for noise, field, name in itertools.product(options.noise if options.noise is not None else (0.0, 0.55, 1.1),
                                                range(200, 200 + (options.items or 3)), settings):
        def work(noise=noise, field=field, name=name):
            problem = problem_of(32, noise=noise, seed=field, fft=FFT)
            likelihood = Gaussian(problem.observation.y, noise or assumed_noise(problem.observation.y))
            by_rule = rule.settings_by_rule(reference, likelihood, budget, sigma_range)
            x, facts = run(regressed.EnKGR(denoise, likelihood, reference, _by_hand(by_rule, budget)[name]),
                           problem.forward, problem.event_shape, 0, "float32")
            return {**calibration(problem.scale * x.astype("float64"), problem.truth), **facts}

        yield {"noise": noise, "budget": budget, "setting": name, "item": field}, work


def _by_hand(rule, budget):
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
    from enkg_ref import cli
    from enkg_ref.compare import arena

    noises = options.noise if options.noise is not None else (0.0, 0.55)
    for noise, field, (chains, budget) in itertools.product(noises, range(options.items or 5), ((1, 1504), (8, 6016))):
        key = {"noise": noise, "item": field, "seed": 0, "budget": budget, "members": chains}

        def work(noise=noise, field=field, chains=chains, budget=budget):
            given = cli._parser().parse_args(["compare", "navier-stokes", "--methods", "dps", "--budget", str(budget),
                                              "--noise", str(noise), "--fft", FFT])
            (item,) = cli.build_items(given, ["dps"], [field])
            start = time.process_time()
            record = arena.run(item, "dps", budget, 0, 1.8, {"rows": chains})
            return {"cpu_seconds": time.process_time() - start, "m2": record["scores"]["relative_l2_of_mean"],
                    "m2_of_best_fit": record["scores"]["relative_l2_of_best_fit"],
                    "forward_calls": record["cost"]["forward_equivalents"], "steps": record["config"]["steps"],
                    "spread": record["scores"].get("spread2", 0.0), "skill": record["scores"].get("skill2", 1.0),
                    "coverage90": record["scores"].get("coverage_90", float("nan")), "nominal": float("nan")}

        yield key, work


def _unreliable(forward, seed):
    """Every fifth row, at random, is lost."""
    broken = np.random.default_rng(seed)

    def call(x):
        g = np.array(forward(x))
        g[broken.random(len(g)) < 0.2] = np.nan
        return g

    return call


def _exact_slope(problem, reference, noise, particles):
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


def _farthest(x, reference):
    """Largest distance of a particle from the prior mean in units of the root of the prior's total variance."""
    total = reference.total_variance(reference.variances, reference.rest)
    return float(np.sqrt(np.max(np.sum((x - reference.mean) ** 2, axis=tuple(range(1, x.ndim)))) / total))


def black_hole(options):
    from problems import black_hole as source

    prior = options.prior or "kerr-disc-64"
    shipped = _shipped(prior)
    jobs = [(day, seed) for day in ("101", "096") for seed in range(options.seeds or 3)]
    if options.table != "m87":
        jobs = [(item, seed) for seed in range(options.seeds or 1) for item in range(options.items or 10)]
    for item, seed in jobs:
        key = {"prior": prior, "budget": options.budget or 3840, "item": item, "seed": seed}

        def work(key=key, item=item, seed=seed):
            problem = source.m87(item) if options.table == "m87" else _simulated(item, COVERAGE[options.table])
            x, facts = _image(problem, shipped, key["budget"], seed)
            if options.table == "m87":
                facts["diameter_sd"] = _diameter_sd(x)
            return {**problem.score(x), **facts}

        yield key, work


COVERAGE = {"simulated": "standard", "sparse": "m87-101"}


def _simulated(item, coverage):
    from problems.black_hole import black_hole as problem_of

    return problem_of(index=item, seed=item, coverage=coverage)


def _image(problem, shipped, budget, seed):
    """Ensemble of images by rule, and the facts of the run."""
    denoise, reference, sigma_range = shipped
    data = problem.observation
    likelihood = Closures(data.y, data.noise, data.angular)
    config = rule.settings_by_rule(reference, likelihood, budget, sigma_range, seed)
    x, facts = run(regressed.EnKGR(denoise, likelihood, reference, config), problem.forward, problem.event_shape, seed,
                   "float32")
    return problem.scale * x.astype("float64") + problem.shift, facts


def _diameter_sd(images):
    """Standard deviation over the particles of the ring diameter, micro-arcseconds."""
    from problems.black_hole import FIELD_OF_VIEW
    from problems.radio_metrics import ring_fit

    return float(np.nanstd([ring_fit(image, FIELD_OF_VIEW).diameter for image in images]))


def failed(row):
    """A simulated image that was not solved: a wrong mode, or data that are not fitted."""
    return row["psnr_aligned"] < 24 or max(row["chi2_cp"], row["chi2_lca"]) > 3


def multimodal(options):
    """What `enkg solve --ensembles 3` says of images whose seed 0 failed, and of the first five whose did not."""
    prior, budget, seeds = options.prior or "kerr-disc-64", options.budget or 3840, range(3)
    shipped = _shipped(prior)
    known = [r for r in _kept("simulated") if r["seed"] == 0 and r["prior"] == prior and r["budget"] == budget]
    for row in [r for r in known if failed(r)] + [r for r in known if not failed(r)][:5]:
        def work(item=row["item"]):
            problem = _simulated(item, "standard")
            data = problem.observation
            likelihood = Closures(data.y, data.noise, data.angular)
            images, facts = zip(*(_image(problem, shipped, budget, seed) for seed in seeds))
            scores = [problem.score(x) for x in images]
            index = np.repeat(np.arange(len(images)), [len(x) for x in images])
            misfits = [np.asarray(likelihood.misfit(problem.forward((x - problem.shift) / problem.scale)))
                       for x in images]
            weights = report.weights_by_misfit(misfits)
            poolable = problem.pool(np.concatenate(images), index)
            pooled = poolable[report.resampled((weights / np.bincount(index))[index])]
            return {**{name: [s[name] for s in scores] for name in ("psnr_aligned", "chi2_cp", "chi2_lca")},
                    "kappa": [f["kappa"] for f in facts], "chi2_of_particles": [f["chi2_of_particles"] for f in facts],
                    "disagreement": report.disagreement(poolable, index), "weights": weights.tolist(),
                    "separation": report.separation(poolable, index),
                    "psnr_of_pool": problem.score(pooled)["psnr_aligned"],
                    "cpu_seconds": sum(f["cpu_seconds"] for f in facts)}

        yield {"prior": prior, "budget": budget, "item": row["item"]}, work


def wall(options):
    """Seconds of whole commands, from the shell; the load says whether the machine was quiet."""
    for command in ("m87 --day 101 --ensembles 1", "m87 --day 096 --ensembles 1", "m87 --day 101", "m87 --day 096",
                    "m87 --day 101 --workers 3", "navier-stokes --size 32"):
        def work(command=command):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([sys.executable, "-m", "enkg_ref", "solve", *command.split(), "--method", "enkg-r",
                                "--quiet", "--out", folder], check=True,
                               env={name: value for name, value in os.environ.items() if not name.endswith("_THREADS")})
                seconds = time.perf_counter() - start
                summary = json.loads((Path(folder) / "summary.json").read_text())
            return {"seconds": seconds, "load": os.getloadavg()[0], "cores": os.cpu_count(),
                    "ensembles": summary["ensembles"], "forward_calls": summary["ledger"]["fwd_total"]}

        yield {"command": command}, work


def _shipped(prior):
    from onnx_priors.session import OnnxDenoiser

    denoise = OnnxDenoiser(prior, threads=1)
    reference = Reference.load(str(denoise.path).removesuffix(".onnx") + ".reference.npz", file_sha256(denoise.path))
    return denoise, reference, (denoise.sigma_min, denoise.sigma_max)


def _gaussian_of_fields(vorticity):
    """The exact denoiser of a Gaussian with the moments of 6,144 training fields."""
    fields = vorticity.fields(32, 6144, "train") / vorticity.preset(32).scale
    reference = from_images(fields)

    def denoise(x, s):  # (O1)
        shrink = (reference.variances / (reference.variances + s * s)).astype(x.dtype)
        return reference.along_modes(reference.coordinates(x) * shrink, x.shape) + reference.mean.astype(x.dtype)

    return denoise, reference, (0.0, float("inf"))


TABLES = {"linear-gaussian": linear_gaussian, "navier-stokes": navier_stokes, "tuned": tuned, "es-mda": es_mda_table, "dps": dps,
          "sparse": black_hole, "simulated": black_hole, "m87": black_hole, "multimodal": multimodal, "wall": wall}


# ------------------------------------------------------------------------------------------------- from kept runs
def show(table, rows):
    """The table as Markdown."""
    {"linear-gaussian": show_calibrated, "navier-stokes": show_calibrated, "es-mda": show_calibrated, "dps": show_calibrated, "wall": show_wall,
     "tuned": show_tuned, "multimodal": show_multimodal, "m87": show_m87}.get(table, show_images)(table, rows)


def show_images(table, rows):
    print("| item | seeds | calls | aligned PSNR dB | chi2 cp | chi2 lca | kappa | CPU s |\n|" + "---|" * 8)
    for budget, item in sorted({(r["budget"], r["item"]) for r in rows}):
        of = [r for r in rows if (r["budget"], r["item"]) == (budget, item)]
        print(f"| {item} | {len(of)} | {budget} | " + " | ".join(
            " / ".join(f"{r[name]:.{digits}f}" for r in of) for name, digits in (
                ("psnr_aligned", 1), ("chi2_cp", 2), ("chi2_lca", 2), ("kappa", 2), ("cpu_seconds", 1))) + " |")
    for budget, seed in sorted({(r["budget"], r["seed"]) for r in rows}):
        of = [r for r in rows if (r["budget"], r["seed"]) == (budget, seed)]
        print(f"{budget:,} calls, seed {seed}: median {np.median([r['psnr_aligned'] for r in of]):.1f} dB, both chi2 at "
              f"most 3 on {sum(map(_fitted, of))} of {len(of)}, at least 24 dB on "
              f"{sum(r['psnr_aligned'] >= 24 for r in of)}")


def _fitted(row):
    return max(row["chi2_cp"], row["chi2_lca"]) <= 3


def show_m87(table, rows):
    print("| day | seed | diameter uas (sd over particles) | PA deg | chi2 cp | chi2 lca | kappa | CPU s |\n|" + "---|" * 8)
    for r in rows:
        print(f"| {r['item']} | {r['seed']} | {r['ring_diameter_uas']:.1f} ({r['diameter_sd']:.2f}) "
              f"| {r['ring_position_angle_deg']:.0f} | {r['chi2_cp']:.2f} | {r['chi2_lca']:.2f} | {r['kappa']:.2f} "
              f"| {r['cpu_seconds']:.1f} |")


def show_wall(table, rows):
    print("| enkg solve ... --method enkg-r | ensembles | forward calls | seconds | load at the end |\n|" + "---|" * 5)
    for r in rows:
        print(f"| {r['command']} | {r['ensembles']} | {r['forward_calls']} | {r['seconds']:.1f} | {r['load']:.1f} |")


def show_tuned(table, rows):
    """Ratio: mean M2 of the rule over that of the best setting, both over the same fields. SSR in brackets."""
    names = list(dict.fromkeys(r["setting"] for r in rows))
    print("| noise | calls | fields | " + " | ".join(names) + " | rule / best |\n|" + "---|" * (len(names) + 4))
    for noise, budget in sorted({(r["noise"], r["budget"]) for r in rows}, key=lambda group: group[::-1]):
        mean = _tuned_means(rows, noise, budget)
        fields = len({r["item"] for r in rows if (r["noise"], r["budget"]) == (noise, budget)})
        cells = [f"{mean[n][0]:.3f} ({(mean[n][1] / mean[n][2]) ** 0.5:.2f})" if n in mean else "-" for n in names]
        best = min(mean, key=lambda name: mean[name][0])
        print(f"| {noise} | {budget:,} | {fields} | " + " | ".join(cells)
              + f" | {mean['rule'][0] / mean[best][0]:.2f} ({best}) |")


def _tuned_means(rows, noise, budget):
    """{setting: (M2, spread, skill)}, means over the fields that every setting has."""
    of = {}
    for r in rows:
        if (r["noise"], r["budget"]) == (noise, budget):
            of.setdefault(r["setting"], {})[r["item"]] = (r["m2"], r["spread"], r["skill"])
    both = set.intersection(*(set(fields) for fields in of.values()))
    return {name: np.mean([fields[f] for f in both or fields], axis=0) for name, fields in of.items()}


def show_multimodal(table, rows):
    """Two ways to flag: further apart than any image that no seed failed (known afterwards), and separation above 1."""
    lost = {r["item"]: [failed(dict(zip(("psnr_aligned", "chi2_cp", "chi2_lca"), one))) for one in
                        zip(r["psnr_aligned"], r["chi2_cp"], r["chi2_lca"])] for r in rows}
    limit = max((r["disagreement"] for r in rows if not any(lost[r["item"]])), default=float("nan"))
    print("| image | seeds failed | PSNR dB | chi2 cp | chi2 lca | kappa | weights | PSNR of the weighted pool "
          "| disagreement | separation |\n|" + "---|" * 10)
    for r in sorted(rows, key=lambda r: (not any(lost[r["item"]]), r["item"])):
        print(f"| {r['item']} | {sum(lost[r['item']])} of {len(lost[r['item']])} | " + " | ".join(
            " / ".join(f"{value:.{digits}f}" for value in r[name]) for name, digits in (
                ("psnr_aligned", 1), ("chi2_cp", 2), ("chi2_lca", 2), ("kappa", 2), ("weights", 2)))
              + f" | {r['psnr_of_pool']:.1f} | {r['disagreement']:.2f}{' (!)' if r['disagreement'] > limit else ''} "
              f"| {r['separation']:.2f}{' (!)' if r['separation'] > 1 else ''} |")
    print(f"(!): flagged; disagreement above {limit:.2f}, the largest of an image that no seed failed, separation above 1. "
          + "; ".join(f"{name}: {sum(r['disagreement'] > limit for r in of)} and {sum(r['separation'] > 1 for r in of)} of "
                      f"{len(of)} flagged" for name, of in (
                          ("a seed below 24 dB", [r for r in rows if min(r["psnr_aligned"]) < 24]),
                          ("a failed seed", [r for r in rows if any(lost[r["item"]])]),
                          ("no failed seed", [r for r in rows if not any(lost[r["item"]])]))))


def show_calibrated(table, rows):
    names = {"linear-gaussian": ("by", "d", "noise", "budget"), "es-mda": ("noise", "assimilations", "members"),
             "dps": ("noise", "members", "budget")}.get(
        table, ("prior", "data", "budget", "noise"))
    first = "error_to_posterior_mean" if table == "linear-gaussian" else "m2"
    floor = "| of as many exact draws " if table == "linear-gaussian" else ""
    print(f"| {' | '.join(names)} | fields (runs) | {first} [95 %] (worst run) {floor}| SSR | 90 % coverage (nominal) | kappa "
          "| CPU s (forward, denoiser) |\n" + "|---" * (len(names) + 6 + bool(floor)) + "|")
    rows = [r for r in rows if not r.get("particles")]  # those are the hard runs
    for group in sorted({tuple(r[n] for n in names) for r in rows}):
        of = [r for r in rows if tuple(r[n] for n in names) == group]
        s = _summary(of, first)
        parts = f" ({s['forward_seconds']:.1f}, {s['denoiser_seconds']:.1f})" if "forward_seconds" in s else ""
        limit = f"| {s['error_of_exact_draws']:.3f} " if floor else ""
        print(f"| {' | '.join(map(str, group))} | {s['fields']} ({len(of)}) | {s['words']} ({s['worst']:.3f}) "
              f"{limit}| {s['ssr']:.2f} | {s['coverage90']:.3f} ({s['nominal']:.3f}) | {s.get('kappa', float('nan')):.2f} "
              f"| {s['cpu_seconds']:.1f}{parts} |")


def _summary(rows, first="m2"):
    """Means of all numbers over fields, the seeds of a field averaged first; interval of ``first``; pooled SSR."""
    by_field = {}
    for r in rows:
        by_field.setdefault(r.get("item", r["seed"]), []).append(r)
    numbers = [n for n, value in rows[0].items() if isinstance(value, float | int)]
    mean = {n: float(np.mean([np.mean([r[n] for r in of]) for of in by_field.values()])) for n in numbers}
    return {**mean, "fields": len(by_field), "worst": max(r[first] for r in rows),
            "ssr": (mean["spread"] / mean["skill"]) ** 0.5,
            "words": _interval([np.mean([r[first] for r in of]) for of in by_field.values()])}


def _interval(values, sign=""):
    """mean [95 % interval]; the mean alone for fewer than five values."""
    mean, low, high = mean_interval(values)
    return f"{mean:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if len(values) >= 5 else "")


def hard():
    """Runs with --particles J: whether anything breaks. Errors are those of unfinished runs."""
    rows = [r for r in _kept("navier-stokes") if r["particles"]]
    print("| J | calls | data | runs | M2, noise 0 | noise .55 | worst | farthest particle, prior sd | retried, lost levels |\n|"
          + "---|" * 9)
    for J, budget, data in sorted({(r["particles"], r["budget"], r["data"]) for r in rows}):
        of = [r for r in rows if (r["particles"], r["budget"], r["data"]) == (J, budget, data)]
        mean = [np.mean([r["m2"] for r in of if r["noise"] == noise]) for noise in (0.0, 0.55)]
        print(f"| {J} | {budget} | {data} | {len(of)} | {mean[0]:.3f} | {mean[1]:.3f} | {max(r['m2'] for r in of):.2f} "
              f"| {max(r['farthest'] for r in of):.2f} | {sum(r['retries'] for r in of)}, "
              f"{sum(r.get('lost', 0) for r in of)} |")


TRUST = {"kappa": "kappa", "noise ratio": "noise_ratio", "chi2 of the particles": "chi2_of_particles"}


def trust():
    """Spearman correlation of a run's own trust numbers with its true error, by problem and over all.

    Problems differ in scale of error (closures leave 10 %, a flow 25 %) and so do noise levels: a correlation over all
    runs as they are mostly tells these apart. Numbers and errors are therefore ranked among the runs of one problem at
    one noise level, whatever their item, seed, budget or disturbance, and the ranks are pooled.
    """
    from scipy.stats import spearmanr

    problems = _with_errors()
    every = [r for of in problems.values() for r in of]
    print("| trust number | " + " | ".join(f"{name} (n = {len(of)})" for name, of in problems.items())
          + f" | all (n = {len(every)}) | all, not ranked |\n|" + "---|" * (len(problems) + 3))
    for label, name in TRUST.items():
        cells = [_ranked_correlation(of, name) for of in (*problems.values(), every)]
        cells.append(spearmanr([r[name] for r in every], [r["error"] for r in every]).statistic)
        print(f"| {label} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    rows = _kept("navier-stokes")
    finished = [r for r in rows if r["budget"] == 1504 and r["data"] == "same" and not r["particles"]]
    print("navier-stokes, finished runs only (1,504 calls, nothing disturbed), by noise: " + "; ".join(
        f"{label} " + " / ".join(f"{spearmanr([r[name] for r in of], [r['m2'] for r in of]).statistic:.2f}" for of in (
            [r for r in finished if r["noise"] == noise] for noise in (0.0, 0.55, 1.1))) for label, name in TRUST.items()))
    print(f"{len(rows)} Navier-Stokes runs: farthest particle {max(r['farthest'] for r in rows):.1f} prior standard "
          f"deviations from the prior mean; with a retried level: {sum(r['retries'] > 0 for r in rows)}, a lost one: "
          f"{sum(r.get('lost', 0) > 0 for r in rows)}; "
          f"non-finite errors: {sum(not np.isfinite(r['m2']) for r in rows)}")


def _ranked_correlation(rows, name):
    """Spearman of the ranks that ``name`` and the error have within their group."""
    from scipy.stats import rankdata, spearmanr

    groups = {}
    for r in rows:
        groups.setdefault(r["group"], []).append((r[name], r["error"]))
    ranks = [np.transpose([rankdata(column) / len(of) for column in zip(*of)]) for of in groups.values()]
    return spearmanr(*np.concatenate(ranks).T).statistic


def _with_errors():
    """{problem: rows with "error" and "group"}, error: relative L2 of the mean; linear-Gaussian: to the posterior mean;
    black hole: of the aligned mean, clipped to [0, 1]."""
    problems = {"navier-stokes": [{**r, "error": r["m2"], "group": (r["prior"], r["data"] == "8x8", r["noise"])} for r in _kept("navier-stokes")],
                "linear-Gaussian": [{**r, "error": r["error_to_posterior_mean"], "group": (r["by"], r["d"], r["noise"])}
                                    for r in _kept("linear-gaussian")]}
    for table, coverage in COVERAGE.items():
        rows = _kept(table)
        rms = {item: float(np.sqrt(np.mean(_simulated(item, coverage).truth ** 2))) for item in {r["item"] for r in rows}}
        problems.setdefault("black hole", []).extend(
            {**r, "error": 10 ** (-r["psnr_aligned"] / 20) / rms[r["item"]], "group": table} for r in rows)
    return problems


def paired():
    """EnKG-R at 1,504 calls beside the other methods on the same fields."""
    ours, others = _by_method()
    print("| noise | method | forward calls | CPU s | fields | M2 | SSR | M2 of EnKG-R, 1,504 calls, same fields "
          "| difference, 95 % interval |\n|" + "---|" * 9)
    for noise in sorted({key[0] for key in others} | {0.0, 0.55, 1.1}):
        for method in sorted(key[1] for key in others if key[0] == noise):
            rows = [r for r in others[noise, method] if r["field"] in ours.get((noise, 1504), {})]
            fields = sorted({r["field"] for r in rows})
            if not rows:
                continue
            error = [np.mean([r["relative_l2_mean"] for r in rows if r["field"] == f]) for f in fields]
            own = [np.mean([r["m2"] for r in ours[noise, 1504][f]]) for f in fields]
            spread, skill = (np.mean([r[name] for r in rows]) if name in rows[0] else np.nan for name in ("spread2", "skill"))
            ssr = np.sqrt(spread / skill) if np.isfinite(spread) else np.mean([r["ssr"] for r in rows])
            print(f"| {noise:g} | {method} | {rows[0]['fwd_total']:.0f} | {np.mean([r['cpu_seconds'] for r in rows]):.0f} "
                  f"| {len(fields)} | {np.mean(error):.3f} | {ssr:.2f} | {np.mean(own):.3f} "
                  f"| {_interval(np.subtract(error, own), '+')} |")
    print("(*) forward calls, and gradients at their cost in forward calls")
    print("(**) 256 adjoint solves per level beside the forward calls")


def plots():
    """Error against forward calls, and against CPU seconds: one point per run, a line through the means of EnKG-R."""
    from matplotlib.figure import Figure

    ours, others = _by_method()
    for name, our_cost, their_cost in (("forward calls", "forward_calls", "fwd_total"),
                                       ("CPU seconds", "cpu_seconds", "cpu_seconds")):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        for axis, noise in zip(figure.subplots(1, 2, sharey=True), (0.0, 0.55)):
            budgets = {budget: [r for rows in fields.values() for r in rows]
                       for (at, budget), fields in sorted(ours.items()) if at == noise}
            means = [[np.mean([r[key] for r in runs]) for key in (our_cost, "m2")] for runs in budgets.values()]
            axis.plot(*zip(*[(r[our_cost], r["m2"]) for runs in budgets.values() for r in runs]), ".", color="C0",
                      alpha=0.25)
            axis.plot(*zip(*means), "o-", color="C0", label="EnKG-R (ours), settings by rule")
            for number, method in enumerate(sorted({key[1] for key in others if "(**)" not in key[1]}), 1):
                if (noise, method) not in others:
                    continue
                points = [(r[their_cost], r["relative_l2_mean"]) for r in others[noise, method]]
                axis.plot(*zip(*points), "x^vsD*P<"[number % 8], color=f"C{number}", linestyle="", label=method)
            axis.set(xscale="log", yscale="log", xlabel=name, title=f"navier-stokes-32, noise {noise:g}")
            axis.legend(fontsize=6)
            axis.grid(alpha=0.3)
        figure.axes[0].set_ylabel("relative L2 error of the mean")
        path = RESULTS / f"enkg_r_{name.replace(' ', '_').lower()}.png"
        figure.savefig(path, dpi=110)
        print(path)


def _by_method():
    """{(noise, budget): {field: rows}} of EnKG-R, and {(noise, method): rows} of the methods beside it."""
    ours, others = {}, {}
    for r in _kept("navier-stokes"):
        if r["prior"] == "navier-stokes-32" and r["data"] == "same" and not r["particles"]:
            ours.setdefault((r["noise"], r["budget"]), {}).setdefault(r["item"], []).append(r)
    path = RESULTS / "navier_stokes_runs.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        r = json.loads(line)
        shipped = r["prior"] in ("navier-stokes-32", "navier-stokes-32-gaussian")
        standard = (r["size"], r["particles"], r["steps"], r["updates"]) == (32, 256, 40, 2)
        if shipped and standard and r["step_rule"] == "frobenius" and r["guidance"] == 2.0:
            method = r["method"] + (" (Gaussian prior)" if r["prior"].endswith("gaussian") else "")
            others.setdefault((r["noise"], method), []).append(r)
    beside = [(f"es-mda (Gaussian prior), {r['assimilations']} x {r['members']}", r) for r in _kept("es-mda")]
    beside += [(f"dps, adjoint, {r['members']} chain(s) (*)", r) for r in _kept("dps")]
    beside += [(f"dps, adjoint, best fit of {r['members']} chains (*)", {**r, "m2": r["m2_of_best_fit"], "spread": 0.0})
               for r in _kept("dps") if r["members"] > 1]
    beside += [("EnKG-R, Jacobian by the adjoint (**)", r) for r in _kept("navier-stokes") if r["data"] == "exact"]
    for method, r in beside:
        others.setdefault((r["noise"], method), []).append(
            {"field": r["item"], "relative_l2_mean": r["m2"], "fwd_total": r["forward_calls"], "spread2": r["spread"], **r})
    return ours, others


def aims():
    """What the extension was to reach, from the kept runs."""
    print("| aim | measured | |\n|---|---|---|")

    def line(aim, measured, met, not_run=()):
        verdict = "**missed**" if not met else f"met as far as measured, not run: {', '.join(not_run)}" if not_run else "met"
        print(f"| {aim} | {measured} | {verdict} |")

    for d, noise, most in ((128, 0.05, 0.08), (128, 0.5, 0.13), (1024, 0.05, 0.10), (1024, 0.5, 0.21), (1024, 2.0, 0.45)):
        s = _summary([r for r in _kept("linear-gaussian") if (r["by"], r["d"], r["noise"], r["budget"]) == ("linear", d, noise, 256)],
                     "error_to_posterior_mean")
        line(f"linear-Gaussian, d = {d}, noise {noise:g}: error to the posterior mean at most {most}",
             f"{s['words']}; 32 exact draws: {s['error_of_exact_draws']:.3f}",
             s["error_to_posterior_mean"] <= most)
        line("same: SSR .85-1.15, coverage 87-93 %", f"{s['ssr']:.2f}, {s['coverage90']:.1%}",
             0.85 <= s["ssr"] <= 1.15 and 0.87 <= s["coverage90"] <= 0.93)
    flow = [r for r in _kept("navier-stokes") if r["prior"] == "navier-stokes-32" and not r["particles"]]
    for budget, noise, most in ((1504, 0.0, 0.09), (1504, 0.55, 0.26), (1504, 1.1, 0.38), (500, 0.0, 0.30), (500, 0.55, 0.37),
                                (4992, 0.0, 0.085), (4992, 0.55, 0.24)):
        rows = [r for r in flow if (r["data"], r["budget"], r["noise"]) == ("same", budget, noise)]
        if not rows:
            line(f"navier-stokes 32, {budget:,} calls, noise {noise:g}", "not run", False)
            continue
        s = _summary(rows)
        where = f"navier-stokes 32, {budget:,} calls, noise {noise:g}"
        line(f"{where}: M2 at most {most}", f"{s['words']}, {s['fields']} fields, {len(rows)} runs", s["m2"] <= most)
        if budget == 1504:
            line("same: SSR .85-1.15, coverage 85-94 %, at most 10 CPU s",
                 f"{s['ssr']:.2f}, {s['coverage90']:.1%}, {s['cpu_seconds']:.1f} s",
                 0.85 <= s["ssr"] <= 1.15 and 0.85 <= s["coverage90"] <= 0.94 and s["cpu_seconds"] <= 10)
            rest = 1 - (s["forward_seconds"] + s["denoiser_seconds"]) / s["cpu_seconds"]
            line("same: at most 30 % of the CPU time beside forward model and denoiser", f"{rest:.1%}", rest <= 0.3)
        else:
            line("same: SSR at least .8", f"{s['ssr']:.2f}", s["ssr"] >= 0.8)
    ours, others = _by_method()
    for noise in (0.0, 0.55, 1.1):
        differences = {}
        for (at, method), rows in others.items():
            fields = sorted({r["field"] for r in rows} & set(ours.get((noise, 1504), {}))) if at == noise else ()
            if fields and "(*" not in method:  # those have a derivative
                differences[method] = (float(np.mean([
                    np.mean([r["relative_l2_mean"] for r in rows if r["field"] == f])
                    - np.mean([r["m2"] for r in ours[noise, 1504][f]]) for f in fields])), len(fields))
        if differences:
            nearest = min(differences, key=lambda method: differences[method][0])
            line(f"noise {noise:g}: EnKG-R at 1,504 calls below EnKG and its variants, EKI and ES-MDA at up to 17,920",
                 f"nearest of {len(differences)}: {nearest}, {differences[nearest][0]:+.3f} ({differences[nearest][1]} fields)",
                 differences[nearest][0] > 0,
                 [name for name in ("enkg", "eki", "es-mda", *(("particle-stop", "tempered") if noise else ()))
                  if not any(method.startswith(name) for method in differences)])
    ratios = {(noise, budget): _tuned_means(rows, noise, budget) for rows in [_kept("tuned")]
              for noise, budget in {(r["noise"], r["budget"]) for r in rows}}
    if ratios:
        worst, case = max((mean["rule"][0] / min(m[0] for m in mean.values()), case) for case, mean in ratios.items())
        line("settings by rule: no case worse than 1.25 x the best setting changed by hand",
             f"{worst:.2f} (noise {case[0]:g}, {case[1]:,} calls), {len(ratios)} cases", worst <= 1.25,
             [f"{budget:,} calls at noise {noise:g}" for budget in (500, 1504, 4992) for noise in (0.0, 0.55, 1.1)
              if (noise, budget) not in ratios])
    large = [r for r in _kept("navier-stokes") if r["prior"] == "navier-stokes-64"]
    if large:
        s = _summary(large)
        line("navier-stokes 64, 3 fields, at most 10,000 calls: M2 at most .42, SSR .8-1.2, 3 minutes",
             f"{s['m2']:.3f}, {s['ssr']:.2f}, {s['cpu_seconds']:.0f} CPU s; {s['fields']} field(s), {large[0]['budget']:,} calls",
             s["m2"] <= 0.42 and 0.8 <= s["ssr"] <= 1.2 and s["cpu_seconds"] <= 180 and s["fields"] >= 3)
    for data, what in (("padded", "data of the finer solver"), ("forcing", "forcing 10 % too strong"), ("8x8", "8 x 8 data")):
        for noise in (0.0, 0.55):
            rows = [r for r in flow if (r["data"], r["noise"], r["budget"]) == (data, noise, 1504)]
            if rows:
                s = _summary(rows)
                line(f"{what}, noise {noise:g}: SSR at least .8", f"{s['ssr']:.2f} (M2 {s['words']})", s["ssr"] >= 0.8)
    rows = [r for r in _kept("sparse") if r["budget"] == 3840]
    for seed in sorted({r["seed"] for r in rows}):
        of = [r for r in rows if r["seed"] == seed]
        middle = np.median([r["psnr_aligned"] for r in of])
        line(f"black hole, day-101 coverage, seed {seed}: both chi2 at most 3 on 9 of 10, median at least 28 dB, 10 CPU s",
             f"{sum(map(_fitted, of))} of {len(of)}, {middle:.1f} dB, {np.mean([r['cpu_seconds'] for r in of]):.1f} s",
             sum(map(_fitted, of)) >= 9 and middle >= 28 and np.mean([r["cpu_seconds"] for r in of]) <= 10)
    rows = [r for r in _kept("simulated") if r["seed"] == 0 and r["budget"] == 3840]
    if rows:
        middle = np.median([r["psnr_aligned"] for r in rows])
        line("black hole, standard array, 20 images: median at least 30.5 dB", f"{middle:.1f} dB, {len(rows)} images",
             middle >= 30.5 and len(rows) >= 20)
    rows = _kept("multimodal")
    wrong = [r for r in rows if min(r["psnr_aligned"]) < 24]
    if wrong:
        right = [r for r in rows if min(r["psnr_aligned"]) >= 24]
        line("black hole: images with a wrong mode flagged by three independent ensembles (separation above 1)",
             f"{sum(r['separation'] > 1 for r in wrong)} of {len(wrong)}; of the {len(right)} others "
             f"{sum(r['separation'] > 1 for r in right)}", all(r["separation"] > 1 for r in wrong))
    rows = _kept("m87")
    for day in sorted({r["item"] for r in rows}):
        of = [r for r in rows if r["item"] == day]
        found = np.ptp([r["ring_diameter_uas"] for r in of])
        sd, chi2 = np.mean([r["diameter_sd"] for r in of]), max(max(r["chi2_cp"], r["chi2_lca"]) for r in of)
        line(f"M87, day {day}: chi2 at most 1.3; range of the diameter over seeds at most 1.5 uas and 2 sd of the particles",
             f"{chi2:.2f}; {found:.2f} uas, sd {sd:.2f}", chi2 <= 1.3 and found <= min(1.5, 2 * sd))
    for r in _kept("wall"):
        most = 15 if r["command"].startswith("m87") else 60
        line(f"`enkg solve {r['command']} --method enkg-r`: at most {most} s on two cores",
             f"{r['seconds']:.1f} s, {r['ensembles']} ensemble(s)", r["seconds"] <= most)
    problems = _with_errors()
    every = [r for of in problems.values() for r in of]
    best, label = max((_ranked_correlation(every, name), label) for label, name in TRUST.items())
    line("trust numbers rank 60 runs or more of mixed problems by true error, Spearman at least .8",
         f"best {label}, {best:.2f} over {len(every)} runs; navier-stokes alone "
         f"{_ranked_correlation(problems['navier-stokes'], TRUST[label]):.2f}", best >= 0.8)
    rows = _kept("navier-stokes")
    line("200 runs or more, none diverges", f"{len(rows)} Navier-Stokes runs, farthest particle "
         f"{max(r['farthest'] for r in rows):.1f} prior sd, {sum(not np.isfinite(r['m2']) for r in rows)} non-finite",
         len(rows) >= 200 and max(r["farthest"] for r in rows) < 10)


DOCUMENT = Path(__file__).parents[1] / "enkg_ref" / "enkg_r" / "README.md"


def document():
    """Between <!-- enkg_r.py NAME --> and <!-- end --> stands what the command prints from the kept runs."""
    def printed(match):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            FROM_KEPT_RUNS[match[1]]() if match[1] in FROM_KEPT_RUNS else show(match[1], _kept(match[1]))
        lines = text.getvalue().rstrip().splitlines()
        words = [line if line.startswith("|") else f"\n{line}" for line in lines]
        return f"<!-- enkg_r.py {match[1]} -->\n" + "\n".join(words) + "\n<!-- end -->"

    content = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(re.sub(r"<!-- enkg_r.py (\S+) -->.*?<!-- end -->", printed, content, flags=re.DOTALL),
                        encoding="utf-8")


KEYS = ("prior", "data", "noise", "budget", "item", "setting", "seed", "particles", "by", "d", "assimilations",
        "members", "command")


def _kept(table):
    """The rows of a table, the first of every key: two commands at once may have made the same run."""
    path = RESULTS / f"enkg_r_{table}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    first = {}
    for r in rows:
        first.setdefault(tuple(r.get(name) for name in KEYS), r)
    return list(first.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=(*TABLES, *FROM_KEPT_RUNS))
    parser.add_argument("--prior", help="shipped name; navier-stokes: or gaussian")
    for name in ("budget", "items", "seeds", "particles"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--first", type=int, default=0, help="navier-stokes: number of the first field")
    parser.add_argument("--size", type=int, default=32, help="navier-stokes: grid points per axis")
    parser.add_argument("--noise", type=float, nargs="+", help="navier-stokes")
    parser.add_argument("--data", choices=("same", "padded", "forcing", "failed", "8x8", "exact"), default="same")
    options = parser.parse_args()
    if options.table in FROM_KEPT_RUNS:
        FROM_KEPT_RUNS[options.table]()
        return
    RESULTS.mkdir(exist_ok=True)
    for key, work in TABLES[options.table](options):
        if not any(all(row.get(name) == value for name, value in key.items()) for row in _kept(options.table)):
            row = {**key, **work()}
            with (RESULTS / f"enkg_r_{options.table}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    show(options.table, _kept(options.table))


FROM_KEPT_RUNS = {"hard": hard, "trust": trust, "paired": paired, "plots": plots, "aims": aims, "document": document}

if __name__ == "__main__":
    main()
