"""Ways to damage the folder of a checkpoint or of an ensemble, and a disk that is full."""

import json

import safetensors.torch
import torch


def edit_config(change):
    """Return a damage: a change of what config.json holds."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def edit_tensors(change):
    """Return a damage: a change of the tensors."""

    def damage(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return damage


def cut(fraction):
    """Return a damage: the weights end too early."""

    def damage(folder):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(fraction * len(content))])

    return damage


def fill_disk(monkeypatch):
    """Let every write of tensors stop in the middle of the file."""

    def half(tensors, path, **options):
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    monkeypatch.setattr(torch, "save", half)
