"""A report as text, in every form that a command offers."""

import os
from pathlib import Path

from vaeaudit.cli.common import append
from vaeaudit.errors import ConfigError, clipped
from vaeaudit.report.comparison import ComparisonEntry
from vaeaudit.report.model import Report


def text_of(
    report: Report,
    folder: Path,
    form: str,
    output: str | None,
    quiet: bool = False,
    verbose: bool = False,
    link: str | None = None,
) -> str:
    """The report, which lies in ``folder``, in a form, as it goes to the file ``output`` or to stdout (None).

    ``link`` is the address under which the folder can be seen, from which a comment shows pictures. Of a table on
    stdout ``quiet`` leaves its last line; ``verbose`` shows every table and metric before the summary. On GitHub the
    summary of "github" goes to the job's summary page, and only the annotations are left to show. Each form loads what
    it needs and no other.
    """
    match form:
        case "json":
            from vaeaudit.report.writer import to_json

            return to_json(report)
        case "markdown":
            from vaeaudit.report.forms import markdown

            return markdown.render(report)
        case "junit":
            from vaeaudit.report.forms import junit

            return junit.render(report)
        case "card":
            from vaeaudit.report.forms import card

            return card.render(report)
        case "cyclonedx":
            from vaeaudit.report.forms import cyclonedx

            return cyclonedx.render(report)
        case "comment":
            from vaeaudit.report.forms import github

            return github.comment(report, link)
        case "html":
            from vaeaudit.report.forms import html
            from vaeaudit.report.reading import figures_of

            return html.render(report, figures_of(report, folder))
        case "github":
            return _github(report)
        case "table":
            from vaeaudit.cli.render import report_line, report_text, stdout_is_terminal

            if quiet and output is None:
                return report_line(report, folder)
            return report_text(report, folder, output is None and stdout_is_terminal(), verbose)
        case _:
            raise _unknown(form)


def _unknown(form: str) -> ConfigError:
    return ConfigError(f"a result has no form '{clipped(form)}'; see --help for those that it has")


def _github(report: Report) -> str:
    from vaeaudit.report.forms import github

    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        append(Path(page), github.summary(report))
        return github.annotations(report)
    return github.annotations(report) + github.summary(report)


def comparison_text(compared: ComparisonEntry, form: str, output: str | None, quiet: bool) -> str:
    """A comparison of two reports in a form, as :func:`text_of` gives a report."""
    match form:
        case "json":
            from vaeaudit.report.writer import dumps

            return dumps(compared.model_dump(mode="json"))
        case "markdown":
            from vaeaudit.report.forms import markdown

            return markdown.render_comparison(compared)
        case "table":
            from vaeaudit.cli.render import comparison_line, comparison_lines, stdout_is_terminal

            if quiet and output is None:
                return comparison_line(compared)
            return comparison_lines(compared, output is None and stdout_is_terminal())
        case _:
            raise _unknown(form)
