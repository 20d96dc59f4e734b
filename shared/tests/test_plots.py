import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import plots
from shared.errors import DataError, ResourceError
from shared.estimates import Estimate
from shared.faults import fail_nth
from shared.metrics import JsonLines

Record = tuple[int, dict[str, float], str]


def write_run(folder: Path, records: Sequence[Record]) -> Path:
    """Write a metrics.jsonl and return its path."""
    sink = JsonLines(folder / "metrics.jsonl")
    for step, values, kind in records:
        sink.log(step, values, kind)
    sink.close()
    return sink.path


def a_run(folder: Path) -> Path:
    """Write a run of 400 steps that plunges, is best at step 200, and skips two steps."""
    train: list[Record] = [
        (step, {"loss": 9.0 if step < 10 else 3.0 - step / 400, "lr": 0.001}, "train")
        for step in range(1, 401)
    ]
    val: list[Record] = [
        (step, {"val_loss": loss, "bits_per_byte": 1.0}, "val")
        for step, loss in ((1, 9.5), (100, 3.0), (200, 2.25), (400, 2.5))
    ]
    skip: list[Record] = [(50, {"loss": float("nan")}, "skip"), (60, {"loss": 9.0}, "skip")]
    return write_run(folder, [*train, *val, *skip])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep each figure that is drawn, instead of writing it."""
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: kept.append(figure))
    return kept


def test_the_picture_is_a_png_that_fits_a_readme(tmp_path: Path) -> None:
    """900 x 560 pixels, with ink on it."""
    plots.plot_loss(a_run(tmp_path), tmp_path / "loss.png", title="a run", subtitle="tiny")
    data = (tmp_path / "loss.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (900, 560)
    assert len(data) > 10_000


def test_a_run_folder_gets_its_picture(tmp_path: Path) -> None:
    """Of its own losses; none where there are none."""
    a_run(tmp_path).rename(tmp_path / "metrics.jsonl")
    assert plots.plot_run(tmp_path, "a run", "bits")
    plots.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "own.png", title="a run", unit="bits")
    assert (tmp_path / "loss.png").read_bytes() == (tmp_path / "own.png").read_bytes()
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "loss.png").unlink()
    assert not plots.plot_run(tmp_path, "a run", "bits")
    assert not (tmp_path / "loss.png").exists()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """A picture changes in version control only when the run did."""
    run = a_run(tmp_path)
    for name in ("a.png", "b.png"):
        plots.plot_loss(run, tmp_path / name, title="a run")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_axes_and_curves_are_labelled(tmp_path: Path, figures: list[Any]) -> None:
    """Title, subtitle, units, and a legend with the best point and the skipped steps."""
    plots.plot_loss(a_run(tmp_path), tmp_path, title="$1 run_", subtitle="tiny", unit="bits")
    loss, rate = figures[0].axes
    assert loss.get_title(loc="left") == "$1 run_"
    assert [text.get_text() for text in loss.texts] == ["tiny"]
    assert loss.get_ylabel() == "loss (bits)"
    assert rate.get_xlabel() == "step"
    assert rate.get_ylabel() == "learning\nrate"
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == [
        "train (smoothed)",
        "validation",
        "best 2.2500 at step 200",
        "2 skipped steps",
    ]


def test_the_best_validation_and_the_skipped_steps_are_marked(
    tmp_path: Path, figures: list[Any]
) -> None:
    """The star lies on the lowest validation loss, a line on each skipped step."""
    plots.plot_loss(a_run(tmp_path), tmp_path, title="a run")
    lines = [line.get_xydata().tolist() for line in figures[0].axes[0].lines]
    assert [[200.0, 2.25]] in lines
    assert [line[0][0] for line in lines[-2:]] == [50.0, 60.0]


def test_the_plunge_at_the_start_does_not_flatten_the_rest(
    tmp_path: Path, figures: list[Any]
) -> None:
    """The vertical range is that of the losses after the first twentieth of the run."""
    plots.plot_loss(a_run(tmp_path), tmp_path, title="a run")
    low, high = figures[0].axes[0].get_ylim()
    assert 1.9 < low < 2.01
    assert 3.0 < high < 3.2


def test_a_late_rise_stays_in_the_picture(tmp_path: Path, figures: list[Any]) -> None:
    """A run that diverges shows it."""
    losses = [5.0, *[2.0] * 97, 8.0, 8.0]
    records: list[Record] = [(i, {"loss": loss}, "train") for i, loss in enumerate(losses)]
    plots.plot_loss(write_run(tmp_path, records), tmp_path, title="a run")
    assert figures[0].axes[0].get_ylim()[1] > 8.0


def test_a_run_of_a_few_steps_is_drawn_as_it_is(tmp_path: Path, figures: list[Any]) -> None:
    """Without a learning rate or validation there is one panel and one curve, all of it shown."""
    records: list[Record] = [(i, {"loss": 3.0 - i / 10}, "train") for i in range(1, 4)]
    plots.plot_loss(write_run(tmp_path, records), tmp_path, title="a run")
    (axes,) = figures[0].axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.9, 2.8, 2.7]]
    assert axes.get_xlabel() == "step"
    assert axes.get_ylim()[0] < 2.7
    assert axes.get_ylim()[1] > 2.9
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train"]


def test_a_constant_loss_can_be_drawn(tmp_path: Path) -> None:
    """One point, and a loss of zero, have a range too."""
    plots.plot_loss(
        write_run(tmp_path, [(1, {"loss": 0.0, "lr": 0.0}, "train")]),
        tmp_path / "loss.png",
        title="a run",
    )
    assert (tmp_path / "loss.png").exists()


def test_a_run_without_training_loss_is_refused(tmp_path: Path) -> None:
    """Nothing finite to draw is an error that names the file."""
    run = write_run(tmp_path, [(1, {"loss": float("nan")}, "train"), (1, {"loss": 1.0}, "val")])
    with pytest.raises(DataError, match=r"metrics\.jsonl: no training loss to draw"):
        plots.plot_loss(run, tmp_path / "loss.png", title="a run")


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path) -> None:
    """A picture is replaced whole or not at all."""
    out = tmp_path / "loss.png"
    out.write_bytes(b"old")
    run = a_run(tmp_path)
    with fail_nth(2), pytest.raises(ResourceError, match=r"loss\.png"):
        plots.plot_loss(run, out, title="a run")
    assert out.read_bytes() == b"old"


def test_drawing_leaves_global_settings_alone(tmp_path: Path) -> None:
    """A user's matplotlib settings neither change nor show in our pictures; pyplot stays out."""
    run = a_run(tmp_path)
    plots.plot_loss(run, tmp_path / "a.png", title="a run")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        before = dict(mpl.rcParams)
        plots.plot_loss(run, tmp_path / "b.png", title="a run")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    code = (
        "import sys\nfrom pathlib import Path\nfrom shared import plots\n"
        "early = 'matplotlib' in sys.modules\n"
        "plots.plot_loss(Path(sys.argv[1]), Path(sys.argv[2]), title='a run')\n"
        "print(early, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path / "c.png")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False True False\n"


def test_bars_stand_in_order_with_their_values(tmp_path: Path, figures: list[Any]) -> None:
    """The first row is on top, each bar shows its value, and the last one stands out."""
    rows = {"plain": 950.0, "+ bf16": 1900.0, "+ compile": 2.5}
    plots.bar_chart(rows, tmp_path, title="A ladder", unit="tok/s", subtitle="one GPU")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
    assert axes.yaxis_inverted()
    assert [bar.get_width() for bar in axes.patches] == [950.0, 1900.0, 2.5]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["950", "1,900", "2.5", "one GPU"]
    colours = [mpl.colors.to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours[0] == colours[1] != colours[2]
    assert axes.get_xlabel() == "tok/s"


def test_a_bar_can_be_highlighted_by_name(tmp_path: Path, figures: list[Any]) -> None:
    """`highlight` names the bar that stands out."""
    plots.bar_chart([("ours", 2.0), ("a", 1.0), ("b", 1.0)], tmp_path, title="t", unit="s",
                    highlight="ours")  # fmt: skip
    colours = [mpl.colors.to_hex(bar.get_facecolor()) for bar in figures[0].axes[0].patches]
    assert colours[1] == colours[2] != colours[0]


def test_a_bar_chart_is_a_file_and_needs_rows(tmp_path: Path) -> None:
    """It is written like any picture; no rows are an error."""
    plots.bar_chart([("ours", 2.0)], tmp_path / "bars.png", title="t", unit="s")
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(DataError, match="no rows to draw"):
        plots.bar_chart({}, tmp_path / "bars.png", title="t", unit="s")


def test_an_interval_is_drawn_where_there_is_one() -> None:
    """Bars at their places from the top down; one whisker, for the one mean of several runs."""
    axes = plots.new_figure(4, 3).add_subplot()
    estimates = {"one run": Estimate(2.0), "three": Estimate(1.5, 0.25)}
    places = {"one run": 0.0, "three": 1.4, "elsewhere": 2.4}
    plots.interval_bars(axes, places, estimates, dict.fromkeys(estimates, plots.BLUE))
    bars: list[Any] = list(axes.patches)
    shown = [(bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in bars]
    assert shown == [(2.0, pytest.approx(0.0)), (1.5, pytest.approx(1.4))]
    labels: list[Any] = list(axes.texts)
    assert [each.get_text() for each in labels] == ["2.000", "1.500"]
    assert labels[1].xy == (1.75, 1.4)  # beside the whisker, not across it
    (whisker,) = axes.collections
    ends = np.asarray(whisker.get_paths()[0].vertices)
    assert ends.tolist() == [[1.25, 1.4], [1.75, 1.4]]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(places)
    low, high = axes.get_ylim()
    assert low > high


def test_smoothing_averages_neighbours() -> None:
    """The worked example of the docstring, and a reach of nothing."""
    assert plots.smooth([4, 1, 1], 1) == [4.0, 2.0, 1.0]
    assert plots.smooth([4, 1, 1], 0) == [4.0, 1.0, 1.0]
    assert plots.smooth([], 3) == []


@given(st.integers(1, 40), st.integers(0, 10), st.integers(-5, 5), st.integers(-5, 5))
def test_smoothing_keeps_a_straight_line(count: int, reach: int, start: int, slope: int) -> None:
    """It neither lags behind nor bends the ends, unlike an exponential average."""
    line = [float(start + slope * i) for i in range(count)]
    assert plots.smooth(line, reach) == pytest.approx(line)
