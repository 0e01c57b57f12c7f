"""Options that several commands share; those with a value may come as VAEAUDIT_<NAME> from the environment."""

from typing import Annotated, Literal

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint (.safetensors, .pt, .pth, .ckpt) or its folder, FILE#KEY for one set of weights of several; "
        "from the configuration if left out.",
        envvar="VAEAUDIT_MODEL",
        show_default=False,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How to open the model: an installed adapter, package.module:open or file.py:open.",
        envvar="VAEAUDIT_ADAPTER",
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the adapter, as in activation=tanh; repeatable."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="npz, npy, safetensors, MNIST idx(.gz), or a folder of images.", envvar="VAEAUDIT_DATA"
    ),
]
Range = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--range",
        metavar="LO HI",
        help="Range of the model's inputs, if not the model's own; inf for no bound.",
        envvar="VAEAUDIT_RANGE",
        show_default=False,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="FILTER",
        help="Resize images to the model's size: nearest, box, bilinear, hamming, bicubic or lanczos.",
        envvar="VAEAUDIT_RESIZE",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps. [default: auto]", envvar="VAEAUDIT_DEVICE"),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="float32 or float64. [default: float32]", envvar="VAEAUDIT_DTYPE"),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Of every random draw. [default: 0]", envvar="VAEAUDIT_SEED")
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="auto|N", help="Most rows given to the model at once. [default: auto]", envvar="VAEAUDIT_BATCH_SIZE"
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use only the first N items; marks the report partial.", envvar="VAEAUDIT_LIMIT"),
]
Sample = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Use only N items, drawn at random; marks the report partial.", envvar="VAEAUDIT_SAMPLE"
    ),
]
Out = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the report. [default: vaeaudit-report]", envvar="VAEAUDIT_OUT"),
]
Form = Literal["table", "json", "markdown", "junit", "github"]
Format = Annotated[Form, typer.Option("--format", help="Form of the result.")]
Check = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Check to carry out: attack, margin, noise, latents, mig or weights; repeatable. [default: those that "
        "the configuration names, else all]",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Report of an earlier audit, or its folder, with which this one is compared.",
        envvar="VAEAUDIT_BASELINE",
    ),
]
CompareFormat = Annotated[Literal["table", "json", "markdown"], typer.Option("--format", help="Form of the result.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Take what an audit that was ended, of the same things, had finished.")
]
ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="End with 0 where a check failed or regressed; nothing else is changed.")
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result there instead of to stdout.")
]
Config = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Configuration file, instead of the nearest one.", envvar="VAEAUDIT_CONFIG"),
]
Isolated = Annotated[bool, typer.Option("--isolated", help="Read no configuration file.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no remarks; of a table on stdout its last line.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every table and metric; of an error, the traceback.")
]
