"""A narrow residual backbone for small or grey images, for which an ImageNet ResNet is too slow and too deep."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from agmh_fast.errors import require, require_int


class SmallResNet(nn.Module):
    """Four basic residual blocks after a 5×5 stem of stride 2: (B, in_channels, H, W) -> (B, out_channels, H/8, W/8).

    widths: channels of the blocks, the first also the stem's; blocks two and three halve the image, the others keep it,
    as AGMH's ResNet keeps it in its last stage. Raises InputError for a number that is no positive integer.
    """

    def __init__(self, in_channels: int = 1, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.in_channels = require_int("in_channels", in_channels, 1)
        require(len(widths) == 4, f"widths must be the channels of four blocks, got {len(widths)}")
        first, second, third, last = (require_int("widths", width, 1) for width in widths)
        self.out_channels = last
        self.conv = nn.Conv2d(in_channels, first, 5, stride=2, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            BasicBlock(first, first),
            BasicBlock(first, second, 2),
            BasicBlock(second, third, 2),
            BasicBlock(third, last),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, out_channels, H/8, W/8) of images (B, in_channels, H, W)."""
        return self.blocks(self.relu(self.bn(self.conv(images))))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, 1×1 where shapes differ. Source: He et al., CVPR 2016."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))
