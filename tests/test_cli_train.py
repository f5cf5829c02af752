"""`agmh-fast train`: several code lengths, settings from a file, killed and resumed, and its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
import torch
from command_line import ENVIRONMENT, QUICK_TRAIN, require_mistake, run

import agmh_fast as af
from agmh_fast import InputError, train
from agmh_fast.train import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with six database images and three queries of three classes, and a run's settings."""
    monkeypatch.chdir(tmp_path)
    miniatures.put(tmp_path / "images", [f"{number}.jpg" for number in range(9)])
    miniatures.write(tmp_path / "train.txt", [f"images/{n}.jpg {n % 3}" for n in range(6)])
    miniatures.write(tmp_path / "test.txt", [f"images/{n}.jpg {n % 3}" for n in range(6, 9)])
    Path("run.toml").write_text(
        'dataset = "listing"\nroot = "."\nbackbone = "small"\nbits = [4, 8]\nnum-descriptors = 2\ndescriptor_dim = 4\n'
        "memory-size = 2\nbatch-size = 4\nmax-iter = 2\nmax-epoch = 1\neval-every = 1\nvalidation-share = 0.4\n"
        "checkpoint-seconds = 0\n"
    )
    return tmp_path


def test_several_lengths_from_a_file(folder, capsys):
    code, out, err = run(capsys, "train --config run.toml --output runs --json")
    assert code == 0, err
    told = json.loads(out)
    assert [made["bits"] for made in told["runs"]] == [4, 8]
    for made in told["runs"]:
        place = f"runs/{made['bits']}bits"
        assert made["output"] == place
        assert made["selected_by"] == "validation"
        assert made["best_validation_map"] == train.load_meta(place)["validation_map"]
        assert json.loads(Path(place, "result.json").read_text()) | {"output": place} == made
        assert train.load_run(place).bits == made["bits"]
    assert json.loads(Path("runs/config.json").read_text())["bits"] == [4, 8]
    assert "each length decodes the images anew: --cache keeps them, with --cache-whole every pixel" in err
    # A line a length, which says how the best was selected.
    code, out, _ = run(capsys, "train --resume --output runs")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["4 bits", "8 bits"]
    assert out.count("selected by validation (validation mAP ") == 2
    assert "selected by the test queries" in run(capsys, f"{QUICK_TRAIN} --config run.toml --max-iter 1 --output b")[1]


