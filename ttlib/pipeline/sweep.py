"""Table 1, imitation and ablations as independent jobs, run here, in processes or on a Ray cluster.

A job is what it makes: an Experiment, whose checkpoint is wanted, or an offline.Run, whose steps are.  It is finished
when the file is there that `stages` or `results` keeps of it, and nothing else is written down: a sweep that runs
again skips what is finished, and the pages load it.
"""

import contextlib
import functools
import heapq
import io
import json
import os
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import pandas as pd

from ttlib.environments import tasks
from ttlib.files import write_aside
from ttlib.pipeline import keys, places, provenance, results, rollouts, store
from ttlib.pipeline.executors import Inline, LostError
from ttlib.pipeline.experiments import Experiment
from ttlib.pipeline.rollouts import RolloutSet
from ttlib.studies import ablations, offline_rl

Job = Experiment | RolloutSet


ATTEMPTS = 3  # of a job whose worker dies


def jobs(size: str, only: str = "") -> list[Job]:
    """Each once, and models before the rollouts that need them.  only: those of datasets whose name contains this.
    ValueError where there are none."""
    every = [*offline_rl.table1_runs(size), *offline_rl.imitation_runs(size), *ablations.ablations_runs(size)]
    runs = [run for run in every if only in run.exp.data.name]
    if not runs:
        raise ValueError(f"no dataset's name contains {only!r}; there are {sorted({r.exp.data.name for r in every})}")
    found = {}
    for job in (job for run in runs for job in (*run.models, run)):
        found.setdefault(identity(job), job)
    return list(found.values())


@functools.cache
def identity(job: Job) -> str:
    """Of what the job makes: experiments that act differently may share a model; rollouts are kept by their models."""
    return store.model_key(job) if isinstance(job, Experiment) else keys.key(*job.recipe(), sorted(needs(job)))


@functools.cache
def needs(job: Job) -> frozenset[str]:
    """Identities of the jobs that come first."""
    return frozenset() if isinstance(job, Experiment) else frozenset(map(identity, job.models))


def label(job: Job) -> str:
    if isinstance(job, Experiment):
        return f"model {job.label}"
    model = job.exp.label if job.transformer else f"{job.exp.data.name} {job.model_seed}"
    return f"rollouts {model}, {job.method}, {job.setting}"


def run(job: Job) -> None:
    """Train or roll out, unless that is done already."""
    if isinstance(job, Experiment):
        store.load_or_train(job)
    else:
        job.steps()


def files(job: Job) -> list[Path]:
    """What a job makes, in the order in which it is written: whoever has the last one has them all."""
    if isinstance(job, Experiment):
        folder = store.checkpoint_folder(job)
        return [] if folder is None else [folder / name for name in ("model.safetensors", "config.json")]
    path = job.file()
    return [] if path is None else [path.with_suffix(".json"), path]


def finished(job: Job) -> bool:
    """ValueError names rollouts that were made with other versions of the packages: they are not mixed with ours."""
    found = files(job)
    if not found or not found[-1].exists():
        return False
    if isinstance(job, RolloutSet):
        if not found[0].exists():
            raise ValueError(f"{places.shown(found[-1])} has no .json beside it that says what made it: move it away")
        made, here = json.loads(found[0].read_text())["versions"], provenance.versions()
        plain = lambda version: version.split("+")[0]  # noqa: E731 (of torch for a GPU and for none)
        apart = [f"{name} {made[name]}, not {here[name]}" for name in made.keys() & here.keys() - {"python"}
                 if plain(made[name]) != plain(here[name])]  # fmt: skip
        if apart:
            raise ValueError(f"{places.shown(found[-1])} was made with {', '.join(sorted(apart))}: move it away")
    return True


def others(known: list[Job]) -> list[Path]:
    """Rollouts in the folder under the same names as those of the jobs that belong to none of them: of other settings,
    of other weights, or of another version of this code.  They are never read."""
    runs = [job for job in known if isinstance(job, RolloutSet)]
    expected, names = {job.file() for job in runs}, {(job.recipe()[0], job.exp.size) for job in runs}
    return sorted({p for name in names for p in places.TABLES.glob("-".join(name) + "-*.csv")} - expected)


# -- what it takes -----------------------------------------------------------------------------------------


