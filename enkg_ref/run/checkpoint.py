"""Saving a run, and going on with it bit for bit.

A state is a dataclass of arrays and numbers, and so is the memory of its diagnostics. The file holds every field of
both and a description of the run; a checkpoint of another run is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from .._xp import like, to_numpy

MEMORY = "memory."  # before the names of the memory's fields


def save(path, state, about, extra=None, memory=None):
    """Write ``state`` and ``memory`` to ``path`` at once or not at all (a temporary file, then a rename).

    memory : a dataclass like the state, or None
    about : JSON-able description of the run, compared on loading;  extra : JSON-able, handed back on loading.
    """
    path = Path(path)
    arrays = _fields(state, "") | ({} if memory is None else _fields(memory, MEMORY))
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, _about=json.dumps(about, sort_keys=True), _extra=json.dumps(extra), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path, kind, about, x, memory=None):
    """(state, memory, extra) saved in ``path``; arrays in the namespace, dtype and device of ``x``.

    kind : class of the state;  memory : a value of the class of the memory, or None where there is none

    Raises ValueError if the file is damaged or belongs to another run, in one sentence that names the first difference.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            saved = {name: file[name] for name in file.files}
        found, extra = json.loads(str(saved.pop("_about"))), json.loads(str(saved.pop("_extra")))
    except Exception:  # a damaged file may end in an error of zlib or of the header's parser as well
        raise ValueError(f"checkpoint: got {path}, which is damaged or not a checkpoint; expected one written by "
                         "this program") from None
    expected = json.loads(json.dumps(about))
    for key in sorted(set(found) | set(expected)):
        if found.get(key) != expected.get(key):
            raise ValueError(f"checkpoint: got a run with {key} = {found.get(key)}, expected {expected.get(key)}; "
                             f"start anew with another --out, or repeat the command that wrote {path}")
    values = {name: like(value, x) if value.ndim else value.item() for name, value in saved.items()}
    state = kind(**{name: value for name, value in values.items() if not name.startswith(MEMORY)})
    if memory is not None:
        memory = type(memory)(**{name.removeprefix(MEMORY): value for name, value in values.items()
                                 if name.startswith(MEMORY)})
    return state, memory, extra


def described(numbers):
    """``numbers`` as a description of a run holds them: one number as it is, many by range and fingerprint."""
    array = np.ascontiguousarray(np.asarray(numbers, dtype=np.float64))
    if array.ndim < 2 and np.all(array == array.flat[0]):
        return float(array.flat[0])
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:12]
    return f"{array.size} numbers from {array.min():.6g} to {array.max():.6g} (sha256 {digest})"


def _fields(record, prefix):
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {prefix + name: to_numpy(value) if hasattr(value, "shape") else np.asarray(value)
            for name, value in values.items() if value is not None}
