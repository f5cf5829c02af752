"""Images held out for validation, and the model that is selected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interruptions import Stopper

import agmh_fast as af
from agmh_fast import InputError, train
from agmh_fast.reference import metrics as reference
from agmh_fast.train import HashingState, fit, silent
from agmh_fast.train.selection import held_out


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0.05, 0.45), st.integers(0, 99))
def test_a_share_of_every_class_is_held_out_and_never_all(sizes, share, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    state = HashingState(labels, 4)
    fitting = sum(size for size in sizes if size > 1)
    if fitting * share < 1:
        return
    chosen = held_out(state, share, seed)
    assert torch.equal(chosen, held_out(state, share, seed))
    assert torch.equal(chosen, chosen.unique())
    assert abs(len(chosen) - share * fitting) < 1
    for label, size in enumerate(sizes):
        count = int((labels[chosen] == label).sum())
        assert count < max(size, 1)
        assert size == 1 or abs(count - share * size) < 1


def test_another_seed_holds_out_others():
    state = HashingState(torch.arange(4).repeat(50), 4)
    assert not torch.equal(held_out(state, 0.1, 0), held_out(state, 0.1, 1))


def test_nothing_to_hold_out_is_refused(data, make_config):
    with pytest.raises(InputError, match=r"^select: .* choose test or last"):
        held_out(HashingState(torch.arange(9), 4), 0.1, 0)


def test_held_out_images_are_never_trained_on_and_score_as_the_reference_does(data, make_config, tmp_path, monkeypatch):
    config = make_config(output=tmp_path, max_iter=3, num_samples=99, select="validation", validation_share=0.3)
    seen = []
    load = data.database.load

    def watched(items, generator):
        if generator is not None:
            seen.extend(items.tolist())
        return load(items, generator)

    monkeypatch.setattr(data.database, "load", watched)
    result = fit(config, data, progress=silent)
    state = HashingState(data.database.labels, 12)
    chosen = held_out(state, 0.3, config.seed)
    others = [item for item in range(18) if item not in chosen.tolist()]
    assert len(chosen) in (5, 6)
    assert sorted(set(seen)) == others

    # Their codes by the network, the others' as learned: the last model's, by the reference.
    queries = train.encode_set(result.model, data.database, items=chosen)
    codes, labels = af.pack_codes(result.state.codes), data.database.labels
    scores = []
    for query, label in zip(queries.numpy(), labels[chosen], strict=True):
        distances = np.unpackbits(query ^ codes.numpy()[others], axis=1).sum(1).tolist()
        relevant = (labels[others] == label).tolist()
        scores.append(reference.average_precision(reference.stable_order(distances, relevant)))
    # A mean of six means of at most 18 fractions in float64.
    assert result.history[-1]["validation_map"] == pytest.approx(np.mean(scores), abs=1e-12)


def _rows(result):
    return [row for row in result.history if "map" in row]


def test_the_best_model_is_the_one_of_the_best_validation(data, make_config, tmp_path, monkeypatch):
    # Scores that disagree on which iteration is best.
    from agmh_fast.train import loop

    class Score:
        def __init__(self, value):
            self.map = value

    test, validation = iter([0.1, 0.9, 0.5]), iter([0.4, 0.2, 0.4])
    monkeypatch.setattr(loop, "evaluate", lambda *args, **kwargs: Score(next(test)))
    monkeypatch.setattr(loop, "validate", lambda *args, **kwargs: Score(next(validation)))
    result = fit(make_config(output=tmp_path, max_iter=3, select="validation"), data, progress=silent)
    assert (result.best_iteration, result.best_map, result.best_validation_map, result.map) == (1, 0.1, 0.4, 0.5)
    meta = train.load_meta(tmp_path)
    assert (meta["selected_by"], meta["iteration"], meta["map"], meta["validation_map"]) == ("validation", 1, 0.1, 0.4)
    test = iter([0.1, 0.9, 0.5])
    result = fit(make_config(max_iter=3, select="test"), data, progress=silent)
    assert (result.best_iteration, result.best_map, result.best_validation_map) == (2, 0.9, None)
    test = iter([0.1, 0.9, 0.5])
    result = fit(make_config(max_iter=3, select="last"), data, progress=silent)
    assert (result.best_iteration, result.best_map) == (3, 0.5)


def test_a_resumed_run_with_validation_is_bit_identical(data, make_config, tmp_path):
    whole = fit(make_config(select="validation"), data, progress=silent)
    config = make_config(select="validation", output=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(config, data, progress=Stopper(6))
    resumed = fit(config.replace(resume=True), data, progress=silent)
    assert torch.equal(whole.state.codes, resumed.state.codes)
    assert [row["validation_map"] for row in _rows(whole)] == [row["validation_map"] for row in _rows(resumed)]
