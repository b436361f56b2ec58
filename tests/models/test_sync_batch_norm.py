import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from resnets import models
from resnets.models.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm

SHARES = {2: [5, 3], 4: [1, 4, 2, 3]}  # images of each rank


def layers():
    torch.manual_seed(0)
    # No bias before a norm, and a shift before the ReLU: else gradients are 0, and noise compared.
    conv = nn.Conv2d(3, 6, 3, bias=False)
    net = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    for p in (*net[1].parameters(), *net[3].parameters()):
        nn.init.normal_(p)
    net[3].momentum = None
    return net.to(memory_format=torch.channels_last)


def step(net, images, weight):
    """Output, gradients of the sum of `weight` times the output, and statistics of two steps."""
    for _ in range(2):
        net.zero_grad()
        images = images.detach().requires_grad_()
        out = net(images)
        (out * weight).sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    return out.detach(), images.grad, gradients, [b.clone() for b in net.buffers()]


def batch(n):
    draw = torch.Generator().manual_seed(1)
    images = 3 + torch.randn(n, 3, 6, 7, generator=draw)
    return images, torch.randn(n, 6, 4, 5, generator=draw)


def work(rank, folder, shares):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares)
    )
    mine = [part.split(shares)[rank] for part in batch(sum(shares))]
    net = convert_sync_batch_norm(layers())
    result = step(net, *mine)
    for gradient in result[2]:
        dist.all_reduce(gradient)
    with torch.autocast("cpu", torch.bfloat16):
        halves = net(mine[0])
        halves.float().sum().backward()
    assert halves.dtype == torch.bfloat16
    net.eval()
    torch.save((result, net(mine[0])), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_are_one_process_with_the_whole_batch(ranks, tmp_path):
    shares = SHARES[ranks]
    torch.multiprocessing.spawn(work, (str(tmp_path), shares), ranks)
    saved = [torch.load(tmp_path / str(rank)) for rank in range(ranks)]
    whole = layers()
    output, slope, gradients, buffers = step(whole, *batch(sum(shares)))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([s[0][0] for s in saved]), output, **close)
    torch.testing.assert_close(torch.cat([s[0][1] for s in saved]), slope, **close)
    for ours, _ in saved:
        for mine, theirs in zip(ours[2], gradients, strict=True):
            scale = theirs.abs().max()  # hundreds of values are added and may cancel
            torch.testing.assert_close(mine / scale, theirs / scale, **close)
        torch.testing.assert_close(ours[3], buffers, **close)


def test_every_normalisation_is_converted_and_nothing_else_changes():
    net = models.create("resnet8", classes=3)
    before = copy.deepcopy(net.state_dict())
    parameters = list(net.parameters())
    assert convert_sync_batch_norm(net) is net
    kinds = {type(m) for name, m in net.named_modules() if "bn" in name.rpartition(".")[2]}
    assert kinds == {SyncBatchNorm}
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert net.state_dict().keys() == before.keys()
    net.load_state_dict(before)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_process_group_it_is_the_plain_one(training):
    plain, synchronous = layers().train(training), convert_sync_batch_norm(layers()).train(training)
    images, weight = batch(4)
    for ours, theirs in zip(
        step(synchronous, images, weight), step(plain, images, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
