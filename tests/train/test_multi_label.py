"""Several labels an image, from training to metrics, against the dense formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast import functional, train
from agmh_fast.data import RetrievalData
from agmh_fast.reference import hashing as reference
from agmh_fast.reference import metrics as reference_metrics
from agmh_fast.train import HashingState, fit, silent

SEVERAL = 4


def _several(images) -> _Labelled:
    """The images with multi-hot labels (N, 4): their own, of every second the next too, of every third the fourth."""
    own, count = images.labels, len(images)
    labels = torch.zeros(count, SEVERAL, dtype=torch.uint8)
    labels[torch.arange(count), own] = 1
    labels[torch.arange(0, count, 2), (own[::2] + 1) % 3] = 1
    labels[::3, 3] = 1
    return _Labelled(images, labels)


class _Labelled:
    def __init__(self, images, labels: torch.Tensor) -> None:
        self.load, self.labels = images.load, labels

    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture
def multi(data) -> RetrievalData:
    names = ("zero", "one", "two", "three")
    return RetrievalData("several", names, _several(data.database), _several(data.query), data.mean, data.std)


def test_groups_are_the_distinct_label_sets(multi):
    state = HashingState(multi.database.labels, 12)
    sets = [tuple(row) for row in multi.database.labels.tolist()]
    assert state.num_groups == len(set(sets)) > SEVERAL
    for a, b in ((0, 6), (0, 1), (3, 17)):
        assert (state.groups[a] == state.groups[b]) == (sets[a] == sets[b])
    meets = reference.share_label(multi.database.labels, multi.database.labels).double()
    assert torch.equal(state.overlap[state.groups][:, state.groups], meets)


@pytest.mark.parametrize("select", ["test", "validation"])
def test_loss_and_discrete_step_of_a_run_are_the_dense_ones(multi, make_config, monkeypatch, select):
    """Every batch and every discrete step of a run is computed a second time, with S in full."""
    seen = {"losses": 0, "steps": 0}
    loss_of, step_of = functional.asymmetric_hashing_loss, functional.update_database_codes
    labels = multi.database.labels

    def loss(embedding, items, state):
        ours = loss_of(embedding, items, state)
        u, codes = embedding.detach().double(), state.codes.double()
        s = reference.similarity(labels[state.sampled], labels)
        rows = s[[state.sampled.tolist().index(item) for item in items.tolist()]]
        pairwise = reference.pairwise_loss(u, codes, rows)
        quantization = reference.quantization_loss(u, codes[items], len(state), state.gamma)
        # Sums in float64 of float32 embeddings, rounded to float32 once or twice.
        for mine, dense in ((ours.pairwise, pairwise), (ours.quantization, quantization)):
            assert float(mine.detach()) == pytest.approx(float(dense), rel=1e-6)
        seen["losses"] += 1
        return ours

    def step(state, embeddings, sampled):
        s = reference.similarity(labels[sampled], labels)
        dense = reference.discrete_step(state.codes.double(), embeddings.double(), sampled, s, state.gamma)
        ours = step_of(state, embeddings, sampled)
        assert torch.equal(ours.double(), dense)
        seen["steps"] += 1
        return ours

    monkeypatch.setattr(functional, "asymmetric_hashing_loss", loss)
    monkeypatch.setattr(functional, "update_database_codes", step)
    result = fit(make_config(select=select, validation_share=0.3), multi, progress=silent)
    # 13 sampled in batches of 4; with validation as many as are left of 18.
    assert seen == {"losses": 16, "steps": 2}

    queries = train.encode_set(result.model, multi.query).numpy()
    codes = af.pack_codes(result.state.codes).numpy()
    relevant = reference.share_label(multi.query.labels, labels)
    scores = []
    for query, row in zip(queries, relevant.tolist(), strict=True):
        distances = np.unpackbits(query ^ codes, axis=1).sum(1).tolist()
        scores.append(reference_metrics.average_precision(reference_metrics.stable_order(distances, row)))
    # A mean of six means of at most 18 fractions in float64.
    assert result.map == pytest.approx(np.mean(scores), abs=1e-12)
    assert ("validation_map" in result.history[-1]) == (select == "validation")
