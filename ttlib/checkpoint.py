"""Checkpoints: config.json and model.safetensors, which are enough to act."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ttlib import files
from ttlib.model import GPT, ModelConfig
from ttlib.tokenizer import Tokenizer, Transition

BINS = ("tokenizer.edges", "tokenizer.centres")


@dataclass(frozen=True)
class Checkpoint:
    """A model, its tokenizer, notes about them, and tensors saved beside them."""

    model: GPT
    tokenizer: Tokenizer
    about: dict
    extras: dict[str, Tensor]


@torch.no_grad()
def round_weights(model: torch.nn.Module, dtype=torch.bfloat16) -> None:
    """Round weights to `dtype` in place: a saved model is the one evaluated."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


def save(
    folder: Path, model: GPT, tokenizer: Tokenizer, about: dict | None = None,
    extras: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint, weights in bf16; extras: any shape; about: notes."""
    tensors = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    bins = dict(zip(BINS, (tokenizer.edges, tokenizer.centres)))
    tensors |= bins | (extras or {})
    tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
    config = {"model": dataclasses.asdict(model.config), "about": about or {}}
    config["tokenizer"] = {"V": tokenizer.V, "kind": tokenizer.kind}
    text = json.dumps(config, indent=1) + "\n"
    path = Path(folder) / "model.safetensors"
    save_file = safetensors.torch.save_file
    files.write_aside(path, lambda aside: save_file(tensors, aside))
    path = path.with_name("config.json")
    files.write_aside(path, lambda aside: aside.write_text(text))


def load(
    folder: Path, device: str | torch.device = "cpu", weights: bytes | None = None
) -> Checkpoint:
    """Read a checkpoint; `weights` are the content of model.safetensors, if given.

    Raises FileNotFoundError if a file is missing; ValueError if one is damaged, if
    the weights do not fit the config, or if the device is missing.
    """
    folder, device = Path(folder), torch.device(device)
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"{device} is missing; expected cpu or one of {gpus} GPUs")
    for name in ("config.json", "model.safetensors")[: 2 if weights is None else 1]:
        if not (path := folder / name).exists():
            raise FileNotFoundError(f"{path} is missing; expected a checkpoint")
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = weights or (folder / "model.safetensors").read_bytes()
        tensors = safetensors.torch.load(weights)
        transition = Transition(**config["model"].pop("transition"))
        sizes = ModelConfig(transition, **config["model"])
        if sizes.n_layer > len(tensors):
            raise ValueError(f"{sizes.n_layer=}, but {len(tensors)} tensors")
        with torch.device("meta"):  # memory is taken once the shapes are compared
            model = GPT(sizes)
        V, kind = config["tokenizer"]["V"], config["tokenizer"]["kind"]
        about = dict(config["about"])
    except Exception as error:  # whatever a damaged file may hold
        what = f"{folder} is not a readable checkpoint ({error!r}): delete it, and "
        raise ValueError(f"{what}train or fetch it again") from error
    _check_shapes(folder, model, tensors)
    edges, centres = (tensors.pop(name) for name in BINS)
    names = [name for name, _ in model.named_parameters()]
    state = {name: tensors.pop(name).float() for name in names}
    model.load_state_dict(state, assign=True)
    tokenizer = Tokenizer(transition, V, kind, edges, centres).to(device)
    return Checkpoint(model.eval().to(device), tokenizer, about, tensors)


def _check_shapes(folder: Path, model: GPT, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless the tensors hold the model's weights, and bins."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    wrong = [name for name in expected if found.get(name) != expected[name]]
    roots = {name.split(".")[0] for name in expected}
    more = [name for name in found.keys() - expected if name.split(".")[0] in roots]
    if wrong := wrong + more + [name for name in BINS if name not in found]:
        raise ValueError(
            f"{folder}: the weights do not fit config.json in {wrong[:3]}: found "
            f"{found.get(wrong[0])}, expected {expected.get(wrong[0])}; delete the "
            "folder, and train or fetch it again"
        )
