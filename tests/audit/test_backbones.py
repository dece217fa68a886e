"""The table of timm's families says what works."""

from __future__ import annotations

import json

import pytest

from sparse_dset.audit import backbones
from sparse_dset.audit.backbones import check_all, check_backbone, families, format_rows


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ("any", "together", "yes", "20 of 20")),
        ("pvt_v2_b0", ("any", "each image at its own size", "no", "nothing to fold")),
        ("test_maxvit", ("not all; 160x160", "refused", "no", "9 of 13")),
    ],
)
def test_what_works(name, expected):
    row = check_backbone(name)
    assert (row["sizes"], row["padded"], row["early"], row["fuse"]) == expected


def test_what_cannot_be_a_backbone_says_why():
    assert "[4, 8, 32] are missing" in check_backbone("test_vit")["reason"]


def test_every_family_has_a_model():
    assert {"resnet", "swin_transformer", "convnext"} <= families().keys()


def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "families", lambda: {"a": "resnet18", "b": "test_vit"})
    rows = check_all(tmp_path / "rows.jsonl")
    monkeypatch.setattr(backbones, "check_backbone", pytest.fail)
    assert check_all(tmp_path / "rows.jsonl") == rows
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["family"] for line in lines] == ["a", "b"]
    text = format_rows(rows)
    assert "1 of 2" in text
    assert "- b: test_vit has stages" in text
