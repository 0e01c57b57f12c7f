"""`vaeaudit study` on tables of results: what is told apart, paired, refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Any]
HEADER = "system,beta,seed,metric,item,value,low,high,n,q,doubt,version\n"


def rows(
    system: str, beta: str, seed: int, values: list[float], metric: str = "kl", version: str = "1", doubt: str = ""
) -> str:
    """A median of three, and its values."""
    start = f"{system},{beta},{seed},{metric}"
    whole = f"{start},,{sorted(values)[1]},,,3,0.5,{doubt},{version}\n"
    return whole + "".join(f"{start},{i},{value},,,,0.5,,{version}\n" for i, value in enumerate(values))


def table(name: str, *parts: str) -> str:
    Path(name).write_text(HEADER + "".join(parts), encoding="utf-8")
    return name


def cells(page: Path, metric: str) -> list[list[str]]:
    part = page.read_text(encoding="utf-8").split(f"## `{metric}`")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| ")][1:]


def test_systems_are_told_apart_by_their_settings_and_betas_stand_in_their_order(command: Command) -> None:
    one = table("a.csv", rows("A", "10", 0, [4, 5, 9]), rows("A", "2", 0, [1, 2, 3]), rows("A", "2", 1, [2, 3, 4]))
    two = table("b.csv", rows("B", "2", 0, [7, 7, 7], "tc", doubt="still falling"), rows("B", "2", 0, [1, 1, 1]))
    done = command("study", one, two, "--out", "page")
    assert (done.code, done.out) == (0, "page/study.md: 2 metrics of 4 models against beta\n")
    kl = cells(Path("page/study.md"), "kl")
    assert [row[:2] for row in kl] == [["A", "2"], ["A", "10"], ["B", "2"]]
    assert [row[4] for row in kl] == ["2 x 3", "1 x 3", "1 x 3"]
    assert kl[0][2].startswith("2.5 [")
    assert kl[1][3] == "2.5 (1 seed: no interval)"
    assert kl[2][2:4] == ["1 [1, 1]", ""]
    assert [len(row) for row in kl] == [5, 5, 5]
    assert cells(Path("page/study.md"), "tc")[0] == ["B", "2", "7 [7, 7]", "", "1 x 3", "1 of 1"]
    assert Path("page/kl.png").read_bytes().startswith(b"\x89PNG")
    again = command("study", "page/results.csv", "--out", "again", "--metric", "kl")
    assert again.out == "again/study.md: 1 metrics of 4 models against beta\n"
    assert cells(Path("again/study.md"), "kl") == kl


def test_settings_in_which_no_figures_of_a_metric_differ_tell_none_of_its_systems_apart(command: Command) -> None:
    Path("a.csv").write_text(
        "beta,audit,depth,metric,value,version\n1,one,1,kl,3,v\n2,one,3,kl,4,v\n1,two,1,mig,5,v\n", encoding="utf-8"
    )
    command("study", "a.csv", "--out", "page")
    kl, mig = (cells(Path("page/study.md"), name) for name in ("kl", "mig"))
    assert [row[0] for row in kl] == ["depth 1", "depth 3"]
    assert [row[0] for row in mig] == [""]


def test_two_audits_of_a_model_are_one_model(command: Command) -> None:
    text = "beta,audit,metric,value,version\n1,one,kl,3,v\n1,two,mig,5,v\n2,one,kl,3,v\n"
    Path("a.csv").write_text(text, encoding="utf-8")
    assert command("study", "a.csv", "--out", "page").out == "page/study.md: 2 metrics of 2 models against beta\n"


def test_an_interval_that_a_figure_without_items_came_with_is_shown(command: Command) -> None:
    one = table("a.csv", "A,1,0,rate,,0.8,0.5,0.9,9,,,v\nA,2,0,rate,,0.8,,,9,,,v\nA,2,1,rate,,0.8,0.7,0.9,9,,,v\n")
    assert command("study", one, "--out", "page").code == 0
    first, second = cells(Path("page/study.md"), "rate")
    assert first[2] == "0.8 [0.5, 0.9]"
    assert second[2] == "0.8 [0.8, 0.8]"  # one of them names none


def test_a_change_says_of_how_many_seeds_it_is_where_its_row_has_more(command: Command) -> None:
    few = [rows("A", "1", seed, [1, 2, 3 + seed]) for seed in (0, 1)]
    many = [rows("A", "2", seed, [4, 5, 6 + seed]) for seed in (0, 1, 2)]
    command("study", table("a.csv", *few, *many), "--out", "page")
    first, second = cells(Path("page/study.md"), "kl")
    assert (first[3:], second[4]) == (["", "2 x 3"], "3 x 3")
    assert second[3].startswith("3 [")
    assert second[3].endswith("] (2 seeds)")


def test_tables_as_spreadsheets_write_them_are_read_and_one_number_is_one_setting(command: Command) -> None:
    text = HEADER + rows("A", "1", 0, [1, 2, 3]) + rows("A", "1.0", 1, [1, 2, 3]) + rows("A", " 1", 2, [1, 2, 3])
    for name, written in (("bom.csv", "\ufeff" + text), ("semicolons.csv", text.replace(",", ";"))):
        Path(name).write_text(written, encoding="utf-8")
        assert command("study", name, "--out", "page").code == 0
        ((_, beta, *_, of),) = cells(Path("page/study.md"), "kl")
        assert (beta, of) == ("1", "3 x 3")


def test_what_cannot_be_shown_is_told_in_a_sentence(command: Command) -> None:
    one = table("a.csv", rows("A", "1", 0, [1, 2, 3]))
    table("old.csv", rows("A", "2", 0, [1, 2, 3], version="0"))
    table("empty.csv")
    table("twice.csv", rows("A", "1", 0, [1, 2, 3]), rows("A", "1", 0, [1, 2, 3]))
    table("text.csv", "A,1,0,kl,,much,,,3,,,v\n")
    table("short.csv", "A,1\n")
    table("item.csv", rows("A", "1", 0, [1, 2, 3]), "A,1,0,kl,1,2,,,,0.5,,1\n")
    table("other-median.csv", rows("A", "1", 0, [1, 2, 3]).replace("kl,,2,", "kl,,2.1,"))
    table("other-n.csv", rows("A", "1", 0, [1, 2, 3]).replace(",3,0.5,", ",4,0.5,"))
    table("large.csv", rows("A", "1", 0, [1, 2, 1e308]))
    table("large-end.csv", "A,1,0,kl,,2,-1e200,3,3,,,1\n")
    table("infinite.csv", "A,1,0,kl,,inf,,,3,,,1\n")
    table("turned.csv", "A,1,0,kl,,2,3,1,3,,,1\n")
    table("of-nothing.csv", "A,1,0,kl,,2,,,3,,,\n")
    table("nan.csv", rows("A", "nan", 0, [1, 2, 3]))
    table("no-value.csv", "A,1,0,kl,,nan,,,3,,,v\n")
    table("no-end.csv", "A,1,0,kl,,2,1,NaN,3,,,v\n")
    for number in ("-1", "1_0", "1.5", "\u0663"):
        table(f"item{number}.csv", f"A,1,0,kl,{number},2,,,,,,v\n")
    table("n.csv", "A,1,0,kl,,2,,,-3,,,v\n")
    table("long.csv", f"{'A' * 200_000},1,0,kl,,2,,,3,,,v\n")
    table("quotes.csv", '"A"b,1,0,kl,,2,,,3,,,v\n')
    table("formula.csv", "=cmd|' /c calc'!A0,1,0,kl,,2,,,3,,,v\n")
    table("at.csv", "A,1,0,@SUM(1+1),,2,,,3,,,v\n")
    table("endless.csv", rows("A", "-inf", 0, [1, 2, 3]))
    table("bell.csv", rows("A\a\x1b[2J", "1", 0, [1, 2, 3]))
    Path("two-betas.csv").write_text("beta,beta,metric,value,version\n1,2,kl,1,1\n", encoding="utf-8")
    Path("no-version.csv").write_text("metric,value\nkl,1\n", encoding="utf-8")
    Path("other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    Path("bytes.csv").write_bytes(b"\xff\xfe\x00")
    for arguments, fault in (
        (("a.csv", "old.csv"), "2 versions of the tool (0, 1), whose figures are not mixed"),
        ((one, "--against", "bete"), "no setting 'bete' (did you mean 'beta'?)"),
        ((one, "--metric", "kll"), "no metric 'kll' (did you mean 'kl'?); they have kl"),
        (("empty.csv",), "hold no figure"),
        (("twice.csv",), "hold kl twice for seed 0"),
        (("item.csv",), "hold item 1 of kl twice for seed 0"),
        (("other-median.csv",), "hold kl = 2.1 for seed 0, but the 0.5 quantile of its 3 items is 2;"),
        (("other-n.csv",), "hold kl of n = 4 for seed 0, but 3 items with a value; take both from one audit"),
        (
            ("large.csv",),
            "hold kl with 1e+308 for seed 0, where at most 1e+140 was expected, as intervals take squares",
        ),
        (("large-end.csv",), "hold kl with -1e+200 for seed 0"),
        (("infinite.csv",), "line 2 holds a figure of inf"),
        (("turned.csv",), "line 2 holds an interval, or a quantile q, that is none"),
        (("of-nothing.csv",), "line 2 names no version of the tool"),
        (("nan.csv",), "line 2 holds beta = nan, where a finite number or a text was expected"),
        (("endless.csv",), "line 2 holds beta = -inf"),
        (("no-value.csv",), "line 2 holds nan where a number was expected; leave it empty where there is none"),
        (("no-end.csv",), "line 2 holds nan where a number was expected"),
        (("item-1.csv",), "line 2 holds item = -1, where a whole number from 0 on was expected"),
        (("item1_0.csv",), "line 2 holds item = 1_0"),
        (("item1.5.csv",), "line 2 holds item = 1.5"),
        (("item\u0663.csv",), "line 2 holds item = \u0663"),
        (("n.csv",), "line 2 holds n = -3"),
        (("long.csv",), "has a cell of more than 131,072 characters; shorten it, or mend its quotes"),
        (("quotes.csv",), "is no table in CSV: "),
        (("formula.csv",), """hold "=cmd|' /c calc'!A0", where a spreadsheet would see a formula and run it;"""),
        (("at.csv",), "hold '@SUM(1+1)', where a spreadsheet would see a formula"),
        (("bell.csv",), r"hold a control character, in 'A\x07\x1b[2J'; take it out"),
        (("no-version.csv",), "has no column version"),
        (("two-betas.csv",), "has two columns of one name"),
        (("text.csv",), "line 2 holds a text where a number was expected"),
        (("short.csv",), "another number of cells"),
        (("other.csv",), "its columns are a, b"),
        (("bytes.csv",), "is no table in CSV"),
        (("nowhere.csv",), "cannot be read (No such file or directory)"),
    ):
        assert command("study", *arguments).said(2, fault), fault


def test_infinite_items_of_both_signs_have_no_mean_and_no_warning(command: Command) -> None:
    items = [f"A,{beta},0,kl,{i},{v},,,,,,v\n" for beta in (1, 2) for i, v in enumerate(("-inf", "inf", "2"))]
    text = "".join(f"A,{beta},{seed},lost,{i},inf,,,,,,v\n" for beta in (1, 2) for seed in (0, 1) for i in (0, 1))
    done = command("study", table("a.csv", *items, text), "--out", "page")
    assert (done.code, done.err) == (0, "")
    for metric in ("kl", "lost"):
        assert [row[2] for row in cells(Path("page/study.md"), metric)] == ["none", "none"]


def test_a_metric_may_be_called_anything_and_a_figure_may_be_missing(command: Command) -> None:
    names = ["../../a b", "A/B", "a-b", "x" * 300]
    one = table("a.csv", *(f'A,1,0,"{name}",,1,,,3,,,1\n' for name in names), "A,1,0,lost,,,,,3,,,1\n")
    assert command("study", one, "--out", "page/in").code == 0
    pictures = sorted(file.name for file in Path("page/in").glob("*.png"))
    assert pictures == sorted(["a-b.png", "A-B-2.png", "a-b-3.png", "x" * 120 + ".png", "lost.png"])
    assert sorted(file.name for file in Path("page").iterdir()) == ["in"]
    page = Path("page/in/study.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in pictures)
    assert cells(Path("page/in/study.md"), "lost")[0][2] == "none"


def test_a_row_may_name_the_report_of_a_model_in_place_of_its_figures(command: Command) -> None:
    examples = Path(__file__).parents[2] / "examples"
    for beta in (1, 8):
        model, data = examples / f"shapes-beta{beta}.safetensors", examples / "shapes.npz"
        assert command("weights", model, "--out", f"r{beta}", "--quiet").code == 0
        assert (
            command("noise", model, "--data", data, "--limit", "40", "--sigma", "0.5", "--out", f"n{beta}", "-q").code
            == 0
        )
    Path("mine.csv").write_text("beta,report\n1,r1\n8,r8\n1,n1\n8,n8\n", encoding="utf-8")
    done = command("study", "mine.csv", "--metric", "noise.s0.5.degradation.median", "--metric", "weights.decoder.l2")
    assert done.out == "vaeaudit-study/study.md: 2 metrics of 2 models against beta\n"
    noise = cells(Path("vaeaudit-study/study.md"), "noise.s0.5.degradation.median")
    assert [row[4] for row in noise] == ["1 x 40", "1 x 40"]
    assert noise[1][3].startswith("-")  # the larger beta loses less
    assert cells(Path("vaeaudit-study/study.md"), "weights.decoder.l2")[0][4] == "1"
