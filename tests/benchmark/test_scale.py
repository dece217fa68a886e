from __future__ import annotations

import pytest
import torch

from sparse_dset import build_detector
from sparse_dset.benchmark.scale import (
    fit_exponent,
    measure_scale,
    on_canvas,
    plot_scale,
    summarize,
)


def test_a_canvas_holds_the_picture_once():
    image = torch.rand(3, 64, 96)
    canvas = on_canvas(image, 288)
    assert canvas.shape == (3, 192, 288)
    assert torch.equal(canvas[:, 64:128, 96:192], image)
    around = canvas.clone()
    around[:, 64:128, 96:192] = around.mean()
    assert around.std() < 0.3 * image.std()  # no detail elsewhere
    assert torch.equal(on_canvas(image, 96), image)
    with pytest.raises(ValueError, match="smaller than the picture"):
        on_canvas(image, 64)


def test_the_exponent_of_a_power_law():
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)


def test_rows_and_plot(tmp_path):
    model = build_detector("nano", 2, ["pruner.stage=s3"], pretrained=False)
    arms = {"warmup": 1, "repeats": 1, "keep_ratio": 0.2}
    image, executions = torch.rand(3, 64, 96), ["dense", "sparse"]
    rows = list(measure_scale(model, image, [96, 192], executions, **arms))
    assert [(r["width"], r["execution"], r["kept_cells"]) for r in rows] == [
        (96, "dense", 6),
        (96, "sparse", 1),
        (192, "dense", 24),
        (192, "sparse", 5),
    ]
    sums = summarize(rows)
    assert [s["execution"] for s in sums] == ["dense", "sparse"]
    assert sums[0]["growth"] == pytest.approx(
        rows[2]["latency_ms"]["median"] / rows[0]["latency_ms"]["median"]
    )
    plot_scale(rows, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 10_000
