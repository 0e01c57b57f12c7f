"""The report as data: everything that a reader, a renderer or a later comparison needs, and nothing else.

``schema_version`` counts as major.minor: a minor step adds, a major step changes or removes.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, JsonValue, create_model

from vaeaudit.checks.registry import checks
from vaeaudit.errors import CheckError
from vaeaudit.layout.entry import Entry, FileHash, MetricEntry, Number
from vaeaudit.layout.section import Section
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.gates import CheckEntry, gates_section
from vaeaudit.settings.fields import Range

SCHEMA_VERSION = "1.2"


class AdapterEntry(Entry):
    """The code that opened the model."""

    name: str
    source: str
    sha256: str | None


class ModelEntry(Entry):
    """What was audited."""

    file: FileHash = Field(
        description="With the key in it that holds the weights, FILE#KEY, if it holds more; of a model of several "
        "files the first, and the hash of the lines `HASH  NAME` of all."
    )
    files: list[FileHash] = Field([], description="Each file that the weights were read from.")
    prefix: str = Field("", description="What a wrapper had put before names of tensors and was taken off.")
    computed: list[str] = Field([], description="Weights made of the tensors that weight or spectral norm stores.")
    state_sha256: str | None = Field(
        None, description="Of the opened model's parameters and buffers, whatever files they came from."
    )
    adapter: AdapterEntry | None = Field(description="null where none was needed, to look at the weights alone.")
    options: dict[str, JsonValue]
    input_shape: list[int] | None = Field(description="null where the model was not opened; so are those below.")
    range: Range | None
    likelihood: str | None = Field(description="How log p(x|z) is computed; never compared across routes.")
    parameters: int | None
    notes: list[str] = Field([], description="What else is to be known of it, as its adapter and files tell.")


class DataEntry(Entry):
    """What it was audited on."""

    source: str
    sha256: str
    n: int
    drawn_from: int | None = Field(
        None, description="Of how many, the first, the n items were drawn by the seed; null: they are the first n."
    )
    range: Range | None
    stored: str
    skipped: list[str]


class Environment(Entry):
    """Where it ran."""

    python: str
    torch: str
    cuda: str | None
    platform: str
    device: str
    threads: int
    dtype: str
    seed: int
    deterministic: bool = Field(
        description="Same machine and threads: the same bits, but for what torch warned to have no such form on a GPU."
    )


class FindingEntry(Entry):
    """One finding of the plausibility check."""

    name: str
    verdict: str = Field(description="pass, unsure (which warns) or fail (which leaves the audit without a verdict).")
    message: str
    acknowledged: str | None = Field(None, description="Reason in the configuration why it is meant; null without.")

    @property
    def told(self) -> str:
        """What was seen, and why it is meant where somebody said so."""
        return self.message if self.acknowledged is None else f"{self.message} (acknowledged: {self.acknowledged})"

    @property
    def warning(self) -> str | None:
        """What a reader must be warned of; None where nothing is amiss, or it was acknowledged."""
        known = self.acknowledged is not None
        match self.verdict:
            case "pass":
                return f"{self.name} passes, so that its acknowledgement is no longer needed" if known else None
            case "fail":
                told = "failed, and a failure cannot be acknowledged" if known else None
            case _:
                told = None if known else "is unsure; if it is meant, say why in [doctor.acknowledge]"
        return told and f"{self.name} {told}: {self.message}"


class PlausibilityEntry(Entry):
    """Whether this is the model it claims to be."""

    passed: bool = Field(description="Whether no finding failed.")
    items: int
    findings: list[FindingEntry]
    losses: dict[str, MetricEntry]

    @property
    def failed(self) -> list[FindingEntry]:
        """The findings that leave the audit without a verdict; what is unsure only warns."""
        return [finding for finding in self.findings if finding.verdict == "fail"]

    @property
    def warnings(self) -> list[str]:
        """What a reader must be warned of."""
        return [finding.warning for finding in self.findings if finding.warning is not None]


class DecisionEntry(Entry):
    """Something that the verdict rests on."""

    kind: Literal["threshold", "comparison", "sign", "plausibility", "reproduction", "interruption"]
    name: str = Field(description="The metric, attack, radius, check or finding; or the kind itself.")
    why: str


class ReproductionEntry(Entry):
    """Whether doing an audit again gave the same figures."""

    report: str = Field(description="The report whose audit was done again.")
    figures: int
    differing: dict[str, Number] = Field(
        description="Figures that are not the same to the bit, with their relative difference; null: one is missing."
    )
    tolerance: float
    agree: bool = Field(description="Whether no figure differs by more than the tolerance.")

    def summary(self) -> str:
        """Whether the figures agree, in one sentence without a full stop."""
        if not self.differing:
            return f"all {self.figures} figures agree with {self.report} to the bit"
        worst = max(self.differing, key=lambda name: self.differing[name] or float("inf"))
        gap = self.differing[worst]
        told = f"{len(self.differing)} of {self.figures} figures differ from {self.report}"
        most = f"{worst} is only in one of the two" if gap is None else f"{worst} most, by {gap:.2g} relative"
        return f"{told}, {most}" + (f", within {self.tolerance:g}" if self.agree else "")


class _Head(Entry):
    """What an audit is of."""

    schema_version: str = SCHEMA_VERSION
    tool: str
    created: str
    argv: list[str]
    configuration: dict[str, JsonValue]
    configuration_sources: dict[str, str]
    configuration_sha256: str
    model: ModelEntry
    data: DataEntry | None = Field(description="null where no check needed any.")
    environment: Environment
    plausibility: PlausibilityEntry | None = Field(description="null where no check ran the model.")


# The fields of a report that hold what checks found, in their order, with the class of their entries.
KINDS: dict[str, Any] = {}
for _check in checks().values():
    for _field, _path in _check.entries.items():
        if _field in KINDS:
            raise CheckError(f"the check '{_check.name}' has a field of another in reports, '{_field}'; uninstall one")
        KINDS[_field] = _check.load(_path)
FIELDS: dict[type[Entry], str] = {kind: field for field, kind in KINDS.items()}

if TYPE_CHECKING:
    _Measured = _Head
else:
    _Measured = create_model(
        "Measured", __base__=_Head, **{field: (list[kind], Field([])) for field, kind in KINDS.items()}
    )

E = TypeVar("E", bound=Entry)


class Report(_Measured):
    """An audit."""

    metrics: dict[str, MetricEntry]
    checks: list[CheckEntry] = Field(description="Thresholds with their outcome; empty where no policy was asked.")
    baseline: ComparisonEntry | None = Field(description="This audit against an earlier one; null without any.")
    reproduced: ReproductionEntry | None = Field(None, description="Whether an earlier report was found again.")
    partial: list[str] = Field(description="Why the report covers less than it could; empty when it does not.")
    skipped: dict[str, str]
    warnings: list[str]
    status: str = Field(description="complete, interrupted or error")
    error: str | None
    verdict: str = Field(description="passed, failed, inconclusive, error, or ungated: no policy decided")
    decided: list[DecisionEntry] = Field([], description="What the verdict rests on, the gravest first.")
    exit_code: int
    timings: dict[str, float]
    files: dict[str, str] = Field(description="What lies beside report.json: purpose -> name.")
    files_sha256: dict[str, str] = Field({}, description="Hashes of those files, but for report.md.")

    @property
    def policy_sections(self) -> list[Section]:
        """What decided the verdict, in order; empty without a policy."""
        thresholds = [gates_section(self.checks)] if self.checks else []
        return thresholds + ([self.baseline.section()] if self.baseline is not None else [])

    @property
    def check_sections(self) -> list[Section]:
        """What every check shows, in order."""
        return [entry.section() for kind in KINDS.values() for entry in self.entries(kind)]

    def entries(self, kind: type[E]) -> list[E]:
        """The entries of one class that checks made."""
        found: list[E] = getattr(self, FIELDS[kind])
        return found

    @property
    def sections(self) -> list[Section]:
        """What the policy and every check show, in order."""
        return [*self.policy_sections, *self.check_sections]


for _field, _kind in KINDS.items():
    if Report.model_fields[_field].annotation != list[_kind]:  # type: ignore[valid-type]
        raise CheckError(f"a check has the field '{_field}' of every report; uninstall its package")


def json_schema() -> dict[str, JsonValue]:
    """The JSON Schema of report.json; `report/report.schema.json` is its copy for readers in other languages."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema(mode="serialization")}
