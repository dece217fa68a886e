"""What the audit says is what independent arithmetic and single calls say."""

from __future__ import annotations

import copy
import functools
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from sparse_dset.audit.audit import FORMS, PARTS, audit, audit_steps
from sparse_dset.audit.claims import CLAIMED_SIZE, compare_with_claims, is_claimed
from sparse_dset.audit.summary import format_audit, plot_audit, steps_table
from sparse_dset.benchmark.arms import Arm
from sparse_dset.benchmark.flops import count_flops
from sparse_dset.config import build_from_config, compose_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit.py"
ARMS = [Arm("dense"), Arm("dense_scatter", 0.5), Arm("sparse", 0.5), Arm("masked", 0.5)]


def _open(name, *overrides):
    config = compose_config("detector", [f"model={name}", *overrides])
    return build_from_config(config, pretrained=False).eval(), config


def _transform(_module, inputs, _maps):
    torch.fft.rfft2(inputs[0])


@functools.cache
def _nano_rows():
    torch.manual_seed(0)
    model, config = _open("nano")
    return audit(model, config, torch.rand(2, 3, 64, 96), ARMS, warmup=1, repeats=1)


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
@pytest.mark.parametrize("name", ["r18", pytest.param("r50", marks=pytest.mark.slow), "lite0"])
def test_what_is_counted_is_what_is_computed(name, size):
    model, config = _open(name)
    rows = audit(model, config, torch.rand(1, 3, *size), ARMS, depth=1, warmup=1, repeats=1)
    published = [row for row in rows if row["form"] == "published"]
    assert [row["execution"] for row in published] == [arm.execution for arm in ARMS]
    for row in published:
        for costs in [*row["parts"].values(), row["total"]]:
            assert round(costs["gflops"] * 1e9) == round(costs["gflops_computed"] * 1e9)


def test_parts_add_up():
    rows = _nano_rows()
    assert [(row["form"], row["execution"]) for row in rows] == [
        (form, arm.execution) for form in FORMS for arm in ARMS
    ]
    for row in rows:
        parts, total = row["parts"].values(), row["total"]
        assert list(row["parts"]) == list(PARTS)
        assert sum(part["gflops"] for part in parts) == pytest.approx(total["gflops"])
        assert 0 < sum(part["ms"] for part in parts) < total["ms"]
        assert 0 < sum(part["mib_moved"] for part in parts) < total["mib_moved"]
        assert row["image_size"] == [64, 96]
        assert sum(part["parameters"] for part in parts) == total["parameters"]


def test_totals_are_per_image_and_those_of_the_flop_counter():
    torch.manual_seed(0)
    model, _ = _open("nano")
    images = torch.rand(2, 3, 64, 96)
    for row in _nano_rows()[: len(ARMS)]:
        ratio = None if row["execution"] == "dense" else 0.5
        counted = count_flops(model, images, execution=row["execution"], keep_ratio=ratio)
        assert row["total"]["gflops"] == pytest.approx(counted["total"] / 2)
        assert row["sampling_gflops"] == pytest.approx(counted["sampling"] / 2)


def test_modules_lie_within_their_parts():
    for row in _nano_rows():
        modules, parts = row["modules"], row["parts"]
        assert modules["backbone"]["gflops"] == pytest.approx(parts["backbone"]["gflops"])
        # The projections before it are of the part, not of the module.
        assert 0 < modules["decoder"]["gflops"] < parts["decoder"]["gflops"]
        assert 0 < modules["decoder"]["mib_moved"] < parts["decoder"]["mib_moved"]
        stages = [
            costs["gflops"]
            for name, costs in modules.items()
            if name.count(".") == 3 and name.startswith("backbone.model.blocks.")
        ]
        assert 0 < sum(stages) <= parts["backbone"]["gflops"]
        assert ("pruner" in modules) == (row["execution"] != "dense")
        assert all(costs["ms"] >= 0 and costs["parameters"] >= 0 for costs in modules.values())


def test_what_no_counter_knows_is_listed():
    dense = _nano_rows()[0]["uncounted"]
    assert dense["aten.mul"]["calls"] > 0
    assert dense["aten.mul"]["bytes"] > 0
    assert not {"aten.convolution", "aten.addmm", "aten.mm", "aten.bmm"} & dense.keys()
    assert "aten.view" not in dense


def test_operators_that_no_formula_knows_are_not_called_harmless():
    model, config = _open("nano")
    size = torch.rand(1, 3, 64, 64)
    with_products = copy.deepcopy(model)
    with_products.backbone.register_forward_hook(_transform)
    plain = audit(model, config, size, ARMS[:1], warmup=0, repeats=1)
    with pytest.warns(UserWarning, match="_fft_r2c"):
        rows = audit(with_products, config, size, ARMS[:1], warmup=0, repeats=1)
    assert [row["without_formula"] for row in plain] == [[], []]
    assert [row["without_formula"] for row in rows] == [["aten._fft_r2c"]] * 2
    assert "leave out" not in format_audit(plain, [])
    text = format_audit(rows, [])
    assert "GFLOPs leave out what these may multiply: aten._fft_r2c." in text
    assert "The others copy" in text


