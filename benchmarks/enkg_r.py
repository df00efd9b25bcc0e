"""The tables of EnKG-R, our extension (not in the paper).

    python benchmarks/enkg_r.py linear-gaussian      set-up B and d = 1024, 8 levels of 32 particles, 8 seeds
    python benchmarks/enkg_r.py navier-stokes        settings by rule; --prior, --budget, --items, --seeds, --noise;
                                                     --data padded | forcing (10 % too strong) | failed (20 % of rows)
                                                     | 8x8 (a quarter of the observations)
                                                     | exact (Jacobian by the adjoint instead of the regression)
    python benchmarks/enkg_r.py es-mda               Emerick and Reynolds (2013) from the Gaussian of the fields
    python benchmarks/enkg_r.py sparse | simulated   black hole: day-101 coverage and errors | 2017 array; by rule
    python benchmarks/enkg_r.py m87                  both days, settings by rule
    python benchmarks/enkg_r.py trust                how the runs' own trust numbers rank their true errors
    python benchmarks/enkg_r.py paired | plots       beside the runs of benchmarks/navier_stokes.py, same fields

Every run is one line of benchmarks/results/enkg_r_TABLE.jsonl as soon as it ends; a repeated command adds the missing, and
several commands may run at once. CPU seconds are those of one thread.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import time
from pathlib import Path

import numpy as np

from enkg_ref import Closures, Gaussian, iterate, member_normals, metrics, regressed
from enkg_ref.reference import Reference, file_sha256, from_images
from enkg_ref.regression import Surrogate

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
    retries = replaced = 0
    levels = iterate(method, timed("forward", forward), state)
    for state, info in levels:  # noqa: B007 - the last state is the answer
        retries, replaced = retries + info.retries, replaced + len(info.replaced)
    seconds = time.process_time() - start
    return state.x, {"cpu_seconds": seconds, "forward_seconds": spent["forward"], "retries": retries,
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

    for d, m in ((128, 32), (1024, 128)):
        for noise in (0.05, 0.5, 2.0):
            for seed in range(options.seeds or 8):
                problem = problem_of("B", noise=noise, seed=seed, d=d, m=m)
                reference = Reference.gaussian(problem.mu, problem.Sigma)
                config = regressed.Config(particles=32, levels=8, sigma_start=1.0, sigma_end=0.1, memory=1.0,
                                          locality=0.0, metric=0.0, model_noise=1.0, seed=seed)
                method = regressed.EnKGR(problem.denoise, Gaussian(problem.observation.y, noise), reference, config)

                def work(method=method, problem=problem, seed=seed):
                    x, facts = run(method, problem.forward, problem.event_shape, seed, "float64")
                    m_p, _ = problem.posterior
                    error = np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p - problem.mu)
                    return {"error_to_posterior_mean": float(error), **calibration(x, problem.truth), **facts}

                yield {"d": d, "noise": noise, "seed": seed}, work


def navier_stokes(options):
    """Seeds outermost: a run that is stopped leaves whole tables of fewer seeds."""
    from problems import vorticity
    from problems.navier_stokes import NavierStokes, observe
    from problems.navier_stokes import navier_stokes as problem_of

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
            likelihood = Gaussian(y, noise or regressed.assumed_noise(y))
            config = regressed.settings_by_rule(reference, likelihood, key["budget"], sigma_range, seed)
            if options.particles:
                config = dataclasses.replace(config, particles=options.particles,
                                             levels=key["budget"] // options.particles)
            method = regressed.EnKGR(denoise, likelihood, reference, config)
            if key["data"] == "exact":
                slope = _exact_slope(problem, reference, noise or regressed.assumed_noise(y), config.particles)
                method = dataclasses.replace(method, config=dataclasses.replace(config, locality=0.0, metric=0.0),
                                             regress=slope)
            x, facts = run(method, forward, problem.event_shape, seed, "float32")
            return {**calibration(problem.scale * x.astype("float64"), problem.truth), **facts,
                    "farthest": _farthest(x, reference)}

        yield key, work


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
                       lambda x: problem.forward(x.astype("float32")), y, noise or regressed.assumed_noise(y),
                       assimilations, np.random.default_rng([0, field]))
            return {**calibration(problem.scale * x + problem.shift, problem.truth), "failed": members - len(x),
                    "cpu_seconds": time.process_time() - start, "forward_calls": assimilations * members}

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
    denoise, reference, sigma_range = _shipped(prior)
    jobs = [(day, seed) for day in ("101", "096") for seed in range(options.seeds or 3)]
    if options.table != "m87":
        jobs = [(item, seed) for seed in range(options.seeds or 1) for item in range(options.items or 10)]
    for item, seed in jobs:
        key = {"prior": prior, "budget": options.budget or 3840, "item": item, "seed": seed}

        def work(key=key, item=item, seed=seed):
            if options.table == "m87":
                problem = source.m87(item)
            else:
                coverage = "standard" if options.table == "simulated" else "m87-101"
                problem = source.black_hole(index=item, seed=item, coverage=coverage)
            data = problem.observation
            likelihood = Closures(data.y, data.noise, data.angular)
            config = regressed.settings_by_rule(reference, likelihood, key["budget"], sigma_range, seed)
            x, facts = run(regressed.EnKGR(denoise, likelihood, reference, config), problem.forward,
                           problem.event_shape, seed, "float32")
            return {**problem.score(problem.scale * x + problem.shift), **facts}

        yield key, work


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


TABLES = {"linear-gaussian": linear_gaussian, "navier-stokes": navier_stokes, "es-mda": es_mda_table, "sparse": black_hole,
          "simulated": black_hole, "m87": black_hole}


def show(table, rows):
    """Means by group, as Markdown."""
    if table in ("sparse", "simulated", "m87"):
        print("| item | seed | " + ("diameter uas | PA deg" if table == "m87" else "aligned PSNR dB")
              + " | chi2 cp | chi2 lca | kappa | CPU s |\n|---|---|---|---|---|---|---|" + ("---|" * (table == "m87")))
        for r in rows:
            what = (f"{r['ring_diameter_uas']:.1f} | {r['ring_position_angle_deg']:.0f}" if table == "m87"
                    else f"{r['psnr_aligned']:.1f}")
            print(f"| {r['item']} | {r['seed']} | {what} | {r['chi2_cp']:.2f} | {r['chi2_lca']:.2f} "
                  f"| {r['kappa']:.2f} | {r['cpu_seconds']:.1f} |")
        if table != "m87":
            fitted = sum(max(r["chi2_cp"], r["chi2_lca"]) <= 3 for r in rows)
            print(f"\nmedian {np.median([r['psnr_aligned'] for r in rows]):.1f} dB, fitted {fitted} of {len(rows)}")
        return
    names = ("d", "noise") if table == "linear-gaussian" else ("prior", "data", "budget", "noise")
    first = "error_to_posterior_mean" if table == "linear-gaussian" else "m2"
    print(f"| {' | '.join(names)} | runs | {first} (sd, worst) | SSR | 90 % coverage (nominal) | kappa | CPU s "
          "(forward, denoiser) |\n" + "|---" * (len(names) + 6) + "|")
    rows = [r for r in rows if not r.get("particles")]  # those are the hard runs
    for group in sorted({tuple(r[n] for n in names) for r in rows}):
        of = [r for r in rows if tuple(r[n] for n in names) == group]
        mean = {n: float(np.mean([r[n] for r in of])) for n in of[0] if isinstance(of[0][n], float | int)}
        error = [r[first] for r in of]
        print(f"| {' | '.join(map(str, group))} | {len(of)} | {mean[first]:.3f} ({np.std(error):.3f}, {max(error):.3f}) "
              f"| {np.sqrt(mean['spread'] / mean['skill']):.2f} | {mean['coverage90']:.3f} ({mean['nominal']:.3f}) "
              f"| {mean['kappa']:.2f} | {mean['cpu_seconds']:.1f} ({mean['forward_seconds']:.1f}, "
              f"{mean['denoiser_seconds']:.1f}) |")


def trust():
    """Spearman correlation of a run's own trust numbers with its true error, over every kept Navier-Stokes run."""
    from scipy.stats import spearmanr

    rows = _kept("navier-stokes")
    print(f"{len(rows)} runs; Spearman correlation with M2: all runs, then by noise")
    own = {"kappa": lambda r: r["kappa"], "noise ratio": lambda r: r["noise_ratio"],
           "chi2 of the particles": lambda r: r["chi2_of_particles"],
           "spread": lambda r: r["spread"]}
    for name, value in own.items():
        line = f"| {name} | {spearmanr([value(r) for r in rows], [r['m2'] for r in rows]).statistic:.2f} |"
        for noise in (0.0, 0.55, 1.1):
            of = [r for r in rows if r["noise"] == noise]
            line += f" {spearmanr([value(r) for r in of], [r['m2'] for r in of]).statistic:.2f} (n = {len(of)}) |"
        print(line)
    far = [r["farthest"] for r in rows]
    print(f"farthest particle {max(far):.1f} prior standard deviations from the prior mean; runs with a retried level: "
          f"{sum(r['retries'] > 0 for r in rows)}; non-finite errors: {sum(not np.isfinite(r['m2']) for r in rows)}")


