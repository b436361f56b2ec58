"""The residual network for tables of Gorishniy et al. 2021, arXiv 2106.11959, section 3.2."""

from __future__ import annotations

from torch import Tensor, nn

from resnets.config.arch import MlpArch, VitArch
from resnets.models.blocks import PreActivation, make_stage


class Mlp(nn.Module):
    """Shapes: (N, channels) -> (N, classes)."""

    def __init__(self, arch: MlpArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.levels = {"units": (arch.width, 1)}
        self.first = nn.Linear(arch.channels, arch.width)
        self.units = make_stage(
            {str(i): make_unit(arch) for i in range(arch.blocks)}, activation_checkpointing
        )
        self.final = nn.Sequential(nn.BatchNorm1d(arch.width), nn.ReLU())
        self.fc = nn.Linear(arch.width, arch.classes)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """(N, channels) -> {"units": (N, width)}."""
        return {"units": self.final(self.units(self.first(x)))}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)["units"])


def make_unit(arch: MlpArch) -> PreActivation:
    """x + Dropout(Linear(Dropout(ReLU(Linear(BatchNorm(x))))))."""
    return PreActivation(nn.BatchNorm1d(arch.width), feed_forward(arch, nn.ReLU()), nn.Identity())


def feed_forward(arch: MlpArch | VitArch, activation: nn.Module) -> dict[str, nn.Module]:
    """Linear, activation, dropout, linear, dropout: (..., width) -> (..., width)."""
    return {
        "linear1": nn.Linear(arch.width, arch.hidden),
        "activation": activation,
        "dropout1": nn.Dropout(arch.dropout),
        "linear2": nn.Linear(arch.hidden, arch.width),
        "dropout2": nn.Dropout(arch.dropout),
    }
