from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparse_dset import build_detector
from sparse_dset.benchmark import measure as benchmark
from sparse_dset.benchmark.arms import Arm, BenchmarkConfig, plan_arms
from sparse_dset.benchmark.measure import measure
from sparse_dset.command_line import check_command_line
from sparse_dset.models.pruner import Threshold
from tests.benchmark.sets import coco_config

SCRIPTS = Path(benchmark.__file__).resolve().parents[2] / "scripts"


class Stub(nn.Module):
    """Keeps what it is asked for, and can be told to be wrong."""

    def __init__(self, *, error: float = 0.0, extra: int = 0) -> None:
        super().__init__()
        self.error, self.extra = error, extra
        selector = SimpleNamespace(min_tokens=1, max_tokens=None)
        scorer = SimpleNamespace(scored=(3,))
        self.pruner = SimpleNamespace(selector=selector, scatter_levels=(2,), halo=0, scorer=scorer)
        self.seen: list[float] = []

    def forward(
        self, images: torch.Tensor, *, execution: str, keep_ratio: float, progress: float = 1.0
    ) -> Any:
        assert not self.training
        self.seen.append(float(images.mean()))
        batch = len(images)
        tokens = torch.tensor([[320, 80, 20]] * batch)
        kept = tokens.clone()
        if execution != "dense":
            kept = (tokens * keep_ratio).round().long()
            kept[:, 2] += self.extra
        wrong = 0.0 if execution == "dense" else self.error
        logits = torch.linspace(-1, 1, 8).view(1, 4, 2).repeat(batch, 1, 1)
        if execution != "dense":
            logits = logits.flip(1)  # the order of queries means nothing
        return SimpleNamespace(
            pred_logits=logits + wrong,
            pred_boxes=torch.full((batch, 4, 4), 0.5),
            num_kept=kept,
            backend="reference",
            num_tokens=tokens,
        )


def fake_flops(model: Any, images: torch.Tensor, *, execution: str, keep_ratio: float) -> dict:
    total = len(images) * (10.0 if execution == "dense" else 4.0 + 5.0 * keep_ratio)
    return {"backbone": 1.0, "total": total}


@pytest.fixture(autouse=True)
def _flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "count_flops", fake_flops)
    monkeypatch.setattr(benchmark, "part_modules", lambda model: {"backbone": [model]})


ARMS = (Arm("dense"), Arm("dense_scatter", 0.3), Arm("sparse", 0.3))


def test_rows_say_what_was_measured_and_how() -> None:
    model = Stub().train()
    rows = measure(model, [torch.rand(2, 3, 64, 96)], ARMS, warmup=1, repeats=3)
    assert model.training
    assert [(row["execution"], row["keep_ratio"]) for row in rows] == [
        ("dense", 1.0),
        ("dense_scatter", 0.3),
        ("sparse", 0.3),
    ]
    sparse = rows[2]
    assert sparse["kept"] == {"s3": 0.3, "s4": 0.3, "s5": 0.3}
    assert sparse["gflops"]["total"] == pytest.approx(5.5)
    assert sparse["gflops_saved"] == pytest.approx(0.45)
    assert sparse["max_difference"] == 0.0
    assert rows[0]["speedup"] == 1.0
    assert sparse["latency_ms"]["p10"] <= sparse["latency_ms"]["median"]
    assert 0 < sparse["part_ms"]["backbone"] <= sparse["part_ms"]["total"]
    assert sparse["backend"] == "reference"
    assert sparse["image_size"] == [64, 96]
    assert sparse["environment"]["threads"] == torch.get_num_threads()
    json.dumps(rows)


def test_rounds_take_turns_over_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def flops_of_brightness(model: Any, images: torch.Tensor, **_: Any) -> dict:
        return {"total": float(images.sum())}

    monkeypatch.setattr(benchmark, "count_flops", flops_of_brightness)
    model = Stub()
    batches = [torch.full((2, 3, 64, 96), value) for value in (1.0, 2.0, 3.0)]
    rows = measure(model, batches, ARMS, warmup=1, repeats=3)
    assert rows[0]["gflops"]["total"] == pytest.approx(2.0 * 3 * 64 * 96)
    assert (rows[0]["batch_size"], rows[0]["images"]) == (2, 6)
    # Whole passes first, then those with clocks inside.
    timed = [model.seen[-24:][i : i + 3] for i in range(0, 24, 3)]
    assert timed == [[value] * 3 for value in (2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0)]


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_an_execution_that_disagrees_with_dense_is_not_timed(error: float) -> None:
    with pytest.raises(RuntimeError, match="dense_scatter at keep ratio 1 differs from dense"):
        measure(Stub(error=error), [torch.rand(1, 3, 64, 96)], ARMS)


