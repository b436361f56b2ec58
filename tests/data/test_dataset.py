import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from resnets import data_check
from resnets.config.recipe import Preprocess
from resnets.data import load, loader
from resnets.data.inputs import expand_inputs
from resnets.data.splits import Split, apply_holdout, hold_out, hold_out_fold, in_memory
from resnets.errors import DataError, DataErrors, UsageError
from resnets.training.tasks import classification
from tests._helpers import needs_case, needs_links

from ._helpers import classes, picture


def rows(splits):
    return sorted(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images.numpy(), split.labels, strict=True)
    )


def test_every_digit_is_in_exactly_one_half():
    source = load("digits")
    assert (len(source.train), len(source.test), source.val) == (899, 898, None)
    assert source.train.images.shape == (899, 1, 8, 8)
    everything = load_digits()
    images = torch.from_numpy(np.rint(everything.images * 255 / 16).astype(np.uint8))[:, None]
    assert rows([source.train, source.test]) == rows([Split(images, everything.target)])
    halves = [split.labels.bincount(minlength=10) for split in (source.train, source.test)]
    assert (halves[0] - halves[1]).abs().max() <= 2


def test_the_digits_are_for_ever():
    source = hold_out(load("digits"), 0.2, 3)
    assert source.digest == "9e8d68f8fb244ada4b806156dafd8af195d6ceb5de09363af5dfcb2b5769db6c"
    assert (source.classes, source.channels, source.size) == (tuple("0123456789"), 1, 8)
    x = source.train.images.double() / 255
    assert source.mean == pytest.approx([x.mean().item()])
    assert source.std == pytest.approx([x.std(correction=0).item()])
    assert source.split_table() == []


def numbered(labels):
    """A source whose image i has the number i in its pixels."""
    images = torch.tensor([[i % 256, i // 256] for i in range(len(labels))], dtype=torch.uint8)
    train = Split(images.view(-1, 1, 1, 2), torch.tensor(labels))
    return in_memory("n", tuple("abcd"), train, train.take(torch.zeros(0, dtype=torch.int64)))


def numbers(split):
    return [a + 256 * b for a, b in split.images.view(-1, 2).tolist()]


@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=400),
    st.floats(0.01, 0.99) | st.integers(1, 400),
    st.integers(0, 2**70),
)
def test_holding_out_is_disjoint_complete_and_stratified(labels, part, seed):
    n = len(labels)
    count = round(part if part >= 1 else part * n)
    if not 0 < count < n:
        with pytest.raises(UsageError, match="val_fraction="):
            hold_out(numbered(labels), part, seed)
        return
    train = numbered(labels).train.split_stratified(seed, count)[1]
    if lost := {*labels} - {*train.labels.tolist()}:
        with pytest.raises(UsageError, match=f"leaves train without {len(lost)} of"):
            hold_out(numbered(labels), part, seed)
        return
    source = hold_out(numbered(labels), part, seed)
    kept, held = numbers(source.train), numbers(source.val)
    assert len(held) == count
    assert sorted(kept + held) == list(range(n))
    assert [labels[i] for i in held] == source.val.labels.tolist()
    for label in set(labels):
        assert abs(labels.count(label) * count / n - [labels[i] for i in held].count(label)) < 3


def test_holding_out_a_round_number_of_equal_classes_is_exact():
    source = hold_out(numbered([0, 1, 2, 3] * 250), 100, seed=5)
    assert source.val.labels.bincount().tolist() == [25] * 4
    with pytest.raises(UsageError, match="validation split already"):
        hold_out(source, 10, seed=5)


@needs_links
def test_split_folders_by_any_of_their_names(tmp_path):
    classes(tmp_path / "train", {"b": 4, "a": 3})
    classes(tmp_path / "Validation", {"b": 2, "a": 1})
    classes(tmp_path / "test", {"a": 2})
    picture(tmp_path / "train" / "a" / ".hidden.png")
    picture(tmp_path / "train" / ".cache" / "x.png")
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "a" / "deeper").mkdir()
    (tmp_path / "train" / "a" / "deeper" / "up").symlink_to(tmp_path / "train" / "a")
    picture(tmp_path / "train" / "a" / "deeper" / "UPPER.JPEG")
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert [len(s) for s in (source.train, source.val, source.test)] == [8, 3, 2]
    assert source.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert ("train/a/deeper/UPPER.JPEG", "a", "train") in source.split_table()
    assert (source.channels, source.size, source.name) == (3, 10, tmp_path.name)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/train", "test/test"),
        ("NewTraining", "old_test"),
        ("my-train-2", "my-test-2"),
    ],
)
def test_a_word_in_a_folders_name_is_its_split(tmp_path, train, test):
    for folder, count in ((train, 3), (test, 2)):
        classes(tmp_path / folder, {"b": count, "a": count})
    picture(tmp_path / "other" / "deeper" / "1.png")
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "test": 4}
    named = train.startswith("train")
    assert named or any("splits are read from words in the" in note for note in source.notes)
    assert any("1 folder beside" in note for note in source.notes)


