"""Settings from the published ones, a file and options, and runs of several code lengths."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from interruptions import Countdown

from agmh_fast import InputError, train
from agmh_fast.train import TrainConfig, fit, silent
from agmh_fast.train.settings import FILE, PUBLISHED, code_lengths, plan, read_settings, stored_plan


def test_options_go_before_the_file_and_the_file_before_what_was_published(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('dataset = "nabirds"\nmax-iter = 7\nlr = 0.01\nbits = [12, 24]\n')
    made = plan({"lr": 0.5, "weights": None}, file)
    config = made.config
    assert made.lengths == (12, 24)
    assert (config.lr, config.weights, config.max_iter, config.num_samples) == (0.5, None, 7, 4000)
    assert (config.backbone, config.max_epoch, config.output) == ("resnet50", 30, "train-out")


@pytest.mark.parametrize(
    ("dataset", "max_iter", "num_samples"),
    [
        ("cub", 40, 2000),
        ("aircraft", 40, 2000),
        ("food101", 50, 2000),
        ("nabirds", 50, 4000),
        ("vegfru", 50, 4000),
        ("listing", 40, 2000),
    ],
)
def test_defaults_are_those_published_for_the_dataset(dataset, max_iter, num_samples):
    config = plan({"dataset": dataset}).config
    assert (config.max_iter, config.num_samples) == (max_iter, num_samples)
    assert (config.weights == "IMAGENET1K_V1") == (dataset in PUBLISHED)


def test_none_in_a_file_is_none_where_it_may_be(tmp_path):
    """TOML has no null."""
    file = tmp_path / "run.toml"
    file.write_text('dataset = "cub"\nweights = "none"\nselect = "none"\n')
    assert read_settings(file) == {"dataset": "cub", "weights": None, "select": "none"}
    assert plan({"select": "last"}, file).config.weights is None


def test_published_weights_go_with_a_backbone_that_has_some():
    assert plan({"dataset": "cub", "backbone": "small"}).config.weights is None
    assert plan({"dataset": "cub", "backbone": "resnet18"}).config.weights == "IMAGENET1K_V1"
    assert plan({"dataset": "cub", "backbone": "small", "weights": "own.pth"}).config.weights == "own.pth"


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml", ".json"])
def test_a_file_of_each_kind(tmp_path, suffix, monkeypatch):
    # PyYAML need not be there: a parser of the same interface stands for it.
    yaml = SimpleNamespace(safe_load=lambda text: {"lr": "1e-3", "bits": 12}, YAMLError=KeyError)
    monkeypatch.setitem(sys.modules, "yaml", yaml)
    file = tmp_path / f"run{suffix}"
    file.write_text(json.dumps({"lr": 1e-3, "bits": 12}) if suffix == ".json" else "lr = 1e-3\nbits = 12\n")
    assert read_settings(file) == {"lr": 1e-3, "bits": 12}


def test_pyyaml_itself(tmp_path):
    pytest.importorskip("yaml")
    file = tmp_path / "run.yaml"
    file.write_text(
        "# as written by hand\nbits: [12, 24]\nlr: 1e-3\nchannels-last: true\nweights: null\nselect: last\n"
    )
    expected = {"bits": [12, 24], "lr": 1e-3, "channels_last": True, "weights": None, "select": "last"}
    assert read_settings(file) == expected
    assert plan({}, file).lengths == (12, 24)
    for text in ("bits: [12", "a: b: c", "- bits"):
        file.write_text(text)
        with pytest.raises(InputError, match="config: ") as error:
            plan({}, file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.toml", "bitz = 12\nlr = 1\nspeed = 3\n", "config: bitz, speed in .*: no settings of a run, which are"),
        ("run.toml", "bits = \n", "config: cannot read .*run.toml"),
        ("run.json", "[1]", "must hold names and values, got list"),
        ("run.ini", "", "must end in .toml, .yaml, .yml, .json"),
        ("run.toml", 'lr = "fast"', "lr must be a number above 0"),
        ("run.toml", 'resume = "yes"\noutput = "nowhere"', "there is no checkpoint.pt in 'nowhere'"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path, name, text, said):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        plan({}, file)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_parser_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"config: cannot read .*none\.toml.*: No such file"):
        plan({}, tmp_path / "none.toml")
    for suffix, modules, said in ((".yaml", ["yaml"], "needs PyYAML"), (".toml", ["tomllib", "tomli"], "or tomli")):
        file = tmp_path / f"run{suffix}"
        file.write_text("")
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=said):
            plan({}, file)


def test_code_lengths():
    assert code_lengths("12, 24,48") == code_lengths([12, 24, 48]) == (12, 24, 48)
    assert code_lengths(16) == code_lengths("16") == (16,)
    for bad in ("", "12,", "12,x", "12,12", [], 0, [12, 5000], 12.0, None, "-1"):
        with pytest.raises(InputError, match="bits"):
            code_lengths(bad)


def _run(made: train.Plan, data, progress=silent) -> None:
    made.claim()
    for config in made.runs():
        fit(config, data, progress=progress)


# 16 batches a run: in the first run, at the first batch of the second, in the middle of the third.
@pytest.mark.parametrize("stops", [[5], [17], [40], [5, 20, 15]])
def test_several_lengths_are_the_runs_of_each_resumed_or_not(data, make_config, tmp_path, stops):
    lengths = (4, 8, 12)
    given = make_config(output=tmp_path / "all").to_mapping() | {"bits": "4,8,12"}
    made = plan(given)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            _run(made, data, Countdown(stop))
        made = plan({"resume": True, "output": str(tmp_path / "all")})
    assert made.lengths == lengths
    _run(made, data)
    for bits in lengths:
        alone = fit(make_config(bits=bits, output=tmp_path / f"{bits}"), data, progress=silent)
        folder = tmp_path / "all" / f"{bits}bits"
        for which in ("best", "final"):
            ours, theirs = (train.load_run(place, which).state_dict() for place in (folder, tmp_path / f"{bits}"))
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            codes = (train.load_codes(place, which) for place in (folder, tmp_path / f"{bits}"))
            assert torch.equal(*codes)
        told = json.loads((folder / "result.json").read_text())
        assert (told["bits"], told["map"], told["selected_by"]) == (bits, alone.map, "test")
        assert (folder / "scalars.csv").is_file()


def test_the_resolved_settings_are_stored_and_can_be_given_again(data, make_config, tmp_path):
    made = plan(make_config(output=tmp_path / "a", max_iter=1).to_mapping() | {"bits": [4, 8]})
    made.claim()
    stored = json.loads((tmp_path / "a" / FILE).read_text())
    assert stored == made.config.to_mapping() | {"bits": [4, 8]}
    again = plan({"output": str(tmp_path / "b")}, tmp_path / "a" / FILE)
    assert again.config == made.config.replace(output=str(tmp_path / "b"))
    # Killed before the first checkpoint: it begins when it is resumed.
    assert [config.resume for config in plan({"resume": True, "output": str(tmp_path / "a")}).runs()] == [False] * 2


def test_a_run_of_other_lengths_or_settings_is_refused_and_its_settings_stay(data, make_config, tmp_path):
    output = str(tmp_path / "run")
    _run(plan(make_config(output=output, max_iter=1).to_mapping() | {"bits": "4,8"}), data)
    before = (tmp_path / "run" / FILE).read_bytes()
    for given, said in (
        ({"bits": "4,12"}, "bits is 4,12, but the run in .* has 4,8"),
        ({"bits": 4}, "bits is 4, but the run in .* has 4,8"),
        ({"lr": 1.0}, "lr is 1.0, but the run in"),
        ({"backbone": "resnet18"}, "backbone is 'resnet18', but the run in .* has 'auto'"),
        ({"select": "validation"}, "select is 'validation', but"),
    ):
        with pytest.raises(InputError, match=said):
            plan({"resume": True, "output": output} | given).claim()
    with pytest.raises(InputError, match="already holds a run"):
        plan(make_config(output=output).to_mapping()).claim()
    assert (tmp_path / "run" / FILE).read_bytes() == before
    more = plan({"resume": True, "output": output, "bits": "4,8,12"})
    _run(more, data)
    assert stored_plan(tmp_path / "run").lengths == (4, 8, 12)
    # Resumed or not, they can be given to a new run.
    assert not plan({"output": str(tmp_path / "new")}, tmp_path / "run" / FILE).config.resume


def test_the_backbone_alone_is_compiled_and_its_names_stay(data, make_config, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    fit(make_config(max_iter=1, max_epoch=1, compile=True), data, progress=silent)
    assert compiled == ["SmallResNet"]


def test_the_published_settings_are_settings():
    for values in PUBLISHED.values():
        TrainConfig.from_mapping(values)
