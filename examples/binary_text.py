"""Search text by meaning, a bit a dimension: binary embeddings (`ubinary`), then the float query decides.

The texts are the summaries of Python's own standard library, the model is the one that the package wordllama carries
inside itself (256 dimensions, 16 MB, nothing is downloaded). Any model with float embeddings does:

    ubinary = quantize_embeddings(embeddings, precision="ubinary")  # of sentence-transformers: the same bytes

    pip install 'agmh-fast[text]'
    python examples/binary_text.py "parse a date from a string" "compress a file"
"""

import argparse
import ast
import sysconfig
import time
from pathlib import Path

import numpy as np
import wordllama

import agmh_fast as af

QUERIES = ["compress a file", "random choice from a sequence", "wait until another thread is done"]
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo"}


def summaries(folder):
    """(names, first sentences of the docstrings) of the public functions, classes and methods below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*.py")):
        module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        if not LEFT_OUT.intersection(path.parts):
            collect(ast.parse(path.read_bytes()), module, found)
    return list(found), list(found.values())


def collect(parent, name, found):
    """Add the summary of every public definition in `parent`, and in the classes there."""
    if any(part.startswith("_") for part in name.split(".")):
        return
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(text.split()) > 3 and not node.name.startswith("_"):
                found[f"{name}.{node.name}"] = text
        if isinstance(node, ast.ClassDef):
            collect(node, f"{name}.{node.name}", found)


def load_model():
    """wordllama with the weights and the tokenizer of its own folder."""
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def main(queries, k, factor):
    names, texts = summaries(sysconfig.get_path("stdlib"))
    model = load_model()
    embeddings = model.embed(texts, norm=True)  # (N, 256) float32
    ubinary = np.packbits(embeddings > 0, axis=1)  # (N, 32) uint8

    index = af.HammingIndex(bits=embeddings.shape[1])
    index.add(ubinary)
    print(f"{len(index)} summaries, {embeddings.nbytes:,} bytes as floats, {ubinary.nbytes:,} as bits")

    def search(text):
        query = model.embed(text, norm=True)
        candidates = index.search(np.packbits(query > 0, axis=1), factor * k).ids[0]
        scores = embeddings[candidates] @ query[0]  # as many rows as there are candidates, no more
        best = np.argsort(-scores, kind="stable")[:k]
        return candidates[best], scores[best]

    for text in queries:
        print(f"\n{text}")
        for item, score in zip(*search(text), strict=True):
            print(f"  {score:.2f}  {names[item]}: {texts[item][:70]}")

    # What the bits lose: how many of the k nearest by floats are found, for texts of the collection as queries.
    sample = np.random.default_rng(0).choice(len(texts), 200, replace=False)
    start = time.perf_counter()
    candidates = index.search(ubinary[sample], factor * k).ids
    seconds = time.perf_counter() - start
    exact = np.argsort(-(embeddings[sample] @ embeddings.T), axis=1, kind="stable")[:, :k]
    for depth in (k, factor * k):
        found = [np.isin(true, near[:depth]).mean() for true, near in zip(exact, candidates, strict=True)]
        print(f"\nof the {k} nearest by floats, among the {depth} nearest by bits: {np.mean(found):.3f}", end="")
    print(f"\n{1e6 * seconds / len(sample):.0f} µs a query, {len(sample)} at once")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES)
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--factor", type=int, default=10, help="candidates for each of the k results")
    options = parser.parse_args()
    main(options.queries, options.k, options.factor)
