"""Named configs: all of them hold together, and what is not there is named."""

import itertools
from dataclasses import fields, replace

import pytest

from ttlib.model import ModelConfig
from ttlib.pipeline import experiments, places, store
from ttlib.search import Plan
from ttlib.train import TrainConfig

EVERY = list(itertools.product(experiments.names(), places.SIZES, experiments.PROFILES))


def get_or_skip(name, size, profile):
    try:
        return experiments.get(name, size, profile)
    except ValueError as error:
        assert name in str(error) or size in str(error)  # what is not there says so
        pytest.skip(str(error))


@pytest.mark.parametrize("name, size, profile", EVERY)
def test_parts_of_an_experiment_agree(name, size, profile):
    e = get_or_skip(name, size, profile)
    assert (e.name, e.size, e.profile) == (name, size, profile)
    assert e.model.V == e.bins.V and (e.model.prefix == e.model.transition.N) == e.goal
    assert e.goal or e.model.prefix == 0
    assert e.context >= 0 and e.planned >= 1 and e.context + e.planned <= e.model.T
    if e.plan:
        assert e.model.transition.rewards
        assert (e.plan.gamma, e.plan.reward_in_R) == (e.bins.gamma, e.bins.reward_in_R)
    assert experiments.get(name, size, profile) == e


@pytest.mark.parametrize("size", places.SIZES)
def test_experiments_of_a_size_have_labels_of_their_own(size):
    made = [get_or_skip(name, size, profile) for name, s, profile in EVERY if s == size]
    assert len({e.label for e in made}) == len(made)


def test_there_is_an_experiment_of_every_name_at_laptop_size():
    for name in experiments.names():
        assert any(experiments.get(name, "laptop", profile) for profile in experiments.PROFILES)


@pytest.mark.parametrize("name, size, profile", [e for e in EVERY if e[1] != "paper"])
def test_more_transitions_than_the_window_holds_are_refused(name, size, profile):
    e = get_or_skip(name, size, profile)
    planned = e.plan.horizon if e.plan else e.horizon
    replace(e, context=e.model.T - planned)
    context = e.model.T - planned + 1
    message = rf"{e.label}: {context} context \+ {planned} planned transitions > window of {e.model.T}"
    with pytest.raises(ValueError, match=message):
        replace(e, context=context)


def test_unknown_names_are_answered_with_the_nearest():
    known = experiments.names()[0]
    with pytest.raises(ValueError, match=rf"experiment '{known}x' \(did you mean '{known}'\?\): .*{known}"):
        experiments.get(f"{known}x")
    with pytest.raises(ValueError, match=rf"unknown experiment 'zzzz': .*{known}"):
        experiments.get("zzzz")
    with pytest.raises(ValueError, match=r"unknown size 'big'; .*'smoke', 'laptop', 'paper'"):
        experiments.get(known, size="big")
    with pytest.raises(ValueError, match=r"unknown profile 'v2'; .*'v1', 'released'"):
        experiments.get(known, profile="v2")


def test_a_later_layer_overrides_an_earlier_one_and_names_no_unknown_setting():
    known = {f.name for config in (ModelConfig, TrainConfig, Plan, experiments.Bins, experiments.Experiment)
             for f in fields(config)}  # fmt: skip
    known |= {"plan_horizon", "window_tokens", "epochs", "epoch", "windows", "tokens"}
    for _, _, _, values, reason in experiments.LAYERS:
        assert values.keys() <= known and reason
    found = experiments.settings("hopper-medium-replay", "laptop", "released")
    assert (found["plan_horizon"], found["beam_width"], found["context"], found["T"]) == (2, 16, 3, 6)
    assert experiments.settings("hopper-medium-replay-v2", "laptop", "released") == found


def test_at_paper_size_the_released_profile_has_the_authors_settings_of_each_dataset():
    """config/offline.py: plan horizon, beam width, epochs of a million steps."""
    theirs = {
        "halfcheetah-medium": (5, 32, 50), "halfcheetah-medium-replay": (5, 32, 50),
        "halfcheetah-medium-expert": (15, 32, 50), "hopper-medium": (15, 128, 50),
        "hopper-medium-replay": (15, 128, 80), "hopper-medium-expert": (15, 128, 50), "walker2d-medium": (15, 128, 50),
        "walker2d-medium-replay": (20, 32, 80), "walker2d-medium-expert": (5, 128, 50),
    }  # fmt: skip
    for name in experiments.TABLE1:
        e = experiments.get(name, "paper", "released")
        found = e.plan.horizon, e.plan.beam_width, e.train.updates * e.train.batch / 1e6
        assert found == pytest.approx(theirs[name], rel=1e-3)
        few = name == "walker2d-medium-replay"
        assert (e.likeliest, e.plan.drop_probability) == ((40, 0.0) if few else (None, 0.6))
        assert (e.context, e.plan_window, e.model.T, e.plan.expansions) == (4, 5, 10, 2)
        assert experiments.get(name, "laptop", "released").plan_window is None
    for context, window, message in (
        (5, 5, "plan_window=5 with 5 context; expected at least 2, and more"),
        (0, 1, "plan_window=1 with 0 context; expected at least 2, and more"),
        (4, 11, r"4 context \+ 7 planned transitions > window of 10"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(e, context=context, plan_window=window)


def test_one_model_is_one_training_whatever_its_name():
    """At paper size hopper-long is Table 1's model of hopper-medium-replay."""
    for profile in experiments.PROFILES:
        long, short = (experiments.get(n, "paper", profile) for n in ("hopper-long", "hopper-medium-replay"))
        assert store.model_key(long) == store.model_key(short) and long.context == short.context


def test_rollout_seeds_that_do_not_divide_are_refused():
    e = experiments.get("hopper-medium", "paper")
    with pytest.raises(ValueError, match="14 rollout seeds; expected a multiple of the 5 models"):
        experiments.models(replace(e, seeds=tuple(range(14))))
