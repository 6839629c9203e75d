"""Table 1, imitation and ablations as independent jobs, run here, in processes or on a Ray cluster.

A job is described by what it makes: an Experiment makes a checkpoint, a RolloutSet makes a table of steps.  It is
finished when that file exists; no other list is kept.  So a sweep that runs again skips finished jobs, and the pages
read the same files.
"""

import functools
import heapq
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from ttlib.environments import tasks
from ttlib.files import write_aside
from ttlib.native import decoder
from ttlib.pipeline import keys, places, provenance, results, store
from ttlib.pipeline.executors import Executor, LostError
from ttlib.pipeline.experiments import Experiment
from ttlib.pipeline.rollouts import RolloutSet

Job = Experiment | RolloutSet
ATTEMPTS = 3  # how often a job is run whose workers die


@functools.cache
def identity(job: Job) -> str:
    """Return a key of what a job makes.

    Experiments that only act differently share a model.  Rollouts are known by their recipe and their models.
    """
    return store.model_key(job) if isinstance(job, Experiment) else keys.key(*job.recipe(), sorted(needs(job)))


@functools.cache
def needs(job: Job) -> frozenset[str]:
    """Return the identities of the jobs that must be finished first."""
    return frozenset() if isinstance(job, Experiment) else frozenset(map(identity, job.models))


def label(job: Job) -> str:
    """Return the name of a job for readers."""
    return f"model {job.label}" if isinstance(job, Experiment) else f"rollouts {job}"


def run(job: Job) -> None:
    """Train or roll out, unless that is done already."""
    if isinstance(job, Experiment):
        store.load_or_train(job)
    else:
        job.made()


def files(job: Job) -> list[Path]:
    """Return the files that a job makes, in the order in which they are written; none while a model is missing."""
    if isinstance(job, Experiment):
        folder = store.checkpoint_folder(job)
        return [] if folder is None else [folder / name for name in ("model.safetensors", "config.json")]
    if (path := job.file()) is None:
        return []
    folders = filter(None, map(store.checkpoint_folder, job.fits))
    baselines = [folder / name for folder in folders for name in ("model.safetensors", "config.json")]
    return [*(file for file in baselines if file.exists()), path.with_suffix(".json"), path]


def files_there(job: Job) -> bool:
    """Return whether the last file of a job exists, and rollouts are as they were written."""
    made = files(job)
    return bool(made) and (made[-1].exists() if isinstance(job, Experiment) else results.kept(made[-1]) is not None)


def finished(job: Job) -> bool:
    """Return whether a job's files are there.

    Raises ValueError for rollouts that other versions of the packages made.
    """
    there = files_there(job)
    if there and isinstance(job, RolloutSet):
        check_versions(*files(job)[-2:])
    return there


def check_versions(record: Path, table: Path) -> None:
    """Raise ValueError unless these versions of the packages made a table.  The build of torch is ignored."""
    made, here = json.loads(record.read_bytes())["versions"], provenance.versions()
    pairs = [(name, made[name], here[name]) for name in sorted(made.keys() & here.keys() - {"python"})]
    if different := [f"{name} {old}, not {new}" for name, old, new in pairs if old.split("+")[0] != new.split("+")[0]]:
        raise ValueError(f"{places.shown(table)} was made with {', '.join(different)}: move it away")


def others(known: list[Job]) -> list[Path]:
    """Return rollouts in the folder that have the names of these jobs but the keys of none.

    They come from other settings, other weights or another stage of the code, and are never read.
    """
    sets = [job for job in known if isinstance(job, RolloutSet)]
    expected, names = {job.file() for job in sets}, {(job.recipe()[0], job.exp.size) for job in sets}
    return sorted({p for name in names for p in places.TABLES.glob("-".join(name) + "-*.csv")} - expected)


# -- the cost of a job -------------------------------------------------------------------------------------


def operations(job: Job) -> float:
    """Return the multiplications and additions of a job's Transformer, with episodes at full length.

    It is 0 for a job without a Transformer.
    """
    if isinstance(job, Experiment):
        tokens = job.train.updates * job.train.batch * job.model.max_tokens
        return 3 * _reading(job, tokens, job.model.max_tokens / 2)  # backward costs twice as much as forward
    exp = job.exp
    planned = exp.planned if exp.plan_window else _horizon(job)
    seen = (exp.context + planned / 2) * exp.model.transition.D
    return _decisions(job) * len(job.seeds) * _reading(exp, _tokens_per_decision(job), seen)


def _reading(exp: Experiment, tokens: float, seen: float) -> float:
    """Return the operations of reading tokens that see `seen` tokens on average, logits included."""
    model = exp.model
    layer = 12 * model.d_model**2 + 2 * model.d_model * seen
    return 2 * tokens * (model.n_layer * layer + model.d_model * model.V)


