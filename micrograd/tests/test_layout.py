"""The layout of drawings: nothing overlaps, few wires cross."""

import random
from itertools import pairwise

import pytest

from micrograd.layout import LANE, Layout, Segment, _Sheet, lay_out

WIDTH, HEIGHT = 100.0, 60.0


def random_graph(seed: int) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    """Return sizes and wires of a graph of 30 boxes, in which all lead to the last."""
    rng = random.Random(seed)
    wires = [(rng.randrange(i), i) for i in range(8, 30) for _ in range(rng.choice((1, 2)))]
    used = {source for source, _ in wires}
    wires += [(i, 29) for i in range(29) if i not in used]
    return [(WIDTH + rng.randrange(40), HEIGHT) for _ in range(30)], wires


def height_at(segment: Segment, x: float) -> float:
    """Return where a level segment is at `x`."""
    assert segment[1] == pytest.approx(segment[3])
    return segment[1]


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_overlap(seed: int) -> None:
    """Two boxes are apart in one direction, by the gap where they share a column."""
    sizes, wires = random_graph(seed)
    layout = lay_out(sizes, wires, gap=(50.0, 10.0))
    for i, (x, y) in enumerate(layout.boxes):
        assert x >= 0.0
        assert x + sizes[i][0] <= layout.width
        assert y >= HEIGHT / 2 - 1e-6
        assert y <= layout.height - HEIGHT / 2 + 1e-6
        for j in range(i):
            if layout.boxes[j][0] == x:
                assert abs(layout.boxes[j][1] - y) >= HEIGHT + 10.0 - 1e-6
            else:
                left, right = sorted((i, j), key=lambda k: layout.boxes[k][0])
                edge = layout.boxes[left][0] + sizes[left][0]
                assert layout.boxes[right][0] >= edge + 49.0


@pytest.mark.parametrize("seed", range(8))
def test_wires_join_their_boxes_and_pass_between_others(seed: int) -> None:
    """A wire starts at its source's edge, ends at its target's, and crosses no box on the way."""
    sizes, wires = random_graph(seed)
    layout = lay_out(sizes, wires)
    for (source, target), path in zip(wires, layout.wires, strict=True):
        (x, y), (end, middle) = layout.boxes[source], layout.boxes[target]
        assert path[0][:2] == pytest.approx((x + sizes[source][0], y))
        assert path[-1][2] == pytest.approx(end)
        assert abs(path[-1][3] - middle) < HEIGHT / 2
        for here, following in pairwise(path):
            assert here[2:] == pytest.approx(following[:2])
        for i, box in enumerate(layout.boxes):
            assert not any(meets(box, sizes[i], segment) for segment in path)


def meets(box: tuple[float, float], size: tuple[float, float], segment: Segment) -> bool:
    """Return whether a segment runs through the inside of a box."""
    x0, y0, x1, y1 = segment
    left, right = max(x0, box[0]), min(x1, box[0] + size[0])
    if right - left < 1e-6:
        return False
    return any(abs(y - box[1]) < size[1] / 2 for y in (y0, y1))


def test_sorting_undoes_a_crossing() -> None:
    """Of two wires that cross, one box is moved so that they don't."""
    sheet = _Sheet([(WIDTH, HEIGHT)] * 5, [(0, 3), (1, 2), (2, 4), (3, 4)], frozenset())
    sheet.rows = [[0, 1], [2, 3], [4]]
    assert sheet.crossings() == 1
    sheet.sort()
    assert sheet.crossings() == 0


def test_a_tree_is_drawn_without_crossings() -> None:
    """A binary tree, its wires given in any order, has none."""
    rng = random.Random(0)
    wires = [(i, (i + 32) // 2) for i in range(30)]  # 16 leaves, 15 inner boxes
    wires = [(a, b) for a, b in wires if a < b]
    rng.shuffle(wires)
    sheet = _Sheet([(WIDTH, HEIGHT)] * 31, wires, frozenset())
    sheet.sort()
    assert sheet.crossings() == 0


class Counted(_Sheet):
    """A sheet that notes how many crossings it was found to have."""

    seen: tuple[int, ...] = ()

    def crossings(self) -> int:
        """Return the number of crossings."""
        self.seen = (*self.seen, super().crossings())
        return self.seen[-1]


def test_sorting_keeps_the_best_order_it_saw() -> None:
    """Over random graphs it ends with the fewest crossings of all sweeps, half or less."""
    before = after = 0
    for seed in range(20):
        sizes, wires = random_graph(seed)
        sheet = Counted(sizes, wires, frozenset())
        for row in sheet.rows:
            random.Random(seed).shuffle(row)
        sheet.sort()
        assert sheet.crossings() == min(sheet.seen)
        before, after = before + sheet.seen[0], after + sheet.seen[-1]
    assert after < before / 2


def test_operands_enter_in_their_order_only_where_it_matters() -> None:
    """Of `a - b` and `b - a` one must have its wires cross; of two sums neither."""
    wires = [(0, 2), (1, 2), (1, 3), (0, 3), (2, 4), (3, 4)]
    layout = lay_out([(WIDTH, HEIGHT)] * 5, wires, ordered=[2, 3])
    ends = [path[-1][3] for path in layout.wires]
    assert ends[0] < ends[1]
    assert ends[2] < ends[3]
    layout = lay_out([(WIDTH, HEIGHT)] * 5, wires)
    ends = [path[-1][3] for path in layout.wires]
    is_above = layout.boxes[0][1] < layout.boxes[1][1]
    assert (ends[0] < ends[1]) == is_above
    assert (ends[3] < ends[2]) == is_above


def test_boxes_that_want_the_same_place_share_the_way() -> None:
    """Two that want height 10 end as far above it as below; a third that has room stays."""
    sheet = _Sheet([(WIDTH, HEIGHT)] * 4, [(0, 3), (1, 3), (2, 3)], frozenset())
    heights = [0.0] * 4
    sheet._place([0, 1, 2], [10.0, 10.0, 500.0], heights, 20.0)
    assert heights[:3] == [-30.0, 50.0, 500.0]


def test_one_value_has_one_lane() -> None:
    """Two late users of a value share its wire up to where they part."""
    wires = [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4)]
    layout = lay_out([(WIDTH, HEIGHT)] * 5, wires)
    early, late = layout.wires[3], layout.wires[5]
    assert early[:4] == late[:4]
    assert len(late) > len(early)


def test_a_box_stands_in_the_middle_of_its_inputs() -> None:
    """With room for it, the output is level with the mean of its two inputs."""
    layout = lay_out([(WIDTH, HEIGHT)] * 3, [(0, 2), (1, 2)])
    assert layout.boxes[2][1] == pytest.approx((layout.boxes[0][1] + layout.boxes[1][1]) / 2)


def test_a_long_wire_keeps_clear_of_the_boxes_it_passes() -> None:
    """The lane of a wire past a column is at least half a lane from the box there."""
    layout: Layout = lay_out([(WIDTH, HEIGHT)] * 3, [(0, 1), (1, 2), (0, 2)])
    level = next(s for s in layout.wires[2] if s[0] == layout.boxes[1][0])
    distance = abs(height_at(level, level[0]) - layout.boxes[1][1])
    assert distance >= HEIGHT / 2 + LANE / 2


def test_a_single_box_is_the_whole_drawing() -> None:
    """One box and no wires: the drawing has its size."""
    assert lay_out([(WIDTH, HEIGHT)], []) == Layout(WIDTH, HEIGHT, [(0.0, HEIGHT / 2)], [])
