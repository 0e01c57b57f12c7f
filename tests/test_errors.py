"""Words that every message shares."""

from vaeaudit.errors import clipped, listed, nearest


def test_what_a_message_echoes_is_cut_and_says_so() -> None:
    assert clipped("short") == "short"
    assert clipped("x" * 1_000_000) == "x" * 99 + "…"


def test_a_list_says_how_many_more_there_are() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == ""
    assert listed([str(i) for i in range(6)]) == "0, 1, 2, 3, 4, 5"
    assert listed([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5 and 3 more"
    assert listed(["x" * 1000, "y"], most=1) == "x" * 99 + "… and 1 more"


def test_the_nearest_name_is_suggested_and_a_far_one_is_not() -> None:
    assert nearest("laten", ["latent", "output"]) == " (did you mean 'latent'?)"
    assert nearest("zzz", ["latent", "output"]) == ""
