"""The pictures of the guides: one function draws one, and solves what it shows."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from measured_tables import OVERHEAD, TOLERANCE, content

import fixedpoint as fp
import fixedpoint_torch
from fixedpoint.testing import problems

INK = "#123456"  # stands for the color of text, which is the theme's
# Of Okabe and Ito's colors, those that are readable on white and on black.
BLUE, ORANGE, GREEN, RED, PINK = "#2a85c8", "#d98b00", "#009e73", "#d55e00", "#cc79a7"
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, RED, PINK]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.5,
    "savefig.transparent": True,
    "svg.hashsalt": "fixedpoint",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDE = (7.2, 2.9)
FIGURES = {}


def figure(function):
    """Enter a function among the figures."""
    FIGURES[function.__name__] = function
    return function


# What several of them use.


def course(axes, f, start, solver, label=None, **settings):
    """A line of the residual over the evaluations spent."""
    settings = {"rtol": 1e-10, "max_steps": 400} | settings
    sol = fp.fixed_point(
        f, start, solver=solver, record=True, on_failure="return", **settings
    )
    cost = np.asarray(sol.trace.evaluations)
    axes.semilogy(cost, sol.trace.residual_norm, label=label or solver.name)
    return sol


def residuals(axes, title=""):
    """Say what the lines of `course` are."""
    axes.set(xlabel="evaluations of $f$", ylabel="residual norm", title=title)
    axes.legend()


def slow(rate, n=20):
    """A linear map of eigenvalues between 0 and this one, but for a small term."""
    rates = np.linspace(0.0, rate, n)
    return lambda z: rates * z + 0.1 * np.cos(z) + 1.0, np.zeros(n)


def rotation(radius, n=20):
    """A map whose Jacobian at zero has this spectral radius, on the imaginary axis."""
    shift = torch.eye(n, dtype=torch.float64).roll(1, 0)
    W = radius * (shift - shift.T) / 2
    x = 0.1 * torch.sin(torch.arange(float(n), dtype=torch.float64))
    return lambda z: torch.tanh(W @ z + x), torch.zeros(n, dtype=torch.float64)


# Start.


@figure
def orbit():
    """Where a planet is at equal times."""
    e, M = 0.6, np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)[:, None]
    E = fp.fixed_point(lambda E, M, e: M + e * np.sin(E), M, (M, e), batch_ndim=1).value
    drawing, axes = plt.subplots(figsize=(4.4, 3.0))
    around = np.linspace(0.0, 2.0 * np.pi, 200)
    axes.plot(np.cos(around) - e, np.sqrt(1 - e**2) * np.sin(around), color=INK, lw=0.7)
    axes.plot(np.cos(E) - e, np.sqrt(1 - e**2) * np.sin(E), "o", ms=5, color=BLUE)
    axes.plot(0.0, 0.0, "o", ms=12, color=ORANGE)
    axes.set_aspect("equal")
    axes.axis("off")
    return drawing


@figure
def iterations():
    """Plain iteration as a path, and methods on one problem."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    z, path = 0.15, [(0.15, 0.0)]
    for _ in range(12):
        path += [(z, np.cos(z)), (np.cos(z), np.cos(z))]
        z = np.cos(z)
    line = np.linspace(0.0, 1.05, 100)
    left.plot(line, np.cos(line), label=r"$\cos z$")
    left.plot(line, line, color=INK, lw=0.8)
    left.plot(*np.transpose(path), lw=0.9, label="plain iteration")
    left.set(xlabel="$z$", xlim=(0.0, 1.05), ylim=(0.0, 1.05))
    left.legend(loc="lower right")
    for solver in (fp.Picard(), fp.Anderson(), fp.Broyden(), fp.NewtonKrylov()):
        course(right, *slow(0.9), solver)
    residuals(right)
    return drawing