def operations(job: Job) -> float:
    """Multiplications and additions that a job's Transformer needs, episodes at full length.  0 where there is none."""
    exp = job if isinstance(job, Experiment) else job.exp
    model, transition = exp.model, exp.model.transition

    def read(tokens: float, seen: float) -> float:
        """Of reading tokens that see `seen` tokens on average, and of their logits."""
        layer = 12 * model.d_model**2 + 2 * model.d_model * seen
        return 2 * tokens * (model.n_layer * layer + model.d_model * model.V)

    if job is exp:  # forwards, and twice as much backwards
        return 3 * read(exp.train.updates * exp.train.batch * model.max_tokens, model.max_tokens / 2)
    N, M, D, h = transition.N, transition.M, transition.D, _horizon(job)
    tokens = exp.past * D + N
    if job.method == "tto":
        plans, pairs = exp.plan.plans, exp.plan.plans * exp.plan.candidates
        each = pairs * (N + M + 1) + plans if exp.plan.proposal == "beam" else pairs * (M + 1) + plans * (N + 1)
        tokens += pairs * (M + 1) + (h - 1) * each
    elif job.method == "imitation":
        tokens += exp.width * max(M, h * D - N)
    return _decisions(job) * len(job.seeds) * read(tokens, (exp.past + h / 2) * D)


def _decisions(run: RolloutSet) -> int:
    """One after the other, if a Transformer makes them."""
    return run.transformer * (20 if run.exp.size == "smoke" else tasks.MAX_STEPS)


def _horizon(run: RolloutSet) -> int:
    return run.exp.plan.horizon if run.method == "tto" else max(run.exp.horizon, 1)


# Shares of the rate of large matrix products, seconds of each of the steps that a decision takes one after the other,
# as page 08 measures them; and what else a job takes: the start of a process, data, policies, simulators.
TRAINING, PLANNING, STEP, ELSE = 0.5, 0.35, 1e-3, {"smoke": 3.0, "laptop": 20.0, "paper": 60.0}


def seconds(job: Job, gflops: float) -> float:
    """About what a job takes where matrices are multiplied at this rate (10^9 operations a second)."""
    if isinstance(job, Experiment):
        return operations(job) / (TRAINING * gflops * 1e9) + ELSE[job.size]
    steps = _decisions(job) * _horizon(job) * job.exp.model.transition.D
    return operations(job) / (PLANNING * gflops * 1e9) + steps * STEP + ELSE[job.exp.size]


def longest_first(todo: list[Job], cost: dict[Job, float]) -> list[Job]:
    """In the order in which workers take them: those first after which most remains to be done one after the other."""
    after = Counter()
    for job in todo:
        for need in needs(job):
            after[need] = max(after[need], cost[job])
    return sorted(todo, key=lambda job: -(cost[job] + after[identity(job)]))


def makespan(todo: list[Job], cost: dict[Job, float], workers: int) -> float:
    """When the last job ends if each of the workers, whenever it is free, takes the first job that may begin."""
    waiting, running, now = longest_first(todo, cost), [], 0.0
    open_ = set(map(identity, todo))
    while waiting or running:
        for job in [job for job in waiting if not needs(job) & open_][: workers - len(running)]:
            waiting.remove(job)
            heapq.heappush(running, (now + cost[job], identity(job)))
        now, ended = heapq.heappop(running)
        open_.discard(ended)
    return now


# -- the sweep -----------------------------------------------------------------------------------------


def pack(job: Job) -> dict[str, bytes]:
    """Content of a job's files by their path below the build folder; what the package ships is everywhere already."""
    found = [path for path in files(job) if path.is_relative_to(places.BUILD)]
    return {path.relative_to(places.BUILD).as_posix(): path.read_bytes() for path in found}


def unpack(given: dict[str, bytes]) -> None:
    for name, content in given.items():
        if not (path := places.BUILD / name).exists():
            write_aside(path, lambda aside, content=content: aside.write_bytes(content))


def work(job: Job, given: dict[str, bytes], mode: str) -> tuple[dict[str, bytes], float]:
    """What a worker does -> the files it made, seconds.  given: files of the models that are needed, which are not
    there if no folder is shared."""
    start, os.environ["TTLIB_MODE"] = time.perf_counter(), mode
    unpack(given)
    run(job)
    return pack(job), time.perf_counter() - start


