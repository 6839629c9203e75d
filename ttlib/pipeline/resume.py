"""Keep the state of a training in a file, so that a killed run continues to the same weights."""

import hashlib
import json
import time
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ttlib import files, train
from ttlib.data import Windows
from ttlib.model import GPT
from ttlib.train import TrainConfig


class Resume:
    """The state of a training in a file, which only a run of the same model, data and config takes up."""

    def __init__(self, folder: Path, seconds: float = 60.0):
        self.path, self.seconds, self.time, self.of = Path(folder) / "resume.safetensors", seconds, time.monotonic(), ""

    def resume(self, model: GPT, config: TrainConfig, windows: Windows):
        """Return number format (that of a run that was begun), optimisers, updates done and curve; set the weights."""
        parts = windows.bins, windows.end
        data = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()
        options = windows.T, windows.action_weight, windows.goal, windows.masked, windows.markov
        self.of = f"{config} {model.config} {len(windows)} {data} {options}"
        if not self.path.exists():
            return train.begin(model, config)
        with safetensors.safe_open(self.path, "pt", device=str(next(model.parameters()).device)) as file:
            about = file.metadata()
            if about.get("of") != self.of:
                return train.begin(model, config)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        optimisers = train.optimisers(model, config, getattr(torch, about["dtype"]))
        names = [name for name, _ in model.named_parameters()]
        model.load_state_dict({name: tensors.pop(f"model.{name}") for name in names})
        for i, optimiser in enumerate(optimisers):
            state = {}
            for name, tensor in tensors.items():
                _, group, j, key = name.split(".")
                if group == str(i):
                    state.setdefault(int(j), {})[key] = tensor
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        return about["dtype"], optimisers, int(about["update"]), json.loads(about["curve"])

    def write(self, model: GPT, optimisers: list, update: int, curve: list, dtype: str) -> None:
        """Write the state, unless that was done less than `seconds` ago."""
        if time.monotonic() - self.time < self.seconds:
            return
        tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        for i, optimiser in enumerate(optimisers):
            for j, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": value.clone() for key, value in state.items()}
        about = {"update": str(update), "curve": json.dumps(curve), "of": self.of, "dtype": dtype}
        files.write_aside(self.path, lambda aside: safetensors.torch.save_file(tensors, aside, metadata=about))
        self.time = time.monotonic()
