"""Train behaviour policies from scratch, and write them to build/policies/<task>/.

The agents are those of sbx (Stable Baselines in Jax), which `make policies` installs.  A killed run continues from its
last snapshot and ends with the same policy.  For this, every snapshot cuts off the episode in progress, and the random
numbers after it begin anew from (seed, step).
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
from ttlib.environments import policies, tasks
from ttlib.pipeline import places

FOLDER = places.ROOT / "build" / "policies"
# All other hyperparameters are the defaults of sbx.
HYPERPARAMETERS = dict(batch_size=128, policy_delay=2, train_freq=4, gradient_steps=4, learning_starts=10_000)
HYPERPARAMETERS |= dict(learning_rate=3e-4, tau=0.005, gamma=0.99, ent_coef="auto", hidden=[256, 256])
LAYERS = ("hidden0", "hidden1", "mean", "log_std")
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class Run:
    """One training: the algorithm's name in sbx, the environment steps, and the steps between two snapshots.

    task: the simulated task, where the training has another name, and `options` those of its environment, such as the
    weights of the reward.  min_speed: the training ends with an error unless the robot walks so fast, in m/s.
    """

    algorithm: str
    steps: int
    seed: int = 0
    every: int = 20_000
    hyperparameters: dict = field(default_factory=HYPERPARAMETERS.copy)
    task: str = ""
    options: dict = field(default_factory=dict)
    min_speed: float = 0.0


RUNS = {
    "hopper": Run("SAC", 600_000),
    "walker2d": Run("TQC", 720_000),
    "halfcheetah": Run("SAC", 1_000_000, seed=1),
    "humanoid": Run("SAC", 825_000, every=25_000),
    # The default weights, 1.25 for speed and 5 for being upright, make a humanoid that stands.
    "humanoid_walk": Run(
        "TQC", 750_000, every=50_000, task="humanoid", min_speed=1.0,
        options={"forward_reward_weight": 2.5, "healthy_reward": 2.0},
    ),
}  # fmt: skip
MAX_FALLS = 0.2  # of episodes of a robot that has to walk


def environment(task: str, run: Run):
    """Return the environment that a policy is trained in."""
    return tasks.make(run.task or task, **run.options)


def new_agent(task: str, run: Run):
    """Return an sbx agent before its first step."""
    import sbx

    options = {name: value for name, value in run.hyperparameters.items() if name != "hidden"}
    options["policy_kwargs"] = {"net_arch": run.hyperparameters["hidden"]}
    return getattr(sbx, run.algorithm)("MlpPolicy", environment(task, run), seed=run.seed, **options)


def actor_arrays(agent) -> dict[str, np.ndarray]:
    """Return the actor's arrays, as `environments.policies.policy` reads them.  Raises ValueError if not finite."""
    layers = agent.policy.actor_state.params["params"]
    arrays = {}
    for i, name in enumerate(LAYERS):
        layer = layers[f"Dense_{i}"]
        arrays |= {f"{name}_weight": np.array(layer["kernel"]), f"{name}_bias": np.array(layer["bias"])}
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"training diverged: {bad} not finite at step {agent.num_timesteps}; try another seed")
    return arrays


