"""MoRe under DistributedDataParallel: two processes take the step that one takes on all rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]

# One step of gradient descent on the rows that a process gets; the last line writes the adapter.
STEP = """
import sys, torch, peft
from safetensors.torch import save_file
from torch import nn
from manticore import MoReConfig

world, rank, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 7))
config = MoReConfig(target_modules=["0", "2"], nblocks=3, block_rank=2, init_weights=False)
model = peft.get_peft_model(base, config)
x, y = torch.randn(8, 12), torch.randn(8, 7)
if world > 1:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    x, y = x.chunk(world)[rank], y.chunk(world)[rank]
    runner = nn.parallel.DistributedDataParallel(model)
else:
    runner = model
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
for _ in range(3):
    optimizer.zero_grad()
    (runner(x) - y).square().mean().backward()
    optimizer.step()
save_file({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, out)
if world > 1:
    torch.distributed.destroy_process_group()
"""


def start(tmp_path: Path, world: int, rank: int) -> tuple[subprocess.Popen[str], Path]:
    out = tmp_path / f"{world}-{rank}.safetensors"
    command = [sys.executable, "-c", STEP, str(world), str(rank), str(tmp_path / "store"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    return process, out


@pytest.mark.slow  # three fresh processes import torch
def test_two_processes_train_the_adapter_that_one_does(tmp_path: Path) -> None:
    running = [start(tmp_path, 1, 0), start(tmp_path, 2, 0), start(tmp_path, 2, 1)]
    try:
        for process, _ in running:
            said, _ = process.communicate(timeout=100)
            assert process.returncode == 0, said
    finally:
        for process, _ in running:
            process.kill()
    alone, first, second = (load_file(out) for _, out in running)
    assert len(alone) == 4
    for name, wanted in alone.items():
        assert torch.equal(first[name], second[name])
        # Two halves' means are added in another order than one mean.
        torch.testing.assert_close(first[name], wanted, atol=1e-6, rtol=1e-5)
