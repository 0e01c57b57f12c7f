"""A model's weights and facts as one safetensors file, which opens without being told anything more."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save

from vaeaudit.errors import CheckpointError, VaeauditError, listed
from vaeaudit.model.adapters import adapter_names, said_beside
from vaeaudit.model.checkpoints import Checkpoint, check_finite
from vaeaudit.model.registry import LoadedModel, opened_by
from vaeaudit.model.stated import FACT_PREFIX, read_config


def converted(source: Checkpoint | LoadedModel, out: Path) -> tuple[bytes, dict[str, object]]:
    """The bytes of a safetensors file ``out`` of the tensors, by the names that an adapter took, and the facts in it.

    Of a checkpoint that no adapter opened, names and facts are those of the file. Of a model, facts are the options,
    over the ``facts`` that it has where its adapter reads more than tensors, and the adapter's name, where it is
    installed; what is to be written is opened again and must be the same model.

    Raises :class:`CheckpointError` for a model of several files, which its adapter looks for by their names, and for
    one that would not open as it did.
    """
    checkpoint = source if isinstance(source, Checkpoint) else source.checkpoint
    facts = dict(checkpoint.facts)
    if isinstance(source, LoadedModel):
        named = {"adapter": source.adapter.name} if source.adapter.name in adapter_names() else {}
        facts = {**named, **getattr(source.vae, "facts", {}), **source.options}
    tensors = checkpoint.tensors
    if checkpoint.program is not None:
        raise CheckpointError(f"{checkpoint.path} is a program, which its tensors alone do not give; keep the pair")
    files = {one.path.name: one.tensors for one in (checkpoint, *checkpoint.companions)}
    parts = _parts(source) if isinstance(source, LoadedModel) else {}
    if checkpoint.companions and set(parts.values()) == files.keys():
        tensors = {f"{part}.{name}": of for part, file in parts.items() for name, of in files[file].items()}
    elif checkpoint.companions:
        beside = listed(one.path.name for one in checkpoint.companions)
        raise CheckpointError(
            f"{checkpoint.path} is opened with {beside} beside it, which its adapter looks for by name, where a model "
            "of one file was expected; convert each by itself, and let the adapter name them anew"
        )
    check_finite(checkpoint)
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    content = save(copies, {"format": "pt"} | {f"{FACT_PREFIX}{name}": json.dumps(facts[name]) for name in facts})
    if isinstance(source, LoadedModel):
        written = Checkpoint(out, load(content), facts, config=read_config(out))
        options = {name: value for name, value in facts.items() if name != "adapter"}
        try:
            again = opened_by(source.adapter, written, options)
            fault = "as another model" * (again.state_sha256 != source.state_sha256)
        except VaeauditError as error:
            fault = f"no more ({error})"
        if fault:
            raise CheckpointError(
                f"{checkpoint.source} would open {fault} once it was {out}, where tensors and options were expected to "
                "be all that its adapter reads; keep the files that it has"
            )
    return content, facts


def _parts(model: LoadedModel) -> Mapping[str, str]:
    """The names of a model's files by the part that each is of, where its adapter's ``files`` says so."""
    found: Mapping[str, str] = said_beside(model.adapter, "files", lambda _: {})(model.checkpoint.path)
    return found
