"""The tables of EnKG-R, our extension (not in the paper).

    python benchmarks/enkg_r.py linear-gaussian      set-up B and d = 1024, 32 particles, 8 levels (--budget 256), 8 seeds
    python benchmarks/enkg_r.py navier-stokes        settings by rule; --prior, --budget, --items, --seeds, --noise;
                                                     --data padded | forcing (10 % too strong) | failed (20 % of rows)
                                                     | 8x8 (a quarter of the observations)
                                                     | exact (Jacobian by the adjoint instead of the regression)
    python benchmarks/enkg_r.py tuned                the rule beside settings changed by hand; --budget, --noise
    python benchmarks/enkg_r.py es-mda               Emerick and Reynolds (2013) from the Gaussian of the fields
    python benchmarks/enkg_r.py dps                  gradients: DPS with the adjoint, as in `enkg compare`, untuned
    python benchmarks/enkg_r.py sparse | simulated   black hole: day-101 coverage and errors | 2017 array; by rule
    python benchmarks/enkg_r.py multimodal           three ensembles each of simulated images that failed and that did not
    python benchmarks/enkg_r.py m87                  both days, settings by rule
    python benchmarks/enkg_r.py wall                 seconds of `enkg solve`, start of the interpreter included
    python benchmarks/enkg_r.py hard                 the runs with --particles: few levels, failing rows
    python benchmarks/enkg_r.py trust                how the runs' own trust numbers rank their true errors
    python benchmarks/enkg_r.py paired | plots       beside the runs of benchmarks/navier_stokes.py, same fields
    python benchmarks/enkg_r.py document             puts all of this into benchmarks/results/enkg_r.md, at its marks

Every run is one line of benchmarks/results/enkg_r_TABLE.jsonl as soon as it ends; a repeated command adds the missing,
and several commands may run at once. CPU seconds are those of one thread. Intervals are 95 %, over five fields or more,
the seeds of a field averaged first; Student's t below ten fields, bootstrap-t from ten.
"""

import argparse
import contextlib
import io
import json
import re

import enkg_r_flows as flows
import enkg_r_images as images
import enkg_r_tables as tables
from enkg_r_records import RESULTS, kept

TABLES = {"linear-gaussian": flows.linear_gaussian, "navier-stokes": flows.navier_stokes, "tuned": flows.tuned,
          "es-mda": flows.es_mda_table, "dps": flows.dps, "sparse": images.black_hole, "simulated": images.black_hole,
          "m87": images.black_hole, "multimodal": images.multimodal, "wall": images.wall}
DOCUMENT = RESULTS / "enkg_r.md"


def document():
    """Between <!-- enkg_r.py NAME --> and <!-- end --> stands what the command prints from the kept runs."""
    def printed(match):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            if match[1] in FROM_KEPT_RUNS:
                FROM_KEPT_RUNS[match[1]]()
            else:
                tables.show(match[1], kept(match[1]))
        lines = text.getvalue().rstrip().splitlines()
        words = [line if line.startswith("|") else f"\n{line}" for line in lines]
        return f"<!-- enkg_r.py {match[1]} -->\n" + "\n".join(words) + "\n<!-- end -->"

    content = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(re.sub(r"<!-- enkg_r.py (\S+) -->.*?<!-- end -->", printed, content, flags=re.DOTALL),
                        encoding="utf-8")


FROM_KEPT_RUNS = {"hard": tables.hard, "trust": tables.trust, "paired": tables.paired, "plots": tables.plots,
                  "document": document}


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
        if not any(all(row.get(name) == value for name, value in key.items()) for row in kept(options.table)):
            row = {**key, **work()}
            with (RESULTS / f"enkg_r_{options.table}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    tables.show(options.table, kept(options.table))


if __name__ == "__main__":
    main()
