"""A moment of a tensor engine is there to go back to, whatever is done in between, and costs nothing until then."""

from __future__ import annotations

import pytest
import torch

from agmh_fast.search.tensor_engine import TensorEngine

CPU = torch.device("cpu")


def _codes(rows):
    return torch.randint(256, (rows, 6), dtype=torch.uint8)


@pytest.fixture
def engine():
    """With room behind its rows, of ids 0, 10, …"""
    made = TensorEngine(48, CPU)
    made.add(_codes(20), torch.arange(20) * 10)
    made.add(_codes(1), torch.tensor([200]))
    assert len(made._rows) > 21
    return made


CHANGES = {
    "behind, where there is room": lambda engine: engine.add(_codes(2), None),
    "behind, where there is none": lambda engine: engine.add(_codes(50), None),
    "behind, ids that leave a gap": lambda engine: engine.add(_codes(2), torch.tensor([300, 500])),
    "between": lambda engine: engine.add(_codes(2), torch.tensor([5, 15])),
    "removed": lambda engine: engine.remove(torch.tensor([0, 100])),
    "several": lambda engine: [change(engine) for name, change in CHANGES.items() if name != "several"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_going_back_is_as_if_nothing_had_been(engine, change):
    moment = engine.moment()
    rows, ids, next_id = engine.snapshot()
    before = rows.clone(), ids.clone()
    CHANGES[change](engine)
    after = engine.snapshot()
    assert not (torch.equal(after[0], rows) and torch.equal(after[1], ids))
    assert torch.equal(rows, before[0])  # no change overwrites what a moment holds
    assert torch.equal(ids, before[1])
    done = engine._items.done
    engine.restore(moment)
    now = engine.snapshot()
    assert now[0] is rows
    assert torch.equal(now[1], before[1])
    assert now[2] == next_id
    # The next change writes where the undone one may still be writing, on whatever stream that was.
    assert engine._items.done is done
    more = _codes(3)
    engine.add(more, None)
    assert torch.equal(engine.snapshot()[0][:, :6], torch.cat([before[0][:, :6], more]))
    assert torch.equal(engine.snapshot()[1], torch.cat([before[1], next_id + torch.arange(3)]))


def test_a_moment_that_is_held_makes_no_change_copy(engine):
    held, buffer = engine.moment(), engine._rows
    engine.add(_codes(len(buffer) - len(engine)), None)
    assert engine._rows is buffer
    assert engine._items.rows.data_ptr() == held.items.rows.data_ptr()
