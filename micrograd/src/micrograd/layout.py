"""Where the boxes and wires of a layered drawing go (Sugiyama, Tagawa and Toda, 1981).

Values flow from left to right, in four steps:

1. columns: a box is as far from the output as its longest path to it, so close to what uses it;
2. wires: a value that is used further on passes the columns between in a lane, one for all users;
3. order: sweeps sort each column by the mean position of its neighbours, and the order with the
   fewest crossings is kept;
4. heights: boxes move towards their neighbours, as near as keeping their order and gap allows.

It knows nothing of Values: boxes are numbers 0..n-1 with a size, the output last.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

SWEEPS = 24
"""Sweeps over all columns, to order them and to move them; later ones change little."""

STRAIGHT = 8.0
"""How much more than a box's ends a wire's lanes pull, so that long wires run straight."""

LANE = 14.0
"""The height that a wire needs where it passes between boxes."""

PORTS = 16.0
"""The distance between two wires where they enter a box."""

Segment = tuple[float, float, float, float]
"""Part of a wire, from (x, y) to (x, y)."""


class Layout(NamedTuple):
    """A drawing's size, each box's left edge and middle (x, y), and each wire's segments.

    A segment whose ends differ in height is drawn as a curve, level at both ends.
    """

    width: float
    height: float
    boxes: list[tuple[float, float]]
    wires: list[list[Segment]]


def lay_out(
    sizes: Sequence[tuple[float, float]],
    wires: Sequence[tuple[int, int]],
    *,
    ordered: Iterable[int] = (),
    gap: tuple[float, float] = (64.0, 16.0),
) -> Layout:
    """Return where boxes of (width, height) `sizes` go, and the wires (from, to) between them.

    Each wire runs from a lower number to a higher one. Wires enter a box that is one of `ordered`
    in the order of `wires`, from the top; others enter where they cross least. `gap` is the room
    between columns and between the boxes of a column.
    """
    sheet = _Sheet(sizes, wires, frozenset(ordered))
    sheet.sort()
    heights = sheet.settle(gap[1])
    lefts, rights = sheet.spread(gap[0])
    top = min(y - sheet.height(item) / 2 for item, y in enumerate(heights))
    heights = [y - top for y in heights]
    bottom = max(y + sheet.height(item) / 2 for item, y in enumerate(heights))
    boxes = [(lefts[sheet.column[i]], heights[i]) for i in range(len(sizes))]
    paths: list[list[Segment]] = [[] for _ in wires]
    ports = sheet.ports(heights)
    for path, items, port in zip(paths, sheet.routes, ports, strict=True):
        x, y = lefts[sheet.column[items[0]]] + sizes[items[0]][0], heights[items[0]]
        if x < rights[sheet.column[items[0]]]:  # past the wider boxes of its column
            path.append((x, y, rights[sheet.column[items[0]]], y))
            x = rights[sheet.column[items[0]]]
        for item in items[1:]:
            c = sheet.column[item]
            end = heights[item] + (port if item == items[-1] else 0.0)
            path.append((x, y, lefts[c], end))
            x, y = rights[c], end
            if item != items[-1]:
                path.append((lefts[c], y, x, y))
    return Layout(rights[-1], bottom, boxes, paths)


class _Sheet:
    """Boxes, and the lanes of wires between them (items n and above), in columns."""

    def __init__(
        self,
        sizes: Sequence[tuple[float, float]],
        wires: Sequence[tuple[int, int]],
        ordered: frozenset[int],
    ) -> None:
        self.sizes = sizes
        self.wires = wires
        self.ordered = ordered
        self.column = self._columns()
        self.before: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self.after: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self.routes = self._routes()
        self.rows = self._first_rows()

    def height(self, item: int) -> float:
        return self.sizes[item][1] if item < len(self.sizes) else LANE

    # ---- 1 and 2: columns and wires

    def _columns(self) -> list[int]:
        """Return the column of each box: 0 is the leftmost."""
        far = [0] * len(self.sizes)
        for source, target in sorted(self.wires, reverse=True, key=lambda wire: wire[1]):
            far[source] = max(far[source], far[target] + 1)
        return [max(far) - f for f in far]

    def _routes(self) -> list[list[int]]:
        """Return the items each wire passes, making the lanes, and note who is beside whom."""
        lanes: dict[tuple[int, int], int] = {}
        routes: list[list[int]] = []
        entered: dict[int, int] = defaultdict(int)
        inputs = [target for _, target in self.wires]
        for source, target in self.wires:
            route = [source]
            for c in range(self.column[source] + 1, self.column[target]):
                if (source, c) not in lanes:
                    lanes[source, c] = len(self.column)
                    self.column.append(c)
                    self._join(route[-1], lanes[source, c], 0.0)
                route.append(lanes[source, c])
            # Where a wire enters counts as a fraction of a place, so that ports can uncross too.
            entered[target] += 1
            share = entered[target] / (inputs.count(target) + 1) - 0.5
            self._join(route[-1], target, 0.8 * share if target in self.ordered else 0.0)
            routes.append([*route, target])
        return routes

    def _join(self, left: int, right: int, port: float) -> None:
        self.after[left].append((right, port))
        self.before[right].append((left, port))

    # ---- 3: the order in each column

    def _first_rows(self) -> list[list[int]]:
        """Return the items of each column, as a walk from the outputs back meets them."""
        rows: list[list[int]] = [[] for _ in range(max(self.column) + 1)]
        seen: set[int] = set()
        waiting = [i for i in range(len(self.sizes)) if not self.after[i]]
        while waiting:
            item = waiting.pop()
            if item not in seen:
                seen.add(item)
                rows[self.column[item]].append(item)
                waiting += [left for left, _ in reversed(self.before[item])]
        return rows

    def sort(self) -> None:
        """Order each column so that few wires cross."""
        best, fewest = [row[:] for row in self.rows], self.crossings()
        for sweep in range(SWEEPS):
            if not fewest:
                break
            backward = sweep % 2 == 0
            columns = range(len(self.rows))
            for c in reversed(columns) if backward else columns:
                self._sort_column(c, backward)
            crossings = self.crossings()
            if crossings < fewest:
                best, fewest = [row[:] for row in self.rows], crossings
        self.rows = best

    def _sort_column(self, c: int, backward: bool) -> None:
        """Sort column `c` by the mean place of the neighbours to its right, or left."""
        beside = c + 1 if backward else c - 1
        if not 0 <= beside < len(self.rows):
            return
        place = {item: float(i) for i, item in enumerate(self.rows[beside])}
        middle = {}
        for i, item in enumerate(self.rows[c]):
            sign = 1.0 if backward else -1.0  # seen from the box, a port is the other way round
            near = (self.after if backward else self.before)[item]
            places = [place[other] + sign * port for other, port in near]
            middle[item] = sum(places) / len(places) if places else float(i)
        self.rows[c].sort(key=lambda item: middle[item])

    def crossings(self) -> int:
        """Return how many pairs of wires cross."""
        return sum(self._crossings(c) for c in range(1, len(self.rows)))

    def _crossings(self, c: int) -> int:
        """Return how many pairs of wires cross on their way into column `c`."""
        place = {item: i for row in self.rows[c - 1 : c + 1] for i, item in enumerate(row)}
        ends = sorted(
            (place[left], place[right] + port)
            for right in self.rows[c]
            for left, port in self.before[right]
        )
        seen: list[float] = []
        total = 0
        for _, end in ends:
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
        return total

    # ---- 4: heights, widths and ports

    def settle(self, gap: float) -> list[float]:
        """Return the middle of each item, from top to bottom."""
        heights = [0.0] * len(self.column)
        for row in self.rows:
            self._place(row, [0.0] * len(row), heights, gap)
        for sweep in range(SWEEPS):
            right = sweep % 2 == 1
            last = sweep >= SWEEPS - 4  # at the end look both ways
            columns = self.rows if right else self.rows[::-1]
            for row in columns:
                wanted = [self._wanted(item, heights, right, last) for item in row]
                self._place(row, wanted, heights, gap)
        return heights

    def _wanted(self, item: int, heights: list[float], right: bool, both: bool) -> float:
        """Return where the neighbours of an item pull it."""
        near = self.before[item] + self.after[item] if both else []
        near = near or (self.before[item] if right else self.after[item])
        if not near:
            return heights[item]
        n = len(self.sizes)
        pulls = [STRAIGHT if item >= n and other >= n else 1.0 for other, _ in near]
        total = sum(p * heights[other] for p, (other, _) in zip(pulls, near, strict=True))
        return total / sum(pulls)

    def _place(self, row: list[int], wanted: list[float], heights: list[float], gap: float) -> None:
        """Put a column's items as near to `wanted` (least squares) as order and gap allow.

        Less the room that the items above need, heights must only not decrease: neighbours that
        want to pass each other are pooled at their mean (Ayer et al., 1955).
        """
        room = [0.0]
        for above, below in pairwise(row):
            lanes = max(above, below) >= len(self.sizes)
            step = (self.height(above) + self.height(below)) / 2 + (gap / 2 if lanes else gap)
            room.append(room[-1] + step)
        pools: list[tuple[float, int]] = []  # mean and size
        for want, r in zip(wanted, room, strict=False):
            mean, size = want - r, 1
            while pools and pools[-1][0] > mean:
                other, n = pools.pop()
                mean, size = (mean * size + other * n) / (size + n), size + n
            pools.append((mean, size))
        means = [mean for mean, size in pools for _ in range(size)]
        for item, mean, r in zip(row, means, room, strict=False):
            heights[item] = mean + r

    def spread(self, gap: float) -> tuple[list[float], list[float]]:
        """Return the left and right edge of each column."""
        lefts: list[float] = []
        rights: list[float] = []
        x = 0.0
        for row in self.rows:
            width = max((self.sizes[i][0] for i in row if i < len(self.sizes)), default=0.0)
            wires = sum(len(self.before[item]) for item in row)
            if lefts:  # many wires need room to turn
                x += gap + min(2.0 * max(0, wires - 8), 2.0 * gap)
            lefts.append(x)
            x += width
            rights.append(x)
        return lefts, rights

    def ports(self, heights: list[float]) -> list[float]:
        """Return how far from the middle of its box each wire enters."""
        entering: dict[int, list[int]] = defaultdict(list)
        for w, (_, target) in enumerate(self.wires):
            entering[target].append(w)
        out = [0.0] * len(self.wires)
        for target, wires in entering.items():
            if target not in self.ordered:
                wires.sort(key=lambda w: heights[self.routes[w][-2]])
            room = min(PORTS, 0.8 * self.sizes[target][1] / len(wires))
            for i, w in enumerate(wires):
                out[w] = room * (i - (len(wires) - 1) / 2)
        return out
