"""What a prior file says about itself, and the list of the shipped ones.

The facts travel twice: inside each model (``metadata_props``: a file is self-contained) and, with its sha256, in
``weights/manifest.json`` (names resolve, and a corrupt file is noticed). Standard library only.

Metadata keys
-------------
required : event_shape (1 to 3 ints), sigma_min, sigma_max (floats, 0 < sigma_min < sigma_max < inf)
written  : format_version
shipped  : also sigma_data, units, normalisation (what 0 and 1 mean), parametrisation, data, data_licence,
           weight_licence, training_command, versions (a mapping)
Further keys are free. ``units`` and ``normalisation`` describe x; a Problem applies them, the session never does.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from pathlib import Path

FORMAT_VERSION = 1
REQUIRED_KEYS = ("event_shape", "sigma_min", "sigma_max")
SHIPPED_KEYS = (*REQUIRED_KEYS, "sigma_data", "units", "normalisation", "parametrisation", "data", "data_licence",
                "weight_licence", "training_command", "versions")
WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"
COMPANIONS = ("correction", "reference")  # network of DEFT; Gaussian and error table for EnKG-R

_TEXT_KEYS = ("units", "normalisation", "parametrisation", "data", "data_licence", "weight_licence", "training_command")


def model_shape(event_shape):
    """(C, H, W) in which an event is stored: (d,) as (1, 1, d), (H, W) as (1, H, W), (C, H, W) as it is."""
    if not 1 <= len(event_shape) <= 3:
        raise ValueError(f"event_shape must have 1, 2 or 3 axes, got {tuple(event_shape)}")
    return (1,) * (3 - len(event_shape)) + tuple(int(n) for n in event_shape)


def encode_metadata(metadata):
    """Checked metadata as {str: str}, the only form an ONNX model can carry; what is not text becomes JSON.

    Raises ValueError where a required key is missing or senseless.
    """
    facts = {"format_version": FORMAT_VERSION, **metadata}
    missing = [key for key in REQUIRED_KEYS if key not in facts]
    if missing:
        raise ValueError(f"prior metadata lacks {', '.join(missing)}; required: {', '.join(REQUIRED_KEYS)}")
    facts["event_shape"] = [int(n) for n in facts["event_shape"]]
    model_shape(facts["event_shape"])
    facts["sigma_min"], facts["sigma_max"] = float(facts["sigma_min"]), float(facts["sigma_max"])
    if not 0.0 < facts["sigma_min"] < facts["sigma_max"] < math.inf:
        raise ValueError("prior metadata needs 0 < sigma_min < sigma_max < inf, "
                         f"got {facts['sigma_min']} and {facts['sigma_max']}")
    for key in _TEXT_KEYS:
        if key in facts and not isinstance(facts[key], str):
            raise ValueError(f"prior metadata {key} must be text, got {type(facts[key]).__name__}")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def decode_metadata(properties):
    """Metadata of a model's {str: str} properties: the inverse of :func:`encode_metadata`; event_shape is a tuple.

    Raises ValueError if the properties are not those of a prior of this format version.
    """
    facts = {}
    for key, value in properties.items():
        try:
            facts[key] = value if key in _TEXT_KEYS else json.loads(value)
        except ValueError:
            facts[key] = value
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"prior metadata has format_version {facts.get('format_version')}, expected {FORMAT_VERSION}; "
                         "onnx_priors.export.attach_metadata writes it")
    encode_metadata(facts)
    facts["event_shape"] = tuple(facts["event_shape"])
    return facts


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


def register_prior(name, denoiser, vjp=None, manifest=MANIFEST):
    """Enter a prior into the manifest: files next to it, their sha256, and the metadata read from the denoiser file.

    Raises ValueError if a file lies elsewhere, its contract is violated, or a key of ``SHIPPED_KEYS`` is missing.
    """
    from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP

    manifest = Path(manifest)
    metadata = OnnxDenoiser(Path(denoiser)).metadata
    missing = [key for key in SHIPPED_KEYS if key not in metadata]
    if missing:
        raise ValueError(f"prior {name!r} cannot be shipped without metadata {', '.join(missing)}")
    if vjp is not None and OnnxDenoiserVJP(Path(vjp)).metadata["event_shape"] != metadata["event_shape"]:
        raise ValueError(f"prior {name!r}: the event shapes of {denoiser} and {vjp} differ")
    entry = {}
    for kind, path in (("denoiser", denoiser), ("vjp", vjp)):
        if path is not None:
            if Path(path).resolve().parent != manifest.resolve().parent:
                raise ValueError(f"prior {name!r}: {path} must lie next to {manifest}")
            entry[kind] = {"file": Path(path).name, "sha256": sha256(path)}
    _write_manifest({**read_manifest(manifest), name: {**entry, "metadata": metadata}}, manifest)


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
    _write_manifest(priors, manifest)


def _write_manifest(priors, manifest):
    text = json.dumps({"format_version": FORMAT_VERSION, "priors": dict(sorted(priors.items()))}, indent=1)
    manifest.write_text(text + "\n", encoding="utf-8")
