"""The alternating optimisation: SGD on the network for fixed database codes, then a discrete step on the codes.
docs/math.md §4.

Source: Lu et al., ACM MM 2023; the objective and its alternation are those of ADSH, Jiang and Li, AAAI 2018.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agmh_fast import functional
from agmh_fast.data import RetrievalData, cached, decoded_on_device, load
from agmh_fast.data.base import epoch_batches
from agmh_fast.errors import InputError, require
from agmh_fast.files import output_folder
from agmh_fast.modules import AGMH, synchronize_statistics
from agmh_fast.ops.hashing import HashingState
from agmh_fast.train import checkpoint
from agmh_fast.train.checkpoint import Checkpoint, describe_data
from agmh_fast.train.config import TrainConfig
from agmh_fast.train.disk import require_room, write_text, writing
from agmh_fast.train.encoding import evaluate, validate
from agmh_fast.train.memory import kept_memory
from agmh_fast.train.models import build_model, describe_model, save_model
from agmh_fast.train.progress import ConsoleProgress, Event, Kind, Progress, silent
from agmh_fast.train.randomness import EpochOrders, epoch_order, module_randomness, sample_items
from agmh_fast.train.ranks import Ranks, SharedState
from agmh_fast.train.scalars import ScalarLog
from agmh_fast.train.selection import held_out
from agmh_fast.train.step import Step

RESULT = "result.json"


@dataclass(frozen=True)
class TrainResult:
    """model in eval mode; state, whose `codes` are the learned database codes; history, one row an epoch.

    map is that of the queries at the last evaluation, best_map that of the model selected, as it stood after outer
    iteration best_iteration (from 1); selected_by says how, best_validation_map is what it was selected by if by
    validation. seconds: wall time of training with its evaluations, interruptions left out.
    """

    model: AGMH
    state: HashingState
    history: list[dict[str, Any]]
    map: float
    best_map: float
    best_iteration: int
    seconds: float
    selected_by: str
    best_validation_map: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the scores, how the best model was selected, and the seconds."""
        scores = {"bits": self.state.bits, "map": self.map, "best_map": self.best_map}
        best = {"selected_by": self.selected_by, "best_iteration": self.best_iteration}
        validation = {} if self.best_validation_map is None else {"best_validation_map": self.best_validation_map}
        return scores | best | validation | {"seconds": self.seconds}