@figure
def joint_path():
    """A joint iteration on the loss over state and input, beside nested descent."""
    f = lambda z, x: 0.5 * np.sin(z) + x
    y, alpha = 2.0, 0.08
    drawing, axes = plt.subplots(figsize=(4.8, 3.2))
    z, x = np.meshgrid(np.linspace(-0.1, 2.3, 80), np.linspace(-0.1, 1.4, 80))
    axes.contour(x, z, (z - y) ** 2 + x**2, 14, colors=INK, linewidths=0.4, alpha=0.5)
    inputs = np.linspace(0.0, 1.4, 60)[:, None]
    axes.plot(inputs, equilibrium(f, inputs), color=INK, lw=1.6, label="$z = f(z, x)$")
    nested = [(0.0, 0.0)]
    z = mu = x = 0.0
    joint = [(x, z)]
    for _ in range(80):
        slope = 0.5 * np.cos(z)
        z, mu, x = (
            f(z, x),
            slope * mu + 2.0 * (z - y),
            x - alpha * (mu + 2.0 * x),
        )
        joint.append((x, z))
    for _ in range(12):
        u = nested[-1][0]
        state = float(equilibrium(f, np.array([[u]]))[0, 0])
        gradient = 2.0 * (state - y) / (1.0 - 0.5 * np.cos(state)) + 2.0 * u
        nested += [(u, state), (u - alpha * gradient, state)]
    axes.plot(*np.transpose(nested), lw=1.0, color=ORANGE, label="nested")
    axes.plot(*np.transpose(joint), ".-", ms=4, lw=1.0, color=BLUE, label="joint")
    axes.set(xlabel="input $x$", ylabel="state $z$", xlim=(-0.1, 1.4), ylim=(-0.1, 2.3))
    axes.legend(loc="upper left")
    return drawing


def equilibrium(f, x):
    """The states of inputs, one problem a row."""
    return fp.fixed_point(f, np.zeros_like(x), (x,), batch_ndim=1).value


# Guides.


@figure
def batch():
    """Each sample of a batch stops by itself."""
    scale = np.array([[0.3], [0.6], [1.0], [1.3]])
    sol = fp.fixed_point(
        lambda z, c: c * np.cos(z),
        np.ones((4, 1)),
        (scale,),
        batch_ndim=1,
        solver=fp.Picard(damping=0.8),
        record=True,
    )
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    for c, line in zip(scale[:, 0], sol.trace.residual_norm, strict=True):
        axes.semilogy(line, ".-", ms=4, label=f"c = {c:g}")
    axes.set(xlabel="step", ylabel="residual norm")
    axes.legend()
    return drawing


@figure
def roots():
    """Newton's way to a root of two equations, and brackets that shrink."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    F = lambda x: np.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[0] - x[1]])
    path = [sol.value for sol in fp.steps(F, np.array([0.4, 2.2]), is_root=True)]
    grid = np.stack(np.meshgrid(np.linspace(-0.2, 3.0, 90), np.linspace(-0.2, 2.6, 90)))
    for equation, color in zip(F(grid), (BLUE, GREEN), strict=True):
        left.contour(*grid, equation, [0.0], colors=color)
    left.plot(*np.transpose(path), "o-", ms=4, color=ORANGE)
    left.set(xlabel="$x_0$", ylabel="$x_1$", aspect="equal")
    a = np.array([1.0, 8.0, 500.0])
    for most in range(1, 12):
        sol = fp.bracketed_root(
            lambda x, a: x**3 - a, 0.0, 10.0, (a,), max_steps=most, on_failure="return"
        )
        for width, color in zip(sol.error, (BLUE, ORANGE, GREEN), strict=True):
            right.semilogy(most, max(width, 1e-16), "o", ms=4, color=color)
    right.set(xlabel="steps", ylabel="width of the bracket")
    return drawing


@figure
def bratu():
    """A solution of Bratu's problem, and the way there."""
    problem = problems.bratu(64)
    drawing, (left, right) = plt.subplots(
        1, 2, figsize=WIDE, gridspec_kw={"width_ratios": [1, 1.3]}
    )
    for label, linear in (
        ("conjugate gradients", fp.ConjugateGradient()),
        ("with recycle=8", fp.ConjugateGradient(recycle=8)),
    ):
        sol = fp.root(
            problem.function,
            problem.start,
            solver=fp.NewtonKrylov(linear=linear),
            record=True,
            jvp=problems.bratu_jvp,
        )
        cost = sol.trace.evaluations
        right.semilogy(cost, sol.trace.residual_norm, ".-", label=label)
    shown = left.imshow(sol.value, extent=(0, 1, 0, 1), cmap="viridis")
    drawing.colorbar(shown, ax=left, label="$u$")
    right.set(xlabel="evaluations and products", ylabel=r"$\|F(u)\|$")
    right.legend()
    return drawing


