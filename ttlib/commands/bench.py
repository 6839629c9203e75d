"""python -m ttlib.commands.bench: measure decisions and training on this machine, beside its matrix products.

The tables are figures/<size>/bench_*.csv: planning, training, scaling (cost against beam width, horizon, context and
environments, and whether a search keeps up with a robot) and profile (where the time of a decision goes).  Some of the
rows take a few minutes, and all of them (--all) about fifteen.  Rows that the same code measured on this machine are
not measured again, so a killed run continues where it was.

Models have random weights and a window of 20 transitions.  A decision reads five past transitions and a state.  With
one thread the clock counts the time of this process alone, which other work on the machine hardly changes; otherwise it
is the wall clock.  Each time is the shortest of several runs.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ttlib import control, cpu, files, search, tokenizer, train
from ttlib.baselines import cloning, shooting
from ttlib.baselines.ensemble import Ensemble
from ttlib.model import GPT, ModelConfig
from ttlib.native import decoder
from ttlib.pipeline import cpu_training, experiments, keys, places, provenance, results, store

WINDOW, PAST = 20, 5  # transitions
TASKS = {"hopper": experiments.HOPPER, "halfcheetah": experiments.HALFCHEETAH}
MODELS = {  # O: the authors' code; P: the paper; S: for size smoke
    "O": dict(n_layer=4, n_head=4, d_model=128),
    "P": dict(n_layer=4, n_head=6, d_model=192),
    "S": dict(n_layer=1, n_head=2, d_model=16),
}
SEARCHES = {"fast": (32, 5), "default": (128, 15)}  # plans and horizon, with two candidates per plan
CODE = (
    *("commands/bench.py", "pipeline/cpu_training.py"),
    *("native/compiling.py", "native/decoder.py", "native/planner.cpp"),
    *("model.py", "cache.py", "cpu.py", "search.py", "control.py", "train.py", "tokenizer.py"),
    *("baselines/ensemble.py", "baselines/cloning.py", "baselines/shooting.py"),
)
READERS = {"native": decoder.NativeDecoder, "torch": control.Decoder}
REAL_TIME_PAST = experiments.get(experiments.TABLE1[0], profile="released").context  # as Table 1's planner
TABLE1 = "table 1"  # the setting of rows that search as Table 1 does
ENSEMBLE = "ensemble"  # the single-step models of random shooting, which tries as many transitions as the fast search


@dataclass(frozen=True)
class Planning:
    """One row of bench_planning.csv or bench_scaling.csv: a batch of decisions."""

    task: str
    model: str
    profile: str = "released"
    planner: str = "torch"  # or native
    setting: str = "fast"  # or default; table 1; uncached: fast without a cache; other: another search
    plans: int = SEARCHES["fast"][0]
    horizon: int = SEARCHES["fast"][1]
    past: int = PAST
    environments: int = 1
    dtype: str = "float32"
    threads: int = 1
    axis: str = ""  # what varies: beam width, horizon, past, environments, real time

    @property
    def with_memory(self) -> bool:
        """Whether its memory is measured too, in a new process."""
        usual = self.threads == 1 and self.environments in (1, 16) and self.setting in SEARCHES and not self.axis
        return usual and self.profile == "released" and self.model != "S"

    @property
    def plan(self) -> search.Plan:
        """The search of its profile, or that of Table 1."""
        if self.setting == TABLE1:
            return experiments.get(experiments.TABLE1[0], profile=self.profile).plan
        v1 = self.profile == "v1"
        return search.Plan(self.horizon, self.plans, 2, reward_in_R=v1, proposal="beam" if v1 else "sample")


@dataclass(frozen=True)
class Training:
    """One row of bench_training.csv: an update of AdamW on a batch of windows of ten transitions."""

    task: str
    model: str
    setting: str = "block"  # where dropout is: "block", as in the paper, or "everywhere"
    dtype: str = "float32"
    threads: int = 1
    batch: int = 64
    environments: int = 0


class Uncached:
    """A decoder that reads every sequence anew for every token, with which the cache is compared."""

    def __init__(self, model: GPT, tokenizer_: tokenizer.Tokenizer, ids: torch.Tensor):
        self.model, self.tokenizer, self.ids = model, tokenizer_, ids[:, None]
        self.log_p = self._read()

    def _read(self) -> torch.Tensor:
        """Return log-probabilities (G, K, V) of the next token of ids (G, K, L)."""
        parts = self.ids.flatten(0, 1).split(64)
        return torch.cat([self.model(part)[:, -1] for part in parts]).log_softmax(-1).view(*self.ids.shape[:2], -1)

    def advance(self, bins: torch.Tensor, parents: torch.Tensor | None) -> torch.Tensor:
        """Append bins as `control.Decoder` does."""
        if parents is not None:
            self.ids = self.ids.take_along_dim(parents[..., None], 1)
        position, prefix = self.ids.shape[2], self.model.config.prefix
        transition = self.tokenizer.transition
        offset = transition.first_id(self.tokenizer.V, transition.dimension(position, prefix))
        self.ids = torch.cat([self.ids, bins[..., None] + offset], 2)
        return self._read()

    def select_plans(self, rows: torch.Tensor) -> None:
        """Select sequences as `control.Decoder` does."""
        whole = self.ids.view(len(rows), -1, self.ids.shape[2])
        self.ids = whole.take_along_dim(rows[..., None], 1).flatten(0, 1)[:, None]


# -- the work that is measured -----------------------------------------------------------------------------


def deciding(job: Planning) -> tuple[GPT, Callable[[], object]]:
    """Return the model, and a function that makes one batch of decisions."""
    transition, device = TASKS[job.task], store.device()
    torch.manual_seed(0)
    model = GPT(ModelConfig(transition, WINDOW, **MODELS[job.model])).eval().to(device)
    fitted = tokenizer.fit(torch.rand(1000, transition.D).T, transition, model.config.V, "uniform").to(device)
    ids = random_ids(model.config, job.environments, job.past * transition.D + transition.N).to(device)
    reader = Uncached if job.setting == "uncached" else READERS[job.planner]
    choose, streams = control.ByReward(job.plan), control.Streams(range(job.environments), device)
    return model, torch.inference_mode()(lambda: choose(reader(model, fitted, ids), streams))


def random_ids(config: ModelConfig, rows: int, length: int) -> torch.Tensor:
    """Return token ids (rows, length) whose bins are drawn uniformly."""
    transition = config.transition
    dims = [transition.dimension(i, config.prefix) for i in range(length)]
    first = torch.tensor([transition.first_id(config.V, dim) for dim in dims])
    return torch.randint(config.V, (rows, length)) + first


def shooting_through(job: Planning) -> tuple[float, Callable[[], object]]:
    """Return the necessary operations of random shooting, and a function that makes one batch of decisions.

    The ensemble is that of Table 1.  A sequence passes through the matrices of one member at every step, and through
    those of V(s) at the end.
    """
    transition, plan, rng = TASKS[job.task], job.plan, np.random.default_rng(0)
    made = Ensemble(transition.N, transition.M, experiments.SHOOTING)
    value = cloning.MLP(torch.zeros(transition.N), torch.ones(transition.N), 1, bounded=False)
    high = np.ones(transition.M)
    agent = shooting.RandomShooting(made, value, plan, -high, high)
    agent.reset(range(job.environments))
    states = rng.standard_normal((job.environments, transition.N))
    member = sum(weight[0].numel() for weight in made.weights)
    last = sum(weight.numel() for weight in value.parameters() if weight.ndim == 2)
    sequences = job.environments * plan.beam_width * plan.expansions
    return 2.0 * sequences * (plan.horizon * member + last), torch.inference_mode()(lambda: agent.act(states))


def updating(job: Training) -> tuple[GPT, Callable[[], object]]:
    """Return the model, and a function that makes one update."""
    torch.manual_seed(0)
    config = ModelConfig(TASKS[job.task], 10, dropout_where=job.setting, **MODELS[job.model])
    model, setting = GPT(config).to(store.device()), train.TrainConfig(100, job.batch, "adamw", 6e-4, clip=1.0)
    ids = random_ids(config, job.batch, config.max_tokens).to(store.device())
    optimisers, attend = train.optimisers(model, setting), cpu_training.faster(model)
    batch = (ids, torch.ones(ids.shape, device=ids.device))
    return model.train(), lambda: train.step(model, optimisers, batch, setting, 0, getattr(torch, job.dtype), attend)


# -- measurements ------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], threads: int, budget: float) -> float:
    """Return the shortest time of up to ten runs that take about `budget` seconds together.

    There are two runs at least, unless the first one takes more than four budgets.
    """
    cuda = torch.cuda.is_available()
    clock, times = time.perf_counter if cuda or threads > 1 else time.process_time, []
    while True:
        start = clock()
        work()
        if cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
        if len(times) == 10 or sum(times) >= (budget if len(times) > 1 else 4 * budget):
            return min(times)


def ceiling(dtype: torch.dtype, threads: int, budget: float) -> float:
    """Return this machine's rate of matrix products in GFLOP/s.

    It is measured beside every row, since clock rates change.
    """
    n = 8192 if torch.cuda.is_available() else 1024
    x = torch.ones(n, n, dtype=dtype, device=store.device())
    return 2e-9 * n**3 / seconds(lambda: x @ x, threads, budget / 10)


def count_operations(model: GPT, work: Callable[[], object]) -> float:
    """Return the multiplications and additions that `work` needs.

    Each token that the model reads passes through its matrices, attends to the tokens before it, and gives one set of
    logits.
    """
    config, total = model.config, 0.0

    def read(_, inputs):
        (rows, t), start = inputs[0].shape, inputs[2] if len(inputs) > 2 else 0
        layer = 12 * config.d_model**2 + 2 * config.d_model * (start + (t + 1) / 2)
        nonlocal total
        total += 2 * rows * t * (config.n_layer * layer + config.d_model * config.V)

    hook = model.register_forward_pre_hook(read)
    work()
    hook.remove()
    return total


def measure(job: Planning | Training, budget: float = 1.5) -> dict:
    """Return the measured columns of a row: rates in GFLOP/s, times in seconds, memory in megabytes."""
    torch.set_num_threads(job.threads)
    types = {"gflops_ceiling": getattr(torch, job.dtype), "gflops_fp32": torch.float32}
    row = {name: ceiling(dtype, job.threads, budget) for name, dtype in types.items()}
    if job.model == ENSEMBLE:
        operations, work = shooting_through(job)
    elif isinstance(job, Planning):
        operations, work = count_operations(*deciding(replace(job, planner="torch"))), deciding(job)[1]
    else:
        model, work = updating(job)
        operations = count_operations(model, work)
    took = seconds(work, job.threads, budget)
    if isinstance(job, Planning):
        row["seconds_per_decision"] = took / job.environments
        row["gflop_per_decision"] = 1e-9 * operations / job.environments
        row["peak_mb"] = peak(job) if job.with_memory else np.nan
    else:
        operations *= 3  # backward costs twice as much as forward
        row |= {"tokens_per_second": job.batch * 10 * TASKS[job.task].D / took}
    return row | {"share_of_ceiling": 1e-9 * operations / took / row["gflops_ceiling"]}


def peak(job: Planning) -> float:
    """Return the megabytes that a batch of decisions adds to a process which has made a small one."""
    if torch.cuda.is_available():
        _, work = deciding(job)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    command = [sys.executable, "-m", "ttlib.commands.bench", "--peak", json.dumps(asdict(job))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(job: Planning) -> float:
    """Return `peak` of this process, which is a new one; NaN if the system does not tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return np.nan
    torch.set_num_threads(job.threads)
    deciding(replace(job, plans=2, horizon=1, environments=1))[1]()
    _, work = deciding(job)
    clear.write_text("5")  # resets the peak to the current size
    highest = lambda: int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024 / 1e6  # noqa: E731
    before = highest()
    work()
    return highest() - before


