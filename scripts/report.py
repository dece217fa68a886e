"""Makes one page of result rows: ``python scripts/report.py rows=runs/benchmark``."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sparse_dset.command_line import check_command_line, script
from sparse_dset.config import check_config
from sparse_dset.engine.outputs import job_folder
from sparse_dset.files import write_text
from sparse_dset.report.page import make_report, read_all


def _paths(plain: dict[str, Any]) -> list[str]:
    return [plain["rows"]] if isinstance(plain["rows"], str) else list(plain["rows"])


@script("report")
def main(cfg: DictConfig) -> None:
    """Reads the rows and writes report.html, report.md and the pictures of the latter."""
    plain = check_config(cfg)
    report = make_report(read_all(_paths(plain)), plain["title"], plain["class_name"])
    folder = job_folder(plain["output_dir"])
    write_text(folder / "report.html", report.html())
    write_text(folder / "report.md", report.markdown())
    for section in report.sections:
        for picture in section.figures:
            write_text(folder / f"{picture.name}.svg", picture.svg)
        for finding in section.findings:
            print(finding)
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    check_command_line("report", _paths)
    main()
