"""The paper's Navier-Stokes experiments at sizes that two CPU cores can run.

    python benchmarks/navier_stokes.py table      size 32: EnKG at three noise levels, EKI at the same forward calls
    python benchmarks/navier_stokes.py ablation   error against J, N and guidance
    python benchmarks/navier_stokes.py distance   inter-particle distance against updates, both step rules
    python benchmarks/navier_stokes.py prior      error against the quality of the prior (trains the shorter ones)
    python benchmarks/navier_stokes.py cost       time of update, forward model and denoiser against d and J
    python benchmarks/navier_stokes.py size64     size 64, Re = 200
    python benchmarks/navier_stokes.py wall       wall time of one field of the table, the network on all cores

Every ensemble is kept as one line of benchmarks/results/navier_stokes_runs.jsonl as soon as it ends; a repeated command
adds the missing, and ``--show`` only writes what is there: tables (.md) and figures (.png) in benchmarks/results/.
The fields are held-out stand-ins (`problems.vorticity`), observed with the forward model's own solver. Particles are
float32. CPU seconds are those of one process with one thread; the machine had two cores and other work.
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
RUNS = RESULTS / "navier_stokes_runs.jsonl"
PRIORS = RESULTS / "navier_stokes_priors.json"  # what the tables say of priors whose files are not kept
WORK = Path("out-navier-stokes")  # shorter trainings; not kept in the repository
NETWORK, GAUSSIAN = "navier-stokes-32", "navier-stokes-32-gaussian"


@dataclass(frozen=True)
class Run:
    """One ensemble. ``seed`` is that of the particles; ``field`` numbers the held-out truth and seeds its noise.

    method : enkg | particle-stop | tempered | eki (started from samples of the prior, gamma = 2, as many forward calls
             as EnKG with these particles, steps and updates)
    prior : name of a shipped prior, or of a file NAME.onnx in ``WORK``
    """

    size: int = 32
    noise: float = 0.0
    field: int = 0
    seed: int = 0
    method: str = "enkg"
    prior: str = NETWORK
    particles: int = 256
    steps: int = 40
    updates: int = 2
    guidance: float = 2.0
    step_rule: str = "frobenius"


# ------------------------------------------------------------------------------------------------------- one ensemble


def prior_file(prior):
    from onnx_priors.manifest import read_manifest, resolve

    return resolve(prior) if prior in read_manifest() else WORK / f"{prior}.onnx"


def images_seen(prior):
    """Training length of a prior, 0 for the Gaussian: a longer training of the same name has rows of its own.

    From its file, or from what was stored of it; None where there is neither.
    """
    from onnx_priors.session import OnnxDenoiser

    if not prior_file(prior).exists():
        return stored_priors().get(prior, {}).get("images_seen")
    return OnnxDenoiser(prior_file(prior), threads=1).metadata.get("images_seen", 0)


def stored_priors():
    return json.loads(PRIORS.read_text(encoding="utf-8")) if PRIORS.exists() else {}


def store_priors(priors):
    """Training length and denoising ratio of these priors, measured where that is not stored yet."""
    stored = stored_priors()
    for prior in priors:
        length = images_seen(prior)
        if prior_file(prior).exists() and stored.get(prior, {}).get("images_seen") != length:
            stored[prior] = {"images_seen": length, "denoising_ratio": denoising_ratio(prior)}
    PRIORS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def ensemble_of(run, ledger, threads=1):
    """(method, noise, problem) of a run, nothing computed yet but the initial particles."""
    from enkg_ref import Preset, correct, extensions, member_normals
    from enkg_ref.baselines import EKI, eki
    from enkg_ref.ensemble import frobenius, trace
    from onnx_priors.session import OnnxDenoiser
    from problems.navier_stokes import navier_stokes

    fft = "ducc0" if importlib.util.find_spec("ducc0") else "scipy"  # differ by rounding
    problem = navier_stokes(run.size, noise=run.noise, seed=run.field, fft=fft)
    likelihood = problem_likelihood(problem, run)
    noise = member_normals(run.seed, 0, run.particles, problem.event_shape)
    denoise = ledger.denoiser(OnnxDenoiser(prior_file(run.prior), threads=threads))
    preset = Preset(run.particles, run.steps).but(updates=run.updates, guidance=run.guidance,
                                                  step_rule={"frobenius": frobenius, "trace": trace}[run.step_rule])
    if run.method == "eki":
        noise = prior_samples(denoise, noise, run)
        method = EKI(likelihood, eki.Config(preset.counts()["forward"], run.guidance))
    elif run.method == "tempered":
        method = extensions.TemperedEnKG(denoise, likelihood, preset.sigmas, preset.window, preset.config,
                                         seed=run.seed)
    else:
        method = preset.method(denoise, likelihood, extensions.survivors(extensions.guarded(correct)))
        if run.method == "particle-stop":
            method = extensions.StopWhenFitted(method, extensions.particle_discrepancy)
    return method, noise.astype("float32"), problem


def problem_likelihood(problem, run):
    """Gaussian noise; without noise the misfit is in vorticity units."""
    from enkg_ref import Gaussian

    return Gaussian(problem.observation.y, run.noise or 1.0)


def prior_samples(denoise, noise, run, levels=40):
    """Samples of the prior: exact for the Gaussian, Heun's method on the probability flow for a network."""
    from enkg_ref.diffusion import edm_sigmas, euler_step
    from problems import vorticity

    own = vorticity.preset(run.size)
    if run.prior.endswith("-gaussian"):
        mean, spectrum = vorticity.prior_moments(run.size)
        white = np.fft.rfft2(noise)
        return (np.fft.irfft2(white * np.sqrt(spectrum), s=mean.shape) + mean) / own.scale
    sigmas, x = edm_sigmas(levels), noise.astype("float32") * 80.0
    for here, following in zip(sigmas, sigmas[1:]):
        clean = denoise(x, here)
        euler = euler_step(x, clean, here, following)
        if following > 0.0:  # trapezoid rule on dx/dsigma = (x - D)/sigma
            slope = ((x - clean) / here + (euler - denoise(euler, following)) / following) / 2
            euler = x + (following - here) * slope
        x = euler
    return x


