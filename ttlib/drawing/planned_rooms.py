"""Four rooms, planned in the reader's browser: the models' weights as files, and the HTML that plans with them."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ttlib import files
from ttlib.checkpoint import Checkpoint
from ttlib.drawing import viewers
from ttlib.environments import four_rooms


@dataclass(frozen=True)
class Choice:
    """One of the models that the reader can choose.

    file: the name of its file of weights; label: what the reader chooses; about: a sentence on it.  It reads `context`
    past steps.  It plans with horizon and width at first, and the longest horizon is what its window can hold.
    """

    file: str
    label: str
    about: str
    context: int
    horizon: int
    width: int
    longest: int


def write_weights(loaded: Checkpoint, path: Path) -> None:
    """Write a model as a script that a page loads: sizes, ranges of the bins, and weights in bf16.

    Raises ValueError for bins that are not uniform, for an odd number of them, and for a model with rewards.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    if tokenizer.kind != "uniform" or config.transition.rewards or config.V % 2:
        raise ValueError(
            f"{config.V} {tokenizer.kind} bins, rewards={config.transition.rewards}; expected an even number of "
            "uniform bins and no rewards: the planner in the browser knows nothing else"
        )
    named = list(loaded.model.named_parameters())
    halves = torch.cat([p.detach().cpu().flatten() for _, p in named]).bfloat16().view(torch.int16)
    sizes = {name: getattr(config, name) for name in ("V", "prefix", "n_layer", "n_head", "d_model", "max_tokens")}
    sizes |= {"N": config.transition.N, "D": config.transition.D}
    data = {
        "sizes": sizes | {"low": tokenizer.low.tolist(), "high": tokenizer.high.tolist()},
        "tensors": [[name, p.numel()] for name, p in named],
        "weights": base64.b64encode(halves.numpy().astype("<i2").tobytes()).decode(),
    }
    text = f"(window.ttlibWeights ??= {{}})[{json.dumps(path.stem)}] = {json.dumps(data)};\n"
    files.write_aside(path, lambda aside: aside.write_text(text))


def planned_rooms(choices: list[Choice], folder: str, walk: np.ndarray, goal: np.ndarray, name: str) -> str:
    """Return the HTML of four rooms in which the reader drags start and goal, and sees every plan.

    folder: where the page finds the files of weights, relative to itself.  walk: (T, 2) and goal: (2,), which are
    drawn at first, and without JavaScript for good.  name: see `viewers.fill`.
    """
    data = {
        "choices": [vars(choice) for choice in choices],
        "folder": folder,
        "points": {"start": walk[0].tolist(), "goal": goal.tolist()},
        "walls": four_rooms.WALLS.tolist(),
        "side": four_rooms.SIDE,
        "stride": four_rooms.STEP,
        "radius": four_rooms.GOAL_RADIUS,
        "limit": four_rooms.MAX_STEPS,
    }
    walls = "".join(
        '<rect x="{}" y="{}" width="{}" height="{}"/>'.format(*low, *(high - low)) for low, high in four_rooms.WALLS
    )
    radio = '<label><input type="radio" name="{}-model" value="{}"{}> {}</label>'
    models = "".join(radio.format(name, i, " checked" * (not i), each.label) for i, each in enumerate(choices))
    start, end, goal = (" ".join(map(str, point)) for point in (walk[0], walk[-1], goal))
    return viewers.fill(
        "planned_rooms.html", name, data, script=viewers.text("planner.js") + viewers.text("planned_rooms.js"),
        walls=walls, models=models, walk=" ".join(map(str, walk.flatten())), start=start, end=end, goal=goal,
        width=choices[0].width, horizon=choices[0].horizon, longest=choices[0].longest,
    )  # fmt: skip
