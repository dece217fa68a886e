from __future__ import annotations

from pathlib import Path

import pytest

from sparse_dset.benchmark.validation import open_validation_set
from sparse_dset.command_line import check_command_line
from sparse_dset.config import compose_config
from sparse_dset.data.synthetic import write_dataset
from sparse_dset.paths import check_output_dir, expand_home


@pytest.mark.parametrize("path", ["x", "/x", "./~", "a~/b", "", " ~", Path("a/~")])
def test_a_path_that_does_not_begin_with_home_is_as_it_was(path: str | Path) -> None:
    assert expand_home(path) == str(path)


@pytest.mark.parametrize("path", ["~", "~/x", "~/x/~", "~root", "~root/x (1)"])
def test_home_is_expanded(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home(path) == str(Path(path).expanduser())
    assert expand_home(expand_home(path)) == expand_home(path)


def test_data_of_a_checkpoint_lies_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that was stored with ``~`` holds on another machine too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_dataset(tmp_path / "set", {"val": 1}, height=96, width=160, progress=False)
    data = compose_config("train", ["data=synthetic", "data.root=/nowhere"])["data"]
    data["val"] |= {"root": "~/set/images", "annotations": "~/set/annotations/instances_val.json"}
    dataset = open_validation_set(data)
    assert len(dataset) == 1
    assert dataset.root == tmp_path / "set" / "images"


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
