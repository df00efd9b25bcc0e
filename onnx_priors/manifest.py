"""The list of the shipped priors: names resolve to files, and the sha256 of each tells a corrupt one. Standard library.

``weights/manifest.json`` repeats the metadata of every file (``onnx_priors.metadata``); ``onnx_priors.shipping`` enters
a new one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path

from onnx_priors.metadata import FORMAT_VERSION

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"
COMPANIONS = ("correction", "reference")  # network of DEFT; Gaussian and error table for EnKG-R


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path=MANIFEST):
    """{name: {"denoiser": {"file", "sha256"}, "vjp", "correction", "reference": the same or absent, "metadata": {...}}}
    of the shipped priors.
    """
    if not Path(path).is_file():
        return {}
    return json.loads(Path(path).read_text(encoding="utf-8"))["priors"]


def resolve(name_or_path, kind="denoiser", manifest=MANIFEST):
    """File of a prior: a path as given, or a shipped name by the manifest with its checksum verified.

    What ends in .onnx or has a folder part is a path. ``kind`` is "denoiser", "vjp" or one of ``COMPANIONS``.

    Raises FileNotFoundError for a missing file, ValueError for an unknown name (the nearest is suggested), a name
    without such a file, or a checksum mismatch.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".onnx") or os.path.basename(text) != text:
        if not os.path.isfile(text):
            raise FileNotFoundError(f"prior file {text} does not exist")
        return Path(text)
    priors = read_manifest(manifest)
    if text not in priors:
        near = difflib.get_close_matches(text, priors, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}? known: {', '.join(priors)}" if near else "no prior is shipped"
        raise ValueError(f"prior {text!r} is not a shipped one ({hint}) and not the path of an .onnx file")
    entry = priors[text].get(kind)
    if entry is None:
        raise ValueError(f"prior {text!r} has no {kind} file")
    path = Path(manifest).parent / entry["file"]
    if not path.is_file():
        raise FileNotFoundError(f"prior {text!r}: its file {path} does not exist")
    if sha256(path) != entry["sha256"]:
        raise ValueError(f"prior {text!r}: the sha256 of {path} is not that of the manifest, the file is corrupt")
    return path


def check_borrowed_weights(path, metadata):
    """ValueError unless the file whose weights the model ``path`` reads (its metadata's weights_of) is as it was."""
    of = metadata.get("weights_of")
    if of is not None and sha256(path.with_name(of["file"])) != of["sha256"]:
        raise ValueError(f"prior file {path}: its weights are in {of['file']} beside it, got another version of that "
                         "file, expected the one it was made with")


def register_companion(name, kind, path, manifest=MANIFEST):
    """Enter a file that belongs to a registered prior in the manifest, with its sha256; ``kind`` is one of
    ``COMPANIONS``.

    A prior that is registered anew loses it. Raises ValueError for an unknown prior or a file that lies elsewhere.
    """
    priors, path, manifest = read_manifest(manifest), Path(path), Path(manifest)
    if kind not in COMPANIONS:
        raise ValueError(f"kind must be one of {', '.join(COMPANIONS)}, got {kind!r}")
    if name not in priors:
        raise ValueError(f"prior {name!r} is not in {manifest}, expected it registered before its {kind}")
    if path.resolve().parent != manifest.resolve().parent:
        raise ValueError(f"prior {name!r}: {path} must lie next to {manifest}")
    priors[name][kind] = {"file": path.name, "sha256": sha256(path)}
    write_manifest(priors, manifest)


def write_manifest(priors, manifest=MANIFEST):
    """Write the entries {name: entry} as a manifest, sorted by name."""
    text = json.dumps({"format_version": FORMAT_VERSION, "priors": dict(sorted(priors.items()))}, indent=1)
    manifest.write_text(text + "\n", encoding="utf-8")
