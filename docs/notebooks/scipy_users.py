r"""
For SciPy users
===============

:func:`fixedpoint.root` and :func:`fixedpoint.fixed_point` do what
:func:`!scipy.optimize.root` and :func:`!scipy.optimize.fixed_point` do, for NumPy,
PyTorch and JAX arrays.
"""

# %%
# The same system, twice
# ----------------------

import numpy as np
import scipy.optimize

import fixedpoint as fp


def F(x, radius):
    return np.stack([x[0] ** 2 + x[1] ** 2 - radius**2, x[0] - x[1]])


theirs = scipy.optimize.root(F, [1.0, 2.0], args=(2.0,))
ours = fp.root(F, np.array([1.0, 2.0]), (2.0,))
print(theirs.x, theirs.success)
print(ours.x, ours.success)  # or ours.value, ours.converged

# %%
# What differs:
#
# - ``x0`` is an array or a container of arrays, and ``F`` returns the same structure,
#   with the same shapes and dtypes. A list of numbers is an array, a tuple a container;
#   a number stays one, and is not made a vector of one entry.
# - A failure raises :class:`~fixedpoint.ConvergenceError` unless ``on_failure`` says
#   otherwise.
# - The tolerance bounds the estimated error of each entry of :math:`x`: ``rtol`` is
#   relative to that entry, ``atol`` is absolute. With ``test="residual"`` it bounds
#   :math:`\|F(x)\|`: ``rtol`` is relative to :math:`\|F(x_0)\|`, ``atol`` absolute.
#   :doc:`/tolerances` has the details.
# - If you name no solver, several are tried: see :doc:`/choosing_a_solver`.
#
# What it is called here
# ----------------------
#
# .. list-table::
#     :header-rows: 1
#     :widths: 50 50
#
#     * - SciPy
#       - here
#     * - ``jac=J``
#       - ``jacobian=J``, or ``jvp=`` for products
#     * - ``tol=1e-10`` of ``hybr`` and ``lm``, relative, on the step
#       - ``rtol=1e-10``
#     * - ``tol=1e-10`` of the others, absolute, on the residual
#       - ``rtol=0.0, atol=1e-10, test="residual"``, with ``norm="max"`` for the largest
#         component
#     * - ``options={"maxfev": 1000}``
#       - ``budget=fp.Budget(evaluations=1000)``
#     * - ``options={"maxiter": 100}``
#       - ``max_steps=100``
#     * - ``options={"jac_options": {"inner_M": M}}``
#       - ``preconditioner=lambda x: M``
#     * - ``method="hybr"``
#       - ``solver=fp.Newton()``
#     * - ``method="lm"``
#       - ``solver=fp.LevenbergMarquardt()``
#     * - ``method="krylov"``
#       - ``solver=fp.NewtonKrylov()``
#     * - ``method="broyden1"``, ``"broyden2"``
#       - ``solver=fp.Broyden()``, ``fp.Broyden(update="bad")``
#     * - ``method="anderson"``
#       - ``solver=fp.Anderson()``
#     * - ``sol.x``, ``sol.success``, ``sol.message``
#       - the same; the first two are also called ``sol.value`` and ``sol.converged``
#     * - ``sol.nfev``
#       - the same, or ``sol.work.f``, and ``sol.work.jvp`` for products
#     * - ``sol.nit``, ``sol.fun``
#       - ``sol.steps``, ``F(sol.x, *args)``
#     * - ``fsolve(F, x0)``
#       - ``fp.root(F, x0).x``
#     * - ``brentq(F, a, b)``; ``xtol=``, ``rtol=``
#       - ``fp.bracketed_root(F, a, b)``; the same
#     * - ``root_scalar(F, bracket=[a, b])``; ``root_scalar(F, x0=x0, fprime=J)``
#       - ``fp.bracketed_root(F, a, b)``; ``fp.root(F, x0, jacobian=J)``
#     * - ``bracket_root``, then ``find_root``, of :mod:`!scipy.optimize.elementwise`
#       - ``fp.bracketed_root(F, a, b, expand=True)``
#
# The methods are related, not the same: ``hybr`` is a trust-region method,
# :class:`~fixedpoint.Newton` has a line search.
#
# The solution says how good it is
# --------------------------------

print(ours.message)
print("estimated error", ours.error, "true", abs(ours.x - np.sqrt(2.0)).max())

# %%
# A failure raises an exception, which is harder to overlook than a flag. It carries the
# solution:

try:
    fp.root(lambda x: x**2 + 1.0, np.array([1.0]))
except fp.ConvergenceError as error:
    print(error)

# %%
# Many at once
# ------------
#
# With ``batch_ndim=1`` the first axis indexes independent systems. ``F`` sees all of
# them; each has its own status and number of steps. Here we look for the temperature of
# a wire that is heated by a current and loses heat by radiation and convection, for
# many currents:


def balance(T, current):
    air = 293.0
    return 5e-9 * (T**4 - air**4) + 0.4 * (T - air) - 12.0 * current**2


current = np.linspace(0.5, 5.0, 40)[:, None]
sol = fp.root(balance, np.full((40, 1), 300.0), (current,), batch_ndim=1)
print(sol.converged.all(), "after", sol.steps.min(), "to", sol.steps.max(), "steps")

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
axes.plot(current, sol.value)
axes.set(xlabel="current in A", ylabel="temperature in K")

# %%
# In brackets
# -----------
#
# ``brentq`` solves one equation, :func:`~fixedpoint.bracketed_root` one per entry:

sol = fp.bracketed_root(balance, 293.0, 3000.0, (current,))
print(
    abs(
        sol.value
        - fp.root(
            balance, np.full((40, 1), 300.0), (current,), batch_ndim=1, rtol=1e-10
        ).value
    ).max()
)

# %%
# Derivatives of the solution
# ---------------------------
#
# SciPy has none. Here you get them by using PyTorch or JAX arrays instead of NumPy
# arrays. How much hotter does the wire get if the current increases a little?

import torch

amperes = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
start = torch.full((1, 1), 300.0, dtype=torch.float64)
T = fp.root(balance, start, (amperes,), batch_ndim=1).value
print(torch.autograd.grad(T, amperes)[0])
T = T.detach()
print(24.0 * amperes.detach() / (2e-8 * T**3 + 0.4))  # by hand

# %%
# For NumPy arrays :func:`~fixedpoint.implicit_vjp` forms them from products that you
# write; that it is a root they know by ``is_root=True`` alone. :doc:`/jacobians` has
# sparse matrices and preconditioners, :doc:`/finding_roots` the rest.
