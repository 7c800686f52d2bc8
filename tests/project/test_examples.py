"""The examples, at a small size: they run, learn what they show, and leave a
picture.
"""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path):
    """Run an example's ``main``, and see that its picture is one."""

    def run(name, constants=None, **settings):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        vars(module).update(constants or {})
        result = module.main(output=tmp_path, **settings)
        for file in (tmp_path / f"{name}.png", *tmp_path.glob("*.png")):
            with Image.open(file) as picture:
                assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
        return result

    return run


def test_every_example_is_run():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {
        name.removeprefix("test_") for name in globals() if name[5:] in names
    }


@pytest.mark.slow
def test_convolutional_deq(run):
    result = run("convolutional_deq", steps=80, size=8)
    assert result["accuracy"] > 0.4
    assert result["loss"] < 0.85 * result["first_loss"]


@pytest.mark.slow
def test_transformer_deq(run):
    result = run("transformer_deq", steps=60, size=6)
    assert result["equilibrium"] > 0.75


@pytest.mark.slow
def test_implicit_graph_network(run):
    result = run("implicit_graph_network", steps=60, size=12)
    assert result["equilibrium"] > 0.95
    assert result["layers"] < 0.8


def test_ridge_tuning(run):
    result = run("ridge_tuning", steps=20, size=120)
    assert result["after"] < result["before"]
    assert abs(result["slope"]) < 1e-6
    assert result["error"] < 1e-6


def test_physics_root(run):
    result = run("physics_root", steps=6, size=40)
    assert result["last"] < 1e-2 * result["first"]
    assert result["off"] < 0.2
    assert result["error"] < 1e-7


@pytest.mark.slow
def test_meta_learning(run, tmp_path):
    settings = {"epochs": 1, "size": 8, "tests": 4, "seconds": 0.05}
    result = run("meta_learning", {"STEPS": (3, 20)}, **settings)
    assert result["loss"] < result["first_loss"]
    assert result["accuracy"] > 0.5
    assert result["times"]["joint"][-1] < float("inf")
    assert (tmp_path / "meta_learning_time.png").exists()


# Foolbox imports what SciPy and its own dependencies have deprecated.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_adversarial_training(run):
    result = run("adversarial_training", {"STEPS": (1, 6)}, epochs=4)
    assert result["joint"]["nested"] > 1.2 * result["none"]["nested"]
    assert result["joint"]["nested"] > result["nested"]["nested"] - 0.05


@pytest.mark.slow
def test_generative_model(run):
    result = run("generative_model", epochs=2)
    assert result["newton"]["psnr"] > 13.0
    assert result["newton"]["objective"] < 0.9 * result["newton"]["first"]


@pytest.mark.slow
def test_inverse_problems(run):
    result = run("inverse_problems", seconds=0.02)
    assert result["inpainting"]["error"] < 0.6 * result["inpainting"]["seen"]
    assert result["denoising"]["error"] < 0.5 * result["denoising"]["seen"]


@pytest.mark.slow
def test_equinox_decoder(run):
    result = run("equinox_decoder", epochs=2, width=32)
    assert result["last"] < 0.7 * result["first"]
    assert result["converged"] > 0.9
    assert result["error"] < 0.8 * result["blank"]


@pytest.mark.slow
def test_convex_game(run):
    result = run("convex_game", steps=25, tests=5)
    assert result["untrained"] > result["noisy"] + 3.0
    assert result["trained"] > result["untrained"] + 0.2
