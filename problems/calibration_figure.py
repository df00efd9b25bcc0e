"""The two panels that show whether the spread of an ensemble means what it says, where the truth is known."""

from __future__ import annotations

import numpy as np


def draw_calibration(ranks, covered, found):
    """How often the truth falls where among the particles of a pixel (axis ``ranks``), and in intervals of theirs.

    found : mapping   ssr, rank_histogram (density, 1 where calibrated), coverage (pairs of nominal and found share)
    """
    density = found["rank_histogram"]
    ranks.bar(np.arange(len(density)), density, width=0.9)
    ranks.axhline(1.0, color="k", ls=":", lw=1)
    ranks.set_title(f"rank of the truth (flat: calibrated), SSR {found['ssr']:.2f}", fontsize=9)
    ranks.set_xticks([])
    covered.plot(*zip(*found["coverage"]), "o-", ms=3, lw=1)
    covered.plot([0, 1], [0, 1], "k:", lw=1)
    covered.set(xlim=(0, 1), ylim=(0, 1))
    covered.set_title("coverage of the truth against nominal", fontsize=9)
