"""Is the ensemble correction the true one, and can a run tell? Lorenz-96 with its exact derivative.

    python benchmarks/correction_quality.py [--seeds 8] [--independent]

For every cell of horizon x noise level x spread x J: an ensemble (attractor point + spread N(0, I)) at noise level
sigma, psi = G o phi with the 12-step Euler flow of the Gaussian prior fitted to the attractor, data of an independent
truth with unit noise. Compared, for the first eight particles, the correction of the library (direction (T6)) and
-C_xx Dpsi' Gamma^-1 e_j with the exact Dpsi: mean cosine and mean relative error. Three numbers that need no derivative
are ranked against the cosine; the first is `trust` of a run's history, taken from the predictions of the next update.

Writes correction_quality.csv, .md (table, mean +- 95 % half-width over seeds) and .png (heat map, calibration).

``--independent`` calibrates on those cells (a monotone curve trust -> cosine, and the threshold above which every cell
has cosine >= .95) and tests curve and threshold on cells of other horizons, noise levels, spreads, J and seeds, and on
linear-Gaussian runs, where psi is affine, the true cosine of every update is 1 and a level's second update must earn 1.
Writes correction_quality_independent.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr, t

from enkg_ref import Gaussian, Preset, correct, frobenius, iterate
from enkg_ref.diagnostics import Memory, linear_change, observe, trust
from enkg_ref.diffusion import flow_to_zero
from problems.linear_gaussian import linear_gaussian
from problems.lorenz96 import attractor, gaussian_prior, lorenz96

HORIZONS, SIGMAS, SHRINK, SIZES = (0.05, 0.2, 0.5), (10.0, 2.0, 0.5, 0.1), (1.0, 0.25), (20, 80, 320, 1280)
OTHERS = (0.1, 0.3, 0.4, 0.6), (5.0, 1.0, 0.25), (1.0, 0.5), (40, 160)
GOOD = 0.95  # the cosine that the threshold promises
STATISTICS = {
    "trust": "cosine of expected and found change of the predictions",
    "held_out_r2": "leave-one-out R^2 of the linear regression of predictions on particles (<= 128 of them)",
    "observed_spread": "minus tau/m, the spread of the predictions in units of the noise",
}


def held_out_r2(Z, B, ridge=1e-6):
    """1 - sum of squared leave-one-out residuals of the least-norm linear fit B ~ Z, over the sum of squares of B."""
    Z, B = Z[:128] - Z[:128].mean(0), B[:128] - B[:128].mean(0)
    gram = Z @ Z.T
    inverse = np.linalg.inv(gram + ridge * np.trace(gram) / len(Z) * np.eye(len(Z)))
    return 1 - np.sum((inverse @ B / np.diag(inverse)[:, None]) ** 2) / np.sum(B**2)


def one(prior, horizon, sigma, spread, J, seed):
    """Cosine, relative error and the three statistics of one ensemble."""
    denoise, flow_transpose = prior
    rng = np.random.default_rng([seed, J, round(100 * horizon), round(1000 * sigma), round(1000 * spread)])
    problem = lorenz96(horizon, 1.0, seed)
    likelihood = Gaussian(problem.observation.y, 1.0)
    x = attractor()[rng.integers(len(attractor()))] + spread * rng.standard_normal((J, 40))
    x0 = flow_to_zero(x, sigma, denoise, 12)
    g = problem.forward(x0)
    x_new, done = correct(x, g, likelihood.residual, frobenius(2.0))
    Z, B = x - x.mean(0), g - g.mean(0)

    few = slice(0, 8)
    gradient = problem.forward_vjp(x0[few], likelihood.residual(g)[few]) @ flow_transpose(sigma)
    exact, got = gradient @ (Z.T @ Z / J), (x - x_new)[few] / float(done.step)
    norm = np.linalg.norm
    cosine = np.mean(np.sum(exact * got, 1) / norm(exact, axis=1) / norm(got, axis=1))
    error = np.mean(norm(exact - got, axis=1) / norm(exact, axis=1))

    following = problem.forward(flow_to_zero(x_new, sigma, denoise, 12))
    return (cosine, error, trust(linear_change(g, likelihood, float(done.step)), g, following, likelihood),
            held_out_r2(Z, B), -np.mean(B * B))


def gaussian_denoiser():
    """D(x, sigma) of the fitted prior, and the matrix Dphi of its (affine) flow, applied from the right to rows v'."""
    denoise = gaussian_prior().denoise

    def flow_transpose(sigma):
        return (flow_to_zero(np.eye(40), sigma, denoise, 12) - flow_to_zero(np.zeros((1, 40)), sigma, denoise, 12)).T

    return denoise, flow_transpose


def interval(values):
    """Mean and half-width of the 95 % t interval."""
    return values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))