def test_folds_are_stratified_parts_of_the_whole():
    whole = numbered([0] * 50 + [1] * 25 + [2] * 8)
    parts = [hold_out_fold(whole, 4, fold, seed=3) for fold in range(4)]
    held_out = [number for part in parts for number in numbers(part.val)]
    assert sorted(held_out) == list(range(83))
    for part in parts:
        assert sorted(numbers(part.val) + numbers(part.train)) == list(range(83))
        counts = part.val.counts(3).tolist()
        assert all(abs(c - m / 4) <= 1 for c, m in zip(counts, (50, 25, 8), strict=True))
    assert apply_holdout(whole, False, 0.2, 3, 4, 1).val.labels.tolist() == (
        parts[1].val.labels.tolist()
    )
    for folds, fold in ((1, 0), (4, 4), (84, 0)):
        with pytest.raises(UsageError, match=f"fold={fold} of folds={folds} with 83 images"):
            hold_out_fold(whole, folds, fold, seed=0)
    with pytest.raises(UsageError, match="has a validation split already; set trainval=true"):
        hold_out_fold(parts[0], 4, 0, seed=0)


def test_classes_whose_names_have_words_of_splits_stay_classes(tmp_path):
    classes(tmp_path, {"train station": 9, "test tube": 9, "bus": 9})
    picture(tmp_path / "test tube" / "deeper" / "1.png")
    picture(tmp_path / "train station" / "deeper" / "1.png")
    assert load(tmp_path).classes == ("bus", "test tube", "train station")


def test_an_automatic_split_is_stratified_and_told(tmp_path):
    source = load(classes(tmp_path, {"a": 40, "b": 20}), seed=1)
    table = source.split_table()
    assert len({path for path, _, _ in table}) == 60
    for name, a, b in (("train", 32, 16), ("val", 4, 2), ("test", 4, 2)):
        assert [(label, split) for _, label, split in table].count(("a", name)) == a
        assert [(label, split) for _, label, split in table].count(("b", name)) == b
    assert all(path.startswith(f"{label}/") for path, label, _ in table)
    assert load(tmp_path, seed=1).split_table() == table
    other = load(tmp_path, seed=2)
    assert other.split_table() != table
    assert other.digest == source.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_files_digest_is_of_names_sizes_and_labels(tmp_path):
    here, there = (classes(tmp_path / n, {"a": 3, "b": 3}) for n in ("here", "there"))
    assert load(here).digest == load(there).digest
    (there / "a" / "000.png").rename(there / "a" / "renamed.png")
    assert load(here).digest != load(there).digest


