"""Messages are short, and say where something was left out."""

from resnets.errors import DataErrors, quantify
from resnets.escape import shorten


def test_what_is_cut_ends_in_an_ellipsis():
    assert shorten("a" * 200) == "a" * 200
    assert shorten("a" * 201) == "a" * 199 + "…"


def test_a_count_of_one_is_singular():
    for what, singular in (
        ("images have no mask", "image has no mask"),
        ("classes", "class"),
        ("boxes are not read", "box is not read"),
        ("of 2 masks are not read", "of 2 masks is not read"),
        ("class names have marks, which are read", "class name has marks, which are read"),
    ):
        assert (quantify(1, what), quantify(1200, what)) == (f"1 {singular}", f"1,200 {what}")


def test_a_message_of_many_problems_says_that_there_are_more():
    problems = [(f"{n}.png", "broken") for n in range(4)]
    assert "2.png: broken; …\n" in str(DataErrors("data", problems, []))
    assert "2.png: broken\n" in str(DataErrors("data", problems[:3], []))
