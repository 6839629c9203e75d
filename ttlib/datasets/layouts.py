"""Recognise the files of others by their content and names, and give the lines that convert them."""

from collections.abc import Collection
from pathlib import Path

import h5py

HEAD = "import h5py\nimport numpy as np\nimport pandas as pd\nfrom ttlib.datasets import hdf5, own"
TAIL = 'hdf5.write("mine.hdf5", recorded)'
# Lines that make `recorded`, the five arrays, of the file at `path`.
LINES = {
    "numpy's archive": """recorded = dict(np.load(path))  # the names of its arrays must be those of the five keys""",
    "numpy's array": """table = np.load(path)  # say which columns are which
recorded = {"observations": table[:, :-4], "actions": table[:, -4:-3], "rewards": table[:, -3],
            "terminals": table[:, -2], "timeouts": table[:, -1]}""",
    "a table of text": """table = pd.read_csv(path)  # say which columns are which
recorded = {"observations": table[["s0", "s1"]], "actions": table[["a0"]], "rewards": table["r"],
            "terminals": table["terminal"], "timeouts": table["timeout"]}""",
    "LeRobot's layout, or other parquet": """table = pd.read_parquet(path)  # this needs the package pyarrow
last = np.diff(table["episode_index"], append=-1) != 0
recorded = {"observations": np.stack(table["observation.state"]), "actions": np.stack(table["action"]),
            "rewards": table["next.reward"], "terminals": 0 * last, "timeouts": last}""",
    "Minari's layout": """with h5py.File(path) as file:
    recorded = own.join(file.values())""",
    "robomimic's layout": """with h5py.File(path) as file:  # or for states np.column_stack of entries of demo["obs"]
    recorded = own.join({"observations": demo["states"], "actions": demo["actions"], "rewards": demo["rewards"],
                         "terminations": demo["dones"]} for demo in file["data"].values())""",
    "d3rlpy's layout": """with h5py.File(path) as file:
    recorded = own.join({"observations": file[f"observations_{i}"], "actions": file[f"actions_{i}"],
                         "rewards": file[f"rewards_{i}"], "terminations": file[f"terminated_{i}"]}
                        for i in range(file["num_episodes"][()]))""",
    "d3rlpy's older layout": """names = ["observations", "actions", "rewards", "terminals", "episode_terminals"]
recorded = hdf5.read(path, names)
recorded["timeouts"] = (recorded["episode_terminals"] == 1) & (recorded["terminals"] == 0)""",
}
BYTES = {b"PAR1": "LeRobot's layout, or other parquet", b"PK": "numpy's archive", b"\x93NUMPY": "numpy's array"}
NAMES = {"episode_0": "Minari's layout", "data": "robomimic's layout", "observations_0": "d3rlpy's layout",
         "episode_terminals": "d3rlpy's older layout"}  # fmt: skip


def lines(layout: str) -> str:
    """Return the lines of Python that write a file of a layout anew, with D4RL's keys."""
    return "\n    ".join("\n".join([HEAD, LINES[layout], TAIL]).split("\n"))


def of_file(path: Path) -> str:
    """Return what a file is that is not HDF5, and how it is converted; nothing where that is not known."""
    if not path.is_file():
        inside = sorted(str(found.relative_to(path)) for found in path.glob("*/*")) if path.is_dir() else []
        return f"is not a file; expected one{f', such as {inside[0]} in it' if inside else ''}: give its full path"
    if h5py.is_hdf5(path):
        return ""
    with path.open("rb") as stream:
        head = stream.read(512)
    layout = next((layout for start, layout in BYTES.items() if head.startswith(start)), None)
    if layout is None and (path.suffix in (".csv", ".tsv", ".txt") and head):
        layout = "a table of text"
    if layout is None and path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        return "is not HDF5 but a pickle, which may run code when it is read; expected HDF5 with D4RL's keys"
    return f"is not HDF5 but {layout}; these lines convert it:\n\n    {lines(layout)}" if layout else ""


def of_names(names: Collection[str]) -> str:
    """Return how an HDF5 file whose arrays and groups have these names is converted; nothing if it is not known."""
    layout = next((layout for name, layout in NAMES.items() if name in names), None)
    return f".  This is {layout}; these lines convert it:\n\n    {lines(layout)}" if layout else ""
