"""Generative modelling and inverse problems, on a few digits and patches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fixedpoint as fp
from fixedpoint_models.__main__ import app
from fixedpoint_models.config import Config, ConfigError, Training, build
from fixedpoint_models.data import DataError
from fixedpoint_models.devices import Processes
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks import inverse
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.tasks.images import load, mean_of_known, quality
from fixedpoint_models.tasks.inverse import Inverse, Problem
from fixedpoint_models.tasks.settings import (
    Images,
    Network,
    Regularization,
    Settings,
    Solve,
)

CPU = torch.device("cpu")
DENSE = Network(kind="dense", width=24, latent=6)
MDEQ = Network(kind="mdeq", latent=3, channels=(8, 8), side=4, weight_norm=False)


def settings(network=DENSE, number=120, **changes):
    values = {
        "images": Images(name="digits", limit=number, held_out=16),
        "network": network,
        "batch_size": 40,
        "components": 2,
    }
    return Settings(**(values | changes))


def generative(network=DENSE, **changes):
    return begin(Generative, settings(network, **changes), CPU)


def trained(folder, epochs=15, **changes):
    """A checkpoint of a short training."""
    chosen = settings(**changes)
    config = Config(
        name="x", training=Training(epochs=epochs, learning_rate=1e-2), settings=chosen
    )
    run = Run("generative", begin(Generative, chosen, CPU), config, folder, Processes())
    run.train(progress=False)
    return run.experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a checkpoint of a decoder of digits."""
    path = tmp_path_factory.mktemp("trained")
    trained(path)
    return path


# Generative modelling


@pytest.mark.parametrize(
    ("network", "method"),
    [(DENSE, "newton"), (DENSE, "recipe"), (MDEQ, "recipe")],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_gradient_is_that_of_the_optimal_objective(network, method):
    """Central differences of the re-solved objective along one random direction."""
    solve = Solve(
        method=method,
        steps=600,
        rtol=1e-6,
        memory=10,
        step_size=0.1,
        final_step_size=0.1,
    )
    task = generative(
        network, number=6, batch_size=6, solve=solve, test_steps=600, prior=0.5
    )
    task.module.double()
    task.images = task.images.double()
    zeros = task.module.zero_state(6), torch.zeros(6, task.decoder.latent).double()
    task.decoder.start, task.stored = lambda number: zeros, {"x": zeros[1].clone()}
    (batch,) = task.batches(0)
    figures = task.step(batch)
    assert figures["converged"] == 1.0

    def objective():
        params = task.decoder.frozen(task.settings.prior)
        x = task._infer(batch, 600).value["x"]
        return float(
            task.model.objective(zeros[0], x, params=params, y=batch.images).mean()
        )

    parameters = list(task.module.parameters())
    torch.manual_seed(1)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True)
    )
    values = []
    for change in (1e-4, -2e-4):
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(d, alpha=change)
        values.append(objective())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-2)


def test_training_lowers_the_objective_of_held_out_images(tmp_path):
    before = generative().evaluate()
    after = trained(tmp_path).evaluate()
    assert after["objective"] < 0.5 * before["objective"]
    assert after["psnr"] > before["psnr"] + 3.0
    assert after["kkt_fraction"] > 0.9
    assert after["failed"] == 0.0


def test_the_fraction_is_that_of_the_solves_that_converge(tmp_path):
    task = trained(tmp_path, test_steps=11)
    found = task.reconstruct(task.held_out)
    share = task.evaluate()["kkt_fraction"]
    assert share == float(found.converged.double().mean())
    task.settings = replace(task.settings, test_steps=1)
    assert task.evaluate()["kkt_fraction"] == 0.0


def test_the_radius_is_that_of_the_jacobian():
    task = generative()
    x = torch.randn(2, 6)
    params = task.decoder.frozen(0.1)
    z = task.decoder.equilibrium(x, params).value
    for radius, state in zip(task._radii(x, params), z, strict=True):
        slope = (1.0 - state**2)[:, None] * params["weights"]["W"]
        assert float(radius) == pytest.approx(
            float(torch.linalg.eigvals(slope).abs().max()), 1e-3
        )