def figure(rows, path, rho):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(13, 3.6), width_ratios=(1, 1, 1.1), layout="constrained")
    for ax, shrink in zip(axes, SHRINK):
        table = np.array([[np.mean([r["cosine"] for r in rows if (r["horizon"], r["sigma"], r["J"]) == (T, s, J)
                                    and r["shrink"] == shrink]) for s in SIGMAS for J in SIZES] for T in HORIZONS])
        image = ax.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(table):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, rotation=90,
                    color="w" if value < 0.6 else "k")
        ax.set_yticks(range(3), [f"T = {T}" for T in HORIZONS])
        ax.set_xticks(np.arange(4) * 4 + 1.5, [f"sigma {s:g}\nspread {min(s, 2) * shrink:g}" for s in SIGMAS],
                      fontsize=8)
        ax.set_title(f"cosine to the true correction, spread x {shrink:g}; J = 20, 80, 320, 1280", fontsize=8)
    fig.colorbar(image, ax=axes[1])
    for T, marker in zip(HORIZONS, "osd"):
        picked = [r for r in rows if r["horizon"] == T]
        axes[2].plot([r["trust"] for r in picked], [r["cosine"] for r in picked], marker, ms=4, label=f"T = {T}")
    axes[2].plot([0, 1], [0, 1], "k:", lw=0.8)
    axes[2].set(xlabel="trust (no derivative, no extra forward call)", ylabel="cosine to the true correction",
                title=f"calibration over {len(rows)} cells, Spearman {rho:.2f}")
    axes[2].legend()
    fig.savefig(path, dpi=90)


def linear_gaussian_trust(gamma, seeds=5, J=256):
    """Trust of all updates of runs of set-up A: of a level's second update, and of its first (a predictor between)."""
    within, across = [], []
    for seed in range(seeds):
        p = linear_gaussian("A", seed=seed)
        run = Preset(J, 80).but(guidance=gamma).method(p.denoise, Gaussian(p.observation.y, p.observation.noise))
        noise, memory = np.random.default_rng([5, seed]).standard_normal((J, *p.event_shape)), Memory()
        for _, info in iterate(run, p.forward, run.init(noise)):
            memory, line = observe(memory, info, run.likelihood)
            if line["trust"] is not None:
                (within if info.update else across).append(line["trust"])
    return within, across


