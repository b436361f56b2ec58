from dataclasses import replace

import pytest
import torch
from timm.optim import Lamb, Lars
from torch import nn

from resnets import models
from resnets.config.families import get_arch
from resnets.config.recipe import Recipe
from resnets.training import optim

RECIPE = Recipe(model="resnet8", lr=0.02, weight_decay=0.05, decay_all=False)
OPTIMIZERS = ["sgd", "adamw", "lamb", "lars", "muon"]


def network(name="resnet8", **changes):
    torch.manual_seed(0)
    made = models.create(name, classes=3, **changes)
    if changes.get("channels") is None:
        made = made.to(memory_format=torch.channels_last)
    return made


def gradients(net, step):
    draw = torch.Generator().manual_seed(step)
    for p in net.parameters():
        if p.requires_grad:
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=draw))


def train(net, optimizer, steps):
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (step + 1) * group["scale"]
        gradients(net, step)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def names_in(net, group):
    inside = {id(p) for p in group["params"]}
    return {name for name, p in net.named_parameters() if id(p) in inside}


def test_vectors_have_no_decay_unless_all_have():
    net = network()
    decayed, exempt = optim.parameter_groups(net, RECIPE)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert {"bn1.weight", "fc.bias", "layer2.0.bn1.bias"} <= names_in(net, exempt)
    (everything,) = optim.parameter_groups(net, replace(RECIPE, decay_all=True))
    assert names_in(net, everything) == {name for name, _ in net.named_parameters()}
    assert everything["weight_decay"] == 0.05


def test_rates_fall_towards_the_stem():
    scale = optim.lr_scales(network("preresnet20"), 0.5)
    assert scale["fc.weight"] == scale["fc.bias"] == 1
    assert scale["final.bn.weight"] == scale["layer3.2.conv2.weight"] == 1 / 2
    assert scale["layer2.0.conv1.weight"] == 1 / 4
    assert scale["layer1.0.conv1.weight"] == 1 / 8
    assert scale["conv1.weight"] == scale["bn1.bias"] == 1 / 16


def test_rates_of_densenet_mlp_and_transformer():
    dense = optim.lr_scales(network("densenet121"), 0.5)
    assert dense["classifier.weight"] == 1
    assert dense["features.norm5.weight"] == 1 / 2
    assert dense["features.denseblock4.denselayer1.conv1.weight"] == 1 / 2
    assert dense["features.transition3.conv.weight"] == 1 / 4
    assert dense["features.denseblock1.denselayer6.norm1.weight"] == 1 / 16
    assert dense["features.conv0.weight"] == 1 / 32
    mlp = network("mlp_resnet", channels=5)
    units = len(mlp.units)
    scale = optim.lr_scales(mlp, 0.5)
    assert (scale["fc.bias"], scale["final.0.weight"]) == (1, 1 / 2)
    assert scale["units.0.linear1.weight"] == 0.5**units
    assert scale["first.weight"] == 0.5 ** (units + 1)
    vit = network(replace(get_arch("vit_s_16"), blocks=2, width=64, heads=1, hidden=64, size=32))
    scale = optim.lr_scales(vit, 0.5)
    assert (scale["fc.weight"], scale["norm.bias"]) == (1, 1 / 2)
    assert scale["blocks.1.mlp.linear1.weight"] == 1 / 2
    assert scale["blocks.0.attention.mix.qkv.weight"] == 1 / 4
    assert scale["class_token"] == scale["positions"] == scale["patches.weight"] == 1 / 8