class Sweep:
    """Runs what is not finished of some jobs.  gflops: of a worker, for the first estimate alone; say gets lines."""

    def __init__(self, todo: list[Job], executor: Inline, gflops: float, say=None):
        self.executor, self.total, self.say = executor, len(todo), say or functools.partial(print, flush=True)
        self.running, self.failed, self.lost, self.took = {}, {}, Counter(), (0.0, 0.0)
        waiting = [job for job in todo if not self._finished(job)]
        self.cost = {job: seconds(job, gflops) for job in waiting}
        self.waiting = longest_first(waiting, self.cost)
        self.first = self.left()

    def run(self) -> dict[Job, str]:
        """-> the jobs that failed, and why.  What a job needs comes first; one whose worker died is run again, up to
        ATTEMPTS times; on a full disk no more are begun."""
        while self.waiting or self.running:
            self._begin()
            self.say(self.progress())
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                self._end(future)
        self.say(self.progress())
        return self.failed

    def left(self) -> str:
        """How long the rest takes, by what jobs took so far."""
        spent, expected = self.took
        scale = spent / expected if expected else 1.0
        rest = [*self.waiting, *self.running.values()]
        time_ = makespan(rest, {job: scale * self.cost[job] for job in rest}, self.executor.slots())
        unit, length = next((u, n) for u, n in (("hours", 3600), ("minutes", 60), ("s", 1)) if time_ >= 2 * n or n == 1)
        return f"{time_ / length:.0f} {unit}"

    def progress(self) -> str:
        running = min(len(self.running), self.executor.slots())
        waiting = len(self.waiting) + len(self.running) - running
        done = self.total - len(self.waiting) - len(self.running) - len(self.failed)
        return (f"{done} of {self.total} jobs done, {running} running, {waiting} waiting, {len(self.failed)} failed; "
                f"about {self.left()} left (first estimate {self.first})")  # fmt: skip

    def _finished(self, job: Job) -> bool:
        try:
            return finished(job)
        except ValueError as error:
            self._fail(job, str(error))
            return True

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job] = why
        self.say(f"failed: {label(job)}: {why}")

    def _begin(self) -> None:
        missing = set(map(identity, [*self.waiting, *self.running.values()]))
        broken, waiting = set(map(identity, self.failed)), self.waiting
        self.waiting = []
        for job in waiting:
            if needs(job) & broken:
                self._fail(job, "its model failed")
            elif needs(job) & missing or (len(self.running) >= self.executor.slots() and not self.executor.queues):
                self.waiting.append(job)
            else:
                models = [] if isinstance(job, Experiment) else job.models
                given = {name: content for exp in models for name, content in pack(exp).items()}
                call = functools.partial(work, job, given, places.mode())
                gpu = isinstance(job, Experiment) or bool(models)
                self.running[self.executor.submit(call, label(job), gpu)] = job

    def _end(self, future: Future) -> None:
        job = self.running.pop(future)
        try:
            made, spent = self.executor.result(future)
            unpack(made)
            if not finished(job):
                raise RuntimeError("its worker made other files than these: is ttlib there of another version?")
            self.took = self.took[0] + spent, self.took[1] + self.cost[job]
        except LostError as error:
            self.lost[job] += 1
            if self.lost[job] < ATTEMPTS:
                self.say(f"again: {label(job)}: {error}")
                self.waiting.insert(0, job)
            else:
                self._fail(job, f"{error}, {ATTEMPTS} times")
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # Ray puts its own around it
            self._fail(job, f"{type(cause).__name__}: {cause}"[:500].split("\n")[0])
            if "No space left on device" in str(cause):
                self.say(f"the disk is full, {len(self.waiting)} jobs are not begun: free some space, run this again")
                self.failed |= dict.fromkeys(self.waiting, "not begun: the disk is full")
                self.waiting = []


def table1(size: str) -> tuple[pd.DataFrame, list[str]]:
    """Table 1 of the rollouts that are finished, and what is missing.  Rows: dataset, method, profile, mean and std of
    the score, n of how many `expected`.  Where the table is published whole, of these settings and weights, that is it.
    """
    runs, missing = offline_rl.table1_runs(size), []
    with contextlib.redirect_stdout(io.StringIO()):  # of what is loaded
        try:
            rows, about = results.published("table1_rollouts", size, {"runs": runs})
            whole = about["inputs"] == rollouts.keys(runs)
        except (FileNotFoundError, ValueError):
            whole = False
        if not whole:
            found = []
            for job in runs:
                try:
                    there, why = finished(job), "not there"
                except ValueError as error:
                    there, why = False, str(error)
                found += job.scores() if there else []
                missing += [] if there else [f"{label(job)}: {why}"]
            rows = pd.DataFrame(found, columns=["dataset", "method", "profile", "score"])
    columns = ["dataset", "method", "profile"]
    expected = pd.DataFrame([(r.exp.data.name, "tto" if r.transformer else r.method, r.profile, len(r.seeds))
                             for r in runs], columns=[*columns, "expected"])  # fmt: skip
    found = rows.groupby(columns).score.agg(["mean", "std", "count"]).rename(columns={"count": "n"})
    table = expected.groupby(columns, sort=False).sum().join(found).fillna({"n": 0}).astype({"n": int})
    return table.reset_index(), missing