KINDS = {
    "matrix products": ("mm", "addmm", "linear", "_linear"),
    "attention products": ("bmm", "baddbmm", "_scaled_dot_product"),
    "softmax, GELU, LayerNorm": ("_softmax", "gelu", "native_layer_norm", "_log_softmax"),
    "copies and indexing": ("copy_", "cat", "index", "gather", "scatter", "embedding", "fill_", "constant_pad"),
    "choosing: sort, top-k, draws": ("sort", "topk", "argmax", "cumsum", "rand", "uniform_", "searchsorted"),
}


def profile(model: str) -> Iterator[dict]:
    """Yield rows of bench_profile.csv: the fraction of a fast decision's time for each kind of operation."""
    torch.set_num_threads(1)
    for environments in (1, 16):
        _, work = deciding(Planning("hopper", model, environments=environments))
        times, calls = by_kind(work)
        for kind, took in times.items():
            row = {"task": "hopper", "model": model, "environments": environments, "dtype": "float32", "kind": kind}
            yield row | {"share": took / sum(times.values()), "calls": calls[kind]}


def by_kind(work: Callable[[], object]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the time and the number of calls of each kind of operation, after a first run."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    work()
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    times, calls = {}, {}
    for event in recorded.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("mkldnn")
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "all else, dispatch")
        times[kind] = times.get(kind, 0) + event.self_cpu_time_total
        calls[kind] = calls.get(kind, 0) + event.count
    return times, calls


