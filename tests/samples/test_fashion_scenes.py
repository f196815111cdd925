"""Fashion scenes, held against their specification (48x48, objects of 12 to 44 pixels, clutter)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from fashion_scenes import draw_scene, draw_scenes
from PIL import Image

Gray = npt.NDArray[np.uint8]
MANY = 4000


def _flat(*levels: int) -> Gray:
    """One photograph of each level."""
    return np.stack([np.full((28, 28), level, np.uint8) for level in levels])


def _noise(count: int) -> Gray:
    return np.random.default_rng(5).integers(0, 256, (count, 28, 28), np.uint8)


def _scene(photographs: Gray, index: int, seed: int) -> Gray:
    return draw_scene(photographs, index, np.random.default_rng(seed))


def _object_box(scene: Gray, level: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the pixels of ``level``; they must fill their box."""
    rows, columns = np.nonzero(scene == level)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    assert (scene[top : top + height, left : left + width] == level).all()
    return top, left, height, width


@pytest.fixture(scope="module")
def boxes() -> list[tuple[int, int, int, int]]:
    """Where the object lies in many scenes: a photograph of one level no clutter reaches."""
    photographs = _flat(255, 0)
    return [_object_box(_scene(photographs, 0, seed), 255) for seed in range(MANY)]


def test_scenes_are_gray_48_by_48() -> None:
    scene = _scene(_noise(3), 1, 0)
    assert scene.shape == (48, 48)
    assert scene.dtype == np.uint8


def test_objects_are_whole_squares_of_every_allowed_size(
    boxes: list[tuple[int, int, int, int]],
) -> None:
    """A box that left the canvas would not be square, for its other part would be cut off."""
    assert all(height == width for _, _, height, width in boxes)
    sizes = Counter(height for _, _, height, _ in boxes)
    assert sorted(sizes) == list(range(12, 45))
    assert max(sizes.values()) < 2 * min(sizes.values())  # uniform: each 121 +- 11 times


def test_objects_lie_anywhere_they_fit(boxes: list[tuple[int, int, int, int]]) -> None:
    for size in (44, 43, 40):
        found = [(top, left) for top, left, height, _ in boxes if height == size]
        for axis in zip(*found, strict=True):
            assert sorted(set(axis)) == list(range(48 - size + 1))
        assert len(set(found)) > 2 * (48 - size + 1)  # the two are drawn apart
    smallest = np.array([box[:2] for box in boxes if box[2] == 12])
    assert smallest.min() == 0
    assert smallest.max() == 36
    assert abs(smallest.mean() - 18) < 2


def test_object_is_the_bilinear_photograph() -> None:
    """Without clutter to see, the scene is the resized photograph on black."""
    photographs = np.stack([_noise(1)[0] // 2 + 100, np.zeros((28, 28), np.uint8)])
    for seed in range(20):
        scene = _scene(photographs, 0, seed)
        rows, columns = np.nonzero(scene)
        size = int(rows.max() - rows.min()) + 1
        found = scene[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        image = Image.fromarray(photographs[0])
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(found, expected)
        assert np.count_nonzero(scene) == size * size


@pytest.mark.parametrize(("level", "covered"), [(0, True), (12, True), (13, False), (200, False)])
def test_clutter_shows_only_where_the_object_is_dark(level: int, covered: bool) -> None:
    """The photograph is of one level; clutter is 70, being 0.7 of 100."""
    reached = 0
    for seed in range(100):
        photographs = _flat(level, 100)
        scene = _scene(photographs, 0, seed)
        outline = _scene(_flat(255, 0), 0, seed)  # the same draws
        reached += int(((outline == 255) & (scene == 70)).sum())
        inside = scene[outline == 255]
        assert set(np.unique(inside)) <= {level, 70}
    assert (reached > 0) == covered


@pytest.mark.parametrize(("level", "shown"), [(255, 178), (100, 70), (1, 1), (0, 0)])
def test_clutter_has_seven_tenths_of_the_brightness(level: int, shown: int) -> None:
    for seed in range(10):
        assert set(np.unique(_scene(_flat(0, level), 0, seed))) == {0, shown}


def test_clutter_is_at_most_four_patches_of_eight_pixels() -> None:
    """On an empty scene the clutter is seen whole; only overlaps make it smaller."""
    areas = [np.count_nonzero(_scene(_flat(0, 255), 0, seed)) for seed in range(300)]
    assert max(areas) == 4 * 8 * 8
    assert min(areas) >= 8 * 8


def test_clutter_is_cut_from_the_photographs() -> None:
    """Every patch is an 8x8 window of another photograph at 0.7 of its brightness."""
    photographs = np.stack([np.zeros((28, 28), np.uint8), _noise(1)[0]])
    windows = np.lib.stride_tricks.sliding_window_view(photographs[1], (8, 8)).reshape(-1, 8, 8)
    known = {np.rint(window * 0.7).astype(np.uint8).tobytes() for window in windows}
    for seed in range(20):
        scene = _scene(photographs, 0, seed)
        places = np.lib.stride_tricks.sliding_window_view(scene, (8, 8)).reshape(-1, 8, 8)
        found = sum(place.tobytes() in known for place in places)
        assert 1 <= found <= 4


@pytest.mark.parametrize("index", range(4))
def test_clutter_comes_from_all_other_photographs_and_never_its_own(index: int) -> None:
    photographs = _flat(50, 100, 150, 200)
    photographs[index] = 255  # its own clutter would be 178
    shown = [35, 70, 105, 140]
    del shown[index]
    seen: Counter[int] = Counter()
    for seed in range(300):
        scene = _scene(photographs, index, seed)
        assert not (scene == 178).any()
        seen.update(level for level in shown if (scene == level).any())
    assert sorted(seen) == shown
    assert max(seen.values()) < 1.4 * min(seen.values())  # each about 0.7 of 300, +- 8


def test_clutter_lies_anywhere_on_the_canvas() -> None:
    covered = np.zeros((48, 48), bool)
    for seed in range(1500):
        covered |= _scene(_flat(0, 255), 0, seed) > 0
    assert covered.all()


def test_one_seed_gives_one_scene() -> None:
    photographs = _noise(4)
    np.testing.assert_array_equal(_scene(photographs, 2, 7), _scene(photographs, 2, 7))
    assert not np.array_equal(_scene(photographs, 2, 7), _scene(photographs, 2, 8))


def test_photographs_are_not_changed() -> None:
    photographs = _noise(3)
    before = photographs.copy()
    draw_scenes(photographs, 6, seed=0)
    np.testing.assert_array_equal(photographs, before)


def test_set_of_scenes_names_each_ones_photograph() -> None:
    """The label of a scene is that of its object: sizes beyond clutter show whose it is."""
    photographs = _flat(251, 252, 253)
    scenes, indices = draw_scenes(photographs, 7, seed=3)
    np.testing.assert_array_equal(indices, [0, 1, 2, 0, 1, 2, 0])
    assert scenes.shape == (7, 48, 48)
    for scene, index in zip(scenes, indices, strict=True):
        _object_box(scene, 251 + int(index))


def test_set_of_scenes_depends_on_seed_and_place_alone() -> None:
    photographs = _noise(5)
    few, _ = draw_scenes(photographs, 3, seed=1)
    many, _ = draw_scenes(photographs, 10, seed=1)
    np.testing.assert_array_equal(many[:3], few)
    assert not np.array_equal(many[0], many[5])  # the same photograph, drawn again
    other, _ = draw_scenes(photographs, 3, seed=2)
    assert not np.array_equal(other, few)
