"""The report as data: everything that a reader, a renderer or a later comparison needs, and nothing else.

``schema_version`` counts as major.minor: a minor step adds, a major step changes or removes.
"""

from pydantic import BaseModel, ConfigDict, Field, JsonValue

SCHEMA_VERSION = "1.0"

Number = float | None  # None stands for "not a finite number"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileHash(_Entry):
    """A file that went into the audit."""

    path: str
    sha256: str


class AdapterEntry(_Entry):
    """The code that opened the model."""

    name: str
    source: str
    sha256: str | None


class ModelEntry(_Entry):
    """What was audited."""

    file: FileHash
    adapter: AdapterEntry
    options: dict[str, JsonValue]
    input_shape: list[int]
    range: tuple[float, float] | None
    likelihood: str = Field(description="How log p(x|z) is computed; never compared across routes.")
    parameters: int | None


class DataEntry(_Entry):
    """What it was audited on."""

    source: str
    sha256: str
    n: int
    range: tuple[float, float] | None
    stored: str
    skipped: list[str]


class Environment(_Entry):
    """Where it ran."""

    python: str
    torch: str
    cuda: str | None
    platform: str
    device: str
    threads: int
    dtype: str
    seed: int
    deterministic: bool = Field(description="Same machine, same threads: the same bits.")


class MetricEntry(_Entry):
    """One figure with its confidence."""

    value: Number
    ci: tuple[float, float] | None
    level: float
    n: int
    nonfinite: int
    unit: str
    direction: str = Field(description="Which way is more robust: higher, lower or none.")
    estimator: str


class FindingEntry(_Entry):
    """One finding of the plausibility check."""

    name: str
    verdict: str
    message: str


class PlausibilityEntry(_Entry):
    """Whether this is the model it claims to be."""

    passed: bool
    items: int
    findings: list[FindingEntry]
    losses: dict[str, MetricEntry]


class PairEntry(_Entry):
    """One attacked pair at its chosen lambda."""

    source: int
    target: int
    lam: float
    norm: float
    data_term: float
    penalty: float
    objective: float
    target_nll: Number
    target_nll_unattacked: Number
    target_error: Number
    target_error_unattacked: Number
    target_error_floor: Number
    own_error: Number
    fresh_data_term: Number = Field(description="On noise that the search never saw; null where none is taken.")
    status: str
    signs: list[str] = Field(description="Failure signs in words; with one, the pair's figures support no verdict.")


class ClassTableEntry(_Entry):
    """Attacks by class of source (row) and target (column)."""

    classifier: str
    classes: list[int]
    attacked: list[list[int]]
    valid: list[list[int]] = Field(description="Their clean reconstruction has the source's class.")
    left: list[list[int]] = Field(description="Valid, and the adversarial reconstruction has another class.")
    reached: list[list[int]] = Field(description="Valid, and the adversarial reconstruction has the target's class.")


class AttackEntry(_Entry):
    """One attack mode over all pairs and lambda."""

    mode: str
    similarity: str | None = Field(description="What the latent attack compares posteriors by.")
    on: str = Field(description="What of the posterior the perturbation reaches: mean, std or both.")
    layers: list[int] | None = Field(description="Layers of a chain that are compared; null for all.")
    unit: str
    penalty: str
    box: tuple[float, float] | None
    lambdas: list[float]
    restarts: int
    chosen: str = Field(description="How the pairs were chosen.")
    pairs: list[PairEntry]
    signs: dict[str, int] = Field(description="Failure signs that were seen: sign -> pairs.")
    classes: ClassTableEntry | None
    statuses: dict[str, int] = Field(description="How the problems ended: message -> count.")
    evaluations: int
    zero_optimal: int = Field(description="Problems whose best distortion is d = 0.")


class CapEntry(_Entry):
    """One item under one cap."""

    cap: float
    norm: float
    damage: Number
    nll: Number = Field(description="-log p(x|z*) in nats.")
    by: str = Field(description="The attack that found it.")
    status: str


