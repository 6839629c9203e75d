"""python -m ttlib.commands.bench: the cost of a decision and of training on this machine, beside its matrix products.

Tables figures/<size>/bench_*.csv: planning, training, scaling (cost against beam width, horizon, context and
environments; which searches keep up with a robot) and profile (where a decision's time goes).  By default a part of the
rows in a few minutes, with --all every row in about fifteen.  Rows that this machine measured with the same code stay,
so a killed run goes on where it was.

Models have random weights and a window of 20 transitions; a decision is made in the steady state: five past transitions
and a state.  With one thread the clock counts this process's time alone, so that other work on the machine disturbs
little; else it is the wall's.  The shortest of several runs counts.
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

from ttlib import control, files, search, tokenizer, train
from ttlib.baselines import cloning, shooting
from ttlib.baselines.ensemble import Ensemble
from ttlib.model import GPT, ModelConfig
from ttlib.pipeline import experiments, keys, places, provenance, store

WINDOW, PAST = 20, 5  # transitions
TASKS = {"hopper": experiments.HOPPER, "halfcheetah": experiments.HALFCHEETAH}
MODELS = {  # O: the authors' code; P: the paper; S: for size smoke
    "O": dict(n_layer=4, n_head=4, d_model=128),
    "P": dict(n_layer=4, n_head=6, d_model=192),
    "S": dict(n_layer=1, n_head=2, d_model=16),
}
SEARCHES = {"fast": (32, 5), "default": (128, 15)}  # plans, horizon; two candidates each
CORE = ("model", "cache", "cpu", "search", "control", "train", "tokenizer")
BASELINES = ("ensemble", "cloning", "shooting")
CODE = (
    "ttlib/commands/bench.py",
    *(f"ttlib/{name}.py" for name in CORE),
    *(f"ttlib/baselines/{name}.py" for name in BASELINES),
)

# A short decision mostly reads its context: that of Table 1's planner.
REAL_TIME_PAST = experiments.get(experiments.TABLE1[0], profile="released").past
ENSEMBLE = "ensemble"  # of single-step models, for random shooting with as many transitions as the fast search


@dataclass(frozen=True)
class Planning:
    """One row of bench_planning.csv or bench_scaling.csv: a batch of decisions."""

    task: str
    model: str
    profile: str = "released"
    setting: str = "fast"  # or default; uncached: fast without a cache; other: another search
    plans: int = 32
    horizon: int = 5
    past: int = PAST
    environments: int = 1
    dtype: str = "float32"
    threads: int = 1
    axis: str = ""  # what is varied: beam width, horizon, past, environments; real time

    @property
    def weighed(self) -> bool:
        """Whether its memory is measured too, in a process of its own."""
        few = self.threads == 1 and self.environments in (1, 16) and self.setting in SEARCHES and not self.axis
        return few and self.profile == "released" and self.model != "S"

    @property
    def plan(self) -> search.Plan:
        proposal = "beam" if self.profile == "v1" else "sample"
        return search.Plan(self.horizon, self.plans, 2, include_current=self.profile == "v1", proposal=proposal)


@dataclass(frozen=True)
class Training:
    """One row of bench_training.csv: updates of AdamW on batches of 64 windows of ten transitions."""

    task: str
    model: str
    setting: str = "block"  # where dropout is: "block", as the paper has it, or "everywhere"
    dtype: str = "float32"
    threads: int = 1
    batch: int = 64
    environments: int = 0


class Uncached:
    """The search's verbs by reading every sequence anew for every token: what a cache is compared with."""

    def __init__(self, model: GPT, tokenizer_: tokenizer.Tokenizer, ids: torch.Tensor):
        self.model, self.tokenizer, self.ids = model, tokenizer_, ids[:, None]
        self.log_p = self._read()

    def _read(self) -> torch.Tensor:
        parts = self.ids.flatten(0, 1).split(64)
        return torch.cat([self.model(part)[:, -1] for part in parts]).log_softmax(-1).view(*self.ids.shape[:2], -1)

    def advance(self, bins: torch.Tensor, parents: torch.Tensor | None) -> torch.Tensor:
        if parents is not None:
            self.ids = self.ids.take_along_dim(parents[..., None], 1)
        offset = train.offsets(self.model.config, self.ids.shape[2] + 1)[-1]
        self.ids = torch.cat([self.ids, bins[..., None] + offset], 2)
        return self._read()

    def keep(self, rows: torch.Tensor) -> None:
        whole = self.ids.view(len(rows), -1, self.ids.shape[2])
        self.ids = whole.take_along_dim(rows[..., None], 1).flatten(0, 1)[:, None]


