from __future__ import annotations

from pathlib import Path

import pytest

from sparse_dset.command_line import check_command_line
from sparse_dset.paths import check_output_dir


@pytest.mark.parametrize("name", ["new", "a/b/c", "a b", "Läufe [1]", "."])
def test_a_folder_that_can_be_made_passes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output_dir("output_dir", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    check_output_dir("output_dir", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/b", "link"])
def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="train.output_dir=.* is no folder"):
        check_output_dir("train.output_dir", tmp_path / name)


@pytest.mark.parametrize("name", ["", "run", "a/b"])
def test_a_folder_that_may_not_be_written_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path)  # root may write all
    with pytest.raises(ValueError, match=f"nothing may be written in {tmp_path}"):
        check_output_dir("output_dir", tmp_path / name)


@pytest.mark.parametrize(
    ("script", "key", "rest"),
    [
        ("train", "train.output_dir", ["data=synthetic"]),
        ("evaluate", "output_dir", ["checkpoint=x.pt"]),
        ("report", "output_dir", ["rows=x"]),
        ("sweep", "output_dir", ["model=nano"]),
    ],
)
def test_every_script_refuses_it_before_it_starts(
    tmp_path: Path, script: str, key: str, rest: list[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=rf"error: {key}=.*file/run cannot be made"):
        check_command_line(script, arguments=[*rest, f"{key}={tmp_path}/file/run"])
