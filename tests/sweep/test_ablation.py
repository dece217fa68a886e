from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_dset.benchmark.arms import Arm
from sparse_dset.config import compose_config, config_dir
from sparse_dset.sweep.ablation import AblationArm, CalibratedCheckpoint, ablation_table, read_arms

SCRIPT = Path(__file__).parents[2] / "scripts" / "ablate.py"


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": {"tran": []}}, "arm a has a key 'tran'; known are train, start"),
        ({"a": {}, "b": {"start": "c"}}, "starts from 'c', which is not trained: choose among a"),
        ({"a": {}, "b": {"start": "a"}, "c": {"start": "b"}}, "choose among a"),
        ({"a": {}, "b": {"start": "a", "train": ["x=1"]}}, "train or start"),
        ({"a": {"execution": "spars"}}, "arm a: execution must be one of dense"),
    ],
)
def test_arms_that_make_no_sense_are_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        read_arms(arms)


def test_dense_is_measured_beside_every_ratio():
    arm = AblationArm("a", execution="dense_scatter")
    assert arm.plan([0.1, 0.5]) == [
        Arm("dense"),
        Arm("dense_scatter", 0.1),
        Arm("dense_scatter", 0.5),
    ]


@pytest.mark.parametrize("path", sorted((config_dir() / "ablation").glob("*.yaml")))
def test_the_arms_of_every_ablation_are_trainings(path):
    plain = compose_config("ablate", [f"ablation={path.stem}"])
    arms = read_arms(plain["arms"])
    assert all(compose_config("train", [*plain["base"], *arm.train]) for arm in arms.values())


def _row(arm, seed, execution, ratio, ap, samples):
    return {
        "kind": "ablation",
        "arm": arm,
        "seed": seed,
        "execution": execution,
        "keep_ratio": ratio,
        "metrics": {"AP": ap},
        "samples": {"AP": samples},
    }


def test_the_table_holds_means_differences_and_paired_intervals():
    rows = [
        _row("base", 0, "dense", 1.0, 0.40, [0.3, 0.5]),
        _row("base", 0, "sparse", 0.5, 0.30, [0.2, 0.4]),
        _row("base", 1, "sparse", 0.5, 0.32, [0.2, 0.4]),
        _row("other", 0, "dense", 1.0, 0.99, [0.4, 0.6]),
        _row("other", 0, "dense", 1.0, 0.50, [0.4, 0.6]),  # measured again
        _row("other", 0, "sparse", 0.5, 0.35, [0.3, 0.4]),
        _row("other", 1, "sparse", 0.5, 0.33, [0.2, 0.5, 0.9]),
        _row("base", 1, "dense", 1.0, 0.4, [0.3, None]),
        _row("other", 1, "dense", 1.0, 0.5, [0.4, 0.6]),
        _row("unknown", 0, "sparse", 0.5, None, []),
        {"kind": "failed", "arm": "broken", "seed": 0, "error": "x"},
    ]
    table = ablation_table(rows, ["base", "other", "broken", "unknown"], "AP", "base").markdown()
    lines = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.strip().splitlines()]
    assert lines[0] == ["arm", "dense", "keep 0.5"]
    assert lines[2] == ["base", "40.0", "31.0"]
    # Differences of a sample, the mean over the seeds: 5 and 5.
    assert lines[3] == ["other", "50.0 +10.0 [+10.0, +10.0]", "34.0 +3.0 [+5.0, +5.0]"]
    assert len(lines) == 4


@pytest.fixture
def trained(tmp_path):
    """A data set of eight drawn scenes, and what ablations of it have in common."""
    root = tmp_path / "data"
    command = [sys.executable, "-m", "sparse_dset.data.synthetic", "--root", str(root)]
    size = ["--size", "96", "160"]
    subprocess.run([*command, "--train", "6", "--val", "4", *size], check=True)
    base = [
        "experiment=demo",
        f"data.root={root}",
        "data.size=[96,160]",
        "weights=null",
        "model.backbone.weights=null",
        "train.freeze_statistics=false",
        "train.batch_size=3",
        "train.eval_every=0",
        "train.progress_bar=false",
    ]
    return tmp_path, base


@pytest.mark.slow
def test_an_ablation_goes_on_where_it_was(trained):
    folder, base = trained
    quoted = ",".join(f"'{text}'" for text in base)
    broken = "+arms.broken={train:['optim.lr=1e30']}"

    def run(*overrides):
        return subprocess.run(
            [
                *(sys.executable, str(SCRIPT), f"base=[{quoted}]", broken),
                *("keep_ratios=[0.3]", "bootstrap=5", f"output_dir={folder / 'out'}", *overrides),
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    def rows():
        return [json.loads(line) for line in (folder / "out/results.jsonl").open()]

    first = run("only=[base]")
    assert first.returncode == 0, first.stderr
    names = [(r["arm"], r["execution"]) for r in rows()]
    assert names == [("base", "dense"), ("base", "sparse")]
    assert all(len(r["samples"]["AP"]) == 5 and r["gflops"] > 0 for r in rows())
    second = run("only=[base,halo,broken]")
    assert second.returncode == 1
    assert "failed: broken, seed 0" in second.stderr
    assert second.stdout.count("train.py") == 1  # the broken one alone
    assert [r["arm"] for r in rows() if r["kind"] == "ablation"] == ["base"] * 2 + ["halo"] * 2
    assert "not finite" in rows()[-1]["error"]
    # An arm whose settings have changed is not measured with what the former ones trained.
    changed = run("only=[base]", "+arms.base.train=['losses.cass.band=1.2']")
    assert changed.returncode == 1
    assert "'losses.cass.band': (1.2, 1.0)" in rows()[-1]["error"]
    assert len(rows()) == 6
    assert (folder / "out/AP.md").read_text().count("base") == 0
    refused = run("only=[bas]")
    assert refused.returncode != 0
    assert "the arms are base, dense, " in refused.stderr
    refused = run("only=[broken]", "arms.broken.train=['train.epochs=abc']")
    assert refused.returncode != 0
    assert "train.epochs must be a whole number" in refused.stderr
    for pruner in (
        {"score_by": "norm"},
        {"selector": "topk"},
        {"selector": "batch"},
        {"offsets": {"s4": -0.5}},
    ):
        checkpoint = CalibratedCheckpoint(folder / "out/base-0/last.pt", pruner)
        assert checkpoint.model.pruner.score_by == pruner.get("score_by", "learned")
        row = checkpoint.measure(Arm("sparse", 0.5), bootstrap=0)
        assert row["metrics"]["kept_s3"] == pytest.approx(0.5, abs=0.1)
        assert 0 < row["centres_kept"] <= 1
