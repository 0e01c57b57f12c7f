"""Where a model runs, and how exactly it computes there."""

from typing import Any

import torch

from vaeaudit.errors import ConfigError, clipped


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" is a GPU where there is one.

    Raises :class:`ConfigError` for a device that is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device '{clipped(name)}'; expected auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps}
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
    of_cudnn: Any = torch.backends.cudnn  # parts of these are not in torch's types
    of_fill: Any = torch.utils.deterministic
    for products in (torch.backends.cuda.matmul, of_cudnn.conv, of_cudnn.rnn):
        products.fp32_precision = "tf32" if tf32 else "ieee"
    of_cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    of_fill.fill_uninitialized_memory = False  # which finds faults, and costs time
