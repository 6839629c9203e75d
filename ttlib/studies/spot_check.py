"""The spot check: some recorded rollouts are made again on this machine and compared, decision by decision.

Processors round differently, so a decision may differ where two actions are worth the same.  The replayed rollout then
acts as the record says, so that later decisions are compared in the same states.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from ttlib import files
from ttlib.control import TransformerAgent
from ttlib.environments import stepping
from ttlib.pipeline import places, provenance, results
from ttlib.studies import jobs

NEAR = 1e-3  # of the spread of the candidates' values: nearer values count as equal
ROUNDING = 3e-6  # of the value: what fp32 leaves open where all candidates are near copies of each other
EXCUSED = 0.02  # of all decisions may differ, each between actions of equal value
CONTINUOUS = 0.01  # actions that have no bins count as equal within this distance


@dataclass(frozen=True)
class Recorded:
    """One rollout of a record, and the set that it belongs to."""

    record: str
    run: object  # a RolloutSet, or `four_rooms.Walks`
    row: dict

    def __str__(self) -> str:
        return f"{self.record}, {self.run}, seed {self.row['rollout_seed']}"

    def listed(self, column: str) -> np.ndarray:
        """Return a column of JSON: a number, or a row of them, for each decision."""
        return np.array(json.loads(self.row[column]))


@dataclass
class Replay:
    """An agent that decides as `agent` does, but acts by the actions recorded of each rollout while there are some."""

    agent: object
    recorded: list[np.ndarray]

    def reset(self, seeds) -> None:
        """Begin a rollout for each seed."""
        self.agent.reset(seeds)
        self.live, self.decided = list(range(len(seeds))), [[] for _ in seeds]

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict]:
        """Return recorded actions (E, M) for states (E, N); note what the agent decided."""
        actions, record = self.agent.act(states)
        decided = record.get("bins", actions)
        values = record.get("value", record.get("log_p", np.full(len(states), np.nan)))
        forced = np.array(decided)
        for row, i in enumerate(self.live):
            if (t := len(self.decided[i])) < len(self.recorded[i]):
                forced[row] = self.recorded[i][t]
            self.decided[i].append((decided[row], values[row]))
        if isinstance(self.agent, TransformerAgent):
            tokenizer = self.agent.tokenizer
            bins = torch.as_tensor(forced, device=self.agent.device)
            self.agent.action_ids = bins + tokenizer.offset[tokenizer.transition.action]
            actions = tokenizer.decode(self.agent.action_ids).cpu().numpy()
        return actions, record

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Tell the agent what followed."""
        self.agent.observe(rewards, going_on)
        self.live = [i for i, goes_on in zip(self.live, going_on, strict=True) if goes_on]


def recorded(size: str) -> list[Recorded]:
    """Return every rollout in the records of a size whose key is right."""
    found = []
    for name, runs in jobs.checkable(size).items():
        try:
            table, _ = results.read(places.records(size) / f"{name}.csv")
        except (FileNotFoundError, ValueError):
            continue
        for run in runs:
            rows = table[(table.key == run.key) & (table.setting == run.setting)]
            found += [Recorded(name, run, row) for row in rows.to_dict("records")]
    return found


def chosen(every: list[Recorded], share: float, word: str) -> list[Recorded]:
    """Return a share of the rollouts, at least one of every record.  `word` decides which."""
    rng = np.random.default_rng(list(hashlib.sha256(word.encode()).digest()))
    order = [every[i] for i in rng.permutation(len(every))]
    first = {one.record: one for one in reversed(order)}
    rest = [one for one in order if one is not first[one.record]]
    picked = [*first.values(), *rest[: max(0, round(share * len(every)) - len(first))]]
    return sorted(picked, key=lambda one: str((one.record, str(one.run), one.row["rollout_seed"])))


def whole(every: list[Recorded], word: str) -> list[Recorded]:
    """Return for each robot a rollout of the planner that is made to its end."""
    planned = [one for one in every if one.record == "table1_rollouts" and one.run.method == "tto"]
    return list({one.run.exp.data.task: one for one in chosen(planned, 1.0, word)}.values())


