"""Put the tables of benchmarks/results/ into benchmarks/RESULTS.md.

    python benchmarks/results_page.py            renew the page
    python benchmarks/results_page.py --check    say which tables of the page are not those of results/; exit 1 if any

The page has a block ``<!-- NAME -->`` to ``<!-- end -->`` for every table; its content is results/NAME.md, which the
script named beside it writes. Everything outside the blocks is written by hand.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
BLOCK = re.compile(r"<!-- (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.S)


def filled(page, folder=RESULTS):
    """``page`` with every block holding the table of its name. Raises FileNotFoundError for a table that is not there.
    """
    def block(found):
        table = (folder / f"{found['name']}.md").read_text().strip()
        return f"<!-- {found['name']} -->\n{table}\n<!-- end -->"

    return BLOCK.sub(block, page)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    page = PAGE.read_text()
    new = filled(page)
    if not options.check:
        PAGE.write_text(new)
        return 0
    old = {m["name"]: m[0] for m in BLOCK.finditer(page)}
    stale = [m["name"] for m in BLOCK.finditer(new) if old[m["name"]] != m[0]]
    print("\n".join(f"not as in results/: {name}" for name in stale) or f"{len(old)} tables, all as in results/")
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
