"""Meta-learning: the network, adaptation, the derivative through it, and what the task
does.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call, grad, jacrev, vjp
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fixedpoint as fp
from fixedpoint_models import AugmentedDEQ
from fixedpoint_models.config import ConfigError, build
from fixedpoint_models.data import Episodes
from fixedpoint_models.nested import Nested
from fixedpoint_models.tasks.meta import Meta, MetaSettings
from fixedpoint_models.tasks.task_network import TaskNetwork, cross_entropy

SMALL = MetaSettings(
    side=12,
    channels=8,
    features=8,
    context=2,
    tasks=4,
    batches=2,
    queries=2,
    test_tasks=6,
    test_queries=2,
)
TIGHT = {"rtol": 1e-12, "atol": 1e-13, "max_steps": 2000}
TASKS, WAYS, IMAGES, PENALTY = 2, 2, 2, 0.1


@pytest.fixture
def doubles():
    """Double precision, and a seed."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tiny():
    """A network whose equilibria the vector moves a good deal."""
    network = TaskNetwork(WAYS, 8, channels=4, features=3, context=2, groups=2)
    with torch.no_grad():
        network.cell.injection.maps[0].weight.mul_(10.0)
    return network


def equilibrium(network, v, params, **kw):
    start = network.zero_state(*params["drive"].shape[:2])
    return fp.fixed_point(
        network.f, start, (v, params), batch_ndim=1, **TIGHT, **kw
    ).value


# The network


def test_a_vector_of_zero_knows_no_class(doubles):
    network, v = tiny(), torch.zeros(TASKS, 8)
    params = network.params(torch.rand(TASKS, IMAGES, 1, 8, 8))
    assert network.scores(equilibrium(network, v, params), v, params).abs().max() == 0.0


def test_labels_are_but_names(doubles):
    """Codes in another order change the order of the scores, and nothing else."""
    network, v = tiny(), torch.randn(TASKS, 8)
    params = network.params(torch.rand(TASKS, IMAGES, 1, 8, 8))
    other = torch.cat([v[:, :2], v[:, 5:], v[:, 2:5]], dim=1)
    here, there = (equilibrium(network, u, params) for u in (v, other))
    torch.testing.assert_close(here, there, rtol=0.0, atol=1e-10)
    scores, swapped = (network.scores(here, u, params) for u in (v, other))
    torch.testing.assert_close(scores.flip(-1), swapped)


def test_the_vector_moves_the_equilibrium_and_no_task_sees_another(doubles):
    network, v = tiny(), torch.randn(TASKS, 8)
    params = network.params(torch.rand(TASKS, IMAGES, 1, 8, 8))
    (plain,), (moved,) = (equilibrium(network, u, params) for u in (0.0 * v, v))
    assert (moved - plain).norm() > 0.05 * plain.norm()
    one = {**params, "drive": params["drive"][1:]}
    torch.testing.assert_close(
        equilibrium(network, v[1:], one)[0], moved[1:], rtol=0.0, atol=1e-10
    )


@pytest.mark.parametrize(("name", "value"), [("ways", 0), ("side", 10), ("context", 0)])
def test_a_network_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=name):
        TaskNetwork(**{"ways": 2, "side": 8, "channels": 4, name: value})


# The derivative


def outer_by_the_library(network, images, labels):
    """The loss of the query at vectors that are adapted to the support."""

    def loss(z, v, labels, params):
        fit = cross_entropy(network.scores(z, v, params), labels)
        return fit + PENALTY * v.square().sum(-1)

    adjoint = fp.ImplicitAdjoint(solver=fp.NewtonKrylov(), rtol=1e-12)
    model = AugmentedDEQ(network.f, loss, step_size=0.5)
    z, v = network.zero_state(TASKS, IMAGES), torch.zeros(TASKS, network.entries())
    v = model.iterate(
        z,
        v,
        params=network.params(images[0]),
        y=labels[0],
        adjoint=adjoint,
        solver=fp.Picard(),
        **TIGHT,
    ).value["x"]
    params = network.params(images[1])
    z = equilibrium(network, v, params, adjoint=adjoint)
    return cross_entropy(network.scores(z, v, params), labels[1]).sum()


class OneTask(torch.nn.Module):
    """f and the cross-entropy of one task, of flat vectors, as functions of flat
    parameters.
    """

    def __init__(self, network, images, labels):
        super().__init__()
        self.network, self.images, self.labels = (
            network,
            images[:, None],
            labels[:, None],
        )
        self.shape = network.zero_state(1, IMAGES)[0].shape
        self.size = self.shape.numel()

    def forward(self, z, v, which):
        z, v, params = (
            (z.view(self.shape),),
            v[None],
            self.network.params(self.images[which]),
        )
        scores = self.network.scores(z, v, params)
        fit = cross_entropy(scores, self.labels[which])[0]
        return self.network.f(z, v, params)[0].flatten(), fit

    def at(self, theta):
        names, shapes = zip(
            *((k, p.shape) for k, p in self.named_parameters()), strict=True
        )
        pieces = theta.split([shape.numel() for shape in shapes])
        weights = {k: p.view(s) for k, p, s in zip(names, pieces, shapes, strict=True)}
        return lambda *args: functional_call(self, weights, args)


