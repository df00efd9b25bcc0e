"""The trainer for anybody's images: sizes, symmetries, going on from a checkpoint, what it writes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnx_priors import fit as fitting  # noqa: E402
from onnx_priors.gaussian import GaussianPrior, Principal  # noqa: E402
from onnx_priors.images import read_images  # noqa: E402
from onnx_priors.training import edm  # noqa: E402
from onnx_priors.training import images as training  # noqa: E402
from onnx_priors.training.gaussians import ModesGaussian  # noqa: E402


def fields(shape, n=80, seed=0):
    """Random walks along every axis, squashed: not Gaussian."""
    x = np.random.default_rng(seed).standard_normal((n, *shape))
    for axis in range(1, x.ndim):
        x = np.cumsum(x, axis=axis)
    return np.tanh(x / np.std(x))


def test_the_gaussian_inside_the_network_is_the_gaussian_of_the_project_at_every_row_s_own_level():
    rng = np.random.default_rng(0)
    modes = np.linalg.qr(rng.standard_normal((24, 5)))[0]
    principal = Principal(rng.standard_normal((2, 3, 4)), modes, np.array([4.0, 2.0, 1.0, 0.5, 0.3]), 0.05)
    inside, exact = ModesGaussian(principal), GaussianPrior.from_principal(principal)
    x = rng.standard_normal((6, 2, 3, 4)).astype("float32")
    sigma = np.array([0.01, 0.1, 0.5, 1.0, 5.0, 50.0], "float32")
    wanted = np.concatenate([exact.denoise(row[None].astype("float64"), float(s)) for row, s in zip(x, sigma)])
    np.testing.assert_allclose(inside(torch.tensor(x), torch.tensor(sigma)), wanted, atol=2e-6)
    l = np.append(principal.variances, np.full(19, 0.05))
    np.testing.assert_allclose(inside.variance(torch.tensor(sigma)),
                               np.mean(l * sigma[:, None] ** 2 / (l + sigma[:, None] ** 2), axis=1), rtol=1e-5)
    assert inside.deviation == pytest.approx(exact.std)


@pytest.mark.parametrize("shape", [(50,), (64,), (13, 22), (3, 8, 8), (2, 40, 33)])
def test_an_untrained_network_of_any_size_is_the_gaussian_of_its_images(shape):
    images = read_images(fields(shape))
    denoiser, gaussian = training.build(images)
    x = images.judging[:3].reshape(3, *training.model_shape(shape))
    noisy = torch.from_numpy(x + np.float32(0.3) * np.random.default_rng(1).standard_normal(x.shape).astype("float32"))
    with torch.no_grad():
        out = denoiser(noisy, torch.full((3,), 0.3)).numpy().reshape(3, *shape)
    wanted = gaussian.denoise(noisy.numpy().reshape(3, *shape).astype("float64"), 0.3)
    np.testing.assert_allclose(out, wanted, atol=1e-4)


def test_symmetries_give_images_of_the_set_mirrored_turned_or_shifted():
    x = torch.arange(2 * 16.0).reshape(2, 1, 4, 4)

    def seen(symmetry):
        draw, generator = training.augmented(x.numpy(), symmetry), torch.Generator().manual_seed(0)
        return {tuple(row.reshape(-1).tolist()) for _ in range(40) for row in draw(16, generator)}

    mirror = {tuple(a.reshape(-1).tolist()) for row in x for a in (row, torch.flip(row, (-1,)))}
    turned = {tuple(torch.rot90(row if k < 4 else row.transpose(-2, -1), k, (-2, -1)).reshape(-1).tolist())
              for row in x for k in range(8)}
    shifted = {tuple(torch.roll(row, (i, j), (-2, -1)).reshape(-1).tolist())
               for row in x for i in range(4) for j in range(4)}
    assert seen("mirror") == mirror and seen("square") == turned and seen("shift") == shifted
    assert len(seen("none")) == 2


def test_minutes_are_those_of_all_runs_together(tmp_path, monkeypatch):
    images = read_images(fields((16,)))
    monkeypatch.setattr(edm, "BATCH", 8)
    clock = iter(range(0, 10**6, 6))  # every look at the clock costs six seconds
    monkeypatch.setattr(edm.time, "monotonic", lambda: next(clock))

    def steps_after(minutes):
        denoiser, _ = training.build(images)
        edm.train(denoiser, training.augmented(images.training[:, None, None], "none"), work=tmp_path, minutes=minutes)
        return torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]

    first = steps_after(1.0)
    assert first == 9  # the first step is measured over two looks
    assert steps_after(1.0) == first and first < steps_after(2.0) <= 2 * first + 2


def test_a_training_writes_its_files_goes_on_and_refuses_other_images(tmp_path, monkeypatch):
    written = []

    def keep(module, path, shape, facts, jacobian=True):
        written.append((module, facts))
        GaussianPrior.from_principal(fitting.principal(images.training, 4)).to_onnx(path, facts)
        return path, None, "not here"

    monkeypatch.setattr(training, "export_prior", keep)
    images = read_images(fields((8, 8)), units="volt")
    for _ in range(2):
        trained = training.train(images, tmp_path / "p.onnx", minutes=0.01, symmetry="square")
    assert trained.note == "not here" and trained.sheet.read_bytes().startswith(b"\x89PNG")
    assert [row.split("|")[1].strip() for row in trained.table.splitlines()] == ["sigma", "---", "network", "Gaussian",
                                                                               "ratio"]
    (first, facts), (again, _) = written
    assert facts["units"] == "volt" and facts["symmetry"] == "square" and facts["event_shape"] == (8, 8)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(first(x, torch.tensor([0.1, 1.0])), again(x, torch.tensor([0.1, 1.0])))  # nothing was left to do
    with pytest.raises(ValueError, match="work: got .*p-training with a training of other images, expected"):
        training.train(read_images(fields((8, 8), seed=1)), tmp_path / "p.onnx", symmetry="square")


@pytest.mark.parametrize("change, message", [
    ({"symmetry": "turn"}, "symmetry: got 'turn', expected one of none"),
    ({"symmetry": "square"}, r"symmetry: got square for events of shape \(16,\)"),
    ({"minutes": 0.0}, "minutes: got 0.0, expected a number > 0"),
    ({"out": "p.pt"}, "out: got p.pt, expected a file name"),
])
def test_what_cannot_be_trained_is_refused_before_anything_is_done(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        training.train(**{"images": read_images(fields((16,))), "out": "p.onnx"} | change)
    assert not list(tmp_path.iterdir())
