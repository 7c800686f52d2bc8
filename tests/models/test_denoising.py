"""Denoising by a convex game, as a task of the command line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fixedpoint_models.__main__ import app
from fixedpoint_models.config import ConfigError, build
from fixedpoint_models.data import DataError
from fixedpoint_models.games import PatchGame
from fixedpoint_models.tasks.denoising import Denoising, Settings

CPU = torch.device("cpu")


def photographs(folder, sizes):
    """Smooth shades with an edge, of several sizes."""
    folder.mkdir()
    for number, (height, width) in enumerate(sizes):
        rows, columns = np.mgrid[:height, :width]
        shade = 90 + 60 * np.sin(rows / 9 + number) + 60 * (columns > width // 2)
        Image.fromarray(shade.astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("photographs")
    return Settings(
        train=photographs(home / "train", [(30, 41), (40, 24), (33, 33)]),
        test=photographs(home / "test", [(37, 52), (25, 20)]),
        levels=(15.0, 50.0),
        size=4,
        atoms=20,
        filters=10,
        crop=16,
        batch_size=4,
        batches=4,
        tile=16,
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(26, 31), (16, 33)])
def test_tiles_make_the_image_that_the_whole_makes(stride, shape):
    game = PatchGame(4, 20, stride=stride, weight=0.1, rtol=1e-6)
    noisy = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    parts = game.denoise_in_tiles(noisy, 12, 12)
    assert parts.shape == noisy.shape
    whole = game.denoise(game.grid.padded(noisy))[..., : shape[0], : shape[1]]
    torch.testing.assert_close(parts, whole, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("tile", "margin", "message"),
    [(0, 8, "tile"), (16, 3, "margin"), (15, 8, "tile must be a multiple")],
)
def test_tiles_that_do_not_fit_are_named(tile, margin, message):
    with pytest.raises(ValueError, match=message):
        PatchGame(4, 20, stride=2).denoise_in_tiles(
            torch.rand(1, 1, 32, 32), tile, margin
        )


def test_noise_is_that_of_the_level_and_batches_are_those_of_the_epoch(settings):
    experiment = Denoising(replace(settings, batch_size=64), CPU)
    first, again = list(experiment.batches(0)), list(experiment.batches(0))
    assert [batch.level for batch in first] == [0, 1, 0, 1]
    for batch, other in zip(first, again, strict=True):
        assert torch.equal(batch.noisy, other.noisy)
        noise = 255.0 * float((batch.noisy - batch.clean).std())
        assert noise == pytest.approx(settings.levels[batch.level], rel=0.02)
    assert not torch.equal(first[0].clean, next(experiment.batches(1)).clean)
    clean, noisy = experiment.noisy(1, 1)
    assert clean.shape == (1, 1, 25, 20)
    assert 255.0 * float((noisy - clean).std()) == pytest.approx(50.0, rel=0.1)


def test_all_levels_share_dictionaries_and_have_penalties_of_their_own(settings):
    experiment = Denoising(settings, CPU)
    games = experiment.module.games
    assert games[0].atoms is games[1].atoms
    assert games[0].synthesis is games[1].synthesis
    assert len(list(experiment.module.parameters())) == 12
    batch = next(experiment.batches(0))
    figures = experiment.step(batch)
    assert figures["failed"] == 0.0
    assert games[0].atoms.grad.abs().sum() > 0.0
    assert games[0].synthesis.grad.abs().sum() > 0.0
    for name in ("filters", "mix", "window", "trust"):
        assert getattr(games[0].seen, name) is getattr(games[1].seen, name)
    for name in ("mix", "window", "trust"):
        assert getattr(games[0].seen, name).grad.abs().sum() > 0.0
    for name in ("raw_weights", "raw_curvatures"):
        assert getattr(games[0], name).grad.abs().sum() > 0.0
        assert getattr(games[1], name).grad is None


def test_figures_are_those_of_the_images(settings):
    experiment = Denoising(replace(settings, held_out=1), CPU)
    figures = experiment.evaluate()
    clean, noisy = experiment.noisy(0, 1)
    error = (noisy.clamp(0.0, 1.0) - clean).square().mean()
    assert figures["psnr_noisy_50"] == pytest.approx(float(-10 * error.log10()))
    for name in ("psnr_15", "psnr_50", "psnr_tv_15", "psnr_tv_50"):
        level = name.rpartition("_")[2]
        assert figures[name] > figures[f"psnr_noisy_{level}"] + 2.0


def test_the_command_line_trains_evaluates_and_draws(settings, tmp_path):
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text(
        f"task: denoising\ntrain: {settings.train}\ntest: {settings.test}\n"
        "levels: [25]\nsize: 4\natoms: 20\nfilters: 10\ncrop: 16\ntile: 16\n"
        "batches: 5\n"
        "training: {epochs: 2, learning_rate: 2e-2}\n"
    )
    for command in ("train", "evaluate", "sample"):
        result = CliRunner().invoke(
            app, [command, "denoising", "--config", str(config), "--output", str(out)]
        )
        assert result.exit_code == 0, result.output
    rows = np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)
    assert rows["failed"].max() == 0.0
    with Image.open(out / "denoised.png") as picture:
        assert picture.width > 100


def test_what_cannot_be_is_named(settings):
    with pytest.raises(DataError, match="side 24, and cuts are of side 30"):
        Denoising(replace(settings, crop=30), CPU)
    with pytest.raises(DataError, match="nowhere"):
        Denoising(replace(settings, test="nowhere"), CPU)
    for name in ("stride", "test_stride"):
        with pytest.raises(ConfigError, match="stride"):
            Denoising(replace(settings, **{name: 5}), CPU)


@pytest.mark.parametrize("levels", [[], [0.0], [15, 1e9], [15, 15], [15, 15.0000001]])
def test_levels_that_cannot_be_are_named(levels):
    with pytest.raises(ConfigError, match="levels"):
        build(Settings, {"train": "a", "test": "b", "levels": levels})