@pytest.mark.slow
def test_the_penalty_lowers_the_spectral_radius(tmp_path):
    """Wherever it is taken."""

    def radius(weight, where):
        jacobian = Regularization(weight=weight, where=where)
        task = trained(
            tmp_path / f"{weight} {where}",
            epochs=6,
            number=40,
            batch_size=20,
            network=MDEQ,
            jacobian=jacobian,
            solve=Solve(steps=6),
            test_steps=20,
        )
        return task.evaluate()["radius_median"]

    without = radius(0.0, "end")
    for where in ("end", "trajectory"):
        assert radius(100.0, where) < 0.8 * without, where


def test_probes_belong_to_samples():
    """Whatever batch, or part of one, a sample is in."""
    task = generative(MDEQ)
    (batch, *_) = task.batches(1)
    z = task.decoder.start(len(batch.rows))[0]
    whole, part = (task._probe(z, b, 1) for b in (batch, task.part(batch, 1, 2)))
    assert all(torch.equal(a[20:], b) for a, b in zip(whole, part, strict=True))


def test_the_recipe_goes_on_from_an_epoch_ago():
    """Few steps an epoch, and the residuals fall although the parameters stand
    still.
    """
    residuals = {}
    for warm in ("none", "code", "all"):
        solve = Solve(
            method="recipe",
            steps=40,
            memory=10,
            step_size=0.05,
            final_step_size=0.05,
            warm=warm,
        )
        task = generative(solve=solve, number=40)
        for epoch in range(4):
            (batch,) = task.batches(epoch)
            value = task._infer(batch, 40).value
            task._store(batch.rows, value)
        params = task.decoder.frozen(task.settings.prior)
        kkt = task.model.kkt(**value, params=params, y=batch.images)
        residuals[warm] = float(torch.stack(list(kkt.values())).mean())
    assert residuals["code"] < 0.9 * residuals["none"]
    assert residuals["all"] < 0.5 * residuals["none"]


def test_the_step_drops(monkeypatch):
    seen = []
    original = fp.fixed_point

    def noted(operator, *args, **kwargs):
        if hasattr(operator, "blocks"):
            seen.append((operator.blocks["x"].step_size, kwargs["max_steps"]))
        return original(operator, *args, **kwargs)

    monkeypatch.setattr(fp, "fixed_point", noted)
    solve = Solve(
        method="recipe", steps=10, drop=0.3, step_size=0.02, final_step_size=0.01
    )
    task = generative(solve=solve)
    task.step(next(task.batches(0)))
    assert seen == [(0.02, 3), (0.01, 7)]


def test_low_precision_is_that_of_the_network_alone():
    task = generative(MDEQ)
    batch = next(task.batches(0))
    exact = task.step(batch)["loss"]
    task.module.zero_grad()
    task.amp = torch.bfloat16
    dtypes = set()
    task.module.cell.register_forward_hook(
        lambda module, args, out: dtypes.add(args[0][0].dtype)
    )
    assert task.step(batch)["loss"] == pytest.approx(exact, rel=0.05)
    assert dtypes == {torch.float32}
    assert (
        task.model.f(*task.decoder.start(2), task.decoder.frozen(0.1))[0].dtype
        == torch.float32
    )
    image = task.network(lambda z: z @ z)(torch.full((2, 2), 1.001))
    assert float(image[0, 0]) == 2.0  # 1.001 is 1 in bfloat16


@pytest.mark.parametrize("weight_norm", [True, False])
def test_images_move_more_with_the_state_by_the_gain_of_the_head(weight_norm):
    def image(gain):
        network = replace(MDEQ, head_gain=gain, weight_norm=weight_norm)
        task = generative(network)
        z = tuple(
            torch.linspace(-1, 1, leaf.numel()).reshape(leaf.shape)
            for leaf in task.module.zero_state(1)
        )
        params = task.decoder.frozen(0.1)
        return task.module.head(z, params) - task.images.mean()

    torch.testing.assert_close(image(3.0), 3.0 * image(1.0), rtol=1e-4, atol=1e-5)


