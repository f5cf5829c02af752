"""The error messages that the FAQ quotes are those that users meet: each is raised here, and compared whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures import jpeg

import agmh_fast as af
from agmh_fast.cli import main
from agmh_fast.train import TrainConfig, checkpoint

FAQ = Path(__file__).resolve().parents[1] / "docs" / "faq.md"
QUOTES = re.findall(r"^`(.+)`\\$", FAQ.read_text(), re.MULTILINE)

MISTAKES: list[Callable[[SimpleNamespace], object]] = [
    # Codes.
    lambda its: its.index.add(np.zeros((100, 64), np.float32)),
    lambda its: its.index.add(np.zeros((100, 8), np.int8)),
    lambda its: its.index.add(np.zeros((100, 1), np.int64)),
    lambda its: its.index.add(np.zeros((100, 64), np.uint8)),
    lambda its: its.index.search(np.zeros(8, np.uint8), k=10),
    lambda its: af.HammingIndex(12).add(np.full((3, 2), 255, np.uint8)),
    lambda its: af.pack_codes(np.array([[0.5, np.nan]], np.float32)),
    lambda its: af.pack_codes(np.array([[3, -1]])),
    lambda its: af.functional.hamming_topk(its.codes, torch.from_numpy(its.codes), k=1),
    # Indexes.
    lambda its: its.index.add(its.codes, ids=np.arange(100)),
    lambda its: its.index.remove([500]),
    lambda its: its.index.add(its.codes, ids=[7]),
    lambda its: its.index.search(its.codes, k=0),
    lambda its: its.index.search(its.codes, k=10, mask=np.ones(50, bool)),
    lambda its: its.index.search(its.codes, k=10, mask=np.ones(100, np.uint8)),
    lambda its: af.HammingIndex.load("codes.safetensors"),
    lambda its: af.HammingIndex.load(its.text),
    lambda its: af.HammingIndex.load(its.damaged),
    lambda its: af.ShardedHammingIndex(64),
    # Implementations.
    lambda its: af.functional.hamming_topk(its.codes, its.codes, k=1, impl="triton"),
    lambda its: af.functional.hamming_topk(its.codes, its.codes, k=1, impl="cuda"),
    # The model and its losses.
    lambda its: its.model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)),
    lambda its: its.model(torch.zeros(3, 64, 64)),
    lambda its: af.AGMH(bits=12, backbone="resnet51"),
    lambda its: af.AGMH(bits=12, backbone="resnet18", weights="resnet18.pth"),
    lambda its: af.AGMH.from_official({"fc.weight": torch.zeros(1)}, bits=12),
    lambda its: af.functional.asymmetric_hashing_loss(torch.zeros(2, 12), torch.arange(2), its.state),
    lambda its: its.state.begin_iteration(torch.tensor([3, 3])),
    lambda its: af.functional.update_database_codes(its.begun, torch.full((4, 12), torch.nan), torch.arange(4)),
    # Scores.
    lambda its: af.metrics.retrieval(its.codes, its.codes, np.zeros(99, int), np.zeros(100, int)),
    lambda its: af.metrics.retrieval(its.codes, its.codes, np.zeros(100, int), np.zeros(100, int), ties="random"),
    # Training and data.
    lambda its: af.data.load("cars"),
    lambda its: af.data.load("folder", "empty"),
    lambda its: af.data.load("cub", "CUB_200_2011"),
    lambda its: af.data.load("folder", "photos").database.load(torch.arange(2), None),
    lambda its: TrainConfig(lr=-1),
    lambda its: TrainConfig(precision="fp16", device="cpu"),
    lambda its: af.train.fit(TrainConfig(output="run", resume=True), af.data.load("folder", "photos")),
    lambda its: af.train.fit(TrainConfig(output="new"), af.data.load("folder", "photos")),
    lambda its: af.train.fit(TrainConfig(output="old", select="last"), af.data.load("folder", "photos")),
    lambda its: af.train.load_run("run"),
    # The command line.
    lambda its: main(["index", "codes.npy", "--output", "codes.safetensors"]),
    lambda its: main(["search", "codes.safetensors", "queries.npy", "--top", "10"]),
]


@pytest.fixture(scope="module")
def its(tmp_path_factory):
    """What the mistakes are made with."""
    folder = tmp_path_factory.mktemp("faq")
    codes = np.zeros((100, 8), np.uint8)
    index = af.HammingIndex(64)
    index.add(codes)
    index.save(folder / "damaged.safetensors")
    data = bytearray((folder / "damaged.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "damaged.safetensors").write_bytes(data)
    (folder / "notes.txt").write_text("not an index")
    for name in ("empty", "CUB_200_2011", "run", "old", *(f"photos/{split}/a" for split in ("train", "test"))):
        (folder / name).mkdir(parents=True)
    for path in ("photos/train/a/1.jpg", "photos/test/a/2.jpg"):
        (folder / path).write_bytes(jpeg(0))
    (folder / "photos/train/a/3.jpg").write_bytes(jpeg(0)[:100])
    (folder / "old" / checkpoint.FILE).touch()
    begun = af.train.HashingState(torch.arange(10) % 2, bits=12, gamma=200.0)
    begun.begin_iteration(torch.arange(4))
    return SimpleNamespace(
        folder=folder,
        codes=codes,
        index=index,
        text="notes.txt",
        damaged="damaged.safetensors",
        model=af.AGMH(bits=12, backbone="resnet18", num_descriptors=2, descriptor_dim=8, memory_size=4),
        state=af.train.HashingState(torch.arange(10) % 2, bits=12, gamma=200.0),
        begun=begun,
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=range(len(MISTAKES)))
def test_a_message_is_quoted(mistake, its, monkeypatch, capsys):
    monkeypatch.chdir(its.folder)
    with pytest.raises((af.InputError, SystemExit)) as raised:
        # The command line prints the message, and gives 2 back or exits with it.
        raise SystemExit(mistake(its))
    message = str(raised.value)
    if raised.type is SystemExit:
        assert message == "2"
        message = capsys.readouterr().err.strip().removeprefix("agmh-fast: ")
    # What another library says is not for us to quote.
    assert any(re.fullmatch(re.escape(quote).replace("…", ".+"), message) for quote in QUOTES), message


def test_no_quote_is_left_over():
    assert len(QUOTES) == len(MISTAKES)
