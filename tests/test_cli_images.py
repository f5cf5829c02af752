"""From a trained run to codes, an index, images found, scores and pictures, by the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import miniatures
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, require_mistake, run
from interruptions import files_of_at_most

import agmh_fast as af
from agmh_fast import train
from agmh_fast.cli import main
from agmh_fast.cli.reports import score_figures
from agmh_fast.train.encoded import Encoder

TRAIN = (
    "train --dataset listing --root . --backbone small --num-descriptors 2 --descriptor-dim 4 --memory-size 2 "
    "--batch-size 4 --max-iter 1 --max-epoch 1 --select test"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with images, runs of 4 and 12 bits of a small backbone, and one of another seed."""
    folder = tmp_path_factory.mktemp("trained")
    miniatures.put(folder / "images", [f"deep/{n}.jpg" for n in range(5)] + [f"{n}.jpg" for n in range(5, 9)])
    places = [f"images/deep/{n}.jpg" if n < 5 else f"images/{n}.jpg" for n in range(9)]
    miniatures.write(folder / "train.txt", [f"{path} {n % 3}" for n, path in enumerate(places[:6])])
    miniatures.write(folder / "test.txt", [f"{path} {n % 3}" for n, path in enumerate(places[6:])])
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main([*TRAIN.split(), "--bits", "4,12", "--output", "runs"]) == 0
        assert main([*TRAIN.split(), "--bits", "12", "--seed", "5", "--output", "other"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def _expected(paths, which="best", dtype=None):
    model = train.load_run("runs/12bits", which).for_encoding(dtype)
    images = af.data.unlabelled(paths)
    return model.encode(images.load(torch.arange(len(images)), None)).numpy()


def test_encode_a_folder_and_a_list(folder, capsys):
    code, out, err = run(capsys, "encode runs/12bits images --output all --json")
    assert code == 0, err
    assert json.loads(out) == {"images": 9, "bits": 12, "output": "all"}
    paths = Path("all/paths.txt").read_text().splitlines()
    assert paths == sorted([*(f"{n}.jpg" for n in range(5, 9)), *(f"deep/{n}.jpg" for n in range(5))])
    assert np.array_equal(np.load("all/codes.npy"), _expected([f"images/{path}" for path in paths]))
    assert sorted(os.listdir("all")) == ["codes.npy", "encoded.json", "paths.txt"]

    miniatures.write(Path("images/some.txt"), ["8.jpg", "", "deep/2.jpg"])
    assert run(capsys, "encode runs/12bits images/some.txt --output some --model final --batch-size 1")[0] == 0
    assert np.array_equal(np.load("some/codes.npy"), _expected(["images/8.jpg", "images/deep/2.jpg"], "final"))
    # Whole codes are left as they are; other ones are not written over them.
    written = Path("some/codes.npy").stat().st_mtime_ns
    assert run(capsys, "encode runs/12bits images/some.txt --output some --model final")[0] == 0
    assert Path("some/codes.npy").stat().st_mtime_ns == written
    require_mistake(capsys, "encode runs/12bits images --output some", "'some' holds other codes")


def test_encode_in_another_precision(folder, capsys):
    line = "encode runs/12bits images --output half --precision bf16"
    assert run(capsys, line)[0] == 0
    paths = Path("half/paths.txt").read_text().splitlines()
    expected = _expected([f"images/{path}" for path in paths], dtype=torch.bfloat16)
    assert np.array_equal(np.load("half/codes.npy"), expected)
    assert json.loads(Path("half/encoded.json").read_text())["precision"] == "bf16"
    # Codes alone do not tell: a model as small as this one has the same in float32.
    assert Encoder.load("runs/12bits", device="cpu", precision="bf16").model.backbone.dtype == torch.bfloat16
    require_mistake(capsys, line.replace("bf16", "fp32"), "'half' holds other codes")
    require_mistake(capsys, "encode runs/12bits images --output other-half --precision fp16 --device cpu", "CUDA")
    require_mistake(capsys, "encode runs/12bits images --output other-half --precision fp8", "precision must be")
    # Queries are encoded as the items were.
    assert run(capsys, "index half --output half.db")[0] == 0
    code, out, err = run(capsys, "search half.db images/8.jpg -k 1 --json")
    assert code == 0, err
    assert json.loads(out)["results"][0]["found"][0]["distance"] == 0


_KILLED = """
import os, signal, sys
from agmh_fast import cli
from agmh_fast.train import encoded
text, left = encoded.write_text, [2]
def killed(path, content):
    text(path, content)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
encoded.write_text = killed
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_encoding_goes_on_where_it_was(folder, capsys, monkeypatch):
    line = "encode runs/12bits images --output killed --batch-size 2"
    killed = subprocess.run([sys.executable, "-c", _KILLED, *line.split()], capture_output=True, env=ENVIRONMENT)
    assert killed.returncode == -9, killed.stderr
    assert sorted(os.listdir("killed")) == ["codes.partial", "progress.json"]
    require_mistake(capsys, "index killed --output db", "'killed' holds no finished codes")
    assert json.loads(Path("killed/progress.json").read_text())["done"] == 4
    # A torn row after the last sync.
    with Path("killed/codes.partial").open("ab") as file:
        file.write(b"x")
    loaded, pixels = [], af.data.ImageFiles.pixels

    def counted(self, items, part, draw):
        loaded.extend(items[part].tolist())
        return pixels(self, items, part, draw)

    monkeypatch.setattr(af.data.ImageFiles, "pixels", counted)
    assert run(capsys, line)[0] == 0
    assert loaded == list(range(4, 9))
    assert run(capsys, "encode runs/12bits images --output whole --batch-size 2")[0] == 0
    for name in ("codes.npy", "paths.txt"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()


def test_an_image_that_changed_is_encoded_anew(folder, capsys):
    Path("images/8.jpg").write_bytes(b"")
    line = "encode runs/12bits images --output out --batch-size 1"
    require_mistake(capsys, line, "cannot read the image 'images/8.jpg'")
    assert json.loads(Path("out/progress.json").read_text())["done"] == 3
    Path("images/8.jpg").write_bytes(Path("images/7.jpg").read_bytes())
    assert run(capsys, line)[0] == 0
    codes = np.load("out/codes.npy")
    assert np.array_equal(codes[2], codes[3])
    Path("images/deep/4.jpg").write_bytes(b"broken")
    assert run(capsys, "encode runs/12bits images --output less --skip-broken")[0] == 0
    assert "deep/4.jpg" not in Path("less/paths.txt").read_text().split()


def test_a_full_disk_is_one_line_and_the_encoding_goes_on(folder, capsys):
    line = "encode runs/12bits images --output out --batch-size 2"
    # The header has 128 bytes: room for the codes of some batches, but not of all.
    with files_of_at_most(128 + 9):
        require_mistake(capsys, line, "output: cannot write in 'out': File too large; make room")
    assert json.loads(Path("out/progress.json").read_text())["done"] == 4
    assert run(capsys, line)[0] == 0
    assert run(capsys, line.replace("--output out", "--output whole"))[0] == 0
    assert Path("out/codes.npy").read_bytes() == Path("whole/codes.npy").read_bytes()


def test_index_and_search_with_images(folder, capsys):
    assert run(capsys, "encode runs/12bits images --output all")[0] == 0
    code, out, _ = run(capsys, "index all --output db.safetensors --json")
    assert code == 0
    assert json.loads(out) == {"items": 9, "bits": 12, "output": "db.safetensors"}
    line = "search db.safetensors images/deep/1.jpg images/7.jpg -k 3 --sheet sheet.png"
    code, out, err = run(capsys, f"{line} --json")
    assert code == 0, err
    told = json.loads(out)
    codes, paths = np.load("all/codes.npy"), Path("all/paths.txt").read_text().splitlines()
    queries = _expected(["images/deep/1.jpg", "images/7.jpg"])
    assert told["images"] == str(folder / "images")
    for query, row in zip(queries, told["results"], strict=True):
        distances = np.unpackbits(query ^ codes, axis=1).sum(1)
        order = np.argsort(distances, kind="stable")[:3]
        assert row["found"] == [{"id": int(i), "path": paths[i], "distance": int(distances[i])} for i in order]
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, "search db.safetensors images/7.jpg -k 2")
    lines = out.splitlines()
    assert (code, len(lines), lines[0]) == (0, 3, "images/7.jpg:")
    assert lines[1].startswith("    1     0 bits  ")
    # Nothing within reach is said, and is an empty row of the sheet.
    np.save("far.npy", ~queries[:1] & np.array([0xFF, 0xF0], np.uint8))
    assert run(capsys, "index far.npy --bits 12 --output far.safetensors")[0] == 0
    require_mistake(capsys, "search far.safetensors images/7.jpg", "was not made of encoded images")


def test_an_index_keeps_what_it_is_of(folder, capsys):
    assert run(capsys, "encode runs/12bits images --output all")[0] == 0
    assert run(capsys, "index all --output db")[0] == 0
    np.save("bad.npy", np.full((3, 2), 255, np.uint8))
    require_mistake(capsys, "index bad.npy --bits 12 --output db", "row 0 has bits set beyond the 12 bits")
    assert run(capsys, "search db images/7.jpg -k 1")[0] == 0
    # Items that came by another way have no image.
    index = af.HammingIndex.load("db")
    index.add(index.codes[:1])
    index.save("db")
    require_mistake(capsys, "search db images/7.jpg -k 1", "does not name: write it anew")


def test_codes_of_another_model_are_refused(folder, capsys):
    assert run(capsys, "encode runs/12bits images --output all")[0] == 0
    assert run(capsys, "index all --output db")[0] == 0
    for line, text in (
        ("search db images/7.jpg --run runs/4bits", "run: the index has codes of 12 bits, the model gives 4"),
        ("search db images/7.jpg --run other", "run: the codes were made by another model (best of "),
        ("search db images/7.jpg --run nowhere", "there is no best.safetensors in 'nowhere'"),
        ("search db images/7.jpg --model worst", "which must be best or final"),
        ("search db images/none.jpg", "cannot read the image 'images/none.jpg'"),
        ("search db images/7.jpg all/codes.npy", "give images alone"),
        ("search db all/codes.npy --sheet x.png", "sheet: goes with images"),
        ("search db images/7.jpg --sheet no/x.png", "'no'"),
        ("index all --bits 8 --output y", "bits is 8, but 'all' holds codes of 12"),
        ("index all/codes.npy --output y", "bits: give --bits"),
        ("encode runs images --output y", "in 'runs': name one of runs/12bits, runs/4bits"),
        ("encode runs/12bits nothing --output y", "there is no folder and no list file 'nothing'"),
        ("encode runs/12bits runs --output y", "there is no image in 'runs'"),
        ("encode runs/12bits images --output y --device tpu", "device"),
        ("visualize runs/12bits --output y --device tpu", "device: cannot use 'tpu'"),
        ("visualize runs/12bits images/7.jpg --output y --device tpu", "device: cannot use 'tpu'"),
        ("evaluate runs --device tpu", "device must be None, 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ("search db images/7.jpg --device tpu", "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ("visualize runs/12bits images/none.jpg --output y", "cannot read the image"),
        ("visualize runs/12bits images/7.jpg --projection pca --output y", "projection: goes with the codes of a run"),
        ("visualize runs/12bits --projection umap --output y", "projection must be one of pca, tsne, got 'umap'"),
        ("visualize runs/12bits --root nowhere --output y", "root: 'nowhere/train.txt' is missing"),
        ("evaluate runs --root nowhere", "root: 'nowhere/train.txt' is missing"),
        ("evaluate runs other --query-codes all/codes.npy", "not both"),
        ("evaluate nowhere", "there is no best.safetensors in 'nowhere'"),
    ):
        require_mistake(capsys, line, text)
    assert not Path("y", "codes.npy").exists()
    Path("train.txt").write_text("".join(Path("train.txt").read_text().splitlines(keepends=True)[1:]))
    require_mistake(capsys, "evaluate runs", "run: 'runs/4bits' was trained on other splits of 'listing'")


def test_evaluate_runs(folder, capsys):
    code, out, err = run(capsys, "evaluate runs other --json --figures figures --report scores.html")
    assert code == 0, err
    told = json.loads(out)["runs"]
    assert [(row["run"], row["bits"], row["selected_by"]) for row in told] == [
        ("runs/4bits", 4, "test"),
        ("runs/12bits", 12, "test"),
        ("other", 12, "test"),
    ]
    data = af.data.load("listing", ".")
    for row in told:
        queries = train.encode_set(train.load_run(row["run"]), data.query)
        for ties, score in row["scores"].items():
            labels = data.query.labels, data.database.labels
            expected = af.metrics.retrieval(queries, train.load_codes(row["run"]), *labels, row["bits"], ties)
            assert score == json.loads(json.dumps(expected.as_dict()))
        assert row["scores"]["stable"]["map"] == train.load_meta(row["run"])["map"]
    for name in ("precision_recall", "map_by_bits"):
        assert Path(f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    page = Path("scores.html").read_text()
    for row in told:
        assert f"<h2>{row['run']}</h2>" in page
        assert f"<td>{row['scores']['stable']['map']:.4f}</td>" in page
    assert page.count("Of the best model, after iteration 1, selected by test. ") == 3
    assert "mAP by code length: " in page
    code, out, _ = run(capsys, "evaluate runs --model final")
    assert code == 0
    assert "runs/4bits: 4 bits, final model, after iteration 1, selected by last" in out
    assert "\nmAP               4 bits    12 bits\nstable " in out


def test_visualize(folder, capsys):
    code, out, _ = run(capsys, "visualize runs/12bits --output pictures")
    assert (code, out) == (0, "pictures/attention.png\npictures/codes.png\n")
    assert run(capsys, "visualize runs/12bits images/7.jpg images/8.jpg --output own --json")[0] == 0
    assert os.listdir("own") == ["attention.png"]
    if importlib.util.find_spec("sklearn") is not None:
        assert run(capsys, "visualize runs/12bits --output tsne --projection tsne")[0] == 0
        assert Path("tsne/codes.png").read_bytes() != Path("pictures/codes.png").read_bytes()
    for path in ("pictures/attention.png", "pictures/codes.png", "own/attention.png"):
        assert Path(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("projection", "text"), [("umap", "one of pca, tsne"), ("tsne", "needs scikit-learn")])
def test_a_projection_that_cannot_be_is_told_before_the_run_is_read(capsys, tmp_path, monkeypatch, projection, text):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.chdir(tmp_path)
    require_mistake(capsys, f"visualize nowhere --output pictures --projection {projection}", text)
    assert os.listdir() == []


def test_a_run_on_grey_words_encodes_no_files(folder, capsys, monkeypatch):
    small = af.data.fonts(size=16, words_per_class=1, queries_per_class=1)
    monkeypatch.setitem(af.data.DATASETS, "fonts", lambda: small)
    line = TRAIN.replace("--dataset listing --root .", "--dataset fonts --num-samples 8")
    assert run(capsys, f"{line} --bits 4 --output words")[0] == 0
    require_mistake(capsys, "encode words images --output y", "takes the images of 'fonts', not image files")
    assert run(capsys, "visualize words --output pictures")[0] == 0


def test_lengths_side_by_side_are_one_line_and_a_run_alone_has_its_name():
    curve = SimpleNamespace(precision=np.ones(3), recall=np.ones(3))
    runs = {"cub/12bits": 12, "cub/24bits": 24, "other": 12, "again/12bits": 12, "again/b": 12}
    runs |= {"cub": 12, "again/b/12bits": 12, "again/b/24bits": 24}
    scored = {name: {"stable": SimpleNamespace(bits=bits, map=0.5, pr_curve=curve)} for name, bits in runs.items()}
    lines = score_figures(scored)["map_by_bits"].axes[0].get_lines()  # type: ignore[arg-type]
    found = {line.get_label(): list(line.get_xdata()) for line in lines}
    alone = {"other": [12], "cub": [12], "again/12bits": [12], "again/b": [12]}
    assert found == alone | {"cub/*": [12, 24], "again/b/*": [12, 24]}
