"""Sweeps over keep ratios, executions, models, sizes and seeds; each job is a row on the disk.

``python scripts/sweep.py checkpoint=x.pt execution=dense_scatter,sparse pruner.keep_ratio=0.1,0.3``
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from sparse_dset.benchmark.plot import plot_results
from sparse_dset.benchmark.table import format_table
from sparse_dset.command_line import check_command_line, script
from sparse_dset.engine.loggers import read_rows
from sparse_dset.files import write_text
from sparse_dset.overrides import text_override
from sparse_dset.sweep.jobs import check_job, failed_jobs, finished_jobs, run_job


@script("sweep")
def main(cfg: DictConfig) -> float | tuple[float, ...]:
    """Runs one job."""
    return run_job(cfg)


def _report(folder: Path) -> None:
    """Prints and writes a table, and draws a plot, per setup; names the jobs that failed."""
    file = folder / "results.jsonl"
    rows = read_rows(file) if file.exists() else []
    done = list(finished_jobs(rows).values())
    setups = [row["setup"] for row in done]
    for number, setup in enumerate(s for i, s in enumerate(setups) if s not in setups[:i]):
        own = [row for row in done if row["setup"] == setup]
        name = f"{setup['model']}, {setup['size'][0]}x{setup['size'][1]}, seed {setup['seed']}"
        table = f"{name}\n\n{format_table(own)}"
        print(f"\n{table}")
        write_text(folder / f"table_{number}.md", table)
        plot_results(own, folder / f"plot_{number}.png", title=name)
    for row in failed_jobs(rows):
        print(f"failed: {' '.join(row['overrides'])}: {row['error']}", file=sys.stderr)
    print(f"rows: {file}; resume=true runs what is missing or failed")


if __name__ == "__main__":
    jobs = check_command_line("sweep", check_job)
    if not jobs:
        main()  # --help and the like
    else:
        output = Path(jobs[0]["output_dir"])
        # Two sweeps that start in the same second have folders of their own for hydra's files.
        own = output / "jobs" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        sys.argv.append(text_override("hydra.sweep.dir", own))
        try:
            main()
        finally:
            _report(output)
