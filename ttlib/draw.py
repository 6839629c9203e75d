"""What two pages draw: bodies made of capsules, the four rooms.  matplotlib only, no GL."""

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from ttlib import fourrooms

# Okabe and Ito's colours, told apart by colour-blind readers, by what they stand for.
COLOURS = {"transformer": "#0072B2", "other": "#D55E00", "third": "#009E73", "data": "#555555", "fourth": "#CC79A7"}


def stadium(a: np.ndarray, b: np.ndarray, radius: float, points: int = 16) -> np.ndarray:
    """Outline (2 * points, 2) of a capsule between 2-D ends a, b (2,)."""
    along = b - a
    angle = np.arctan2(along[1], along[0]) if np.any(along) else 0.0
    turn = np.linspace(-np.pi / 2, np.pi / 2, points)
    cap = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.concatenate([b + cap @ rotation, a - cap @ rotation])


def body(
    axes,
    ends: np.ndarray,
    radii: np.ndarray,
    colour: str,
    azimuth: float = 15,
    elevation: float = 12,
    alpha: float = 1.0,
) -> None:
    """One body: ends (capsules, 2, 3) and radii (capsules,) in metres, seen orthographically.

    Painter's order: far capsules first; a few lighter, smaller copies shifted to the light round each one.
    """
    from matplotlib.colors import to_rgb

    flat, depth = project(ends, azimuth, elevation)
    order = np.argsort(-depth.mean(-1))
    outlines, colours = [], []
    for i in order:
        for k, (shrink, light) in enumerate(((1.0, 0.0), (0.72, 0.22), (0.42, 0.45))):
            shift = np.array([-0.16, 0.2]) * radii[i] * k
            outlines.append(stadium(flat[i, 0] + shift, flat[i, 1] + shift, radii[i] * shrink))
            colours.append([*(c + (1 - c) * light for c in to_rgb(colour)), alpha])
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="none"))


def project(points: np.ndarray, azimuth: float = 15, elevation: float = 12) -> tuple[np.ndarray, np.ndarray]:
    """(..., 3) metres -> (..., 2) in the picture (x to the right, z up) and (...) depth away from the viewer."""
    az, el = np.radians([azimuth, elevation])
    right = np.array([np.cos(az), np.sin(az), 0])
    away = np.array([-np.sin(az) * np.cos(el), np.cos(az) * np.cos(el), -np.sin(el)])
    return np.stack([points @ right, points @ np.cross(right, away)], -1), points @ away


def strip(axes, ends: np.ndarray, radii: np.ndarray, colour: str, spacing: float) -> np.ndarray:
    """Poses side by side, `spacing` metres apart, seen from the side: ends (poses, capsules, 2, 3) -> (poses,)
    where each stands in the picture."""
    ends = ends.copy()
    ends[..., 0] += (np.arange(len(ends)) * spacing - ends[..., 0].mean((1, 2)))[:, None, None]
    flat, _ = project(ends, azimuth=0)  # turned, the row of poses would sink into the floor
    axes.axhspan(flat[..., 1].min() - 1, 0, color="#ececec", lw=0, zorder=0)
    for pose in ends:
        body(axes, pose, radii, colour, azimuth=0)
    limits = (flat[..., 0].min() - 0.4, flat[..., 0].max() + 0.4)
    axes.set(xlim=limits, ylim=(-0.25, flat[..., 1].max() + 0.3), aspect="equal", yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return flat[..., 0].mean((1, 2))


def rooms(axes) -> None:
    """The walls of the four rooms."""
    for low, high in fourrooms.WALLS:
        axes.add_patch(Rectangle(low, *(high - low), color="#3a3a3a", lw=0, zorder=1))
    axes.add_patch(Rectangle((0, 0), fourrooms.SIDE, fourrooms.SIDE, fill=False, ec="#3a3a3a", lw=3, zorder=2))
    axes.set(xlim=(0, fourrooms.SIDE), ylim=(0, fourrooms.SIDE), aspect="equal", xticks=[], yticks=[])


def fading_path(axes, path: np.ndarray, colour: str) -> None:
    """A trajectory (T, 2): colour saturating over time, start filled, as in Figure 5."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    share = np.linspace(0.15, 1, max(1, len(path) - 1))[:, None]
    shades = 1 - share * (1 - np.array(to_rgb(colour)))
    axes.add_collection(LineCollection(np.stack([path[:-1], path[1:]], 1), colors=shades, lw=1.8, zorder=3))
    axes.plot(*path[0], "o", color=1 - 0.35 * (1 - np.array(to_rgb(colour))), ms=6, mec=colour, mew=0.8, zorder=4)
