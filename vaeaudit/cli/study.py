"""`vaeaudit study`: figures of many models against a setting of their training."""

from pathlib import Path
from typing import Annotated

import typer

from vaeaudit.cli.command import Asked, takes
from vaeaudit.cli.common import check_output, deliver
from vaeaudit.cli.options import Verbose


@takes(Verbose)
def command(
    asked: Asked,
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS...",
            help="Tables of results, in CSV: a row a figure; or a row a model, its column report naming the folder of "
            "its report.",
        ),
    ],
    against: Annotated[
        str, typer.Option(metavar="SETTING", help="Column of the results that figures are shown against.")
    ] = "beta",
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Metric to show; repeatable. [default: all]")
    ] = None,
    level: Annotated[float, typer.Option(metavar="P", min=0.5, max=0.9999, help="Confidence of intervals.")] = 0.95,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the page and its figures.")] = "vaeaudit-study",
) -> int:
    """Show figures of many models against a setting.

    Intervals are over trainings and items together. The page is study.md in the folder, and results.csv beside it holds
    every figure that it is made of.
    """
    check_output(out, None)
    from vaeaudit.report.forms.study import files, page, picture
    from vaeaudit.report.results import read_results, to_csv
    from vaeaudit.report.study import curves, models
    from vaeaudit.report.writer import write_file

    figures = read_results(results)
    found = curves(figures, against, metric or (), level)
    pictures = files(curve.metric for curve in found)
    folder = Path(out)
    for name, file in pictures.items():
        write_file(folder / file, picture([curve for curve in found if curve.metric == name], against))
    write_file(folder / "results.csv", to_csv(figures).encode())
    write_file(folder / "study.md", page(found, against, figures[0].version, pictures).encode())
    deliver(f"{folder / 'study.md'}: {len(pictures)} metrics of {models(figures)} models against {against}\n", None)
    return 0
