"""The alternating optimisation: SGD on the network for fixed database codes, then a discrete step on the codes.
docs/math.md §4.

Source: Lu et al., ACM MM 2023; the objective and its alternation are those of ADSH, Jiang and Li, AAAI 2018.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmh_fast import functional
from agmh_fast.data import RetrievalData, batches, cached, load
from agmh_fast.errors import InputError, require
from agmh_fast.files import output_folder
from agmh_fast.modules import AGMH
from agmh_fast.ops.hashing import HashingState
from agmh_fast.train import checkpoint
from agmh_fast.train.checkpoint import Checkpoint, describe_data
from agmh_fast.train.config import PRECISIONS, TrainConfig
from agmh_fast.train.encoding import evaluate
from agmh_fast.train.models import build_model, describe_model, save_model
from agmh_fast.train.progress import ConsoleProgress, Event, Kind, Progress
from agmh_fast.train.randomness import epoch_order, module_randomness, sample_items
from agmh_fast.train.scalars import ScalarLog


@dataclass(frozen=True)
class TrainResult:
    """model in eval mode; state, whose `codes` are the learned database codes; history, one row an epoch.

    map is that of the last evaluation, best_map the largest, of outer iteration best_iteration (from 1). seconds:
    wall time of training with its evaluations, interruptions left out.
    """

    model: AGMH
    state: HashingState
    history: list[dict[str, Any]]
    map: float
    best_map: float
    best_iteration: int
    seconds: float


def fit(
    config: TrainConfig,
    data: RetrievalData | None = None,
    model: AGMH | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a model and the database's codes; with an output folder also leave a checkpoint, scalars.csv and the
    models there.

    data: None takes `load_data(config)`. model: None builds one from the settings; one of your own keeps its weights,
    and is changed in place. progress: called at every `Event`; None shows a bar or lines on stderr.

    A run that was stopped (an exception, Ctrl-C, a power cut) goes on from its last checkpoint with `resume=True`,
    on a CPU bit for bit as if it had never stopped. The best model is the one with the largest mAP of the queries,
    as published. Raises InputError for settings that do not fit and for a loss that is not finite, which leaves the
    last checkpoint as it is.
    """
    data = load_data(config) if data is None else data
    run = _Run(config, data, model, progress or ConsoleProgress(config.max_iter))
    seconds = run.train()
    score, best = run.history[-1]["map"], run.best
    return TrainResult(run.model.eval(), run.state, run.history, score, best["map"], best["iteration"], seconds)


def load_data(config: TrainConfig) -> RetrievalData:
    """The dataset that the settings name, cached if they say so; raises InputError as `data.load` and `cached` do."""
    options = {"skip_broken": True} if config.skip_broken else {}
    data = load(config.dataset, root=config.root, **options)
    if config.cache is None:
        return data
    return cached(data, config.cache, lambda line: print(line, file=sys.stderr))


