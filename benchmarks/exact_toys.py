"""Posteriors beside exact ones: the eight problems of problems/exact_toys.py at 1,504 forward calls, settings by rule.

    python benchmarks/exact_toys.py run              --truths 40 --methods enkg,enkg-r,enkg-r+tail,eki,es-mda,dps
    python benchmarks/exact_toys.py table            writes benchmarks/results/exact_toys.md; losses in bold

Every run is one line of benchmarks/results/exact_toys.jsonl as soon as it ends; a repeated command adds the missing.
`table` puts all of it into benchmarks/results/exact_toys.json. A truth of F with fewer than 100 effective draws is left
out and the next one taken. Beside every problem: 32 exact draws. dps has a gradient of G, counted at 0.8 of a call; it
gives chains, not an ensemble, and at 1,504 calls few of them: its spread is not meant to be a posterior's.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from enkg_ref import Gaussian, member_normals, methods
from enkg_ref.enkg_r import reference, tail
from enkg_ref.protocol import iterate
from problems import exact_toys

RESULTS = Path(__file__).parent / "results"
BUDGET, EXACT_DRAWS, SHARE = 1504, 400, 0.5
METHODS = ("enkg", "enkg-r", "enkg-r+tail", "eki", "es-mda", "dps")
CERTIFICATE = ("kappa", "mean_acceptance", "r_hat", "effective", "drift", "moved")
KAPPA = 3.0  # above it EnKG-R warns


def reference_of(letter):
    """As a user gets it: from 4,096 samples of the prior, with the error table of the denoiser."""
    prior = exact_toys.prior_of(letter)[0]
    return reference.from_images(prior.sample(np.random.default_rng(7), 4096), prior.denoise)


def built(name, toy, ref, likelihood, item, counted):
    """`protocol.Plan` of a method that spends the budget by its rule; ``counted`` wraps the denoisers."""
    given = methods.Item(toy, likelihood, counted("denoiser", toy.denoise), counted("denoiser", toy.denoise_vjp),
                         reference=ref, std=ref.std)
    name, settings = {"es-mda": ("eki", {"kalman": True, "particles": BUDGET // 4}), "dps": ("dps", {"rows": 8}),
                      "enkg-r+tail": ("enkg-r", {"tail": SHARE})}.get(name, (name, {}))
    return methods.METHODS[name].plan(given, BUDGET, 0.8, item, settings)


def run(name, toy, ref, item):
    """Figures of one run beside the exact posterior, with its calls and its certificate."""
    likelihood = Gaussian(toy.observation.y, toy.observation.noise)
    calls = {"forward": 0, "denoiser": 0}

    def counted(kind, function):
        def call(x, *rest):
            calls[kind] += x.shape[0]
            return function(x, *rest)
        return call

    start = time.process_time()
    plan = built(name, toy, ref, likelihood, item, counted)
    noise = member_normals(item, 0, plan.rows, toy.event_shape)
    certificate = {}
    for state, info in iterate(plan.method, counted("forward", toy.forward), plan.method.init(noise)):  # noqa: B007
        certificate.update({key: getattr(info, key) for key in CERTIFICATE if hasattr(info, key)})
    seconds = time.process_time() - start
    draws = toy.exact.draw(np.random.default_rng([9, item]), EXACT_DRAWS)
    return {**exact_toys.figures(state.x, toy.exact, draws, toy.truth), "particles": len(state.x), **certificate,
            "forward_calls": calls["forward"], "denoiser_calls": calls["denoiser"], "cpu_seconds": seconds}


def exact_draws(toy, item):
    draws = toy.exact.draw(np.random.default_rng([9, item]), EXACT_DRAWS + 32)
    return exact_toys.figures(draws[EXACT_DRAWS:], toy.exact, draws[:EXACT_DRAWS], toy.truth)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(options):
    path = RESULTS / "exact_toys.jsonl"
    done = {(r["problem"], r["item"], r["method"]) for r in lines(path)}
    references = {}
    taken = {letter: [] for letter in options.problems}
    for item in range(2 * options.truths):
        for letter in options.problems:
            if len(taken[letter]) == options.truths:
                continue
            toy = exact_toys.exact_toy(letter, item)
            missing = [m for m in ("exact", *options.methods.split(",")) if (letter, item, m) not in done]
            if missing and letter == "F":
                try:
                    toy.exact  # noqa: B018 - too few effective draws
                except ValueError:
                    continue
            taken[letter].append(item)
            for name in missing:
                if name != "exact" and letter not in references:
                    references[letter] = reference_of(letter)
                found = exact_draws(toy, item) if name == "exact" else run(name, toy, references[letter], item)
                with path.open("a") as file:
                    file.write(json.dumps({"problem": letter, "item": item, "method": name, **found}) + "\n")
        print(f"truth {item} done", flush=True)


def suspected(record):
    """Whether a run says of itself that it is not to be trusted."""
    if "r_hat" in record:
        return bool(tail.doubts(record["mean_acceptance"], record["r_hat"], record["effective"]))
    return record.get("kappa", 0.0) > KAPPA


def summary(records):
    """{(problem, method): figures averaged over truths}."""
    out = {}
    for key in sorted({(r["problem"], r["method"]) for r in records}):
        own = [r for r in records if (r["problem"], r["method"]) == key]
        bad = [r for r in own if r["bad"]]
        out[key] = {"truths": len(own), **{name: float(np.mean([r[name] for r in own])) for name in
                                           ("energy", "err_over_sd", "sd_ratio", "inside", "bad")},
                    "energy_standard_error": float(np.std([r["energy"] for r in own], ddof=1) / len(own) ** 0.5),
                    "bad_flagged": sum(map(suspected, bad)), "bad_runs": len(bad),
                    "good_flagged": sum(suspected(r) for r in own if not r["bad"]),
                    "forward_calls": float(np.mean([r.get("forward_calls", 0) for r in own])),
                    "denoiser_calls": float(np.mean([r.get("denoiser_calls", 0) for r in own])),
                    "cpu_seconds": float(np.mean([r.get("cpu_seconds", 0) for r in own]))}
    return out


def table(options):
    records = lines(RESULTS / "exact_toys.jsonl")
    found = summary(records)
    (RESULTS / "exact_toys.json").write_text(json.dumps(
        {"budget": BUDGET, "share_of_the_tail": SHARE,
         "rows": [{"problem": p, "method": m, **values} for (p, m), values in found.items()]}, indent=1) + "\n")
    text = ["| problem | method | energy distance | err/sd | sd ratio | truth inside 5-95 % | bad runs | of these "
            "flagged | good runs flagged | denoiser calls | CPU s |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for letter in exact_toys.NAMES:
        present = [m for m in ("exact", *METHODS) if (letter, m) in found]
        best = min((found[letter, m]["energy"] for m in present if m != "exact"), default=0.0)
        for m in present:
            row = found[letter, m]
            energy = f"{row['energy']:.3f} ± {row['energy_standard_error']:.3f}"
            lost = m.startswith("enkg-r+") and row["energy"] > best
            text.append(
                f"| {letter} | {'32 exact draws' if m == 'exact' else m} | {f'**{energy}**' if lost else energy} | "
                f"{row['err_over_sd']:.2f} | {row['sd_ratio']:.2f} | {row['inside']:.2f} | {row['bad']:.2f} | "
                + (f"{row['bad_flagged']}/{row['bad_runs']} | {row['good_flagged']}/{row['truths'] - row['bad_runs']}"
                   if m.startswith("enkg-r") else "- | -")
                + (" | - | - |" if m == "exact" else f" | {row['denoiser_calls']:,.0f} | {row['cpu_seconds']:.2f} |"))
    (RESULTS / "exact_toys.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--truths", type=int, default=40)
    parser.add_argument("--problems", default=exact_toys.NAMES)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    {"run": run_all, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
