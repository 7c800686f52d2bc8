"""The command line of the tasks: settings, training, checkpoints, and several
processes.
"""

import csv
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fixedpoint_models import CheckpointError, TrainingError, runner
from fixedpoint_models.__main__ import app
from fixedpoint_models.config import (
    Config,
    ConfigError,
    Training,
    build,
    load_config,
    plain,
    setting,
    shipped,
)
from fixedpoint_models.devices import DeviceError, Processes, checked_device
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks import TASKS, offered, task_class, trained
from fixedpoint_models.tasks.base import Experiment
from fixedpoint_models.tasks.generative import Generative

TINY = """
task: generative
images: {name: digits, limit: 30, held_out: 12}
network: {kind: dense, width: 8, latent: 2}
solve: {steps: 6}
batch_size: 15
components: 2
training: {epochs: 2, learning_rate: 1e-2, clip: 5.0}
"""
# All that is stored for samples, and all that is drawn for them.
JOINT = TINY.replace(
    "solve: {steps: 6}",
    "solve: {method: recipe, steps: 6, memory: 3, warm: all}\n"
    "jacobian: {weight: 0.1, where: trajectory}",
).replace("batch_size: 15", "batch_size: 29")


@pytest.fixture
def config(tmp_path):
    """A file of settings."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(*arguments):
    """The one line that a command ends with."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def leaves(content):
    if isinstance(content, dict):
        return [leaf for key in content for leaf in leaves(content[key])]
    if isinstance(content, list):
        return [leaf for part in content for leaf in leaves(part)]
    return [content]


