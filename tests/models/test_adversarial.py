"""Attacks on equilibrium classifiers, and training against them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fixedpoint as fp
from fixedpoint_models.__main__ import app
from fixedpoint_models.classifier import cross_entropy
from fixedpoint_models.config import ConfigError, build
from fixedpoint_models.tasks.adversarial import Adversarial, Attack, Settings

CPU = torch.device("cpu")
SMALL = Settings(width=24, held_out=60, attack=Attack(steps=30, radius=0.5))


@pytest.fixture(scope="module")
def trained():
    """A small classifier, trained for two epochs without attacks."""
    torch.manual_seed(0)
    experiment = Adversarial(replace(SMALL, attack=Attack(method="none")), CPU)
    optimizer = torch.optim.Adam(experiment.module.parameters(), lr=1e-2)
    for epoch in range(2):
        for batch in experiment.batches(epoch):
            optimizer.zero_grad()
            experiment.step(batch)
            optimizer.step()
    return experiment


def losses(experiment, x):
    """The cross-entropy of the test images, perturbed by x."""
    images = experiment.test.images + x.reshape(experiment.test.images.shape)
    with torch.no_grad():
        return cross_entropy(experiment.logits(images), experiment.test.classes)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", ["joint", "nested"])
def test_an_attack_stays_in_the_ball_and_hurts(method, norm, trained):
    radius = 0.5 if norm == "l2" else 0.1
    attack = Attack(method=method, steps=30, radius=radius, norm=norm, step_size=radius)
    x = trained.attacked(trained.test, attack)[2]
    size = x.norm(dim=1) if norm == "l2" else x.abs().amax(1)
    assert float(size.max()) <= radius + 1e-6
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other = radius * (
        other / other.norm(dim=1, keepdim=True) if norm == "l2" else other.sign()
    )
    assert float(losses(trained, x).mean()) > 1.5 * float(losses(trained, other).mean())


def test_joint_and_nested_attacks_are_equally_strong(trained):
    joint, nested = (
        float(losses(trained, trained.attacked(trained.test, attack)[2]).mean())
        for attack in (
            Attack(method="joint", steps=60, radius=0.5),
            Attack(method="nested", steps=60, radius=0.5, step_size=0.5),
        )
    )
    assert joint == pytest.approx(nested, rel=0.01)


def test_the_gradient_is_that_of_the_loss_at_the_perturbation(trained):
    """By a reference that solves the equilibrium anew and differentiates it
    implicitly.
    """
    experiment = Adversarial(replace(SMALL, attack=Attack(steps=200, radius=0.5)), CPU)
    experiment.module.load_state_dict(trained.module.state_dict())
    experiment.module.double()
    batch = experiment.test._replace(
        images=experiment.test.images[:20].double(),
        classes=experiment.test.classes[:20].double(),
    )
    experiment.step(batch)
    found = [p.grad.clone() for p in experiment.module.parameters()]
    x = experiment.attacked(batch, experiment.settings.attack)[2]
    params, z, _ = experiment.posed(batch.images)
    solution = fp.fixed_point(
        experiment.model.f,
        z,
        (x, params),
        batch_ndim=1,
        rtol=1e-10,
        adjoint=fp.ImplicitAdjoint(rtol=1e-10),
    )
    loss = cross_entropy(
        experiment.model.output(solution.value, params), batch.classes
    ).mean()
    expected = torch.autograd.grad(loss, list(experiment.module.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))


def test_multiscale_classifiers_are_attacked_too():
    experiment = Adversarial(
        replace(SMALL, kind="mdeq", channels=(8,), held_out=8), CPU
    )
    batch = experiment.test
    x = experiment.attacked(batch, Attack(steps=5, radius=0.5))[2]
    assert x.shape == batch.images.shape
    assert float(x.flatten(1).norm(dim=1).max()) <= 0.5 + 1e-6
    assert experiment.step(batch)["loss"] > 0.0


def test_files_have_to_be_named():
    with pytest.raises(ConfigError, match="folder"):
        build(Settings, {"images": "mnist"})


# Foolbox imports what SciPy and its own dependencies have deprecated.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_command_line_trains_evaluates_and_draws(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(
        "task: adversarial\nwidth: 24\nheld_out: 40\nattack: {steps: 4}\ntraining: "
        "{epochs: 3}\n"
    )
    out = tmp_path / "out"
    for command in ("train", "evaluate", "sample"):
        arguments = [
            command,
            "adversarial",
            "--config",
            str(config),
            "--output",
            str(out),
        ]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    rows = np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)
    assert rows["loss"][-1] < rows["loss"][0]
    assert Image.open(out / "attacks.png").width > 100
