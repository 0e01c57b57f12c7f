"""The settings of an audit, section by section: names, types, defaults, and what each is for."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vaeaudit.model import variant
from vaeaudit.settings.fields import (
    ONCE,
    Check,
    Day,
    Draws,
    Key,
    Length,
    Mode,
    Name,
    NotNegative,
    Number,
    PerCent,
    Positive,
    Radius,
    Range,
    Reason,
    Several,
    Share,
    Truth,
    VariantName,
    Whole,
    listed_alone,
    some,
)


class BaseSettings(BaseModel):
    """A section: frozen, of known keys only, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(BaseSettings):
    """Which model, and how it is opened."""

    path: Name | None = Field(
        None,
        description="Checkpoint (.safetensors, .pt, .pth, .ckpt) or its folder; FILE#KEY for a set of weights in it.",
    )
    adapter: Name | None = Field(None, description="Installed adapter, package.module:open, or file.py:open.")
    options: dict[str, JsonValue] = Field({}, description="Options of the adapter, over what the file says of itself.")
    trust_code: Truth = Field(
        False, description="Whether programs of torch.export (.pt2) are loaded, which may run code that they bring."
    )


class DataSettings(BaseSettings):
    """Which data, and how they become the model's inputs."""

    source: Name | None = Field(None, description="A file or folder of data, FILE#NAME for one array of several.")
    range: Range | None = Field(
        None,
        description="[lo, hi] of the model's inputs, where either may be inf, or a list of such pairs, one for each "
        "channel or feature; the model's own.",
    )
    resize: Name | None = Field(
        None, description="Pillow filter that resizes images to the model's size; never unasked."
    )
    normalize: Name | None = Field(
        None,
        description="What training did to values in [0, 1], and to bytes: imagenet, or MEAN/STD with one number for "
        "all or one for each channel, as 0.5/0.5. It gives the range of the model's inputs.",
    )


class RunSettings(BaseSettings):
    """How the audit runs."""

    seed: Whole = Field(0, description="Of every random draw.")
    device: Name = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="Precision of model and optimiser. bfloat16 is of the model alone, for noise, reconstruction and "
        "latents; it is examined in float32 before. weights runs no model, and is of float64 whatever stands here.",
    )
    tf32: Truth = Field(False, description="Whether products on a GPU may be rounded to TF32, 10 bits of float32's 23.")
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)] | Literal["auto"] = Field(
        "auto", description="Most rows given to the model at once."
    )
    limit: Positive | None = Field(None, description="Use only the first N items; the report says it is partial.")
    sample: Positive | None = Field(
        None, description="Use only N items, drawn at random by the seed, of the first where limit names so many."
    )
    out: Name = Field("vaeaudit-report", description="Folder of the report.")
    checks: Annotated[tuple[Check, ...] | None, some("a list of at least one check")] = Field(
        None,
        description="What `vaeaudit audit` checks; where left out, the checks whose section stands in the file or "
        "that a threshold reads, and without any such, all.",
    )


