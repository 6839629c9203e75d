"""Viewers for pages of the book: moving bodies and attention maps, in HTML and JavaScript that need no network.

The HTML files lie in this folder.  A function here returns the text of one of them with data filled in.
"""

import base64
import json
import re
from collections.abc import Sequence
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from ttlib.drawing import figures
from ttlib.tokenizer import Tokenizer


def text(file: str) -> str:
    """Return the text of a file of this folder."""
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def fill(file: str, name: str, data: dict, **parts: object) -> str:
    """Return the HTML of a file of this folder, with data for its script, a name for its element, and other parts.

    The name must differ from those of all other elements of a page.  Raises ValueError if it could not stand in HTML
    and in CSS as it is.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"element name {name!r}; expected a letter, followed by letters, digits, '-' or '_'")
    html = text(file)
    for part, content in parts.items():
        html = html.replace(f"{{{{{part}}}}}", str(content))
    values = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")  # so "</script>" in a label is only text
    return html.replace("{{name}}", name).replace("{{data}}", values)


def body_player(bodies: dict[str, tuple[np.ndarray, str]], radii: np.ndarray, seconds: float, name: str) -> str:
    """Return the HTML of bodies that move side by side, with a button and a slider.  They do not move at first.

    bodies maps a label to the ends of capsules, (T, capsules, 2, 3) in metres, and to a colour.  seconds: the length of
    one time step.  name: see `fill`.  A body with a position that is not finite is not drawn.
    """
    frames = []
    for ends, _ in bodies.values():
        flat, depth = figures.project(ends)
        order = np.argsort(-depth.mean(-1), axis=1)  # far capsules first, as in `figures.body`
        finite = np.isfinite(flat).all((1, 2, 3))
        rounded = np.clip(np.nan_to_num(1000 * flat), -1e5, 1e5).round().astype(int).reshape(*flat.shape[:2], 4)
        frames.append([
            [[int(i), *corners[i].tolist()] for i in order[t]] if finite[t] else [] for t, corners in enumerate(rounded)
        ])  # fmt: skip
    data = {
        "bodies": frames,
        "radii": (1000 * radii).round().astype(int).tolist(),
        "labels": list(bodies),
        "colours": [colour for _, colour in bodies.values()],
        "seconds": seconds,
    }
    return fill("body_player.html", name, data)


def attention_viewer(
    maps: Sequence[Tensor], ids: Tensor, tokenizer: Tokenizer, meaning: Sequence[str], name: str
) -> str:
    """Return the HTML of one window's attention maps: choose a layer, a head and a token, and see its weights.

    maps: one for each layer, (heads, L, L), as the model gives them: row p holds the weights that predict token p + 1.
    ids: (L,) of the window.  meaning: (D,) texts that say what each dimension of a transition is, with its unit in
    brackets.  name: see `fill`.
    """
    transition, L = tokenizer.transition, len(ids)
    read_before = torch.ones(L - 1, L).tril().bool()  # tokens 1, ..., L - 1 are predicted, from the tokens before each
    # A weight is stored as its square root in one byte.
    roots = torch.stack([m[:, :-1][:, read_before] for m in maps]).sqrt().mul(255).round().to(torch.uint8)
    data = {
        "symbols": transition.names(),
        "meaning": [text.replace(")", "").split(" (") for text in meaning],
        "values": [f"{x:.3g}".replace("-", "−") for x in tokenizer.decode(ids).tolist()],
        "unread": transition.reward_to_go,
        "layers": len(maps),
        "heads": len(maps[0]),
        "weights": base64.b64encode(roots.cpu().numpy().tobytes()).decode(),
    }
    return fill("attention_viewer.html", name, data)
