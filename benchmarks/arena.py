"""The comparisons of the README: every method at equal cost. ``python benchmarks/arena.py PROBLEM`` from the root.

    linear-gaussian      three noise levels, against the exact posterior
    navier-stokes        32 x 32, three noise levels; with --prior moments a Gaussian takes the place of the network
    black-hole           simulated, stand-in images

Settings are tuned first on items that no table uses, every method with the same number of candidates, the published
setting or this project's default among them; then the comparison runs. Both continue where they were stopped.
Tables go to benchmarks/results/arena-*.txt and .json, run records to out-arena/ (not kept in the repository).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from enkg_ref import Closures, Gaussian, arena
from enkg_ref.reference import Reference

HERE = Path(__file__).resolve().parent
TUNING_ITEMS = 100  # number of the first tuning item; tables use 0, 1, ...
CANDIDATES = {  # four per method; {} is the default or, translated to the whitened loss, the published setting
    "enkg": [{}, {"guidance": 1.0}, {"guidance": 0.5}, {"updates": 1}],
    "enkg-r": [{}, {"model_noise": 1.0}, {"model_noise": 0.25}, {"noise_floor": 1.0}],
    "eki": [{}, {"guidance": 1.0}, {"guidance": 0.5}, {"kalman": True}],
    "scg": [{}, {"threshold": 0.0}, {"threshold": 0.5}, {"steps": 50}],
    "dpg": [{}, {"guidance": 16.0}, {"guidance": 4.0}, {"guidance": 1.0}],
    "forward-gsg": [{}, {"guidance": 0.3}, {"guidance": 0.1}, {"guidance": 0.01}],
    "central-gsg": [{}, {"guidance": 0.3}, {"guidance": 0.1}, {"guidance": 0.01}],
    "dps": [{}, {"guidance": 0.1}, {"guidance": 0.03}, {"guidance": 0.01}],
    "diffpir": [{}, {"xi": 0.3}, {"xi": 0.1}, {"rows": 2}],
    "mmps": [{}, {"sigma_max": 10.0}, {"solver": 2}, {"damping": 0.3}],
    "pnpdm": [{}, {"rho_max": 3.0, "rho_min": 0.1}, {"rho_max": 3.0, "rho_min": 0.3}, {"outer": 15, "decay": 0.7}],
    "blade": [{}, {"mode": "correction", "guidance": 1.0, "rho_max": 4.0, "rho_min": 0.1},
              {"guidance": 1.0, "rho_max": 2.0, "rho_min": 0.1}, {"guidance": 40.0, "rho_max": 4.0, "rho_min": 0.1}],
}


def linear_gaussian_item(index, noise):
    from problems.linear_gaussian import linear_gaussian

    problem = linear_gaussian("A", noise=noise, seed=index)
    m_p, S_p = problem.posterior

    def against_the_posterior(x):
        distance = np.linalg.norm(x.mean(axis=0) - m_p) / np.linalg.norm(m_p - problem.mu)
        return {"error_to_posterior_mean": float(distance),
                "trace_ratio": float(np.trace(np.cov(x.T)) / np.trace(S_p)) if len(x) > 1 else 0.0}

    return arena.Item(problem, Gaussian(problem.observation.y, noise), problem.denoise, problem.denoise_vjp,
                      reference=Reference.gaussian(problem.mu, problem.Sigma), extra=against_the_posterior,
                      known={"prior mean": problem.mu, "posterior mean": m_p})


def _prior(name):
    """Denoiser of a shipped prior, its VJP and its Gaussian reference; None for what is not there."""
    from onnx_priors.manifest import WEIGHTS, resolve
    from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP

    denoise = OnnxDenoiser(name)
    try:
        vjp = OnnxDenoiserVJP(name)
    except (FileNotFoundError, ValueError) as error:
        print(f"{name}: no VJP ({error})")
        vjp = None
    path = WEIGHTS / f"{name}.reference.npz"
    reference = Reference.load(path) if path.exists() and resolve(name) else None
    return denoise, vjp, reference


def moments_prior():
    """The Gaussian with the moments of the Navier-Stokes fields (stationary covariance) in place of a network.

    D(x, s) = mean + F^-1 S/(S + s^2) F (x - mean), S the spectrum: its own Jacobian, symmetric.
    """
    from problems.navier_stokes import navier_stokes
    from problems.vorticity import prior_moments

    scale = navier_stokes(32).scale
    mean, spectrum = prior_moments(32)
    mean, spectrum = mean / scale, spectrum / scale**2

    def filtered(x, gain):
        return np.fft.irfft2(gain * np.fft.rfft2(x), s=x.shape[-2:]).astype(x.dtype)

    def denoise(x, sigma):
        return mean.astype(x.dtype) + filtered(x - mean.astype(x.dtype), spectrum / (spectrum + sigma**2))

    def denoise_vjp(x, sigma, v):
        return denoise(x, sigma), filtered(v, spectrum / (spectrum + sigma**2))

    denoise.sigma_min, denoise.sigma_max = 0.002, 80.0
    covariance = filtered(np.eye(1024).reshape(1024, 32, 32), spectrum).reshape(1024, 1024)
    return denoise, denoise_vjp, Reference.gaussian(mean, 0.5 * (covariance + covariance.T))


def navier_stokes_item(index, noise, prior):
    from problems.navier_stokes import navier_stokes
    from problems.vorticity import prior_moments

    problem = navier_stokes(32, noise=noise, seed=index)
    denoise, vjp, reference = prior
    return arena.Item(problem, Gaussian(problem.observation.y, problem.observation.noise), denoise, vjp,
                      reference=reference, dtype="float32",
                      sigma_range=(denoise.sigma_min, denoise.sigma_max), known={"prior mean": prior_moments(32)[0]})


def black_hole_item(index, prior):
    from problems.black_hole import black_hole

    problem = black_hole(index=index, seed=index)
    data, (denoise, vjp, reference) = problem.observation, prior
    return arena.Item(problem, Closures(data.y, data.noise, data.angular), denoise, vjp, reference=reference,
                      dtype="float32", sigma_range=(denoise.sigma_min, denoise.sigma_max))


def runnable(item):
    """The methods whose needs the item meets; says which it leaves out."""
    methods = [name for name, method in arena.METHODS.items() if method.access <= item.access]
    for name in arena.METHODS:
        if name not in methods:
            print(f"{name}: not run, needs {', '.join(sorted(arena.METHODS[name].access - item.access))}")
    return methods


def tuned(build, methods, budget, folder, count=2):
    """Chosen settings by method, and every trial."""
    items = [build(TUNING_ITEMS + k) for k in range(count)]
    settings, trials = {}, {}
    c_vjp = round(arena.vjp_cost(items[0]), 2)
    for name in methods:
        usable = []
        for candidate in CANDIDATES.get(name, [{}]):
            try:
                arena.check([name], items[0], [budget], c_vjp, {name: candidate})
                usable.append(candidate)
            except ValueError as error:
                print(f"{name} {candidate}: {error}")
        settings[name], trials[name] = arena.tune(items, name, usable, budget, folder, c_vjp)
        print(f"tuned {name}: {settings[name]}  {[(t['settings'], round(t['median'], 4)) for t in trials[name]]}",
              flush=True)
    return settings, trials


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("linear-gaussian", "navier-stokes", "black-hole"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 2048, 8192, 32768, 131072])
    parser.add_argument("--noise", type=float, nargs="+", help="noise levels, one table each")
    parser.add_argument("--items", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--prior", choices=("network", "moments"), default="network",
                        help="moments: the Gaussian with the moments of the Navier-Stokes fields, no network")
    parser.add_argument("--tune-at", type=int, default=2048, help="budget of the tuning runs")
    parser.add_argument("--anew", action="store_true", help="forget earlier runs")
    options = parser.parse_args()

    if options.problem == "linear-gaussian":
        levels, build = options.noise or [0.05, 0.3, 1.0], linear_gaussian_item
    elif options.problem == "navier-stokes":
        prior = moments_prior() if options.prior == "moments" else _prior("navier-stokes-32")
        levels, build = options.noise or [0.0, 0.3, 1.0], lambda k, noise: navier_stokes_item(k, noise, prior)
    else:
        prior = _prior("kerr-disc-64")
        levels, build = [None], lambda k, noise: black_hole_item(k, prior)

    for noise in levels:
        name = options.problem if noise is None else f"{options.problem}-noise-{noise:g}"
        name += "-moments" if options.prior == "moments" else ""
        folder = HERE.parent / "out-arena" / name
        if options.anew:
            shutil.rmtree(folder, ignore_errors=True)
        items = [build(k, noise) for k in range(options.items)]
        methods = options.methods or runnable(items[0])
        settings, trials = tuned(lambda k, noise=noise: build(k, noise), methods, options.tune_at, folder / "tuning")

        def show(record, done, total):
            if done % 50 == 0 or done == total:
                print(f"{done}/{total} {record['method']} {record['budget']} {record['status']}", flush=True)

        summary = arena.compare(items, methods, options.budgets, options.seeds, folder / "runs", settings,
                                about=options.problem == "navier-stokes" and {"prior": options.prior}, progress=show)
        extra = ("error_to_posterior_mean", "trace_ratio") if options.problem == "linear-gaussian" else ()
        text = arena.to_text(summary, extra=extra)
        print(text)
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        tuning = [f"{method}: {json.dumps(chosen)} of {len(trials[method])} candidates, "
                  f"{sum(t['forward_equivalents'] for t in trials[method]):.0f} forward equivalents per item"
                  for method, chosen in settings.items()]
        (results / f"arena-{name}.txt").write_text(text + "\n\nTuned on two other items at budget "
                                                   f"{options.tune_at}:\n" + "\n".join(tuning) + "\n")
        slim = [{key: value for key, value in row.items() if key not in ("files",)} for row in summary["table"]]
        (results / f"arena-{name}.json").write_text(json.dumps({**summary, "table": slim, "tuning": trials}) + "\n")
        arena.pareto_figure(summary).savefig(results / f"arena-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
