"""Saving a run after every level, and going on with it bit for bit.

A state is a dataclass of arrays and numbers. The file holds every field and a description of the run; a checkpoint of
another run is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from .._xp import like, to_numpy


def save(path, state, about, extra=None):
    """Write ``state`` to ``path`` at once or not at all (a temporary file, then a rename).

    about : JSON-able description of the run, compared on loading;  extra : JSON-able, handed back on loading.
    """
    path = Path(path)
    arrays = {f.name: to_numpy(value) if hasattr(value, "shape") else np.asarray(value)
              for f in dataclasses.fields(state) for value in [getattr(state, f.name)] if value is not None}
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, _about=json.dumps(about, sort_keys=True), _extra=json.dumps(extra), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path, kind, about, x):
    """State of class ``kind`` and the extra data saved in ``path``; arrays in the namespace, dtype, device of ``x``.

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
    fields = {name: like(value, x) if value.ndim else value.item()
              for name, value in saved.items()}
    return kind(**fields), extra