def paired():
    """EnKG-R at 1,504 calls beside the runs of benchmarks/navier_stokes.py on the same fields, prior navier-stokes-32."""
    from scipy.stats import t

    ours, others = _by_method()
    print("| noise | method | forward calls | CPU s | fields | M2 | M2 of EnKG-R, same fields | difference, 95 % interval |"
          "\n|---|---|---|---|---|---|---|---|")
    for noise, method in sorted(others):
        rows = [r for r in others[noise, method] if (noise, 1504, r["field"]) in ours]
        if not rows:
            continue
        difference = np.array([r["relative_l2_mean"] - ours[noise, 1504, r["field"]]["m2"] for r in rows])
        n = len(rows)
        half = t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5 if n > 1 else float("nan")
        print(f"| {noise} | {method} | {rows[0]['fwd_total']} | {np.mean([r['cpu_seconds'] for r in rows]):.0f} | {n} "
              f"| {np.mean([r['relative_l2_mean'] for r in rows]):.3f} "
              f"| {np.mean([ours[noise, 1504, r['field']]['m2'] for r in rows]):.3f} "
              f"| {difference.mean():+.3f} +- {half:.3f} |")


def plots():
    """Error against forward calls, and against CPU seconds: one point per run, a line through the means of EnKG-R."""
    from matplotlib.figure import Figure

    ours, others = _by_method()
    for name, our_cost, their_cost in (("forward calls", "forward_calls", "fwd_total"),
                                       ("CPU seconds", "cpu_seconds", "cpu_seconds")):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axis, noise in zip(figure.subplots(1, 2, sharey=True), (0.0, 0.55)):
            runs = [(budget, r) for (at, budget, _), r in ours.items() if at == noise]
            means = [[np.mean([r[key] for b, r in runs if b == budget]) for key in (our_cost, "m2")]
                     for budget in sorted({b for b, _ in runs})]
            axis.plot(*zip(*[(r[our_cost], r["m2"]) for _, r in runs]), ".", color="C0", alpha=0.4)
            axis.plot(*zip(*means), "o-", color="C0", label="EnKG-R (ours), settings by rule")
            for number, (at, method) in enumerate(sorted(key for key in others if key[0] == noise), 1):
                points = [(r[their_cost], r["relative_l2_mean"]) for r in others[at, method]]
                axis.plot(*zip(*points), "x^vsD*"[number % 6], color=f"C{number}", linestyle="", label=method)
            axis.set(xscale="log", yscale="log", xlabel=name, title=f"navier-stokes-32, noise {noise:g}")
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
        figure.axes[0].set_ylabel("relative L2 error of the mean")
        path = RESULTS / f"enkg_r_{name.replace(' ', '_').lower()}.png"
        figure.savefig(path, dpi=110)
        print(path)


def _by_method():
    """{(noise, budget, field): row} of EnKG-R, seed 0, and {(noise, method): rows} of benchmarks/navier_stokes.py."""
    ours = {(r["noise"], r["budget"], r["item"]): r for r in _kept("navier-stokes")
            if r["prior"] == "navier-stokes-32" and r["data"] == "same" and r["seed"] == 0 and not r["particles"]}
    others = {}
    path = RESULTS / "navier_stokes_runs.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        r = json.loads(line)
        shipped = r["prior"] in ("navier-stokes-32", "navier-stokes-32-gaussian")
        standard = (r["size"], r["particles"], r["steps"], r["updates"], r["seed"]) == (32, 256, 40, 2, 0)
        if shipped and standard and r["step_rule"] == "frobenius" and r["guidance"] == 2.0:
            method = r["method"] + (" (Gaussian prior)" if r["prior"].endswith("gaussian") else "")
            others.setdefault((r["noise"], method), []).append(r)
    return ours, others


def _kept(table):
    path = RESULTS / f"enkg_r_{table}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


FROM_KEPT_RUNS = {"trust": trust, "paired": paired, "plots": plots}

if __name__ == "__main__":
    main()