def solve(run, threads=1):
    """Figures of merit of a run, its history and its seconds."""
    from enkg_ref import step
    from enkg_ref.diagnostics import Memory, observe
    from enkg_ref.run import metrics
    from enkg_ref.run.ledger import Ledger

    wall, cpu = time.perf_counter(), time.process_time()
    ledger = Ledger()
    method, noise, problem = ensemble_of(run, ledger, threads)
    forward, distance, history = ledger.forward(problem.forward), [], []

    def observed(x0):  # the clean points phi(x) on their way to the forward model
        distance.append(pairwise_distance(x0))
        return forward(x0)

    state, memory = method.init(noise), Memory()
    while not method.done(state):
        state, info = step(method, state, observed)
        if run.method != "eki":
            memory, line = observe(memory, info, problem_likelihood(problem, run))
            history.append(line)
    x = problem.scale * np.asarray(state.x, dtype="float64") + problem.shift
    counts, scores = ledger.as_dict(), problem.score(x)
    spread, skill = metrics.spread_and_skill(x, problem.truth)
    misfit = observed_misfit(problem, state.x, run.noise)
    return {
        **scores, "ssr": float(np.sqrt(spread / skill)), "misfit": misfit,
        "coverage90": metrics.coverage(x, problem.truth)[0] if run.particles >= 19 else None,
        "cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall,
        **{name: counts[name] for name in ("fwd_total", "fwd_seq", "den_total", "failed_fwd")},
        "wall_split": {name: round(s, 2) for name, s in counts["wall"].items()},
        "distance": [float(f"{d / pairwise_scale(problem):.4g}") for d in distance],
        "spread": [float(f"{line['spread']:.4g}") for line in history],
    }


def pairwise_distance(x):
    """Root mean square of ||x_j - x_k|| over pairs j != k, (J, n, n)."""
    J = x.shape[0]
    return float(np.sqrt(2 * J / (J - 1) * np.sum(np.var(np.asarray(x, dtype="float64"), axis=0))))


