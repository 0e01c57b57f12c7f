"""Where a model runs, and how exactly it computes there."""

from typing import Any

import torch

from vaeaudit.errors import ConfigError, clipped


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


def compute_exactly(device: torch.device, *, tf32: bool) -> None:
    """On CUDA: the same bits each time, and products of whole float32 unless ``tf32``, which keeps 10 bits of 23.

    cuDNN takes TF32 by itself otherwise, and sums in the order in which threads end. What has no such form is told by a
    warning of torch's.
    """
    if device.type != "cuda":
        return
    of_fill: Any = torch.utils.deterministic  # a part of it is not in torch's types
    # Where the newer switches of each kind of product are set, torch raises whenever the older are read, as layers do.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    of_fill.fill_uninitialized_memory = False  # which finds faults, and costs time