def independent(prior, seeds, out):
    """Curve and threshold of the old cells, tested on new ones. Writes the three files."""
    with open(out / "correction_quality.csv", encoding="utf-8") as file:
        old = [(float(r["trust"]), float(r["cosine"])) for r in csv.DictReader(file)]
    trusts, cosines = np.array(sorted(old)).T
    curve = isotonic_regression(cosines).x
    threshold = float(trusts[np.flatnonzero(cosines < GOOD).max() + 1])

    rows, single = [], []
    for horizon in OTHERS[0]:
        for sigma in OTHERS[1]:
            for shrink in OTHERS[2]:
                for J in OTHERS[3]:
                    spread = min(sigma, 2.0) * shrink
                    runs = np.array([one(prior, horizon, sigma, spread, J, 1000 + seed) for seed in range(seeds)])
                    single += [(run[2], run[0]) for run in runs]
                    row = {"horizon": horizon, "sigma": sigma, "spread": spread, "J": J}
                    for name, values in zip(("cosine", "error", *STATISTICS), runs.T):
                        row[name], row[f"{name}_half_width"] = (float(v) for v in interval(values))
                    rows.append(row | {"foretold": float(np.interp(row["trust"], trusts, curve))})
    with open(out / "correction_quality_independent.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)

    cosine, trust_, foretold = (np.array([r[k] for r in rows]) for k in ("cosine", "trust", "foretold"))
    rho = {name: spearmanr([r[name] for r in rows], cosine).statistic for name in STATISTICS}
    single = np.array(single)
    accepted, good = trust_ >= threshold, cosine >= GOOD
    alone = single[:, 0] >= threshold
    lines = [f"Calibrated on the {len(old)} cells of correction_quality.csv, tested on {len(rows)} cells of Lorenz-96 "
             f"with other horizons {OTHERS[0]}, noise levels {OTHERS[1]}, spreads and J {OTHERS[3]}, {seeds} new seeds "
             "each:", "",
             *(f"- Spearman correlation of {name} with the cosine over the cells: {rho[name]:.3f}"
               for name in STATISTICS),
             f"- the same for trust over the {len(single)} single ensembles: {spearmanr(*single.T).statistic:.3f}",
             f"- threshold {threshold:.3f} (every old cell above it has cosine >= {GOOD}): {accepted.sum()} new cells "
             f"above it, {(accepted & good).sum()} with cosine >= {GOOD}, lowest {cosine[accepted].min():.3f}; of the "
             f"{(~accepted).sum()} below it {(~accepted & good).sum()} have cosine >= {GOOD}",
             f"- single ensembles above it: {alone.sum()}, cosine >= {GOOD} in {np.mean(single[alone, 1] >= GOOD):.1%}, "
             f"lowest {single[alone, 1].min():.3f}",
             f"- monotone curve of the old cells: mean error of the foretold cosine {np.mean(abs(foretold - cosine)):.3f}"
             f", largest {np.max(abs(foretold - cosine)):.3f}", "",
             "| trust | cells | cosine: lowest, mean, highest | mean foretold |", "|---|---|---|---|"]
    for low, high in ((-1, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 0.97), (0.97, 0.99), (0.99, 1.01)):
        found = (low <= trust_) & (trust_ < high)
        if found.any():
            lines.append(f"| {low:g} to {min(high, 1):g} | {found.sum()} | {cosine[found].min():.2f}, "
                         f"{cosine[found].mean():.2f}, {cosine[found].max():.2f} | {foretold[found].mean():.2f} |")
    lines += ["", "Linear-Gaussian runs (set-up A, J = 256, 80 steps, 5 seeds); the true cosine is 1 at every update:", "",
              "| gamma | second update of a level: lowest | first update of a level: lowest, median | share of these "
              "above the threshold |", "|---|---|---|---|"]
    for gamma in (0.05, 0.085, 0.2, 0.5, 2.0):
        within, across = linear_gaussian_trust(gamma)
        lines.append(f"| {gamma:g} | {min(within):.6f} | {min(across):.3f}, {np.median(across):.3f} "
                     f"| {np.mean(np.array(across) >= threshold):.0%} |")
    (out / "correction_quality_independent.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    ax.plot(trusts, cosines, ".", color="0.7", label=f"{len(old)} cells of the calibration")
    ax.step(trusts, curve, "k-", lw=0.8, where="mid", label="monotone curve through them")
    for T, marker in zip(OTHERS[0], "osd^"):
        picked = [r for r in rows if r["horizon"] == T]
        ax.errorbar([r["trust"] for r in picked], [r["cosine"] for r in picked],
                    [r["cosine_half_width"] for r in picked], fmt=marker, ms=4, lw=0.6, label=f"new cells, T = {T}")
    ax.axvline(threshold, color="k", ls=":", lw=0.8)
    ax.set(xlabel="trust", ylabel="cosine to the true correction",
           title=f"{len(rows)} independent cells, Spearman {rho['trust']:.3f}")
    ax.legend(fontsize=7)
    fig.savefig(out / "correction_quality_independent.png", dpi=90)
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--independent", action="store_true", help="test the calibration on cells it has not seen")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.independent:
        return independent(gaussian_denoiser(), options.seeds, options.out)
    prior, rows, names = gaussian_denoiser(), [], ("cosine", "error", *STATISTICS)
    for horizon in HORIZONS:
        for sigma in SIGMAS:
            for shrink in SHRINK:
                for J in SIZES:
                    runs = np.array([one(prior, horizon, sigma, min(sigma, 2.0) * shrink, J, seed)
                                     for seed in range(options.seeds)])
                    row = {"horizon": horizon, "sigma": sigma, "shrink": shrink, "spread": min(sigma, 2.0) * shrink,
                           "J": J}
                    for name, values in zip(names, runs.T):
                        row[name], row[f"{name}_half_width"] = (float(v) for v in interval(values))
                    rows.append(row)
    with open(options.out / "correction_quality.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    rho = {name: spearmanr([r[name] for r in rows], [r["cosine"] for r in rows]).statistic for name in STATISTICS}
    lines = [f"Lorenz-96, {len(rows)} cells x {options.seeds} seeds: cosine of the ensemble correction with the true "
             "one, mean and 95 % half-width", "",
             "| T | sigma | spread | " + " | ".join(f"J = {J}" for J in SIZES) + " | relative error | trust |",
             "|---" * (len(SIZES) + 5) + "|"]
    for k in range(0, len(rows), len(SIZES)):
        group = rows[k:k + len(SIZES)]
        cells = " | ".join(f"{r['cosine']:.3f} +- {r['cosine_half_width']:.3f}" for r in group)
        low, high = (f"{f(r['error'] for r in group):.2f}" for f in (min, max))
        lines.append(f"| {group[0]['horizon']} | {group[0]['sigma']:g} | {group[0]['spread']:g} | {cells} "
                     f"| {low}-{high} | {min(r['trust'] for r in group):.2f}-{max(r['trust'] for r in group):.2f} |")
    lines += ["", "Spearman correlation with that cosine over the cells:", ""]
    lines += [f"- {name}: {rho[name]:.3f} ({words})" for name, words in STATISTICS.items()]
    lines += ["", "| trust | cells | lowest, mean, highest cosine |", "|---|---|---|"]
    for low, high in ((-1, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 0.97), (0.97, 0.99), (0.99, 1.01)):
        found = [r["cosine"] for r in rows if low <= r["trust"] < high]
        if found:
            lines.append(f"| {low:g} to {min(high, 1):g} | {len(found)} | "
                         f"{min(found):.2f}, {np.mean(found):.2f}, {max(found):.2f} |")
    (options.out / "correction_quality.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure(rows, options.out / "correction_quality.png", rho["trust"])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
