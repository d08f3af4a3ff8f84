"""Several processes on one run (data parallel, `accelerate launch` or `torchrun`): who writes, and who waits."""

import os

import torch
import torch.distributed as dist
from accelerate import PartialState

from em_core.errors import UserError

# What a launcher may ask for by environment, and why it is not sound here. DDP and gradient accumulation are.
REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP: factors, doses and checkpoints would be read from shards",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed: its optimisers step over flattened parameters, which have no matrices left",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: it replaces the model and the training loop",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism: factors would be read from shards",
    "ACCELERATE_USE_FP8": "FP8: the base model's dtype belongs to the run's identity",
}

# What `accelerate launch --mixed_precision` may say for a base of this dtype: it would win over the trainer's own.
PRECISIONS = {torch.float32: ("no",), torch.bfloat16: ("no", "bf16")}


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def start() -> None:
    """Join the other processes of this run, if there are any.

    Raises:
        UserError: a way of spreading a model that would change what is measured, or several GPUs without a launcher.
    """
    for name, reason in REFUSED.items():
        if os.environ.get(name, "false").lower() in ("1", "true", "yes"):
            raise UserError(
                f"the launcher asks for {reason}: use plain data parallelism (accelerate launch --multi_gpu)"
            )
    if (compiler := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        raise UserError(
            f"the launcher asks for torch.compile (dynamo backend {compiler}), which changes results but not the run's "
            "id: launch with --dynamo_backend no"
        )
    if world_size() > 1:
        PartialState(cpu=not torch.cuda.is_available())
    elif torch.cuda.device_count() > 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible, but this is a single process: start it with accelerate "
            "launch, or choose one GPU with CUDA_VISIBLE_DEVICES"
        )


def check_precision(dtype: torch.dtype) -> None:
    """Refuse a launcher whose mixed precision is not that of the run, which is part of its identity.

    Raises:
        UserError: ACCELERATE_MIXED_PRECISION would autocast a float32 run, or scale gradients (fp16).
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    allowed = PRECISIONS[dtype]
    if asked not in allowed:
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"the launcher asks for mixed precision {asked}, this run's dtype is {name}: launch with "
            f"--mixed_precision {allowed[-1]}, or set dtype"
        )


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def total(values: list[float], device: torch.device) -> list[float]:
    """Sums of `values` over all processes."""
    if not dist.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return [float(value) for value in sums]
