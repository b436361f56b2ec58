"""Messages are short, and say where something was left out."""

from resnets.errors import DataErrors, shorten


def test_what_is_cut_ends_in_an_ellipsis():
    assert shorten("a" * 200) == "a" * 200
    assert shorten("a" * 201) == "a" * 199 + "…"


def test_a_message_of_many_problems_says_that_there_are_more():
    problems = [(f"{n}.png", "broken") for n in range(4)]
    assert "2.png: broken; …\n" in str(DataErrors("data", problems, []))
    assert "2.png: broken\n" in str(DataErrors("data", problems[:3], []))