def pairwise_scale(problem):
    """||truth|| in prior units: distances are given as multiples of it."""
    return float(np.sqrt(np.sum(problem.truth**2)) / problem.scale)


def observed_misfit(problem, x, noise):
    """Mean over particles of ||G(x) - y||^2/(m noise^2); without noise, ||G(x) - y||/||y||."""
    y = problem.observation.y
    squares = np.sum((np.asarray(problem.forward(x), dtype="float64") - y) ** 2, axis=1)
    squares = squares[np.isfinite(squares)]
    return float(np.mean(squares) / (y.size * noise**2) if noise else np.mean(np.sqrt(squares / np.sum(y**2))))


# ------------------------------------------------------------------------------------------------- runs kept on disk


def key_of(run, known={}):  # noqa: B006 - reads each file once
    if run.prior not in known:
        known[run.prior] = images_seen(run.prior)
    return {**dataclasses.asdict(run), "images_seen": known[run.prior]}


def found(runs):
    """The stored rows of these runs, in their order; those not made yet are left out."""
    lines = RUNS.read_text(encoding="utf-8").splitlines() if RUNS.exists() else []
    rows = list(map(json.loads, lines))
    keys = [key_of(run) for run in runs]
    return [row for key in keys for row in rows if all(row[name] == value for name, value in key.items())]


def make(runs, workers):
    """Make the runs that are not stored yet, in this order."""
    runs = [run for run in dict.fromkeys(runs) if not found([run])]
    RESULTS.mkdir(exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(solve, run): run for run in runs}
        for job in as_completed(jobs):
            row = {**key_of(jobs[job]), **job.result()}
            with RUNS.open("a", encoding="utf-8") as file:  # one short write per line: other commands may append too
                file.write(json.dumps(row) + "\n")
            print(f"{row['method']} {row['prior']} field {row['field']} seed {row['seed']} noise {row['noise']} "
                  f"J {row['particles']} N {row['steps']} gamma {row['guidance']} {row['step_rule']}: "
                  f"M2 {row['relative_l2_of_mean']:.3f}, {row['cpu_seconds']:.0f} CPU s", flush=True)