def assert_same_checkpoints(one, two):
    pair = (
        torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, two)
    )
    for a, b in zip(*map(leaves, pair), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# A task that draws from Torch's generator


@dataclass(frozen=True, kw_only=True)
class ToySettings:
    seed: int = 0
    rate: float = 1.0


class Toy(Experiment):
    def __init__(self, settings: ToySettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.module = torch.nn.Linear(3, 1)
        self.data = torch.randn(10, 3)
        self.seen = 0

    def batches(self, epoch):
        return iter(self.data.split(4))

    def step(self, batch):
        noise = torch.randn_like(batch)
        loss = ((self.module(batch + noise) - 1.0) ** 2).mean() * self.settings.rate
        loss.backward()
        self.seen += len(batch)
        return {"loss": float(loss.detach())}

    def evaluate(self):
        return {}

    def draw(self, folder):
        return []

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def toy_run(folder, epochs=3, team=None, **settings):
    settings = ToySettings(**settings)
    experiment = begin(Toy, settings, torch.device("cpu"))
    config = Config(name="toy", training=Training(epochs=epochs), settings=settings)
    return Run("toy", experiment, config, folder, team or Processes())


def interrupted(run, method, call):
    """`run`, in which a call of one of its methods is interrupted by the user."""
    original, calls = getattr(run, method), []

    def other(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    setattr(run, method, other)
    with pytest.raises(KeyboardInterrupt):
        run.train(progress=False)


@pytest.mark.parametrize(
    ("method", "call"), [("_step", 5), ("_step", 7), ("save", 2), ("save", 1)]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(method, call, tmp_path):
    toy_run(tmp_path / "one").train(progress=False)
    interrupted(toy_run(tmp_path / "two"), method, call)
    torch.manual_seed(999)
    toy_run(tmp_path / "two").train(progress=False)
    assert_same_checkpoints(tmp_path / "one", tmp_path / "two")
    tables = [rows(tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*tables, strict=True):
        assert {**one, "seconds": ""} == {**two, "seconds": ""}


def test_an_interrupted_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    toy_run(tmp_path).train(progress=False)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(content, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    run = toy_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_that_is_complete_is_left_as_it_is(tmp_path):
    toy_run(tmp_path).train(progress=False)
    table = rows(tmp_path)
    toy_run(tmp_path).train(progress=False)
    assert rows(tmp_path) == table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, r"settings\.seed: 0, now 1"),
        ({"epochs": 2}, r"training\.epochs: 3, now 2"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(settings, message, tmp_path):
    toy_run(tmp_path).train(progress=False)
    with pytest.raises(CheckpointError, match=message):
        toy_run(tmp_path, **settings).train(progress=False)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run = toy_run(tmp_path)
    for content in (b"words", b""):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            run.train(progress=False)
    torch.save({"task": "toy"}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        run.train(progress=False)
    run.save()
    run.name = "other"
    with pytest.raises(
        CheckpointError, match="a checkpoint of 'toy', expected 'other'"
    ):
        run.train(progress=False)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run = toy_run(tmp_path)
    run.save()
    run.experiment.module = torch.nn.Linear(4, 1)
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        run.train(progress=False)


def test_a_gradient_that_is_not_finite_ends_training(tmp_path):
    with pytest.raises(TrainingError, match="not finite in epoch 1"):
        toy_run(tmp_path, rate=float("inf")).train(progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(("share", "ends"), [(0.4, False), (0.6, True)])
def test_a_run_whose_solves_fail_ends_with_an_error(share, ends, tmp_path):
    run = toy_run(tmp_path)
    step = run.experiment.step
    run.experiment.step = lambda batch: {**step(batch), "failed": share}
    if ends:
        with pytest.raises(TrainingError, match="60% of the solves failed in epoch 1"):
            run.train(progress=False)
    else:
        run.train(progress=False)
    assert {float(row["failed"]) for row in rows(tmp_path)} == {share}
    assert (tmp_path / "checkpoint.pt").exists() != ends


def test_parameters_that_are_fixed_stay_and_have_no_gradient(tmp_path):
    run = toy_run(tmp_path)
    fixed = next(iter(run.experiment.module.parameters())).requires_grad_(False)
    before = fixed.clone()
    run.config = replace(run.config, training=Training(epochs=2, weight_decay=1.0))
    run = replace(run)  # the optimizer is made of what is trained
    run.train(progress=False)
    assert torch.equal(fixed, before)
    assert fixed.grad is None


def test_gradients_are_clipped_and_the_rate_falls(tmp_path):
    run = toy_run(tmp_path, rate=1e3)
    run.config = replace(
        run.config, training=Training(epochs=3, clip=1e-3, learning_rate=0.1)
    )
    run.train(progress=False)
    gradients = [parameter.grad for parameter in run.experiment.module.parameters()]
    assert torch.nn.utils.get_total_norm(gradients) < 1.001e-3
    table = rows(tmp_path)
    assert min(float(row["gradient_norm"]) for row in table) > 1.0  # what it was before
    rates = [float(row["learning_rate"]) for row in table]
    assert rates == pytest.approx([0.1, 0.0775, 0.0325])


def test_the_columns_are_those_of_the_first_epoch(tmp_path):
    run = toy_run(tmp_path)
    run.train(progress=False)
    names = ["epoch", "learning_rate", "seconds", "loss", "gradient_norm"]
    assert [list(row) for row in rows(tmp_path)] == [names] * 3
    log = runner.Log(tmp_path, 3)
    with pytest.raises(TrainingError, match="the columns are"):
        log.write({"epoch": 4, "other": 1.0})
    log.close()


def test_means_are_those_of_samples(tmp_path):
    """The last batch of ten has two samples, the others four."""
    run = toy_run(tmp_path, epochs=1)
    losses = []
    original = run.experiment.step
    run.experiment.step = lambda batch: (
        losses.append(original(batch)["loss"]) or {"loss": losses[-1]}
    )
    run.train(progress=False)
    expected = (4 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 10
    assert float(rows(tmp_path)[0]["loss"]) == pytest.approx(expected)


def test_without_tensorboard_there_is_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    toy_run(tmp_path).train(progress=False)
    assert "TensorBoard is not installed" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 3
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_gets_every_epoch(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    toy_run(tmp_path).train(progress=False)
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]


def test_parts_of_a_batch_are_all_of_it():
    toy = Toy(ToySettings(), torch.device("cpu"))
    batch = {
        "image": torch.arange(7),
        "pair": (torch.arange(14).reshape(7, 2), torch.tensor(3)),
    }
    parts = [toy.part(batch, rank, 3) for rank in range(3)]
    assert [toy.count(part) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part["image"] for part in parts]), batch["image"])
    assert torch.equal(torch.cat([part["pair"][0] for part in parts]), batch["pair"][0])
    assert [int(part["pair"][1]) for part in parts] == [3, 3, 3]
    assert toy.count(toy.part(torch.arange(1), 0, 2)) == 0


def test_devices():
    assert checked_device("cpu") == torch.device("cpu")
    for name in ("gpu", "mps", "cuda:99"):
        with pytest.raises(DeviceError, match="--device"):
            checked_device(name)


# Settings


@dataclass(frozen=True, kw_only=True)
class Inner:
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    number: int = setting(least=1)
    rate: float | None = setting(0.5, above=0.0, below=1.0)
    flag: bool = False
    name: str = "x"
    sizes: tuple[int, ...] = setting((1,), least=1, most=9)
    inner: Inner = Inner()
    more: tuple[Inner, ...] = ()
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name: cannot be bad")


def test_a_list_that_is_empty_by_default_may_be_so():
    assert build(Outer, {"number": 1, "more": []}).more == ()


def test_settings_are_built():
    content = {
        "number": 2,
        "rate": None,
        "sizes": [2, 3],
        "inner": {"kind": "b"},
        "more": [{"kind": "b"}, {}],
        "folder": "a/b",
    }
    expected = Outer(
        number=2,
        rate=None,
        sizes=(2, 3),
        inner=Inner(kind="b"),
        more=(Inner(kind="b"), Inner()),
        folder=Path("a/b"),
    )
    assert build(Outer, content) == expected
    assert build(Outer, plain(expected)) == expected
    assert isinstance(build(Outer, {"number": 1, "rate": 0.5}).rate, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "number: missing"),
        (
            {"number": 1, "nmae": 2},
            "nmae: unknown key, expected one of number, rate, flag, name",
        ),
        ({"number": 0}, "number: expected an integer of at least 1, got 0"),
        ({"number": 1.5}, "number: expected an integer of at least 1, got 1.5"),
        ({"number": True}, "number: expected an integer of at least 1, got True"),
        ({"number": None}, "number: expected an integer of at least 1, got None"),
        (
            {"number": 1, "rate": 0},
            "rate: expected a number of more than 0 and less than 1, got 0",
        ),
        ({"number": 1, "rate": float("nan")}, "rate: expected a number of .*, got nan"),
        ({"number": 1, "rate": "fast"}, "rate: expected a number of .*, got 'fast'"),
        ({"number": 1, "flag": 1}, "flag: expected true or false, got 1"),
        ({"number": 1, "name": 1}, "name: expected a string, got 1"),
        ({"number": 1, "sizes": 3}, "sizes: expected a list, got 3"),
        (
            {"number": 1, "sizes": []},
            r"sizes: expected a list that is not empty, got \[\]",
        ),
        (
            {"number": 1, "sizes": [3, 10]},
            r"sizes\[1\]: expected an integer .*at most 9, got 10",
        ),
        (
            {"number": 1, "inner": {"kind": "c"}},
            "inner.kind: expected one of a, b, got 'c'",
        ),
        ({"number": 1, "inner": 4}, "inner: expected keys and values, got 4"),
        (
            {"number": 1, "more": [{}, {"x": 1}]},
            r"more\[1\]\.x: unknown key, expected .* kind",
        ),
        ({"number": 1, "name": "bad"}, "name: cannot be bad"),
        ({"number": "x" * 99}, "number: expected .{0,100}$"),
    ],
)
def test_errors_name_the_key(content, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        build(Outer, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values, got None"),
        ("[1, 2]", "expected keys and values"),
        ("a: [1", "not a YAML file"),
        ("task: generative\ntask: generative", "the key 'task' is there twice"),
        ("task: inverse", "task: expected 'generative', got 'inverse'"),
        (
            "task: generative\ntraining: {epochs: 0}",
            "training.epochs: expected an integer",
        ),
        ("task: generative\nimages: {name: digits}", "network: missing"),
        (TINY.replace("name: digits", "name: mnist"), "images: folder: missing"),
        (
            TINY.replace("latent: 2", "latent: -2"),
            "network.latent: expected an integer",
        ),
        (
            TINY.replace("1e-2", "0"),
            "training.learning_rate: expected a number of more than 0",
        ),
        (TINY + "solve: {warm: all}", "the key 'solve' is there twice"),
        (TINY.replace("steps: 6", "steps: 6, warm: all"), "solve: warm: expected none"),
        (TINY.replace("dense", "mdeq") + "seed: 0", "network.side: expected a divisor"),
    ],
)
def test_bad_files_end_with_one_line(text, message, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    line = refuse("train", "generative", "--config", file, "--output", tmp_path / "out")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "generatif"), "TASK must be one of"),
        (("train", "generative", "--epochs", 0), "--epochs"),
        (("train", "generative", "--seed", -1), "--seed"),
        (("train", "generative", "--device", "tpu"), "--device"),
        (("evaluate", "generative"), "no such checkpoint; train first"),
        (("sample", "generative"), "no such checkpoint; train first"),
        (("train", "inverse"), "nothing to train"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, config, tmp_path):
    name = "inverse_digits" if "inverse" in arguments else config
    line = refuse(*arguments, "--config", name, "--output", tmp_path / "out")
    assert message in line


def test_an_unknown_name_lists_those_that_come_along(tmp_path):
    line = refuse("train", "generative", "--config", "nothing", "--output", tmp_path)
    assert "generative_digits" in line


def test_a_file_in_place_of_the_folder(config):
    assert "there is a file" in refuse(
        "train", "generative", "--config", config, "--output", config
    )


def test_amp_of_a_task_that_does_not_use_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Generative, "mixed", False)
    arguments = (
        "train",
        "generative",
        "--config",
        config,
        "--output",
        tmp_path / "out",
        "--amp",
    )
    assert "--amp" in refuse(*arguments)


@pytest.mark.parametrize("name", shipped())
def test_the_files_that_come_along_are_read(name):
    task = name.partition("_")[0]
    config = load_config(name, task, task_class(task).settings_type())
    assert config.name == name
    assert build(type(config.settings), plain(config.settings)) == config.settings


def test_tasks_are_offered_if_they_are_there(monkeypatch):
    assert {"generative", "inverse"} <= set(offered())
    monkeypatch.setitem(TASKS, "later", "fixedpoint_models.tasks.later:Later")
    assert "later" not in offered()
    with pytest.raises(ValueError, match="TASK must be one of"):
        task_class("later")


# The commands


def test_train_evaluate_and_sample(config, tmp_path):
    arguments = ("generative", "--config", config, "--output", tmp_path / "out")
    succeed("train", *arguments)
    assert "psnr" in succeed("evaluate", *arguments).output
    pictures = succeed("sample", *arguments).output.split()
    assert all(Path(picture).is_file() for picture in pictures)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "checkpoint.pt",
        "metrics.csv",
        "evaluation.json",
        "samples.png",
    }
    assert "written with other settings (seed: 0, now 1)" in refuse(
        "evaluate", *arguments, "--seed", 1
    )
    assert "training.epochs" in refuse("train", *arguments, "--epochs", 1)


def test_a_finished_run_is_trained_on(config, tmp_path):
    """From its checkpoint, so that no epoch is made again."""
    arguments = ("generative", "--config", config, "--output", tmp_path / "out")
    succeed("train", *arguments)
    before = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    told = succeed("train", *arguments, "--epochs", len(before)).output
    assert f"epochs: {len(before)}" in told
    after = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert after[:-1] == before


def test_a_run_starts_from_the_network_of_another(tmp_path, config):
    other, new = tmp_path / "other", tmp_path / "new"
    train = ("train", "generative", "--config", config, "--epochs", "1", "--output")
    succeed(*train, other, "--set", "images.limit=20")  # of other images
    start = ("--start", other / "checkpoint.pt")
    succeed(*train, new, *start, "--set", "training.learning_rate=1e-12")
    module, begun = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["module"]
        for folder in (new, other)
    )
    for name, parameter in module.items():
        torch.testing.assert_close(parameter, begun[name], rtol=1e-6, atol=1e-9)
    line = refuse(*train, tmp_path / "wide", *start, "--set", "network.width=9")
    assert "does not fit these settings" in line


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\xff\x00\x01",
        b"not a table\n",
        b"name,loss\nmine,0.5\n",
        b'epoch,learning_rate,seconds,loss\nthe first,1,1,1\n"',
        b"epoch,learning_rate,seconds,loss\n1,1,1,1,1\n",
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_metrics_of_something_else_are_not_replaced(config, tmp_path, content, resumed):
    file = tmp_path / "out" / "metrics.csv"
    arguments = ("generative", "--config", config, "--output", file.parent)
    if resumed:
        succeed("train", *arguments)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    says = f"{file}: not the metrics of a run, which would be written there; move it"
    assert says in refuse("train", *arguments, *("--epochs", 3) * resumed)
    assert file.read_bytes() == content


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_metrics_that_were_cut_short_are_taken_up(config, tmp_path, cut):
    """As by a process that was killed while it wrote a row before the checkpoint."""
    folder = tmp_path / "out"
    arguments = ("generative", "--config", config, "--output", folder)
    succeed("train", *arguments)
    before = (folder / "metrics.csv").read_bytes()
    row = before.splitlines(keepends=True)[-1]
    (folder / "metrics.csv").write_bytes(before + b"9" + row[:cut])
    epochs = len(rows(folder))
    succeed("train", *arguments, "--epochs", epochs)
    assert [int(row["epoch"]) for row in rows(folder)] == list(range(1, epochs + 1))


def test_an_empty_file_of_metrics_is_written_to(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.csv").write_bytes(b"")
    succeed("train", "generative", "--config", config, "--output", tmp_path / "out")
    assert rows(tmp_path / "out")[0]["epoch"] == "1"


def test_what_is_offered_for_training_can_be_trained():
    assert trained() == [name for name in offered() if task_class(name).trains]
    assert "inverse" not in succeed("train", "--help").output


def test_pictures_are_shown_in_tensorboard(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    arguments = ("generative", "--config", config, "--output", tmp_path / "out")
    succeed("train", *arguments)
    pictures = succeed("sample", *arguments).output.split()
    board = event_accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    shown = board.Reload().Tags()["images"]
    assert sorted(shown) == sorted(Path(picture).stem for picture in pictures)


def test_commands_say_what_they_wrote(config, tmp_path):
    arguments = ("generative", "--config", config, "--output", tmp_path / "out")
    trained = succeed("train", *arguments).stdout
    assert f"checkpoint: {tmp_path / 'out' / 'checkpoint.pt'}" in trained
    assert f"metrics: {tmp_path / 'out' / 'metrics.csv'}" in trained
    evaluated = succeed("evaluate", *arguments).stdout
    assert f"figures: {tmp_path / 'out' / 'evaluation.json'}" in evaluated


def test_values_in_place_of_those_of_the_file(config, tmp_path):
    """As if the file had them, and heeded by every command."""
    arguments = ("generative", "--config", config, "--output", tmp_path / "out")
    changes = ("--set", "network.latent=3", "--set", "training={epochs: 1}")
    succeed("train", *arguments, *changes)
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["config"]
    assert saved["settings"]["network"]["latent"] == 3
    assert saved["training"]["epochs"] == 1
    assert saved["training"]["learning_rate"] == Training().learning_rate
    succeed("evaluate", *arguments, *changes)
    assert "network.latent: 3, now 2" in refuse("evaluate", *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("latent", "--set: expected KEY=VALUE, got 'latent'"),
        ("=3", "--set: expected KEY=VALUE, got '=3'"),
        ("network.latent=[", "--set network.latent: not a value in YAML: '['"),
        ("seed.more=1", "--set seed.more: there are no keys in seed"),
        ("network.latent=0", "network.latent: expected an integer of at least 1"),
        ("nework.latent=2", "nework: unknown key"),
        ("task=inverse", "task: expected 'generative', got 'inverse'"),
    ],
)
def test_values_that_cannot_stand_there(change, message, config, tmp_path):
    config.write_text(TINY + "seed: 0\n")
    arguments = ("--config", config, "--output", tmp_path / "out", "--set", change)
    assert message in refuse("train", "generative", *arguments)


def test_a_rehearsal_shows_all_settings_and_writes_nothing(config, tmp_path):
    arguments = ("--config", config, "--output", tmp_path / "out", "--dry-run")
    shown = succeed("train", "generative", *arguments, "--seed", 7).stdout
    content = yaml.safe_load(shown)
    assert content["seed"] == 7
    assert content["network"]["latent"] == 2
    assert content["training"]["epochs"] == 2
    assert not (tmp_path / "out").exists()
    again = tmp_path / "again.yaml"
    again.write_text(f"task: generative\n{shown}")
    settings = task_class("generative").settings_type()
    built, first = (
        load_config(str(f), "generative", settings) for f in (again, config)
    )
    assert built.settings == replace(first.settings, seed=7)


@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_folder_that_cannot_be_written_to(command, config, tmp_path):
    """Told at once: as root may write everywhere, by a file where a folder should
    be.
    """
    (tmp_path / "file").write_text("")
    arguments = ("generative", "--config", config) if command == "train" else ()
    line = refuse(command, *arguments, "--output", tmp_path / "file" / "out")
    assert line == f"error: --output {tmp_path / 'file' / 'out'}: Not a directory"


def test_what_there_is():
    listed = succeed("list").stdout
    images = get_type_hints(task_class("generative").settings_type())["images"]
    sets = get_args(get_type_hints(images)["name"])
    for name in (*offered(), *shipped(), *sets):
        assert re.search(rf"^  {name}  +\S", listed, re.MULTILINE), name


def python(program, *arguments):
    """Another process, as imports of this one have been made."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


RUN = "from fixedpoint_models.__main__ import app; app()"


def test_help_loads_no_framework():
    counted = (
        "import atexit, sys; atexit.register(lambda: "
        "print(*{'numpy', 'torch', 'matplotlib'} & set(sys.modules), file=sys.stderr))"
    )
    for arguments in (["--help"], ["--version"], ["train", "--help"], ["list"]):
        ran = python(f"{counted}; {RUN}", *arguments)
        assert ran.returncode == 0
        assert ran.stdout
        loaded = {"numpy"} if arguments == ["--version"] else set()
        assert set(ran.stderr.split()) == loaded


@pytest.mark.parametrize("missing", ["torch", "typer"])
def test_without_what_it_needs_one_line_says_what_to_install(missing, config):
    absent = (
        "import sys, importlib.util as u; find = u.find_spec; "
        f"u.find_spec = lambda name: None if name == {missing!r} else find(name); "
        f"sys.modules[{missing!r}] = None"
    )
    ran = python(f"{absent}; {RUN}", "train", "generative", "--config", str(config))
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "pip install 'fixedpoint-solvers[models]'" in line


def test_everything_follows_from_the_seed(config, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        torch.manual_seed(sum(map(ord, name)))
        succeed(
            "train",
            "generative",
            "--config",
            config,
            "--output",
            tmp_path / name,
            "--seed",
            seed,
            "--epochs",
            1,
        )
    assert_same_checkpoints(tmp_path / "one", tmp_path / "two")
    assert rows(tmp_path / "one")[0]["loss"] != rows(tmp_path / "three")[0]["loss"]


def test_the_folder_is_named_after_the_settings(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed("train", "generative", "--config", config, "--epochs", 1)
    assert (tmp_path / "runs" / "tiny" / "checkpoint.pt").is_file()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    config = tmp_path / "joint.yaml"
    config.write_text(JOINT)
    command = (
        "-m",
        "fixedpoint_models",
        "train",
        "generative",
        "--config",
        str(config),
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ran = subprocess.run(
        [sys.executable, *torchrun, *command, "--output", str(tmp_path / "two")],
        check=False,
        env=environment,
        capture_output=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    succeed(*command[2:], "--output", tmp_path / "one")
    one, two = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("one", "two")
    )
    assert one["experiment"].pop("images") == two["experiment"].pop("images")
    for key in ("module", "experiment"):
        for a, b in zip(leaves(one[key]), leaves(two[key]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-3)
