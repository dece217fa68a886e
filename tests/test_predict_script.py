"""scripts/predict.py with the shipped checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_dset.config import package_file
from sparse_dset.data.synthetic.scene import render_scene

SCRIPT = Path(__file__).parents[1] / "scripts" / "predict.py"


def _predict(source: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    checkpoint = package_file("weights/nano_roads.pt")
    return subprocess.run(
        [
            *(sys.executable, str(SCRIPT), f"checkpoint={checkpoint}", f"source={source}"),
            *(f"output_dir={output}", *overrides),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_folder_of_pictures(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    Image.fromarray(render_scene(3).image).save(source / "scene.png")
    Image.fromarray(np.zeros((50, 80, 3), np.uint8)).save(source / "black.JPG")
    (source / "notes.txt").write_text("no picture")
    (source / "sub").mkdir()
    Image.fromarray(np.zeros((50, 80, 3), np.uint8)).save(source / "sub" / "scene.png")
    done = _predict(source, tmp_path / "out", "keep_ratio=0.3", "execution=sparse")
    assert done.returncode == 0, done.stderr
    assert "not searched or taken, sub-folders: sub (recursive=true" in done.stdout
    assert "not searched or taken, files of other kinds: 1 .txt" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").open()]
    assert [Path(row["file"]).name for row in rows] == ["black.JPG", "scene.png"]
    assert len(rows[1]["boxes"]) == len(rows[1]["scores"]) == len(rows[1]["names"]) > 0
    assert all(0 < row["kept"] < 1 for row in rows)
    drawn = Image.open(tmp_path / "out" / "scene.png.jpg")
    assert drawn.size == (640, 384)

    again = _predict(source, tmp_path / "out", "recursive=true", "max_detections=2")
    assert again.returncode == 0, again.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").open()]
    names = ["black.JPG.jpg", "scene.png.jpg", "sub/scene.png.jpg"]
    assert [row["drawn"] for row in rows] == names
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert len(rows[1]["boxes"]) == 2

    refused = _predict(source, source)
    assert "holds the pictures themselves" in refused.stderr
    refused = _predict(tmp_path / "nowhere", tmp_path / "out")
    assert "no pictures" in refused.stderr
    assert "nowhere" in refused.stderr
