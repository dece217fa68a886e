from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from sparse_dset.benchmark.plot import draw_bars, plot_results, results_figure
from sparse_dset.models.executions import NAMES


def rows(with_ap: bool) -> list[dict]:
    """Dense, and two executions at three ratios."""
    made = [("dense", 1.0, 30.0, 200.0, 0.40)]
    for ratio in (0.1, 0.3, 1.0):
        made.append(("dense_scatter", ratio, 29 + ratio, 195 + 5 * ratio, 0.25 + 0.15 * ratio))
        made.append(("sparse", ratio, 15 + 15 * ratio, 90 + 110 * ratio, 0.26 + 0.14 * ratio))
    return [
        {
            "execution": execution,
            "keep_ratio": ratio,
            "gflops": {"total": gflops},
            "latency_ms": {"median": latency},
            "metrics": {"AP": ap} if with_ap else None,
        }
        for execution, ratio, gflops, latency, ap in made
    ]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args: object, **options: object) -> None:
        saved.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.mark.parametrize("with_ap", [True, False])
def test_panels_show_what_was_measured(tmp_path: Path, figure: list, with_ap: bool) -> None:
    path = tmp_path / "new" / "plot.png"
    plot_results(rows(with_ap), path, title="nano")
    with Image.open(path) as image:
        assert image.size == (1500, 630)
    left, right = figure[0].axes
    if with_ap:
        assert left.get_xlabel() == "GFLOPs per image"
        assert right.get_xlabel() == "latency of a forward pass (ms)"
        assert {left.get_ylabel(), right.get_ylabel()} == {"AP (%)"}
    else:
        assert {left.get_xlabel(), right.get_xlabel()} == {"keep ratio asked"}
        assert left.get_ylabel() == "GFLOPs per image"
    lines = {line.get_label(): line for line in left.get_lines()}
    sparse = lines["sparse"].get_xydata()
    assert sparse[0].tolist() == pytest.approx([16.5, 27.4] if with_ap else [0.1, 16.5])
    assert len(lines["dense"].get_xydata()) == 1
    texts = [text.get_text() for text in left.texts]
    assert texts.count("0.3") == (2 if with_ap else 0)


def test_rows_without_ap_are_left_out_beside_rows_that_have_it(
    tmp_path: Path, figure: list
) -> None:
    mixed = rows(True)
    mixed[1]["metrics"] = {"AP": None}
    plot_results(mixed, tmp_path / "plot.png")
    lines = {line.get_label(): line for line in figure[0].axes[0].get_lines()}
    assert len(lines["dense_scatter"].get_xydata()) == 2


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plot_results([], tmp_path / "plot.png")


def test_every_execution_can_be_drawn(tmp_path: Path) -> None:
    drawn = [{**rows(True)[0], "execution": execution} for execution in NAMES]
    plot_results(drawn, tmp_path / "plot.png")


@pytest.mark.parametrize("text", ["$x^2$", "$\\broken", "a $ b $", "${x}", "%s {0}", "<b>"])
def test_text_is_text_in_figures(tmp_path: Path, text: str) -> None:
    plot_results(rows(with_ap=True), tmp_path / "x.svg", title=text)
    axes = Figure().subplots()
    draw_bars(axes, [text], [{"total": 1.0, "backbone": 1.0}])
    for drawn in (axes.get_xticklabels()[0], results_figure(rows(True), title=text)._suptitle):
        assert drawn.get_text() == text
        assert not drawn.get_parse_math()
    axes.figure.savefig(tmp_path / "bars.png")
