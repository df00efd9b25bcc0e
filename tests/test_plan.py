"""Which method and which settings a run has where nobody names them."""

import dataclasses
import math

import numpy as np
import pytest

from enkg_ref import Gaussian
from enkg_ref.methods import METHODS, Item, choose
from enkg_ref.plan import OWN_BUDGET, collapse_budget
from problems.problem import Observation, Problem


def item(m=12, d=20, **defaults):
    H = np.random.default_rng(0).standard_normal((d, m))
    problem = Problem(name="own", event_shape=(d,), forward=lambda x: x @ H, observation=Observation(np.zeros(m), 0.1),
                      defaults=defaults)
    return Item(problem, Gaussian(np.zeros(m), 0.1), lambda x, sigma: x / (1 + sigma**2))


def plan(item, budget=None, **settings):
    return METHODS["enkg"].plan(item, budget, 1.0, 0, settings)


@pytest.mark.parametrize("m, d, steps", [(12, 20, 40), (3, 20, 40), (500, 20, 20), (30, 20, 10), (12, 5, 40)])
def test_that_the_whole_run_of_an_own_problem_spends_the_collapse_budget(m, d, steps):
    made = plan(item(m, d), steps=steps, particles=10)
    rank = min(m, 9, d)
    spent = made.waves * made.settings["guidance"] / math.sqrt(rank)
    assert spent == pytest.approx(collapse_budget(steps))
    assert made.settings["stop"] == "particle" and f"guidance {made.settings['guidance']:.2g}" in made.why


def test_that_the_guidance_of_an_own_problem_never_exceeds_two():
    assert plan(item(400, 2000), steps=10, particles=2000).settings["guidance"] == 2.0


def test_that_an_own_problem_makes_the_calls_of_a_budget_unless_its_size_is_given():
    assert OWN_BUDGET - plan(item()).waves < plan(item()).rows * plan(item()).waves <= OWN_BUDGET
    assert plan(item(), particles=50).rows == 50 and plan(item(), particles=50).settings["steps"] == 40


@pytest.mark.parametrize("given", [{"guidance": 0.7}, {"guidance": 0.7, "stop": "mean"}])
def test_that_a_guidance_of_the_user_is_taken_as_it_is(given):
    made = plan(item(), **given)
    assert made.settings["guidance"] == 0.7 and made.settings["stop"] == given.get("stop", "none") and made.why == ""


def test_that_a_problem_with_settings_of_its_own_keeps_them():
    made = plan(item(guidance=2.0, particles=64))
    assert (made.settings["guidance"], made.rows, made.settings["stop"]) == (2.0, 64, "none")


def test_that_paper_is_the_published_step_and_nothing_around_it():
    made = plan(item(), paper=True)
    assert (made.settings["guidance"], made.settings["stop"], made.settings["guard"]) == (2.0, "none", 0.0)
    forward = made.around(lambda x: "untouched")
    assert forward(None) == "untouched"


def test_that_the_method_is_chosen_by_what_is_at_hand():
    own, tuned = item().problem, item(guidance=2.0).problem
    assert choose(own, True, {})[0] == "enkg-r"
    assert choose(own, False, {})[0] == "enkg" and "--reference" in choose(own, False, {})[1]
    assert choose(tuned, True, {})[0] == "enkg"
    assert choose(own, True, {"step_rule": "trace"}) == ("enkg", "--step-rule belongs to it")
    assert all(words for _, words in (choose(own, True, {}), choose(tuned, True, {})))


def test_that_a_preset_fixes_its_levels():
    for name, value in (("steps", 10), ("window", (0.1, 0.1))):
        with pytest.raises(ValueError, match=f"{name}: got .* with a preset"):
            plan(item(), preset="ffhq-official", **{name: value})
    with pytest.raises(ValueError, match="budget: got 100 with a preset"):
        plan(item(), 100, preset="ffhq-official")
    assert dataclasses.asdict(METHODS["enkg"].memory)["collapse_budget"] == 0.0
