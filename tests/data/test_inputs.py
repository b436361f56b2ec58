"""One image in every form that people have it in."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.data.inputs import expand_inputs, is_single, read_image
from resnets.errors import DataError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        png(PIXELS),
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.float64) / 255,
        (PIXELS.astype(np.uint16) << 8) + 77,
        np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)]),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    ],
    ids=lambda x: f"{type(x).__name__}-{getattr(x, 'dtype', '')}",
)
def test_an_image_has_the_same_pixels_in_every_form(image):
    pixels, greatest = read_image(image, 3)
    assert np.array_equal(pixels, PIXELS)
    assert pixels.dtype == np.uint8
    assert greatest is None


def test_grey_arrays_and_tensors_are_grey_pictures():
    grey = PIXELS[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(read_image(image, 1)[0][..., 0], grey)
        assert np.array_equal(read_image(image, 3)[0], np.dstack([grey] * 3))
    assert read_image(grey > 127, 1)[0].tolist() == ((grey > 127) * 255)[..., None].tolist()


def test_grey_of_16_bits_is_scaled_as_in_a_file():
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 100
    array, file = (read_image(x, 1, 4095) for x in (values, png(values)))
    assert np.array_equal(array[0], file[0])
    assert array[1] == file[1] == 3400
    assert np.array_equal(array[0][..., 0], (values.astype(int) * 255 + 2047) // 4095)


def test_alpha_is_put_on_white_and_a_picture_of_the_caller_is_not_turned():
    clear = np.zeros((2, 2, 4), np.uint8)
    assert read_image(clear, 3)[0].min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(io.BytesIO(png(PIXELS, exif=exif)))
    assert read_image(picture, 3)[0].shape == (7, 5, 3)
    assert picture.size == (7, 5)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PIXELS.astype(np.float32), "floats from .* must be in 0..1: divide by 255"),
        (torch.randn(3, 8, 8), "must be in 0..1: leave out any normalisation"),
        (np.full((4, 4), np.nan), "floats from nan"),
        (PIXELS.astype(np.int64), "int64 values; give uint8"),
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 5, 7\).*x.transpose\(1, 2, 0\)"),
        (torch.from_numpy(PIXELS), r"shape \(5, 7, 3\).*x.permute\(2, 0, 1\)"),
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\); such an array is"),
        (np.zeros(9, np.uint8), r"the shape \(9,\)"),
        (np.zeros((0, 4), np.uint8), "0 pixels"),
        ({"image": PIXELS}, "a dict is not an image: give a path"),
        (b"GIF89a", "input 3: "),
    ],
)
def test_what_is_no_image_is_refused_with_its_number_and_a_remedy(image, words):
    with pytest.raises(DataError, match=rf"(?s)^input 3: .*{words}|^{words}"):
        read_image(image, 3, name="input 3")


def test_several_are_a_folder_a_pattern_a_list_or_a_batch(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    several = (tmp_path, str(tmp_path / "*.png"), [PIXELS], np.stack([PIXELS] * 2))
    assert not any(map(is_single, several))
    assert all(map(is_single, (tmp_path / "a.png", b"", PIXELS, Image.fromarray(PIXELS))))
    names = [name for name, _ in expand_inputs(torch.zeros(2, 3, 4, 4))]
    assert names == ["input 0", "input 1"]
    assert [name for name, _ in expand_inputs([PIXELS, tmp_path, PIXELS])] == [
        "input 0", str(tmp_path / "a.png"), "input 2",
    ]  # fmt: skip


def test_an_open_file_and_a_bytearray_are_one_image():
    for file in (io.BytesIO(png(PIXELS)), bytearray(png(PIXELS))):
        assert is_single(file)
        ((name, image),) = expand_inputs(file)
        assert name == "input 0"
        assert np.array_equal(read_image(image, 3)[0], PIXELS)
    ((_, first), _) = expand_inputs([io.BytesIO(png(PIXELS)), PIXELS])
    assert first == png(PIXELS)
    with pytest.raises(UsageError, match="opened in text mode"):
        list(expand_inputs(io.StringIO("x")))


@pytest.mark.parametrize("inputs", [None, 3, {"a": 1}])
def test_what_is_neither_an_image_nor_several_is_refused(inputs):
    with pytest.raises(UsageError, match=f"a {type(inputs).__name__} is not an image: give a path"):
        is_single(inputs)


def test_an_empty_path_is_not_the_working_folder():
    for call in (is_single, lambda path: list(expand_inputs([path]))):
        with pytest.raises(UsageError, match="an empty path"):
            call("")


def test_a_tensor_of_bfloat16_is_an_image_and_a_sparse_one_is_refused():
    pixels = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
    expected = read_image(pixels, 1)[0]
    assert np.array_equal(read_image(pixels.bfloat16(), 1)[0], expected)
    with pytest.raises(DataError, match=r"^the image: "):
        read_image(pixels.to_sparse(), 1)
