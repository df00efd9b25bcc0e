"""The imaging problems as a user meets them: seeds, data, truths, pictures of one's own, posterior, figure."""

import numpy as np
import pytest

from problems import photographs
from problems.imaging import deblurring, inpainting, phase_retrieval, super_resolution
from problems.imaging_operators import Inpainting, MatrixPair, bicubic, blur
from problems.imaging_posterior import Posterior
from problems.pictures import read_picture

BUILDERS = {"inpainting": inpainting, "super-resolution": super_resolution, "deblurring": deblurring,
            "phase-retrieval": phase_retrieval}


@pytest.mark.parametrize("name", BUILDERS)
def test_that_a_seed_gives_the_same_data_whatever_was_drawn_before(name):
    first = BUILDERS[name](item=2, seed=5)
    np.random.seed(1)  # noqa: NPY002
    np.random.standard_normal(7)  # noqa: NPY002
    BUILDERS[name](item=0, seed=1)
    again, other = BUILDERS[name](item=2, seed=5), BUILDERS[name](item=2, seed=6)
    assert np.array_equal(first.observation.y, again.observation.y)
    assert not np.array_equal(first.observation.y, other.observation.y)


def test_that_all_items_of_a_seed_share_one_hole_of_the_stated_size():
    assert inpainting(item=1, seed=3).forward.mask.tolist() == inpainting(item=9, seed=3).forward.mask.tolist()
    for size in (64, 256):
        for seed in range(40):
            mask = inpainting(size=size, seed=seed, truth=np.full((3, size, size), 0.5)).forward.mask
            rows, columns = np.flatnonzero(mask.min(axis=1) == 0), np.flatnonzero(mask.min(axis=0) == 0)
            for inside in (rows, columns):
                assert 105 * size // 256 <= inside.size < 180 * size // 256
                assert size // 8 <= inside[0] and inside[-1] < size - size // 8
            assert np.sum(mask == 0) == rows.size * columns.size


@pytest.mark.parametrize("name", BUILDERS)
def test_that_the_misfit_of_the_truth_is_the_number_of_data_on_average(name):
    problems = [BUILDERS[name](item=k, seed=k) for k in range(12)]
    residuals = np.concatenate([p.observation.y - p.forward(2 * p.truth[None] - 1)[0] for p in problems])
    mean, scatter = np.mean(residuals**2), np.std(residuals**2) / np.sqrt(residuals.size)
    assert abs(mean - 0.05**2) < 4 * scatter
    assert residuals.size == 12 * problems[0].forward.size


@pytest.mark.parametrize("name", BUILDERS)
def test_that_grey_pictures_of_any_size_have_the_same_problems(name):
    u = np.random.default_rng(0).uniform(0.2, 0.8, (32, 32))
    problem = BUILDERS[name](size=32, channels=1, truth=u)
    assert problem.event_shape == (32, 32) and problem.prior is None
    x = 2 * u[None] - 1
    assert problem.score(u[None])[problem.metric] == 80.0
    residual = problem.forward(x)[0] - problem.observation.y
    assert problem.forward_vjp(x, residual[None]).shape == x.shape and np.std(residual) == pytest.approx(0.05, rel=0.2)


def test_that_measured_data_need_no_truth(tmp_path):
    known = super_resolution(item=4)
    np.save(tmp_path / "y.npy", known.observation.y.reshape(3, 16, 16))
    problem = super_resolution(observation=str(tmp_path / "y.npy"))
    assert np.array_equal(problem.observation.y, known.observation.y)
    assert problem.truth is None and problem.score(np.zeros((2, 3, 64, 64))) == {}


def test_that_no_truth_is_a_part_of_a_training_photograph():
    file = photographs.shipped()
    training = {name for name, (_, split, _, _) in photographs.CREDITS.items() if split == "train"}
    assert len(file["patches"]) == 12 and not training & set(file["photographs"].tolist())
    pytest.importorskip("skimage")
    tests = photographs.photographs("test")
    for patch, name, (scale, top, left) in zip(file["patches"], file["photographs"], file["places"]):
        small = photographs.reduced(tests[str(name)], scale)
        assert np.array_equal(patch, small[top:top + 64, left:left + 64])
    pytest.importorskip("sklearn")
    known = {picture.tobytes() for picture in photographs.photographs("train").values()}
    assert not known & {picture.tobytes() for picture in tests.values()}