# -- what is measured --------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], threads: int, budget: float) -> float:
    """The shortest of up to ten runs that take about `budget` seconds together, of at least two if they are short."""
    cuda = torch.cuda.is_available()
    clock, times = time.perf_counter if cuda or threads > 1 else time.process_time, []
    while not times or (len(times) < 2 and sum(times) < 4 * budget) or (len(times) < 10 and sum(times) < budget):
        start = clock()
        work()
        if cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)


def ceiling(dtype: torch.dtype, threads: int, budget: float) -> float:
    """Matrix products of this machine, 10^9 operations a second.  Measured beside every row: clocks come and go."""
    n = 8192 if torch.cuda.is_available() else 1024
    x = torch.ones(n, n, dtype=dtype, device=store.device())
    return 2e-9 * n**3 / seconds(lambda: x @ x, threads, budget / 10)


def count_operations(model: GPT, work: Callable[[], object]) -> float:
    """Multiplications and additions that `work` cannot do without: each token that the model reads goes through its
    matrices, attends to those before it, and is followed by one set of logits."""
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


def deciding(job: Planning) -> tuple[GPT, Callable[[], object]]:
    """The model and one batch of decisions."""
    transition, device = TASKS[job.task], store.device()
    torch.manual_seed(0)
    model = GPT(ModelConfig(transition, WINDOW, **MODELS[job.model])).eval().to(device)
    model = model.in_bf16() if job.dtype == "bfloat16" else model
    fitted = tokenizer.fit(torch.rand(1000, transition.D), transition, model.config.V, "uniform").to(device)
    length = job.past * transition.D + transition.N
    ids = torch.randint(model.config.V, (job.environments, length)) + train.offsets(model.config, length)
    ids, reader = ids.to(device), Uncached if job.setting == "uncached" else control.Decoder
    choose = control.by_reward(job.plan, torch.Generator(device).manual_seed(0))
    return model, torch.inference_mode()(lambda: choose(reader(model, fitted, ids)))


def shooting_through(job: Planning) -> tuple[float, Callable[[], object]]:
    """Random shooting through Table 1's ensemble: operations it cannot do without, and one batch of decisions.

    A sequence goes through the matrices of one member at every step, and through those of V(s) at the end.
    """
    transition, plan, rng = TASKS[job.task], job.plan, np.random.default_rng(0)
    made = Ensemble(transition.N, transition.M, experiments.SHOOTING)
    value = cloning.MLP(torch.randn(1000, transition.N), 1, bounded=False)
    high = np.ones(transition.M)
    agent = shooting.RandomShooting(made, value, plan, -high, high, seed=0)
    states = rng.standard_normal((job.environments, transition.N))
    member = sum(weight[0].numel() for weight in made.weights)
    last = sum(weight.numel() for weight in value.parameters() if weight.ndim == 2)
    sequences = job.environments * plan.plans * plan.candidates
    return 2.0 * sequences * (plan.horizon * member + last), torch.inference_mode()(lambda: agent.act(states))


def measure(job: Planning | Training, budget: float = 1.5) -> dict:
    torch.set_num_threads(job.threads)
    types = {"gflops_ceiling": getattr(torch, job.dtype), "gflops_fp32": torch.float32}
    row = {name: ceiling(dtype, job.threads, budget) for name, dtype in types.items()}
    if job.model == ENSEMBLE:
        operations, work = shooting_through(job)
    else:
        model, work = deciding(job) if isinstance(job, Planning) else updating(job)
        operations = count_operations(model, work)
    took = seconds(work, job.threads, budget)
    if isinstance(job, Planning):
        row["seconds_per_decision"] = took / job.environments
        row["gflop_per_decision"] = 1e-9 * operations / job.environments
        row["peak_mb"] = peak(job) if job.weighed else np.nan
    else:
        operations *= 3  # backward costs twice as much as forward
        row |= {"tokens_per_second": job.batch * 10 * TASKS[job.task].D / took}
    return row | {"share_of_ceiling": 1e-9 * operations / took / row["gflops_ceiling"]}


