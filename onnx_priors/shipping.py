"""What a file goes through before it is shipped: its contract and metadata are checked, the manifest gets an entry."""

from __future__ import annotations

from pathlib import Path

from onnx_priors.manifest import MANIFEST, read_manifest, sha256, write_manifest
from onnx_priors.metadata import SHIPPED_KEYS
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP


def register_prior(name, denoiser, vjp=None, manifest=MANIFEST):
    """Enter a prior into the manifest: files next to it, their sha256, and the metadata read from the denoiser file.

    Raises ValueError if a file lies elsewhere, its contract is violated, or a key of ``SHIPPED_KEYS`` is missing.
    """
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
    write_manifest({**read_manifest(manifest), name: {**entry, "metadata": metadata}}, manifest)