def gradient_by_dense_algebra(task):
    """That of the outer loss, by a dense solve for all unknowns of support and query.

    The unknowns are z, μ and v of the support and the state of the query, w with R(w,
    θ) = 0, and the gradient is ∂ℓ/∂θ − (∂R/∂θ)ᵀ(∂R/∂w)⁻ᵀ ∂ℓ/∂w.
    """
    theta = parameters_to_vector(task.parameters()).detach()
    split = [task.size, task.size, task.network.entries(), task.size]

    def lagrangian(inner, theta):
        z, mu, v = inner.split(split[:3])
        image, fit = task.at(theta)(z, v, 0)
        return fit + PENALTY * v.square().sum() + mu @ (image - z)

    def conditions(w, theta):
        _, _, v, query = w.split(split)
        inner = grad(lagrangian)(w[: -task.size], theta)
        return torch.cat([inner, task.at(theta)(query, v, 1)[0] - query])

    def outer(w, theta):
        _, _, v, query = w.split(split)
        return task.at(theta)(query, v, 1)[1]

    w = torch.zeros(sum(split))
    for _ in range(100):  # the rows of the joint map: what Newton's method starts from
        by_z, by_mu, by_v, query = conditions(w, theta).split(split)
        w = w + torch.cat([by_mu, by_z, -0.5 * by_v, query])
    for _ in range(4):
        w = w - torch.linalg.solve(jacrev(conditions)(w, theta), conditions(w, theta))
    assert conditions(w, theta).norm() < 1e-12
    by_w, by_theta = grad(outer, (0, 1))(w, theta)
    adjoint = torch.linalg.solve(jacrev(conditions)(w, theta).T, by_w)
    through = vjp(lambda theta: conditions(w, theta), theta)[1](adjoint)[0]
    return by_theta - through


def test_the_gradient_of_the_outer_loss_is_that_of_dense_algebra(doubles):
    network, images = tiny(), torch.rand(2, TASKS, IMAGES, 1, 8, 8)
    labels = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 1]]])
    tasks = [OneTask(network, images[:, i], labels[:, i]) for i in range(TASKS)]
    exact = sum(gradient_by_dense_algebra(task) for task in tasks)
    outer_by_the_library(network, images, labels).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    vector_to_parameters(exact, [p.grad for p in network.parameters()])
    for name, parameter in network.named_parameters():
        gap = (found[name] - parameter.grad).norm()
        assert gap <= 1e-7 * parameter.grad.norm(), name
        assert parameter.grad.norm() > 0.0, name


# Adaptation


@pytest.mark.parametrize("method", ["recipe", "descent", "quasi-newton"])
def test_adaptation_finds_what_the_nested_method_finds(method):
    control = {"method": method, "step_size": 0.5, "rtol": 1e-4, "steps": 200}
    task = Meta(replace(SMALL, side=16, channels=16, **control))
    batch = next(task.batches(0))
    inner = task.inner(batch)
    adapted = task.adapt(batch.support, batch.support_labels)
    assert adapted.converged.all()
    sgd = partial(torch.optim.SGD, lr=0.5, momentum=0.7, nesterov=True)
    nested = Nested(inner.model.problem, sgd, fp.Anderson(memory=5), tolerance=1e-4)
    steps = nested.steps(inner.z, inner.x, params=inner.params, y=inner.y)
    for _ in range(100):
        x = next(steps).x
    expected = inner.objective(x)
    assert inner.objective(adapted.value["x"]) == pytest.approx(expected, rel=1e-3)
    assert expected < 0.8 * inner.objective(inner.x)
    torch.testing.assert_close(adapted.value["x"], x, rtol=0.0, atol=0.2)


def test_an_adapted_vector_labels_its_support():
    task = Meta(SMALL)
    batch = next(task.batches(0))
    v = task.adapt(batch.support, batch.support_labels).value["x"]
    right = batch._replace(query=batch.support, query_labels=batch.support_labels)
    assert float(task.accuracy(0.0 * v, right).mean()) == pytest.approx(1 / SMALL.ways)
    assert float(task.accuracy(v, right).mean()) > 0.9


# The task


