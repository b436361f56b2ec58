"""The way of a person with a folder of photographs, some of them broken: real JPEG files."""

import json
import shutil

import pytest

from resnets.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BROKEN = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><title>404</title>",
    "cut.jpg": None,  # the first half of a photograph
    "noise.png": bytes(range(256)) * 20,
    "text.jpeg": b"no photograph",
}


@pytest.fixture
def photos(shared, tmp_path):
    """200 photographs in four made-up classes, and 20 broken files among them."""
    files = sorted((shared / "data" / "imagenet_sample").glob("*.[jJ]*"))
    assert len(files) == 200
    for number, file in enumerate(files):
        folder = tmp_path / "photos" / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    for name in "abcd":
        for broken, data in BROKEN.items():
            whole = files[0].read_bytes()
            (tmp_path / "photos" / name / broken).write_bytes(
                whole[: len(whole) // 2] if data is None else data
            )
    return tmp_path / "photos"


def test_trained_evaluated_predicted_and_each_broken_file_named(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def cli(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        return caught.value.code or 0, *capsys.readouterr()

    code, _, err = cli("train", photos, "--epochs", "2", "--run", "run")
    assert code == 3
    assert "20 of 220" in err
    assert len(err.strip().splitlines()) <= 3

    allowed = ("--set", "max_unreadable=0.1")
    code, _, err = cli("train", photos, "--epochs", "2", "--run", "run", *allowed)
    assert code == 0, err
    names = {f"{folder}/{name}" for folder in "abcd" for name in BROKEN}
    listed = (tmp_path / "run" / "bad_files.csv").read_text()
    assert all(name in err and name in listed for name in names)
    assert len((tmp_path / "run" / "split.csv").read_text().splitlines()) == 201

    code, out, err = cli("evaluate", "run", photos, "--max-unreadable", "0.1", "--json")
    assert code == 0
    assert json.loads(out)["images"] == 20
    assert all(name in err for name in names)

    code, out, err = cli("predict", "run", photos / "a", "--json")
    rows = json.loads(out)
    assert code == 3
    assert len(rows) == 55
    assert sum(row["problem"] is not None for row in rows) == len(BROKEN)
    assert all(f"a/{name}" in err for name in BROKEN)
