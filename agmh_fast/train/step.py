"""One step of SGD on a batch: forward, the three losses, backward, and the optimiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agmh_fast import functional
from agmh_fast.modules import AGMH
from agmh_fast.ops.hashing import HashingState
from agmh_fast.train.config import PRECISIONS, TrainConfig

_WARM_UP = 3


class Step:
    """step(items, images, rate) trains `model` on a batch, with the optimiser and the options of the settings.

    called: what stands for the model in a forward pass, such as DistributedDataParallel of it; None is the model.
    """

    def __init__(self, model: AGMH, state: HashingState, config: TrainConfig, called: nn.Module | None = None) -> None:
        self.model, self.state, self.config = model, state, config
        self.called = model if called is None else called
        self.device = config.torch_device
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
            fused=config.fused or None,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        self._graphs: dict[torch.Size, _Graph] = {}

    def begin_iteration(self, sampled: Tensor) -> None:
        """Begin an outer iteration of the state: what graphs have captured of the one before is gone."""
        self._graphs.clear()
        self.state.begin_iteration(sampled)

    def __call__(self, items: Tensor, images: Tensor, rate: float, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Embeddings (B, bits) and the pairwise, quantization and dispersion losses (3,), detached.

        items (B,) int64 database positions; images (B, channels, H, W). Gradients are those of `share` times the loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        items = items.to(self.device, non_blocking=True)
        embedding, losses = self._replayed(items, images) if self.config.cuda_graph else self._run(items, images, share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return embedding, losses

    def _run(self, items: Tensor, images: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Put the gradients into the parameters; what a call returns."""
        config = self.config
        with torch.autocast(self.device.type, PRECISIONS[config.precision], enabled=config.precision != "fp32"):
            output = self.called(images)
        embedding, dispersion = output.embedding, output.attention_dispersion
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        loss = functional.asymmetric_hashing_loss(embedding, items, self.state)
        total = loss.total + config.dispersion_weight * dispersion
        # A graph's gradients stay where they are.
        self.optimizer.zero_grad(set_to_none=not config.cuda_graph)
        self.scaler.scale(total if share == 1 else total * share).backward()
        return embedding.detach(), torch.stack([loss.pairwise, loss.quantization, dispersion]).detach()

    def _replayed(self, items: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape not in self._graphs:
            self._graphs[images.shape] = _Graph(self, items, images)
        return self._graphs[images.shape].replay(items, images)


class _Graph:
    """Forward, losses and backward of one batch's shape, captured: the host launches them at once."""

    def __init__(self, step: Step, items: Tensor, images: Tensor) -> None:
        self.items, self.images = items.clone(), images.clone(memory_format=torch.preserve_format)
        kept = [(buffer, buffer.clone()) for buffer in step.model.buffers()]
        side = torch.cuda.Stream(step.device)
        side.wait_stream(torch.cuda.current_stream(step.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step._run(self.items, self.images)
        torch.cuda.current_stream(step.device).wait_stream(side)
        # The trial runs have moved BatchNorm's statistics.
        for buffer, value in kept:
            buffer.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = step._run(self.items, self.images)

    def replay(self, items: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the step returns for this batch."""
        self.items.copy_(items)
        self.images.copy_(images)
        self.graph.replay()
        embedding, losses = self.outputs
        return embedding.clone(), losses.clone()
