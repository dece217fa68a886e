"""Sweeps that break, go on, run side by side and run elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparse_dset.benchmark import measured_model
from sparse_dset.benchmark.measured_model import open_detector, selection_of
from sparse_dset.command_line import check_command_line
from sparse_dset.config import compose_config
from sparse_dset.sweep.jobs import check_job, failed_jobs, finished_jobs, job_id, read_objectives

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
QUICK = ["model=nano", "size=[64,96]", "warmup=1", "repeats=1", "threads=1"]
TWO = [*QUICK, "execution=sparse", "pruner.keep_ratio=0.5,0.7"]


def _start(folder, *arguments, cwd=None):
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(SCRIPT), *arguments, f"output_dir={folder}"]
    # Into a file: what fills a pipe that nobody reads stops.
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(command, cwd=cwd, stdout=said, stderr=subprocess.STDOUT)


def _run(folder, *arguments, cwd=None):
    code = _start(folder, *arguments, cwd=cwd).wait(300)
    return code, (folder / "said.txt").read_text()


def _rows(folder):
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _lasting(row):
    """What a job measures the same every time."""
    return {
        key: row[key]
        for key in ("kind", "job", "execution", "keep_ratio", "kept", "gflops", "image_size")
    } | {"setup": row["setup"]}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_rows_of_an_unbroken_one(tmp_path):
    grid = [*QUICK, "execution=dense_scatter,sparse", "pruner.keep_ratio=0.1,0.3,0.5,0.7,1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = _start(broken, *grid)
    deadline = time.monotonic() + 200
    while len(_rows(broken)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(_rows(broken))
    assert 4 <= before < 10
    code, said = _run(broken, *grid, "resume=true")
    assert code == 0
    assert said.count("is there already") == before
    assert _run(whole, *grid)[0] == 0
    expected, found = ([_lasting(row) for row in _rows(f)] for f in (whole, broken))
    assert len(expected) == 10
    assert found == expected
    assert (broken / "table_0.md").read_text().count("\n|") == 12  # header, rule and ten jobs
    assert (broken / "plot_0.png").stat().st_size > 10_000


@pytest.mark.slow
def test_dense_is_measured_once_in_a_sweep_and_anew_in_the_next(tmp_path):
    grid = [*QUICK, "execution=dense,sparse", "pruner.keep_ratio=0.5,0.7"]
    for count in (3, 6):
        code, said = _run(tmp_path, *grid)
        assert code == 0
        rows = _rows(tmp_path)
        assert [row["execution"] for row in rows[-3:]] == ["dense", "sparse", "sparse"]
        assert len(rows) == count
    assert said.count("is there already") == 2  # once in each


def test_two_at_once_from_other_folders(tmp_path):
    """Both write to one folder, named by relative paths."""
    folder = tmp_path / "runs" / "both"
    processes = []
    for start, ratios in (("a", "0.2,0.4"), ("b", "0.6,0.8")):
        (tmp_path / start).mkdir()
        arguments = [*QUICK, "execution=sparse", f"pruner.keep_ratio={ratios}"]
        command = [sys.executable, str(SCRIPT), *arguments, "output_dir=../runs/both"]
        processes.append(subprocess.Popen(command, cwd=tmp_path / start, stdout=subprocess.DEVNULL))
    assert [process.wait(300) for process in processes] == [0, 0]
    rows = _rows(folder)
    assert sorted(row["keep_ratio"] for row in rows) == [0.2, 0.4, 0.6, 0.8]
    sweeps = list((folder / "jobs").iterdir())
    assert len(sweeps) == 2
    assert all(sorted(p.name for p in one.iterdir())[:2] == ["0", "1"] for one in sweeps)


def test_a_job_that_fails_is_a_row_and_the_others_run(tmp_path):
    from sparse_dset.config import build_from_config
    from sparse_dset.engine.checkpoint import save_checkpoint

    config = compose_config("detector", ["model=nano", "model.num_classes=2"])
    state = build_from_config(config, pretrained=False).state_dict()
    save_checkpoint(tmp_path / "x.pt", model_state=state, config=config)
    quick = [option for option in QUICK if option != "model=nano"]
    grid = [*quick, "execution=sparse", "pruner.keep_ratio=0.5", "checkpoint=missing.pt,x.pt"]
    folder = tmp_path / "out"
    code, said = _run(folder, *grid, cwd=tmp_path)
    assert code != 0
    failed, done = _rows(folder)
    assert (failed["kind"], done["kind"]) == ("failed", "sweep")
    assert "checkpoint=missing.pt" in failed["overrides"]
    assert str(tmp_path / "missing.pt") in failed["error"]
    assert "Traceback" in failed["traceback"]
    assert f"failed: {' '.join(failed['overrides'])}" in said
    # What failed is tried again, what did not is not.
    other = build_from_config(config, pretrained=False).state_dict()
    save_checkpoint(tmp_path / "missing.pt", model_state=other, config=config)
    (folder / "said.txt").unlink()
    code, said = _run(folder, *grid, "resume=true", cwd=tmp_path)
    assert code == 0
    assert "failed" not in said.replace("missing or failed", "")
    assert [row["kind"] for row in _rows(folder)] == ["failed", "sweep", "sweep"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruner.keep_ratio=0.5,0"], r"\(0, 1\].*got 0"),
        (["pruner.keep_ratio=1.5"], r"\(0, 1\].*1.5"),
        (["pruner.keep_ratio=abc"], r"\(0, 1\].*abc"),
        (["pruner.keep_ratio=interval(0.1,1.5)"], r"\(0, 1\].*1.5"),
        (["pruner.keepratio=0.5"], "did you mean 'pruner.keep_ratio'"),
        (["excution=sparse"], "did you mean 'execution'"),
        (["execution=sparse,spars"], "execution must be one of dense"),
        (["size=[16,16]"], "at least 32"),
        (["repeats=0"], "repeats must be a whole number of at least 1"),
        (["model=r18,r19"], "r19"),
        (["model=glob(r1*)", "size=[16,16]"], "at least 32"),
        (["pruner.halo=0,-1"], "pruner.halo must be"),
        (["ops.backend=foo"], "unknown backend 'foo'"),
        (["seed=abc"], "seed must be a whole number"),
        (["eval_batch_size=0"], "eval_batch_size must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_job(arguments, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        check_command_line("sweep", check_job, arguments)


def test_a_job_is_known_by_what_it_measures(tmp_path):
    def named(*overrides):
        return job_id(compose_config("sweep", ["model=nano", *overrides]))

    assert named() == named("resume=true") == named("output_dir=elsewhere")
    assert (
        len({named(), named("seed=1"), named("pruner.keep_ratio=0.5"), named("size=[64,64]")}) == 4
    )
    # A checkpoint is what it holds, not what it is called.
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (named(f"checkpoint={tmp_path / f'{name}.pt'}") for name in "abc")
    assert one == same != other


def test_failures_that_were_mended_are_not_told():
    rows = [
        {"kind": "failed", "overrides": ["x=1", "y=2", "output_dir=a"]},
        {"kind": "sweep", "job": "a", "overrides": ["y=2", "x=1", "resume=true"]},
        {"kind": "sweep", "job": "a", "overrides": ["x=1"]},
        {"kind": "failed", "job": "b", "overrides": ["x=2"]},
        {"kind": "benchmark"},
        {"kind": "failed", "job": "a", "overrides": ["x=1", "pruner.keep_ratio=0.1"]},  # dense
    ]
    assert finished_jobs(rows) == {"a": rows[2]}
    assert failed_jobs(rows) == [rows[3]]


def test_objectives_are_read_from_rows():
    row = {"metrics": {"AP": 0.5}, "latency_ms": {"median": 3}}
    assert read_objectives(row, ["metrics.AP"]) == 0.5
    assert read_objectives(row, ["metrics.AP", "latency_ms.median"]) == (0.5, 3.0)
    with pytest.raises(ValueError, match="'metrics.AR'"):
        read_objectives(row, ["metrics.AR"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        ("parallel", "hydra_joblib_launcher"),
        ("submitit_local", "hydra_submitit_launcher"),
        ("ray_cluster", "hydra_ray_launcher"),
    ],
)
def test_launchers(launcher, package, tmp_path):
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")
    (tmp_path / "start").mkdir()
    arguments = [*TWO, f"hydra/launcher={launcher}", "output_dir=../out"]
    with (tmp_path / "said.txt").open("w") as said:
        code = subprocess.call(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=tmp_path / "start",
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_DEDUP_LOGS": "0"},
        )
    assert code == 0, (tmp_path / "said.txt").read_text()
    assert sorted(row["keep_ratio"] for row in _rows(tmp_path / "out")) == [0.5, 0.7]


def test_the_slurm_launcher_is_configured():
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra_submitit_launcher is not installed")
    plain = compose_config("sweep", ["model=nano", "hydra/launcher=slurm"])
    assert plain["execution"] == "sparse"


def test_a_selection_is_what_is_given():
    plain = compose_config("sweep", ["model=nano"])
    assert selection_of(plain) == {}
    overrides = ["selection.offsets.s4=-1.5", "selection.halo=1"]
    plain = compose_config("sweep", ["checkpoint=x.pt", *overrides])
    assert selection_of(plain) == {"halo": 1, "offsets": {"s4": -1.5}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["selection.halo=1"], "a checkpoint's pruner: say pruner.halo"),
        (["checkpoint=x.pt", "selection.halo=-1"], "halo must be a whole number of at least 0"),
        (["checkpoint=x.pt", "selection.selector=treshold"], "one of topk, batch, threshold"),
        (["checkpoint=x.pt", "selection.score_by=luck"], "one of learned, norm, random"),
    ],
)
def test_selections_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        check_command_line("sweep", check_job, arguments)


def test_a_checkpoint_is_opened_with_a_selection_over_its_own(tmp_path, monkeypatch):
    from sparse_dset.config import build_from_config
    from sparse_dset.engine.checkpoint import save_checkpoint

    config = compose_config("detector", ["model=nano", "pruner.finest=s4"])
    config["model"]["pruner"] |= {"offsets": {"s4": -1.0}, "calibration": [0.5] * 101}
    state = build_from_config(config, pretrained=False).state_dict()
    save_checkpoint(tmp_path / "x.pt", model_state=state, config=config)
    monkeypatch.setattr(measured_model, "model_overrides", list)
    overrides = [f"checkpoint={tmp_path / 'x.pt'}", "selection.offsets.s5=2.0"]
    model, opened = open_detector(compose_config("sweep", overrides))
    assert model.pruner.offsets == (-1.0, 2.0)
    assert opened["model"]["pruner"]["calibration"] is None


def test_a_checkpoint_whose_images_are_not_here_is_a_failure(tmp_path):
    from sparse_dset.config import build_from_config
    from sparse_dset.engine.checkpoint import save_checkpoint

    overrides = ["model=nano", "model.num_classes=3", "data=synthetic", "data.root=nowhere"]
    config = compose_config("train", overrides)
    state = build_from_config(config, pretrained=False).state_dict()
    save_checkpoint(tmp_path / "x.pt", model_state=state, config=config)
    quick = [option for option in TWO if option != "model=nano"]
    code, said = _run(tmp_path / "out", f"checkpoint={tmp_path / 'x.pt'}", *quick, cwd=tmp_path)
    assert code != 0
    assert "data.root=, or say evaluate=false" in said
    assert {row["kind"] for row in _rows(tmp_path / "out")} == {"failed"}


@pytest.mark.slow
def test_optuna_looks_for_the_shares_of_the_levels(tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("hydra_optuna_sweeper is not installed")
    from sparse_dset.config import build_from_config
    from sparse_dset.engine.checkpoint import save_checkpoint

    root = tmp_path / "data"
    drawn = ["--root", str(root), "--train", "1", "--val", "3", "--size", "96", "160"]
    subprocess.run([sys.executable, "-m", "sparse_dset.data.synthetic", *drawn], check=True)
    data = ["data=synthetic", f"data.root={root}", "data.size=[96,160]"]
    config = compose_config("train", ["model=nano", "model.num_classes=3", "pruner=early", *data])
    config["model"]["pruner"]["selector"] = "threshold"  # calibrated anew for every trial
    state = build_from_config(config, pretrained=False).state_dict()
    save_checkpoint(tmp_path / "x.pt", model_state=state, config=config)
    folder = tmp_path / "out"
    quick = ["warmup=1", "repeats=1", "threads=1", "images=2", "hydra.sweeper.n_trials=3"]
    code, said = _run(folder, *quick, "hydra/sweeper=pareto", "checkpoint=x.pt", cwd=tmp_path)
    assert code == 0, said
    assert "Pareto" in said
    rows = _rows(folder)
    assert [row["kind"] for row in rows] == ["sweep"] * 3
    assert all("AP" in row["metrics"] for row in rows)
    assert len({tuple(row["overrides"]) for row in rows}) == 3
    assert all(any("selection.offsets.s4" in text for text in row["overrides"]) for row in rows)