def test_mean_and_deviation_of_files_are_those_of_their_pixels(tmp_path):
    classes(tmp_path / "train", {"a": 7, "b": 9})
    source = load(tmp_path)
    shades = np.array([*range(7), *range(9)])
    pixels = np.stack([shades, 2 * shades, np.full(16, 30)]) / 255
    assert source.mean == pytest.approx(pixels.mean(1).tolist())
    assert source.std == pytest.approx(pixels.std(1).clip(1 / 255).tolist(), abs=1e-7)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.png"], "1 class; classification needs two"),
        (["1.png", "2.png"], "has no folders; it needs one for each class"),
        (["train/1.png", "train/2.png"], "has no folders; it needs one for each class"),
        (["a/1.png", "b/1.png", "test/a/1.png"], "do not look like classes: test"),
        (
            ["training/a/1.png", "training/b/1.png", "testing/c/1.png"],
            r"first 'c'\) that train lacks",
        ),
        (["train/1.png", "test/2.png"], "has no folders; it needs one for each class"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "move it to test/cat"),
        (["images/1.png", "labels/1.png"], "do not look like classes: images, labels"),
        (["images/a/1.png", "images/b/1.png"], "did you mean .*images"),
        (["inner/a/1.png", "inner/b/1.png"], "did you mean .*inner"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "dev/a/1.png"],
            "folders of one split",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "val/c/1.png"],
            r"first 'c'\) that train lacks",
        ),
        (["a/1.png", "b/1.png", "c/.hidden"], "1 class folder for training is empty: c"),
    ],
)
def test_a_layout_that_is_not_understood_is_told(tmp_path, files, message):
    for name in files:
        picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_name_or_place_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="did you mean cifar10"):
        load("cifar1o")
    with pytest.raises(DataError, match="did you mean digits"):
        load("digit")
    with pytest.raises(DataError, match="resnets data get cifar100"):
        load("cifar100")
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack an archive first"):
        load(tmp_path / "data.zip")


def table(folder, text):
    folder.mkdir(exist_ok=True)
    for i in range(20):
        picture(folder / f"p{i}.png", shade=i)
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_csv_file_with_and_without_splits(tmp_path):
    lines = [f"p{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(20)]
    source = load(table(tmp_path / "a", "path,label\n" + "\n".join(lines)))
    assert [len(s) for s in (source.train, source.val, source.test)] == [16, 2, 2]
    assert {(int(path[1:-4]) % 2, label) for path, label, _ in source.split_table()} == {
        (0, "dog"),
        (1, "cat"),
    }
    names = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    lines = [f"{name},{line}" for name, line in zip(names, lines, strict=True)]
    source = load(table(tmp_path / "b", "split,path,label\n" + "\n".join(lines)))
    assert [len(s) for s in (source.train, source.val, source.test)] == [12, 4, 4]
    assert [split for _, _, split in source.split_table()] == [
        n.replace("valid", "val") for n in names
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo,label\np1.png,a", r"no column path; it has 'photo', 'label'"),
        ("path,cat,dog\np1.png,1,0", r"no column label; it has 'path', 'cat', 'dog'"),
        ("", "has no rows"),
        ('path,label\np1.png,"a\np2.png,b', "line 2: a quote is not closed"),
        ('path,label\np1.png,a\np2.png,"b\np3.png,"c\np4.png,d', "line 3: a quote is not"),
        ("path,label\np1.png,a, b", "line 2: 3 values under 2 columns"),
        ("path,label\np1.png,a\0b", "line 2: contains NUL"),
        ("path,path,label\np1.png,p2.png,a", "two columns are called 'path'"),
        ("path,label\np1.png,a\np2.png,", "line 3: path or label is missing"),
        ("path,label\np1.png,a\np2.png", "line 3: path or label is missing"),
        (
            "path,label\np1.png,a\np1.png,b",
            "line 3: p1.png has another label or split than in line 2",
        ),
        ("path,label,split\np1.png,a,train\np2.png,b", "line 3: unknown split ''"),
        ("path,label,split\np1.png,a,tran", "split 'tran': did you mean train"),
        ("path,label\np1.png,a\ngone.png,b", "unreadable: 1 of 2 files"),
    ],
)
def test_a_csv_file_that_is_wrong_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        load(table(tmp_path, text))
    assert len(str(caught.value).splitlines()) <= 3


