"""Image files for tests."""

from PIL import Image


def picture(path, shade=100, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 2 * shade % 256, 30)).save(path)
    return path


def classes(root, counts):
    """A folder with `counts[name]` pictures in each class folder, no two alike."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(root / name / f"{i:03}.png", shade=i % 250)
    return root
