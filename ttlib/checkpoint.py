"""Checkpoints: config, weights and bin edges, sufficient to act with."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ttlib import data, files, train
from ttlib.model import GPT, ModelConfig
from ttlib.tokenizer import Tokenizer, Transition


def round_weights(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Round to `dtype` in place, before any evaluation, so that shipped and retrained models are treated alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def save(folder: Path, model: GPT, tokenizer: Tokenizer, about: dict, held_out: Tensor, weight: Tensor) -> None:
    """Write a checkpoint: sufficient to act with.  held_out, weight: (B, L) ids and loss weights kept beside it.

    `about` is what the reader of the file should know; the loss on the held-out windows is added to it.
    """
    with torch.inference_mode():
        about = {**about, "held_out_nats": train.loss(model.eval(), held_out, weight).item()}
    tensors = {name: p.detach().bfloat16().cpu() for name, p in model.named_parameters()}
    tensors |= {"tokenizer.edges": tokenizer.edges, "tokenizer.centres": tokenizer.centres}
    bins = (held_out % tokenizer.V).masked_fill(held_out >= tokenizer.V * tokenizer.transition.D, data.MISSING)
    tensors |= {"held_out.bins": bins.to(torch.uint8), "held_out.weight": weight.bfloat16()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    config = {"model": dataclasses.asdict(model.config), "tokenizer": {"V": tokenizer.V, "kind": tokenizer.kind}}
    files.write_aside(folder / "model.safetensors", lambda path: safetensors.torch.save_file(tensors, path))
    text = json.dumps({**config, "about": about}, indent=1)
    files.write_aside(folder / "config.json", lambda path: path.write_text(text + "\n"))


@dataclass(frozen=True)
class Checkpoint:
    """What `save` wrote, read back."""

    model: GPT
    tokenizer: Tokenizer
    about: dict
    held_out: Tensor
    weight: Tensor


def about(folder: Path) -> dict:
    """What a checkpoint says of itself, without its weights; ValueError if that cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text())["about"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not a readable checkpoint ({error!r}); delete it and run `make all`") from error


def load(folder: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint; FileNotFoundError if there is none, ValueError if it is damaged or of another shape, or if
    the device is not there."""
    folder, device = Path(folder), torch.device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there, {torch.cuda.device_count()} GPUs are; 'cpu' always is")
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing; expected a checkpoint, made by `make scratch`")
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = safetensors.torch.load(files.weights(folder))
        transition = Transition(**config["model"].pop("transition"))
        model = GPT(ModelConfig(transition, **config["model"]))
        settings, about = (config["tokenizer"]["V"], config["tokenizer"]["kind"]), config["about"]
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is not a readable checkpoint ({error!r}); delete it and run `make all`") from error
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    others = ("tokenizer.edges", "tokenizer.centres", "held_out.bins", "held_out.weight")
    found = {name: tuple(t.shape) for name, t in tensors.items() if name not in others}
    if found != expected or any(name not in tensors for name in others):
        wrong = sorted(n for n in expected | found if found.get(n) != expected.get(n)) or others
        raise ValueError(
            f"{folder}: the weights do not fit config.json in {wrong[:3]}: found {found.get(wrong[0])}, "
            f"expected {expected.get(wrong[0])}; delete the folder and run `make all`"
        )
    model.load_state_dict({name: tensors[name].float() for name in expected})
    tokenizer = Tokenizer(transition, *settings, *(tensors[name] for name in others[:2]))
    bins, offset = tensors["held_out.bins"].long(), train.offsets(model.config, tensors["held_out.bins"].shape[1])
    unknown = (bins == data.MISSING) & model.config.missing
    held_out = torch.where(unknown, transition.D * tokenizer.V + offset // tokenizer.V, bins + offset)
    return Checkpoint(
        model.eval().to(device), tokenizer.to(device), about, held_out, tensors["held_out.weight"].float()
    )