# -- the rows of the tables --------------------------------------------------------------------------------


def models(size: str, whole: bool) -> list[str]:
    """Return the names of the models that are measured; whole: for every row of the tables."""
    return {"smoke": ["S"]}.get(size, ["O", "P"] if whole else ["O"])


def threads(whole: bool) -> list[int]:
    """Return the numbers of threads that are measured."""
    return [1, 2] if whole and (os.cpu_count() or 1) > 1 and not torch.cuda.is_available() else [1]


def planners() -> list[str]:
    """Return the names of the planners that are measured, the one that the pipeline takes first."""
    return ["native", "torch"] if decoder.planner() == "native" else ["torch"]


def planning_jobs(size: str, whole: bool) -> list[Planning]:
    """Return the rows of bench_planning.csv."""
    jobs = []
    for t, model, task in itertools.product(threads(whole), models(size, whole), TASKS):
        for planner in planners() if t == 1 else ["torch"]:  # the native planner has one thread
            jobs += searches(Planning(task, model, threads=t, planner=planner), size, whole)
    jobs.append(Planning("hopper", models(size, whole)[0], setting="uncached"))
    jobs += [Planning(task, ENSEMBLE, setting="random shooting") for task in TASKS]
    return [replace(job, plans=2, horizon=2) for job in jobs] if size == "smoke" else jobs


