"""Memory that is kept while a run lasts: pages that the system gives, counted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from agmh_fast.train import memory

PAGES = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
# Pages that a tensor takes once its memory could have been kept.
WITHIN = """
with kept_memory({}):
    [pages() for _ in range(3)]
    print(pages())
"""

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="memory is managed by something else here")


def _counted(body: str, **variables: str) -> list[int]:
    """What a program prints in a process of its own, which has `pages()`: those taken by a tensor of 64 MB that is
    filled and freed.
    """
    program = """
        import resource, threading, torch
        from agmh_fast.train.memory import kept_memory

        def pages():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.full((16 << 20,), 1.0)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        def resident():
            return int(open("/proc/self/statm").read().split()[1])

        cpu = torch.device("cpu")
        torch.set_num_threads(1)
        pages()
    """
    source = textwrap.dedent(program) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", source], env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_pages_are_taken_once():
    without, *within = _counted("""
        print(pages())
        with kept_memory(cpu):
            print(*(pages() for _ in range(6)))
    """)
    assert min(without, within[0]) >= 0.9 * PAGES
    # An aligned block may not fit where one of its size was, but fits between two.
    assert max(within[3:]) <= 0.01 * PAGES


def test_at_the_end_they_go_back():
    kept, after, taken = _counted("""
        with kept_memory(cpu):
            [pages() for _ in range(3)]
            print(resident())
        print(resident(), pages())
    """)
    assert kept - after >= 0.9 * PAGES
    assert taken >= 0.9 * PAGES


def test_it_lasts_until_the_last_one_that_asked_for_it_ends():
    inner, outer, other, after = _counted("""
        with kept_memory(cpu):
            with kept_memory(cpu):
                [pages() for _ in range(3)]
            print(pages())
            try:
                with kept_memory(cpu):
                    raise KeyError
            except KeyError:
                print(pages())
            entered, done = threading.Event(), threading.Event()

            def hold():
                with kept_memory(cpu):
                    entered.set()
                    done.wait()

            thread = threading.Thread(target=hold)
            thread.start()
            entered.wait()
        print(pages())
        done.set()
        thread.join()
        print(pages())
    """)
    assert max(inner, outer, other) <= 0.01 * PAGES
    assert after >= 0.9 * PAGES


@pytest.mark.parametrize("variables", [{"MALLOC_ARENA_MAX": "8"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}])
def test_what_the_environment_says_stands(variables):
    (taken,) = _counted(WITHIN.format("cpu"), **variables)
    assert taken >= 0.9 * PAGES


def test_gpus_have_an_allocator_of_their_own():
    (taken,) = _counted(WITHIN.format('torch.device("cuda")'))
    assert taken >= 0.9 * PAGES
