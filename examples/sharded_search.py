"""Search codes that are spread over several processes or machines, with the answers of one index.

    torchrun --nproc-per-node 2 examples/sharded_search.py --output shards

Every rank adds its own codes and makes the same calls; every rank gets the whole answer. Rank 0 holds the answers
against one index of all codes. Shards that were saved may be loaded by any number of ranks.
"""

import argparse

import numpy as np
import torch.distributed as dist

import agmh_fast as af

BITS = 64


def codes_of(rank, items):
    """What this rank would read from its own disk."""
    return np.random.default_rng(rank).integers(0, 256, (items, BITS // 8), dtype=np.uint8)


def main(items, output):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    index = af.ShardedHammingIndex(bits=BITS)
    index.add(codes_of(rank, items))  # ids count on through rank 0's codes, rank 1's, …
    queries = np.random.default_rng(100).integers(0, 256, (50, BITS // 8), dtype=np.uint8)
    found = index.search(queries, k=10)
    near = index.range_search(queries, radius=16)
    nearest = np.unique(found.ids[:, 0])
    index.remove(nearest)  # wherever they lie
    second = index.search(queries, k=9)

    if output is not None:
        index.save(output)  # one file a rank, and a manifest
        index = af.ShardedHammingIndex.load(output)
        assert (index.search(queries, k=9).ids == second.ids).all()

    if rank == 0:
        whole = af.HammingIndex(bits=BITS)
        for other in range(ranks):
            whole.add(codes_of(other, items))
        alone = whole.search(queries, k=10)
        assert (alone.ids == found.ids).all()
        assert (alone.distances == found.distances).all()
        assert (whole.range_search(queries, radius=16).ids == near.ids).all()
        whole.remove(nearest)
        assert (whole.search(queries, k=9).ids == second.ids).all()
        print(f"{len(index):,} codes on {ranks} ranks: the same answers as from one index")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000, help="codes of each rank")
    parser.add_argument("--output", help="folder that all ranks see, to save the shards in")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        main(options.items, options.output)
    finally:
        dist.destroy_process_group()
