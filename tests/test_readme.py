"""Every command and every block of Python in README.md and docs/ runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sparse_dset import build_detector
from sparse_dset.command_line import check_command_line
from sparse_dset.config import package_file
from sparse_dset.data.synthetic.dataset import write_dataset
from sparse_dset.data.synthetic.scene import render_scene
from tests.readme_rules import (
    BLOCKS,
    COMMANDS,
    COUNTED,
    ROOT,
    SCRIPTS,
    TIMEOUT,
    TRAINING,
    commands,
    python_blocks,
    rule_of,
    run_python,
    shortened,
)

# One process runs them all, in order: later commands read what earlier ones wrote.
pytestmark = pytest.mark.xdist_group("pages")


def _released() -> dict[str, Any]:
    """The weights of a network without parts of ours, as released files hold them."""
    parts = ("backbone.", "encoder.", "decoder.")
    state = build_detector("r18", num_classes=80, pretrained=False).state_dict()
    return {"ema": {"module": {k: v for k, v in state.items() if k.startswith(parts)}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the files that the pages name are there, and what they read is small."""
    here = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "sparse_dset", "conf"):
        (here / name).symlink_to(ROOT / name)
    shutil.copy(package_file("weights/nano_roads.pt"), here / "x.pt")
    Image.fromarray(render_scene(3).image).save(here / "photo.jpg")
    torch.save(_released(), here / "released.pth")
    splits = {"train": 4, "val": 2}
    small: dict[str, Any] = {"height": 64, "width": 96, "progress": False}
    drawn = write_dataset(here / "data" / "synthetic", splits, **small)
    shutil.copytree(drawn, here / "outputs" / "demo" / "data")
    mixed = {**splits, "train_mixed": 4, "val_mixed": 2}
    write_dataset(here / "aerial", mixed, **small)
    for split in splits:
        shutil.copytree(drawn / "images", here / "coco" / f"{split}2017")
        source = drawn / "annotations" / f"instances_{split}.json"
        target = here / "coco" / "annotations" / f"instances_{split}2017.json"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    return here


@pytest.fixture(scope="module")
def results(folder: Path) -> Path:
    """The folder with a training's checkpoint and rows of a benchmark where the pages look."""
    run_python(folder, "python scripts/train.py experiment=roads", TRAINING)
    other = folder / "runs" / "ablate" / "same_time-0"
    other.mkdir(parents=True)
    shutil.copy(folder / "runs" / "roads" / "last.pt", other)
    command = "python scripts/benchmark.py checkpoint=x.pt"
    run_python(folder, command, (*COUNTED, "keep_ratios=[0.3]", "executions=[sparse]"))
    shutil.copytree(folder / "runs" / "benchmark", folder / "outputs" / "demo" / "benchmark")
    return folder


def test_the_pages_are_read() -> None:
    assert len(SCRIPTS) > 25
    assert len(BLOCKS) >= 2
    assert {c.split()[0] for c in COMMANDS} == {"python", "pip", "make", "torchrun"}
    page = 'Run `make  x\ny` or\n```\npip a  # why\nimage -> b\npython -c "\nc"\n```\n`f()`\n'
    assert commands(page) == ["make x y", 'python -c "\nc"', "pip a"]
    assert python_blocks("`sparse_dset.a.b(1)` `c(2)`\n```python\nd\n```\n") == [
        "d\n",
        "import sparse_dset.a\nsparse_dset.a.b(1)",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_rule_says_how_to_run_it(command: str) -> None:
    assert rule_of(command).run


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_settings_of_a_script_are_known(command: str) -> None:
    script, *arguments = shortened(command, ())[1:]
    assert check_command_line(Path(script).stem, arguments=arguments)


def test_a_command_that_no_rule_covers_is_a_failure() -> None:
    with pytest.raises(pytest.fail.Exception, match="say in RULES how"):
        rule_of("python scripts/new.py x=1")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, results: Path) -> None:
    rule = rule_of(command)
    rule.run(results, command, rule.settings)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_python_runs(block: str, results: Path) -> None:
    given = "import torch\nstate_dict = torch.load('released.pth')['ema']['module']\n"
    given += "images = torch.rand(2, 3, 64, 96)\n"
    (results / "block.py").write_text(block if "state_dict" not in block else given + block)
    done = subprocess.run(
        [sys.executable, "block.py"],
        cwd=results,
        env={**os.environ, "OMP_NUM_THREADS": "2"},  # with one, forked processes could not hang
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    if "Pool" in block:
        first, second = json.loads(done.stdout)
        assert first == second > 0