class AttackSettings(BaseSettings):
    """The attack check."""

    modes: Annotated[tuple[Mode, ...], some("a list of at least one mode")] = Field(
        ("latent",), description="What is attacked."
    )
    pairs: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(10, description="Source and target pairs.")
    pairing: Literal["random", "label"] = Field("random", description="Pairs at random, or of different labels.")
    vary: Name | None = Field(None, description="Pairs that differ in this one factor of the data.")
    pair: tuple[Name, ...] = Field((), description='Pairs themselves, as item numbers "SOURCE:TARGET".')
    lambdas: Annotated[int, Field(strict=True, ge=1, le=10_000)] = Field(
        50, description="Values of lambda, geometric from 2^-20 to 2^20; fewer than 41 cost nearly as much."
    )
    similarity: Literal["kl", "reverse-kl", "symmetric-kl", "mean", "sample", "wasserstein"] = Field(
        "kl", description="What the latent attack minimises between the two posteriors."
    )
    on: Literal["both", "mean", "std"] = Field("both", description="What of the posterior the perturbation reaches.")
    layers: tuple[Positive, ...] = Field((), description="Layers of a chain that are compared, from 1; all if empty.")
    penalty: Literal["l2", "l2sq"] = Field("l2", description="||d||_2 or its square.")
    caps: Annotated[tuple[Length, ...], BeforeValidator(listed_alone, Length | tuple[Length, ...]), ONCE] = Field(
        (), description="Largest norms of a distortion under a cap; by norm if empty."
    )
    norm: Literal["l2", "linf"] = Field("l2", description="Norm of the cap.")
    ref: Literal["reconstruction", "input"] = Field("reconstruction", description="What damage is measured from.")
    restarts: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(
        7, description="Points between source and target from which is searched besides the source."
    )
    max_evaluations: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        600, description="Model evaluations for one problem; four times as many where it could still gain at that."
    )

    @field_validator("pair")
    @classmethod
    def _pairs_alone(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and (info.data.get("vary") or info.data.get("pairing") == "label"):
            raise ValueError("left out where vary or pairing chooses the pairs")
        return value

    @field_validator("vary")
    @classmethod
    def _one_choice(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("pairing") == "label":
            raise ValueError("left out where pairing is label")
        return value


class MarginSettings(BaseSettings):
    """The margin check."""

    r: Annotated[
        tuple[Radius, ...], BeforeValidator(listed_alone, Radius | tuple[Radius, ...]), some("at least one radius")
    ] = Field(("auto",), description='Radii in output units; "auto" is twice the median of the least that could hold.')
    items: Positive = Field(20, description="Items, drawn at random.")
    m: Share = Field(0.5, description="Risk level: more than this probability must stay within r.")
    sigma: Literal["frozen", "full"] = Field(
        "frozen", description="Whether the noise keeps its scale or moves with the input."
    )
    level: float = Field(0.95, ge=0.5, le=1 - 1e-9, description="Confidence of each bound.")
    family_wise: Truth = Field(False, description="Whether that is the confidence of all bounds together.")
    draws: Draws = Field(1000, description="Draws of the posterior for each item.")
    boxed: Truth = Field(True, description="Whether the empirical margin stays within the data's range.")
    parts: Annotated[tuple[Literal["certified", "empirical"], ...], ONCE] = Field(
        ("certified", "empirical"), description="Which bounds are computed; the estimates always are."
    )
    effort: Literal["fast", "thorough", "boxed"] = Field(
        "thorough",
        description="Of certificates: fast are linear bounds alone; thorough certifies more, in seconds an item; "
        "boxed certifies within the data's range besides, in about twice that.",
    )


class MigSettings(BaseSettings):
    """The mig check."""

    items: Several | None = Field(None, description="Items, drawn at random; all if left out.")


class LatentsSettings(BaseSettings):
    """The latents check."""

    items: Several | None = Field(None, description="Items, drawn at random; all if left out.")
    draws: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = Field(
        1, description="Draws of z for each item; 0 leaves the ELBO out."
    )
    estimator: Literal["exact", "stratified"] = Field(
        "exact", description="Of q(z): the mixture over all items, or minibatch stratified sampling."
    )
    traverse: Annotated[int, Field(strict=True, ge=0, le=20)] = Field(
        8, description="Units, those of largest KL, that are traversed in a figure."
    )


class NoiseSettings(BaseSettings):
    """The noise check."""

    sigmas: Annotated[
        tuple[NotNegative, ...],
        BeforeValidator(listed_alone, NotNegative | tuple[NotNegative, ...]),
        some("at least one standard deviation"),
    ] = Field(
        (0.1, 0.25, 0.5, 1.0), description="Standard deviations of the noise, on the scale of the model's inputs."
    )
    items: Positive = Field(1000, description="Most items, drawn at random.")
    draws: Draws = Field(10, description="Draws of noise and latents for each item.")
    clip: Truth = Field(False, description="Whether noisy inputs are clipped to the data's range.")


class ReconstructionSettings(BaseSettings):
    """The reconstruction check."""

    items: Positive | None = Field(None, description="Items, drawn at random; all if left out.")
    draws: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = Field(
        1, description="Draws of z for each item, beside its mean."
    )
    by: Annotated[tuple[Name, ...], ONCE] = Field(
        (), description='Groups of items: "label", or factors by name; every one that the data have if empty.'
    )
    shown: Annotated[int, Field(strict=True, ge=0, le=20)] = Field(8, description="Worst items that are drawn.")
    perceptual: Name | None = Field(
        None, description="File of a network of two images, written by torch.export.save, whose distance is LPIPS."
    )
    features: Name | None = Field(
        None, description="File of a network of one image, likewise, by whose features FID and KID are computed."
    )
    trust_networks: Truth = Field(False, description="Whether these files may be read, which may run code from them.")


class EquivalenceSettings(BaseSettings):
    """The equivalence check, of an audit only where it names a variant or another model."""

    variants: Annotated[tuple[VariantName, ...], ONCE] = Field(
        (), description=f"Other forms of the model, each {variant.EXPECTED}."
    )
    against: Name | None = Field(None, description="Checkpoint of another model that should give the same.")
    adapter: Name | None = Field(None, description="Its adapter; the model's, or what its file says, if left out.")
    options: dict[str, JsonValue] = Field({}, description="Options of its adapter.")
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = Field(
        None, description="Its precision; the model's if left out."
    )
    tolerance: NotNegative = Field(
        1 / 255,
        description="Largest difference of a value that still counts as the same, in units of the range: of the worst "
        "item; half of it of the median item.",
    )
    items: Positive = Field(500, description="Most items, drawn at random.")
    draws: Annotated[int, Field(strict=True, ge=0, le=1000)] = Field(
        2, description="Draws of the reference's z for each item, on which decoders are compared beside its mean."
    )
    shown: Annotated[int, Field(strict=True, ge=0, le=20)] = Field(4, description="Worst items that are drawn.")


class WeightsSettings(BaseSettings):
    """The weights check, which needs no data and runs no model."""

    against: Name | None = Field(None, description="Checkpoint of the same architecture from which change is counted.")
    parts: dict[Literal["encoder", "decoder", "neither"], tuple[Name, ...]] = Field(
        {}, description="How the names of each part's tensors begin; as the adapter says where left out."
    )
    vectors: Truth = Field(False, description="Whether biases and normalisation count as well.")
    spectral: Truth = Field(True, description="Whether each tensor's 2-norm is computed.")


class DoctorSettings(BaseSettings):
    """What is known of the model that `vaeaudit doctor`, and every audit before its checks, finds on trying it."""

    acknowledge: dict[Key, Reason] = Field(
        {}, description="Findings that are unsure and meant, by name, each with the reason; one that fails stays so."
    )


class WaiveSettings(BaseSettings):
    """A known fault, which until that day does not count."""

    until: Day = Field(description="Last day on which it is waived, as 2026-12-31.")
    reason: Reason = Field(description="Why, or where it is tracked.")


class GateSettings(BaseSettings):
    """A threshold for the metric that the section names, as in [checks."margin.r4.median"]."""

    min: Number | None = Field(None, description="It must be at least this.")
    max: Number | None = Field(None, description="It must be at most this.")
    bound: Literal["interval", "ci_lower", "ci_upper", "value"] = Field(
        "interval",
        description="What is held against the threshold: the whole interval, which passes on the right side of it, "
        "fails on the wrong side and is inconclusive across it; one end of the interval; or the value, whatever its "
        "confidence.",
    )
    severity: Literal["error", "warn"] = Field("error", description="Whether it decides the verdict, or only warns.")
    waive: WaiveSettings | None = Field(None, description="Do not count it until a day, for a reason.")

    @model_validator(mode="after")
    def _something_to_meet(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a threshold with min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("a threshold whose min is not above its max")
        return self


class BaselineSettings(BaseSettings):
    """The earlier audit with which this one is compared."""

    path: Name | None = Field(
        None, description="Its report.json, or the folder of it; one that is not there only warns."
    )
    metrics: tuple[Name, ...] = Field(
        (), description="Metrics that may regress; all medians of which one way is more robust where left out."
    )
    min_effect: dict[Key, NotNegative | PerCent] = Field(
        {},
        description='Differences, by metric, that a regression must exceed, or "2%" of the earlier figure; these '
        "metrics may regress as well.",
    )
    level: Annotated[float, Field(strict=True, ge=0.5, le=0.9999)] = Field(
        0.95, description="Confidence of intervals; one minus it is the chance of any false alarm."
    )


class Settings(BaseSettings):
    """All sections."""

    # Those of third parties' checks are added by vaeaudit.settings.config.

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    run: RunSettings = RunSettings()
    doctor: DoctorSettings = DoctorSettings()
    attack: AttackSettings = AttackSettings()
    margin: MarginSettings = MarginSettings()
    noise: NoiseSettings = NoiseSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    equivalence: EquivalenceSettings = EquivalenceSettings()
    weights: WeightsSettings = WeightsSettings()
    mig: MigSettings = MigSettings()
    latents: LatentsSettings = LatentsSettings()
    checks: dict[Key, GateSettings] = Field({}, description="Thresholds by the metric that they read.")
    baseline: BaselineSettings = BaselineSettings()