def test_a_small_difference_is_reported() -> None:
    rows = measure(Stub(error=1e-4), [torch.rand(1, 3, 64, 96)], ARMS, warmup=1, repeats=1)
    assert rows[2]["max_difference"] == pytest.approx(1e-4, rel=1e-2)


def test_a_ratio_that_was_not_kept_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"dense_scatter@0.3 must keep \[6.0\] of \[20.0\]"):
        measure(Stub(extra=3), [torch.rand(1, 3, 64, 96)], ARMS)


def test_a_cap_on_the_tokens_is_no_error() -> None:
    model = Stub(extra=-3)
    model.pruner.selector.max_tokens = 3
    rows = measure(model, [torch.rand(1, 3, 64, 96)], ARMS, warmup=1, repeats=1)
    assert rows[2]["kept"]["s5"] == pytest.approx(3 / 20)


def test_the_first_arm_must_keep_every_token() -> None:
    with pytest.raises(ValueError, match=r"must keep every token, got .*'sparse@0.3'"):
        measure(Stub(), [torch.rand(1, 3, 64, 96)], ARMS[::-1])


def test_a_detector_with_a_cap_on_the_tokens_is_measured() -> None:
    model = build_detector("nano", 3, ["pruner.max_tokens=2"], pretrained=False)
    arms = (Arm("dense"), Arm("sparse", 0.9))
    rows = measure(model, [torch.rand(1, 3, 64, 96)], arms, warmup=1, repeats=1)
    assert rows[1]["kept"]["s5"] == pytest.approx(2 / 6)


def test_the_algorithm_is_the_one_that_was_asked_for() -> None:
    model = build_detector("nano", 3, ["ops.algorithm=indirect"], pretrained=False)
    arms = (Arm("dense"), Arm("sparse", 0.9))
    rows = measure(model, [torch.rand(1, 3, 64, 96)], arms, warmup=1, repeats=1)
    if rows[1]["backend"] == "cpu":
        assert set(rows[1]["algorithms"].values()) == {"indirect"}


def test_a_real_detector_is_measured() -> None:
    model = build_detector("nano", num_classes=3, pretrained=False)
    arms = plan_arms(["dense", "dense_scatter", "sparse"], [0.3])
    rows = measure(model, [torch.rand(2, 3, 64, 96)], arms, warmup=1, repeats=1)
    kept = {f"{r['execution']}@{r['keep_ratio']}": r["kept"] for r in rows}
    third = pytest.approx(1 / 3)
    assert kept["sparse@0.3"] == {"s3": third, "s4": third, "s5": third}
    assert kept["dense_scatter@0.3"] == {"s3": 1.0, "s4": 1.0, "s5": third}
    assert all(row["max_difference"] < 1e-4 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruner.keep_ratio=0.3,1.5"], r"\(0, 1\].*1.5"),
        (["pruner.keep_ratio=0"], r"\(0, 1\]"),
        (["pruner.keep_ratio=abc"], r"\(0, 1\].*abc"),
        (["pruner.keeep_ratio=0.5"], "did you mean 'pruner.keep_ratio'"),
        (["keep_ratio=0.5"], "did you mean 'keep_ratios'"),
        (["keep_ratios=[0.1,2]"], r"\(0, 1\].*2"),
        (["keep_ratios=0.3"], r"keep_ratios must be a list: write keep_ratios=\[0.3\]"),
        (["executions=dense"], r"executions must be a list: write executions=\[dense\]"),
        (["size=64"], r"size must be \[height, width\], got 64"),
        (["batch_size=abc"], "batch_size must be a whole number of at least 1, got 'abc'"),
        (["execution=dense,spars"], "execution must be one of"),
        (["model=nano,r999"], "r999"),
        (["pruner.keep_ratio=range(0.5,2,0.5)"], r"\(0, 1\].*1.5"),
    ],
)
def test_a_wrong_command_line_stops_before_any_job(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        check_command_line("benchmark", BenchmarkConfig.from_plain, ["-m", *arguments])


def test_a_right_command_line_passes() -> None:
    seen = []
    check_command_line(
        "benchmark",
        lambda cfg: seen.extend(BenchmarkConfig.from_plain(cfg).keep_ratios),
        ["-m", "execution=sparse", "pruner.keep_ratio=range(0.1,0.4,0.1)"],
    )
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4])
    check_command_line("benchmark", BenchmarkConfig.from_plain, ["pruner.keep_ratio=1"])


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_the_script_writes_rows_table_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["model=nano", "size=[64,96]", "warmup=1", "repeats=1", f"output_dir={tmp_path}"]
    run_script(monkeypatch, "benchmark.py", *options, "keep_ratios=[0.5]")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["execution"], r["keep_ratio"]) for r in rows] == [
        ("dense", 1.0),
        ("dense_scatter", 0.5),
        ("sparse", 0.5),
    ]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 10_000

    run_script(
        monkeypatch, "benchmark.py", "-m", *options, "execution=dense,sparse", "pruner.keep_ratio=1"
    )
    for number, execution in enumerate(("dense", "sparse")):
        (line,) = (tmp_path / str(number) / "results.jsonl").read_text().splitlines()
        assert f"execution={execution}" in json.loads(line)["overrides"]
    assert (tmp_path / "table.md").read_text().count("\n|") == 5  # rule and four arms


