"""Reading reports (first version, to be completed)."""

import json
from pathlib import Path

from vaeaudit.errors import InputError
from vaeaudit.report.model import Report


class ReportError(InputError):
    """A report that cannot be read."""


class SchemaError(ReportError):
    """A report of another major schema."""


def read_report(path: str | Path) -> tuple[Report, Path]:
    """The report at ``path`` and its folder."""
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    return Report.model_validate(json.loads(file.read_text())), file.parent


def figures_of(report: Report, folder: Path) -> dict[str, bytes]:
    """PNG files beside a report."""
    return {what: (folder / name).read_bytes() for what, name in report.files.items() if name.endswith(".png")}
