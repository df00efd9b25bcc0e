"""EnKG-R, several levels: the library against the literal run of `regressed_equations`, with a history that ages."""

import math

import numpy as np
import pytest
import regressed_equations as spec

from enkg_ref import Gaussian, iterate, member_normals
from enkg_ref.enkg_r.method import Config, EnKGR, hold_above_4
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.enkg_r.regression import RIDGES, SMALLEST_LOCAL_WEIGHT

J, D, M, R = 5, 6, 3, 5


def _world(seed):
    """A prior with five modes of six, a table of ratios below one, a denoiser and a forward model that are curved."""
    rng = np.random.default_rng(seed)
    modes = np.linalg.qr(rng.standard_normal((D, D)))[0][:, :R]
    variances, table = 2.0 / (1.0 + np.arange(R)) ** 2, rng.uniform(0.3, 0.9, (2, R + 1))
    reference = Reference(0.3 * rng.standard_normal(D), modes, variances, 0.05, [0.2, 0.8], table)
    A, y = rng.standard_normal((D, M)), rng.standard_normal(M)

    def denoise(x, s):
        return 0.6 * x + 0.2 * np.sin(x) / (1.0 + s)

    def forward(x):
        return x @ A + 0.2 * x[:, :M] ** 2

    return reference, denoise, forward, y


SETTINGS = {
    # rows leave the history after three levels, and so do far ones; one level is held
    "forgetting": ({"memory": 0.55, "min_weight": 0.2, "steepest": 0.6, "locality": 4.0}, 0.05),
    # everything is remembered, s falls to the noise floor in three steps
    "remembering": ({"memory": 0.9, "min_weight": 0.05, "steepest": 0.0, "locality": 0.3, "noise_floor": 0.4,
                     "hold": None}, 0.7),
    # no metric and no locality, c_R small
    "plain": ({"memory": 0.7, "min_weight": 0.3, "locality": 0.0, "metric": 0.0, "model_noise": 0.1, "hold": None},
              0.4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_of_six_levels_equals_the_loops(name):
    """(E1)-(E6), (E9): memory, min_weight, locality, metric, the choice of the ridge, C_s and its table, R, the
    re-noising, the hold and the fall of s. Any of them changed gives other particles.
    """
    changes, sd = SETTINGS[name]
    reference, denoise, forward, y = _world(list(SETTINGS).index(name))
    config = Config(**{"particles": J, "levels": 6, "sigma_start": 1.2, "sigma_end": 0.08, "model_noise": 0.4,
                       "seed": 11, **changes})
    method = EnKGR(denoise, Gaussian(y, sd), reference, config)
    noise = member_normals(11, 0, J, (D,))
    got = list(iterate(method, forward, method.init(noise)))

    settings = {**{field: getattr(config, field) for field in Config.__dataclass_fields__},
                "hold": config.hold is hold_above_4, "ridges": RIDGES, "smallest_local_weight": SMALLEST_LOCAL_WEIGHT}
    expected = spec.run(
        lambda x, s: denoise(np.array([x]), s)[0].tolist(), lambda x: forward(np.array([x]))[0].tolist(), y.tolist(),
        [sd] * M, (reference.mean.tolist(), reference.modes.T.tolist(), reference.variances.tolist(), reference.rest,
                   reference.table_sigmas.tolist(), reference.table.tolist()), noise.tolist(),
        lambda level, kind, rows, length: member_normals(11, 1 + 4 * level + kind, rows, (length,)).tolist(), settings)
    for (state, info), wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(state.x, wanted["x"], rtol=1e-8, atol=1e-8)
        for field in ("sigma", "kappa", "gain", "noise_ratio"):
            assert math.isclose(getattr(info, field), wanted[field], rel_tol=1e-8), (info.level, field)
        assert math.isclose(info.ridge, wanted["ridge"]) and info.evaluations == wanted["rows"]
    if name == "forgetting":  # the run visits what the test is about
        assert {info.evaluations for _, info in got[2:]} == {3 * J} and any(info.held for _, info in got)
    assert len({info.ridge for _, info in got}) > 1