@figure
def solvers():
    """The methods on a slow contraction, and on a map that does not contract."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    tried = fp.Picard(), fp.SQUAREM(), fp.Anderson(), fp.Broyden(), fp.NewtonKrylov()
    for solver in tried:
        course(left, *slow(0.97), solver, max_steps=150)
        course(right, *rotation(1.2), solver, max_steps=150)
    residuals(left, "a slow contraction")
    right.set(xlabel="evaluations of $f$", title="not a contraction", xlim=(0, 160))
    left.set_xlim(0, 160)
    return drawing


@figure
def warm():
    """What a warm start saves, and what the memory of the solver adds."""
    A = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 30)))[0]
    b = np.linspace(-1.0, 1.0, 30)
    f = lambda shift: lambda z: np.tanh(0.95 * A @ z + shift)
    solver = fp.Broyden(memory=60)
    first = fp.fixed_point(f(b), np.zeros(30), solver=solver, rtol=1e-10)
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    new = f(b + 1e-3)
    course(axes, new, np.zeros(30), solver, "from zero")
    course(axes, new, first.value, solver, "from the last solution")
    course(axes, new, first.value, solver, "and its state", state=first.state)
    residuals(axes)
    return drawing


@figure
def errors():
    """Residual, true error and estimate of a slow contraction."""
    seen = []
    for steps in range(2, 200, 6):
        sol = fp.fixed_point(
            lambda z: np.array([0.98, 0.6]) * z + 1.0,
            np.zeros(2),
            solver=fp.Picard(),
            max_steps=steps,
            on_failure="return",
        )
        error = np.linalg.norm(sol.value - 1.0 / (1.0 - np.array([0.98, 0.6])))
        seen.append((steps, sol.residual_norm, error, sol.error))
    steps, residual, true, estimate = np.transpose(seen)
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    axes.semilogy(steps, true, color=INK, lw=4, alpha=0.35, label="error")
    axes.semilogy(steps, estimate, label="estimate, sol.error")
    axes.semilogy(steps, residual, label="residual norm")
    axes.set(xlabel="steps of plain iteration")
    axes.legend()
    return drawing


@figure
def adjoints():
    """How far each adjoint's gradient is off, by the products that it takes."""
    drawing, axes = plt.subplots(figsize=(5.2, 3.0))
    lines = {
        "ImplicitAdjoint": [
            fp.ImplicitAdjoint(max_steps=k, rtol=1e-14, on_failure="return")
            for k in range(1, 26, 3)
        ],
        "NeumannSeries": [fp.NeumannSeries(steps=k) for k in range(1, 42, 4)],
        "SharedInverse": [fp.SharedInverse(refine=k) for k in (0, *range(3, 20, 4))],
    }
    exact, _ = gradient(fp.ImplicitAdjoint(rtol=1e-13))
    for label, choices in lines.items():
        found = [gradient(adjoint) for adjoint in choices]
        off = [float((g - exact).norm() / exact.norm()) for g, _ in found]
        axes.semilogy([cost for _, cost in found], off, ".-", label=label)
    g, _ = gradient(fp.JacobianFree())
    off = float((g - exact).norm() / exact.norm())
    axes.semilogy(0, off, "s", color=RED, label="JacobianFree")
    axes.set(xlabel=r"products with $J^{\mathsf{T}}$", ylabel="error of the gradient")
    axes.legend()
    return drawing


