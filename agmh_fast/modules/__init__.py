"""nn.Modules built on agmh_fast.functional."""

from agmh_fast.modules.agmh import AGMH, AGMHOutput
from agmh_fast.modules.attention import StepwiseExternalAttention
from agmh_fast.modules.backbone import ResNetFeatures
from agmh_fast.modules.descriptor import DescriptorGroup
from agmh_fast.modules.small import SmallResNet
from agmh_fast.modules.synced import synchronize_statistics

__all__ = [
    "AGMH",
    "AGMHOutput",
    "DescriptorGroup",
    "ResNetFeatures",
    "SmallResNet",
    "StepwiseExternalAttention",
    "synchronize_statistics",
]
