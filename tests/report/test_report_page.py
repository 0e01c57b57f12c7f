"""The page in a real browser: it asks for nothing, complains of nothing, and is readable on a phone and in the dark."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaeaudit.report.forms import html
from vaeaudit.report.reading import read_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@dataclass
class Opened:
    """A page in the browser: ``value`` evaluates JavaScript in it."""

    page: Any
    asked: list[str] = field(default_factory=list)  # the addresses of all requests
    said: list[str] = field(default_factory=list)  # what the browser complained of, and what the page wrote or raised

    def __post_init__(self) -> None:
        self.value: Callable[[str], Any] = self.page.evaluate
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Callable[..., Opened]]:
    """Opens a file in Chromium, in a window so many pixels wide."""
    with playwright.sync_playwright() as started, started.chromium.launch(executable_path=CHROMIUM) as chromium:

        def opened(file: Path, width: int, scheme: str = "light") -> Opened:
            window = {"width": width, "height": 800}
            page = Opened(chromium.new_page(viewport=window, color_scheme=scheme, is_mobile=width < 500))
            page.page.goto(file.as_uri())
            return page

        yield opened


def png(width: int, height: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (width, height), "white").save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything on it, and with text that would load and run if it were not escaped."""
    report, _ = read_report(Path(__file__).parent / "reports")
    evil = '<script>console.error("ran")</script><img src="https://example.org/x.png" onerror="alert(1)">'
    report = report.model_copy(update={"warnings": [*report.warnings, evil, "x" * 3000], "error": evil})
    figures = {"latent panel": png(1, 1), "margins at r = 4": png(1200, 400)}
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html.render(report, figures), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_asks_for_nothing_says_nothing_and_never_scrolls_sideways(
    browser: Callable[..., Opened], page: Path, width: int
) -> None:
    opened = browser(page, width)
    # Everything open is the widest that it can be.
    opened.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.value("document.documentElement.scrollWidth") <= width
    assert opened.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert opened.value("document.images.length") == 2
    assert opened.value("document.querySelectorAll('script').length") == 0
    assert [url for url in opened.asked if not url.startswith("data:")] == [page.as_uri()]
    assert opened.said == []


def test_what_slipped_through_would_be_stopped_by_the_policy(
    browser: Callable[..., Opened], page: Path, tmp_path: Path
) -> None:
    file = tmp_path / "broken.html"
    slipped = '<script>document.title = "ran"</script><img src="https://example.org/x.png"><p style="color: red">'
    file.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{slipped}"), encoding="utf-8")
    opened = browser(file, 800)
    assert opened.value("document.title") == "Audit of my vae.pt: failed"
    assert opened.value("getComputedStyle(document.querySelector('main > p')).color") != "rgb(255, 0, 0)"
    assert len([text for text in opened.said if "Content Security Policy" in text]) == 3


def test_what_is_wide_scrolls_in_its_own_box_on_a_phone(browser: Callable[..., Opened], page: Path) -> None:
    opened = browser(page, 360)
    boxes = "[...document.querySelectorAll('.scroll, .card')]"
    assert opened.value(f"{boxes}.some(one => one.scrollWidth > one.clientWidth)")
    assert opened.value(f"{boxes}.every(one => getComputedStyle(one).overflowX === 'auto')")
    assert opened.value("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12


def test_the_style_sheet_is_let_in_and_follows_the_scheme(browser: Callable[..., Opened], page: Path) -> None:
    pictures, papers = {}, {}
    for scheme in ("light", "dark"):
        opened = browser(page, 800, scheme)
        pictures[scheme] = opened.page.screenshot(full_page=True)
        papers[scheme] = opened.value("getComputedStyle(document.body).backgroundColor")
        assert opened.value("getComputedStyle(document.querySelector('figure .card')).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
    assert pictures["light"] != pictures["dark"]
    assert papers == {"light": "rgb(253, 252, 250)", "dark": "rgb(22, 24, 28)"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Callable[..., Opened], page: Path, scheme: str) -> None:
    opened = browser(page, 800, scheme)
    ratios = opened.value(
        """(() => {
          const light = colour => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => {
              const share = part / 255
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
            })
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
          }
          const behind = node => {
            const colour = getComputedStyle(node).backgroundColor
            return colour === 'rgba(0, 0, 0, 0)' ? behind(node.parentElement) : colour
          }
          return [...document.querySelectorAll('h1, h2, p, li, a, th, td, dt, dd, summary, figcaption, code')].map(
            node => {
              const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a)
              return (pair[0] + 0.05) / (pair[1] + 0.05)
            })
        })()"""
    )
    assert min(ratios) >= 4.5  # WCAG 2, level AA
