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
# # Degradation and its cure
#
# A deeper plain network can have a higher error on the very images that it is trained on. The 2015 paper starts from this, and so does
# this page: plain networks of 20 and 56 layers, and a residual one of 56, on digits of 12 pixels, in a minute or two on two cores. It is a notebook:
# `docs/notebooks/degradation.py`, or the `.ipynb` of that name.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

import resnets
from resnets.config.recipe import Augment
from resnets.config.recipes import digits

recipe = replace(
    digits(), size=12, steps=110, ema=0.0, augment=Augment(), evaluations=5, precision="float32"
)

# %% [markdown]
# ## Before training: the gradient
#
# The norm of the gradient at each layer's weights, for one batch, in networks with fresh weights. In a plain network it grows from layer to
# layer on its way back; with shortcuts far less.

# %%
names = ("plain20", "plain56", "resnet56")
figure, axes = plt.subplots(figsize=(6, 3))
for name in names:
    analysis = resnets.analyze("gradients", name, batch=64, device="cpu")
    norms = [row["weight"] for row in analysis.rows[:-1]]
    line = "-" if name.startswith("res") else "--"
    axes.plot([k / len(norms) for k in range(len(norms))], norms, line, label=name)
axes.set(yscale="log", xlabel="depth (fraction)", ylabel="gradient norm")
_ = axes.legend(frameon=False)

# %% [markdown]
# ## Training
#
# The same recipe for all: the same images in the same order, 110 steps, the same rate.

# %%
errors, curves = {}, {}
for name in names:
    plan = resnets.plan("digits", model=name, recipe=recipe, device="cpu")
    progress = []
    outcome = resnets.train(plan, run=f"runs/{name}", on_progress=progress.append)
    curves[name] = [(p.step, p.train_error) for p in progress if p.train_error is not None]
    errors[name] = (curves[name][-1][1], outcome.result.error)
    print(f"{name:9} training error {errors[name][0]:6.1%}   test error {errors[name][1]:6.1%}")

# %%
figure, axes = plt.subplots(figsize=(6, 3))
for name in names:
    steps, values = zip(*curves[name], strict=True)
    line = "-" if name.startswith("res") else "--"
    axes.plot(steps, [100 * value for value in values], line, label=name)
axes.set(xlabel="step", ylabel="training error (%)")
_ = axes.legend(frameon=False)

# %% [markdown]
# ## What this shows, and what not
#
# 56 plain layers are far worse than 20, in training too, so this is no overfitting. The residual twin has the same layers and the same
# number of weights, and learns. That is degradation and its cure. That *more* residual layers are *better* takes the
# length of the paper's training: [Table 6](../papers/resnet-2015.md#table-6-residual-networks-on-cifar-10).

# %%
assert errors["plain56"][0] > errors["plain20"][0] + 0.2
assert errors["plain56"][0] > errors["resnet56"][0] + 0.2