def fit(
    config: TrainConfig,
    data: RetrievalData | None = None,
    model: AGMH | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a model and the database's codes; with an output folder also leave a checkpoint, scalars.csv, result.json
    and the models there.

    data: None takes `load_data(config)`. model: None builds one from the settings; one of your own keeps its weights,
    and is changed in place. progress: called at every `Event`; None shows a bar or lines on stderr.

    A run that was stopped (an exception, Ctrl-C, a power cut) goes on from its last checkpoint with `resume=True`,
    on a CPU bit for bit as if it had never stopped. The best model is what the setting `select` says: images held out
    for validation have codes in the database like all others, but are never trained on. Where torch.distributed is
    initialised every rank calls this with the same settings, and rank 0 alone writes. Raises InputError for settings
    that do not fit, for a disk without room, and for a loss that is not finite; the last checkpoint is then as it was.
    """
    data = load_data(config) if data is None else data
    run = _Run(
        config, data, model, progress or (ConsoleProgress(config.max_iter) if Ranks.current().writes else silent)
    )
    with kept_memory(run.device):
        seconds = run.train()
    best = run.best
    result = TrainResult(
        run.model.eval(),
        run.state,
        run.history,
        run.history[-1]["map"],
        best["map"],
        best["iteration"],
        seconds,
        config.select,
        best.get("validation_map"),
    )
    if run.folder is not None:
        with writing(run.folder):
            write_text(run.folder / RESULT, json.dumps(result.as_dict(), indent=2) + "\n")
    return result


def load_data(config: TrainConfig) -> RetrievalData:
    """The dataset that the settings name, cached if they say so; raises InputError as `data.load` and `cached` do."""
    options = {"skip_broken": True} if config.skip_broken else {}
    data = load(config.dataset, root=config.root, **options)
    if config.gpu_decode:
        return decoded_on_device(data)
    if config.cache is None:
        return data
    return cached(data, config.cache, lambda line: print(line, file=sys.stderr), config.cache_whole)


class _Run:
    """A training run: what it has learned, and where it is."""

    def __init__(self, config: TrainConfig, data: RetrievalData, model: AGMH | None, progress: Progress) -> None:
        self.config, self.data, self.progress, self.device = config, data, progress, config.torch_device
        self.ranks = Ranks.current()
        claimed = None if config.output is None else self.ranks.first(lambda: _claim_folder(config))
        self.folder = claimed if self.ranks.writes else None
        self.meta = describe_model(config, data, own_model=model is not None)
        if model is None:
            # A run that is resumed brings its weights, and need not have the file that it began with.
            model = build_model(config.replace(weights=None) if config.resume else config, len(data.mean))
        require(model.bits == config.bits, f"bits is {config.bits}, but the model has {model.bits}")
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.device).to(memory_format=memory_format)
        if config.compile:
            self.model.backbone.compile()
        labels = data.database.labels.to(self.device)
        self.state = SharedState(labels, config.bits, config.gamma, config.seed, self.ranks)
        self.held_out, self.trainable = torch.empty(0, dtype=torch.int64), torch.arange(len(self.state))
        if config.select == "validation":
            self.held_out = held_out(self.state, config.validation_share, config.seed)
            self.trainable = self.trainable[~torch.isin(self.trainable, self.held_out)]
        self.num_samples = min(config.num_samples, len(self.trainable))
        self.sgd = Step(self.model, self.state, config, self._distributed())
        self.steps = config.max_iter * config.max_epoch * math.ceil(self.num_samples / config.batch_size)
        self.iteration, self.epoch, self.step = 0, 0, 0
        self._loaded: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._seconds, self._started, self._saved = 0.0, time.monotonic(), -math.inf
        if config.resume:
            self._restore()
        elif self.folder is not None:
            require_room(self.folder, self._file_sizes())

    def _distributed(self) -> nn.Module | None:
        """What adds the gradients of all ranks, made of the model; None for a run of one process."""
        if self.ranks.size == 1:
            return None
        config, last = self.config, self.num_samples % self.config.batch_size or self.config.batch_size
        require(
            min(last, self.num_samples) >= self.ranks.size,
            f"batch_size: an epoch's last batch has {last} images for {self.ranks.size} ranks: choose another size",
        )
        require(not config.cuda_graph, "cuda_graph: not with more than one rank")
        if config.sync_bn:
            synchronize_statistics(self.model)
        return DistributedDataParallel(self.model)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that before an interruption included and the interruption left out."""
        return self._seconds + time.monotonic() - self._started

    def train(self) -> float:
        """Run to the last iteration; the seconds it took in all."""
        log = None
        try:
            if self.folder is not None:
                with writing(self.folder):
                    log = ScalarLog(self.folder, self.history)
            self._started = time.monotonic()
            if self.folder is not None and not self.config.resume:
                self._save_checkpoint()
            self._tell("start")
            self._loaded = self._batches()
            while self.iteration < self.config.max_iter:
                self._train_iteration(log)
            self._save_model("final", _scores(self.history[-1]) | {"iteration": self.iteration})
        finally:
            # Ends the workers that load.
            self._loaded = iter(())
            self._tell("end")
            if log is not None:
                with writing(log.folder):
                    log.close()
        return self.seconds

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of all epochs that are left, of each this rank's part."""
        config, count = self.config, self.num_samples
        done = self.iteration * config.max_epoch + self.epoch
        return epoch_batches(
            self.data.database, EpochOrders(self.trainable, count, config.max_epoch, config.seed),
            range(done, config.max_iter * config.max_epoch), count, config.batch_size, config.seed, config.workers,
            part=(self.ranks.rank, self.ranks.size), device=self.device,
        )  # fmt: skip

    def _train_iteration(self, log: ScalarLog | None) -> None:
        """The epochs that are left of an outer iteration, its discrete step, and its evaluation where one is due."""
        config = self.config
        sampled = sample_items(len(self.trainable), self.num_samples, config.seed, self.iteration)
        sampled = self.trainable[sampled].to(self.device)
        self.sgd.begin_iteration(sampled)
        for _ in range(self.epoch, config.max_epoch):
            row, embeddings = self._train_epoch(sampled)
            last = self.epoch == config.max_epoch - 1
            if last:
                functional.update_database_codes(self.state, self.ranks.total(embeddings), sampled)
                self._evaluate(row)
            row["seconds"] = self.seconds
            self.history.append(row)
            if log is not None:
                with writing(log.folder):
                    log.add(row)
            self._tell("iteration" if last else "epoch", row)
            self.iteration, self.epoch = (self.iteration + 1, 0) if last else (self.iteration, self.epoch + 1)
            done = self.iteration == config.max_iter
            if self.folder is not None and (done or time.monotonic() - self._saved >= config.checkpoint_seconds):
                self._save_checkpoint()

    def _train_epoch(self, sampled: Tensor) -> tuple[dict[str, Any], Tensor]:
        """One epoch over the sampled items; its row of the history and the embeddings (m, bits) computed on the way."""
        config, begun = self.config, time.monotonic()
        rate = config.learning_rate(self.step, self.steps)
        order = epoch_order(len(sampled), config.seed, self.iteration, self.epoch)
        embeddings = torch.zeros(len(sampled), config.bits, device=self.device)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.model.train()
        with module_randomness(config.seed, self.iteration, self.epoch, self.device):
            for whole in order.to(self.device).split(config.batch_size):
                items, images = next(self._loaded)
                rows, rate_now = whole[self.ranks.share(len(whole))], config.learning_rate(self.step, self.steps)
                # DistributedDataParallel takes the mean over ranks, whose parts may differ in size.
                share = self.ranks.size * len(rows) / len(whole)
                embedding, losses = self.sgd(items, images, rate_now, share)
                embeddings[rows] = embedding.to(embeddings.dtype)
                self.step += 1
                sums += losses * len(rows)
                self._tell("batch", images=len(whole))
        # Looked at once an epoch: a look waits for the GPU.
        pairwise, quantization, dispersion = (self.ranks.total(sums) / len(sampled)).tolist()
        self._require_finite(pairwise + quantization + dispersion)
        row = {
            "iteration": self.iteration + 1,
            "epoch": self.epoch + 1,
            "step": self.step,
            "lr": rate,
            "pairwise": pairwise,
            "quantization": quantization,
            "attention_dispersion": dispersion,
            "images_per_second": len(sampled) / (time.monotonic() - begun),
        }
        return row, embeddings

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add mAP to the row if this iteration is evaluated, and keep the model if it is the best so far."""
        config, number = self.config, self.iteration + 1
        if number % config.eval_every and number != config.max_iter:
            return
        options: dict[str, Any] = {"ties": config.ties, "workers": config.workers, "ranks": self.ranks}
        if self.ranks.size > 1 and not config.sync_bn:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)
        row["map"] = evaluate(self.model, self.state, self.data.query, **options).map
        if config.select == "validation":
            scored = validate(self.model, self.state, self.data.database, self.held_out, **options)
            row["validation_map"] = scored.map
        key = "validation_map" if config.select == "validation" else "map"
        if config.select == "last" or row[key] > self.best.get(key, -1.0):
            self.best = _scores(row) | {"iteration": number}
            self._save_model("best", self.best)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            place = f"epoch {self.epoch + 1} of iteration {self.iteration + 1}"
            raise InputError(f"lr: the loss is not finite in {place}: lower the learning rate (now {self.config.lr})")

    def _tell(self, kind: Kind, row: dict[str, Any] | None = None, images: int = 0) -> None:
        self.progress(Event(kind, self.iteration, self.epoch, self.step, self.steps, row or {}, images))

    def _save_model(self, name: str, place: dict[str, Any]) -> None:
        """Write a model file; `place` is its mAP and the outer iteration (from 1) after which it stands."""
        if self.folder is not None:
            with writing(self.folder):
                path = self.folder / f"{name}.safetensors"
                save_model(path, self.model, self.state.codes, self.meta | place)

    def _file_sizes(self) -> dict[str, int]:
        """Bytes that the run's files take, but for what is small."""
        model = sum(value.nbytes for value in self.model.state_dict().values())
        momentum = sum(p.nbytes for p in self.model.parameters()) if self.config.momentum > 0 else 0
        sizes = {f"{name}.safetensors": model + self.state.codes.numel() // 8 for name in ("best", "final")}
        return sizes | {checkpoint.FILE: model + momentum + self.state.codes.nbytes}

    def _save_checkpoint(self) -> None:
        assert self.folder is not None
        state = Checkpoint(
            # A run may go on where there is no such device.
            config=self.config.replace(device=None).to_json(),
            dataset=describe_data(self.data),
            iteration=self.iteration,
            epoch=self.epoch,
            seconds=self.seconds,
            model=self.model.state_dict(),
            optimizer=self.sgd.optimizer.state_dict(),
            scaler=self.sgd.scaler.state_dict(),
            codes=self.state.codes,
            history=self.history,
            best=self.best,
        )
        with writing(self.folder):
            state.save(self.folder)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        """Take over the checkpoint of the output folder; raises InputError naming what does not fit."""
        folder = Path(str(self.config.output))
        stored = Checkpoint.load(folder)
        self.config.continuing(TrainConfig.from_json(stored.config))
        ours, theirs = describe_data(self.data), stored.dataset
        require(ours == theirs, f"dataset is {ours}, but the run in {str(folder)!r} has {theirs}: give the same data")
        try:
            self.model.load_state_dict(stored.model)
            self.sgd.optimizer.load_state_dict(stored.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = textwrap.shorten(str(error).splitlines()[-1], 200, placeholder=" …")
            raise InputError(f"model: it does not fit the run in {str(folder)!r}: {reason}") from error
        self.sgd.scaler.load_state_dict(stored.scaler)
        self.state.codes = stored.codes
        self.iteration, self.epoch, self._seconds = stored.iteration, stored.epoch, stored.seconds
        self.history, self.best = stored.history, stored.best
        self.step = self.history[-1]["step"] if self.history else 0


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation added to a row of the history."""
    return {name: row[name] for name in ("map", "validation_map") if name in row}


def _claim_folder(config: TrainConfig) -> Path:
    """The output folder, made and proved writable; raises InputError where a new run would overwrite another."""
    folder = output_folder(str(config.output))
    taken = (folder / checkpoint.FILE).exists() and not config.resume
    require(not taken, f"output: {str(folder)!r} already holds a run: resume it or choose another folder")
    return folder