def test_groups_carry_the_scale_of_their_rate():
    net = network()
    groups = optim.build(net, replace(RECIPE, layer_decay=0.5, decay_all=True)).param_groups
    assert sorted(g["scale"] for g in groups) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert all(g["lr"] == 0.02 * g["scale"] for g in groups)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimiser_goes_on_bit_for_bit(name):
    recipe = replace(RECIPE, optimizer=name, nesterov=True)
    whole = network()
    expected = train(whole, optim.build(whole, recipe), range(6))

    first = network()
    optimizer = optim.build(first, recipe)
    train(first, optimizer, range(3))
    saved = {
        f"{key}/{slot}": value.clone().contiguous()
        for key, p in first.named_parameters()
        for slot, value in optimizer.state[p].items()
    }
    assert all(isinstance(value, torch.Tensor) for value in saved.values())

    second = network()
    second.load_state_dict(first.state_dict())
    optimizer = optim.build(second, recipe)
    parameters = dict(second.named_parameters())
    for key, value in saved.items():
        name, slot = key.split("/")
        p = parameters[name]
        own = torch.empty_like(p).copy_(value) if value.shape == p.shape else value
        optimizer.state[p][slot] = own
    for ours, theirs in zip(train(second, optimizer, range(3, 6)), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lamb_is_timms(decay):
    recipe = replace(RECIPE, optimizer="lamb", weight_decay=decay, betas=(0.8, 0.99))
    ours, theirs = network(), network()
    reference = Lamb(
        [
            {**g, "params": list(p)}
            for g in optim.parameter_groups(theirs, recipe)
            for p in [g.pop("params")]
        ],
        betas=(0.8, 0.99),
        eps=1e-6,
        max_grad_norm=None,
    )
    torch.testing.assert_close(
        train(ours, optim.build(ours, recipe), range(5)), train(theirs, reference, range(5))
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lars_is_timms(decay, nesterov):
    recipe = replace(RECIPE, optimizer="lars", weight_decay=decay, nesterov=nesterov)
    ours, theirs = network(), network()
    reference = Lars(optim.parameter_groups(theirs, recipe), momentum=0.9, nesterov=nesterov)
    torch.testing.assert_close(
        train(ours, optim.build(ours, recipe), range(5)), train(theirs, reference, range(5))
    )


def test_layerwise_steps_of_zero_weights_and_zero_gradients():
    net = network()
    nn.init.zeros_(net.fc.weight)
    for name in ("lamb", "lars"):
        optimizer = optim.build(net, replace(RECIPE, optimizer=name))
        gradients(net, 0)
        net.conv1.weight.grad.zero_()
        optimizer.step()
        assert all(p.isfinite().all() for p in net.parameters())
    assert net.fc.weight.abs().min() > 0


def test_muon_moves_the_filters_as_torchs_muon_and_the_rest_as_adamw():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon to compare with")
    recipe = replace(RECIPE, optimizer="muon", momentum=0.95, nesterov=True)
    ours, theirs = network(), network()
    moved = train(ours, optim.build(ours, recipe), range(3))
    filters = [p for n, p in theirs.named_parameters() if p.ndim == 4]
    matrices = [p.detach().flatten(1).contiguous().requires_grad_() for p in filters]
    rest = [p for p in theirs.parameters() if p.ndim < 4]
    muon = torch.optim.Muon(
        matrices, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.05 if p.ndim > 1 else 0.0} for p in rest]
    )
    for step in range(3):
        gradients(theirs, step)
        for matrix, p in zip(matrices, filters, strict=True):
            matrix.grad = p.grad.flatten(1)
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (step + 1)
            optimizer.step()
    with torch.no_grad():
        for matrix, p in zip(matrices, filters, strict=True):
            p.copy_(matrix.view(p.shape))
    expected = list(theirs.parameters())
    torch.testing.assert_close(moved, [p.detach() for p in expected], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_muons_matrices_are_orthogonal_nearly(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(optim.orthogonal(x))
    assert values.max() < 1.3
    assert values[: 3 * len(values) // 4].min() > 0.5
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = optim.orthogonal(x).flatten()
    assert nn.functional.cosine_similarity(y, (u @ v).flatten(), dim=0) > 0.95


def test_a_weight_that_is_frozen_at_first_starts_as_if_it_were_new():
    net, fresh = network(), network()
    recipe = replace(RECIPE, optimizer="lamb", decay_all=True)
    optimizer = optim.build(net, recipe)
    optim.set_training_mode(net, True, False)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    before = net.conv1.weight.clone()
    train(net, optimizer, range(2))
    assert torch.equal(net.conv1.weight, before)
    optim.set_training_mode(net, False, False)
    assert all(p.requires_grad for p in net.parameters())
    train(net, optimizer, [0])
    train(fresh, optim.build(fresh, recipe), [0])
    torch.testing.assert_close(net.conv1.weight, fresh.conv1.weight)


def test_frozen_normalisation_stays_in_evaluation_mode():
    net = network()
    optim.set_training_mode(net, False, True)
    assert net.training
    assert not net.bn1.training
    optim.set_training_mode(net, False, False)
    assert net.bn1.training