def updating(job: Training) -> tuple[GPT, Callable[[], object]]:
    """The model and one update of it."""
    torch.manual_seed(0)
    config = ModelConfig(TASKS[job.task], 10, dropout_where=job.setting, **MODELS[job.model])
    model, setting = GPT(config).to(store.device()), train.TrainConfig(100, job.batch, "adamw", 6e-4, clip=1.0)
    ids = torch.randint(config.V, (job.batch, config.max_tokens)) + train.offsets(config, config.max_tokens)
    ids, optimisers = ids.to(store.device()), train.optimisers(model, setting)
    batch = (ids, torch.ones(ids.shape, device=ids.device))
    return model.train(), lambda: train.step(model, optimisers, batch, setting, 0, getattr(torch, job.dtype))


def peak(job: Planning) -> float:
    """Megabytes that a batch of decisions adds to a process that has made a small one."""
    if torch.cuda.is_available():
        _, work = deciding(job)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    command = [sys.executable, "-m", "ttlib.commands.bench", "--peak", json.dumps(asdict(job))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(job: Planning) -> float:
    """`peak` in a process of its own; not a number where the system does not say."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return np.nan
    torch.set_num_threads(job.threads)
    deciding(replace(job, plans=2, horizon=1, environments=1))[1]()
    _, work = deciding(job)
    clear.write_text("5")  # the highest mark starts anew from what is held now
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


def profile(dtype: str, model: str) -> Iterator[dict]:
    """Share of a fast decision's time by kind of operation."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    torch.set_num_threads(1)
    for environments in (1, 16):
        _, work = deciding(Planning("hopper", model, environments=environments, dtype=dtype))
        work()
        with record(activities=[ProfilerActivity.CPU]) as recorded:
            work()
        times, calls = {}, {}
        for event in recorded.key_averages():
            name = event.key.removeprefix("aten::").removeprefix("mkldnn")
            kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "all else, dispatch")
            times[kind] = times.get(kind, 0) + event.self_cpu_time_total
            calls[kind] = calls.get(kind, 0) + event.count
        for kind in times:
            row = {"task": "hopper", "model": model, "environments": environments, "dtype": dtype, "kind": kind}
            yield row | {"share": times[kind] / sum(times.values()), "calls": calls[kind]}


# -- which rows --------------------------------------------------------------------------------------------


def dtypes(size: str) -> list[str]:
    """fp32, and bf16 where the machine is faster with it."""
    if size == "smoke":
        return ["float32"]
    fast = str(train.fast_dtype(store.device()))[6:]
    return ["float32"] + [fast] * (fast != "float32")


def rows(size: str, whole: bool) -> dict[str, list]:
    """Table -> jobs."""
    models = {"smoke": ["S"]}.get(size, ["O", "P"] if whole else ["O"])
    threads = [1, 2] if whole and (os.cpu_count() or 1) > 1 and not torch.cuda.is_available() else [1]
    planning, training, scaling = [], [], []
    for t in threads:
        for dtype in dtypes(size):
            for model in models:
                for task in TASKS:
                    base = Planning(task, model, dtype=dtype, threads=t)
                    many = {"smoke": (1, 2)}.get(size, (1, 4, 16, 64) if whole else (1, 16))
                    planning += [replace(base, environments=n) for n in many]
                    default = replace(base, setting="default", plans=128, horizon=15)
                    if size != "smoke" and (whole or task == "hopper"):
                        planning.append(default)
                    if t == 1 and model != "P":
                        planning += [replace(base, profile="v1", environments=n) for n in many[:3:2]]
                        if whole:
                            planning.append(replace(default, profile="v1"))
                    training += [Training(task, model, where, dtype, t) for where in ("block", "everywhere")]
    model = models[0]
    planning.append(Planning("hopper", model, setting="uncached"))
    planning += [Planning(task, ENSEMBLE, setting="random shooting") for task in TASKS]
    if size == "smoke":
        planning = [replace(job, plans=2, horizon=2) for job in planning]
        training = [replace(job, batch=2) for job in training]
    base = Planning("hopper", model, setting="other")
    small = 2 if size == "smoke" else None
    scaling += [replace(base, axis="beam width", plans=n) for n in (4, 8, 16, 32, 64, 128)[:small]]
    scaling += [replace(base, axis="horizon", horizon=n) for n in (1, 2, 5, 10, 15)[:small]]
    scaling += [replace(base, axis="past", past=n) for n in (1, 2, 5, 10, 15)[:small]]
    scaling += [replace(base, axis="environments", environments=n) for n in (1, 2, 4, 8, 16, 32)[:small]]
    for task, dtype, horizon in itertools.product(TASKS, dtypes(size), (1, 2, 3, 5)[:small]):
        timed = replace(base, task=task, dtype=dtype, horizon=horizon, past=REAL_TIME_PAST, axis="real time")
        scaling += [replace(timed, plans=plans) for plans in (1, 4, 16, 64)[:small]]
    return {"planning": planning, "training": training, "scaling": scaling}


