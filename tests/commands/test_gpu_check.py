"""Both profiles of size paper run as they are on a GPU, with fewer tokens, and their decisions are compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ttlib.commands import gpu_check
from ttlib.pipeline import experiments, rollouts, store


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def elsewhere(data, monkeypatch):
    monkeypatch.setattr(store, "REGENERATED", data)
    yield store.dataset.cache_clear()


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_the_papers_profiles_train_and_plan_with_few_tokens(profile, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "SHARE_OF_PLANS", 32)
    exp, paper = gpu_check.experiment(profile), experiments.get(gpu_check.NAME, "paper", profile)
    assert (exp.model, exp.bins, exp.context, exp.plan_window) == (
        paper.model, paper.bins, paper.context, paper.plan_window)  # fmt: skip
    assert exp.train == replace(paper.train, updates=200) and exp.plan.horizon == paper.plan.horizon
    assert gpu_check.check(profile, torch.device("cpu"), updates=2, count=2, batch=2)
    said = capsys.readouterr().out
    assert f"hours for {paper.label}" in said and "2 of 2 decisions are equal to the CPU's, and 0 more" in said


def test_decisions_agree_where_actions_or_values_are_equal():
    one = {"bins": np.array([[1, 2], [3, 4], [5, 6]]), "value": np.array([1.0, 2.0, 3.0]), "spread": np.ones(3)}
    other = {"bins": np.array([[1, 2], [3, 5], [5, 7]]), "value": np.array([1.0, 2.0005, 3.1]), "spread": np.ones(3)}
    assert gpu_check.agree(one, one) == (3, 0) and gpu_check.agree(one, other) == (1, 1)


def test_without_a_gpu_a_sentence_is_all(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rollouts, "transformer_agent", None)
    assert gpu_check.main() == 0 and capsys.readouterr().out.startswith("There is no GPU")
