from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sparse_dset.config import compose_config
from sparse_dset.overrides import as_written, parsed, text_override

NAMES = [
    *("photo (1).png", "a=b.png", "epoch=3.pt", "#1.png", "[x].png", "[x]", "{x}.png", "{x}"),
    *("Übergröße.png", "日本.png", "🚗.png", "two words.png", " edges ", "a,b.png", "$x.png"),
    *("!x.png", "it's.png", '"x".png', "a\\b.png", "a\\(b.png", "a\\", ".x.", "100%.png", "*.png"),
    *("null", "true", "1e3", "012", "1_000", "0x10", "a: b.png", "-x.png", "a~b.png", "a@b.png"),
    *("choice(a,b)", "+x", "?.png", "???", "a\nb.png", "\udcff.png"),
]
EXISTING = ["${x}.png", "$${a.b}", "\\${x}", "'x'", '"x"', "${oc.env:HOME}"]


def _value(argument: str) -> object:
    """What a script reads of one argument."""
    override = parsed(argument)
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, override.key_or_group, override.value())
    return OmegaConf.select(cfg, override.key_or_group)


def _read(argument: str, **how: object) -> object:
    (written,) = as_written([argument], **how)  # type: ignore[arg-type]
    assert as_written([written], **how) == [written]  # type: ignore[arg-type]
    return _value(written)


@pytest.mark.parametrize("key", ["source", "data.train.root", "train.output_dir", "+data.x.root"])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_what_was_written(key: str, name: str) -> None:
    read = _read(f"{key}={name}")
    assert isinstance(read, str)
    assert Path(read) == Path(name)


@pytest.mark.parametrize("name", [*EXISTING, *NAMES])
def test_a_path_that_exists_is_that_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        Path(name).touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such name")
    assert Path(str(_read(f"checkpoint={name}", nullable=["source"]))) == Path(name)
    assert Path(str(_read(f"checkpoint={tmp_path / name}", sweeps=True))) == tmp_path / name


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_text_that_a_program_gives_arrives(text: str) -> None:
    if text != "???":
        assert _value(text_override("title", text)) == text


@pytest.mark.parametrize("argument", ["title=What (now)?", "class_name=hard hat, red", "title=1e3"])
def test_a_name_is_text(argument: str) -> None:
    assert _read(argument) == argument.partition("=")[2]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("source='photo (1).png'", "photo (1).png"),
        ('source="a,b.png"', "a,b.png"),
        ("source='\\${x}.png'", "${x}.png"),
        ("title='a, b'", "a, b"),
        ("checkpoint=null", None),
        ("checkpoint=./null", "./null"),
        ("checkpoint='null'", "null"),
        ("resume=true", True),
        ("resume='true'", "true"),
        ("resume=./true", "./true"),
        ("rows=[a b,'c (1)',d=e]", ["a b", "c (1)", "d=e"]),
        ("rows=[x].jsonl", "[x].jsonl"),
    ],
)
def test_quotes_null_flags_and_lists_keep_their_meaning(
    argument: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("null", "true", "rows"):
        Path(name).touch()
    assert _read(argument, nullable=["checkpoint"]) == value


def test_backslashes_of_hydra_are_understood_where_they_name_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo (1).png").touch()
    assert _read("source=photo\\ \\(1\\).png") == "photo (1).png"
    assert _read("source=photo\\ \\(2\\).png") == "photo\\ \\(2\\).png"


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("checkpoint=a.pt,b.pt", ["a.pt", "b.pt"]),
        ("checkpoint=epoch=3.pt,b (1).pt, ü.pt", ["epoch=3.pt", "b (1).pt", "ü.pt"]),
        ("checkpoint='a,b.pt',\"c d.pt\",e.pt", ["a,b.pt", "c d.pt", "e.pt"]),
        ("checkpoint=it's.pt,b's.pt", ["it's.pt", "b's.pt"]),
        ("checkpoint=choice(a.pt,b.pt)", ["a.pt", "b.pt"]),
        ("data.root=${oc.env:X,a},b c", ["${oc.env:X,a}", "b c"]),
        ("rows=[a,b],[c]", [["a", "b"], ["c"]]),
    ],
)
def test_paths_are_swept_over(argument: str, values: list[object]) -> None:
    (written,) = as_written([argument], sweeps=True)
    key = argument.partition("=")[0]
    swept = parsed(written).sweep_string_iterator()
    assert [parsed(f"{key}={value}").value() for value in swept] == values


def test_a_file_with_a_comma_is_not_swept_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.pt").touch()
    assert _read("checkpoint=a,b.pt", sweeps=True) == "a,b.pt"


@pytest.mark.parametrize("value", ["~", "~/o", "'~/o'", '"~/o (1)"', "~/o (1)", "~root/x", "~/ü"])
def test_home(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    path = value.strip("'\"")
    expected = str(Path(path).expanduser())
    for key in ("output_dir", "checkpoint", "data.val.annotations", "hydra.run.dir"):
        assert _read(f"{key}={value}") == expected
    assert _read(f"rows=[{value},{value}]") == [expected, expected]
    (written,) = as_written([f"checkpoint={value},{value}"], sweeps=True)
    swept = parsed(written).sweep_string_iterator()
    assert [_value(f"checkpoint={one}") for one in swept] == [expected, expected]


def test_a_user_who_is_unknown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="source=~nobody-here/x.*'nobody-here'.*write ./~nobody"):
        as_written(["source=~nobody-here/x"])
    Path("~backup.png").touch()
    assert _read("source=~backup.png") == str(tmp_path / "~backup.png")
    assert _read("source=./~backup.png") == "./~backup.png"


@pytest.mark.parametrize("argument", ["source=", "output_dir= ", "rows=[a,]"])
def test_an_empty_path_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="the path is empty"):
        as_written([argument])


@pytest.mark.parametrize(
    "argument",
    [
        "pruner.levels=[s3",
        "model.class_names=[hard hat (red)]",
        "pruner.selector=top=k",
        "train.device=cüda",
        "hydra.job.name=it's",
    ],
)
def test_what_cannot_be_read_is_shown_as_it_is_quoted(argument: str) -> None:
    with pytest.raises(ValueError) as refused:
        parsed(argument)
    message = str(refused.value)
    assert message.startswith(f"{argument}: ")
    (quoted,) = shlex.split(message.partition("as text it is written ")[2])
    assert _value(quoted) == argument.partition("=")[2]


def test_paths_in_python_need_no_quotes() -> None:
    plain = compose_config("predict", ["checkpoint=epoch=3.pt", "source=photo (1).png"])
    assert (plain["checkpoint"], plain["source"]) == ("epoch=3.pt", "photo (1).png")
    home = compose_config("predict", ["checkpoint=~/x.pt", "source='~/y'", "output_dir=~/o"])
    paths = [home[key] for key in ("checkpoint", "source", "output_dir")]
    assert paths == [str(Path(f"~/{name}").expanduser()) for name in ("x.pt", "y", "o")]