# -- tables ------------------------------------------------------------------------------------------------


def machine() -> str:
    """The processor's or the GPU's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def beside_published(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Columns published_peer, the fastest with a figure for the row's shape and search, and ratio_scaled: how many
    times faster than it, both machines scaled by their fp32 matrix products."""
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
    """Column exponent: cost ~ (what is varied)^exponent, a least-squares line through logarithms."""
    columns = {"beam width": "plans", "horizon": "horizon", "past": "past", "environments": "environments"}
    for axis, column in columns.items():
        chosen = table[(table.axis == axis) & (table[column] > 0)]
        total = chosen.seconds_per_decision * chosen.environments
        if len(chosen) > 1:
            table.loc[table.axis == axis, "exponent"] = np.polyfit(np.log(chosen[column]), np.log(total), 1)[0]
    return table


def fill(name: str, size: str, jobs: list) -> None:
    """Measure what is missing and write the table after every row.  Rows of other jobs stay if they are of this
    machine and this code."""
    path = places.folder(size) / f"bench_{name}.csv"
    who = {"machine": machine(), "code": keys.key([keys.file_key(places.ROOT / file) for file in CODE])}
    same = lambda row, fields: all(str(row.get(key)) == str(value) for key, value in fields.items())  # noqa: E731
    old = pd.read_csv(path).to_dict("records") if path.exists() else []
    done, start = [row for row in old if same(row, who)], time.perf_counter()
    for i, job in enumerate(jobs):
        fields = {key: value for key, value in asdict(job).items() if name == "scaling" or key != "axis"}
        if any(same(row, fields) for row in done):
            continue
        about = who | {"commit": provenance.here()["commit"]}
        done.append(fields | measure(job, 0.02 if size == "smoke" else 1.5) | about)
        table = pd.DataFrame(done)
        table = exponents(table) if name == "scaling" else beside_published(table, name)
        files.write_aside(path, functools.partial(table.to_csv, index=False, float_format="%.4g"))
        values = [f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in done[-1].items() if k not in who]
        print(f"{name} {i + 1}/{len(jobs)}:", *values, flush=True)
    record(name, size, time.perf_counter() - start)


def record(name: str, size: str, took: float) -> None:
    """The JSON beside a table."""
    config = {"window": WINDOW, "models": MODELS, "searches": SEARCHES, "candidates": 2}
    about = {"name": f"bench_{name}", "size": size, "profile": "released and v1", "seeds": [0], "config": config}
    about |= provenance.here() | {"machine": machine(), "wall_seconds": round(took, 1)}
    path = places.folder(size) / f"bench_{name}.json"
    files.write_aside(path, lambda aside: aside.write_text(json.dumps(about, indent=1) + "\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=places.SIZES, default="laptop", help="smoke: a tiny model, a few rows")
    parser.add_argument("--all", action="store_true", help="every row, about a quarter of an hour")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return print(peak_here(Planning(**json.loads(arguments.peak))))
    for name, jobs in rows(arguments.size, arguments.all).items():
        fill(name, arguments.size, jobs)
    start, model = time.perf_counter(), "S" if arguments.size == "smoke" else "O"
    table = pd.DataFrame([row for dtype in dtypes(arguments.size) for row in profile(dtype, model)])
    path = places.folder(arguments.size) / "bench_profile.csv"
    files.write_aside(path, lambda aside: table.to_csv(aside, index=False, float_format="%.4g"))
    record("profile", arguments.size, time.perf_counter() - start)


if __name__ == "__main__":
    main()
