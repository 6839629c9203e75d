"""The style of all figures, and drawings of bodies and of the four rooms, which need matplotlib alone."""

import numpy as np

from ttlib.environments import four_rooms

# What each colour stands for.  Colour-blind readers can tell these apart: four are Okabe and Ito's, and one is a grey.
COLOURS = {"transformer": "#0072B2", "other": "#D55E00", "third": "#009E73", "fourth": "#CC79A7", "data": "#555555"}


def style() -> None:
    """Set the look of all figures of a page: 7 inches wide, text of 9 points.  Call it once, at the top of the page."""
    import seaborn

    sizes = ("font.size", "axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize")
    sizes += ("legend.fontsize", "legend.title_fontsize", "figure.titlesize", "figure.labelsize")
    rc = dict.fromkeys(sizes, 9) | {"figure.figsize": (7, 3), "legend.frameon": False}
    rc |= {"axes.spines.top": False, "axes.spines.right": False}
    # seaborn changes these two.  White edges would cut into bars and bands.
    rc |= {"patch.force_edgecolor": False, "image.cmap": "viridis"}
    font = "DejaVu Sans"  # matplotlib brings this font, so figures look the same on every machine
    seaborn.set_theme("paper", "ticks", list(COLOURS.values()), font, color_codes=False, rc=rc)


def project(points: np.ndarray, azimuth: float = 15, elevation: float = 12) -> tuple[np.ndarray, np.ndarray]:
    """Project points (..., 3) onto the picture of a viewer at angles in degrees, without perspective.

    Returns positions in the picture (..., 2), x to the right and z up, and depths (...), all in metres.
    """
    az, el = np.radians([azimuth, elevation])
    right = np.array([np.cos(az), np.sin(az), 0])
    away = np.array([-np.sin(az) * np.cos(el), np.cos(az) * np.cos(el), -np.sin(el)])
    return np.stack([points @ right, points @ np.cross(right, away)], -1), points @ away


def capsule_outline(a: np.ndarray, b: np.ndarray, radius: float, points: int = 16) -> np.ndarray:
    """Return the outline (2 * points, 2) of a capsule with the ends a and b, (2,) each."""
    along = b - a
    angle = np.arctan2(along[1], along[0]) if np.any(along) else 0.0
    turn = np.linspace(-np.pi / 2, np.pi / 2, points)
    cap = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([b + cap @ rotation, a - cap @ rotation])


def body(
    axes, ends: np.ndarray, radii: np.ndarray, colour: str, azimuth: float = 15, shift: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Draw one body made of capsules (capsules, 2, 3), moved in the picture by `shift`, all in metres."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    flat, depth = project(ends, azimuth)
    flat, order = flat + shift, np.argsort(-depth.mean(-1))  # far capsules first, so that near ones cover them
    outlines, colours = [], []
    for i in order:
        # Smaller and lighter copies, moved towards the light, make a capsule look round.
        for k, (shrink, light) in enumerate(((1.0, 0.0), (0.72, 0.22), (0.42, 0.45))):
            a, b = flat[i] + np.array([-0.16, 0.2]) * radii[i] * k
            outlines.append(capsule_outline(a, b, radii[i] * shrink))
            colours.append([c + (1 - c) * light for c in to_rgb(colour)])
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="none"))


def strip(axes, ends: np.ndarray, radii: np.ndarray, colour: str, spacing: float) -> np.ndarray:
    """Draw poses (poses, capsules, 2, 3) of a body side by side -> where each is, (poses,) metres to the right."""
    ends = ends.copy()
    ends[..., 0] += (np.arange(len(ends)) * spacing - ends[..., 0].mean((1, 2)))[:, None, None]
    flat, _ = project(ends, azimuth=0)  # with another azimuth, the row of poses would sink into the floor
    axes.axhspan(flat[..., 1].min() - 1, 0, color="#ececec", lw=0, zorder=0)
    for pose in ends:
        body(axes, pose, radii, colour, azimuth=0)
    limits = (flat[..., 0].min() - 0.4, flat[..., 0].max() + 0.4)
    axes.set(xlim=limits, ylim=(-0.25, flat[..., 1].max() + 0.3), aspect="equal", yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return flat[..., 0].mean((1, 2))


def rooms(axes) -> None:
    """Draw the walls of the four rooms."""
    from matplotlib.patches import Rectangle

    for low, high in four_rooms.WALLS:
        axes.add_patch(Rectangle(low, *(high - low), color="#3a3a3a", lw=0, zorder=1))
    axes.add_patch(Rectangle((0, 0), four_rooms.SIDE, four_rooms.SIDE, fill=False, ec="#3a3a3a", lw=3, zorder=2))
    axes.set(xlim=(0, four_rooms.SIDE), ylim=(0, four_rooms.SIDE), aspect="equal", xticks=[], yticks=[])


def fading_path(axes, path: np.ndarray, colour: str) -> None:
    """Draw a trajectory (T, 2) whose colour grows stronger over time, with a filled start, as in Figure 5."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    strength = np.linspace(0.15, 1, max(1, len(path) - 1))[:, None]
    shades = 1 - strength * (1 - np.array(to_rgb(colour)))
    axes.add_collection(LineCollection(np.stack([path[:-1], path[1:]], 1), colors=shades, lw=1.8, zorder=3))
    axes.plot(*path[0], "o", color=1 - 0.35 * (1 - np.array(to_rgb(colour))), ms=6, mec=colour, mew=0.8, zorder=4)