def test_samples_that_are_not_solved_are_left_out(monkeypatch):
    task = generative()
    (batch, *_) = task.batches(0)
    figures = task.step(batch)
    assert figures["left_out"] == 0.0
    gradients = [parameter.grad.clone() for parameter in task.module.parameters()]
    original = task._infer

    def spoiled(batch, steps):
        found = original(batch, steps)
        found.value["mu"][:10] = torch.inf
        found.value["z"][10:20] = 1e3
        return found

    monkeypatch.setattr(task, "_infer", spoiled)
    task.module.zero_grad()
    assert task.step(batch)["left_out"] == 0.5
    kept = task.part(batch, 1, 2)
    monkeypatch.setattr(task, "_infer", original)
    half = [parameter.grad.clone() for parameter in task.module.parameters()]
    task.module.zero_grad()
    task.step(kept)
    for parameter, gradient, whole in zip(
        task.module.parameters(), half, gradients, strict=True
    ):
        torch.testing.assert_close(gradient, parameter.grad / 2, rtol=1e-3, atol=1e-4)
        assert (gradient - whole).abs().max() > 0.0


def test_a_batch_of_which_nothing_is_solved_has_no_gradient(monkeypatch):
    task = generative(jacobian=Regularization(weight=1.0))
    (batch, *_) = task.batches(0)
    names = set(task.step(batch))
    original = task._infer

    def nothing(*args):
        found = original(*args)
        return found._replace(value={k: v * torch.nan for k, v in found.value.items()})

    monkeypatch.setattr(task, "_infer", nothing)
    task.module.zero_grad()
    figures = task.step(batch)
    assert set(figures) == names
    assert figures["left_out"] == 1.0
    assert np.isfinite(figures["loss"])
    assert all(parameter.grad is None for parameter in task.module.parameters())


def test_codes_are_drawn_near_those_of_training(folder):
    task = generative()
    codes = torch.cat([torch.randn(60, 6) + 5.0, torch.randn(60, 6) - 5.0])
    task.stored["x"].copy_(codes)
    drawn = task.sample(200)
    distance = torch.cdist(drawn, codes).min(dim=1).values
    assert float(distance.max()) < 5.0
    assert torch.equal(drawn, task.sample(200))
    assert len(drawn.unique(dim=0)) == 200


def test_a_checkpoint_of_other_images_is_refused():
    state = generative().state_dict()
    with pytest.raises(ValueError, match="other images"):
        generative(number=41).load_state_dict(state)


def test_images_to_train_with_are_not_held_out():
    for name in ("digits", "photographs"):
        train, test = load(Images(name=name, limit=200, held_out=50), 0)
        assert train.shape[1:] == test.shape[1:]
        assert train.dtype == torch.float32
        assert float(torch.cdist(train.flatten(1), test.flatten(1)).min()) > 0.01


