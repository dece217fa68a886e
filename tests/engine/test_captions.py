from __future__ import annotations

import itertools

import pytest

from sparse_dset.engine.captions import caption_size, font, place, visible_text


def test_what_can_be_drawn_stays_as_it_is() -> None:
    for text in ("car", "Straßenbahn", "автобус", "λεωφορείο", "a b", "x [1] {y} %s"):
        assert visible_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\\nb", r"a\\nb"),
        ("车", r"\u8f66"),
        ("\U0001f697", r"\U0001f697"),
        ("e\u0301", r"e\u0301"),
        ("a\u200bb", r"a\u200bb"),
        ("a\xa0b", r"a\u00a0b"),
        ("\x00", r"\u0000"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_cannot_be_drawn_is_escaped(text: str, shown: str) -> None:
    assert visible_text(text) == shown


def test_different_names_never_look_the_same() -> None:
    names = ["", " ", "\n", r"\n", "车", "家", "狗", "é", "e\u0301", "e", "a\tb", "a b", "a\xa0b"]
    names += ["x" * 300, "x" * 299, "x" * 299 + "y", "\u200bcar", "car", "car\u202e"]
    pictures = {name: bytes(font().getmask(visible_text(name))) for name in names}
    sizes = {name: caption_size(visible_text(name)) for name in names}
    for one, other in itertools.combinations(names, 2):
        assert (pictures[one], sizes[one]) != (pictures[other], sizes[other]), (one, other)


def test_long_names_are_shortened() -> None:
    assert len(visible_text("x" * 5000)) == 40


@pytest.mark.parametrize(
    ("box", "start"),
    [
        ((20, 50, 60, 90), (20, 38)),  # above
        ((20, 0, 60, 90), (20, 0)),  # at the top edge
        ((20, 5, 60, 90), (20, 5)),
        ((190, 50, 200, 90), (160, 38)),  # at the right edge
        ((0, 99, 10, 100), (0, 87)),
        ((195, 0, 200, 1), (160, 0)),
    ],
)
def test_captions_start_where_they_are_seen(box: tuple, start: tuple) -> None:
    assert place(box, (40, 12), (200, 100)) == start
