"""The time left is foretold from the share of the work that is done, and shown where somebody looks."""

import sys

import pytest

from vaeaudit.cli import common
from vaeaudit.cli.common import Reporter
from vaeaudit.cli.progress import Clock, spoken
from vaeaudit.progress import Progress, within


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rest_is_foretold_to_go_as_fast_as_what_is_done_and_counts_down_meanwhile() -> None:
    time = Time()
    clock = Clock(time)
    assert clock.text() == ""
    for seconds, done, whole in ((2, 0.1, 0.05), (10, 0.5, 0.25), (4, 0.4, 0.2)):  # the last is told too late
        time.now = 100.0 + seconds
        clock.told(Progress("searching", 1, 2, done, "attack.latent", whole))
    time.now = 115.0
    assert clock.whole.left(time()) == pytest.approx(30 - 5)
    clock.told(Progress("drawing", 4, 4, 0.0, "margin", 0.5))
    assert clock.part.left(time()) is None
    time.now = 117.0
    clock.told(Progress("drawing", 3, 4, None, "margin", 0.6))
    assert clock.part.left(time()) == pytest.approx(6)
    assert clock.text() == "about 6 s left, about 11 s left in all"


def test_the_parts_of_some_work_make_up_its_share() -> None:
    seen: list[float] = []

    def go_on(progress: Progress) -> bool:
        seen.append(progress.done)
        return len(seen) < 3

    inner = within(within(go_on, 0.2, 0.8), 0.5, 1.0)
    assert [inner(Progress("x", left, 4)) for left in (4, 2, 0)] == [True, True, False]
    assert seen == pytest.approx([0.5, 0.65, 0.8])


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "1 s"), (7.4, "7 s"), (44, "40 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_a_forecast_is_told_as_precisely_as_it_is_known(seconds: float, told: str) -> None:
    assert spoken(seconds) == told


def test_where_there_is_no_terminal_a_plain_line_tells_the_time_left_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "_LINE_EVERY", 0.0)
    for quiet in (False, True):
        reporter, time = Reporter(quiet), Time()
        reporter.clock = Clock(time)
        time.now += 30
        assert reporter.go_on(Progress("noise", 25, 100))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "noise: 25 of 100 left; about 10 s left\n")


@pytest.mark.parametrize(("kind", "bars"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_draw_bars_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, bars: bool
) -> None:
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(common, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    reporter = Reporter(quiet=False)
    with reporter.working("opening"):
        reporter.go_on(Progress("noise", 25, 100))
    err = capsys.readouterr().err
    assert ("noise: 25 of 100 left\n" in err, "\x1b" in err) == (not bars, bars)
