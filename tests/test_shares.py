"""Even shares."""

from __future__ import annotations

import pytest

from agmh_fast.shares import share


@pytest.mark.parametrize("count", [0, 1, 7, 9, 12])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
def test_shares_are_even_and_whole(count, parts):
    shares = [range(count)[share(count, number, parts)] for number in range(parts)]
    assert [item for part in shares for item in part] == list(range(count))
    lengths = [len(part) for part in shares]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1