CATS = [(f"p{i}.png", "cat" if i % 2 else "dog") for i in range(20)]
PLAIN = "path,label\n" + "".join(f"{a},{b}\n" for a, b in CATS)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (PLAIN.replace("\n", "\r\n"), ""),
        (PLAIN.replace("\n", "\r"), ""),
        (PLAIN.replace("\n", "\n\n"), ""),
        (PLAIN.replace(",", ";"), ""),
        ("sep=;\n" + PLAIN.replace(",", ";"), ""),
        (PLAIN.replace(",", "\t"), ""),
        (PLAIN.replace(",", ", "), ""),
        ("# made by a script, 1\n" + PLAIN, ""),
        ("Path,Label" + PLAIN[10:], ""),
        ("path,label\n" + "".join(f'"{a}", "{b}"\n' for a, b in CATS), ""),
        ("path,label\n" + "".join(f"{a},{b},\n" for a, b in CATS), ""),
        (PLAIN[11:], "has no header: its columns are read as path, label"),
        ("filename,class" + PLAIN[10:], "'filename' as path, 'class' as label"),
        ("image,target" + PLAIN[10:], "'image' as path, 'target' as label"),
        (",path,label,patient\n" + "".join(f"{a[1]},{a},{b},7\n" for a, b in CATS), "'patient'"),
        (
            "path,label\n" + "".join(f".\\{a},{b}\n" for a, b in CATS),
            "20 images are found under",
        ),
        (PLAIN + "p0.png,dog\n", "1 row is repeated: each image counts once, first .*line 22"),
        (
            PLAIN.replace("19.png,cat", "19.png,Cat"),
            "in case, space, quotes or decimals only, first 'Cat' and 'cat'",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_csv_file_in_another_dialect_is_read_and_what_is_assumed_is_noted(
    tmp_path, text, note, encoding
):
    path = table(tmp_path, "")
    path.write_bytes(text.encode(encoding))
    source = load(path)
    assert {(p, label.casefold()) for p, label, _ in source.split_table()} == set(CATS)
    notes = [text for text in source.notes if "random split leaves" not in text]  # of a lone Cat
    assert len(notes) == bool(note)
    assert not note or re.search(note, notes[0])


def test_quotes_in_names_and_splits_in_any_case(tmp_path):
    rows = ('p1.png,5" pipe,Train', 'p2.png,"a ""b"", c",TRAINING', 'p3.png,"5"" pipe",Dev')
    source = load(table(tmp_path, "\n".join(["path,label,split", *rows])))
    assert source.classes == ('5" pipe', 'a "b", c')
    assert [len(source.train), source.val.labels.tolist(), source.test] == [2, [0], None]


def test_a_csv_file_in_another_encoding_names_the_line(tmp_path):
    path = table(tmp_path, "")
    path.write_bytes("path,label\np1.png,a\np2.png,café\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        load(path)


TAGS = ["cat|dog", "dog", "", "bird|dog|cat", "cat|"]


def test_several_classes_of_an_image_are_rows_of_0_and_1(tmp_path):
    lines = [f"p{i}.png,{TAGS[i % 5]},{'train' if i < 15 else 'test'}" for i in range(20)]
    source = load(table(tmp_path, "path,label,split\n" + "\n".join(lines)))
    assert source.classes == ("bird", "cat", "dog")
    expected = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert source.train.labels.dtype == torch.float32
    assert torch.equal(source.train.labels, expected.float().repeat(3, 1))
    assert source.train.counts(3).tolist() == [3, 9, 9]
    assert [label for _, label, _ in source.split_table()[:5]] == [
        "cat|dog",
        "dog",
        "",
        "bird|cat|dog",
        "cat",
    ]
    both = source.test.concat(source.train).take(torch.tensor([3, 5]))
    assert torch.equal(both.labels, expected[[3, 0]].float())
    preprocess = Preprocess(size=8)
    (batch,) = loader.test_batches(
        both, preprocess=preprocess, batch=4, device="cpu", crops="corners"
    )
    assert torch.equal(batch.labels, both.labels.repeat_interleave(5, 0)[[0] * 5 + [5] * 5])


def test_the_order_in_a_cell_does_not_matter_and_that_there_may_be_several_does(
    tmp_path,
):
    text = "path,label,split\np1.png,{},train\np2.png,b,train\np3.png,a,train"
    labels = ("a|b", "b||a", " b | a ", "b", " b\t")
    ab, ba, wide, one, same = (load(table(tmp_path, text.format(x))).digest for x in labels)
    assert ab == ba == wide
    assert one == same
    assert load(table(tmp_path, text.format("b|"))).digest != one
    with pytest.raises(DataError, match="1 class; classification needs two"):
        load(table(tmp_path, "path,label\np1.png,a|\np2.png,"))
    with pytest.raises(DataError, match=r"first 'c'\) that train lacks"):
        load(table(tmp_path, text.format("a|b") + "\np4.png,a|c,test"))


def test_samples_of_several_classes_are_stratified_by_the_rarest():
    kinds = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]).float()
    many = Split(torch.zeros(98, 1, 1, 1, dtype=torch.uint8), kinds.repeat(25, 1)[:98])
    for seed in range(5):
        part, rest = many.split_stratified(seed, 20)
        assert torch.equal(part.counts(3) + rest.counts(3), many.counts(3))
        found = [int((part.labels == kind).all(1).sum()) for kind in kinds]
        assert sum(found) == 20
        assert all(4 <= count <= 6 for count in found)
    source = in_memory("n", tuple("abc"), many, many.take(torch.arange(0)))
    assert hold_out(source, 20, 0).val.labels.shape == (20, 3)
    single = Split(many.images, torch.arange(98) % 3)
    assert single.counts(4).tolist() == [33, 33, 32, 0]


