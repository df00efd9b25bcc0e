"""Counting calls and time, by waves. Wrap the callables, run, read ``as_dict()``.

A wave is one logical batched call whose inputs are all known: total += rows, sequential += 1. Wrap outside any
chunking, so that micro-batches never raise the sequential count.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager

from .._xp import array_namespace, to_numpy

FIELDS = ("fwd_total", "fwd_seq", "den_total", "den_seq", "den_vjp_total", "den_vjp_seq", "fwd_vjp_total",
          "fwd_vjp_seq", "net_total", "net_seq", "offline_fwd", "diag_fwd", "diag_den", "failed_fwd", "phys_net")
PARTS = ("setup", "forward", "denoiser", "update", "record")


class Ledger:
    """Counts (``counts``) and exclusive wall seconds (``wall``) of one run.

    wall: setup (problem, prior, noise), forward, denoiser (their VJPs and correction networks included), update (the
    method's own arithmetic), record (history, checkpoint). In ``as_dict()`` total is the time since the ledger was
    made, by a clock of its own, and other = total - the sum of the parts. On an asynchronous device the split follows
    the host's clock.
    diag_fwd: simulator calls made for the result's own sake after the run, the predictions of the last ensemble.
    diag_den: denoiser calls that are no part of a run either, those of a reference from the user's images.
    """

    def __init__(self):
        self.counts = Counter({name: 0 for name in FIELDS})
        self.wall = Counter({part: 0.0 for part in PARTS})
        self._made, self._earlier = time.perf_counter(), 0.0
        self._nested = []

    def forward(self, call):
        """Wrap a forward model: fwd_total, fwd_seq, failed_fwd (rows with a non-finite entry)."""
        counted = self._wave(call, "fwd", "forward")

        def wrapped(x):
            y_pred = counted(x)
            xp = array_namespace(y_pred)
            finite = to_numpy(xp.all(xp.isfinite(xp.reshape(y_pred, (y_pred.shape[0], -1))), axis=1))
            self.counts["failed_fwd"] += int((~finite).sum())
            return y_pred

        return wrapped

    def forward_vjp(self, call):
        """Wrap (x, v) -> J_G(x)^T v: fwd_vjp_total, fwd_vjp_seq.

        The forward value inside is one forward call (rule 3): the one that gave v, which `forward` has counted.
        """
        return self._wave(call, "fwd_vjp", "forward")

    def denoiser(self, call):
        """Wrap D(x, sigma): den_total, den_seq and one physical network execution per row."""
        return self._wave(call, "den", "denoiser", network=True)

    def denoiser_vjp(self, call):
        """Wrap (x, sigma, v) -> (D, J_D^T v): one VJP per row, which runs the network once more (rule 4)."""
        return self._wave(call, "den_vjp", "denoiser", network=True)

    def network(self, call):
        """Wrap a correction network (x, D, sigma) -> h: net_total, net_seq, and one physical execution per row."""
        return self._wave(call, "net", "denoiser", network=True)

    def _wave(self, call, name, part, network=False):
        def wrapped(x, *args):
            self.counts[f"{name}_total"] += x.shape[0]
            self.counts[f"{name}_seq"] += 1
            if network:
                self.counts["phys_net"] += x.shape[0]
            with self.clock(part):
                return call(x, *args)

        return wrapped

    @contextmanager
    def clock(self, part):
        """Add the time of the block to ``part``, without the time of clocks inside it."""
        start = time.perf_counter()
        self._nested.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.wall[part] += elapsed - self._nested.pop()
            if self._nested:
                self._nested[-1] += elapsed

    def timed(self, updates, part="update"):
        """Hand a generator through, its own time (not that of the calls wrapped inside it) booked under ``part``."""
        while True:
            with self.clock(part):
                try:
                    item = next(updates)
                except StopIteration:
                    return
            yield item

    def as_dict(self):
        """Counts, and wall seconds by part; ``other`` is what no part explains."""
        named = {part: self.wall[part] for part in PARTS}
        total = self._earlier + time.perf_counter() - self._made
        return {**{name: self.counts[name] for name in FIELDS},
                "wall": {**named, "other": total - sum(named.values()), "total": total}}

    def restore(self, saved):
        """Continue the counts of ``as_dict()`` of an earlier session of the same run.

        Calls counted here before, to set the method up anew, are among them already.
        """
        self.counts = Counter({name: saved[name] for name in FIELDS})
        self.wall.update({part: saved["wall"][part] for part in PARTS})
        self._earlier += saved["wall"]["total"]


def add(ledgers):
    """Sum of several ``as_dict()``: independent runs, one after the other or side by side."""
    ledgers = list(ledgers)
    out = {name: sum(one[name] for one in ledgers) for name in FIELDS}
    out["wall"] = {part: sum(one["wall"][part] for one in ledgers) for part in ledgers[0]["wall"]}
    return out
