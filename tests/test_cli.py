"""The command line: exit codes, one line for a mistake, JSON that a program can read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniatures
import numpy as np
import pytest
from command_line import COMMAND, ENVIRONMENT, QUICK_TRAIN, require_mistake, run

import agmh_fast as af
from agmh_fast.cli import COMMANDS, main
from agmh_fast.train import checkpoint


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Codes of 12 bits and labels in the current folder: 30 items, of which the first 5 are also the queries."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    codes = np.packbits(rng.integers(0, 2, (30, 12), dtype=np.uint8), axis=1)
    labels = rng.integers(0, 3, 30)
    for name, array in {"x": codes, "q": codes[:5], "xl": labels, "ql": labels[:5]}.items():
        np.save(f"{name}.npy", array)
    return codes, labels


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  agmh-fast {command}" in capsys.readouterr().out


def test_top_level_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(re.search(rf"^    {name}\s", out, re.MULTILINE) for name in COMMANDS)


def test_top_level_help_imports_nothing_heavy():
    code = "import sys; from agmh_fast.cli import _parser; _parser([]).format_help(); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert said.stdout == "False\n", said.stderr


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"agmh-fast {af.__version__}\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "command"),
        ("fly", "invalid choice: 'fly'"),
        ("demo --bits many", "--bits"),
        ("demo --bits 0 --output new", "bits must be a whole number from 1 to 4096"),
        ("demo --bits 4097 --output new", "bits must be a whole number from 1 to 4096"),
        ("demo --seed -1 --output new", "seed"),
        ("demo --device tpu --output new", "device"),
        ("demo --output x.npy", "output folder 'x.npy'"),
        ("demo --output x.npy/deeper", "output folder"),
        ("demo --quick --resume --output new", "no checkpoint.pt in 'new/training' to resume"),
        ("train --dataset nosuch", "dataset 'nosuch' is not known"),
        ("train --bits 0", "bits"),
        ("train --lr 0", "lr"),
        ("train --backbone vgg", "backbone"),
        ("train --resume --output nowhere", "no checkpoint.pt in 'nowhere' to resume"),
        ("train --dataset fonts --root x", "root"),
        ("train --dataset fonts --skip-broken", "dataset 'fonts' takes no skip_broken"),
        ("train --dataset cub --root nowhere", "is missing: cub has images.txt"),
        ("data", "task"),
        ("data check --dataset cub", "--root"),
        ("data check --dataset dogs --root x", "dataset 'dogs' is not known"),
        ("data check --dataset fonts --root x", "dataset 'fonts' takes no root"),
        ("data check --dataset food101 --root x.npy", "is missing: food101 has meta/labels.txt"),
        ("data check --dataset listing --root .", "'train.txt' is missing"),
        ("index x.npy --bits 48 --output y", "codes must have 6 bytes a row for 48 bits"),
        ("index x.npy --bits 0 --output y", "bits"),
        ("index xl.npy --bits 12 --output y", "codes must be uint8"),
        ("index missing.npy --bits 12 --output y", "codes: cannot read 'missing.npy'"),
        ("index x.npy --bits 12 --output no/y", "'no'"),
        ("index x.npy --bits 12", "--output"),
        ("search x.npy q.npy", "x.npy"),
        ("search missing q.npy", "missing"),
        ("search x.npy q.npy --top 3", "unrecognized arguments: --top 3 (see agmh-fast search --help)"),
        ("evaluate --query-codes q.npy --database-codes x.npy --query-labels xl.npy --database-labels xl.npy", "label"),
        ("evaluate --query-codes q.npy", "--query-labels"),
        ("evaluate --query-codes q.npy --report nowhere/scores.html", "report: there is no folder 'nowhere'"),
        ("bench --report .", "report: '.' is a folder"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(files, capsys, line, text):
    require_mistake(capsys, line, text)
    assert not Path("y").exists()
    assert not Path("new", "summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_a_mistake(files, capsys, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    require_mistake(capsys, "demo --quick --output locked", "output folder 'locked'")


def test_an_object_array_is_not_unpickled(files, capsys):
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    require_mistake(capsys, "index objects.npy --bits 12 --output y", "cannot read 'objects.npy'")


def test_index_and_search(files, capsys):
    codes, _ = files
    code, out, err = run(capsys, "index x.npy --bits 12 --output db.safetensors --json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"items": 30, "bits": 12, "output": "db.safetensors"}

    code, out, err = run(capsys, "search db.safetensors q.npy -k 40 --max-distance 6 --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["k"], found["bits"], found["items"]) == (40, 12, 30)
    for query, row in zip(codes[:5], found["results"], strict=True):
        distance = np.unpackbits(query ^ codes, axis=1).sum(1)
        order = np.argsort(distance, kind="stable")
        order = order[distance[order] <= 6]
        assert row["ids"] == order.tolist()
        assert row["distances"] == distance[order].tolist()

    code, out, _ = run(capsys, "search db.safetensors q.npy -k 1 --device cpu")
    assert code == 0
    assert out.splitlines()[0].startswith("query 0: 0 (0 bits)")
    assert run(capsys, "index x.npy --bits 12 --output db.safetensors")[1].startswith("30 codes of 12 bits")


def test_an_index_is_searched_on_the_device_that_is_named(files, capsys, monkeypatch):
    assert run(capsys, "index x.npy --bits 12 --output db")[0] == 0
    load, devices = af.HammingIndex.load, []

    def loaded(path, device):
        devices.append(device)
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(af.HammingIndex, "load", loaded)
        for option in ("", " --device cuda:1"):
            assert run(capsys, f"search db q.npy{option}")[0] == 0
    assert devices == ["cpu", "cuda:1"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    require_mistake(capsys, "search db q.npy --device cuda", "there is no CUDA device")


def test_evaluate_agrees_with_the_function(files, capsys):
    codes, labels = files
    line = (
        "evaluate --query-codes q.npy --query-labels ql.npy --database-codes x.npy --database-labels xl.npy --bits 12"
    )
    code, out, err = run(capsys, line + " -k 20 --json")
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert list(scores) == ["stable", "expected", "optimistic", "pessimistic"]
    for ties, score in scores.items():
        expected = af.metrics.retrieval(codes[:5], codes, labels[:5], labels, bits=12, ties=ties, k=20)
        assert score == json.loads(json.dumps(expected.as_dict()))
    code, out, _ = run(capsys, line + " --report scores.html")
    assert code == 0
    score = f"{af.metrics.retrieval(codes[:5], codes, labels[:5], labels, bits=12).map:.4f}"
    assert score in out.splitlines()[1]
    page = Path("scores.html").read_text()
    assert f'<th scope="row">stable</th><td>{score}</td>' in page
    assert '<img alt="Precision over recall of q.npy"' in page


def test_info(capsys):
    code, out, err = run(capsys, "info --json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["versions"]["agmh-fast"] == af.__version__
    assert set(facts["auto picks on cpu"]) == set(facts["implementations, fastest first"]) == set(af.functional.OPS)
    assert {"isa", "available", "cuda_architectures"} <= set(facts["search engine (agmh_fast._engine)"])
    assert facts["devices"]["threads"].endswith(f"compiled engine {af.get_num_threads()}")
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert re.search(r"^  hamming_topk +cpu; not cuda: the codes are on cpu$", out, re.MULTILINE)


def test_info_shows_what_the_environment_forces(capsys, monkeypatch):
    monkeypatch.setattr("agmh_fast.ops.registry.FORCED", "cpu")
    monkeypatch.setenv("AGMH_FAST_IMPL", "cpu")
    code, out, _ = run(capsys, "info --json")
    assert code == 0
    facts = json.loads(out)
    assert facts["environment"]["AGMH_FAST_IMPL"] == "cpu"
    assert facts["auto picks on cpu"]["hamming_topk"] == "cpu"
    # An op that has no such implementation raises where it is called, and here it says so.
    assert facts["auto picks on cpu"]["encode_descriptors"].startswith("an error: impl='cpu' is not known")


def test_train_and_resume(tmp_path, monkeypatch, capsys, small_fonts):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, f"{QUICK_TRAIN} --max-iter 1 --max-epoch 1 --output run --json")
    assert code == 0
    result = json.loads(out)
    assert result["output"] == "run"
    assert 0 < result["map"] == result["best_map"] <= 1
    assert af.train.load_run("run").bits == 8
    # The stored settings are taken over; a different one is refused.
    code, out, _ = run(capsys, "train --resume --output run")
    assert code == 0
    assert f"mAP {result['map']:.4f}" in out
    require_mistake(capsys, "train --resume --output run --bits 12", "bits is 12, but the run in 'run' has 8")
    require_mistake(capsys, f"{QUICK_TRAIN} --output run", "already holds a run")


@pytest.fixture
def small_fonts(monkeypatch):
    """The fonts dataset with little to render."""
    from agmh_fast import data

    small = data.fonts(size=16, words_per_class=1, queries_per_class=1)
    monkeypatch.setitem(data.DATASETS, "fonts", lambda: small)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    output = tmp_path / "demo"
    line = [*COMMAND, "demo", "--quick", "--bits", "8", "--output", str(output)]
    # A session of its own, as a terminal's Ctrl-C would otherwise reach these tests too.
    slow = [*COMMAND[:1], "-c", _SLOW_DEMO, *line[3:]]
    with subprocess.Popen(slow, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True) as process:
        try:
            _wait_for(output / "training" / checkpoint.FILE, process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    hint = f"agmh-fast demo --output {output} --bits 8 --seed 0 --quick --resume"
    assert err.splitlines()[-1] == f"agmh-fast: interrupted; continue with: {hint}"
    assert "Traceback" not in err
    assert not (output / "summary.json").exists()
    resumed = subprocess.run([*COMMAND, *hint.split()[1:]], capture_output=True, text=True, env=ENVIRONMENT)
    assert resumed.returncode == 0, resumed.stderr
    assert (output / "summary.json").exists()


# The demo with a pause in every epoch, so that the signal meets it while it trains. What a shell has put into the
# background ignores the signal, and so would its children.
_SLOW_DEMO = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from agmh_fast import cli
from agmh_fast.train import loop
order = loop.epoch_order
loop.epoch_order = lambda *args: time.sleep(30) or order(*args)
sys.exit(cli.main(sys.argv[1:]))
"""


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the demo ended before its first checkpoint"
        assert time.monotonic() < deadline, f"there was no {path}"
        time.sleep(0.05)


