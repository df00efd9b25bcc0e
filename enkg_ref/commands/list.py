"""``known``: the problems, the methods with what each needs, and the priors. What ``enkg list`` prints."""

from __future__ import annotations

import problems
from onnx_priors.manifest import read_manifest

from ..methods import METHODS


def known():
    """{"problems": {name: words}, "methods": {name: `protocol.Method`}, "priors": {name: metadata}}"""
    return {"problems": {name: problems.entry(name).words for name in problems.PROBLEMS}, "methods": dict(METHODS),
            "priors": {name: entry["metadata"] for name, entry in read_manifest().items()}}


def text():
    """The same for people."""
    found = known()
    lines = ["problems", *(f"  {name:20s} {words}" for name, words in found["problems"].items())]
    lines.append("methods: what they are, what they need, how they spend --budget (a number of forward calls)")
    for name, method in found["methods"].items():
        lines.append(f"  {name:20s} {method.words}")
        lines.append(f"  {'':20s} needs {', '.join(sorted(method.access))}; {method.spends}")
    lines.append("priors")
    for name, facts in found["priors"].items():
        lines.append(f"  {name:20s} {'x'.join(map(str, facts['event_shape'])):10s} {facts.get('data', '')}")
    return "\n".join(lines)