# Killed when an epoch begins: the third is the first one of the second length.
_KILLED = """
import os, signal, sys
from agmh_fast import cli
from agmh_fast.train import loop
order, left = loop.epoch_order, [int(sys.argv.pop(1))]
def killed(*args):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return order(*args)
loop.epoch_order = killed
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_run_of_several_lengths_goes_on_bit_for_bit(folder, capsys):
    line = ["train", "--config", "run.toml", "--output", "killed"]
    killed = subprocess.run([sys.executable, "-c", _KILLED, "3", *line], capture_output=True, env=ENVIRONMENT)
    assert killed.returncode == -9, killed.stderr
    assert (folder / "killed" / "8bits" / checkpoint.FILE).is_file()
    assert not (folder / "killed" / "8bits" / "final.safetensors").exists()
    assert run(capsys, "train --resume --output killed")[0] == 0
    assert run(capsys, "train --config run.toml --output whole")[0] == 0
    for bits in (4, 8):
        for which in ("best", "final"):
            ours, theirs = (train.load_run(f"{name}/{bits}bits", which).state_dict() for name in ("killed", "whole"))
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
            codes = (train.load_codes(f"{name}/{bits}bits", which) for name in ("killed", "whole"))
            assert torch.equal(*codes)


def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch):
    from agmh_fast.train import loop

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "epoch_order", stopped)
    code, out, err = run(capsys, "train --config run.toml --output runs")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "agmh-fast: interrupted; continue with: agmh-fast train --resume --output runs"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(capsys, "train --resume --output runs")[0] == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--config none.toml", "config: cannot read 'none.toml': No such file"),
        ("--config bad.toml", "config: speed in 'bad.toml': no setting of a run"),
        ("--config run.toml --bits 4,x", "bits must be a whole number from 1 to 4096, got 'x'"),
        ("--config run.toml --bits 4,4", "bits must be different code lengths"),
        ("--config run.toml --select best", "select must be one of validation, test, last"),
        ("--config run.toml --root nowhere", "root: 'nowhere/train.txt' is missing"),
        ("--config run.toml --bits 4 --weights none.pt", "no file 'none.pt'"),
        ("--config run.toml --bits 4 --weights other.pt", "weights: 'other.pt' does not fit the backbone: Missing key"),
        (
            "--config run.toml --bits 4 --backbone resnet18 --weights other.pt",
            "weights: 'other.pt' does not fit resnet18: Missing key",
        ),
        ("--config run.toml --bits 4 --validation-share 0.01", "select: there are too few images"),
        ("--config run.toml --precision fp8", "precision must be one of fp32, bf16, fp16"),
        ("--dataset cub --root .", "is missing: cub has images.txt"),
        ("--dataset food101", "root: dataset 'food101' needs its folder"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(folder, capsys, line, text):
    Path("bad.toml").write_text("speed = 3\n")
    torch.save({"conv.weight": torch.zeros(1)}, "other.pt")
    require_mistake(capsys, f"train {line} --output new", text, prints_splits=True)
    assert not list(folder.glob(f"new/**/{checkpoint.FILE}"))


def test_weights_that_do_not_fit_are_told_briefly(folder, capsys):
    torch.save({"conv.weight": torch.zeros(1)}, "other.pt")
    with pytest.raises(InputError) as error:
        af.AGMH(4, "resnet50", weights="other.pt")
    assert len(str(error.value)) < 300


def test_a_resume_that_does_not_fit_is_refused(folder, capsys):
    assert run(capsys, "train --config run.toml --bits 4 --output one")[0] == 0
    for given, text in (
        ("--bits 8", "bits is 8, but the run in 'one' has 4"),
        ("--bits 4,8", "bits is 4,8, but the run in 'one' has 4"),
        ("--backbone resnet18", "backbone is 'resnet18', but the run in 'one' has 'small'"),
        ("--select test", "select is 'test', but the run in 'one' has 'validation'"),
    ):
        require_mistake(capsys, f"train --resume --output one {given}", text, prints_splits=True)
    # What the file says is asked for as well.
    require_mistake(capsys, "train --resume --output one --config run.toml", "bits is 4,8", prints_splits=True)
    assert run(capsys, "train --resume --output one --max-iter 3")[0] == 0
    assert json.loads(Path("one/config.json").read_text())["max_iter"] == 3


def test_classes_that_do_not_match_and_broken_images_are_one_line(folder, capsys):
    cub = miniatures.cub(folder / "cub")
    listed = (cub / "image_class_labels.txt").read_text().replace("598 200", "598 199")
    (cub / "image_class_labels.txt").write_text(listed)
    require_mistake(capsys, "train --dataset cub --root cub --output new", "cub has 200 classes, 199 were found")
    Path("images/2.jpg").write_bytes(b"no image")
    line = "train --config run.toml --bits 4 --output new"
    require_mistake(capsys, line, "cannot read the image 'images/2.jpg'", prints_splits=True)
    assert run(capsys, "train --config run.toml --bits 4 --output other --skip-broken --validation-share 0.45")[0] == 0
    assert af.train.load_codes("other").shape == (5, 1)


def test_help_names_defaults_of_datasets(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "train --help")
    out = " ".join(capsys.readouterr().out.split())
    assert "(default: 2000; 4000 for nabirds, vegfru)" in out
    assert "(default: 40; 50 for food101, nabirds, vegfru)" in out
    assert "(default: none; IMAGENET1K_V1 for cub, aircraft, food101, nabirds, vegfru)" in out
    for option in ("--config", "--channels-last", "--compile", "--resume", "--precision", "--select"):
        assert option in out
