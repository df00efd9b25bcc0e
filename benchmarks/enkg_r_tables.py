"""The kept runs of EnKG-R as Markdown tables and plots. Each function prints one."""

import json

import numpy as np
from enkg_r_images import COVERAGE, failed, simulated
from enkg_r_records import RESULTS, interval, kept, summary

TRUST = {"kappa": "kappa", "noise ratio": "noise_ratio", "chi2 of the particles": "chi2_of_particles"}


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
              f"most 3 on {sum(map(fitted, of))} of {len(of)}, at least 24 dB on "
              f"{sum(r['psnr_aligned'] >= 24 for r in of)}")


def fitted(row):
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
        mean = tuned_means(rows, noise, budget)
        fields = len({r["item"] for r in rows if (r["noise"], r["budget"]) == (noise, budget)})
        cells = [f"{mean[n][0]:.3f} ({(mean[n][1] / mean[n][2]) ** 0.5:.2f})" if n in mean else "-" for n in names]
        best = min(mean, key=lambda name: mean[name][0])
        print(f"| {noise} | {budget:,} | {fields} | " + " | ".join(cells)
              + f" | {mean['rule'][0] / mean[best][0]:.2f} ({best}) |")


def tuned_means(rows, noise, budget):
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
        s = summary(of, first)
        parts = f" ({s['forward_seconds']:.1f}, {s['denoiser_seconds']:.1f})" if "forward_seconds" in s else ""
        limit = f"| {s['error_of_exact_draws']:.3f} " if floor else ""
        print(f"| {' | '.join(map(str, group))} | {s['fields']} ({len(of)}) | {s['words']} ({s['worst']:.3f}) "
              f"{limit}| {s['ssr']:.2f} | {s['coverage90']:.3f} ({s['nominal']:.3f}) | {s.get('kappa', float('nan')):.2f} "
              f"| {s['cpu_seconds']:.1f}{parts} |")


def hard():
    """Runs with --particles J: whether anything breaks. Errors are those of unfinished runs."""
    rows = [r for r in kept("navier-stokes") if r["particles"]]
    print("| J | calls | data | runs | M2, noise 0 | noise .55 | worst | farthest particle, prior sd | retried, lost levels |\n|"
          + "---|" * 9)
    for J, budget, data in sorted({(r["particles"], r["budget"], r["data"]) for r in rows}):
        of = [r for r in rows if (r["particles"], r["budget"], r["data"]) == (J, budget, data)]
        mean = [np.mean([r["m2"] for r in of if r["noise"] == noise]) for noise in (0.0, 0.55)]
        print(f"| {J} | {budget} | {data} | {len(of)} | {mean[0]:.3f} | {mean[1]:.3f} | {max(r['m2'] for r in of):.2f} "
              f"| {max(r['farthest'] for r in of):.2f} | {sum(r['retries'] for r in of)}, "
              f"{sum(r.get('lost', 0) for r in of)} |")