def test_photographs_of_a_folder_are_cut_and_none_is_in_both_parts(tmp_path):
    """Each photograph has shades of its own."""
    for number in range(4):
        pixels = 60 * number + np.arange(30 * 24).reshape(30, 24) % 60
        file = tmp_path / ("test" if number == 3 else "train") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    folder = str(tmp_path / "train")
    images = Images(name="photographs", folder=folder, size=8, stride=4)
    for test_folder, shades in ((None, 0), (str(tmp_path / "test"), 3)):
        train, test = load(replace(images, test_folder=test_folder), 0)
        assert train.shape[1:] == test.shape[1:] == (1, 8, 8)
        assert set((test * 255 // 60).unique().tolist()) == {shades}
        assert shades not in (train * 255 // 60).unique()
    with pytest.raises(ValueError, match="test_folder"):
        Images(name="photographs", test_folder=folder)


def test_faces_are_divided(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    train, test = load(Images(name="celeba", folder=str(tmp_path), size=8), 0)
    assert (train.shape, test.shape) == ((9, 3, 8, 8), (1, 3, 8, 8))
    images = Images(name="celeba", folder=str(tmp_path), size=8, limit=4, held_out=2)
    assert [len(part) for part in load(images, 0)] == [4, 2]
    with pytest.raises(DataError, match="no such folder"):
        load(Images(name="celeba", folder=str(tmp_path / "nowhere")), 0)


def test_quality():
    image = torch.rand(3, 3, 8, 8)
    figures = quality(image * 0.5, image)
    expected = ((image * 0.5) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(torch.tensor(figures["mse"]), expected)
    torch.testing.assert_close(torch.tensor(figures["psnr"]), -10.0 * expected.log10())
    assert quality(image, image)["ssim"] == [1.0, 1.0, 1.0]


# Inverse problems


def inverted(folder, *problems, **changes):
    return Inverse(
        inverse.Settings(
            checkpoint=str(folder / "checkpoint.pt"), problems=problems, **changes
        ),
        CPU,
    )


OWN = "fixedpoint_models.tasks.operators:own"


@pytest.fixture
def own_operator(monkeypatch):
    """Gives the name above to an operator."""
    module = "fixedpoint_models.tasks.operators"
    return lambda operator: monkeypatch.setattr(
        f"{module}.own", operator, raising=False
    )


def test_what_is_measured_without_noise_of_a_decoded_image_gives_it_back(folder):
    task = inverted(
        folder, Problem(name="half", kind="inpainting", hidden=3, prior=1e-6)
    )
    decoder = task.generative.decoder
    codes = task.generative.sample(len(task.images))
    exact = decoder.module.head(
        decoder.equilibrium(codes, decoder.frozen(0.0)).value, decoder.frozen(0.0)
    ).detach()
    (masks,) = (measured.masks for measured in task.measured)
    recovered, _ = task._recover(
        task.settings.problems[0], inverse.Measured(exact * masks, masks)
    )
    assert float((recovered - exact.clamp(0, 1)).abs().median()) < 1e-3


def test_squares_and_noise(folder):
    task = inverted(
        folder,
        Problem(name="square", kind="inpainting", hidden=4, sigma=0.3),
        Problem(name="noise", sigma=0.4),
    )
    square, noise = task.measured
    hidden = square.masks == 0.0
    assert (hidden.sum(dim=(1, 2, 3)) == 16).all()
    assert (square.values[hidden] == 0.0).all()
    assert len(square.masks.unique(dim=0)) > 5
    assert float((noise.values - task.images).std()) == pytest.approx(0.4, rel=0.05)
    assert float((square.values - task.images)[~hidden].std()) == pytest.approx(
        0.3, rel=0.05
    )
    again = inverted(folder, *task.settings.problems).measured
    assert all(
        torch.equal(a.values, b.values)
        for a, b in zip(task.measured, again, strict=True)
    )


def test_the_recovered_images_are_better_than_what_is_measured(folder):
    problems = (
        Problem(name="whole"),
        Problem(name="noise", sigma=0.4, prior=0.2),
        Problem(
            name="blur",
            kind="operator",
            operator="fixedpoint_models.tasks.operators:blurred",
        ),
        Problem(
            name="small",
            kind="operator",
            operator="fixedpoint_models.tasks.operators:downsampled",
        ),
    )
    figures = inverted(folder, *problems).evaluate()
    assert figures["noise/psnr"] > figures["noise/psnr_measured"] + 1.5
    assert figures["whole/psnr"] >= max(figures["noise/psnr"], figures["small/psnr"])
    assert figures["whole/objective"] < figures["noise/objective"]
    assert not {"small/psnr_measured", "whole/psnr_measured"} & set(figures)
    assert min(v for name, v in figures.items() if name.endswith("converged")) > 0.9


def test_the_commands_of_inverse_problems(folder, tmp_path):
    config = tmp_path / "inverse.yaml"
    config.write_text(
        f"task: inverse\ncheckpoint: {folder}/checkpoint.pt\nnumber: 11\n"
    )
    for command in ("evaluate", "sample"):
        result = CliRunner().invoke(
            app,
            [
                command,
                "inverse",
                "--config",
                str(config),
                "--output",
                str(tmp_path / "out"),
            ],
        )
        assert result.exit_code == 0, result.output
    names = [problem.name for problem in inverse.PROBLEMS]
    assert [Path(line).stem for line in result.output.split()] == names
    assert all(Path(line).is_file() for line in result.output.split())
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {name.partition("/")[0] for name in figures} == set(names)


def halves(images):
    """The Fourier coefficients that tell all of real images, conjugated lazily."""
    return torch.fft.rfft2(images, norm="ortho").conj()


@pytest.mark.filterwarnings("error")
def test_images_are_recovered_from_complex_measurements(folder, own_operator):
    own_operator(halves)
    task = inverted(
        folder,
        Problem(name="whole"),
        Problem(name="fourier", kind="operator", operator=OWN),
        Problem(name="noisy", kind="operator", operator=OWN, sigma=0.1),
    )
    _, exact, noisy = (measured.values for measured in task.measured)
    complex_ = torch.view_as_complex(exact.reshape(len(exact), -1, 2))
    torch.testing.assert_close(complex_, halves(task.images).flatten(1))
    parts = (noisy - exact).reshape(-1, 2).std(0)
    assert parts.tolist() == pytest.approx([0.1, 0.1], rel=0.1)
    model = task.posed(task.settings.problems[1])
    y, params = task.measured[1], task.generative.decoder.frozen(0.0)
    lost = model.problem.loss(0.0 * task.images, torch.zeros(1), y, params)
    expected = params["scale"] * halves(task.images).abs().square().sum((1, 2, 3))
    torch.testing.assert_close(lost, expected)
    figures = task.evaluate()
    assert figures["fourier/psnr"] == pytest.approx(figures["whole/psnr"], abs=1.0)
    assert figures["fourier/converged"] > 0.9
    assert "fourier/psnr_measured" not in figures
    assert task.draw(folder)[1].is_file()


def test_the_mean_of_what_is_known():
    assert mean_of_known(np.array([1.0, np.nan, 3.0])) == 2.0
    assert np.isnan(mean_of_known(np.array([np.nan, np.nan])))


def dimmed(images):
    """Bright images at half their brightness, the others as they are."""
    bright = images.mean((1, 2, 3), keepdim=True) > 0.3
    return torch.where(bright, 0.5 * images, images)


def test_measurements_that_leave_some_images_as_they_are(folder, own_operator):
    own_operator(dimmed)
    task = inverted(folder, Problem(name="own", kind="operator", operator=OWN))
    task.generative.settings = replace(task.generative.settings, batch_size=1)
    expected = np.mean(quality(dimmed(task.images), task.images)["psnr"])
    assert 10.0 < expected < 110.0
    assert task.evaluate()["own/psnr_measured"] == pytest.approx(expected, rel=1e-5)


def constant(images):
    return torch.ones(len(images), 2)


def failing(images):
    raise RuntimeError("first line\nsecond line")


def total(images):
    return images.sum()


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("nowhere.module:name", "cannot be imported"),
        ("fixedpoint_models.tasks.operators:nothing", "cannot be imported"),
        ("fixedpoint_models.tasks.operators", "cannot be imported"),
        ("math:pi", "is not callable"),
        (constant, "is not differentiable"),
        (total, "a row for each image"),
        (failing, "failed .RuntimeError: first line.$"),
        ("torch:log", "own: operator torch:log makes infinite values, or NaN"),
        (lambda images: torch.fft.fft2(images).sum(), "a row for each image"),
    ],
)
def test_operators_that_cannot_be_used(operator, message, folder, own_operator):
    if callable(operator):
        own_operator(operator)
        operator = OWN
    with pytest.raises(ConfigError, match=message):
        inverted(folder, Problem(name="own", kind="operator", operator=operator))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"problems": []}, "problems: expected a list that is not empty"),
        ({"problems": [{"name": "a"}, {"name": "a"}]}, "names of their own"),
        ({"problems": [{"name": "a/b"}]}, r"problems\[0\]: name: expected letters"),
        ({"problems": [{"name": "a", "operator": "b:c"}]}, r"problems\[0\]: operator"),
        ({"problems": [{"name": "a", "kind": "operator"}]}, r"problems\[0\]: operator"),
        ({"problems": [{"name": "a", "sigma": -1}]}, r"problems\[0\].sigma: expected"),
    ],
)
def test_problems_are_checked(content, message):
    with pytest.raises(ConfigError, match=message):
        build(inverse.Settings, {"checkpoint": "x", **content})


def test_a_square_larger_than_the_image(folder):
    with pytest.raises(ConfigError, match="hidden: expected at most 8, got 9"):
        inverted(folder, Problem(name="square", kind="inpainting", hidden=9))
