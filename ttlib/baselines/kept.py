"""A fitted baseline in a folder: config.json, and model.safetensors with weights in float16."""

import dataclasses
import json
from pathlib import Path

import safetensors.torch
import torch

from ttlib import files
from ttlib.baselines.cloning import MLP
from ttlib.baselines.ensemble import Ensemble, EnsembleConfig


def save(folder: Path, model: Ensemble | MLP, about: dict) -> None:
    """Write config.json and model.safetensors, with weights in float16.  about: notes for config.json."""
    if isinstance(model, MLP):
        config = {"bounded": model.bounded}
    else:
        config = {"N": model.N, "M": model.M, "ensemble": dataclasses.asdict(model.config)}
    tensors = {name: buffer.cpu() for name, buffer in model.named_buffers()}
    tensors |= {name: parameter.detach().half().cpu() for name, parameter in model.named_parameters()}
    files.write_aside(folder / "model.safetensors", lambda path: safetensors.torch.save_file(tensors, path))
    text = json.dumps({**config, "about": about}, indent=1)
    files.write_aside(folder / "config.json", lambda path: path.write_text(text + "\n"))


def load(folder: Path, weights: bytes, device: str | torch.device = "cpu") -> tuple[Ensemble | MLP, dict]:
    """Return a baseline and its notes; `weights` are what model.safetensors holds.  Raises ValueError for damage."""
    try:
        config, tensors = json.loads((folder / "config.json").read_text()), safetensors.torch.load(weights)
        if bad := [name for name, x in tensors.items() if not x.isfinite().all()]:
            raise ValueError(f"{bad[0]} holds numbers that are not finite")
        if "ensemble" in config:
            sizes, N, M = EnsembleConfig(**config["ensemble"]), config["N"], config["M"]
            # A config of large sizes takes no memory before they are known to be those of the weights.
            found = [*tensors["weights.0"].shape, sum(name.startswith("weights.") for name in tensors) - 1]
            inputs = N + M + N * (sizes.mask_probability > 0)
            if found != (expected := [sizes.members, inputs, sizes.width, sizes.layers]):
                raise ValueError(
                    f"size mismatch: members, inputs, width, layers of weights are {found}, not {expected}"
                )
            model = Ensemble(N, M, sizes)
        else:
            model = MLP(tensors["mean"], tensors["std"], len(tensors["net.4.bias"]), config["bounded"])
        model.load_state_dict(tensors)
        return model.eval().to(device), dict(config["about"])
    except Exception as error:  # whatever a damaged file may hold
        raise ValueError(f"{folder} is not a readable baseline ({error!r}); delete it and run `make all`") from error
