"""python tools/bench.py: tokens a second in training and decisions a second in planning, beside the machine's rate."""

import time
from collections.abc import Callable

import pandas as pd
import torch

from ttlib import control, experiments, results, tokenizer, train
from ttlib.model import GPT


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of several runs after one that is not counted: other processes only ever add time."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def flops_per_token(model: GPT, context: float) -> float:
    """Multiplications and additions of one token forward: matrices, attention to `context` tokens, head."""
    d, layers = model.config.d_model, model.config.n_layer
    return 2 * (layers * (12 * d * d + 2 * context * d) + d * model.config.V)


def training(exp: experiments.Experiment, dtype: torch.dtype) -> dict:
    model, length = GPT(exp.model), exp.model.max_tokens
    ids = torch.randint(exp.model.V, (exp.train.batch, length)) + train.offsets(exp.model, length)
    optimisers = train.optimisers(model, exp.train)

    batch = (ids, torch.ones(ids.shape))
    rate = ids.numel() / seconds(lambda: train.step(model, optimisers, batch, exp.train, 0, dtype))
    share = 3 * rate * flops_per_token(model, length / 2) / 1e9 / results.gflops()
    setting = f"training, batch {exp.train.batch}, {exp.model.T} transitions"
    return {
        "setting": setting,
        "environments": "",
        "dtype": str(dtype)[6:],
        "tokens_per_second": round(rate),
        "share_of_ceiling": round(share, 2) if dtype == torch.float32 else None,
    }


def planning(exp: experiments.Experiment, environments: int) -> dict:
    """A decision in the steady state: the context is full."""
    model, transition = GPT(exp.model).eval(), exp.model.transition
    fitted = tokenizer.fit(torch.rand(1000, transition.D), transition, exp.bins.V, exp.bins.kind)
    length = exp.past * transition.D + transition.N
    ids = torch.randint(exp.model.V, (environments, length)) + train.offsets(exp.model, length)
    choose = control.by_reward(exp.plan, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        took = seconds(lambda: choose(control.Decoder(model, fitted, ids)), repeats=3) / environments
    plan = exp.plan
    setting = f"planning, {exp.profile}: past {exp.past}, horizon {plan.horizon}, {plan.plans} x {plan.candidates}"
    return {
        "setting": setting,
        "environments": environments,
        "dtype": "float32",
        "decisions_per_second": round(1 / took, 1),
    }


def main() -> None:
    exp = experiments.get("hopper-long")
    rows = [training(exp, torch.float32)]
    if train.fast_dtype(torch.device("cpu")) == torch.bfloat16:
        rows.append(training(exp, torch.bfloat16))
    for profile in experiments.PROFILES:
        tried = experiments.get("hopper-long", profile=profile)
        rows += [planning(tried, n) for n in (1, 4, 16)]
    table = pd.DataFrame(rows).assign(
        task="hopper", model="4 x 4, 128", threads=torch.get_num_threads(), gflops_ceiling=results.gflops()
    )
    print(f"fp32 matrix products of this machine: {results.gflops():.0f} GFLOP/s on {torch.get_num_threads()} threads")
    shown = ["setting", "environments", "dtype", "tokens_per_second", "share_of_ceiling", "decisions_per_second"]
    print(table[shown].astype(object).fillna("").to_string(index=False))
    path = results.ROOT / "build" / "bench.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)
    print("written to build/bench.csv")


if __name__ == "__main__":
    main()
