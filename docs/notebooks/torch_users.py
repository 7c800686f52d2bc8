r"""
For PyTorch users
=================

Tensors go in and come out, on the same device and with the same dtype. Autograd does
not record the iteration; the derivative of the solution is formed by the implicit
function theorem, so memory does not grow with the number of steps.
"""

# %%
# Gradients flow to what is in ``args``
# -------------------------------------
#
# For :math:`f(z) = az + b` the solution is :math:`z^\ast = b/(1-a)`. With :math:`J =
# \partial f/\partial z` at :math:`z^\ast`, a cotangent :math:`v` of it gives
#
# .. math::
#
#     (I - J^{\mathsf T})\,u = v, \qquad
#     \bar\theta = \Bigl(\frac{\partial f}{\partial\theta}\Bigr)^{\!\mathsf T} u,
#
# and the linear system is solved without forming :math:`J`, to its own tolerance.

import torch

import fixedpoint as fp


def f(z, a, b):
    return a * z + b


zero = torch.zeros((), dtype=torch.float64)
a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
b = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
sol = fp.fixed_point(f, zero, (a, b))
da, db = torch.autograd.grad(sol.value, (a, b), create_graph=True)
print(f"value {sol.value:.6f}, da {da:.6f}, db {db:.6f}")  # b/(1-a)², 1/(1-a)

# %%
# Derivatives can be differentiated again, and ``torch.func`` transforms apply:

print(f"{torch.autograd.grad(da, a)[0]:.6f}")  # 2b/(1-a)³


def solution(a):
    return fp.fixed_point(f, zero, (a, 1.0)).value


half, one = a.detach(), torch.ones_like(a)
print(torch.func.jvp(solution, (half,), (one,))[1])
slopes = torch.func.vmap(torch.func.grad(solution))
print(slopes(torch.tensor([0.5, 0.2], dtype=torch.float64)))

# %%
# ``sol.backward`` reports on the latest adjoint solve. If it fails, the backward pass
# raises: a gradient is never silently wrong. :class:`~fixedpoint.ImplicitAdjoint` sets
# the solver and the tolerance; :doc:`/which_adjoint` describes other adjoints.

sol = fp.fixed_point(f, zero, (a, b), adjoint=fp.ImplicitAdjoint(rtol=1e-12))
sol.value.backward()
print(fp.Status(int(sol.backward.status)).name, sol.backward.products)

# %%
# A module as the map
# -------------------
#
# If ``f`` is an ``nn.Module``, or a bound method of one, its parameters are
# differentiated too. ``batch_ndim=1`` says that the rows are separate problems.


class Cell(torch.nn.Module):
    def __init__(self, width, inputs):
        super().__init__()
        self.inner = torch.nn.Linear(width, width)
        self.outer = torch.nn.Linear(inputs, width)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


torch.manual_seed(0)
cell = Cell(8, 3)
x = torch.randn(4, 3, requires_grad=True)
sol = fp.fixed_point(cell, torch.zeros(4, 8), (x,), batch_ndim=1)
sol.value.square().sum().backward()
print(sol.status, cell.inner.weight.grad.shape, x.grad.shape)

# %%
# If a function used a tensor that requires a gradient without being passed it, that
# tensor's derivative would be lost. The first evaluation refuses it, and names it:

try:
    fp.fixed_point(lambda z: cell(z, x), torch.zeros(4, 8), batch_ndim=1)
except ValueError as error:
    print(error)

# %%
# A layer
# -------
#
# A :class:`fixedpoint_torch.DEQ` is a module around a cell. Here one learns to tell two
# spirals apart; its state has 32 entries, its input two.

from fixedpoint_torch import DEQ

turn = torch.linspace(0.2, 1.0, 100)[:, None]
arm = turn * torch.cat([torch.cos(7 * turn), torch.sin(7 * turn)], 1)
points, label = torch.cat([arm, -arm]), torch.arange(200) // 100

layer = DEQ(
    Cell(32, 2), start=lambda x: x.new_zeros(len(x), 32), solver="anderson", rtol=1e-3
)
torch.nn.utils.parametrizations.spectral_norm(layer.cell.inner)
model = torch.nn.Sequential(layer, torch.nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), 0.02)
losses = []
for _ in range(150):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(points), label)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
right = (model(points).argmax(1) == label).float().mean()
print(f"loss {losses[0]:.2f} to {losses[-1]:.3f}, {right:.0%} right")
print(f"the last batch took up to {layer.statistics.steps.max()} steps a sample")

# %%
# What the model predicts across the plane:

import matplotlib.pyplot as plt

axis = torch.linspace(-1.2, 1.2, 80)
x, y = torch.meshgrid(axis, axis, indexing="xy")
with torch.no_grad():
    says = model(torch.stack([x, y], -1).reshape(-1, 2)).softmax(1)[:, 1]
figure, axes = plt.subplots(figsize=(4.5, 3.5))
shown = axes.contourf(x, y, says.reshape(x.shape), 12, cmap="RdBu")
axes.scatter(*points.T, c=label, cmap="RdBu", s=12, edgecolors="k", linewidths=0.4)
figure.colorbar(shown, label="probability of the second class")

# %%
# Random numbers that ``f`` draws are the same in all evaluations of a solve and of its
# derivatives, so a map with dropout has a fixed point. Under autocast all of ``f`` runs
# like the caller's operations, and the state keeps its dtype. :doc:`/layers` has the
# details, and :doc:`/faq` answers questions about ``torch.compile``, export and DDP.
