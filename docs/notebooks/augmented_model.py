r"""
The augmented model
===================

An equilibrium decoder maps a code :math:`x` to the equilibrium :math:`z = f(z, x)`, and
that to an image. Here one is trained on small digits without knowing any codes, and
then removes noise from images it has never seen. In both cases the codes are found
*together with* the equilibria and their adjoints; :doc:`/augmented_deq` has the theory.
"""

# %%
# The decoder and the loss
# ------------------------

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from fixedpoint_models import AugmentedDEQ

images = torch.as_tensor(load_digits().data / 16.0)
train, held_out = images[:1200], images[1500:1512]
width, code = 32, 10


def f(z, x, params):
    return torch.tanh(z @ params["W"].T + x @ params["U"].T + params["b"])


def output(z, params):
    return z @ params["D"].T + params["c"]


def loss(o, x, y, _):
    return ((o - y) ** 2).sum(-1) + 0.05 * (x**2).sum(-1)


model = AugmentedDEQ(f, loss, output=output)

# %%
# Training
# --------
#
# Each step solves for state, adjoint and code of all images at once. By the envelope
# theorem the gradient in the parameters is that of the Lagrangian with all three
# held fixed: no backward solve is needed.

torch.manual_seed(0)
sizes = {"W": (width, width), "U": (width, code), "D": (64, width)}
params = {
    name: torch.randn(size, dtype=torch.float64) * (0.4 / size[1] ** 0.5)
    for name, size in sizes.items()
}
params |= {"b": torch.zeros(width).double(), "c": train.mean(0)}
for p in params.values():
    p.requires_grad_()


def contracting(params):
    """The same, with a W of norm 0.8: each code then has one equilibrium."""
    W = params["W"]
    return params | {"W": 0.8 * W / torch.linalg.matrix_norm(W, 2)}


def solve(images, params):
    z, x = images.new_zeros(len(images), width), images.new_zeros(len(images), code)
    fixed = {name: p.detach() for name, p in params.items()}
    return model.solve(z, x, params=fixed, y=images, max_steps=30, on_failure="return")


optimizer = torch.optim.Adam(params.values(), 0.02)
course = []
for _ in range(80):
    batch = train[torch.randint(len(train), (50,))]
    now = contracting(params)
    found = solve(batch, now)
    value = model.lagrangian(found.z, found.mu, found.x, params=now, y=batch).mean()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    course.append(float(found.objective.mean()))
print(f"objective {course[0]:.2f} to {course[-1]:.2f}")

# %%
# Removing noise
# --------------
#
# Noise is added to images that the decoder has never seen. The decoder can only produce
# what its codes can express, and they can express little of the noise. The reported
# objective belongs to an equilibrium that was solved for afresh at the code found.

noisy = held_out + 0.3 * torch.randn(held_out.shape, dtype=torch.float64)
params = {name: p.detach() for name, p in contracting(params).items()}
found = solve(noisy, params)
cleaned = output(found.z, params)
worst = {block: f"{norms.max():.0e}" for block, norms in found.kkt.items()}
print("the largest KKT residuals:", worst)
for name, shown in ("noisy", noisy), ("cleaned", cleaned):
    print(f"{name}: off by {(shown - held_out).square().mean().sqrt():.2f}")

# %%
# The images, the noisy images, and what the decoder makes of them:

figure, panels = plt.subplots(3, 12, figsize=(7.2, 2.0), layout="constrained")
for line, row in zip(panels, (held_out, noisy, cleaned), strict=True):
    for axes, image in zip(line, row, strict=True):
        axes.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=1.0)
        axes.axis("off")
