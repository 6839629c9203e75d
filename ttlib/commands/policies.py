"""Train behaviour policies from nothing, into build/policies/<task>/.

The agents are those of sbx (Stable Baselines in Jax), which `make policies` installs.  A killed run goes on from its
last snapshot and ends as if it had not been killed: killed or not, the episode in progress is cut off at a snapshot,
and the random numbers after it begin anew from (seed, step).
"""

import argparse
import io
import json
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ttlib import files
from ttlib.environments import tasks
from ttlib.environments.tasks import make
from ttlib.pipeline import places

FOLDER = places.ROOT / "build" / "policies"
# What is not named here is as sbx has it.
HYPERPARAMETERS = dict(batch_size=128, policy_delay=2, train_freq=4, gradient_steps=4, learning_starts=10_000)
HYPERPARAMETERS |= dict(learning_rate=3e-4, tau=0.005, gamma=0.99, ent_coef="auto", hidden=[256, 256])
LAYERS = ("hidden0", "hidden1", "mean", "log_std")
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class Run:
    """One training: the algorithm's name in sbx, environment steps, and how often a snapshot is taken."""

    algorithm: str
    steps: int
    seed: int = 0
    every: int = 20_000
    hyperparameters: dict = field(default_factory=HYPERPARAMETERS.copy)


RUNS = {
    "hopper": Run("SAC", 600_000),
    "walker2d": Run("TQC", 720_000),
    "halfcheetah": Run("SAC", 1_000_000, seed=1),
    "humanoid": Run("SAC", 825_000, every=25_000),
}


def new_agent(task: str, run: Run):
    """An sbx agent before its first step."""
    import sbx

    options = {name: value for name, value in run.hyperparameters.items() if name != "hidden"}
    options["policy_kwargs"] = {"net_arch": run.hyperparameters["hidden"]}
    return getattr(sbx, run.algorithm)("MlpPolicy", tasks.make(task), seed=run.seed, **options)


def actor_arrays(agent) -> dict[str, np.ndarray]:
    """The actor as `envs.policy` reads it.  ValueError where training has diverged."""
    layers = agent.policy.actor_state.params["params"]
    arrays = {}
    for i, name in enumerate(LAYERS):
        layer = layers[f"Dense_{i}"]
        arrays |= {f"{name}_weight": np.array(layer["kernel"]), f"{name}_bias": np.array(layer["bias"])}
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"training diverged: {bad} not finite at step {agent.num_timesteps}; try another seed")
    return arrays


def new_record(task: str, run: Run) -> dict:
    spec = tasks.make(task).spec
    return {
        "task": task,
        "environment": spec.id,
        "environment_options": spec.kwargs,
        "algorithm": f"{run.algorithm} (sbx {version('sbx-rl')}, jax {version('jax')})",
        "gymnasium": version("gymnasium"),
        "mujoco": version("mujoco"),
        "seed": run.seed,
        "hyperparameters": run.hyperparameters | {"activation": "relu"},
        "action": "tanh(mean + exp(clip(log_std,-20,2)) * normal), then scaled to the action space",
        "arrays": "x @ weight + bias",
        "steps": [],
        "stochastic_return": {},
        "curve": [],
    }


def steps_done(folder: Path) -> int:
    path = folder / "record.json"
    return json.loads(path.read_text())["steps"][-1] if path.exists() else 0


def begin(task: str, run: Run, folder: Path) -> tuple[object, dict]:
    """(agent, record), from the last snapshot where there is one.

    ValueError where that run was begun with other settings or versions.
    """
    record, agent = new_record(task, run), new_agent(task, run)
    if not (step := steps_done(folder)):
        return agent, record
    found = json.loads((folder / "record.json").read_text())
    for name in record.keys() - {"steps", "stochastic_return", "curve"}:
        if found[name] != record[name]:
            now = f"begun with {name} {found[name]!r}, now {record[name]!r}"
            raise ValueError(f"{folder} was {now}: move the folder away to begin anew")
    agent = type(agent).load(folder / f"agent_{step:07d}.zip", env=tasks.make(task))
    for end in found["steps"]:
        with np.load(folder / f"replay_{end:07d}.npz") as rows:
            for name in REPLAY:
                getattr(agent.replay_buffer, name)[end - run.every : end] = rows[name]
    agent.replay_buffer.pos = step
    return agent, found