@pytest.mark.parametrize("name", ["r18", "nano"])
def test_steps_save_more_and_more_and_stay_above_what_no_pruning_removes(name):
    model, config = _open(name)
    images = torch.rand(1, 3, 128, 160)
    steps = {row["step"]: row for row in audit_steps(model, config, images, 0.3)}
    saved = {step: row["gflops_saved"] for step, row in steps.items()}
    order = [
        "dense",
        "stride 32 pruned, zero-filled",
        "sparse neck",
        "sparse decoder",
        "exact algebra",
        "early decision",
    ]
    assert list(steps) == [*order, "floor, late decision", "floor, early decision"]
    assert [saved[step] for step in order] == sorted(saved[step] for step in order)
    assert saved["dense"] == 0.0
    assert saved["exact algebra"] < saved["floor, late decision"]
    assert saved["early decision"] < saved["floor, early decision"]
    # The steps that are executions cost what these cost.
    scattered = count_flops(model, images, execution="dense_scatter", keep_ratio=0.3)
    own_scorer = steps["stride 32 pruned, zero-filled"]["gflops"]["pruner"]
    late = count_flops(_open(name, "pruner=dset")[0], images, execution="sparse", keep_ratio=0.3)
    assert own_scorer == pytest.approx(late["pruner"])
    assert own_scorer > steps["dense"]["gflops"]["pruner"] == 0
    expected = scattered["total"] - scattered["pruner"] + own_scorer
    assert steps["stride 32 pruned, zero-filled"]["gflops"]["total"] == pytest.approx(expected)


def test_a_backbone_in_one_piece_has_no_early_decision():
    model, config = _open(
        "lite0",
        "model.backbone.name=hrnet_w18_small",
        "model.backbone.weights=null",
        "model.backbone.frozen=[]",
    )
    steps = [row["step"] for row in audit_steps(model, config, torch.rand(1, 3, 64, 64), 0.5)]
    assert "sparse decoder" in steps
    assert not any("early" in step for step in steps)


def test_steps_of_an_early_decision_with_offsets():
    model, config = _open("nano", "pruner=early", "pruner.offsets={s4:-1.0}")
    steps = {r["step"]: r for r in audit_steps(model, config, torch.rand(1, 3, 64, 96), 0.3)}
    assert steps["dense"]["kept"] == {"s3": 1.0, "s4": 1.0, "s5": 1.0}
    assert steps["floor, early decision"]["kept"]["s5"] == pytest.approx(1 / 6)
    assert 0 < steps["early decision"]["kept"]["s4"] < 1


@pytest.mark.slow
def test_the_published_audit_is_wrong_as_the_arithmetic_says():
    model, config = _open("r18", "pruner=dset")
    images = torch.rand(1, 3, *CLAIMED_SIZE)
    assert is_claimed(config, images)
    assert not is_claimed(config, images[:, :, :640])
    assert not is_claimed(compose_config("detector", ["model=dset_r18"]), images)
    counted = {row["part"]: row["counted"] for row in compare_with_claims(model, images)}
    tokens, width = 23 * 40, 256
    rows = tokens * (1 + 4 + 16)
    attention = "attention within stride 32, without its projections"
    assert counted[attention] == pytest.approx(4 * tokens**2 * width / 1e9)
    feed_forward = 2 * 2 * tokens * width * 1024
    assert counted["feed-forward part of the encoder"] == pytest.approx(feed_forward / 1e9)
    values = 3 * 2 * rows * width**2
    assert counted["value projections of the decoder"] == pytest.approx(values / 1e9)
    assert counted["whole network"] == pytest.approx(136.5, abs=0.05)
    assert counted["backbone"] == pytest.approx(77.6, abs=0.05)
    steps = audit_steps(model, config, images, 0.7)
    zero_filled = next(row for row in steps if "zero-filled" in row["step"])
    assert zero_filled["gflops_saved"] == pytest.approx(0.006, abs=0.001)


def test_tables_and_picture(tmp_path):
    model, config = _open("nano")
    steps = audit_steps(model, config, torch.rand(1, 3, 64, 96), 0.7)
    text = format_audit(_nano_rows(), steps, [{"part": "neck", "claimed": None, "counted": 1.0}])
    for expected in (
        "sparse@0.5",
        "aten.mul",
        "backbone.model.blocks.5",
        "48 %",
        "GMACs",
        "computed",
    ):
        assert expected in text
    assert "48 %" not in format_audit(
        _nano_rows(),
        [{**s, "keep_ratio": 0.5} for s in steps],
        [{"part": "neck", "claimed": None, "counted": 1.0}],
    )
    assert steps_table(steps).lines[0][0] == "dense"
    plot_audit(_nano_rows(), steps, tmp_path / "audit.png", "a title")
    assert (tmp_path / "audit.png").stat().st_size > 20_000


def test_the_script(tmp_path, monkeypatch, capsys):
    options = ["model=nano", "size=[64,96]", "warmup=1", "repeats=1", f"output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "executions=[sparse]"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "sparse decoder" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["audit"] * 4 + ["audit_step"] * 8
    assert {row["setup"]["model"] for row in rows} == {"nano"}
    written = json.loads((tmp_path / "audit.json").read_text())
    assert len(written["rows"]) == 4
    assert (tmp_path / "audit.png").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("keep_ratios=[0]", r"\(0, 1\]"),
        ("keep_ratios=[abc]", r"\(0, 1\]"),
        ("size=[16,64]", "at least 32"),
        ("depth=0", "depth must be a whole number of at least 1, got 0"),
        ("excutions=[sparse]", "executions"),
    ],
)
def test_bad_settings_are_refused(argument, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), argument])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(SCRIPT), run_name="__main__")
