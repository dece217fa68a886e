"""Command lines as they reach the jobs of the scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparse_dset.command_line import check_command_line
from sparse_dset.config import compose_config, config_dir, package_file
from sparse_dset.data.synthetic import write_dataset
from sparse_dset.engine.evaluate import check_precision

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAMES = sorted(path.stem for path in config_dir().glob("*.yaml") if path.stem != "detector")


def _run(
    name: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


def _refused(name: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as refused:
        check_command_line(name, arguments=arguments)
    return str(refused.value)


COCO = ["data=coco", "data.root=/x"]


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["data.train.root=/x/images"], {"data.train.root": "/x/images"}),
        (["data.train.root=/y (1)", "data.val.annotations=/a,b.json"], {}),
        (["++data.train.root=/x/images"], {"data.train.root": "/x/images"}),
        (["data.train.root=${data.root}/images"], {"data.train.root": "/x/images"}),
        (["data.train.transforms.size=[64,64]"], {"data.train.transforms.size": [64, 64]}),
        (["model.decoder.in_channels=256", "model.dense_head=false"], {"model.dense_head": False}),
        (["data.val=null"], {"data.val": None}),
        (["data.train.transforms=null"], {"data.train.transforms": None}),
        (["~data.train.transforms.zoom_out"], {}),
        (["+data.test.root=/y"], {"data.test.root": "/y"}),
        (["train.pruning={warmup_epochs:3}"], {"train.pruning.warmup_epochs": 3}),
    ],
)
def test_values_that_others_are_made_of_and_that_are_made_of_others(
    arguments: list[str], changed: dict[str, object]
) -> None:
    for order in ([*COCO, *arguments], [*arguments, *COCO]):
        (plain,) = check_command_line("train", arguments=order)
        for key, value in changed.items():
            node: object = plain
            for part in key.split("."):
                node = node[part]  # type: ignore[index]
            assert node == value


def test_what_nothing_is_made_of_any_more_need_not_be_given() -> None:
    given = [
        f"data.{part}.{key}=/x" for part in ("train", "val") for key in ("root", "annotations")
    ]
    assert check_command_line("train", arguments=["data=coco", *given])
    assert "data.root must be given" in _refused("train", "data=coco", *given[1:])
    assert "data.root must be given" in _refused("train", "data=coco", "data.train.root=/x")
    message = _refused("train", "data=coco", "data.train.root=${data.root}/x", *given[1:])
    assert "data.root must be given" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sorce=photo.png"], "sorce=photo.png: 'sorce' is not known here; did you mean 'source'"),
        (["sorce=photo (1).png"], "sorce=photo (1).png: 'sorce' is not known here; did you mean"),
        (["~treshold"], "~treshold: 'treshold' is not known here; did you mean 'threshold'"),
        (["source=my", "photo.png"], "photo.png is no setting: one is written key=value, and"),
        (["source=my", "photo.png"], "quoted: 'source=my photo.png'"),
        (["threshold=0.1,0.2"], "threshold=0.1,0.2 holds several values: start the script with -m"),
        (["output_dir=${sorce}"], "output_dir=${sorce}"),
        (["device=cüda"], "device=cüda: the value cannot be read"),
        (["device=cüda"], "as text it is written 'device=\"cüda\"'"),
        (["source=~nobody-here/x"], "source=~nobody-here/x: "),
        (
            ["source=conf,tests"],
            "source=conf,tests: there is no such path, but its parts are there",
        ),
        (["output_dir=a/\\${b}"], "output_dir=a/${b}: hydra takes ${...}"),
        (["show_kept=off"], "show_kept must be true or false, got 'off'"),
    ],
)
def test_messages_name_the_argument(arguments: list[str], message: str) -> None:
    assert message in _refused("predict", "checkpoint=x.pt", "source=x.png", *arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "model=nanoo",
            "model=nanoo: there is no such file in conf/model; did you mean model=nano",
        ),
        ("dta=synthetic", "dta=synthetic: 'dta' is not known here; did you mean 'data'"),
        ("data.train_splt=x", "did you mean 'data.train_split'"),
        ("model.pruner.halo=1", "did you mean 'pruner.halo'"),
    ],
)
def test_the_nearest_option_or_key_is_named(argument: str, message: str) -> None:
    assert message in _refused("train", "data=synthetic", argument)


@pytest.mark.parametrize("value", ["abc", "-1", "[]", "{}", "true", "1.5", "''"])
@pytest.mark.parametrize("name", ["batch_size", "num_workers", "threads", "device", "amp"])
def test_values_that_scripts_have_in_common_are_checked_before_any_job(
    name: str, value: str
) -> None:
    given = ["checkpoint=x.pt", f"{name}={value}"]
    with pytest.raises(SystemExit, match=f"{name} must be"):
        check_command_line("evaluate", lambda cfg: check_precision(cfg["amp"]), given)


def test_a_message_without_a_key_shows_the_arguments() -> None:
    def refuse(cfg: dict[str, object]) -> None:
        raise ValueError("this cannot be")

    with pytest.raises(SystemExit) as refused:
        check_command_line("report", refuse, ["rows=a b", "title=x"])
    assert str(refused.value) == "error: this cannot be\nThe arguments were: 'rows=a b' title=x"


def test_help_and_hydras_own_flags_pass() -> None:
    assert check_command_line("predict", arguments=["--help"]) == []
    assert check_command_line("predict", arguments=["--cfg", "job"]) == []


@pytest.mark.parametrize("name", NAMES)
def test_home_in_a_file_of_conf_is_expanded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written in a yaml file, or comes from the environment, is no argument."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "~/place (1)")
    key = "train.output_dir" if name == "train" else "output_dir"
    data = ["data=coco", "data.root=${oc.env:PLACE}"] if name == "train" else []
    plain = compose_config(name, [f"{key}=${{oc.env:PLACE}}", *data])
    place = str(tmp_path / "place (1)")
    assert (plain["train"] if name == "train" else plain)["output_dir"] == place
    if data:
        assert plain["data"]["train"]["root"] == f"{place}/train2017"


def _draw(root: Path) -> None:
    """A small set in folders and files of other names than those of COCO 2017."""
    write_dataset(root, {"train": 2, "val": 1}, height=96, width=160, progress=False)
    (root / "images").rename(root / "bilder [1]")
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").rename(root / f"{split}, boxes=2.json")


def _ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_set_in_other_folders_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    """With paths in which hydra's grammar has a meaning for nearly every sign."""
    root = tmp_path / "set (ü) ${x}"
    _draw(root)
    home = "~/set (ü) ${x}"
    sets = [
        *("data=coco", f"data.root={root}", f"data.train.root={root}/bilder [1]"),
        *(f"data.train.annotations={root}/train, boxes=2.json", f"data.val.root={home}/bilder [1]"),
        f"data.val.annotations={home}/val, boxes=2.json",
    ]
    limits = ["train.max_steps=1", "train.batch_size=2", "train.num_workers=0"]
    small = ["model=nano", "data.size=[96,160]", "train.execution=dense"]
    environment = {"HOME": str(tmp_path)}
    _ran(_run("train", *sets, *small, *limits, "train.output_dir=~/epoch=1, {a}", **environment))
    folder = tmp_path / "epoch=1, {a}"
    assert (folder / "last.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=1, {a}", root.name]

    said = _ran(
        _run("evaluate", "checkpoint=~/epoch=1, {a}/last.pt", "output_dir='~/o, 2'", **environment)
    )
    assert f"{folder}/last.pt: dense" in said
    (row,) = map(json.loads, (tmp_path / "o, 2" / "results.jsonl").read_text().splitlines())
    assert row["data"] == f"{root}/val, boxes=2.json"


