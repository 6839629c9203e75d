"""Named configs: all of them hold together, and what is not there is named."""

import itertools
from dataclasses import FrozenInstanceError, replace

import pytest

from ttlib.pipeline import experiments, places

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
    planned = e.plan.horizon if e.plan else e.horizon
    assert e.past >= 0 and planned >= 1 and e.past + planned <= e.model.T
    if e.plan:
        assert e.model.transition.rewards
        assert (e.plan.gamma, e.plan.include_current) == (e.bins.gamma, e.bins.include_current)
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
    replace(e, past=e.model.T - planned)
    past = e.model.T - planned + 1
    message = rf"{e.label}: {past} past \+ {planned} planned transitions > window of {e.model.T}"
    with pytest.raises(ValueError, match=message):
        replace(e, past=past)


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


def test_configs_are_frozen_and_typos_fail():
    e = experiments.get(experiments.names()[0])
    with pytest.raises(FrozenInstanceError):
        e.past = 0
    with pytest.raises(TypeError, match="pasts"):
        replace(e, pasts=0)
