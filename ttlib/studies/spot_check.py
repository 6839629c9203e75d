"""The spot check: some recorded rollouts are made again on this machine and compared, decision by decision.

Processors round differently.  So a decision may differ where two actions are worth the same, or where a draw or the
filter of unlikely actions falls on an edge between two bins.  The second case shows when the decision is made again
with noise of the size of rounding errors: one of several tries then gives the recorded action.  A replayed rollout acts
as the record says, so that all decisions are compared in the same states.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable
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
NOISE, TRIES = 1e-5, 8  # of log-probabilities in another try, in nats; how many tries
EXCUSED, EXCUSED_WORD = 0.02, "~"  # of all decisions may differ by rounding
CONTINUOUS = 0.01  # actions that have no bins count as equal within this distance


@dataclass(frozen=True)
class Recorded:
    """One rollout of a record, and the set that it belongs to."""

    record: str
    run: object  # a RolloutSet, or `four_rooms.Walks`
    row: dict
    alike: bool = True  # it was made by the same planner on a processor with the same instructions

    def __str__(self) -> str:
        return f"{self.record}, {self.run}, seed {self.row['rollout_seed']}"

    @functools.cached_property
    def actions(self) -> np.ndarray:
        """The recorded actions, or their bins.  (T, M)"""
        return np.array(json.loads(self.row["actions"]))

    @functools.cached_property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The recorded values of the chosen plans, and how near a value must come to each.  (T,) both, or empty"""
        values, spreads = (np.array(json.loads(self.row[name]), float) for name in ("values", "spreads"))
        if self.actions.dtype.kind == "f":  # recorded actions are rounded, and the simulator's states drift apart
            return values, NEAR * np.abs(values)
        return values, np.maximum(NEAR * (spreads if len(spreads) else 1.0), ROUNDING * np.abs(values))

    def judge(self, t: int, action: np.ndarray, value: float) -> str:
        """Compare decision t -> an empty string, EXCUSED_WORD, or a sentence that says what is wrong."""
        if t >= len(self.actions):
            return ""
        known, (values, near) = self.actions[t], self.values
        same = np.abs(action - known).max() <= (0 if known.dtype.kind == "i" else CONTINUOUS)
        equal_value = not len(values) or abs(value - values[t]) <= near[t]
        if same and not equal_value:
            return f"{self}, step {t}: value {value:.7g}; {values[t]:.7g} is recorded, and {near[t]:.2g} is allowed"
        if not same and len(values) and equal_value:
            return EXCUSED_WORD
        return "" if same else f"{self}, step {t}: action {action.tolist()}; {known.tolist()} is recorded"


def shaken(reader: Callable, generator: torch.Generator) -> Callable:
    """Return a decoder, as `control.Decoder`, whose log-probabilities have noise of the size of rounding errors."""

    class Shaken:
        """The decoder `reader`, with noise."""

        def __init__(self, *arguments):
            self.exact = reader(*arguments)
            self.tokenizer, self.select_plans = self.exact.tokenizer, self.exact.select_plans
            self.log_p = self._noisy(self.exact.log_p)

        def _noisy(self, log_p: torch.Tensor) -> torch.Tensor:
            return log_p + NOISE * torch.randn(log_p.shape, generator=generator).to(log_p.device)

        def advance(self, bins: torch.Tensor, parents: torch.Tensor | None) -> torch.Tensor:
            """Append bins as `control.Decoder` does."""
            return self._noisy(self.exact.advance(bins, parents))

    return Shaken