@pytest.mark.slow
def test_paths_of_a_sweep(tmp_path: Path) -> None:
    weights = Path(package_file("weights/nano_roads.pt"))
    names = ["epoch=3.pt", "b (1).pt", "#ü.pt"]
    for name in names:
        (tmp_path / name).symlink_to(weights)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo (1).png")
    arguments = [f"checkpoint={','.join(names)}", "source=photo (1).png", "output_dir=~/o"]
    said = _ran(_run("predict", "-m", *arguments, cwd=tmp_path, HOME=str(tmp_path)))
    assert "Launching 3 jobs" in said
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["predict", "train"])
def test_home_of_a_user_configuration_is_where_files_go(name: str, tmp_path: Path) -> None:
    """Also what is in a file that hydra reads, where no argument says it."""
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    key = "train:\n  output_dir" if name == "train" else "output_dir"
    text = f"# @package _global_\n{key}: ~/placed\n"
    (conf / "experiment" / "own.yaml").write_text(text)
    sets = ["data=synthetic"] if name == "train" else ["checkpoint=x.pt", "source=x.png"]
    plus = "" if name == "train" else "+"
    done = _run(
        name,
        *("--config-dir", str(conf), f"{plus}experiment=own", *sets),
        cwd=tmp_path,
        HOME=str(tmp_path),
    )
    assert done.returncode != 0  # there is no data set, no checkpoint
    assert (tmp_path / "placed" / ".hydra" / "config.yaml").is_file(), done.stderr
    assert not (tmp_path / "~").exists()