def searches(fast: Planning, size: str, whole: bool) -> list[Planning]:
    """Return the searches of one model: several numbers of environments, the default search, profile v1."""
    environments = {"smoke": (1, 2)}.get(size, (1, 4, 16, 64) if whole else (1, 16))
    plans, horizon = SEARCHES["default"]
    default = replace(fast, setting="default", plans=plans, horizon=horizon)
    jobs = [replace(fast, environments=n) for n in environments]
    if size != "smoke" and (whole or fast.task == "hopper"):
        jobs.append(default)
    if fast.threads == 1 and fast.model != "P":
        jobs += [replace(fast, profile="v1", environments=n) for n in environments[:3:2]]
        jobs += [replace(default, profile="v1")] * whole
    if fast.threads == 1 and fast.model == "O":
        jobs += [table1(fast, profile, n) for profile, n in (("released", 6), ("released", 1), ("v1", 3))]
    return jobs


def table1(fast: Planning, profile: str, environments: int) -> Planning:
    """Return the decisions of Table 1 for so many environments that still run."""
    exp = experiments.get(experiments.TABLE1[0], profile=profile)
    sizes = {"plans": exp.plan.beam_width, "horizon": exp.plan.horizon, "past": exp.context}
    return replace(fast, profile=profile, setting=TABLE1, environments=environments, **sizes)


