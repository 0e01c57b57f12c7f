"""What the adapters of this folder share: reading options, and filling a module with a checkpoint's tensors."""

import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PositiveInt, ValidationError
from torch import Tensor, nn

from vaeaudit import Range, as_range, load_state
from vaeaudit.errors import AdapterError, clipped, nearest

Shape = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def _range(value: object) -> Range:
    try:
        return as_range(value)
    except ValueError as error:
        raise ValueError(f"expected {error}") from None


class Options(BaseModel):
    """The options of every adapter here: facts about a model's inputs, stated by its file or by the user."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input_shape: Shape | None = None
    range: Annotated[Range, PlainValidator(_range)] | None = None

    def unit_range(self) -> Range:
        """The range of a model with Bernoulli likelihood: the stated one, else [0, 1].

        Raises ValueError, which pydantic turns into an error of the option, where it leaves [0, 1].
        """
        stated = self.range or (0.0, 1.0)
        ends = np.array(stated)
        if ends.min() < 0 or ends.max() > 1:
            raise ValueError(
                f"a Bernoulli likelihood needs a range inside [0, 1], and range is {clipped(str(ends.tolist()))}"
            )
        return stated


AnyOptions = TypeVar("AnyOptions", bound=Options)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def read_options(model: type[AnyOptions], config: Mapping[str, object], adapter: str) -> AnyOptions:
    """Validate ``config``; every fault is an :class:`AdapterError` of one sentence."""
    known = list(model.model_fields)
    unknown = [name for name in config if name not in known]
    if unknown:
        raise AdapterError(
            f"adapter '{adapter}' has no option '{clipped(unknown[0])}'{nearest(unknown[0], known)}; "
            f"its options are {', '.join(known)}"
        )
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        fault = error.errors()[0]
        reason = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # each option is possible, but not beside the others
            raise AdapterError(f"adapter '{adapter}' cannot take these options together: {reason}") from error
        name = str(fault["loc"][0])
        if name not in config:
            raise AdapterError(f"adapter '{adapter}' needs the option {name}; see docs/models.md") from error
        raise AdapterError(
            f"adapter '{adapter}' cannot take {name} = {clipped(repr(config[name]))}: {reason[0].lower()}{reason[1:]}"
        ) from error


def filled(build: Callable[[], AnyModule], tensors: Mapping[str, Tensor]) -> AnyModule:
    """Build a module and copy ``tensors`` into it, in float32 or, if the file holds float64, in that.

    No initial weights are drawn: opening a model leaves the global random state as it was.
    Raises :class:`vaeaudit.errors.CheckpointError` where a name or shape does not match.
    """
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of tensors without elements
        module = build()
    load_state(module, {name: tensor.to("meta") for name, tensor in tensors.items()})  # before memory is taken
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()), torch.float32)
    module = nn.Module.to(module.to_empty(device="cpu"), dtype)  # a class may have a `to` of its own that warns
    load_state(module, tensors)
    stored = module.state_dict()
    if constants := {name: buffer for name, buffer in module.named_buffers() if name not in stored}:
        with torch.random.fork_rng(devices=[]):
            computed = dict(build().named_buffers())  # no file has them: only the code that builds them
        for name, buffer in constants.items():
            buffer.copy_(computed[name])
    return module


def channels_last(module: AnyModule) -> AnyModule:
    """Hold the weights of convolutions channels last, in place: a CPU then takes 10 to 20% less time for a pass.

    What they give lies in memory likewise, so that the module must not ask for views of it, which need another order.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:  # `to` orders those of one channel as well, which `contiguous` takes for either
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return module