def test_that_the_shipped_moments_are_those_of_training_patches():
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from scipy.fft import dctn

    file = photographs.shipped()
    x = photographs.draws(photographs.photographs("train"))(2000, torch.Generator().manual_seed(7)).numpy()
    y = dctn(x - float(file["mean"]), axes=(1, 2, 3), norm="ortho")
    for found, expected in ((y[:, 0] ** 2, file["variances"][0]), (y[:, 1] ** 2, file["variances"][1])):
        power, error = found.mean(axis=0), found.std(axis=0) / np.sqrt(len(x))
        assert np.mean(np.abs(power - expected) < 4 * error) > 0.99


def linear_cases():
    return {"inpainting": lambda lead: Inpainting((*lead, 8, 8), (2, 3, 3, 4)),
            "reduced": lambda lead: MatrixPair(bicubic(8, 2), bicubic(8, 2), *lead),
            "blurred": lambda lead: MatrixPair(blur(8, 1.2), blur(8, 1.2), *lead)}


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("name", linear_cases())
def test_that_the_posterior_is_the_dense_formula(name, lead):
    from onnx_priors.gaussian import GaussianPrior

    rng = np.random.default_rng(0)
    G, variances = linear_cases()[name](lead), rng.uniform(0.01, 1.0, (2, 8, 8))
    posterior = Posterior(G, 0.05, 0.2, variances)
    full = variances[0] / 3 if lead == () else np.stack([variances[0], variances[1], variances[1]])
    prior = GaussianPrior.cosines(0.2, full)
    _, V, values, _ = prior.principal()
    C, mu = (V * values) @ V.T, prior.mean.reshape(-1)
    H = G(np.eye(mu.size).reshape(-1, *G.event_shape)).T
    gain = np.linalg.solve(H @ C @ H.T + 0.05**2 * np.eye(len(H)), H @ C).T
    y = rng.standard_normal(len(H))
    np.testing.assert_allclose(posterior.mean(y).reshape(-1), mu + gain @ (y - H @ mu), atol=1e-8)
    np.testing.assert_allclose(posterior.std.reshape(-1) ** 2, np.diag(C - gain @ H @ C), atol=1e-9)


def test_that_ensembles_are_pooled_in_the_orientation_of_the_first():
    problem, rng = phase_retrieval(item=1), np.random.default_rng(0)
    u = problem.truth + 0.01 * rng.standard_normal((6, 3, 64, 64))
    turned = np.concatenate([u[:3], 1.0 - u[3:, :, ::-1, ::-1]])
    np.testing.assert_allclose(problem.pool(turned, np.repeat([0, 1], 3)), u, atol=1e-12)


def test_that_the_best_fit_is_chosen_by_the_data():
    problem, rng = phase_retrieval(item=1), np.random.default_rng(0)
    u = problem.truth + 0.1 * rng.standard_normal((4, 3, 64, 64))
    u[2] = 1.0 - problem.truth
    found = problem.score(u)
    assert found["psnr_of_best_fit_ambiguity_resolved"] == 80.0
    assert found["psnr_of_best_fit"] < 20.0 and "psnr_of_best_fit" not in deblurring().score(u)


def write_picture(path, pixels):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels).save(path)
    return path


