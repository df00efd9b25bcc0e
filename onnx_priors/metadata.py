"""What a prior file says about itself, in the ``metadata_props`` of the model: a file explains itself.

Metadata keys
-------------
required : event_shape (1 to 3 ints), sigma_min, sigma_max (floats, 0 < sigma_min < sigma_max < inf)
written  : format_version
shipped  : also sigma_data, units, normalisation (what 0 and 1 mean), parametrisation, data, data_licence,
           weight_licence, training_command, versions (a mapping)
Further keys are free. ``units`` and ``normalisation`` describe x; a Problem applies them, the session never does.
``scale`` and ``shift`` are numbers: the simulator of ``enkg solve --forward`` receives scale * x + shift.

Standard library only.
"""

from __future__ import annotations

import json
import math

FORMAT_VERSION = 1
REQUIRED_KEYS = ("event_shape", "sigma_min", "sigma_max")
SHIPPED_KEYS = (*REQUIRED_KEYS, "sigma_data", "units", "normalisation", "parametrisation", "data", "data_licence",
                "weight_licence", "training_command", "versions")

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