def gradient(adjoint):
    """A gradient of an equilibrium network, and the products that it took."""
    torch.manual_seed(0)
    normal = torch.randn(30, 30, dtype=torch.float64)
    W = (0.9 * normal / torch.linalg.eigvals(normal).abs().max()).requires_grad_()
    x = 0.1 * torch.randn(4, 30, dtype=torch.float64)
    sol = fp.fixed_point(
        lambda z, W, x: torch.tanh(z @ W.T + x),
        torch.zeros_like(x),
        (W, x),
        batch_ndim=1,
        solver=fp.Broyden(memory=60),
        rtol=1e-12,
        adjoint=adjoint,
    )
    (found,) = torch.autograd.grad(sol.value.square().sum(), W)
    return found, sol.backward.products


class Cell(torch.nn.Module):
    """A small cell of tanh."""

    def __init__(self, width, inputs):
        super().__init__()
        self.inner = torch.nn.Linear(width, width)
        self.outer = torch.nn.Linear(inputs, width)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.outer(x))


@figure
def moons():
    """A trained layer: what it says of each input, and the steps that takes."""
    torch.manual_seed(0)
    angle = torch.rand(200) * torch.pi
    label = (torch.arange(200) % 2).float()
    sign = 1.0 - 2.0 * label
    points = torch.stack(
        [angle.cos() * sign + label, angle.sin() * sign + 0.4 * label - 0.2], 1
    ) + 0.12 * torch.randn(200, 2)
    cell = Cell(16, 2)
    torch.nn.utils.parametrizations.spectral_norm(cell.inner)
    layer = fixedpoint_torch.DEQ(
        cell,
        start=lambda x: x.new_zeros(len(x), 16),
        solver=fp.Anderson(),
        rtol=1e-3,
    )
    model = torch.nn.Sequential(layer, torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        out = model(points)[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(out, label).backward()
        optimizer.step()
    return field_of(model, points, label)


def field_of(model, points, label):
    """Two maps of the plane: the answer of a classifier, and the steps of its solve."""
    x, y = torch.meshgrid(
        torch.linspace(-1.6, 2.6, 45), torch.linspace(-1.2, 1.4, 45), indexing="xy"
    )
    with torch.no_grad():
        answer = torch.sigmoid(model(torch.stack([x, y], -1).reshape(-1, 2)))
    steps = model[0].statistics.steps.reshape(x.shape)
    drawing, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    shown = left.contourf(x, y, answer.reshape(x.shape), 12, cmap="RdBu")
    left.scatter(*points.T, c=label, cmap="RdBu", s=9, edgecolors="#444", lw=0.4)
    drawing.colorbar(shown, ax=left, label="probability")
    shown = right.pcolormesh(x, y, steps, cmap="viridis")
    drawing.colorbar(shown, ax=right, label="steps of the solver")
    return drawing


@figure
def penalty():
    """The spectral radius in training, with and without the penalty."""
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    for factor in (0.0, 2.0):
        label = f"penalty, times {factor:g}" if factor else "without a penalty"
        axes.plot(*radii(factor), label=label)
    axes.axhline(1.0, color=INK, lw=0.7, ls=":")
    axes.set(xlabel="training step", ylabel="spectral radius of $J$")
    axes.legend()
    return drawing


def radii(factor, steps=60):
    """Spectral radii while a layer learns to tell the signs of products."""
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    y = (x[:, 0] * x[:, 1] * x[:, 2]).sign()
    layer = fixedpoint_torch.DEQ(
        Cell(24, 4),
        start=lambda x: x.new_zeros(len(x), 24),
        solver=fp.Anderson(),
        rtol=1e-3,
        on_failure="return",
        max_steps=60,
    )
    head = torch.nn.Linear(24, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 0.02)
    found = []
    for step in range(steps):
        z = layer(x)
        loss = (head(z)[:, 0] - y).square().mean()
        if factor:
            terms = fixedpoint_torch.jacobian_penalty(layer.cell, z.detach(), (x,))
            loss = loss + factor * terms.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 0:
            found.append((step, float(layer.spectral_radius(x[:16]).mean())))
    return np.transpose(found)


@figure
def spread():
    """What is where: parts of the entries, or whole samples."""
    drawing, panels = plt.subplots(1, 2, figsize=(7.2, 2.4))
    titles = "the entries of each sample", "whole samples"
    for axes, title, entries in zip(panels, titles, (True, False), strict=True):
        for row in range(4):
            for column in range(6):
                device = column // 2 if entries else min(row, 2) if row < 2 else row - 1
                color = (BLUE, ORANGE, GREEN)[device]
                square = plt.Rectangle((column, -row), 0.9, -0.85, color=color)
                axes.add_patch(square)
        axes.set(xlim=(-0.2, 6.2), ylim=(-4.2, 0.2), title=f"spread: {title}")
        axes.set(xlabel="entries", ylabel="samples", xticks=[], yticks=[])
    return drawing


@figure
def courses():
    """How a trace looks where a solve is slow, cured, out of reach, or noisy."""
    drawing, axes = plt.subplots(figsize=(5.6, 3.1))
    settings = {"max_steps": 120, "rtol": 1e-12}
    course(axes, *rotation(0.9), fp.Picard(), "radius 0.9, Picard", **settings)
    course(axes, *rotation(0.9), fp.Anderson(), "radius 0.9, Anderson", **settings)
    course(axes, *rotation(1.3), fp.Picard(), "radius 1.3, Picard", **settings)
    f, start = rotation(0.8)
    rough = lambda z: (f(z) * 2.0**16).round() / 2.0**16
    course(axes, rough, start, fp.Anderson(), "rounded inside $f$", **settings)
    noise = torch.Generator().manual_seed(0)
    drawn = lambda z: f(z) + 1e-2 * torch.randn(20, generator=noise).double()
    course(axes, drawn, start, fp.Anderson(), "noise in $f$", **settings)
    residuals(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


@figure
def two_tolerances():
    """The error of a gradient by the tolerances of its two solves."""
    f, start = rotation(0.9)
    W = torch.eye(20, dtype=torch.float64).requires_grad_()

    def found(forward, backward):
        adjoint = fp.ImplicitAdjoint(rtol=backward)
        sol = fp.fixed_point(
            lambda z, W: f(W @ z), start, (W,), rtol=forward, adjoint=adjoint
        )
        return torch.autograd.grad(sol.value.square().sum(), W)[0]

    exact = found(1e-13, 1e-13)
    asked = 10.0 ** -np.arange(1, 11)
    drawing, axes = plt.subplots(figsize=(4.8, 2.9))
    for forward in (1e-2, 1e-4, 1e-6, 1e-8):
        off = [(found(forward, rtol) - exact).norm() / exact.norm() for rtol in asked]
        axes.loglog(asked, off, ".-", label=f"solve: rtol={forward:g}")
    axes.invert_xaxis()
    axes.set(xlabel="rtol of the adjoint", ylabel="error of the gradient")
    axes.legend()
    return drawing


@figure
def claims():
    """How far default calls are off, by what benchmarks recorded."""
    rows = [row for row in content(TOLERANCE, "defaults")["rows"] if row["claimed"]]
    rows = [row for row in rows if row["kind"] == "maps"]
    drawing, axes = plt.subplots(figsize=(6.4, 0.9 + 0.24 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        ends = [max(row[name], 1e-16) for name in ("median", "largest")]
        axes.plot(ends, [place, place], color=BLUE, lw=3, alpha=0.5)
        axes.plot(ends[0], place, "o", color=BLUE, ms=5)
        axes.plot(ends[1], place, "|", color=BLUE, ms=9, mew=2)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    axes.set(xscale="log", xlabel="relative error of answers called converged")
    axes.axvline(1.0, color=INK, lw=0.7, ls=":")
    return drawing


@figure
def apparent():
    """The loss at a joint iterate, and at its input after a fresh solve."""
    f, loss, start, args = decoder()
    joint = fp.operators.augmented(f, loss, step_size=0.1)
    seen = []
    for steps in range(1, 31):
        sol = fp.fixed_point(
            joint,
            start,
            args,
            batch_ndim=1,
            max_steps=steps,
            solver=fp.Anderson(memory=20),
            on_failure="return",
        )
        z, x = sol.value["z"], sol.value["x"]
        cold = fp.fixed_point(f, start["z"], (x, args[0]), batch_ndim=1).value
        pair = [loss(state, x, args[1], args[0])[0] for state in (z, cold)]
        seen.append((steps, *pair))
    steps, iterate, actual = np.transpose(seen)
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    axes.plot(steps, iterate, ".-", ms=4, label="at the iterate")
    axes.plot(steps, actual, ".-", ms=4, label="at its input, re-solved")
    axes.set(xlabel="joint steps", ylabel="loss")
    axes.legend()
    return drawing


@figure
def envelope():
    """The minimum of a loss over a parameter, and slopes without a backward solve."""
    f = lambda z, x, w: w * z + x
    loss = lambda z, x, y, _: ((z - y) ** 2 + x**2).sum(-1)
    w = torch.linspace(-0.6, 0.7, 40, dtype=torch.float64)[:, None].requires_grad_()
    y, zero = torch.full_like(w, 2.0).detach(), torch.zeros_like(w).detach()
    start = dict.fromkeys(("z", "mu", "x"), zero)
    joint = fp.operators.augmented(f, loss, step_size=0.1)
    found = fp.fixed_point(joint, start, (w.detach(), y), batch_ndim=1).value
    z, mu, x = (found[name] for name in ("z", "mu", "x"))
    least = loss(z, x, y, w)
    (slope,) = torch.autograd.grad((mu * f(z, x, w)).sum(), w)
    drawing, axes = plt.subplots(figsize=(4.8, 2.8))
    w = w.detach()[:, 0]
    axes.plot(w, least, color=INK, lw=3, alpha=0.35)
    for k in range(6, 40, 13):
        near = torch.tensor([-0.25, 0.25])
        axes.plot(w[k] + near, least[k] + slope[k] * near, color=BLUE)
    axes.set(xlabel="$w$", ylabel="minimum of the loss")
    return drawing


def decoder(n=20, m=4):
    """The map, loss, start and arguments of the example on the augmented system."""
    grid = torch.arange(1, n + 1, dtype=torch.float64)
    params = {
        "W": 0.8 * torch.eye(n, dtype=torch.float64).roll(1, 0),
        "U": torch.cos(torch.outer(grid, grid[:m])) / 2,
    }
    y = torch.sin(torch.outer(grid[:3], grid)) / 2
    sizes = {"z": n, "mu": n, "x": m}
    start = {name: y.new_zeros(3, size) for name, size in sizes.items()}
    f = lambda z, x, params: torch.tanh(z @ params["W"].T + x @ params["U"].T)
    loss = lambda z, x, y, _: ((z - y) ** 2).sum(-1) + 0.01 * (x**2).sum(-1)
    return f, loss, start, (params, y)


# Benchmarks.


def fastest(rows):
    """Of the rows of a case: ours, ours where nothing is compiled, and a peer's."""
    ours = [row for row in rows if row["method"].startswith("fixedpoint")]
    plain = [row for row in ours if row["method"].endswith("none compiled")]
    peers = [row for row in rows if row not in ours]
    groups = [row for row in ours if row not in plain], plain, peers
    best = [
        min(group, key=lambda row: row["microseconds"], default=None)
        for group in groups
    ]
    return [
        (row, color)
        for row, color in zip(best, (BLUE, GREEN, ORANGE), strict=True)
        if row is not None
    ]


def short(method):
    """A method's name, for a narrow picture."""
    own = method.removeprefix("fixedpoint").lstrip(", ")
    return own.removesuffix(", whole batch")


@figure
def fastest_solves():
    rows = content(OVERHEAD)["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    drawing, axes = plt.subplots(len(cases), figsize=(5.2, 1.05 * len(cases)))
    for case, ax in zip(cases, axes, strict=True):
        bars = fastest([row for row in rows if row["case"] == case])[::-1]
        names = [short(row["method"]) for row, _ in bars]
        times = [row["microseconds"] / 1000 for row, _ in bars]
        shown = ax.barh(names, times, color=[color for _, color in bars])
        ax.bar_label(shown, fmt="%.3g", padding=3)
        ax.set_xscale("log")
        ax.set_xlim(max(times) / 30, max(times) * 3)  # as long a scale in all
        ax.set_title(case.removesuffix(", no derivative"), loc="left")
        ax.tick_params(axis="x", which="both", labelbottom=False, length=0)
    return drawing
