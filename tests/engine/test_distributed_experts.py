"""Two processes with experts that see no tokens."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = textwrap.dedent(
    """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from sparse_dset import build_criterion, build_detector

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    learned = "model.decoder.background=learned"
    moe = "{_target_: sparse_dset.models.moe.MoEConfig, num_experts: 4, top_k: 1}"
    model = build_detector(
        "nano",
        2,
        [*(f"model.{part}.moe={moe}" for part in ("encoder", "decoder")), learned],
        pretrained=False,
    )
    network, criterion = DistributedDataParallel(model), build_criterion()
    for step in range(3):
        # Each process routes everything to another expert; process 1 sees no object in step 1, and
        # keeps no token in step 2.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("router.bias"):
                    parameter.copy_(100.0 * torch.eye(4)[rank])
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]])[: 0 if rank == 1 and step == 1 else 1]
        labels = torch.zeros(len(boxes), dtype=torch.long)
        target = {"labels": labels, "boxes": boxes, "image_id": 1}
        kept = [torch.ones(1, n, n, dtype=torch.bool) for n in (8, 4, 2)]
        if rank == 1 and step == 2:
            kept = [torch.zeros_like(mask) for mask in kept]
        execution = "dense" if step == 1 else "sparse"
        out = network(torch.rand(1, 3, 64, 64), [target], execution=execution, kept=kept)
        network.zero_grad(set_to_none=True)
        sum(criterion(out, [target]).values()).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        finite = all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert finite and not missing, missing
    dist.barrier()
    print("process", rank, "done")
    """
)


@pytest.mark.slow
def test_processes_that_route_differently_do_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
    ]
    done = subprocess.run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == 2