def new_record(task: str, run: Run) -> dict:
    """Return the record of a training before its first step."""
    spec = environment(task, run).spec
    return {
        "task": run.task or task,
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
    """Return the step of the last snapshot in a folder; 0 if there is none."""
    path = folder / "record.json"
    return json.loads(path.read_text())["steps"][-1] if path.exists() else 0


def begin(task: str, run: Run, folder: Path) -> tuple[object, dict]:
    """Return the last snapshot's agent and record, or new ones.  Raises ValueError if its settings were others."""
    record, agent = new_record(task, run), new_agent(task, run)
    if not (step := steps_done(folder)):
        return agent, record
    saved = json.loads((folder / "record.json").read_text())
    for name in record.keys() - {"steps", "stochastic_return", "curve"}:
        if saved[name] != record[name]:
            difference = f"begun with {name} {saved[name]!r}, now {record[name]!r}"
            raise ValueError(f"{folder} was {difference}: move the folder away to begin anew")
    agent = type(agent).load(folder / f"agent_{step:07d}.zip", env=environment(task, run))
    for end in saved["steps"]:
        with np.load(folder / f"replay_{end:07d}.npz") as rows:
            for name in REPLAY:
                getattr(agent.replay_buffer, name)[end - run.every : end] = rows[name]
    agent.replay_buffer.pos = step
    return agent, saved


def measure(agent, env, record: dict) -> None:
    """Add the returns of ten episodes of the stochastic policy, and three of the deterministic one, to the record."""
    from stable_baselines3.common.evaluation import evaluate_policy

    step = agent.num_timesteps
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
    """Write arrays as a file that is whole or missing."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    files.write_aside(path, lambda aside: aside.write_bytes(content.getvalue()))


def save(agent, run: Run, folder: Path, record: dict) -> None:
    """Write a snapshot and then the record, so that a snapshot that it does not name is made again."""
    step = agent.num_timesteps
    write_npz(folder / f"step_{step:07d}.npz", actor_arrays(agent))
    rows = {name: getattr(agent.replay_buffer, name)[step - run.every : step] for name in REPLAY}
    write_npz(folder / f"replay_{step:07d}.npz", rows)
    files.write_aside(folder / f"agent_{step:07d}.zip", agent.save)
    files.write_aside(folder / "record.json", lambda aside: aside.write_text(json.dumps(record, indent=1) + "\n"))
    (folder / f"agent_{step - run.every:07d}.zip").unlink(missing_ok=True)


def train(task: str, run: Run, folder: Path) -> None:
    """Train from the last snapshot, or from the first step, to the end."""
    agent, record = begin(task, run, folder)
    with tqdm(total=run.steps, initial=agent.num_timesteps, desc=task, unit=" steps", mininterval=1) as bar:
        while (step := agent.num_timesteps) < run.steps:
            if step:
                agent.set_random_seed(int(np.random.SeedSequence([run.seed, step]).generate_state(1)[0]))
                agent.set_env(agent.env)  # makes the next step begin an episode
            agent.learn(run.every, lambda *_: bar.update() or True, reset_num_timesteps=False)
            measure(agent, environment(task, run), record)
            save(agent, run, folder, record)
            bar.set_postfix_str(f"return {record['stochastic_return'][str(agent.num_timesteps)]['mean']:.0f}")


def walking(task: str, act, episodes: int = 20) -> tuple[float, float]:
    """Return the forward speed of a policy, in m/s up to its falls, and the fraction of its episodes with a fall.

    act(states (1, N), rng) returns actions (1, M).  An episode has 1000 steps, or ends at a fall.
    """
    env, rng, metres, steps, falls = tasks.make(task), np.random.default_rng(0), 0.0, 0, 0
    for seed in range(episodes):
        state, _ = env.reset(seed=seed)
        begin, over = env.unwrapped.data.qpos[0], False
        while not over:
            state, _, fell, timeout, _ = env.step(act(state[None], rng)[0])
            steps, over = steps + 1, fell or timeout
        metres, falls = metres + env.unwrapped.data.qpos[0] - begin, falls + fell
    return float(metres / (steps * env.unwrapped.dt)), falls / episodes


def check_walks(task: str, run: Run, act, episodes: int = 20) -> str:
    """Return how fast a policy walks and how often it falls, in words.

    Raises ValueError if it is slower than the run's `min_speed`, or if it falls in more than MAX_FALLS of the episodes.
    """
    speed, falls = walking(run.task or task, act, episodes)
    found = f"{task}: {speed:.2f} m/s, and a fall in {falls:.0%} of {episodes} episodes"
    if speed < run.min_speed or falls > MAX_FALLS:
        raise ValueError(
            f"{found}; expected at least {run.min_speed:g} m/s, and falls in at most {MAX_FALLS:.0%}: give RUNS in "
            "ttlib/commands/policies.py more steps, and `make policies` continues; or give it another seed, and move "
            "the folder away"
        )
    return found


def steps_per_second(task: str, run: Run) -> float:
    """Measure the steps per second of simulator and updates, without the first updates, which compile."""
    agent = new_agent(task, replace(run, hyperparameters=run.hyperparameters | {"learning_starts": 0}))
    agent.learn(100)
    start = time.perf_counter()
    agent.learn(1000, reset_num_timesteps=False)
    return 1000 / (time.perf_counter() - start)


def main(names: list[str]) -> None:
    """Train the policies of these tasks, and print an estimate first.

    Raises ValueError for an unknown task, and for a policy that has to walk but does not.
    """
    for task in names:
        tasks.check_known(task, RUNS, "task")
        if left := RUNS[task].steps - steps_done(FOLDER / task):
            speed = steps_per_second(task, RUNS[task])
            minutes = left / speed / 60
            print(f"{task}: {left:,} steps at {speed:.0f} per second, about {minutes:.0f} minutes", flush=True)
    for task in names:
        run, folder = RUNS[task], FOLDER / task
        train(task, run, folder)
        if run.min_speed:
            print(check_walks(task, run, policies.policy(run.task or task, run.steps, folder)))
        print(f"to use them: cp build/policies/{task}/{{record.json,step_*.npz}} data/policies/{task}/ && make ship")
    print("New policies change the keys of their datasets, so data, models and results are made again.")
    print("RECIPES in ttlib/datasets/regenerated.py names the snapshots of the qualities medium and expert.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=RUNS, help="the task to train; default: all of them")
    chosen = parser.parse_args().task
    main([chosen] if chosen else list(RUNS))