def test_unreadable_files_are_left_out_and_named_or_stop_the_run(tmp_path):
    classes(tmp_path, {"a": 50, "b": 49})
    bad = tmp_path / "b" / "049.png"
    bad.write_text("<html>")
    source = load(tmp_path, max_unreadable=0.01)
    assert [(path, "not a" in reason) for path, reason in source.unreadable] == [(bad, True)]
    assert sum(map(len, (source.train, source.val, source.test))) == 99
    assert "b/049.png" not in [path for path, _, _ in source.split_table()]
    (tmp_path / "a" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="unreadable: 2 of 100 files") as caught:
        load(tmp_path, max_unreadable=0.01)
    assert "a/000.png (the file is empty)" in str(caught.value)
    assert "--set max_unreadable=0.1" in str(caught.value)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image can be read of 1 class"):
        load(tmp_path, max_unreadable=1.0)


def test_of_many_files_some_are_decoded_and_every_header_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("resnets.data.assemble.CHECKED", 30)
    classes(tmp_path, {"a": 50, "b": 50})
    (tmp_path / "a" / "001.png").write_bytes(b"GIF89a")
    source = load(tmp_path)
    assert [path.name for path, _ in source.unreadable] == ["001.png"]


def test_inputs_are_files_folders_patterns_and_bytes(tmp_path):
    classes(tmp_path, {"a": 2, "b": 1})
    picture(tmp_path / ".hidden" / "x.png")
    one = tmp_path / "a" / "000.png"
    assert list(expand_inputs([one, b"bytes"])) == [(str(one), str(one)), ("input 1", b"bytes")]
    found = list(expand_inputs([tmp_path, str(tmp_path / "*" / "*.png")]))
    assert [name for name, _ in found] == [str(file) for _, file in found]
    assert [name for name, _ in found] == 2 * [
        str(tmp_path / p) for p in ("a/000.png", "a/001.png", "b/000.png")
    ]
    for missing in (tmp_path / "none.png", str(tmp_path / "*.gif")):
        assert list(expand_inputs([missing])) == [
            (str(missing), str(missing))
        ]  # it is named among the answers


def grey16(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint16)).save(path)


