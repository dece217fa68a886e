"""Feeds the package inputs that are wrong at random: ``python scripts/fuzz.py count=100000``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from sparse_dset.checks import check_list, check_number
from sparse_dset.command_line import check_command_line, script
from sparse_dset.config import check_config
from sparse_dset.engine.loggers import read_rows
from sparse_dset.fuzz.run import Limits, count_table, faults, run_inputs
from sparse_dset.fuzz.targets import TARGETS, numbered, perform


def _check(plain: dict[str, Any]) -> None:
    for name, least in (("count", 1), ("start", 0), ("seed", 0)):
        check_number(name, plain[name], at_least=least, whole=True)
    for name in ("input_seconds", "input_megabytes"):
        check_number(name, plain[name], above=0)
    if plain["seconds"] is not None:
        check_number("seconds", plain["seconds"], above=0)
    if plain["targets"] is not None:
        check_list("targets", plain["targets"])
        for name in plain["targets"]:
            if name not in TARGETS:
                raise ValueError(f"unknown target {name!r}: there are {', '.join(TARGETS)}")


@script("fuzz")
def main(cfg: DictConfig) -> None:
    """Runs the inputs, prints faults as they come and a table of what came of all."""
    plain = check_config(cfg)
    file = Path(plain["output_dir"]) / "results.jsonl"
    numbers = range(plain["start"], plain["start"] + plain["count"])
    before = read_rows(file) if file.exists() else []
    rows = [row for row in before if row["number"] in numbers]
    done = {row["number"] for row in rows}
    names = plain["targets"] or list(TARGETS)
    run = functools.partial(perform, seed=plain["seed"])
    limits = Limits(plain["input_seconds"], plain["input_megabytes"])
    left = [number for number in numbers if number not in done]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        inputs = numbered(tqdm(left, mininterval=5), plain["seed"], names)
        for row in run_inputs(inputs, run, limits, plain["seconds"]):
            out.write(f"{json.dumps(row)}\n")
            out.flush()
            rows.append(row)
            if faults([row]):
                tqdm.write(f"fault: {row}")
    print(f"\n{count_table(rows)}\n\n{len(faults(rows))} faults; rows: {file}")
    if faults(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    check_command_line("fuzz", _check)
    main()
