"""Pictures of the user: PNG or JPEG files as arrays of the size a prior has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FITS = ("crop", "shrink")


def read_picture(path, event_shape, fit="crop"):
    """The picture in ``path`` as u (*event) in [0, 1], and one sentence on what was done to it.

    event_shape : (n, n), grey, or (3, n, n)
    fit : "crop" takes the middle n x n pixels of a larger picture; "shrink" its largest middle square, averaged down to
        n x n pixels

    Raises ValueError, one sentence, for a file that is not there, is no picture, or has too few pixels.
    """
    if fit not in FITS:
        raise ValueError(f"fit: got {fit!r}, expected {' or '.join(FITS)}")
    n, picture = event_shape[-1], _open(path)
    width, height = picture.size
    if min(width, height) < n:
        raise ValueError(f"image: got {path} of {width} x {height} pixels, expected {n} x {n} at least")
    side = n if fit == "crop" else min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    words = f"{Path(path).name}, {width} x {height} pixels"
    if (width, height) != (side, side):
        words += f", of which the middle {side} x {side}"
    picture = picture.crop((left, top, left + side, top + side))
    if side != n:
        picture, words = picture.resize((n, n), _reducing()), f"{words}, averaged down to {n} x {n}"
    u = np.asarray(picture.convert("RGB" if len(event_shape) == 3 else "L"), dtype=np.float64) / 255.0
    return (np.moveaxis(u, -1, 0) if len(event_shape) == 3 else u), words


def _open(path):
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("image: got a picture, but reading it needs Pillow, expected the extra images "
                         "(enkg_ref[images])") from None
    if not Path(path).is_file():
        raise ValueError(f"image: got {path}, which does not exist, expected a PNG or JPEG file")
    try:
        with Image.open(path) as file:
            file.load()
            picture = file.copy()
    except Exception:  # Pillow raises errors of many kinds for damaged files
        raise ValueError(f"image: got {path}, which is not a readable picture, expected a PNG or JPEG file") from None
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16 bits per pixel
        picture = Image.fromarray((np.asarray(picture) / 257.0).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getextrema()[3][0] < 255:
            raise ValueError(f"image: got {path} with transparent pixels, expected an opaque picture")
    return picture.convert("RGB")


def _reducing():
    from PIL import Image

    return Image.Resampling.BOX