def test_grey_of_16_bits_is_scaled_by_what_the_training_images_hold(tmp_path):
    ramp = np.arange(64 * 64).reshape(64, 64)  # 12 bits, 0 to 4,095
    for split in ("train", "val"):
        grey16(tmp_path / split / "a" / "0.png", ramp)
        grey16(tmp_path / split / "b" / "0.tif", np.full((64, 64), 180))
        grey16(tmp_path / split / "b" / "1.png", np.full((64, 64), 320))
    grey16(tmp_path / "val" / "b" / "2.png", np.full((64, 64), 5000))
    source = load(tmp_path)
    assert source.white == 4095
    note, copies = source.notes
    assert "7 decoded images are grey with 16 bits, first" in note
    assert "white is 4,095, since the greatest value for training is 4,095" in note
    assert "1 have greater values, first" in note
    assert "3 images of val are in train too, byte for byte, so its figures are too good" in copies
    levels = np.rint(ramp * (255 / 4095)), np.full((64, 64), 11), np.full((64, 64), 20)
    assert source.mean == pytest.approx([np.mean(levels) / 255] * 3)
    assert source.std == pytest.approx([np.std(levels) / 255] * 3)
    see = Preprocess(size=64, mean=(0.0,) * 3, std=(1.0,) * 3, white=source.white)
    made = loader.test_batches(source.val, preprocess=see, batch=4, device="cpu")
    images = torch.cat([batch.images for batch in made])[:, 0] * 255
    assert len(images[0].unique()) == 256
    assert [image.round().unique().tolist() for image in images[1:]] == [[11], [20], [255]]


def test_what_pixels_leave_out_is_counted(tmp_path):
    classes(tmp_path / "train", {"a": 2, "b": 2})
    frames = [Image.new("RGB", (10, 12), colour) for colour in ("red", "blue")]
    top = tmp_path / "train" / "a"
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(top / name, save_all=True, append_images=frames[1:])
    frames[0].convert("CMYK").save(top / "c.jpg")
    frames[0].convert("RGBA").save(top / "d.png")
    (top / "e.png").write_bytes((tmp_path / "train" / "b" / "000.png").read_bytes())
    assert sorted(note.partition(": ")[2] for note in load(tmp_path).notes) == [
        "1 image has copies of another class, byte for byte, first "
        f"{tmp_path / 'train' / 'b' / '000.png'}, which is {top / 'e.png'}",
        f"1 image has transparency: it is put on white, first {top / 'd.png'}",
        f"1 image is CMYK: made RGB without a colour profile, first {top / 'c.jpg'}",
        f"4 images have further frames or pages: the first is used, first {top / 'a.gif'}",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.npy", "a NumPy array, whose white is not known: save it as PNG of 8 or 16 bits"),
        ("a.tif", "floating-point pixels have no known white: save them with 8 or 16 bits"),
        ("b.tif", "signed or 32-bit pixels have no known white: save them with 8 or 16 bits"),
        ("a.heic", "HEIF, AVIF or a video: save it as JPEG or PNG"),
    ],
)
def test_why_an_image_is_not_read(tmp_path, name, reason):
    classes(tmp_path, {"a": 3, "b": 3})
    if name == "a.npy":
        np.save(tmp_path / "a" / name, np.zeros((4, 4)))
    elif name == "a.heic":
        (tmp_path / "a" / name).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 9)
    else:
        kind = np.float32 if name == "a.tif" else np.int32
        Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a" / name)
    assert load(tmp_path, max_unreadable=0.5).unreadable == ((tmp_path / "a" / name, reason),)


def test_a_folder_is_taken_before_a_data_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(classes(tmp_path / "digits", {"round": 10, "square": 10}).parent)
    for name in ("digits", "cifar10"):
        (tmp_path / "digits").rename(tmp_path / name)
        source = load(name)
        assert source.classes == ("round", "square")
        assert f"{name} is read from" in source.notes[0]
        (tmp_path / name).rename(tmp_path / "digits")
    assert (
        classification.default_recipe(
            load("digits"), load("digits").train, torch.device("cpu")
        ).data
        == "digits"
    )
    assert (
        classification.default_recipe(
            load("digits"), load("digits").train, torch.device("cpu")
        ).model
        != "resnet8"
    )
    (tmp_path / "digits").rename(tmp_path / "other")
    assert load("digits").classes == tuple("0123456789")


