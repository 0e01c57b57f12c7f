"""Norms of weights in a report: their entries, and how they are shown."""

from pydantic import Field

from vaeaudit.checks.weights.metrics import METRICS
from vaeaudit.errors import listed
from vaeaudit.layout.entry import Entry, FileHash, Number
from vaeaudit.layout.section import Section, Shown, Table, number
from vaeaudit.stats.metric import meanings

NORMS = "weights"  # figure
# What the columns of the tables mean.
_PARTS = {
    "part": "encoder or decoder",
    "L2": "square root of the sum of squares of its weights, tied ones counted once",
    "tensors": "how many were counted",
    "numbers": "how many numbers these hold",
}
_TENSORS = {
    "tensor": "its name in the file",
    "part": "the part that it belongs to",
    "shape": "its sizes, as stored",
    "type": "what its numbers are stored in; squares are summed in float64",
    "L2": "square root of the sum of its squares",
    "share": "its squares' share of its part's",
    "2-norm": "largest singular value of the tensor as a matrix, first dimension by all others: for a convolution not "
    "the norm of the operator",
}
_OTHER = {
    "other's L2": "the same of the other model",
    "change": "100 (L2 - other's L2) / other's L2: how much larger the norm is here",
}


class TensorEntry(Entry):
    """One tensor that was counted."""

    name: str
    part: str
    shape: list[int]
    dtype: str
    l2: float
    share: Number = Field(description="Of the part's sum of squares; 0 for a tied tensor, null where that sum is 0.")
    spectral: Number = Field(description="2-norm as a matrix (shape[0], -1); null where it was not computed.")
    method: str = Field(description="How the 2-norm was found.")
    tied_to: str | None = Field(description="An equal tensor named earlier in the part, which counts for both.")
    against: Number = Field(description="L2 norm in the other model.")
    change: Number = Field(description="100 (l2 - against) / against, in percent.")


class PartEntry(Entry):
    """Encoder or decoder."""

    name: str
    l2: Number = Field(description="null where the check was interrupted before.")
    tensors: int
    numbers: int
    against: Number
    change: Number
    why: str = Field(description="Why there is no change, if there is none.")


class WeightsEntry(Entry):
    """The L2 norms of encoder and decoder."""

    against: FileHash | None = Field(description="The model that norms are compared with.")
    prefixes: dict[str, list[str]] = Field(description="How the names of each part's tensors begin.")
    vectors: bool = Field(description="Whether tensors of fewer than two dimensions were counted.")
    parts: list[PartEntry]
    tensors: list[TensorEntry] = Field(description="The largest, in the order of the file; all are in items.json.")
    counted: int
    left_out: list[str] = Field(description="Tensors that were not counted.")
    computed: list[str] = Field(
        [], description="Weights that the model computes from several stored tensors, counted as it works with them."
    )

    def section(self) -> Section:
        """How the norms are shown."""
        other = _OTHER if self.against else {}
        which = "all weights" if self.vectors else "weights in tensors of two or more dimensions"
        versus = f", and how they differ from those of {self.against.path}" if self.against else ""
        few = len(self.tensors) == self.counted
        remarks = [f"No change of the {part.name}: {part.why}." for part in self.parts if part.why]
        if not few:
            remarks.append(f"The other {self.counted - len(self.tensors)} tensors are in items.json.")
        if self.computed:
            remarks.append(
                "Counted as the model works with them, from the tensors that weight or spectral normalisation store: "
                f"{listed(self.computed)}."
            )
        if self.left_out:
            remarks.append(f"Not counted: {listed(self.left_out)}.")
        return Section(
            "Weights",
            f"How large the {which} of encoder and decoder are{versus}, read from the file without running the model. "
            "Norms tell models of one architecture apart, such as two that were trained with different "
            f"regularisation; neither a small nor a large one is robust by itself. {self._whose()}",
            [
                Shown("L2 norms of encoder and decoder", self._part_table(), _PARTS | other),
                Shown(
                    "every tensor" if few else f"the {len(self.tensors)} largest of {self.counted} tensors",
                    self._tensor_table(),
                    _TENSORS | other,
                    numbers_from=4,
                ),
            ],
            remarks,
            {NORMS: "L2 norm of each tensor, by part" + (", and of the other model's" if self.against else "")},
            meanings=meanings(METRICS),
            headlines={
                "weights.encoder.l2.change": "% that the encoder outweighs the other's",
                "weights.encoder.l2": "size of the encoder's weights",
                "weights.decoder.l2": "size of the decoder's weights",
            },
        )

    def _whose(self) -> str:
        told = [f"{part}: {listed(prefixes)}" for part, prefixes in self.prefixes.items() if prefixes]
        return f"Whose a tensor is, its name's beginning tells ({'; '.join(told)})."

    def _part_table(self) -> Table:
        rows = [
            [part.name, number(part.l2, 6), str(part.tensors), f"{part.numbers:,}"]
            + ([number(part.against, 6), _percent(part.change)] if self.against else [])
            for part in self.parts
        ]
        return [*_PARTS, *(_OTHER if self.against else {})], rows

    def _tensor_table(self) -> Table:
        rows = [
            [
                tensor.name,
                tensor.part,
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.dtype,
                number(tensor.l2),
                f"tied to {tensor.tied_to}" if tensor.tied_to else _share(tensor.share),
                number(tensor.spectral),
                *([number(tensor.against), _percent(tensor.change)] if self.against else []),
            ]
            for tensor in self.tensors
        ]
        return [*_TENSORS, *(_OTHER if self.against else {})], rows


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.3g} %"
