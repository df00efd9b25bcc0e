"""A bar on a terminal."""

from __future__ import annotations

import sys
from importlib.util import find_spec


class Bar:
    """A bar that begins with the first progress; without tqdm, or where nobody looks, there is none."""

    def __init__(self, unit, quiet):
        self.unit, self.quiet, self.bar = unit, quiet or sys.stderr is None or not find_spec("tqdm"), None

    def advance(self, done, total, line):
        """``done`` of ``total``;  line : the latest history line or record, of which the bar shows a little"""
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=self.unit, dynamic_ncols=True)
        if line is not None:
            shown = [f"{name} {line[name]:.3g}" for name in ("sigma", "misfit") if line.get(name) is not None]
            words = ", ".join(shown) or f"{line.get('method', '')} {line.get('budget', '')}"
            self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()