def test_that_a_picture_of_the_right_size_is_the_truth(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    problem = deblurring(image=write_picture(tmp_path / "p.png", pixels))
    np.testing.assert_allclose(problem.truth, np.moveaxis(pixels, -1, 0) / 255.0, atol=1e-15)
    assert "p.png, 64 x 64 pixels." in problem.notes


def test_that_a_larger_picture_is_cropped_or_shrunk_and_said_to_be(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (128, 200, 3), dtype=np.uint8)
    path = write_picture(tmp_path / "p.png", pixels)
    u, words = read_picture(path, (3, 64, 64))
    np.testing.assert_allclose(u, np.moveaxis(pixels[32:96, 68:132], -1, 0) / 255.0, atol=1e-15)
    assert words == "p.png, 200 x 128 pixels, of which the middle 64 x 64"
    u, words = read_picture(path, (3, 64, 64), "shrink")
    blocks = pixels[:, 36:164].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(u, np.moveaxis(blocks, -1, 0) / 255.0, atol=1.01 / 255)  # rounded twice
    assert words == "p.png, 200 x 128 pixels, of which the middle 128 x 128, averaged down to 64 x 64"


def test_that_grey_and_deep_pictures_are_read(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    u, _ = read_picture(write_picture(tmp_path / "g.png", grey), (3, 64, 64))
    np.testing.assert_allclose(u, np.broadcast_to(grey / 255.0, (3, 64, 64)), atol=1e-15)
    deep = grey.astype(np.uint16) * 257
    u, _ = read_picture(write_picture(tmp_path / "d.png", deep), (64, 64))
    np.testing.assert_allclose(u, grey / 255.0, atol=1e-15)


def test_that_a_wrong_picture_is_refused_in_one_sentence(tmp_path):
    small = write_picture(tmp_path / "small.png", np.zeros((40, 90, 3), dtype=np.uint8))
    clear = write_picture(tmp_path / "clear.png", np.zeros((64, 64, 4), dtype=np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    for path, message in ((small, "of 90 x 40 pixels, expected 64 x 64 at least"),
                          (clear, "with transparent pixels, expected an opaque picture"),
                          (tmp_path / "text.png", "which is not a readable picture, expected a PNG or JPEG file"),
                          (tmp_path / "none.png", "which does not exist, expected a PNG or JPEG file")):
        with pytest.raises(ValueError, match=f"image: got .*{path.name}.*{message}") as error:
            inpainting(image=path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("given, message", [
    ({"item": 12}, "item: got 12, expected 0 to 11"),
    ({"size": 32}, "image: got nothing, expected a picture"),
    ({"channels": 2}, "channels: got 2, expected 1 or 3"),
    ({"noise": 0.0}, "noise: got 0.0, expected a standard deviation > 0"),
    ({"metric_range": "byte"}, "metric_range: got 'byte', expected unit or official"),
    ({"truth": np.full((3, 64, 64), 2.0)}, r"truth: got shape \(3, 64, 64\) with values 2 to 2, expected"),
    ({"observation": np.zeros(5)}, r"observation: got shape \(5,\), expected \(3, 64, 64\) or \(12288,\)"),
])
def test_that_bad_options_are_refused_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        inpainting(**given)


@pytest.mark.parametrize("name", BUILDERS)
def test_that_the_figure_has_the_panels_it_promises(name):
    pytest.importorskip("matplotlib")
    problem, rng = BUILDERS[name](), np.random.default_rng(0)
    ensemble = problem.truth + 0.05 * rng.standard_normal((6, 3, 64, 64))
    result = {"ensemble": ensemble, "mean": ensemble.mean(axis=0), "std": ensemble.std(axis=0),
              "observation": problem.observation.y, "truth": problem.truth, "caption": ["A sentence."]}
    titles = [axis.get_title() for axis in problem.figure(result).axes]
    for wanted in ("truth", "observation", "mean", "error |mean - truth|", "spread (standard deviation)", "particle 0"):
        assert wanted in titles
    del result["truth"]
    assert "truth" not in [axis.get_title() for axis in problem.figure(result).axes]


def test_that_the_problem_names_what_solves_it():
    from enkg_ref.methods import METHODS, choose

    for build in BUILDERS.values():
        problem = build()
        assert choose(problem, True, {})[0] == problem.method and problem.budget > 0
        assert METHODS[problem.method].access <= {"forward", "denoiser", "denoiser_vjp", "forward_vjp"}
        assert choose(problem, True, {"particles": 8})[0] == "enkg"
