"""Codes of a whole split."""

from __future__ import annotations

import pytest
import torch

import agmh_fast as af
from agmh_fast import InputError
from agmh_fast.modules.small import SmallResNet
from agmh_fast.train import HashingState, encode_set, evaluate


@pytest.fixture
def model():
    return af.AGMH(12, SmallResNet(1), num_descriptors=2, descriptor_dim=8, num_heads=2, memory_size=4).train()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (256, 0), (5, 1)])
def test_codes_are_those_of_encode_in_order(model, data, batch_size, workers):
    codes = encode_set(model, data.database, batch_size, workers)
    images = data.database.load(torch.arange(len(data.database)), None)
    one_by_one = torch.cat([model.encode(image[None]) for image in images])
    assert codes.dtype == torch.uint8
    assert codes.shape == (18, 2)
    # A batch may round otherwise than a single image: only where a logit is next to zero may its bit differ.
    logits = model.eval().logits(model.features(images))
    differs = af.unpack_codes(codes, 12) != af.unpack_codes(one_by_one, 12)
    assert not (differs & (logits.abs() > 1e-5)).any()


def test_the_mode_of_the_model_is_left_alone(model, data):
    encode_set(model, data.query)
    assert model.training


def test_nan_and_emptiness_are_refused(model, data):
    with torch.no_grad():
        model.hash_weight[3, 5] = torch.nan
    with pytest.raises(InputError):
        encode_set(model, data.query)

    class Empty:
        labels = torch.zeros(0, dtype=torch.int64)

        def __len__(self) -> int:
            return 0

    with pytest.raises(InputError, match="images"):
        encode_set(model, Empty())


def test_evaluation_is_against_the_learned_codes(model, data):
    state = HashingState(data.database.labels, 12)
    queries = af.unpack_codes(encode_set(model, data.query), 12).float()
    # Each class gets the code of its first query, so that this query's items all come first.
    state.codes = queries[:3][data.database.labels]
    result = evaluate(model, state, data.query, ties="pessimistic")
    distinct = len({tuple(row) for row in queries[:3].tolist()}) == 3
    assert result.num_database == 18
    assert (result.per_query_ap[:3] == 1).all() == distinct
