"""The decoder that starts as principal component analysis, and what it is compared
with.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fixedpoint_models.config import Config, ConfigError, Training
from fixedpoint_models.data import digits, square_masks
from fixedpoint_models.devices import Processes
from fixedpoint_models.principal import PrincipalImages, principal_components
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks import baselines, generative, inverse
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.tasks.images import load, quality
from fixedpoint_models.tasks.inverse import Inverse, Problem
from fixedpoint_models.tasks.settings import Images, Network, Settings, Solve

CPU = torch.device("cpu")
LATENT, EPOCHS = 6, 10
NETWORK = Network(kind="principal", width=16, latent=LATENT, basis=24)


def settings(**changes):
    values = {
        "images": Images(name="digits", limit=200, held_out=24),
        "network": NETWORK,
        "solve": Solve(steps=20, damping=0.01),
        "prior": 1e-3,
        "batch_size": 50,
    }
    return Settings(**(values | changes))


def run_of(chosen, folder, epochs):
    config = Config(
        name="x", training=Training(epochs=epochs, learning_rate=3e-2), settings=chosen
    )
    return Run(
        "generative", begin(Generative, chosen, CPU), config, folder, Processes()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("principal")
    run_of(settings(codes="encoded"), folder, EPOCHS).train(progress=False)
    return folder


def svd(images, number):
    """Mean and axes, by NumPy."""
    rows = images.reshape(len(images), -1).double().numpy()
    mean = rows.mean(axis=0)
    return mean, np.linalg.svd(rows - mean, full_matrices=False)[2][:number].T


def some(number=40):
    images = torch.as_tensor(digits()[:number], dtype=torch.float32)[:, None]
    masks = torch.as_tensor(square_masks(number, 8, 8, 0, 3), dtype=torch.float32)
    return images, masks[:, None]


def test_components_are_those_of_the_singular_values():
    images = some(60)[0]
    mean, axes = svd(images, 5)
    found = principal_components(images, 5)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    along = np.abs(found.axes.double().numpy().T @ axes)
    np.testing.assert_allclose(along, np.eye(5), atol=1e-3)
    projected = (images.flatten(1) - found.mean) @ found.axes
    np.testing.assert_allclose(projected.std(dim=0), found.deviations, rtol=1e-4)


def test_before_training_it_is_principal_component_analysis():
    chosen = settings(prior=0.0)
    task = begin(Generative, chosen, CPU)
    mean, axes = svd(load(chosen.images, chosen.seed)[0], LATENT)
    rows = task.held_out.flatten(1).double().numpy() - mean
    expected = (mean + rows @ axes @ axes.T).clip(0.0, 1.0)
    codes = task.reconstruct(task.held_out).value["x"]
    found = task.decoder.images(codes, task.decoder.frozen(0.0))
    np.testing.assert_allclose(found.flatten(1), expected, atol=2e-3)


def test_what_training_compares_differs_from_pixels_by_what_the_basis_leaves():
    images = some()[0]
    decoder = PrincipalImages((1, 8, 8), 8, 3, 10, 0.9, seed=1)
    decoder.fit(images)
    torch.nn.init.normal_(decoder.C)
    params, x = decoder.params(), torch.randn(40, 3)
    z = decoder.f(torch.randn(40, 11), x, params)
    assert torch.equal(z[:, :3], x)
    inside = decoder.read(z, params) - decoder.measured(images)
    pixels = decoder.head(z, params) - images
    mean, axes = svd(images, 10)
    rows = images.flatten(1).double().numpy() - mean
    left = ((rows - rows @ axes @ axes.T) ** 2).sum(1)
    total = inside.detach().square().sum(1).double().numpy() + left
    np.testing.assert_allclose(
        pixels.detach().square().sum((1, 2, 3)), total, rtol=1e-4
    )


def test_training_goes_beyond_it(folder, tmp_path):
    before = run_of(settings(), tmp_path, 1).experiment.evaluate()
    run = run_of(settings(codes="encoded"), folder, EPOCHS)
    run.restore()
    after = run.experiment.evaluate()
    assert after["objective"] < 0.98 * before["objective"]
    assert after["psnr"] > before["psnr"] + 0.1
    assert after["failed"] == 0.0


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (replace(NETWORK, basis=5), "at least 6"),
        (replace(NETWORK, basis=65), "from 1 to 64"),
    ],
)
def test_a_basis_that_does_not_fit(network, message):
    with pytest.raises(ConfigError, match=message):
        begin(Generative, settings(network=network), CPU)


def test_components_fill_what_is_hidden_by_least_squares():
    images, masks = some()
    components = principal_components(images, 4)
    found = baselines.by_components(images * masks, masks, components, 0.0)
    mean, axes = svd(images, 4)
    for image, mask, filled in zip(images, masks, found, strict=True):
        known = mask.flatten().numpy() > 0
        rows = image.flatten().double().numpy() - mean
        code = np.linalg.lstsq(axes[known], rows[known])[0]
        expected = (mean + axes @ code).clip(0.0, 1.0)
        np.testing.assert_allclose(filled.flatten(), expected, atol=2e-3)


def test_components_with_a_prior_are_the_mean_after_the_measurement():
    images, masks = some()
    generator = torch.Generator().manual_seed(0)
    noisy = images + 0.3 * torch.randn(images.shape, generator=generator)
    mean, axes, deviations = (
        part.double().numpy() for part in principal_components(images, 20)
    )
    found = baselines.by_components(
        noisy * masks, masks, principal_components(images, 20), 0.09
    )
    for image, mask, filled in zip(noisy, masks, found, strict=True):
        known = mask.flatten().numpy() > 0
        A, rows = axes[known], image.flatten().double().numpy()[known] - mean[known]
        prior = (A * deviations**2) @ A.T + 0.09 * np.eye(known.sum())
        gain = (axes * deviations**2) @ A.T @ np.linalg.inv(prior)
        expected = (mean + gain @ rows).clip(0.0, 1.0)
        np.testing.assert_allclose(filled.flatten(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "fill", [baselines.by_biharmonic, baselines.filled_by_total_variation]
)
def test_fillings_continue_what_is_around(fill):
    masks = torch.as_tensor(square_masks(3, 16, 16, 0, 5), dtype=torch.float32)[:, None]
    ramp = torch.linspace(0.1, 0.9, 16).expand(3, 1, 16, 16)
    # The least total variation continues no slope, but it does a straight edge.
    images = ramp if fill is baselines.by_biharmonic else (ramp > 0.45).float()
    found = fill(images * masks, masks)
    assert torch.equal(found[masks > 0], images[masks > 0])
    assert float((found - images).abs().max()) < 0.05


def test_total_variation_removes_noise():
    images = torch.zeros(2, 1, 16, 16)
    images[..., 8:] = 1.0
    noisy = images + 0.2 * torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    found = baselines.by_total_variation(noisy, 0.3)
    assert float((found - images).square().mean()) < 0.2 * 0.2**2


def test_inpainting_is_judged_on_the_square_and_known_pixels_are_pasted(folder):
    problem = Problem(name="square", kind="inpainting", hidden=3)
    task = Inverse(
        inverse.Settings(
            checkpoint=str(folder / "checkpoint.pt"),
            problems=(problem,),
            baselines=True,
        ),
        CPU,
    )
    measured, images = task.measured[0], task.images
    recovered = task._recover(problem, measured)[0]
    is_known = measured.masks > 0.0
    assert torch.equal(recovered[is_known], images[is_known])
    assert (recovered != images).any()
    figures = task.evaluate()
    errors = (recovered - images).square().sum(dim=(1, 2, 3)) / 9
    psnr = float((-10 * errors.log10()).mean())
    assert figures["square/psnr"] == pytest.approx(psnr, abs=0.05)
    names = {name.partition("_")[2] for name in figures if "/psnr_" in name}
    assert {"pca", "pca_prior", "tv", "biharmonic"} <= names


def test_quality_of_a_part():
    image = torch.rand(2, 1, 16, 16, generator=torch.manual_seed(0))
    masks = torch.ones_like(image)
    masks[..., 2:6, 3:8] = 0.0
    spoilt = torch.where(masks > 0.0, 0.0, image)
    found = quality(spoilt, image, masks)
    assert found["mse"] == [0.0, 0.0]
    assert min(found["psnr"]) > 100.0
    error = float(image[0, 0, 2:6, 3:8].square().mean())
    assert quality(image * 0.0, image, masks)["mse"][0] == pytest.approx(error)


def test_at_codes_of_components_the_gradient_is_that_of_the_loss(monkeypatch):
    monkeypatch.setattr(generative, "ENCODED", 1e-6)
    task = begin(Generative, settings(codes="encoded"), CPU)
    module = task.module
    torch.nn.init.normal_(module.C)
    (batch, *_) = task.batches(0)
    figures = task.step(batch)
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    params, x = task.decoder.params(1e-3), module.encode(batch.images)
    z = module.zero_state(len(x))
    for _ in range(80):
        z = module.f(z, x, params)
    misfit = (module.read(z, params) - batch.images).square().sum(-1)
    loss = misfit + (1e-3 * (x / module.deviations[:LATENT]) ** 2).sum(-1)
    loss.mean().backward()
    assert figures["loss"] == pytest.approx(float(loss.detach().mean()), rel=1e-4)
    for gradient, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=2e-3, atol=1e-4)


def test_codes_that_cannot_be_encoded():
    with pytest.raises(ValueError, match="principal"):
        settings(network=Network(kind="dense"), codes="encoded")
