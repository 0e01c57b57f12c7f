"""The page in a real browser: it asks for nothing, complains of nothing, and is readable on a phone and in the dark."""

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaeaudit.report.forms import html
from vaeaudit.report.reading import read_report

CHROMIUM = shutil.which("chromium")
PATIENCE = 30.0  # seconds for one answer
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--remote-debugging-pipe",
]


class Browser:
    """Chromium at the other end of a pipe, by the DevTools protocol; ``events`` are what it told meanwhile."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "-", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest, self._sent, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **given: object) -> Any:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], PATIENCE)[0], "the browser does not answer"
            came = os.read(self._read, 1 << 20)
            assert came, "the browser ended"
            self._rest += came
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int, scheme: str = "light") -> None:
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def said(self) -> list[str]:
        """What it complained of since the page was opened, and what the page wrote to its console."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        ]

    def value(self, expression: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self) -> bytes:
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        os.close(self._write)  # at which it ends
        os.close(self._read)
        try:
            self._process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()


def png(width: int, height: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (width, height), "white").save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


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
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width)
    # Everything open is the widest that it can be.
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert browser.value("document.images.length") == 2
    assert browser.value("document.querySelectorAll('script').length") == 0
    asked = [event["params"]["request"]["url"] for event in browser.events if "request" in event.get("params", {})]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.said() == []


def test_what_slipped_through_would_be_stopped_by_the_policy(browser: Browser, page: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.html"
    slipped = '<script>document.title = "ran"</script><img src="https://example.org/x.png"><p style="color: red">'
    file.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{slipped}"), encoding="utf-8")
    browser.open(file, 800)
    assert browser.value("document.title") == "Audit of my vae.pt: failed"
    assert browser.value("getComputedStyle(document.querySelector('main > p')).color") != "rgb(255, 0, 0)"
    assert len([text for text in browser.said() if "Content Security Policy" in text]) == 3


def test_what_is_wide_scrolls_in_its_own_box_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, 360)
    boxes = "[...document.querySelectorAll('.scroll, .card')]"
    assert browser.value(f"{boxes}.some(one => one.scrollWidth > one.clientWidth)")
    assert browser.value(f"{boxes}.every(one => getComputedStyle(one).overflowX === 'auto')")
    assert browser.value("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12


def test_the_style_sheet_is_let_in_and_follows_the_scheme(browser: Browser, page: Path) -> None:
    pictures, papers = {}, {}
    for scheme in ("light", "dark"):
        browser.open(page, 800, scheme)
        pictures[scheme] = browser.picture()
        papers[scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
        assert browser.value("getComputedStyle(document.querySelector('figure .card')).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
    assert pictures["light"] != pictures["dark"]
    assert papers == {"light": "rgb(253, 252, 250)", "dark": "rgb(22, 24, 28)"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, 800, scheme)
    ratios = browser.value(
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
