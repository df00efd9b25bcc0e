"""``verify``: the statements of THEORY.md, measured. What ``enkg verify`` does."""

from __future__ import annotations

from pathlib import Path


def verify(json=None, backend="numpy"):
    """Print every statement with what was measured; 0 if none fails, 1 otherwise.

    json : file for the same in JSON, refused at once where it cannot be written;  backend : numpy, torch, ...
    """
    if json is not None:
        _require_writable(Path(json))
    from .. import statements  # long to import, and nobody else wants it

    return statements.run(json_path=json, backend=backend)


def _require_writable(path):
    there = path.exists()
    try:
        with open(path, "a") as file:
            if there and not path.is_file():  # a device may be full
                file.write("\n")
                file.flush()
    except OSError as error:
        raise ValueError(f"json: got {path}, which cannot be written ({error.strerror}), expected a file in a folder "
                         "that exists") from None
    if not there:
        path.unlink()