def _tokens_per_decision(job: RolloutSet) -> int:
    """Return the tokens that one decision reads: the context, the state and those of the search."""
    exp, transition, h = job.exp, job.exp.model.transition, _horizon(job)
    N, M, D = transition.N, transition.M, transition.D
    tokens = exp.context * D + N
    if job.method == "tto":
        plans, candidates = exp.plan.beam_width, exp.plan.beam_width * exp.plan.expansions
        beam = exp.plan.proposal == "beam"  # else candidates of one plan share its next state
        each = candidates * (N + M + 1) + plans if beam else candidates * (M + 1) + plans * (N + 1)
        again = plans * exp.context * D if exp.plan_window else 0  # what is left of a window that slid
        tokens += candidates * (M + 1) + (h - 1) * (each + again)
    elif job.method == "imitation":
        tokens += exp.width * max(M, h * D - N)
    return tokens


def _decisions(job: RolloutSet) -> int:
    """Return the number of decisions made one after the other; 0 without a Transformer."""
    return job.transformer * (20 if job.exp.size == "smoke" else tasks.MAX_STEPS)


def _horizon(job: RolloutSet) -> int:
    """Return how many transitions a decision looks ahead."""
    return job.exp.plan.horizon if job.method == "tto" else max(job.exp.horizon, 1)


# As page 08 measures them.
TRAINING_EFFICIENCY = 0.5  # fraction of the rate of large matrix products
PLANNING_EFFICIENCY = {"native": 0.6, "torch": 0.35}  # the same while planning, by planner
TOKEN_SECONDS = {"native": 2e-4, "torch": 1e-3}  # for each token of a plan, since these are read one after the other
START_SECONDS = {"smoke": 3.0, "laptop": 20.0, "paper": 60.0}  # of a job: process, data, policies, simulators


def seconds(job: Job, gflops: float) -> float:
    """Estimate the seconds of a job where matrices are multiplied at `gflops` GFLOP/s."""
    if isinstance(job, Experiment):
        return operations(job) / (TRAINING_EFFICIENCY * gflops * 1e9) + START_SECONDS[job.size]
    tokens = _decisions(job) * _horizon(job) * job.exp.model.transition.D
    planner = decoder.planner()
    planning = operations(job) / (PLANNING_EFFICIENCY[planner] * gflops * 1e9)
    return planning + tokens * TOKEN_SECONDS[planner] + START_SECONDS[job.exp.size]


def longest_first(todo: list[Job], cost: dict[Job, float]) -> list[Job]:
    """Sort jobs by their own cost and that of the longest job which needs them, greatest first."""
    after = Counter()
    for job in todo:
        for need in needs(job):
            after[need] = max(after[need], cost[job])
    return sorted(todo, key=lambda job: -(cost[job] + after[identity(job)]))


def makespan(todo: list[Job], cost: dict[Job, float], workers: int) -> float:
    """Return when the last job ends if each free worker takes the first job that may begin."""
    waiting, running, now = longest_first(todo, cost), [], 0.0
    unfinished = set(map(identity, todo))
    while waiting or running:
        for job in [job for job in waiting if not needs(job) & unfinished][: workers - len(running)]:
            waiting.remove(job)
            heapq.heappush(running, (now + cost[job], identity(job)))
        now, ended = heapq.heappop(running)
        unfinished.discard(ended)
    return now


# -- the sweep ---------------------------------------------------------------------------------------------


def pack(job: Job) -> dict[str, bytes]:
    """Return the content of a job's files by their path in the build folder.

    Shipped files are left out, since every node has them.
    """
    made = [path for path in files(job) if path.is_relative_to(places.BUILD)]
    return {path.relative_to(places.BUILD).as_posix(): path.read_bytes() for path in made}


def unpack(packed: dict[str, bytes]) -> None:
    """Write packed files where they are missing."""
    for name, content in packed.items():
        if not (path := places.BUILD / name).exists():
            write_aside(path, lambda aside, content=content: aside.write_bytes(content))


def work(job: Job, models: dict[str, bytes], mode: str) -> tuple[dict[str, bytes], float]:
    """Run a job on a worker; return the files it made, packed, and its seconds.

    models: packed files of the models that it needs, for a worker that shares no folder with us.
    """
    start, os.environ["TTLIB_MODE"] = time.perf_counter(), mode
    unpack(models)
    run(job)
    return pack(job), time.perf_counter() - start