class _Run:
    """A training run: what it has learned, and where it is."""

    def __init__(self, config: TrainConfig, data: RetrievalData, model: AGMH | None, progress: Progress) -> None:
        self.config, self.data, self.progress, self.device = config, data, progress, config.torch_device
        self.folder = None if config.output is None else _claim_folder(config)
        self.meta = describe_model(config, data, own_model=model is not None)
        model = build_model(config, len(data.mean)) if model is None else model
        require(model.bits == config.bits, f"bits is {config.bits}, but the model has {model.bits}")
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.device).to(memory_format=self.memory_format)
        self.state = HashingState(data.database.labels.to(self.device), config.bits, config.gamma, config.seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        self.num_samples = min(config.num_samples, len(self.state))
        self.steps = config.max_iter * config.max_epoch * math.ceil(self.num_samples / config.batch_size)
        self.iteration, self.epoch, self.step = 0, 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._seconds, self._started, self._saved = 0.0, time.monotonic(), -math.inf
        if config.resume:
            self._restore()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that before an interruption included and the interruption left out."""
        return self._seconds + time.monotonic() - self._started

    def train(self) -> float:
        """Run to the last iteration; the seconds it took in all."""
        log = None
        try:
            if self.folder is not None:
                log = ScalarLog(self.folder, self.history)
            self._started = time.monotonic()
            if self.folder is not None and not self.config.resume:
                self._save_checkpoint()
            self._tell("start")
            while self.iteration < self.config.max_iter:
                self._train_iteration(log)
            self._save_model("final", {"map": self.history[-1]["map"], "iteration": self.iteration})
        finally:
            self._tell("end")
            if log is not None:
                log.close()
        return self.seconds

    def _train_iteration(self, log: ScalarLog | None) -> None:
        """The epochs that are left of an outer iteration, its discrete step, and its evaluation where one is due."""
        config = self.config
        sampled = sample_items(len(self.state), self.num_samples, config.seed, self.iteration).to(self.device)
        self.state.begin_iteration(sampled)
        for _ in range(self.epoch, config.max_epoch):
            row, embeddings = self._train_epoch(sampled)
            last = self.epoch == config.max_epoch - 1
            if last:
                functional.update_database_codes(self.state, embeddings, sampled)
                self._evaluate(row)
            row["seconds"] = self.seconds
            self.history.append(row)
            if log is not None:
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
        number = self.iteration * config.max_epoch + self.epoch
        loaded = batches(
            self.data.database, sampled.cpu()[order], config.batch_size, config.seed, number, workers=config.workers
        )
        embeddings = torch.empty(len(sampled), config.bits, device=self.device)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.model.train()
        with module_randomness(config.seed, self.iteration, self.epoch, self.device):
            for (items, images), rows in zip(loaded, order.to(self.device).split(config.batch_size), strict=True):
                embeddings[rows], losses = self._train_batch(items, images)
                sums += losses * len(rows)
                self._tell("batch")
        # Looked at once an epoch: a look waits for the GPU.
        pairwise, quantization, dispersion = (sums / len(sampled)).tolist()
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

    def _train_batch(self, items: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """One step of SGD; embeddings (B, bits) and the three losses (3,), detached."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step, self.steps)
        images = images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        with torch.autocast(self.device.type, PRECISIONS[config.precision], enabled=config.precision != "fp32"):
            output = self.model(images)
        embedding = output.embedding.float()
        loss = functional.asymmetric_hashing_loss(embedding, items.to(self.device), self.state)
        total = loss.total + config.dispersion_weight * output.attention_dispersion
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return embedding.detach(), torch.stack([loss.pairwise, loss.quantization, output.attention_dispersion]).detach()

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add mAP to the row if this iteration is evaluated, and keep the model if it is the best so far."""
        config, number = self.config, self.iteration + 1
        if number % config.eval_every and number != config.max_iter:
            return
        row["map"] = evaluate(self.model, self.state, self.data.query, config.ties, workers=config.workers).map
        if row["map"] > self.best.get("map", -1.0):
            self.best = {"map": row["map"], "iteration": number}
            self._save_model("best", self.best)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            place = f"epoch {self.epoch + 1} of iteration {self.iteration + 1}"
            raise InputError(f"lr: the loss is not finite in {place}: lower the learning rate (now {self.config.lr})")

    def _tell(self, kind: Kind, row: dict[str, Any] | None = None) -> None:
        self.progress(Event(kind, self.iteration, self.epoch, self.step, self.steps, row or {}))

    def _save_model(self, name: str, place: dict[str, Any]) -> None:
        """Write a model file; `place` is its mAP and the outer iteration (from 1) after which it stands."""
        if self.folder is not None:
            save_model(self.folder / f"{name}.safetensors", self.model, self.state.codes, self.meta | place)

    def _save_checkpoint(self) -> None:
        assert self.folder is not None
        Checkpoint(
            # A run may go on where there is no such device.
            config=self.config.replace(device=None).to_json(),
            dataset=describe_data(self.data),
            iteration=self.iteration,
            epoch=self.epoch,
            seconds=self.seconds,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            codes=self.state.codes,
            history=self.history,
            best=self.best,
        ).save(self.folder)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        """Take over the checkpoint of the output folder; raises InputError naming what does not fit."""
        assert self.folder is not None
        stored = Checkpoint.load(self.folder)
        self.config.continuing(TrainConfig.from_json(stored.config))
        ours, theirs = describe_data(self.data), stored.dataset
        require(
            ours == theirs, f"dataset is {ours}, but the run in {str(self.folder)!r} has {theirs}: give the same data"
        )
        try:
            self.model.load_state_dict(stored.model)
            self.optimizer.load_state_dict(stored.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"model: it does not fit the run in {str(self.folder)!r}: {reason}") from error
        self.scaler.load_state_dict(stored.scaler)
        self.state.codes = stored.codes
        self.iteration, self.epoch, self._seconds = stored.iteration, stored.epoch, stored.seconds
        self.history, self.best = stored.history, stored.best
        self.step = self.history[-1]["step"] if self.history else 0


def _claim_folder(config: TrainConfig) -> Path:
    """The output folder, made and proved writable; raises InputError where a new run would overwrite another."""
    folder = output_folder(str(config.output))
    taken = (folder / checkpoint.FILE).exists() and not config.resume
    require(not taken, f"output: {str(folder)!r} already holds a run: resume it or choose another folder")
    return folder
