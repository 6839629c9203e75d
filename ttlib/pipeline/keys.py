"""Keys: hashes of the content that decides a result."""

import dataclasses
import hashlib
import json
from pathlib import Path


def plain(x):
    """Return configs as JSON: dataclasses become dictionaries, tuples become lists.

    Fields at their default are left out, so that a field which a config gets later changes no key.
    """
    if dataclasses.is_dataclass(x):
        values = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
        defaults = {field.name: field.default for field in dataclasses.fields(x)}
        return {name: plain(value) for name, value in values.items() if value != defaults[name]}
    if isinstance(x, dict):
        return {str(name): plain(value) for name, value in x.items()}
    return [plain(value) for value in x] if isinstance(x, (list, tuple)) else x


def key(*parts) -> str:
    """Return 16 hex digits that stand for the content of configs, names and other keys."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def file_key(path: Path) -> str:
    """Return 16 hex digits that stand for the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
