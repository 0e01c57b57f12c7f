"""By what those who train on latents of a latent diffusion model scale them: as files state it, or by the family."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaeaudit import LatentScale
from vaeaudit.errors import AdapterError, clipped

_STATED = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
# Scaling and shift of latents, the sizes that the family shares, and names that only its whole models have.
FAMILIES: dict[str, tuple[float, float, tuple[int, bool], tuple[str, ...]]] = {
    "sd": (0.18215, 0.0, (4, True), ("cond_stage_model.",)),
    "sdxl": (0.13025, 0.0, (4, True), ("conditioner.embedders.",)),
    "sd3": (1.5305, 0.0609, (16, False), ("model.diffusion_model.joint_blocks.",)),
    "flux": (0.3611, 0.1159, (16, False), ("model.diffusion_model.double_blocks.", "double_blocks.")),
}


def stated(model: Any) -> LatentScale | None:
    """What the pipelines of diffusers take from latents and multiply them by, as the config or the tensors say.

    Raises :class:`AdapterError` where a config states something else.
    """
    try:
        return _stated(model)
    except (TypeError, ValueError, RuntimeError) as error:
        said = clipped(str({name: model.config[name] for name in _STATED if model.config.get(name) is not None}))
        raise AdapterError(f"config.json states no numbers by which latents are scaled: {said}; correct it") from error


def _stated(model: Any) -> LatentScale | None:
    config = model.config
    if hasattr(model, "bn"):  # over patches of 2x2 latents
        shift = model.bn.running_mean.unflatten(0, (-1, 4)).mean(1)
        scale = (model.bn.running_var.unflatten(0, (-1, 4)).mean(1) + model.bn.eps).rsqrt()
        return LatentScale(tuple(shift.tolist()), tuple(scale.tolist()), "its batch normalisation")
    stored = {name: buffer.tolist() for name, buffer in model.named_buffers() if name.startswith("latents_")}
    mean, stddev = (stored.get(name) or config.get(name) for name in ("latents_mean", "latents_std"))
    if mean and stddev:
        channels = config.get("latent_channels") or config["z_dim"]  # each may have a number for every frame
        means, stddevs = (
            torch.tensor(one, dtype=torch.float32).reshape(channels, -1).mean(1) for one in (mean, stddev)
        )
        if not (stddevs > 0).all():
            raise ValueError("standard deviations are positive")
        return LatentScale(tuple(means.tolist()), tuple((1 / stddevs).tolist()), "latents_mean and latents_std")
    if config.get("scaling_factor") is None:
        return None
    shift, scale = float(config.get("shift_factor") or 0), float(config["scaling_factor"])
    return LatentScale((shift,), (scale,), f"scaling_factor {scale:g}" + f" and shift_factor {shift:g}" * (shift != 0))


def of_family(
    tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor], family: str | None
) -> tuple[LatentScale | None, tuple[str, ...]]:
    """By what a family scales latents, and what is to be told where the ``whole`` file does not say which it is."""
    sizes = (tensors["decoder.conv_in.weight"].shape[1], "quant_conv.weight" in tensors)
    likely = [name for name, (*_, shared, _) in FAMILIES.items() if shared == sizes]
    told = [name for name in likely if any(one.startswith(FAMILIES[name][3]) for one in whole)]
    if family is None and len(told) == 1:
        family = told[0]
    if family is not None:
        scale, shift, *_ = FAMILIES[family]
        return LatentScale((shift,), (scale,), f"scaling {scale} and shift {shift} of family {family}"), ()
    note = (
        f"the tensors fit the families {' and '.join(likely)}; --option family={likely[0]} says which" if likely else ""
    )
    return None, (note,) if note else ()