class Replay:
    """An agent that decides as `agent` does, but acts by the actions recorded of each rollout while there are some.

    verdicts: for each rollout and decision an empty string, EXCUSED_WORD, or a sentence that says what is wrong.
    """

    def __init__(self, agent, some: list[Recorded]):
        self.agent, self.some = agent, some

    def reset(self, seeds) -> None:
        """Begin a rollout for each seed."""
        self.agent.reset(seeds)
        self.live, self.verdicts = list(range(len(seeds))), [[] for _ in seeds]

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict]:
        """Return recorded actions (E, M) for states (E, N); note what the agent decided."""
        transformer = isinstance(self.agent, TransformerAgent)
        before = [g.get_state() for g in self.agent.streams.generators] if transformer else []
        actions, record = self.agent.act(states)
        after = [g.get_state() for g in self.agent.streams.generators] if transformer else []
        verdicts, generator = self._judged(actions, record), torch.Generator().manual_seed(0)
        reader = self.agent.decoder if transformer else None
        for _ in range(TRIES * transformer * any(len(verdict) > 1 for verdict in verdicts)):
            self._set(before)
            self.agent.decoder = shaken(reader, generator)
            tried = self._judged(*self.agent.act(states))
            verdicts = [EXCUSED_WORD if len(old) > 1 >= len(new) else old for old, new in zip(verdicts, tried)]
        actions = self._forced(record.get("bins", actions))
        if transformer:  # it shall believe that it took these actions
            self._set(after)
            self.agent.decoder, tokenizer = reader, self.agent.tokenizer
            bins = torch.as_tensor(actions, device=self.agent.device)
            self.agent.action_ids = bins + tokenizer.offset[tokenizer.transition.action]
            actions = tokenizer.decode(self.agent.action_ids).cpu().numpy()
        for i, verdict in zip(self.live, verdicts, strict=True):
            self.verdicts[i].append(verdict)
        return actions, record

    def _set(self, states: list[torch.Tensor]) -> None:
        """Set the random numbers of the agent back, or forward."""
        for generator, state in zip(self.agent.streams.generators, states, strict=True):
            generator.set_state(state)

    def _judged(self, actions: np.ndarray, record: dict) -> list[str]:
        """Return `judge` of the decisions of all rollouts that go on."""
        decided = record.get("bins", actions)
        values = record.get("value", record.get("log_p", np.full(len(actions), np.nan)))
        rows = zip(self.live, decided, values, strict=True)
        return [self.some[i].judge(len(self.verdicts[i]), action, value) for i, action, value in rows]

    def _forced(self, decided: np.ndarray) -> np.ndarray:
        """Return the recorded actions, or their bins, in place of those that were decided.  (E, M)"""
        decided = decided.copy()
        for row, i in enumerate(self.live):
            if (t := len(self.verdicts[i])) < len(self.some[i].actions):
                decided[row] = self.some[i].actions[t]
        return decided

    def observe(self, rewards: np.ndarray, going_on: np.ndarray) -> None:
        """Tell the agent what followed."""
        self.agent.observe(rewards, going_on)
        self.live = [i for i, goes_on in zip(self.live, going_on, strict=True) if goes_on]


def recorded(size: str) -> list[Recorded]:
    """Return every rollout in the records of a size whose key is right."""
    found, here = [], provenance.here()
    for name, runs in jobs.checkable(size).items():
        try:
            table, about = results.read(places.records(size) / f"{name}.csv")
        except (FileNotFoundError, ValueError):
            continue
        alike = all(about.get(key) == here[key] for key in ("planner", "instructions"))
        for run in runs:
            rows = table[(table.key == run.key) & (table.setting == run.setting)]
            found += [Recorded(name, run, row, alike) for row in rows.to_dict("records")]
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
    seeds, steps = [one.row["rollout_seed"] for one in some], max(len(one.actions) for one in some)
    make, agent, options = some[0].run.begin(seeds)
    replay, found = Replay(agent, some), []
    limited = make if to_the_end else lambda: gymnasium.wrappers.TimeLimit(make(), steps)
    runs = stepping.rollouts(limited, replay, seeds, options)
    for one, run, verdicts in zip(some, runs, replay.verdicts, strict=True):
        known, excused = len(one.actions), verdicts.count(EXCUSED_WORD)
        wrong = [verdict for verdict in verdicts if verdict not in ("", EXCUSED_WORD)]
        ours, theirs = (run.total, len(run.rewards)), (one.row["return"], one.row["length"])
        if len(verdicts) < known:
            wrong.append(f"{one}: it ended at step {ours[1]}, and {known} decisions are recorded")
        elif to_the_end and not excused and not wrong and not np.allclose(ours, theirs, rtol=1e-3):
            other = f"{one}: return {ours[0]:.6g}, length {ours[1]}; recorded are {theirs[0]:.6g}, {theirs[1]}"
            if one.alike:
                wrong.append(other)
            else:  # after the recorded decisions rounding may lead to another way
                results.say(f"{other}: it went another way after the {known} decisions that are recorded")
        found.append((min(known, len(verdicts)), excused, wrong))
    return found


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
        wrong.append(f"{excused} of {decisions} decisions differ by rounding: too many for that")
    sentence = f"checked {len(outcomes)} of {len(every)} recorded rollouts on this machine: {equal} equal"
    sentence += f" ({decisions} decisions, {excused} of them differ by rounding)"
    path, about = places.BUILD / f"spot-check-{size}.json", {"sentence": sentence, "commit": word, "wrong": wrong}
    files.write_aside(path, lambda aside: aside.write_text(json.dumps(about | provenance.here(), indent=1)))
    return sentence, wrong
