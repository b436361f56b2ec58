# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Photographs from beginning to end
#
# A folder of class folders becomes a model that is tested, explained and saved. The images are drawn here, so that this page runs
# anywhere in a minute; with your own, only the first cell changes. It is a notebook: `docs/notebooks/photographs.py`, or the
# `.ipynb` of that name.

# %%
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import resnets

generator = np.random.default_rng(0)


def draw(shape: str) -> Image.Image:
    """A shape somewhere on a noisy background."""
    pixels = generator.integers(0, 90, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    x, y = generator.integers(2, (34, 18)).tolist()
    color = tuple(generator.integers(130, 255, 3).tolist())
    if shape == "circle":
        pen.ellipse((x, y, x + 26, y + 26), fill=color)
    elif shape == "square":
        pen.rectangle((x + 2, y + 2, x + 24, y + 24), fill=color)
    else:
        pen.polygon([(x, y + 26), (x + 26, y + 26), (x + 13, y)], fill=color)
    return image


for shape in ("circle", "square", "triangle"):
    folder = Path("photos", shape)
    folder.mkdir(parents=True)
    for number in range(120):
        draw(shape).save(folder / f"{number}.jpg")

first = [np.asarray(Image.open(f"photos/{s}/0.jpg")) for s in ("circle", "square", "triangle")]
Image.fromarray(np.hstack(first))

# %% [markdown]
# ## What is in the folder
#
# Every file is opened; what is broken, skipped or assumed is listed.

# %%
for key, value in resnets.data_info("photos").items():
    print(f"{key}: {value}")

# %% [markdown]
# ## Train
#
# `plan` says what a training would do, and nothing is trained yet. Here the network and the input side are small, since a processor of
# two cores runs this page; left out, both are chosen from the data.

# %%
plan = resnets.plan("photos", model="resnet8", size=32, epochs=12, seed=0, device="cpu")
print(
    plan.recipe.optimizer, plan.recipe.lr, plan.recipe.batch, "on", len(plan.source.train), "images"
)

# %%
outcome = resnets.train(plan, run="runs/photos")
print(outcome.result.headline())
sorted(path.name for path in outcome.run.iterdir())

# %% [markdown]
# `report.html` in that folder has the same with pictures; `resnets resume` continues a run that was stopped.
#
# ## Test
#
# The split was made by chance and kept: 80 % for training, 10 % for validation, 10 % for the test. 36 test images say little, and the
# interval says how little.

# %%
result = resnets.evaluate(outcome.run, "photos")
low, high = result.interval
print(f"accuracy {result.top1:.1%}, at 95 % {low:.1%} to {high:.1%}, {result.images} images")
for row in result.per_class():
    print(row)

# %% [markdown]
# New images, which no split has: as many as we like to draw. The interval is narrower.

# %%
for shape in ("circle", "square", "triangle"):
    folder = Path("new", shape)
    folder.mkdir(parents=True)
    for number in range(100):
        draw(shape).save(folder / f"{number}.png")

fresh = resnets.evaluate(outcome.run, "new", split="all")
print(fresh.headline())

# %% [markdown]
# ## Use
#
# A model takes paths, bytes, PIL images, arrays and tensors.

# %%
model = resnets.load(outcome.run)
answer = model.predict(draw("triangle"))
for name, probability in zip(answer.classes, answer.probabilities, strict=True):
    print(f"{name:9} {probability:.3f}")

# %% [markdown]
# ## Explain
#
# Which pixels support the prediction: Grad-CAM, and a check that the map depends on what was learned.

# %%
resnets.explain(outcome.run, "new/triangle/0.png", out="why")
picture = next(path for path in sorted(Path("why").rglob("*")) if path.suffix in {".png", ".jpg"})
Image.open(picture)