def training_jobs(size: str, whole: bool) -> list[Training]:
    """Return the rows of bench_training.csv: fp32, and the number format that is fast on this machine."""
    dtypes = ["float32"]
    if size != "smoke" and (fast := str(cpu.fast_dtype(store.device())).removeprefix("torch.")) != "float32":
        dtypes.append(fast)
    batch = 2 if size == "smoke" else 64
    return [
        Training(task, model, where, dtype, t, batch)
        for t, dtype, model, task, where in itertools.product(
            threads(whole), dtypes, models(size, whole), TASKS, ("block", "everywhere")
        )
    ]


def scaling_jobs(size: str, whole: bool) -> list[Planning]:
    """Return the rows of bench_scaling.csv: one quantity at a time varies, and then searches for real time."""
    base = Planning("hopper", models(size, whole)[0], planner=planners()[0], setting="other")
    few = 2 if size == "smoke" else None
    varied = {
        ("beam width", "plans"): (4, 8, 16, 32, 64, 128),
        ("horizon", "horizon"): (1, 2, 5, 10, 15),
        ("past", "past"): (1, 2, 5, 10, 15),
        ("environments", "environments"): (1, 2, 4, 8, 16, 32),
    }
    jobs = [replace(base, axis=axis, **{name: n}) for (axis, name), values in varied.items() for n in values[:few]]
    # A short decision mostly reads its context.
    timed = replace(base, past=REAL_TIME_PAST, axis="real time")
    for task, horizon, plans in itertools.product(TASKS, (1, 2, 3, 5)[:few], (1, 4, 16, 64)[:few]):
        jobs.append(replace(timed, task=task, horizon=horizon, plans=plans))
    return jobs


JOBS = {"planning": planning_jobs, "training": training_jobs, "scaling": scaling_jobs}


# -- tables ------------------------------------------------------------------------------------------------


def table(name: str, size: str) -> pd.DataFrame:
    """Return bench_<name>.csv of a size, which is measured first where it is missing.

    Raises FileNotFoundError where it is missing in mode book, and ValueError for an unknown size.
    """
    path = places.folder(size) / f"bench_{name}.csv"
    if not path.exists():
        if places.mode() == "book":
            raise FileNotFoundError(f"{path} is missing: `make book` only draws; run `make SIZE={size} bench` first")
        subprocess.run([sys.executable, "-m", "ttlib.commands.bench", "--size", size], check=True)
    return pd.read_csv(path)


