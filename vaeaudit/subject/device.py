"""Where a model runs, and how exactly it computes there."""

from typing import Any

import torch

from vaeaudit.errors import ConfigError, clipped


def bits_repeat(device: torch.device) -> bool:
    """Whether the same machine with as many threads gives the same bits: on CUDA where that was asked of torch."""
    return device.type == "cpu" or (device.type == "cuda" and torch.are_deterministic_algorithms_enabled())


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" is a GPU of CUDA's kind where there is one, else the CPU.

    Raises :class:`ConfigError` for a device that is not there, or has no float64, as MPS has none.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device '{clipped(name)}'; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "mps":
        raise ConfigError("device 'mps' has no float64, in which distances and errors are computed; give --device cpu")
    there = {"cpu": not device.index, "cuda": cuda and (device.index or 0) < torch.cuda.device_count()}
    if not there.get(device.type, False):
        raise ConfigError(f"device '{clipped(name)}' is not on this machine; leave --device out to take what is")
    return device


def compute_exactly(device: str | torch.device, *, tf32: bool = False) -> None:
    """On CUDA: the same bits each time, and products of whole float32 unless ``tf32``, which keeps 10 bits of 23.

    cuDNN takes TF32 by itself otherwise, and sums in the order in which threads end. What has no such form is told by a
    warning of torch's; cuBLAS is one of these unless CUBLAS_WORKSPACE_CONFIG is :4096:8 in the environment when it
    is first used. Every command that runs a model does both. On other devices nothing is done, as nothing is to be.
    Raises RuntimeError, torch's, for what names no device.
    """
    if torch.device(device).type != "cuda":
        return
    of_fill: Any = torch.utils.deterministic  # a part of it is not in torch's types
    # Where the newer switches of each kind of product are set, torch raises whenever the older are read, as layers do.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    of_fill.fill_uninitialized_memory = False  # which finds faults, and costs time
