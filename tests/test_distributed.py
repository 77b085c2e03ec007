"""Two processes (gloo) give the gradients of one: DDP, FSDP2, tensor parallelism."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import lamina

WORLD = 2
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def model() -> nn.Module:
    """Every layer whose kernels run, wide enough that automatic choice takes them."""
    torch.manual_seed(0)
    return nn.Sequential(
        lamina.Conv2dReLU(16, 16, 3, padding=1),
        nn.Flatten(),
        lamina.LinearReLU(16 * 8 * 8, 320),
        lamina.ThresholdReLU(0.01),
        nn.Unflatten(1, (40, 8)),
        lamina.DynamicRouting(40, 10, 8, 16),
    )


def batch() -> torch.Tensor:
    return torch.randn(16, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def loss(output: torch.Tensor) -> torch.Tensor:
    return output.square().sum(-1).mean()


@contextmanager
def member(rank: int, file: str) -> Iterator[None]:
    """The life of one process, which ends with it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        yield
        dist.barrier()  # Nobody leaves while the other one still talks to it.
    finally:
        dist.destroy_process_group()
    # gloo's threads may drop their last tensors while the interpreter ends, and then abort it
    # (pytorch/pytorch#179291).
    os._exit(0)


def _data_parallel(rank: int, shard: bool, file: str) -> None:
    with member(rank, file):
        if shard:
            trained = model()
            for layer in (trained[0], trained[2], trained[5]):
                fully_shard(layer)
            fully_shard(trained)
        else:
            trained = DistributedDataParallel(model())
        part = batch().chunk(WORLD)[rank]
        with lamina.backends.record_decisions() as decisions:
            loss(trained(part)).backward()
        assert {d.backend for d in decisions if d.op != "threshold"} == {"cpp"}
        alone = model()
        loss(alone(batch())).backward()
        for found, expected in zip(trained.parameters(), alone.parameters(), strict=True):
            grad = found.grad.full_tensor() if shard else found.grad
            torch.testing.assert_close(grad, expected.grad, rtol=1e-4, atol=1e-7)


def _tensor_parallel(rank: int, file: str) -> None:
    """A DTensor is a subclass with rules of its own: the reference runs, on each one's part."""
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    with member(rank, file):
        torch.manual_seed(0)
        alone = nn.Sequential(lamina.LinearReLU(256, 512), lamina.Linear(512, 256))
        parted = parallelize_module(copy.deepcopy(alone), init_device_mesh("cpu", (WORLD,)), plan)
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
        for net in (alone, parted):
            net(x).square().mean().backward()
        for found, expected in zip(parted.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad)


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_data_parallel(shard, tmp_path):
    mp.spawn(_data_parallel, args=(shard, str(tmp_path / "rendezvous")), nprocs=WORLD)


def test_tensor_parallel(tmp_path):
    mp.spawn(_tensor_parallel, args=(str(tmp_path / "rendezvous"),), nprocs=WORLD)
