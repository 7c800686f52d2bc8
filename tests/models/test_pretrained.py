"""The weights that come along."""

import math
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fixedpoint as fp
from fixedpoint_models import TrackedNewton, decode, demo, equilibrium_map, pretrained
from fixedpoint_models.__main__ import app
from fixedpoint_models.comparison import recovery
from fixedpoint_models.data import digits, glyphs, split_classes, square_masks
from fixedpoint_models.trained_weights import FOLDER

FILES = sorted(FOLDER.glob("*.npz"))
NAMES = [file.stem for file in FILES]


def held_out(name):
    """Images that the weights were not trained on, as rows."""
    if name == "digits-decoder":
        return demo.split(digits(), 0).held_out[:16]
    images = split_classes(glyphs(16), 0.9, 0)[1].images[:, ::3].reshape(-1, 256)
    return torch.as_tensor(images[:32], dtype=torch.float64)


def test_there_are_some():
    assert NAMES == ["digits-decoder", "glyphs-decoder"]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_files_are_small_and_hold_numbers_alone(file):
    assert file.stat().st_size < 1_000_000
    with np.load(file, allow_pickle=False) as stored:
        assert all(stored[key].dtype == np.float32 for key in stored.files)
        assert all(np.isfinite(stored[key]).all() for key in stored.files)


@pytest.mark.parametrize("name", NAMES)
def test_equilibria_exist_and_are_unique(name):
    params = pretrained(name)
    assert float(torch.linalg.matrix_norm(params["W"], ord=2)) < 0.95
    assert not any(getattr(p, "requires_grad", False) for p in params.values())


@pytest.mark.parametrize("name", NAMES)
def test_they_recover_what_is_hidden_of_images_they_have_not_seen(name):
    images, params = held_out(name), pretrained(name)
    side = math.isqrt(images.shape[1])
    masks = torch.as_tensor(square_masks(len(images), side, side, 0, side // 4))
    masks = masks.reshape(images.shape)
    task = recovery(params, images, masks)
    found = task.model.iterate(
        task.z, task.x, params=params, y=task.y, method=TrackedNewton()
    )
    args = found.value["x"], params
    state = fp.fixed_point(equilibrium_map, task.z, args, batch_ndim=1).value
    hidden = 1.0 - masks
    error = (hidden * (decode(state, params) - images) ** 2).sum() / hidden.sum()
    mean = (hidden * (images.mean(dim=0) - images) ** 2).sum() / hidden.sum()
    assert float(error) < 0.6 * float(mean)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=re.escape(", ".join(NAMES))):
        pretrained("faces-decoder")


def test_the_demonstration_of_digits_does_not_train(tmp_path, monkeypatch):
    def compared(task, **settings):
        assert torch.equal(task.params["W"], pretrained("digits-decoder")["W"])
        raise ArithmeticError("enough")

    monkeypatch.setattr(demo, "compare", compared)
    monkeypatch.setattr(demo, "train", None)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert result.stderr == "error: enough\n"