def trust():
    """Spearman correlation of a run's own trust numbers with its true error, by problem and over all.

    Problems differ in scale of error (closures leave 10 %, a flow 25 %) and so do noise levels: a correlation over all
    runs as they are mostly tells these apart. Numbers and errors are therefore ranked among the runs of one problem at
    one noise level, whatever their item, seed, budget or disturbance, and the ranks are pooled.
    """
    from scipy.stats import spearmanr

    problems = with_errors()
    every = [r for of in problems.values() for r in of]
    print("| trust number | " + " | ".join(f"{name} (n = {len(of)})" for name, of in problems.items())
          + f" | all (n = {len(every)}) | all, not ranked |\n|" + "---|" * (len(problems) + 3))
    for label, name in TRUST.items():
        cells = [ranked_correlation(of, name) for of in (*problems.values(), every)]
        cells.append(spearmanr([r[name] for r in every], [r["error"] for r in every]).statistic)
        print(f"| {label} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    rows = kept("navier-stokes")
    finished = [r for r in rows if r["budget"] == 1504 and r["data"] == "same" and not r["particles"]]
    print("navier-stokes, finished runs only (1,504 calls, nothing disturbed), by noise: " + "; ".join(
        f"{label} " + " / ".join(f"{spearmanr([r[name] for r in of], [r['m2'] for r in of]).statistic:.2f}" for of in (
            [r for r in finished if r["noise"] == noise] for noise in (0.0, 0.55, 1.1))) for label, name in TRUST.items()))
    print(f"{len(rows)} Navier-Stokes runs: farthest particle {max(r['farthest'] for r in rows):.1f} prior standard "
          f"deviations from the prior mean; with a retried level: {sum(r['retries'] > 0 for r in rows)}, a lost one: "
          f"{sum(r.get('lost', 0) > 0 for r in rows)}; "
          f"non-finite errors: {sum(not np.isfinite(r['m2']) for r in rows)}")


def ranked_correlation(rows, name):
    """Spearman of the ranks that ``name`` and the error have within their group."""
    from scipy.stats import rankdata, spearmanr

    groups = {}
    for r in rows:
        groups.setdefault(r["group"], []).append((r[name], r["error"]))
    ranks = [np.transpose([rankdata(column) / len(of) for column in zip(*of)]) for of in groups.values()]
    return spearmanr(*np.concatenate(ranks).T).statistic


def with_errors():
    """{problem: rows with "error" and "group"}, error: relative L2 of the mean; linear-Gaussian: to the posterior mean;
    black hole: of the aligned mean, clipped to [0, 1]."""
    problems = {"navier-stokes": [{**r, "error": r["m2"], "group": (r["prior"], r["data"] == "8x8", r["noise"])} for r in kept("navier-stokes")],
                "linear-Gaussian": [{**r, "error": r["error_to_posterior_mean"], "group": (r["by"], r["d"], r["noise"])}
                                    for r in kept("linear-gaussian")]}
    for table, coverage in COVERAGE.items():
        rows = kept(table)
        rms = {item: float(np.sqrt(np.mean(simulated(item, coverage).truth ** 2))) for item in {r["item"] for r in rows}}
        problems.setdefault("black hole", []).extend(
            {**r, "error": 10 ** (-r["psnr_aligned"] / 20) / rms[r["item"]], "group": table} for r in rows)
    return problems


def paired():
    """EnKG-R at 1,504 calls beside the other methods on the same fields."""
    ours, others = by_method()
    print("| noise | method | forward calls | CPU s | fields | M2 | SSR | M2 of EnKG-R, 1,504 calls, same fields "
          "| difference, 95 % interval |\n|" + "---|" * 9)
    for noise in sorted({key[0] for key in others} | {0.0, 0.55, 1.1}):
        for method in sorted(key[1] for key in others if key[0] == noise):
            rows = [r for r in others[noise, method] if r["field"] in ours.get((noise, 1504), {})]
            fields = sorted({r["field"] for r in rows})
            if not rows:
                continue
            error = [np.mean([r["relative_l2_of_mean"] for r in rows if r["field"] == f]) for f in fields]
            own = [np.mean([r["m2"] for r in ours[noise, 1504][f]]) for f in fields]
            spread, skill = (np.mean([r[name] for r in rows]) if name in rows[0] else np.nan for name in ("spread2", "skill"))
            ssr = np.sqrt(spread / skill) if np.isfinite(spread) else np.mean([r["ssr"] for r in rows])
            print(f"| {noise:g} | {method} | {rows[0]['fwd_total']:.0f} | {np.mean([r['cpu_seconds'] for r in rows]):.0f} "
                  f"| {len(fields)} | {np.mean(error):.3f} | {ssr:.2f} | {np.mean(own):.3f} "
                  f"| {interval(np.subtract(error, own), '+')} |")
    print("(*) forward calls, and gradients at their cost in forward calls")
    print("(**) 256 adjoint solves per level beside the forward calls")


def plots():
    """Error against forward calls, and against CPU seconds: one point per run, a line through the means of EnKG-R."""
    from matplotlib.figure import Figure

    ours, others = by_method()
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
                points = [(r[their_cost], r["relative_l2_of_mean"]) for r in others[noise, method]]
                axis.plot(*zip(*points), "x^vsD*P<"[number % 8], color=f"C{number}", linestyle="", label=method)
            axis.set(xscale="log", yscale="log", xlabel=name, title=f"navier-stokes-32, noise {noise:g}")
            axis.legend(fontsize=6)
            axis.grid(alpha=0.3)
        figure.axes[0].set_ylabel("relative L2 error of the mean")
        path = RESULTS / f"enkg_r_{name.replace(' ', '_').lower()}.png"
        figure.savefig(path, dpi=110)
        print(path)


def by_method():
    """{(noise, budget): {field: rows}} of EnKG-R, and {(noise, method): rows} of the methods beside it."""
    ours, others = {}, {}
    for r in kept("navier-stokes"):
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
    beside = [(f"es-mda (Gaussian prior), {r['assimilations']} x {r['members']}", r) for r in kept("es-mda")]
    beside += [(f"dps, adjoint, {r['members']} chain(s) (*)", r) for r in kept("dps")]
    beside += [(f"dps, adjoint, best fit of {r['members']} chains (*)", {**r, "m2": r["m2_of_best_fit"], "spread": 0.0})
               for r in kept("dps") if r["members"] > 1]
    beside += [("EnKG-R, Jacobian by the adjoint (**)", r) for r in kept("navier-stokes") if r["data"] == "exact"]
    for method, r in beside:
        others.setdefault((r["noise"], method), []).append(
            {"field": r["item"], "relative_l2_of_mean": r["m2"], "fwd_total": r["forward_calls"], "spread2": r["spread"], **r})
    return ours, others
