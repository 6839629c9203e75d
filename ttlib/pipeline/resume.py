"""Keep the state of a training in a file, so that a killed run continues to the same weights."""

import hashlib
import time
import zipfile
from pathlib import Path

import torch

from ttlib import files, train
from ttlib.data import Windows
from ttlib.model import GPT
from ttlib.pipeline import results
from ttlib.train import TrainConfig


class Resume:
    """The state of a training in a file, which only a run of the same model, data and config takes up."""

    def __init__(self, folder: Path, seconds: float = 60.0):
        self.path, self.seconds, self.time, self.of = Path(folder) / "resume.pt", seconds, time.monotonic(), ""

    def resume(self, model: GPT, config: TrainConfig, windows: Windows):
        """Return number format (that of a run that was begun), optimisers, updates done and curve; set the weights."""
        parts = windows.bins, windows.end
        data = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()
        options = windows.T, windows.action_weight, windows.goal, windows.masked, windows.markov
        self.of = f"{config} {model.config} {len(windows)} {data} {options}"
        device = next(model.parameters()).device
        saved = self._read(device)
        if saved.get("of") != self.of:
            return train.begin(model, config)
        model.load_state_dict(saved["model"])
        optimisers = train.optimisers(model, config, getattr(torch, saved["dtype"]))
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        return saved["dtype"], optimisers, saved["update"], saved["curve"]

    def _read(self, device: torch.device) -> dict:
        """Return the state in the file; nothing, after a line about it, where there is none that can be used."""
        try:
            with zipfile.ZipFile(self.path) as file:
                if damaged := file.testzip():  # torch does not compare the checksums
                    raise ValueError(f"the checksum of {damaged} is another one")
            saved = torch.load(self.path, device, weights_only=True)
            if not all(x.isfinite().all() for x in saved["model"].values()):
                raise ValueError("its weights are not finite")
            return saved
        except FileNotFoundError:
            return {}
        except Exception as error:  # whatever a damaged file may hold
            results.say(f"{self.path} is damaged ({error}): the training begins anew")
            return {}

    def write(self, model: GPT, optimisers: list, update: int, curve: list, dtype: str) -> None:
        """Write the state, unless that was done less than `seconds` ago."""
        if time.monotonic() - self.time < self.seconds:
            return
        state = {"model": dict(model.named_parameters()), "optimisers": [x.state_dict() for x in optimisers]}
        state |= {"update": update, "curve": curve, "of": self.of, "dtype": dtype}
        files.write_aside(self.path, lambda aside: torch.save(state, aside))
        self.time = time.monotonic()
