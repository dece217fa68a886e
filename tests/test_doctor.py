from __future__ import annotations

import sys

import pytest
import torch

from sparse_dset import doctor


def test_report_names_packages_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    report = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in report
    assert "reference" in report
    assert "spconv" in report


def test_a_wrong_backend_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.sparse_conv2d
    monkeypatch.setattr(doctor, "sparse_conv2d", lambda *a, **k: right(*a, **k) + 1)
    assert doctor.main() == 1


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv", None)
    assert doctor.package_status("spconv", "spconv-cu120").startswith("not usable")
