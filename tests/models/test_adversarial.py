"""Attacks on equilibrium classifiers, and training against them."""

from collections import Counter
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from typer.testing import CliRunner

import fixedpoint as fp
from fixedpoint_models.__main__ import app
from fixedpoint_models.classifier import (
    ball_in_box,
    cross_entropy,
    linear_minimizer_in_box,
)
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
    assert float(norms(x, norm).max()) <= radius + 1e-6
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other = radius * (
        other / other.norm(dim=1, keepdim=True) if norm == "l2" else other.sign()
    )
    assert float(losses(trained, x).mean()) > 1.5 * float(losses(trained, other).mean())


def work(experiment, attack, monkeypatch):
    """The evaluations of f and the reverse passes that an attack takes."""
    calls, watched = Counter(), copy(experiment)

    def counted(name, function):
        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return call

    f, gradient = experiment.model.f, torch.autograd.grad
    watched.model = replace(experiment.model, f=counted("f", f))
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted("passes", gradient))
        watched.attacked(watched.test, attack)
    return calls


def test_a_joint_attack_takes_a_fraction_of_the_work(trained, monkeypatch):
    """One reverse pass an evaluation, and one for the first adjoint."""
    nested = Attack(method="nested", steps=5, step_size=0.3, radius=0.5)
    ours = work(trained, Attack(steps=12, radius=0.5), monkeypatch)
    theirs = work(trained, nested, monkeypatch)
    assert ours["passes"] == ours["f"] + 1
    assert ours["f"] <= 13
    assert 3 * ours["f"] < theirs["f"]
    assert 3 * ours["passes"] < theirs["passes"]


def norms(x, norm):
    return x.norm(dim=1) if norm == "l2" else x.abs().amax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_perturbation_is_that_of_a_general_solver(norm):
    """Beside an optimizer that knows constraints and nothing of this problem."""
    rng, radius = np.random.default_rng(0), 0.7 if norm == "l2" else 0.3
    image, x = rng.random((4, 6)), rng.normal(size=(4, 6))
    found = ball_in_box(torch.as_tensor(image), radius, norm)(torch.as_tensor(x))
    limit = np.full(6, radius if norm == "linf" else 1.0)
    for one, at, near in zip(image, x, found.numpy(), strict=True):
        bounds = np.stack([np.maximum(-one, -limit), np.minimum(1.0 - one, limit)], 1)
        inside = {"type": "ineq", "fun": lambda p: radius**2 - (p**2).sum()}
        best = minimize(
            lambda p, at=at: ((p - at) ** 2).sum(),
            np.zeros(6),
            bounds=bounds,
            constraints=[inside] if norm == "l2" else [],
            method="SLSQP",
            options={"ftol": 1e-14},
        ).x
        np.testing.assert_allclose(near, best, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_allowed_perturbation_is_favored_more(norm, dtype):
    """Than the best one, by a thousand random ones; images of 0 and 1 leave one way
    to go.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(50, 30, generator=generator, dtype=dtype).sub(0.5)
    image = (1.5 * image + 0.5).clamp(0.0, 1.0)
    gradient = torch.randn(50, 30, generator=generator, dtype=dtype)
    radius = 0.8 if norm == "l2" else 0.3
    best = linear_minimizer_in_box(image, radius, norm)(gradient)
    assert float(norms(best, norm).max()) <= radius * (1.0 + 1e-6)
    assert float((image + best).min()) >= -1e-6
    assert float((image + best).max()) <= 1.0 + 1e-6
    project = ball_in_box(image, radius, norm)
    for _ in range(100):
        other = torch.randn(50, 30, generator=generator, dtype=dtype)
        other = project(best + 0.3 * other)
        assert (((other - best) * gradient).sum(1) > -1e-5).all()


def test_without_a_gradient_there_is_no_perturbation():
    oracle = linear_minimizer_in_box(torch.rand(3, 5), 1.0)
    assert torch.equal(oracle(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_large_radius_leaves_the_box_alone():
    image = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    corner = linear_minimizer_in_box(image, 100.0)(torch.ones(5, 7))
    torch.testing.assert_close(corner, -image)


def test_the_joint_attack_keeps_to_the_pixels_or_not(trained):
    for box in (True, False):
        attack = Attack(method="joint", steps=30, radius=0.5, box=box)
        images = trained.perturbed(attack)
        inside = float(images.min()) >= -1e-6 and float(images.max()) <= 1.0 + 1e-6
        assert inside == box


def test_figures_do_not_depend_on_how_many_are_tested_at_a_time(trained):
    few = Adversarial(replace(trained.settings, test_batch=7), CPU)
    few.module.load_state_dict(trained.module.state_dict())
    attack = Attack(steps=10, radius=0.5)
    torch.testing.assert_close(
        few.perturbed(attack), trained.perturbed(attack), atol=1e-4, rtol=0.0
    )
    assert few.accuracy(few.test.images) == trained.accuracy(trained.test.images)


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


def test_states_that_are_no_equilibria_are_told():
    experiment = Adversarial(replace(SMALL, kind="mdeq", channels=(8,)), CPU)
    batch = experiment.test
    params, z, x = experiment.posed(batch.images)
    assert experiment.failed(z, x, params).all()
    found = fp.fixed_point(experiment.model.f, z, (x, params), batch_ndim=1, rtol=1e-3)
    assert not experiment.failed(found.value, x, params).any()
    one = tuple(leaf.detach().clone() for leaf in found.value)
    one[0][7] += 1.0
    assert experiment.failed(one, x, params).nonzero().flatten().tolist() == [7]
    assert experiment.step(batch)["failed"] == 0.0


def test_the_penalty_on_the_jacobian_has_a_gradient():
    gradients = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        settings = replace(SMALL, kind="mdeq", channels=(8,), jacobian=weight)
        experiment = Adversarial(settings, CPU)
        experiment.step(experiment.test)
        gradients.append(experiment.module.cell.blocks[0].conv2.weight.grad.norm())
    assert gradients[1] > 1.1 * gradients[0]


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


def test_an_attack_of_too_few_steps_is_named(monkeypatch):
    """Not the learning rate: there are equilibria, and nothing comes near them."""
    few = Attack(steps=2, radius=0.5)
    experiment = Adversarial(replace(SMALL, attack=few), CPU)
    assert experiment.step(experiment.test)["failed"] > 0.5
    assert "attack.steps = 2 is too few" in experiment.remedy()
    every = lambda z, x, params: torch.ones(len(x), dtype=torch.bool)
    monkeypatch.setattr(experiment, "failed", every)
    assert "lower the learning rate" in experiment.remedy()
