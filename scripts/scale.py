"""Measures how time grows with the image where the number of objects stays the same.

``python scripts/scale.py checkpoint=x.pt`` puts a picture on larger and larger canvases.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sparse_dset.benchmark.arms import check_run
from sparse_dset.benchmark.scale import measure_scale, measured_table, plot_scale, summary_table
from sparse_dset.benchmark.table import measured_with
from sparse_dset.benchmark.validation import open_validation_set
from sparse_dset.checks import check_list, check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import check_config
from sparse_dset.engine.checkpoint import read_detector
from sparse_dset.engine.loggers import append_row, now
from sparse_dset.engine.outputs import job_folder
from sparse_dset.ops.costs import prepare_cpu


def _check(plain: dict[str, Any]) -> None:
    for name in ("executions", "widths"):
        check_list(name, plain[name])
    check_run(plain["executions"], plain["keep_ratio"])
    for width in plain["widths"]:
        check_number("widths", width, at_least=32, whole=True)
    for name, least in (("image", 0), ("warmup", 1), ("repeats", 1)):
        check_number(name, plain[name], at_least=least, whole=True)


@script("scale")
def main(cfg: DictConfig) -> None:
    """Measures, prints a table and writes rows and a plot."""
    prepare_cpu(cfg.threads)
    model, config = read_detector(cfg.checkpoint)
    data = check_config(cfg).get("data") or config.get("data")
    dataset = open_validation_set(data, None, config["model"]["class_names"], model.view)
    image, target = dataset[cfg.image]
    folder, rows = job_folder(cfg.output_dir), []
    for row in measure_scale(
        model,
        image,
        list(cfg.widths),
        list(cfg.executions),
        keep_ratio=cfg.keep_ratio,
        warmup=cfg.warmup,
        repeats=cfg.repeats,
    ):
        append_row(
            folder / "results.jsonl",
            {
                **row,
                "time": now(),
                "checkpoint": cfg.checkpoint,
                "image": cfg.image,
                "overrides": task_overrides(),
            },
        )
        rows.append(row)
    plot_scale(rows, folder / "scale.png")
    print(f"one picture with {len(target['labels'])} objects on canvases of several widths\n")
    print(f"{measured_table(rows).markdown()}\n\n{summary_table(rows).markdown()}")
    print(f"\n{measured_with(rows)}")
    print(f"rows and plot: {folder}")


if __name__ == "__main__":
    check_command_line("scale", _check)
    main()