class CappedItemEntry(_Entry):
    """One attacked item."""

    item: int
    target: int | None
    damage_unattacked: Number
    nll_unattacked: Number
    caps: list[CapEntry]
    signs: list[str] = Field(description="Failure signs in words; with one, the item's figures support no verdict.")


class CappedEntry(_Entry):
    """One attack mode under caps."""

    mode: str
    members: list[str] = Field(description="The attacks of which the worst was taken.")
    similarity: str | None
    on: str
    ref: str
    norm: str
    box: tuple[float, float] | None
    items: list[CappedItemEntry]
    signs: dict[str, int] = Field(description="Failure signs that were seen: sign -> items.")
    evaluations: int


class MarginItemEntry(_Entry):
    """The margins of one item at one radius, in input units."""

    item: int
    min_r: float = Field(description="Least r for which the item is r-robust unperturbed, in output units.")
    min_r_upper: Number = Field(description="Its upper confidence value; null where there are too few draws.")
    p0: float = Field(description="Share of draws within r where nothing is perturbed.")
    p_low: float = Field(description="Its lower confidence bound, on which certificate and estimates rest.")
    certified: Number = Field(description="Lower bound of the margin; null where there is none.")
    pathwise: Number = Field(
        None, description="Another lower bound, of a confidence of its own; null where there is none."
    )
    by: str = Field(description="The certificate that gave the certified margin.")
    frobenius: Number
    spectral: Number
    whitened: Number = Field(description="First-order estimate: bounded by neither of the two bounds.")
    empirical: Number = Field(description="Upper bound of the margin; null where nothing broke the item.")
    p_at_empirical: Number
    censored: bool = Field(description="Nothing broke the item up to the largest norm tried.")
    largest: Number


class MarginEntry(_Entry):
    """The margins of all items at one radius."""

    r: float
    m: float
    sigma: str
    box: tuple[float, float] | None = Field(description="Of the empirical margin; a certificate holds with any.")
    level: float
    alpha: float = Field(description="Error probability of each bound of each item.")
    family_wise: bool
    draws: int
    chosen: str = Field(description="How the items and the radius were chosen.")
    estimator: str = Field(description="How the Jacobian's norms were found.")
    items: list[MarginItemEntry]
    missing: list[str] = Field(description="Certificates that there are none of, and why.")
    deterministic: bool = Field(
        False, description="The encoder has no spread: margins of g(mu(x)) alone, whose bounds are sure (alpha is 0)."
    )


class Report(_Entry):
    """An audit."""

    schema_version: str = SCHEMA_VERSION
    tool: str
    created: str
    argv: list[str]
    configuration: dict[str, JsonValue]
    configuration_sources: dict[str, str]
    configuration_sha256: str
    model: ModelEntry
    data: DataEntry
    environment: Environment
    plausibility: PlausibilityEntry
    attacks: list[AttackEntry] = []
    capped: list[CappedEntry] = []
    margins: list[MarginEntry] = []
    metrics: dict[str, MetricEntry]
    checks: list[JsonValue] = Field(description="Thresholds with their outcome; none can be set yet.")
    baseline: None = Field(description="The report compared with; none can be set yet.")
    partial: list[str] = Field(description="Why the report covers less than it could; empty when it does not.")
    skipped: dict[str, str]
    warnings: list[str]
    status: str = Field(description="complete, interrupted or error")
    error: str | None
    verdict: str = Field(description="ungated, inconclusive or error; passed and failed need a policy")
    exit_code: int
    timings: dict[str, float]
    files: dict[str, str] = Field(description="What lies beside report.json: purpose -> name.")


def json_schema() -> dict[str, JsonValue]:
    """The JSON Schema of report.json; `report/report.schema.json` is its copy for readers in other languages."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema(mode="serialization")}
