"""The weights check from settings to record; it takes a file, where the others take a model with its data."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vaeaudit.checks.record import Drawing, Record, Work, number
from vaeaudit.checks.weights.entry import NORMS, PartEntry, TensorEntry, WeightsEntry
from vaeaudit.checks.weights.figures import norm_bars
from vaeaudit.checks.weights.measure import PartNorm, TensorNorm, weights
from vaeaudit.checks.weights.stored import StoredModel, fitting, stored_weights
from vaeaudit.checks.weights.summarise import summarise_weights
from vaeaudit.layout.entry import FileHash
from vaeaudit.model.stated import find_checkpoint
from vaeaudit.progress import GoOn

_SHOWN = 30  # most tensors in the report; all are in items.json


def cost(*_: object) -> float:
    """What it costs is that of a few rows of the model."""
    return 3_000


def works(stored: Callable[[], StoredModel]) -> dict[str, Work]:
    """What there is to do, in one piece, of what ``stored`` reads."""
    return {"weights": lambda go_on: run(stored(), go_on)}


def run(stored: StoredModel, go_on: GoOn) -> Record:
    """The norms of encoder and decoder, and how they differ from the other model's."""
    chosen = stored.settings.weights
    other, theirs = None, None
    if chosen.against is not None:
        place, sha256, held = stored_weights(chosen.against, stored.settings.model.trust_code, stored.adapter)
        other = FileHash(path=place, sha256=sha256)
        theirs = fitting(find_checkpoint(Path(chosen.against)), held, stored.parts)[1]
    result = weights(
        stored.weights,
        parts=stored.parts,
        against=theirs,
        vectors=chosen.vectors,
        spectral=chosen.spectral,
        go_on=go_on,
    )
    tensors = [_tensor(tensor) for tensor in result.tensors]
    largest = sorted(range(len(tensors)), key=lambda place: -tensors[place].l2)[:_SHOWN]
    entry = WeightsEntry(
        against=other,
        prefixes={part: list(prefixes) for part, prefixes in stored.parts.items()},
        vectors=result.vectors,
        parts=[_part(part) for part in result.parts],
        tensors=[tensors[place] for place in sorted(largest)],
        counted=len(tensors),
        left_out=list(result.left_out),
        computed=list(result.computed),
    )
    return Record(
        [entry],
        summarise_weights(result),
        result.warnings,
        interrupted=result.interrupted,
        signs={f"weights.{part}": why for part, why in result.doubts.items()},
        rows={"weights": [tensor.model_dump(mode="json") for tensor in tensors]},
        drawings={} if result.interrupted else {NORMS: Drawing("weights.png", partial(_bars, entry.tensors))},
    )


def _bars(tensors: Sequence[TensorEntry]) -> bytes:
    return norm_bars(
        [tensor.name for tensor in tensors],
        [tensor.part for tensor in tensors],
        [tensor.l2 for tensor in tensors],
        [tensor.against for tensor in tensors],
    )


def _tensor(tensor: TensorNorm) -> TensorEntry:
    return TensorEntry(
        name=tensor.name,
        part=tensor.part,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        l2=tensor.l2,
        share=None if tensor.share is None else number(tensor.share),
        spectral=tensor.spectral,
        method=tensor.method,
        tied_to=tensor.tied_to,
        against=tensor.against,
        change=tensor.change,
    )


def _part(part: PartNorm) -> PartEntry:
    return PartEntry(
        name=part.name,
        l2=number(part.l2),
        tensors=part.tensors,
        numbers=part.numbers,
        against=None if part.against is None else number(part.against),
        change=None if part.change is None else number(part.change),
        why=part.why,
    )
