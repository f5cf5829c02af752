"""The narrow backbone for small images."""

from __future__ import annotations

import pytest
import torch

from agmh_fast import InputError
from agmh_fast.modules.small import SmallResNet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (33, 17), (1, 1)])
def test_output_is_an_eighth_of_the_image(channels, size):
    net = SmallResNet(channels, (4, 6, 8, 10))
    y = net(torch.randn(2, channels, *size))
    assert y.shape == (2, net.out_channels, *[-(-side // 8) for side in size])
    assert net.out_channels == 10
    assert (y >= 0).all()


def test_every_parameter_has_a_gradient():
    net = SmallResNet()
    net(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"widths": (4, 4, 4)}, {"widths": (4, 4, 0, 4)}])
def test_bad_sizes_are_refused(arguments):
    with pytest.raises(InputError):
        SmallResNet(**arguments)