def test_a_reader_that_leaves_is_no_fault(files):
    assert main(["index", "x.npy", "--bits", "12", "--output", "db"]) == 0
    line = [*COMMAND, "search", "db", "x.npy", "-k", "30"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == ""


def test_data_check(tmp_path, capsys):
    folder = miniatures.cub(tmp_path / "CUB_200_2011")
    line = f"data check --dataset cub --root {tmp_path}"
    code, out, err = run(capsys, f"{line} --json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    data = af.data.load("cub", folder)
    assert report == {
        "dataset": "cub",
        "folder": str(folder),
        "classes": 200,
        "official": {"classes": 200, "database": 5994, "query": 5794},
        "splits": {
            name: {
                "images": len(images),
                "classes": classes,
                "smallest_class": 1,
                "largest_class": largest,
                "fingerprint": images.fingerprint,
                "missing": [],
                "broken": [],
            }
            for name, images, classes, largest in (("database", data.database, 200, 2), ("query", data.query, 199, 1))
        },
    }
    code, out, err = run(capsys, line)
    assert (code, err) == (0, "")
    assert "200 classes (officially 200)" in out
    assert "query: 199 images (officially 5794), 199 classes of 1 to 1 images" in out
    assert f"SHA-256 {data.query.fingerprint}" in out


def test_data_check_names_what_is_missing_or_broken(tmp_path, capsys):
    folder = miniatures.cub(tmp_path / "CUB_200_2011")
    data = af.data.load("cub", folder)
    database, query = data.database.paths, data.query.paths
    (folder / database[5]).unlink()
    (folder / query[0]).write_bytes((folder / query[0]).read_bytes()[:-200])
    for path in query[1:26]:
        (folder / path).write_bytes(b"")
    line = f"data check --dataset cub --root {folder}"
    code, out, err = run(capsys, f"{line} --json")
    splits = json.loads(out)["splits"]
    assert code == 2
    assert err == "agmh-fast: root: 27 of 598 images are missing or broken: mend them, or use skip_broken\n"
    assert splits["database"]["missing"] == [database[5]]
    assert splits["database"]["broken"] == splits["query"]["missing"] == []
    assert [fault["path"] for fault in splits["query"]["broken"]] == list(query[:26])
    assert "truncated" in splits["query"]["broken"][0]["reason"]
    code, out, _ = run(capsys, line)
    assert code == 2
    assert f"  missing {database[5]}\n" in out
    assert f"  broken {query[0]}: image file is truncated" in out
    assert "  and 6 more, all of them in --json" in out


def test_train_on_files_says_and_keeps_which_split_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    miniatures.put(tmp_path / "images", [f"{number}.jpg" for number in range(9)])
    miniatures.write(tmp_path / "train.txt", [f"images/{n}.jpg {'a,b' if n % 2 else 'c'}" for n in range(6)])
    miniatures.write(tmp_path / "test.txt", [f"images/{n}.jpg {'b' if n % 2 else 'c'}" for n in range(6, 9)])
    line = f"{QUICK_TRAIN} --dataset listing --root . --backbone resnet18 --max-iter 1 --max-epoch 1 --output run"
    code, _, err = run(capsys, line)
    assert code == 0, err
    marks = af.data.load("listing", ".").fingerprints
    assert f"listing, database: 6 images, SHA-256 {marks['database']}\n" in err
    assert af.train.load_meta("run")["fingerprints"] == marks
    assert af.train.load_run("run").bits == 8
    # Another split is no continuation of the run, though it has as many images and the same labels.
    Path("images/9.jpg").write_bytes(Path("images/0.jpg").read_bytes())
    text = Path("train.txt").read_text()
    Path("train.txt").write_text(text.replace("images/0.jpg", "images/9.jpg"))
    require_mistake(capsys, "train --resume --output run", "dataset is", prints_splits=True)
    Path("train.txt").write_text(text + "images/10.jpg c\n")
    require_mistake(capsys, f"{line}-2 --num-samples 9", "cannot read the image 'images/10.jpg'", prints_splits=True)
    assert run(capsys, "train --resume --output run --skip-broken")[0] == 0