def save_nano(path: Path, data: dict[str, Any]) -> None:
    from sparse_dset.config import build_from_config, compose_config
    from sparse_dset.engine.checkpoint import save_checkpoint

    cfg = compose_config("detector", ["model=nano", "model.num_classes=2"])
    cfg["model"]["class_names"] = ["car", "bus"]
    model = build_from_config(cfg, pretrained=False)
    save_checkpoint(path, model_state=model.state_dict(), config={**cfg, "data": data})


def test_a_checkpoint_is_benchmarked_and_evaluated_on_its_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = tmp_path / "x.pt"
    save_nano(checkpoint, coco_config(tmp_path))
    common = [f"checkpoint={checkpoint}", f"output_dir={tmp_path}", "pruner.keep_ratio=0.5"]
    run_script(monkeypatch, "benchmark.py", *common, "execution=sparse", "warmup=1", "repeats=1")
    run_script(monkeypatch, "evaluate.py", *common, "execution=sparse")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["execution"], r["keep_ratio"]) for r in rows] == [
        ("benchmark", "sparse", 0.5),  # as soon as it is timed
        ("benchmark", "sparse", 0.5),  # and with AP
        ("evaluate", "sparse", 0.5),
    ]
    assert "metrics" not in rows[0]
    assert rows[1]["metrics"] == rows[2]["metrics"]
    assert rows[1]["metrics"]["num_images"] == 5
    assert rows[1]["metrics"]["kept_s5"] == 0.5
    assert rows[1]["image_size"] == [64, 96]
    assert "AP50/car" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "benchmark.py", *common, "model=nano")
    assert "leave out ['model=nano']" in capsys.readouterr().err


def test_a_calibrated_checkpoint_follows_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_dset.engine.checkpoint import load_detector

    checkpoint = tmp_path / "x.pt"
    save_nano(checkpoint, coco_config(tmp_path))
    common = [f"checkpoint={checkpoint}", f"output_dir={tmp_path}"]
    with pytest.raises(SystemExit, match=r"keep_ratio must be in \(0, 1\]"):
        run_script(monkeypatch, "calibrate.py", *common, "keep_ratio=1.5")
    run_script(monkeypatch, "calibrate.py", *common, "keep_ratio=0.5")
    selector = load_detector(checkpoint).pruner.selector
    assert isinstance(selector, Threshold)
    assert len(selector.calibration) == 101

    quick = ["warmup=1", "repeats=1"]
    run_script(monkeypatch, "evaluate.py", *common, "execution=sparse")
    run_script(monkeypatch, "benchmark.py", *common, *quick, "keep_ratios=[0.5]", "evaluate=false")
    run_script(monkeypatch, "scale.py", *common, *quick, "widths=[96,192]", "keep_ratio=0.5")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == [
        "calibrate",
        "evaluate",
        *["benchmark"] * 3,
        *["scale"] * 4,
    ]
    half = next(row for row in rows[0]["rows"] if row[0] == 0.5)
    assert half[1] == pytest.approx(selector.threshold)
    assert rows[1]["metrics"]["kept_s5"] == pytest.approx(half[2])
    assert (tmp_path / "scale.png").is_file()


def test_an_arm_made_from_another_has_its_own_name() -> None:
    assert replace(Arm("sparse", 0.5), keep_ratio=0.3).name == "sparse@0.3"