def as_planned(planning: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each search of bench_planning.csv: that of the native planner where there is one."""
    planning = planning.assign(planner=planning.get("planner", "torch"))
    search = ["task", "model", "profile", "setting", "plans", "horizon", "past", "environments", "dtype", "threads"]
    first = planning.sort_values("planner", kind="stable").drop_duplicates(search)  # "native" stands before "torch"
    return first.sort_index()


def machine() -> str:
    """Return the name of the GPU, or that of the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def beside_published(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Add the fastest published figure for the same shape and search.

    Column published_peer names it.  ratio_scaled says how many times faster we are, with both machines scaled by their
    fp32 matrix products.
    """
    published = pd.read_csv(places.ROOT / "data" / "published_speed.csv").query("kind == @kind")
    ours = "seconds_per_decision" if kind == "planning" else "tokens_per_second"
    for i, row in table.iterrows():
        setting = row.setting if kind == "planning" else "training"
        same = published[(published[["task", "model", "setting"]] == [row.task, row.model, setting]).all(axis=1)]
        if not len(same) or (kind == "planning" and row.profile != "released"):
            continue
        best = same.loc[same.figure.idxmin() if kind == "planning" else same.figure.idxmax()]
        ratio = best.figure / row[ours] if kind == "planning" else row[ours] / best.figure
        table.loc[i, "published_peer"] = best.peer
        table.loc[i, "ratio_scaled"] = ratio * best.gflops_ceiling / row.gflops_fp32
    return table


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column exponent: cost ~ (what varies)^exponent, fitted by least squares to the logarithms."""
    columns = {"beam width": "plans", "horizon": "horizon", "past": "past", "environments": "environments"}
    for axis, column in columns.items():
        chosen = table[(table.axis == axis) & (table[column] > 0)]
        total = chosen.seconds_per_decision * chosen.environments
        if len(chosen) > 1:
            table.loc[table.axis == axis, "exponent"] = np.polyfit(np.log(chosen[column]), np.log(total), 1)[0]
    return table


def fill(name: str, size: str, jobs: list) -> None:
    """Measure the rows that are missing, and write the table after each.

    Rows of other jobs stay if this machine measured them with this code.
    """
    path, start = places.folder(size) / f"bench_{name}.csv", time.perf_counter()
    code = keys.key([keys.file_key(places.ROOT / "ttlib" / part) for part in CODE])
    origin = {"machine": machine(), "code": code}
    old = pd.read_csv(path).to_dict("records") if path.exists() else []
    rows = [row for row in old if _agrees(row, origin)]
    for i, job in enumerate(jobs, 1):
        columns = {key: value for key, value in asdict(job).items() if name == "scaling" or key != "axis"}
        if any(_agrees(row, columns) for row in rows):
            continue
        row = columns | measure(job, 0.02 if size == "smoke" else 1.5)
        rows.append(row | origin | {"commit": provenance.commit()})
        table = pd.DataFrame(rows)
        table = exponents(table) if name == "scaling" else beside_published(table, name)
        files.write_aside(path, functools.partial(table.to_csv, index=False, float_format="%.4g"))
        known = {key: value for key, value in row.items() if not pd.isna(value)}
        shown = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in known.items())
        results.say(f"{name} {i} of {len(jobs)}: " + ", ".join(shown))
    record(name, size, time.perf_counter() - start)


def _agrees(row: dict, columns: dict) -> bool:
    """Return whether a row that was read has these values."""
    return all(str(row.get(name)) == str(value) for name, value in columns.items())


def fill_profile(size: str) -> None:
    """Measure and write bench_profile.csv."""
    start, rows = time.perf_counter(), list(profile(models(size, False)[0]))
    write = functools.partial(pd.DataFrame(rows).to_csv, index=False, float_format="%.4g")
    files.write_aside(places.folder(size) / "bench_profile.csv", write)
    record("profile", size, time.perf_counter() - start)


def record(name: str, size: str, took: float) -> None:
    """Write the JSON file beside a table."""
    config = {"window": WINDOW, "models": MODELS, "searches": SEARCHES, "candidates": 2}
    about = {"name": f"bench_{name}", "size": size, "profile": "released and v1", "seeds": [0], "config": config}
    about |= provenance.here() | {"machine": machine(), "wall_seconds": round(took, 1)}
    path = places.folder(size) / f"bench_{name}.json"
    files.write_aside(path, lambda aside: aside.write_text(json.dumps(about, indent=1) + "\n"))


def main() -> None:
    """Measure all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=places.SIZES, default="laptop", help="smoke: a tiny model and few rows")
    parser.add_argument("--all", action="store_true", help="measure every row, in about a quarter of an hour")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return print(peak_here(Planning(**json.loads(arguments.peak))))
    for name, jobs in JOBS.items():
        fill(name, arguments.size, jobs(arguments.size, arguments.all))
    fill_profile(arguments.size)


if __name__ == "__main__":
    main()
