"""The photographs that ship inside scikit-image and scikit-learn, as patches: training and test never share one.

    draws(photographs("train"))    random patches for training: any place, four scales, flips, brightness, colours
    grid(photographs("test"))      patches side by side, each with (photograph, scale, top, left)

    python -m problems.photographs     writes problems/data/photo-patches.npz: the truths of the imaging problems (the
                                       twelve patches of the test photographs at scale 3) and the moments of the draws

Pictures are uint8 (H, W, 3); patches in prior units x = value / 127.5 - 1, (3, 64, 64). Grey photographs are replicated
over the channels. A scale s is the photograph averaged over s x s pixels. Making anything needs scikit-image and
scikit-learn, training patches torch as well; reading the file needs neither.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

SIZE = 64
FILE = Path(__file__).parent / "data" / "photo-patches.npz"
CREDITS = {  # name: (where it is, split, weight in training, author and terms as the package states them)
    "astronaut": ("skimage", "train", 4, "NASA, of Eileen Collins; public domain"),
    "chelsea": ("skimage", "train", 4, "Stefan van der Walt; CC0"),
    "rocket": ("skimage", "train", 2, "SpaceX; public domain"),
    "china": ("sklearn", "train", 4, "danielbuechele, flickr.com/photos/danielbuechele/6061409035; CC BY 2.0"),
    "flower": ("sklearn", "train", 4, "vultilion, flickr.com/photos/vultilion/6056698931; CC BY 2.0"),
    "brick": ("skimage", "train", 1, "CC0Textures; CC0"),
    "grass": ("skimage", "train", 1, "linolafett, DeviantArt; CC0"),
    "gravel": ("skimage", "train", 1, "CC0Textures; CC0"),
    "coins": ("skimage", "train", 2, "Brooklyn Museum; no known restrictions"),
    "coffee": ("skimage", "test", 0, "Rachel Michetti; CC0"),
    "camera": ("skimage", "test", 0, "Lav Varshney; CC0"),
    "clock": ("skimage", "test", 0, "Stefan van der Walt; public domain"),
}
SCALES = (1, 2, 3, 4)
TEST_SCALES = (1, 2)
TRUTH_SCALE = 3  # of the shipped truths: the scale at which a patch shows a thing rather than a surface
MOMENT_DRAWS = 20_000


def photographs(split):
    """{name: uint8 (H, W, 3)} of a split, "train" or "test", read from the installed packages (no download)."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = {}
    for name, (package, of, _, _) in CREDITS.items():
        if of == split:
            picture = load_sample_image(f"{name}.jpg") if package == "sklearn" else getattr(skimage.data, name)()
            found[name] = np.asarray(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2))
    return found


def reduced(picture, scale):
    """The mean over ``scale`` x ``scale`` pixels, rounded to uint8; what is left over at the margin is dropped."""
    h, w = picture.shape[0] // scale, picture.shape[1] // scale
    blocks = picture[:h * scale, :w * scale].reshape(h, scale, w, scale, -1)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def prior_units(pictures):
    """uint8 (..., H, W, 3) -> x = value / 127.5 - 1, float32 (..., 3, H, W)."""
    return np.moveaxis(np.asarray(pictures, dtype=np.float32) / np.float32(127.5) - 1, -1, -3)


def grid(pictures, size=SIZE, scales=TEST_SCALES):
    """All patches side by side of pictures {name: uint8 (H, W, 3)}: uint8 (N, size, size, 3), and their places.

    Places: list of (photograph, scale, top, left), top and left in pixels of the reduced photograph.
    """
    patches, places = [], []
    for name, picture in pictures.items():
        for scale in scales:
            small = reduced(picture, scale)
            for top in range(0, small.shape[0] - size + 1, size):
                for left in range(0, small.shape[1] - size + 1, size):
                    patches.append(small[top:top + size, left:left + size])
                    places.append((name, scale, top, left))
    return np.stack(patches), places


def draws(pictures, size=SIZE):
    """(count, torch.Generator) -> augmented patches (count, 3, size, size) float32, prior units.

    Photograph by weight, scale and place uniform; a flip, a quarter turn, a permutation of the colours, contrast x
    0.6 .. 1.1 about the patch's mean and a shift of brightness by up to 0.2, a quarter of them grey; clipped to
    [-1, 1]. A patch of standard deviation below 0.05 is replaced by the next draw three times of four.
    """
    import torch

    weights = torch.tensor([float(CREDITS[name][2]) for name in pictures])
    levels = [[torch.from_numpy(prior_units(small)) for small in (reduced(p, s) for s in SCALES)
               if min(small.shape[:2]) >= size] for p in pictures.values()]

    def one(generator):
        def below(n):
            return int(torch.randint(n, (1,), generator=generator))

        for _ in range(4):
            group = levels[int(torch.multinomial(weights, 1, generator=generator))]
            picture = group[below(len(group))]
            top, left = below(picture.shape[1] - size + 1), below(picture.shape[2] - size + 1)
            patch = picture[:, top:top + size, left:left + size]
            if float(patch.std()) >= 0.05:
                break
        patch = torch.rot90(patch, below(4), (1, 2))
        patch = torch.flip(patch, (2,)) if below(2) else patch
        patch = patch[torch.randperm(3, generator=generator)]
        if below(4) == 0:
            patch = patch.mean(dim=0, keepdim=True).expand(3, -1, -1)
        contrast, shift = torch.rand(2, generator=generator).tolist()
        mean = patch.mean()
        return (mean + 0.4 * shift - 0.2 + (0.6 + 0.5 * contrast) * (patch - mean)).clamp(-1, 1)

    return lambda count, generator: torch.stack([one(generator) for _ in range(count)])


def moments(draw, count=MOMENT_DRAWS, seed=0):
    """Mean (one number) and variances (2, n, n) of draws in cosines: luminance, and either opponent colour.

    The Gaussian of photographs: a constant mean and a covariance that is diagonal in DCT-II of rows and columns and in
    the colours (r + g + b)/sqrt 3, (r - b)/sqrt 2, (r - 2 g + b)/sqrt 6, the last two alike, symmetric in rows and
    columns. Prior units.
    """
    import torch
    from scipy.fft import dctn

    generator, total, second = torch.Generator().manual_seed((seed << 32) - 1), 0.0, 0.0
    for _ in range(count // 500):
        x = draw(500, generator).numpy().astype(np.float64)
        second = second + np.square(dctn(x, axes=(1, 2, 3), norm="ortho")).sum(axis=0)
        total += x.mean(axis=(1, 2, 3)).sum()
    second, mean = second / (count // 500 * 500), total / (count // 500 * 500)
    second[0, 0, 0] -= mean**2 * second.size
    variances = np.stack([second[0], second[1:].mean(axis=0)])
    return mean, 0.5 * (variances + variances.transpose(0, 2, 1))


def write(path=FILE):
    """Write the file of truths and moments."""
    patches, places = grid(photographs("test"), scales=(TRUTH_SCALE,))
    order = np.random.default_rng(0).permutation(len(patches))
    mean, variances = moments(draws(photographs("train")))
    np.savez_compressed(path, patches=patches[order], mean=mean, variances=variances.astype(np.float32),
                        photographs=[places[k][0] for k in order], places=[places[k][1:] for k in order])


@cache
def shipped(path=FILE):
    """What `write` wrote: patches uint8 (12, 64, 64, 3), photographs (12,), places (12, 3), mean, variances."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


if __name__ == "__main__":
    write()
