"""The kernels against the layers that they stand for, in float64."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import Join, ResNetArch
from resnets.models import build
from resnets.models.accelerate import accelerate
from resnets.ops import cpu_fused
from resnets.ops.cpu_fused import Plus, run_layers

ARCH = ResNetArch(
    blocks=(2, 1), widths=(16, 32), shortcut="A", stem="cifar", stem_width=16, classes=5, size=16
)
NHWC = torch.channels_last
needs_kernels = pytest.mark.skipif(
    cpu_fused.library() is None, reason="no AVX512-BF16 or no compiler"
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def image(n: int, c: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(n, c, size, size).to(dtype).to(memory_format=NHWC).requires_grad_()


def layers(c_in: int, c_out: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution with weights that bfloat16 holds, and a normalisation that is not 1 and 0."""
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
    conv.weight.data = conv.weight.data.bfloat16().float()
    norm = nn.BatchNorm2d(c_out)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return conv, norm


def error(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm()).detach())


def called(y: Tensor) -> bool:
    return "ConvNormAct" in str(y.grad_fn)


def agree(
    modules: list[nn.Module], x: Tensor, h: Tensor | None, relu: bool, limit: float
) -> nn.Module:
    """Values and all gradients of f(h + F(x)); gives the float64 twin of the modules."""
    plus = [] if h is None else [Plus(h)]
    with torch.autocast("cpu", torch.bfloat16):
        y = run_layers([*modules, *plus, *[nn.ReLU()] * relu], x)
    assert called(y)
    twin = copy.deepcopy(nn.Sequential(*modules)).double()
    for norm in (m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
    inputs = [t.detach().double().requires_grad_() for t in (x, h) if t is not None]
    exact = twin(inputs[0]) + (inputs[1] if h is not None else 0)
    if relu:
        # Where the sum is nearly 0, rounding decides on which side of the ReLU it is.
        exact = exact * (y > 0)
    dy = torch.randn_like(y)
    y.backward(dy)
    exact.backward(dy.double())
    assert error(y, exact) < limit
    for found, reference in zip((t for t in (x, h) if t is not None), inputs, strict=True):
        assert error(found.grad, reference.grad) < limit
    for found, reference in zip(
        nn.Sequential(*modules).parameters(), twin.parameters(), strict=True
    ):
        assert found.grad.dtype == torch.float32
        assert error(found.grad, reference.grad) < limit
    return twin


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_normalisation(dtype: torch.dtype, limit: float, plus: bool, relu: bool) -> None:
    # 7 * 5 * 5 rows: neither a multiple of 8 nor of the number of threads
    x, h = image(7, 48, 5, dtype), image(7, 48, 5, dtype) if plus else None
    _, norm = layers(16, 48, 1)
    agree([norm], x, h, relu, limit)


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out"), [(16, 16), (16, 32), (32, 16), (64, 32)])
def test_convolution(c_in: int, c_out: int, stride: int, relu: bool) -> None:
    x, h = image(3, c_in, 16), image(3, c_out, 16 // stride)
    agree(list(layers(c_in, c_out, stride)), x, h, relu, 6e-3)


@needs_kernels
def test_oblong_images() -> None:
    x = torch.randn(2, 16, 6, 32).bfloat16().to(memory_format=NHWC).requires_grad_()
    agree(list(layers(16, 32, 2)), x, None, False, 6e-3)


@needs_kernels
def test_the_input_is_also_added() -> None:
    """The two gradients of x are summed in one place, and once."""
    x = image(2, 16, 8)
    conv, norm = layers(16, 16, 1)
    weight = torch.randn(2, 16, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        (run_layers([conv, norm, Plus(x)], x) * weight).sum().backward()
    exact = x.detach().double().requires_grad_()
    y = exact + norm.double()(conv.double()(exact))
    (y * weight.double()).sum().backward()
    assert error(x.grad, exact.grad) < 5e-3


@needs_kernels
@pytest.mark.parametrize("momentum", [0.1, 0.0])
def test_running_statistics_are_those_of_torch(momentum: float) -> None:
    x = image(4, 16, 8, torch.float32)
    ours, torchs = (nn.BatchNorm2d(16, momentum=momentum) for _ in range(2))
    for _ in range(3):
        assert called(run_layers([ours], x))
        torchs(x)
    assert ours.num_batches_tracked == torchs.num_batches_tracked == 3
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-5, atol=1e-7)


@needs_kernels
def test_variance_far_from_zero() -> None:
    """In float32 the mean of the squares of 1000 +- 1 knows the variance to 10 %."""
    x = 1000 + torch.randn(8, 16, 32, 32).to(memory_format=NHWC)
    norm = nn.BatchNorm2d(16, momentum=1.0)
    run_layers([norm], x)
    exact = x.double().var((0, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), exact, rtol=1e-5, atol=0)


@needs_kernels
def test_not_a_number_stays() -> None:
    x = image(2, 16, 8, torch.float32)
    x.data[0, 3, 1, 1] = float("nan")
    y = run_layers([nn.BatchNorm2d(16), nn.ReLU()], x)
    assert y[:, 3].isnan().all()
    assert not y[:, :3].isnan().any()


@needs_kernels
def test_same_bits_each_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x, (conv, norm) = image(5, 32, 16), layers(32, 32, 1)
        found = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                y = run_layers([conv, norm, nn.ReLU()], x)
            found.append([y, *torch.autograd.grad(y.sum(), [x, conv.weight, norm.weight])])
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


def test_layers_are_called_where_kernels_do_not_fit() -> None:
    x = image(2, 16, 8, torch.float32)
    norm = nn.BatchNorm2d(16)

    class Synchronised(nn.BatchNorm2d):
        pass

    refused = [
        (norm.eval(), x),
        (nn.BatchNorm2d(16), x.detach().contiguous().requires_grad_()),
        (nn.BatchNorm2d(16).double(), x.detach().double().requires_grad_()),
        (nn.BatchNorm2d(16, momentum=None), x),
        (nn.BatchNorm2d(24), image(2, 24, 8, torch.float32)),
        (Synchronised(16), x),
        (nn.GroupNorm(4, 16), x),
    ]
    for module, given in refused:
        y = run_layers([module, nn.ReLU()], given)
        assert not called(y)
        assert torch.equal(y, copy.deepcopy(module)(given).relu())
    conv, norm = layers(16, 16, 1)
    assert not cpu_fused.fits(norm, x, conv)  # float32


def test_a_sum_of_another_type_is_left_to_torch() -> None:
    x, h = image(2, 16, 8), image(2, 16, 8, torch.float32)
    y = run_layers([nn.BatchNorm2d(16), Plus(h)], x)
    assert y.dtype == torch.float32


def test_test_time_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    network = accelerated(ARCH).eval()
    x = image(2, 3, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
        monkeypatch.setattr(cpu_fused, "library", lambda: None)
        assert torch.equal(network(x), y)


def accelerated(arch: ResNetArch, activation_checkpointing: int = 0) -> nn.Module:
    network = build(arch, activation_checkpointing=activation_checkpointing).to(memory_format=NHWC)
    accelerate(network)
    return network


def build_like(network: nn.Module, arch: ResNetArch) -> nn.Module:
    """A network with the same weights that was not accelerated."""
    twin = build(arch).to(memory_format=NHWC)
    twin.load_state_dict(network.state_dict())
    return twin


def gradients(network: nn.Module, x: Tensor, bfloat16: bool) -> tuple[Tensor, Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = F.cross_entropy(network(x).float(), torch.arange(len(x)) % 5)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("order", ["post", "bn_after_add", "relu_before_add", "pre"])
def test_network_in_float32(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = accelerated(replace(ARCH, order=order))
    x = image(4, 3, 16, torch.float32)
    loss, gradient = gradients(network, x, False)
    monkeypatch.setattr(cpu_fused, "library", lambda: None)
    plain_loss, plain = gradients(network, x, False)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    assert error(gradient, plain.double()) < 1e-4


@pytest.mark.parametrize("order", ["post", "pre"])
def test_random_numbers_are_drawn_in_the_same_order(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout of the shortcut, dropout and drop path of the branch, with and without kernels."""
    arch = replace(ARCH, order=order, join=Join(kind="dropout"), dropout=0.3, drop_path=0.5)
    network, x = accelerated(arch), image(4, 3, 16, torch.float32)
    twin = build_like(network, arch)
    torch.manual_seed(1)
    loss, gradient = gradients(network, x, False)
    drawn = torch.rand(1)
    monkeypatch.setattr(cpu_fused, "library", lambda: None)
    torch.manual_seed(1)
    plain_loss, plain = gradients(twin, x, False)
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    assert error(gradient, plain.double()) < 1e-4


def test_network_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further from float64 than the plain layers are."""
    network = accelerated(ARCH)
    x = image(8, 3, 16, torch.float32)
    loss, gradient = gradients(network, x, True)
    monkeypatch.setattr(cpu_fused, "library", lambda: None)
    plain_loss, plain = gradients(network, x, True)
    exact_loss, exact = gradients(network.double(), x.double(), False)
    assert abs(loss - exact_loss) < max(0.02, 2 * abs(plain_loss - exact_loss))
    assert error(gradient, exact) < 1.5 * error(plain, exact)


def test_recomputed_units_are_the_same() -> None:
    network = accelerated(ARCH)
    twin = accelerated(ARCH, activation_checkpointing=1)
    twin.load_state_dict(network.state_dict())
    x = image(4, 3, 16, torch.float32)
    assert torch.equal(gradients(network, x, True)[1], gradients(twin, x, True)[1])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


@needs_kernels
def test_built_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert set(cpu_fused.library.__wrapped__() or {}) == {
        (name, dtype)
        for name in ("forward", "backward")
        for dtype in (torch.float32, torch.bfloat16)
    }
    [built] = (tmp_path / "resnets" / "kernels").glob("*.so")
    monkeypatch.setenv("PATH", "")
    assert cpu_fused.library.__wrapped__() is not None
    built.unlink()
    assert cpu_fused.library.__wrapped__() is None  # no compiler
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = tmp_path / "other" / "resnets" / "kernels"
    other.mkdir(parents=True, mode=0o700)
    (other / built.name).write_bytes(b"cut short")
    assert cpu_fused.library.__wrapped__() is None


@needs_kernels
def test_a_copy_computes_with_its_own_weights() -> None:
    network = accelerated(ARCH)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert twin(image(4, 3, 16, torch.float32)).abs().max() > 0


@needs_kernels
def test_only_an_accelerated_network_is_fused() -> None:
    x = image(4, 3, 16, torch.float32)
    fused_calls = []
    network = build(ARCH).to(memory_format=NHWC)
    for module in network.modules():
        module.register_forward_hook(lambda module, _, y: fused_calls.append(called(y)))
    network(x)
    assert not any(fused_calls)
    accelerate(network)
    network(x)
    assert any(fused_calls)
