"""Arrays that a user hands over, in memory or as .npy files, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_array(source, argument, finite=True):
    """``source`` as a finite float64 array of the host: an array of real numbers, or the path of an .npy file.

    Raises ValueError, "ARGUMENT: got ..., expected ...", for a file that is not there, is damaged or holds something
    else, and for values that are not finite, unless they may be.
    """
    array, got = source, "an array"
    if isinstance(source, (str, Path)):
        got = str(source)
        try:
            array = np.load(source, allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"{argument}: got {got}, which does not exist, expected an .npy file") from None
        except Exception:  # a damaged file may end in an error of zlib or of the header's parser as well
            raise ValueError(f"{argument}: got {got}, which is not an array of numbers, expected an .npy "
                             "file") from None
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{argument}: got {got}, which is an archive of arrays, expected one array of real "
                             "numbers in an .npy file")
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{argument}: got {got}, which is an array of {array.dtype}, expected one array of real "
                         "numbers in an .npy file")
    array = array.astype(np.float64)
    if finite and not np.all(np.isfinite(array)):
        raise ValueError(f"{argument}: got {got} with non-finite values, expected finite numbers")
    return array