def test_a_step_adds_a_gradient_for_every_parameter():
    task = Meta(SMALL)
    batch = next(task.batches(0))
    numbers = task.step(batch)
    once = [p.grad.clone() for p in task.module.parameters()]
    assert all(g.isfinite().all() and g.abs().max() > 0.0 for g in once)
    assert numbers["converged"] == 1.0
    torch.manual_seed(1)
    task.step(batch)
    names = [name for name, _ in task.module.named_parameters()]
    for name, p, first in zip(names, task.module.parameters(), once, strict=True):
        # The penalty is random.
        assert (p.grad - 2 * first).norm() <= 0.1 * first.norm(), name


def test_epochs_repeat_and_differ():
    task, again = Meta(SMALL), Meta(SMALL)
    assert all(
        map(
            torch.equal,
            task.module.state_dict().values(),
            again.module.state_dict().values(),
        )
    )
    first = [batch.support for batch in task.batches(0)]
    assert len(first) == SMALL.batches
    assert first[0].shape == (4, 5, 1, 12, 12)
    assert torch.equal(first[1], [batch.support for batch in again.batches(0)][1])
    assert not torch.equal(first[0], next(task.batches(1)).support)


def test_no_class_is_seen_in_training_and_in_the_test():
    task = Meta(SMALL)
    assert not set(task.train.names) & set(task.test.names)
    assert sum(len(batch.support) for batch in task.held_out()) == SMALL.test_tasks
    assert Episodes(task.test, 5, 1, 2).ways == SMALL.ways


def test_figures_and_a_picture(tmp_path):
    task = Meta(SMALL)
    figures = task.evaluate()
    assert set(figures) == {"accuracy", "interval", "converged", "evaluations"}
    assert 0.0 < figures["accuracy"] <= 1.0
    (file,) = task.draw(tmp_path)
    with Image.open(file) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_characters_from_folders(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        folder = tmp_path / "images_background" / "Runes" / f"character{number:02}"
        folder.mkdir(parents=True)
        for example in range(3):
            pixels = (
                torch.randint(0, 2, (20, 20), generator=generator)
                .to(torch.uint8)
                .numpy()
            )
            Image.fromarray(255 * pixels).save(folder / f"{example}.png")
    task = Meta(replace(SMALL, omniglot=(str(tmp_path),), ways=2))
    assert (len(task.train), len(task.test)) == (10, 2)
    assert next(task.batches(0)).query.shape == (4, 4, 1, 12, 12)


def test_official_runs_are_evaluated_by_a_network_of_other_ways(tmp_path):
    """Of two runs of four classes, the second asks for them in reverse."""
    generator = np.random.default_rng(0)
    drawings = (255 * (generator.random((4, 20, 20)) < 0.5)).astype(np.uint8)
    for run, order in (("run01", [0, 1, 2, 3]), ("run02", [3, 2, 1, 0])):
        lines = []
        for number, chosen in enumerate(order):
            names = f"{run}/test/item{number}.png", f"{run}/training/class{number}.png"
            for name, which in zip(names, (chosen, number), strict=True):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawings[which]).save(tmp_path / name)
            lines.append(f"{names[0]} {run}/training/class{chosen}.png")
        (tmp_path / run / "class_labels.txt").write_text("\n".join(lines))
    task = Meta(replace(SMALL, runs=str(tmp_path), test_tasks=2, test_ways=4))
    (batch,) = task.official()
    assert batch.query_labels.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert torch.equal(batch.support[0], batch.query[0])
    figures = task.evaluate()
    assert figures["official_accuracy"] == 1.0  # each query is a drawing of the support
    assert 0.0 <= figures["accuracy"] <= 1.0


@pytest.mark.parametrize(
    "content", [{"ways": 1}, {"method": "guess"}, {"penalty": 0.0}]
)
def test_settings_that_cannot_be(content):
    with pytest.raises(ConfigError, match=next(iter(content))):
        build(MetaSettings, content)


def test_a_nested_adaptation_has_about_the_same_derivative():
    settings = replace(SMALL, side=16, channels=16, rtol=1e-4, steps=200, step_size=0.5)
    gradients = []
    for method in ("recipe", "nested"):
        task = Meta(replace(settings, method=method))
        task.outer_loss(next(task.batches(0)))[0].sum().backward()
        gradients.append(
            parameters_to_vector([p.grad for p in task.module.parameters()])
        )
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
    assert (gradients[0] - gradients[1]).norm() < 0.2 * gradients[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["recipe", "descent", "quasi-newton"])
def test_what_is_learnt_carries_over_to_unseen_classes(method):
    settings = replace(
        SMALL,
        side=16,
        channels=16,
        tasks=8,
        batches=12,
        test_tasks=30,
        method=method,
        step_size=0.5,
    )
    task = Meta(settings)
    before = task.evaluate()["accuracy"]
    optimizer = torch.optim.Adam(task.module.parameters(), lr=5e-3)
    for batch in task.batches(0):
        optimizer.zero_grad()
        task.step(batch)
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        optimizer.step()
    after = task.evaluate()["accuracy"]
    assert after > before + 0.1
