import pytest
import torch

from resnets.analysis.drawing import colour, draw_boxes, text_colour


def luminance(colour):
    """Of sRGB, as WCAG 2 defines it."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_stand_out_from_the_colour_of_every_class():
    for k in range(200):
        paper, text = sorted(map(luminance, (colour(k), text_colour(colour(k)))))
        assert (text + 0.05) / (paper + 0.05) >= 4.5  # what WCAG asks for
    assert [
        text_colour(paper) for paper in ((0, 0, 0), (255, 255, 255), (90, 0, 150), (255, 255, 0))
    ] == [
        (255, 255, 255),
        (0, 0, 0),
        (255, 255, 255),
        (0, 0, 0),
    ]


@pytest.mark.parametrize("k", [1, 2, 7])
def test_words_are_drawn_in_that_ink(k):
    image = torch.full((3, 60, 90), 128, dtype=torch.uint8)
    drawn = draw_boxes(image, torch.tensor([[5.0, 5, 80, 50]]), [k], ["cell 0.99"], None)
    colours = {tuple(pixel) for pixel in drawn.flatten(1).T.tolist()}
    assert {text_colour(colour(k)), colour(k)} <= colours
