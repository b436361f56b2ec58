import torch
from torch import nn

from resnets import models
from resnets.models.sync_batch_norm import convert_sync_batch_norm
from resnets.training.precise_bn import precise_bn


def test_statistics_of_known_inputs():
    norm = nn.BatchNorm1d(2).train()
    batches = [torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 4.0]]), torch.tensor([[3.0, 4.0]])]
    precise_bn(norm, batches)
    # 1, 2, 6, 3: mean 3, squares of deviations 4 + 1 + 9 + 0; 0, 0, 4, 4: mean 2, 4 times 4
    assert norm.running_mean.tolist() == [3, 2]
    assert not norm._forward_pre_hooks
    torch.testing.assert_close(norm.running_var, torch.tensor([14 / 3, 16 / 3]))


def test_what_reaches_the_second_layer_is_normalised_by_the_batch():
    net = nn.Sequential(nn.BatchNorm1d(1, eps=0), nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[1].weight, 3.0)
    nn.init.constant_(net[0].bias, 2.0)
    # Both batches become -1, 1 whatever their mean and width; the second layer gets 3, 9 twice.
    precise_bn(net, [torch.tensor([[0.0], [2.0]]), torch.tensor([[90.0], [110.0]])])
    assert net[0].running_mean.item() == 50.5
    torch.testing.assert_close(net[2].running_mean, torch.tensor([6.0]))
    torch.testing.assert_close(net[2].running_var, torch.tensor([4 * 9 / 3]))


def test_one_batch_gives_what_training_on_it_stores():
    torch.manual_seed(0)
    net = models.create("resnet8", classes=3).to(memory_format=torch.channels_last)
    reference = models.create("resnet8", classes=3)
    reference.load_state_dict(net.state_dict())
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images = 5 + torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    precise_bn(net, [images])
    reference.train()(images)
    for name, value in reference.named_buffers():
        if name.rpartition(".")[2] != "num_batches_tracked":
            torch.testing.assert_close(net.get_buffer(name), value, rtol=1e-4, atol=1e-4)
    assert not net.training


def test_dropout_is_off_and_weights_stay():
    net = convert_sync_batch_norm(nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(1))).train()
    precise_bn(net, [torch.full((4, 1), 7.0), torch.full((4, 1), 9.0)])
    assert net[1].running_mean.item() == 8
    torch.testing.assert_close(net[1].running_var, torch.tensor([8 / 7]))
    assert (net[1].weight.item(), net[1].bias.item()) == (1, 0)
    assert net[1].num_batches_tracked.item() == 0
    kept = net.state_dict()
    precise_bn(net, [])
    torch.testing.assert_close(net.state_dict(), kept)


def test_a_mean_far_from_zero_costs_no_digits():
    norm = nn.BatchNorm2d(1)
    draw = torch.Generator().manual_seed(0)
    batches = [1000 + torch.randn(8, 1, 9, 9, generator=draw) for _ in range(5)]
    precise_bn(norm, batches)
    values = torch.cat(batches).double()
    torch.testing.assert_close(norm.running_var.double(), values.var()[None], rtol=1e-4, atol=0)
