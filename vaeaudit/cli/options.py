"""Options that several commands share, in groups: :func:`vaeaudit.cli.command.takes` merges them into a command's."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import typer

from vaeaudit.cli.command import Key, Setting
from vaeaudit.errors import ConfigError, clipped

Form = Literal["table", "json", "markdown", "junit", "github"]


def table_of(texts: Iterable[str]) -> dict[str, object]:
    """NAME=VALUE each, the value as JSON where it is JSON."""
    from vaeaudit.model.files import strict_json

    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(
                f"an option of an adapter is NAME=VALUE, as in activation=tanh, but '{clipped(text)}' came"
            )
        try:
            found[name] = strict_json(value)
        except ValueError:
            found[name] = value
    return found


def _rows(text: str) -> int | str:
    """A whole number, or a text such as "auto"."""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else text


def form_of(kind: object) -> typer.models.OptionInfo:
    """The option that chooses one of the forms that ``kind``, a Literal, lists."""
    option: typer.models.OptionInfo = typer.Option(
        "--format", metavar="NAME", help=f"Form of the result: {one_of(get_args(kind))}."
    )
    return option


def one_of(names: Iterable[str]) -> str:
    """One, another or a third."""
    *some, last = names
    return f"{', '.join(some)} or {last}"


ModelAdapter = Annotated[
    str | None,
    Setting(
        "model.adapter", "NAME", "How to open the model: an installed adapter, package.module:open or file.py:open."
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    Setting(
        "model.options",
        "NAME=VALUE",
        "Option of the adapter, as in activation=tanh; repeatable.",
        "--option",
        read=table_of,
    ),
]
TRUSTS = "Load programs of torch.export (.pt2), which may run code that they bring. [default: no]"
TrustCode = Annotated[bool | None, Setting("model.trust_code", None, TRUSTS, "--trust-code")]


class Model:
    """Model and data."""

    model: Annotated[
        str | None,
        Key("model.path"),
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint (.safetensors, .pt, .pth, .ckpt) or its folder, FILE#KEY for one set of weights of "
            "several; from the configuration if left out.",
            show_default=False,
        ),
    ] = None
    adapter: ModelAdapter = None
    trust_code: TrustCode = None


class OnData:
    """Model and data."""

    option: AdapterOption = None
    data: Annotated[
        str | None,
        Setting(
            "data.source",
            "PATH",
            "npz, npy, safetensors, pt, csv, parquet, h5, h5ad, idx(.gz), or a folder: images, WAV clips, a data set.",
        ),
    ] = None
    data_range: Annotated[
        tuple[float, float] | None,
        Setting(
            "data.range", "LO HI", "Range of the model's inputs, if not the model's own; inf for no bound.", "--range"
        ),
    ] = None
    resize: Annotated[
        str | None,
        Setting(
            "data.resize",
            "FILTER",
            "Resize images to the model's size: nearest, box, bilinear, hamming, bicubic or lanczos.",
        ),
    ] = None
    normalize: Annotated[
        str | None,
        Setting(
            "data.normalize",
            "MEAN/STD",
            "Normalise values in [0, 1], and bytes: imagenet, or numbers such as 0.5/0.5, one for each channel between "
            "commas.",
        ),
    ] = None
    limit: Annotated[int | None, Setting("run.limit", "N", "Use only the first N items; marks the report partial.")] = (
        None
    )
    sample: Annotated[
        int | None, Setting("run.sample", "N", "Use only N items, drawn at random; marks the report partial.")
    ] = None
    device: Annotated[str | None, Setting("run.device", "NAME", "auto, cpu, cuda or cuda:N. [default: auto]")] = None
    dtype: Annotated[
        str | None, Setting("run.dtype", "NAME", "float32, float64, or of some checks bfloat16. [default: float32]")
    ] = None
    seed: Annotated[int | None, Setting("run.seed", "N", "Of every random draw. [default: 0]")] = None
    batch_size: Annotated[
        str | None,
        Setting("run.batch_size", "auto|N", "Most rows given to the model at once. [default: auto]", read=_rows),
    ] = None


class Out:
    """Report and result."""

    out: Annotated[str | None, Setting("run.out", "DIR", "Folder of the report. [default: vaeaudit-report]")] = None


class Resume:
    """Report and result."""

    resume: Annotated[
        bool, typer.Option("--resume", help="Take what an audit that was ended, of the same things, had finished.")
    ] = False


class Shared:
    """Report and result."""

    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Do share I of N; whoever finishes last writes the report. [default: as torchrun or Slurm say]",
        ),
    ] = None


class Formed:
    """Report and result."""

    form: Annotated[Form, form_of(Form)] = "table"


class TableOrJson:
    """Report and result."""

    form: Annotated[Literal["table", "json"], form_of(Literal["table", "json"])] = "table"


class Output:
    """Report and result."""

    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result there instead of to stdout.")
    ] = None


class ExitZero:
    """Report and result."""

    exit_zero: Annotated[
        bool,
        typer.Option("--exit-zero", help="End with 0 where a check failed or regressed; nothing else is changed."),
    ] = False


class Configured:
    """Configuration."""

    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Configuration file, instead of the nearest one.", envvar="VAEAUDIT_CONFIG"),
    ] = None
    isolated: Annotated[bool, typer.Option("--isolated", help="Read no configuration file.")] = False


class Quiet:
    """Report and result."""

    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no remarks; of a table on stdout its last line.")
    ] = False


class Verbose:
    """Report and result."""

    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every table and metric; of an error, the traceback.")
    ] = False


# What the command of a check shares with the others.
CHECK = (Model, OnData, Out, Resume, Formed, Output, Quiet, Verbose, Configured)