@needs_case
def test_all_that_is_wrong_with_class_folders_is_named_at_once(tmp_path):
    classes(tmp_path / "train", {"a": 3, "b": 3, "empty": 0})
    classes(tmp_path / "val", {"A": 2, "a": 2, "b": 0})
    classes(tmp_path / "extra", {"a": 2})
    picture(tmp_path / "train" / "loose.png")
    picture(tmp_path / "train" / "a" / "deep" / "er.png")
    picture(tmp_path / "train" / "b" / ".hidden" / "x.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "train" / "a" / "more.zip").write_bytes(b"PK")
    (tmp_path / "train" / "b" / "zero.png").write_bytes(b"")
    (tmp_path / "train" / "b" / "up").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "b" / "link.png").symlink_to(tmp_path / "train" / "a" / "000.png")
    with pytest.raises(DataErrors) as caught:
        load(tmp_path, max_unreadable=1.0)
    refused = {reason.partition(", first")[0] for _, reason in caught.value.refused}
    assert refused == {
        "1 class folder for training is empty: empty; fill or remove such folders",
        "val or test have 1 class (first 'A') that train lacks",
        "1 file has two classes by links",
    }
    told = [reason.removeprefix(f"{tmp_path}: ") for _, reason in caught.value.noted]
    top = tmp_path / "train"
    assert sorted(told) == [
        f"1 class folder without images is left out, first {tmp_path / 'val' / 'b'}",
        f"1 file beside the class folders is not read, first {top / 'loose.png'}",
        f"1 folder beside train, val is not read, first {tmp_path / 'extra'}",
        "1 group of classes has names that differ in case, space, quotes or decimals only, "
        "first 'A' and 'a'",
        f"1 hidden path is not read, first {top / 'b' / '.hidden'}",
        "1 image inside a folder of a class folder is of the outer class, "
        f"first {top / 'a' / 'deep' / 'er.png'}",
        f"2 files other than images are skipped, first {top / 'a' / 'more.zip'}",
    ]
    assert caught.value.unreadable == ((top / "b" / "zero.png", "the file is empty"),)
    assert all(row["refused"] for row in data_check(tmp_path) if "zero.png" in row["place"])


def test_what_only_training_needs_is_not_asked_of_data_to_test_on(tmp_path):
    classes(tmp_path, {"red": 3, "blue": 0})
    with pytest.raises(DataErrors, match="1 class; classification needs two"):
        load(tmp_path, max_unreadable=1.0)
    source = load(tmp_path, training=False)
    assert (source.classes, source.files) == (("red",), 3)


def test_a_class_that_a_split_by_chance_leaves_out_is_told(tmp_path):
    many = classes(tmp_path / "many", dict.fromkeys("abcde", 4))  # 2 for val, 2 for test
    source = load(many)
    noted = [
        f"{many}: the random split leaves {name} without 3 of 5 classes, first {first!r}"
        for name, split in (("val", source.val), ("test", source.test))
        for first in [min({*"abcde"} - {"abcde"[k] for k in split.labels.tolist()})]
    ]
    assert source.notes == tuple(noted)
    rare = classes(tmp_path / "rare" / "train", {"a": 9, "b": 1}).parent
    whole = load(rare)
    assert hold_out(whole, 0.1, 0).notes == (
        "val_fraction=0.1 leaves val without 1 of 2 classes, first 'b'",
    )
    lost = "val_fraction=0.6 leaves train without 1 of 2 classes, first 'b'"
    with pytest.raises(UsageError, match=lost):
        hold_out(whole, 0.6, 0)
    masks = replace(whole.train, masks=whole.train.images)  # labels of places in the images
    assert hold_out(replace(whole, train=masks), 0.6, 0).notes == (lost,)


def test_a_split_by_chance_needs_images_of_each_class(tmp_path):
    classes(tmp_path, dict.fromkeys("abcdefghij", 1))
    with pytest.raises(DataErrors, match=r"leaves 2 classes .* without training images: add"):
        load(tmp_path)