def interval(values, sign=""):
    """mean [95 % Student interval of the mean of independent items]; the mean alone for fewer than three."""
    from enkg_ref.compare.statistics import student_t

    mean, low, high = student_t(values)
    return f"{mean:{sign}.3f}" + ("" if np.isnan(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def summary(values):
    """mean [interval] (min .. max)."""
    return f"{interval(values)} ({min(values):.3f} .. {max(values):.3f})"


def write(name, lines):
    path = RESULTS / f"navier_stokes_{name}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def figure(rows, columns, width=4.2, height=3.4):
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return sheet, np.atleast_1d(sheet.subplots(rows, columns))


def save(sheet, name):
    sheet.savefig(RESULTS / f"navier_stokes_{name}.png", dpi=110)


# -------------------------------------------------------------------------------------------------------------- table

NOISES = (0.0, 0.55, 1.1)
ROWS = (  # the order in which they are made: an interruption leaves the first
    (0.0, "eki", GAUSSIAN), (0.0, "enkg", NETWORK), (0.0, "enkg", GAUSSIAN),
    (0.55, "eki", GAUSSIAN), (0.55, "tempered", NETWORK), (0.55, "enkg", NETWORK), (0.55, "particle-stop", NETWORK),
    (1.1, "eki", GAUSSIAN), (1.1, "tempered", NETWORK), (1.1, "enkg", NETWORK), (1.1, "particle-stop", NETWORK),
)


def table_runs(options):
    fields = range(options.fields)
    return [Run(noise=noise, field=field, method=method, prior=prior)
            for noise, method, prior in ROWS for field in fields]


def show_table(options):
    runs = list(table_runs(options))
    rows = found(runs)
    lines = ["Size 32, Re 50, J = 256, N = 40, U = 2, gamma 2, frobenius, particle seed 0; EKI from samples of the "
             "prior, the same number of forward calls.",
             "Mean over fields [95 % Student interval] (min .. max). M2: relative L2 of the ensemble mean, M1: of "
             "the particles.",
             "Noise 0.55 and 1.1 are 20 and 39 % of the signal. Misfit: chi2/m of the particles; at noise 0 "
             "||G(x) - y||/||y||.", "",
             "| noise | method | prior | fields | M2 | M1 | SSR | misfit | forward calls | network calls | CPU s |",
             "|---" * 11 + "|"]
    for noise, method, prior in ROWS:
        of = [r for r in rows if (r["noise"], r["method"], r["prior"]) == (noise, method, prior)]
        if of:
            mean = {n: np.mean([r[n] for r in of]) for n in ("relative_l2_of_particles", "ssr", "misfit", "fwd_total",
                                                             "den_total", "cpu_seconds")}
            lines.append(f"| {noise:g} | {method} | {prior} | {len(of)} "
                         f"| {summary([r['relative_l2_of_mean'] for r in of])} | {mean['relative_l2_of_particles']:.3f} "
                         f"| {mean['ssr']:.2f} | {mean['misfit']:.2g} | {mean['fwd_total']:.0f} "
                         f"| {mean['den_total']:.0f} | {mean['cpu_seconds']:.0f} |")
    if rows:
        first = {r["field"]: r for r in rows}.values()
        for name, label in (("relative_l2_prior_mean", "prior mean"), ("relative_l2_prior_sample", "prior sample")):
            lines.append(f"| all | {label} | Gaussian of the fields | {len(first)} | {summary([r[name] for r in first])}"
                         " | | | | 0 | 0 | |")
        lines.append("| all | zero field | | | 1 | 1 | | | 0 | 0 | |")
    lines += ["", *paired(rows)]
    write("table", lines)
    sheet, axes = figure(1, len(NOISES))
    for axis, noise in zip(axes, NOISES):
        for k, (method, prior) in enumerate(dict.fromkeys(row[1:] for row in ROWS)):
            of = [r for r in rows if (r["noise"], r["method"], r["prior"]) == (noise, method, prior)]
            label = f"{method}, {'network' if prior == NETWORK else 'Gaussian'}"
            axis.plot([r["field"] for r in of], [r["relative_l2_of_mean"] for r in of], "o-", color=f"C{k}",
                      label=label)
        axis.set(title=f"noise {noise:g}", xlabel="held-out field", xlim=(-0.5, 4.5), ylim=(0, 1.1))
    axes[0].set_ylabel("relative L2 of the mean")
    axes[-1].legend(fontsize=7)
    save(sheet, "table")


def paired(rows):
    """EnKG against EKI, field by field."""
    for noise in NOISES:
        score = {(r["method"], r["prior"], r["field"]): r["relative_l2_of_mean"] for r in rows if r["noise"] == noise}
        for rival in (GAUSSIAN, NETWORK):
            fields = [f for f in sorted({key[2] for key in score})
                      if ("enkg", NETWORK, f) in score and ("eki", rival, f) in score]
            if fields:
                a, b = ([score[key, prior, f] for f in fields] for key, prior in (("enkg", NETWORK), ("eki", rival)))
                yield (f"Noise {noise:g}: EnKG ({NETWORK}) minus EKI from {rival}, paired over {len(fields)} fields: "
                       f"{interval(np.subtract(a, b), '+')}; better on {sum(np.less(a, b))} of {len(fields)}.  ")


# ----------------------------------------------------------------------------------------------------------- ablation

GRID = (  # what is varied, its values, and the rest
    ("particles", (64, 128, 256, 512, 1024), {"steps": 20}),
    ("steps", (10, 20, 40, 80), {"particles": 64}),
    ("guidance", (0.5, 1.0, 2.0, 3.0), {"particles": 64, "steps": 20}),
)


def repeated(options, **settings):
    """The same run on as many held-out fields, each with its own observation noise and particle seed."""
    return [Run(field=k, seed=k, **settings) for k in range(options.repeats)]


def ablation_runs(options):
    """Cheap ones first."""
    runs = [run for name, values, rest in GRID for value in values
            for run in repeated(options, **{**rest, name: value})]
    return sorted(runs, key=lambda run: (run.particles * run.steps**2, run.seed))


def show_ablation(options):
    lines = [f"Size 32, Re 50, noise 0, U = 2, frobenius, gamma 2 unless varied, prior {NETWORK}; held-out fields "
             f"0..{options.repeats - 1}, field k with particle seed k. M2 (relative L2 of the ensemble mean): mean "
             "[95 % Student interval] (min .. max).", "",
             "| varied | J | N | gamma | runs | M2 | SSR | forward calls | network calls | CPU s |", "|---" * 10 + "|"]
    sheet, axes = figure(1, 3)
    label = {"particles": "J", "steps": "N", "guidance": "gamma"}
    for axis, (name, values, rest) in zip(axes, GRID):
        curve = []
        for value in values:
            runs = repeated(options, **{**rest, name: value})
            rows = found(runs)
            if rows:
                m2 = [r["relative_l2_of_mean"] for r in rows]
                curve.append((value, np.mean(m2), min(m2), max(m2)))
                lines.append(f"| {label[name]} | {runs[0].particles} | {runs[0].steps} | {runs[0].guidance:g} "
                             f"| {len(rows)} | {summary(m2)} | {np.mean([r['ssr'] for r in rows]):.2f} "
                             f"| {rows[0]['fwd_total']} | {rows[0]['den_total']} "
                             f"| {np.mean([r['cpu_seconds'] for r in rows]):.0f} |")
        if curve:
            value, mean, low, high = np.array(curve).T
            axis.errorbar(value, mean, (mean - low, high - mean), marker="o", capsize=3)
            axis.set(xlabel=label[name], ylabel="relative L2 of the mean", ylim=(0, 1.2),
                     title=", ".join(f"{label[key]} = {own}" for key, own in rest.items()))
            axis.set_xscale("linear" if name == "guidance" else "log", **({} if name == "guidance" else {"base": 2}))
    save(sheet, "ablation")
    write("ablation", lines)


# ----------------------------------------------------------------------------------------------------------- distance

RULES = (("frobenius", 2.0), ("trace", 1.0))


def distance_runs(options):
    return [run for prior in (GAUSSIAN, NETWORK) for rule, gamma in RULES
            for run in repeated(options, prior=prior, particles=64, step_rule=rule, guidance=gamma)]


def show_distance(options):
    lines = ["Size 32, Re 50, noise 0, J = 64, N = 40, U = 2; field k with particle seed k. Root mean square distance "
             "between the clean particles phi(x), in units of ||truth||, before the first, the 36th and the last of 70 "
             "updates; mean (min .. max) over runs. The last column is the number of updates after which it grew, "
             "summed over runs.", "",
             "| prior | step rule | gamma | runs | first | 36th | last | M2 | grew |", "|---" * 9 + "|"]
    sheet, axes = figure(1, 2)
    for axis, prior in zip(axes, (GAUSSIAN, NETWORK)):
        for k, (rule, gamma) in enumerate(RULES):
            rows = found([run for run in distance_runs(options)
                          if (run.prior, run.step_rule, run.guidance) == (prior, rule, gamma)])
            if not rows:
                continue
            curves = np.array([row["distance"] for row in rows])
            for curve in curves:
                axis.semilogy(curve, color=f"C{k}", alpha=0.3)
            axis.semilogy(curves.mean(axis=0), color=f"C{k}", label=f"{rule}, gamma {gamma:g}")
            cells = [f"{c.mean():.3g} ({c.min():.3g} .. {c.max():.3g})" for c in curves.T[[0, 35, -1]]]
            lines.append(f"| {prior} | {rule} | {gamma:g} | {len(rows)} | {' | '.join(cells)} "
                         f"| {np.mean([r['relative_l2_of_mean'] for r in rows]):.3f} "
                         f"| {int((np.diff(curves) > 0).sum())} of {curves[:, 1:].size} |")
        axis.set(title=f"{'network' if prior == NETWORK else 'Gaussian'} prior, J = 64", xlabel="update",
                 ylabel="distance of clean particles / ||truth||")
        if axis.lines:
            axis.legend(fontsize=7)
    save(sheet, "distance")
    write("distance", lines)


# -------------------------------------------------------------------------------------------------- quality of the prior

TRAININGS = (8_000, 40_000)  # fields seen; the shipped prior saw more


def levels():
    return [GAUSSIAN, *(f"{NETWORK}-{images}" for images in TRAININGS), NETWORK]


def train_levels():
    """Train the shorter ones, a few CPU minutes each, where they are not in ``WORK`` yet."""
    for images in TRAININGS:
        path = WORK / f"{NETWORK}-{images}.onnx"
        if not path.exists():
            work = WORK / str(images)
            work.mkdir(parents=True, exist_ok=True)
            for split in ("train", "validation"):  # the fields are the same for all
                name = f"vorticity-32-{split}.npy"
                if (WORK / name).exists() and not (work / name).exists():
                    (work / name).hardlink_to(WORK / name)
            subprocess.run([sys.executable, "-m", "onnx_priors.training.navier_stokes", "--size", "32", "--out",
                            str(path), "--work", str(work), "--images", str(images)], check=True)


def prior_runs(options):
    if not options.show:
        train_levels()
        store_priors(levels())
    return [run for prior in levels() for run in repeated(options, prior=prior, particles=64)]


def denoising_ratio(prior, relative=(0.2, 0.3, 0.5, 0.7), count=256):
    """Mean square denoising error over that of the Wiener denoiser on held-out fields, averaged over noise levels."""
    from onnx_priors.session import OnnxDenoiser
    from problems import vorticity

    clean = vorticity.fields(32, count, "validation") / np.float32(vorticity.preset(32).scale)
    rng, ratios = np.random.default_rng(0), []
    denoise, wiener = (OnnxDenoiser(prior_file(name), threads=1) for name in (prior, GAUSSIAN))
    for sigma in np.multiply(relative, clean.std()):
        noisy = clean + np.float32(sigma) * rng.standard_normal(clean.shape, dtype="float32")
        own, other = (float(np.mean((d(noisy, sigma) - clean) ** 2)) for d in (denoise, wiener))
        ratios.append(own / other)
    return float(np.mean(ratios))


def show_prior(options):
    lines = ["Size 32, Re 50, noise 0, J = 64, N = 40, U = 2, gamma 2, frobenius; held-out fields "
             f"0..{options.repeats - 1}, field k with particle seed k: mean [95 % Student interval] (min .. max). "
             "Ratio: denoising error over that of the Wiener denoiser on 256 held-out fields, mean of sigma = 0.2, 0.3, 0.5, 0.7 standard "
             "deviations.", "",
             "| prior | fields seen in training | denoising ratio | runs | M2 | M1 | SSR |", "|---" * 7 + "|"]
    curve, facts = [], stored_priors()
    for prior in levels():
        rows = found(repeated(options, prior=prior, particles=64))
        if rows:
            m2 = [r["relative_l2_of_mean"] for r in rows]
            curve.append((facts[prior]["denoising_ratio"], np.mean(m2), min(m2), max(m2)))
            lines.append(f"| {prior} | {facts[prior]['images_seen']} | {curve[-1][0]:.3f} | {len(rows)} "
                         f"| {summary(m2)} | {np.mean([r['relative_l2_of_particles'] for r in rows]):.3f} "
                         f"| {np.mean([r['ssr'] for r in rows]):.2f} |")
    sheet, (axis,) = figure(1, 1)
    if curve:
        ratio, mean, low, high = np.array(curve).T
        axis.errorbar(ratio, mean, (mean - low, high - mean), marker="o", capsize=3)
    axis.set(xlabel="denoising error / Wiener", ylabel="relative L2 of the mean", ylim=(0, 1.1))
    axis.invert_xaxis()
    save(sheet, "prior")
    write("prior", lines)


# --------------------------------------------------------------------------------------------------------------- cost


def seconds(call, least=0.2):
    """CPU seconds of one call: the smallest of three rounds, each of at least ``least`` seconds."""
    best, repeats = np.inf, 1
    call()
    for _ in range(3):
        while True:
            start = time.process_time()
            for _ in range(repeats):
                call()
            spent = time.process_time() - start
            if spent >= least:
                break
            repeats = max(repeats + 1, int(1.2 * repeats * least / max(spent, 1e-6)))
        best = min(best, spent / repeats)
    return best


def cost_update(d, J, m):
    from enkg_ref import Gaussian
    from enkg_ref.ensemble import correct, frobenius

    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((J, d), dtype="float32"), rng.standard_normal((J, m), dtype="float32")
    likelihood = Gaussian(np.zeros(m), 1.0)
    return seconds(lambda: correct(x, g, likelihood.residual, frobenius(2.0)))


def cost_forward(n, J):
    from problems import vorticity
    from problems.navier_stokes_solver import NavierStokes

    omega = np.resize(vorticity.bench16(128)[:, :: 128 // n, :: 128 // n], (J, n, n)).astype("float32")
    solve_flow = NavierStokes(n, steps=100)
    return seconds(lambda: solve_flow(omega))


def cost_denoiser(name, J):
    from onnx_priors.session import OnnxDenoiser

    denoise = OnnxDenoiser(name, threads=1)
    x = np.random.default_rng(0).standard_normal((J, *denoise.event_shape), dtype="float32")
    return seconds(lambda: denoise(x, 0.5))


COSTS = {  # part: (variable, what is fixed, measure, values, how many of the largest the exponent is fitted to)
    "update, against d": ("d", "J = 256, m = 256", lambda v: cost_update(v, 256, 256), [4**k for k in range(4, 9)], 3),
    "update, against J": ("J", "d = 16384, m = 4096", lambda v: cost_update(16384, v, 4096),
                          [2**k for k in range(4, 11)], 3),
    "forward, against d": ("d", "J = 8, 100 steps", lambda n: cost_forward(n, 8), [16, 32, 64, 128], 4),
    "forward, against J": ("J", "32 x 32, 100 steps", lambda v: cost_forward(32, v), [4**k for k in range(5)], 3),
    "denoiser, against J": ("J", NETWORK, lambda v: cost_denoiser(NETWORK, v), [4**k for k in range(5)], 3),
}


def cost(options):
    path = RESULTS / "navier_stokes_cost.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    for part, (variable, _, measure, values, _) in COSTS.items():
        for value in values if not options.show else ():
            own = measured.setdefault(part, {})
            size = value**2 if part == "forward, against d" else value
            if str(size) not in own:
                own[str(size)] = measure(value)
                path.write_text(json.dumps(measured, indent=1) + "\n")
                print(part, variable, size, f"{own[str(size)]:.4g} s", flush=True)
    lines = ["CPU seconds of one call, one thread, float32, smallest of three rounds. Exponent: least squares in "
             "logarithms over the largest sizes, +- its standard error.", "",
             "| part | fixed | range | seconds | exponent (points) |", "|---" * 5 + "|"]
    sheet, axes = figure(1, 2)
    for part, own in measured.items():
        variable, fixed, _, _, largest = COSTS[part]
        size, time_of = np.array(list(map(float, own))), np.array(list(own.values()))
        used = np.argsort(size)[-largest:]
        (slope, _), covariance = np.polyfit(np.log(size[used]), np.log(time_of[used]), 1, cov="unscaled")
        residual = np.log(time_of[used]) - np.polyval(np.polyfit(np.log(size[used]), np.log(time_of[used]), 1),
                                                      np.log(size[used]))
        error = np.sqrt(covariance[0, 0] * np.sum(residual**2) / (largest - 2))
        lines.append(f"| {part} | {fixed} | {variable} = {size.min():.0f} .. {size.max():.0f} "
                     f"| {time_of.min():.2g} .. {time_of.max():.2g} | {slope:.2f} +- {error:.2f} ({largest}) |")
        axis = axes[int(variable == "J")]
        axis.loglog(size, time_of, "o-", label=f"{part.split(',')[0]} ({fixed}): {slope:.2f}")
        axis.set(xlabel=variable, ylabel="CPU s of one call")
    for axis in axes:
        axis.legend(fontsize=7)
    save(sheet, "cost")
    write("cost", lines)


# ------------------------------------------------------------------------------------------------------------ size 64

SIZE64 = ((64, 20), (128, 20), (256, 20), (512, 20), (1024, 20), (256, 40))  # (J, N)


def size64_runs(options):
    """One field; EKI at the same number of forward calls beside it."""
    for particles, steps in SIZE64:
        yield Run(size=64, prior="navier-stokes-64", particles=particles, steps=steps)
        yield Run(size=64, prior="navier-stokes-64-gaussian", method="eki", particles=particles, steps=steps)


def show_size64(options):
    lines = ["Size 64, Re 200, field 0, noise 0, U = 2, gamma 2, frobenius, particle seed 0: one run each.", "",
             "| method | prior | J | N | M2 | M1 | prior mean | misfit | forward calls | network calls | CPU s | wall s |",
             "|---" * 12 + "|"]
    sheet, (axis,) = figure(1, 1)
    curves = {}
    for row in found(list(size64_runs(options))):
        curves.setdefault((row["method"], row["steps"]), []).append((row["particles"], row["relative_l2_of_mean"]))
        lines.append(f"| {row['method']} | {row['prior']} | {row['particles']} | {row['steps']} "
                     f"| {row['relative_l2_of_mean']:.3f} | {row['relative_l2_of_particles']:.3f} "
                     f"| {row['relative_l2_prior_mean']:.3f} | {row['misfit']:.3f} | {row['fwd_total']} "
                     f"| {row['den_total']} | {row['cpu_seconds']:.0f} | {row['wall_seconds']:.0f} |")
    for (method, steps), points in curves.items():
        axis.semilogx(*zip(*points), "o-", base=2, label=f"{method}, N = {steps}")
    axis.set(xlabel="J", ylabel="relative L2 of the mean")
    axis.legend(fontsize=7)
    save(sheet, "size64")
    write("size64", lines)


# ------------------------------------------------------------------------------------------------------- wall time


def wall(options, limit=90.0):
    """Wall seconds of one field of the table: chunks of the network on all cores, the forward model on one."""
    path = RESULTS / "navier_stokes_wall.json"
    if not options.show:
        row = solve(Run(), threads=os.cpu_count())
        row = {name: row[name] for name in ("wall_seconds", "cpu_seconds", "wall_split", "relative_l2_of_mean")}
        path.write_text(json.dumps({**row, "cores": os.cpu_count(), "load": os.getloadavg()}, indent=1) + "\n")
    row = json.loads(path.read_text())
    print(f"{row['wall_seconds']:.0f} s wall, {row['cpu_seconds']:.0f} CPU s on {row['cores']} cores, load average "
          f"{row['load'][0]:.1f} at the end (target: {limit:.0f} s wall), relative L2 {row['relative_l2_of_mean']:.3f}")


# --------------------------------------------------------------------------------------------------------------- main

EXPERIMENTS = {"table": (table_runs, show_table), "ablation": (ablation_runs, show_ablation),
               "distance": (distance_runs, show_distance), "prior": (prior_runs, show_prior),
               "size64": (size64_runs, show_size64)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=(*EXPERIMENTS, "cost", "wall"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fields", type=int, default=5, help="held-out fields of the table")
    parser.add_argument("--repeats", type=int, default=3, help="field and particle seed 0, 1, ... of the other experiments")
    parser.add_argument("--only", help="only runs with this prior")
    parser.add_argument("--show", action="store_true", help="run nothing; tables and figures of what is stored")
    options = parser.parse_args()
    if options.experiment in ("cost", "wall"):
        return {"cost": cost, "wall": wall}[options.experiment](options)
    runs, show = EXPERIMENTS[options.experiment]
    if not options.show:
        make([run for run in runs(options) if options.only in (None, run.prior)], options.workers)
    return show(options)


if __name__ == "__main__":
    sys.exit(main())