class Sweep:
    """A run of the jobs that are not finished.

    gflops: the rate of a worker, which only the first estimate uses; say: a function that takes lines of progress.
    """

    def __init__(self, todo: list[Job], executor: Executor, gflops: float, say: Callable[[str], object] | None = None):
        self.executor, self.total, self.say = executor, len(todo), say or functools.partial(print, flush=True)
        self.running, self.failed, self.lost = {}, {}, Counter()
        self.spent = self.estimated = 0.0  # seconds of the jobs that ended
        waiting = [job for job in todo if not self._finished(job)]
        self.cost = {job: seconds(job, gflops) for job in waiting}
        self.waiting = longest_first(waiting, self.cost)
        self.first = self.left()

    def run(self) -> dict[Job, str]:
        """Run the jobs; return those that failed, and why.

        Jobs wait for the models that they need.  A job whose worker died runs again, ATTEMPTS times at most.  After a
        full disk no job begins.
        """
        while self.waiting or self.running:
            self._begin()
            self.say(self.progress())
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                self._end(future)
        self.say(self.progress())
        return self.failed

    def left(self) -> str:
        """Return how long the rest takes, judged by the jobs that ended."""
        scale = self.spent / self.estimated if self.estimated else 1.0
        rest = [*self.waiting, *self.running.values()]
        time_ = makespan(rest, {job: scale * self.cost[job] for job in rest}, self.executor.slots())
        unit, length = next((u, n) for u, n in (("hours", 3600), ("minutes", 60), ("s", 1)) if time_ >= 2 * n or n == 1)
        return f"{time_ / length:.0f} {unit}"

    def progress(self) -> str:
        """Return a line that counts the jobs."""
        running = min(len(self.running), self.executor.slots())
        waiting = len(self.waiting) + len(self.running) - running
        done = self.total - len(self.waiting) - len(self.running) - len(self.failed)
        return (
            f"{done} of {self.total} jobs done, {running} running, {waiting} waiting, {len(self.failed)} failed; "
            f"about {self.left()} left (first estimate {self.first})"
        )

    def _finished(self, job: Job) -> bool:
        """Return whether nothing is to be done for a job; files that must not be used make it fail."""
        try:
            return finished(job)
        except ValueError as error:
            self._fail(job, str(error))
            return True

    def _fail(self, job: Job, why: str) -> None:
        """Note why a job failed."""
        self.failed[job] = why
        self.say(f"failed: {label(job)}: {why}")

    def _begin(self) -> None:
        """Submit the jobs that may begin, and give up those whose model failed."""
        unfinished = set(map(identity, [*self.waiting, *self.running.values()]))
        broken, waiting = set(map(identity, self.failed)), self.waiting
        self.waiting = []
        for job in waiting:
            full = not self.executor.queues and len(self.running) >= self.executor.slots()
            if needs(job) & broken:
                self._fail(job, "its model failed")
            elif needs(job) & unfinished or full:
                self.waiting.append(job)
            else:
                self._submit(job)

    def _submit(self, job: Job) -> None:
        """Give a job and its models to the executor."""
        models = [] if isinstance(job, Experiment) else job.models
        packed = {name: content for exp in models for name, content in pack(exp).items()}
        call = functools.partial(work, job, packed, places.mode())
        gpu = isinstance(job, Experiment) or bool(models)
        self.running[self.executor.submit(call, label(job), gpu)] = job

    def _end(self, future: Future) -> None:
        """Take the result of a job that ended."""
        job = self.running.pop(future)
        try:
            self._take(job, *self.executor.result(future))
        except LostError as error:
            self._lose(job, error)
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # Ray wraps the error of the job
            self._fail(job, f"{type(cause).__name__}: {cause}"[:500].split("\n")[0])
            if "No space left on device" in str(cause):
                self._stop()

    def _take(self, job: Job, made: dict[str, bytes], spent: float) -> None:
        """Write the files that a job made.  Raises RuntimeError where they are not the expected ones."""
        unpack(made)
        if not finished(job):
            raise RuntimeError("its worker made other files than these: does it have another version of ttlib?")
        self.spent, self.estimated = self.spent + spent, self.estimated + self.cost[job]

    def _lose(self, job: Job, error: LostError) -> None:
        """Run a job again whose worker died, unless that happened too often."""
        self.lost[job] += 1
        if self.lost[job] < ATTEMPTS:
            self.say(f"again: {label(job)}: {error}")
            self.waiting.insert(0, job)
        else:
            self._fail(job, f"{error}, {ATTEMPTS} times")

    def _stop(self) -> None:
        """Begin no more jobs, since the disk is full."""
        self.say(f"the disk is full, {len(self.waiting)} jobs are not begun: free some space, run this again")
        self.failed |= dict.fromkeys(self.waiting, "not begun: the disk is full")
        self.waiting = []