def again(some: list[Recorded], to_the_end: bool) -> list[tuple[int, int, list[str]]]:
    """Make rollouts of one set again, in one batch.

    Returns for each the decisions compared, those excused, and a sentence for each that is wrong.
    """
    actions, seeds = [one.listed("actions") for one in some], [one.row["rollout_seed"] for one in some]
    make, agent, options = some[0].run.begin(seeds)
    replay, steps = Replay(agent, actions), max(map(len, actions))
    limited = make if to_the_end else lambda: gymnasium.wrappers.TimeLimit(make(), steps)
    runs, found = stepping.rollouts(limited, replay, seeds, options), []
    for one, run, decided, known in zip(some, runs, replay.decided, actions, strict=True):
        excused, wrong = compare(one, decided)
        ours, theirs = (run.total, len(run.rewards)), (one.row["return"], one.row["length"])
        if len(decided) < len(known):
            wrong.append(f"{one}: it ended at step {ours[1]}, and {len(known)} decisions are recorded")
        elif to_the_end and not excused and not wrong and not np.allclose(ours, theirs, rtol=1e-3):
            wrong.append(f"{one}: return {ours[0]:.6g}, length {ours[1]}; recorded are {theirs[0]:.6g}, {theirs[1]}")
        found.append((min(len(known), len(decided)), excused, wrong))
    return found


def compare(one: Recorded, decided: list[tuple]) -> tuple[int, list[str]]:
    """Compare decisions with a record -> how many differ and are excused, and a sentence for each that is wrong."""
    actions, values, spreads = (one.listed(column) for column in ("actions", "values", "spreads"))
    excused, wrong = 0, []
    for t, (action, value) in enumerate(decided[: len(actions)]):
        near = np.inf
        if len(values):
            near = max(NEAR * (spreads[t] if len(spreads) else 1.0), ROUNDING * abs(values[t]))
        equal_value = not len(values) or abs(value - values[t]) <= near
        same = np.abs(action - actions[t]).max() <= (0 if actions.dtype.kind == "i" else CONTINUOUS)
        if same and not equal_value:
            wrong.append(f"{one}, step {t}: value {value:.6g}; {values[t]:.6g} is recorded, and {near:.2g} is allowed")
        elif not same and len(values) and equal_value:
            excused += 1
        elif not same:
            wrong.append(f"{one}, step {t}: action {action.tolist()}; {actions[t].tolist()} is recorded")
    return excused, wrong


def check(size: str, share: float = 0.05) -> tuple[str, list[str]]:
    """Make a share of the recorded rollouts again -> a sentence, and a line for each decision that is wrong.

    Another commit chooses other rollouts.  The sentence is kept for the ledger's page.
    """
    every, word = recorded(size), provenance.commit()
    if not every:
        return f"there are no recorded rollouts of size {size} to check", []
    to_the_end = whole(every, word)
    picked = [one for one in chosen(every, share, word) if one not in to_the_end]
    batches = [[one] for one in to_the_end]
    batches += [list(some) for _, some in itertools.groupby(picked, lambda one: (one.record, str(one.run)))]
    outcomes = []
    for some in batches:
        outcomes += again(some, some[0] in to_the_end)
        results.say(f"checked {some[0]}" + f" and {len(some) - 1} more" * (len(some) > 1))
    decisions, excused = (sum(outcome[i] for outcome in outcomes) for i in (0, 1))
    wrong, equal = [line for *_, lines in outcomes for line in lines], sum(not lines for *_, lines in outcomes)
    if excused > EXCUSED * decisions:
        wrong.append(f"{excused} of {decisions} decisions differ between actions of equal value: too many for rounding")
    sentence = f"checked {len(outcomes)} of {len(every)} recorded rollouts on this machine: {equal} equal"
    sentence += f" ({decisions} decisions, {excused} of them between actions of equal value)"
    path, about = places.BUILD / f"spot-check-{size}.json", {"sentence": sentence, "commit": word, "wrong": wrong}
    files.write_aside(path, lambda aside: aside.write_text(json.dumps(about | provenance.here(), indent=1)))
    return sentence, wrong
