"""What a dataset is to the trainer: two splits of images that can be loaded in any order, by any number of workers.

A batch is a function of the items in it and, for a random view, of (seed, epoch, batch number): not of the process
that loads it nor of what was loaded before. A run that is stopped and resumed therefore sees the images it would have
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.shares import share


class ImageSet(Protocol):
    """One split. `labels` is (N,) int64 class indices or (N, classes) multi-hot; an item is a position 0..N-1."""

    labels: Tensor

    def __len__(self) -> int: ...

    def load(self, items: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images (B, C, H, W) float32, normalised, of `items` (B,) int64, on the CPU.

        With a generator each image is a random augmented view drawn from that generator alone; with None the view is
        the deterministic one. Must be safe to call in a worker process.
        """
        ...


@runtime_checkable
class PixelSet(ImageSet, Protocol):
    """An `ImageSet` whose images are a quarter of the size until they are normalised: that is how workers send them.

    `load(items, generator)[part]` is `finish(pixels(items, part, generator))`.
    """

    def pixels(self, items: Tensor, part: slice, generator: torch.Generator | None) -> Tensor:
        """Views (b, C, H, W) uint8 of items[part], drawn as in the batch of all `items`, of which no other is read."""
        ...

    def finish(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """Normalised images float32 on `device`, None for where the pixels are."""
        ...


@dataclass(frozen=True)
class RetrievalData:
    """A dataset laid out for retrieval: `query` images are searched for among the `database` images.

    `mean` and `std` (one number a channel, on the scale where white is 1) are those the images were normalised with.
    """

    name: str
    class_names: tuple[str, ...]
    database: ImageSet
    query: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart."""
        return len(self.class_names)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of "database" and "query", what tells them from others (`ImageFiles`); empty for images not in files."""
        splits = {"database": self.database, "query": self.query}
        return {name: images.fingerprint for name, images in splits.items() if hasattr(images, "fingerprint")}

    def pictures(self, images: Tensor) -> np.ndarray:
        """Normalised images (B, C, H, W), C of 1 or 3, as uint8 (B, H, W, 3) to look at. Raises InputError."""
        require(
            isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == len(self.mean),
            f"images must be a tensor of shape (B, {len(self.mean)}, H, W)",
        )
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        scaled = (images.detach().cpu().float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
        return scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def batches(
    images: ImageSet,
    order: Tensor | np.ndarray | Sequence[int],
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over (items (B,) int64, images (B, C, H, W) float32) in the given order; the last batch may be smaller.

    With a seed the views are random, each batch from its own generator, seeded by (seed, epoch, batch number); with
    None they are deterministic. The result is the same for every number of workers, and torch's global random state
    is left alone. part = (i, n) gives the i-th of n parts of every batch, as even as can be, with the views that the
    whole batch would have. Images come on `device`; on a GPU the next batch is copied while this one is worked on.
    Raises InputError if an item is not in 0..len(images)-1 or a number is out of range; what
    `images` raises as InputError comes out as it is, from workers too.
    """
    epoch, items = require_int("epoch", epoch, 0), _item_numbers(order, len(images))
    epochs = range(epoch, epoch + bool(len(items)))
    return epoch_batches(images, {epoch: items}, epochs, len(items), batch_size, seed, workers, part, device)


class Orders(Protocol):
    """orders[epoch] is the items (n,) int64 of an epoch as they are visited; called in worker processes."""

    def __getitem__(self, epoch: int, /) -> Tensor: ...


def epoch_batches(
    images: ImageSet,
    orders: Orders,
    epochs: range,
    count: int,
    batch_size: int,
    seed: int | None = None,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of several epochs of `count` items each, one epoch after the other, as `batches` gives those of one.

    Workers start once, and load the first batches of an epoch while the one before comes to its end.
    """
    batch_size = require_int("batch_size", batch_size, 1)
    workers = require_int("workers", workers, 0)
    if seed is not None:
        seed = require_int("seed", seed, 0)
    dataset = _Batches(images, orders, epochs, count, batch_size, seed, part)
    # A loader draws one number when its iterator starts: from a generator of its own, else the global state would move.
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator().manual_seed(0))
    loaded = map(_unwrap, iter(loader))
    finish = images.finish if isinstance(images, PixelSet) else _as_they_are
    if device is not None and device.type == "cuda":
        return _ahead(loaded, finish, device)
    return ((items, finish(pixels, None)) for items, pixels in loaded)


def _load_part(images: ImageSet, items: Tensor, part: slice, generator: torch.Generator | None) -> Tensor:
    """What images items[part] are in the batch of `items`, to be finished where they are a `PixelSet`."""
    if isinstance(images, PixelSet):
        return images.pixels(items, part, generator)
    if generator is None:
        return images.load(items[part], None)
    return images.load(items, generator)[part]


def _as_they_are(images: Tensor, device: torch.device | None) -> Tensor:
    return images if device is None else images.pin_memory().to(device, non_blocking=True)


def _ahead(
    loaded: Iterator[tuple[Tensor, Tensor]],
    finish: Callable[[Tensor, torch.device | None], Tensor],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on a GPU, each copied and finished on a stream of its own while the one before is worked on."""
    side = torch.cuda.Stream(device)

    def sent() -> tuple[Tensor, Tensor] | None:
        batch = next(loaded, None)
        if batch is None:
            return None
        items, pixels = batch
        with torch.cuda.stream(side):
            return items, finish(pixels, device)

    following = sent()
    while following is not None:
        items, images = following
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        # Its memory must not be taken by the side stream's next batch before the work on it is done.
        images.record_stream(current)
        failed = None
        try:
            following = sent()
        except Exception as error:
            # It may be of the next epoch: the batch at hand is worked on first.
            failed = error
        yield items, images
        if failed is not None:
            raise failed


def _unwrap(loaded: tuple[Tensor, Tensor] | InputError) -> tuple[Tensor, Tensor]:
    if isinstance(loaded, InputError):
        raise loaded
    return loaded


def _item_numbers(order: Tensor | np.ndarray | Sequence[int], count: int) -> Tensor:
    """Item numbers (n,) int64 on the CPU; raises InputError for anything else."""
    items = torch.as_tensor(order)
    require(
        items.ndim == 1 and (items.numel() == 0 or not (items.is_floating_point() or items.dtype == torch.bool)),
        "order must be a one-dimensional list of item numbers",
    )
    items = items.to(device="cpu", dtype=torch.int64)
    require(
        items.numel() == 0 or (int(items.min()) >= 0 and int(items.max()) < count),
        f"order must hold item numbers from 0 to {count - 1}",
    )
    return items


class _Batches(Dataset["tuple[Tensor, Tensor] | InputError"]):
    """A dataset whose items are whole batches, of one epoch after the other."""

    def __init__(
        self,
        images: ImageSet,
        orders: Orders,
        epochs: range,
        count: int,
        batch_size: int,
        seed: int | None,
        part: tuple[int, int],
    ) -> None:
        self.images, self.orders, self.epochs, self.batch_size = images, orders, epochs, batch_size
        self.seed, self.part = seed, part
        self.of_an_epoch = -(-count // batch_size)

    def __len__(self) -> int:
        return len(self.epochs) * self.of_an_epoch

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor] | InputError:
        since, number = divmod(place, self.of_an_epoch)
        epoch = self.epochs[since]
        items = self.orders[epoch].split(self.batch_size)[number]
        generator, part = self._generator(epoch, number), share(len(items), *self.part)
        try:
            return items[part], _load_part(self.images, items, part, generator)
        except InputError as error:
            return error  # raised in a worker it would come out with the worker's trace as its message

    def _generator(self, epoch: int, number: int) -> torch.Generator | None:
        if self.seed is None:
            return None
        state = np.random.SeedSequence([self.seed, epoch, number]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)
