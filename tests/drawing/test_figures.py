"""Tests of the style of all figures and of the drawings."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ttlib.drawing import figures


@pytest.fixture
def styled():
    """Set the style for one test."""
    with plt.rc_context():
        figures.style()
        yield
        plt.close("all")


def test_the_style_sets_size_text_lines_and_colours(styled):
    figure, axes = plt.subplots()
    colours = [axes.plot([0, 1], [0, i], label=str(i))[0].get_color() for i in range(5)]
    axes.set(xlabel="x", title="title")
    legend = axes.legend(title="legend")
    texts = [axes.xaxis.label, axes.title, legend.get_title(), *legend.get_texts(), *axes.get_xticklabels()]
    assert figure.get_figwidth() == 7
    assert {text.get_fontsize() for text in [*texts, figure.suptitle("figure")]} == {9}
    assert not axes.spines["top"].get_visible() and not axes.spines["right"].get_visible()
    assert axes.spines["left"].get_visible() and axes.spines["bottom"].get_visible()
    assert not legend.get_frame_on()
    assert [to_rgb(colour) for colour in colours] == [to_rgb(colour) for colour in figures.COLOURS.values()]


def test_a_path_starts_pale_and_ends_in_its_colour():
    figure, axes = plt.subplots()
    figures.fading_path(axes, np.arange(10.0).reshape(5, 2), "#000000")
    shades = axes.collections[0].get_colors()[:, 0]
    assert (np.diff(shades) < 0).all() and shades[-1] == 0 and shades[0] == pytest.approx(0.85)
    plt.close(figure)


def test_poses_stand_side_by_side_on_the_floor():
    figure, axes = plt.subplots()
    ends = np.zeros((3, 2, 2, 3))
    ends[:, 1, :, 2] = 1.0
    at = figures.strip(axes, ends, np.array([0.1, 0.2]), "#0072B2", spacing=1.5)
    assert np.diff(at) == pytest.approx([1.5, 1.5])
    assert sum(len(bodies.get_paths()) for bodies in axes.collections) == 3 * 2 * 3  # poses, capsules, shades
    plt.close(figure)


def test_the_outline_of_a_capsule_is_everywhere_a_radius_from_its_axis():
    outline = figures.capsule_outline(np.array([0.0, 0.0]), np.array([3.0, 0.0]), 0.5)
    nearest = np.clip(outline[:, 0], 0, 3)
    assert np.hypot(outline[:, 0] - nearest, outline[:, 1]) == pytest.approx(np.full(len(outline), 0.5))
