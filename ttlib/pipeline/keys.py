"""Keys: hashes of the content that decides a result."""

import dataclasses
import hashlib
import json
from pathlib import Path

# Fields that a config got later.  They are left out of keys while they have their default, so that what was made before
# they existed is still found.
ADDED = {
    "ModelConfig": ("missing", "smooth"),
    "Plan": ("lucky", "noise", "chains"),
    "DataConfig": ("physics", "hidden", "official"),
    "Bins": ("V_rest",),
    "Experiment": ("markov",),
}


def plain(x):
    """Return configs as JSON: dataclasses become dictionaries, tuples become lists."""
    if dataclasses.is_dataclass(x):
        later = ADDED.get(type(x).__name__, ())
        kept = [f.name for f in dataclasses.fields(x) if f.name not in later or getattr(x, f.name) != f.default]
        return {name: plain(getattr(x, name)) for name in kept}
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x


def key(*parts) -> str:
    """16 hex digits of the content of configs, names and other keys."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def file_key(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