def measure(agent, task: str, record: dict) -> None:
    """Add the returns of fresh episodes to the record: ten of the stochastic policy, three of the deterministic."""
    from stable_baselines3.common.evaluation import evaluate_policy

    env, step = tasks.make(task), agent.num_timesteps
    env.reset(seed=step)
    total, length = evaluate_policy(agent, env, 10, False, return_episode_rewards=True, warn=False)
    row = {"mean": np.mean(total), "std": np.std(total), "length": np.mean(length)}
    record["stochastic_return"][str(step)] = {k: round(float(v), 1) for k, v in row.items()} | {"episodes": len(total)}
    total, length = evaluate_policy(agent, env, 3, True, return_episode_rewards=True, warn=False)
    training = float(np.mean([episode["r"] for episode in agent.ep_info_buffer]))
    point = {"step": step, "deterministic_return": np.round(total, 1).tolist(), "length": np.array(length).tolist()}
    record["curve"].append(point | {"training_return": round(training, 1)})
    record["steps"].append(step)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    files.write_aside(path, lambda aside: aside.write_bytes(content.getvalue()))


def save(agent, run: Run, folder: Path, record: dict) -> None:
    """The record comes last: a snapshot that it does not name is made again."""
    step = agent.num_timesteps
    write_npz(folder / f"step_{step:07d}.npz", actor_arrays(agent))
    rows = {name: getattr(agent.replay_buffer, name)[step - run.every : step] for name in REPLAY}
    write_npz(folder / f"replay_{step:07d}.npz", rows)
    files.write_aside(folder / f"agent_{step:07d}.zip", agent.save)
    files.write_aside(folder / "record.json", lambda aside: aside.write_text(json.dumps(record, indent=1) + "\n"))
    (folder / f"agent_{step - run.every:07d}.zip").unlink(missing_ok=True)


def train(task: str, run: Run, folder: Path) -> None:
    """From the last snapshot, or the first step, to the end."""
    agent, record = begin(task, run, folder)
    with tqdm(total=run.steps, initial=agent.num_timesteps, desc=task, unit=" steps", mininterval=1) as bar:
        while (step := agent.num_timesteps) < run.steps:
            if step:
                agent.set_random_seed(int(np.random.SeedSequence([run.seed, step]).generate_state(1)[0]))
                agent.set_env(agent.env)  # the next step begins an episode
            agent.learn(run.every, lambda *_: bar.update() or True, reset_num_timesteps=False)
            measure(agent, task, record)
            save(agent, run, folder, record)
            bar.set_postfix_str(f"return {record['stochastic_return'][str(agent.num_timesteps)]['mean']:.0f}")


def steps_per_second(task: str, run: Run) -> float:
    """Of the simulator and the updates; the first updates, which compile, are not counted."""
    agent = new_agent(task, replace(run, hyperparameters=run.hyperparameters | {"learning_starts": 0}))
    agent.learn(100)
    start = time.perf_counter()
    agent.learn(1000, reset_num_timesteps=False)
    return 1000 / (time.perf_counter() - start)


def main(tasks: list[str]) -> None:
    for task in tasks:
        make(task).close()  # ValueError names the nearest task
        if left := RUNS[task].steps - steps_done(FOLDER / task):
            speed = steps_per_second(task, RUNS[task])
            print(f"{task}: {left:,} steps at {speed:.0f} a second, about {left / speed / 60:.0f} minutes", flush=True)
    for task in tasks:
        train(task, RUNS[task], FOLDER / task)
        print(f"to use them: cp build/policies/{task}/{{record.json,step_*.npz}} data/policies/{task}/ && make ship")
    print("Datasets are known by their policies' content, so they are made again, and so is what is trained on them.")
    print("RECIPES in ttlib/datasets/regenerated.py says which snapshot is medium and which expert.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", help=f"one of {', '.join(RUNS)}; without it, all of them")
    task = parser.parse_args().task
    main([task] if task else list(RUNS))
