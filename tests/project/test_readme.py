"""The first page: each of its programs runs alone and prints what it says, its links
lead somewhere, and what it says of other libraries is so.
"""

import contextlib
import io
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINKS = re.findall(r"\]\(([^)]+)\)", README)


@pytest.mark.parametrize("program", PROGRAMS, ids=["numpy", "torch", "jax"])
def test_a_program_runs_alone_and_prints_what_it_says(program):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    promised = re.findall(r"^# (.*)$", program, re.MULTILINE)
    assert promised
    assert printed.getvalue().splitlines() == promised


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_a_link_leads_to_a_file(link):
    assert (ROOT / link).is_file()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("README.md", r"^Version ([^ ,]+)"),
        ("CHANGELOG.md", r"^## \[([^]]+)\]"),
        ("CITATION.cff", r"^version: (.+)$"),
        ("docs/faq.rst", r"^      version = \{([^}]+)\}"),
    ],
)
def test_a_file_names_the_version_that_this_is(file, pattern):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.findall(pattern, text, re.MULTILINE) == [fp.__version__]


def test_the_commands_are_those_of_the_makefile():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


# What the table says of the derivatives of others.


def damped_cosine(z, a):
    return a * jnp.cos(z)


def quietly(library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecated calls
        return pytest.importorskip(library)


def of_jaxopt(a):
    solver = quietly("jaxopt").FixedPointIteration(damped_cosine, tol=1e-8)
    return solver.run(jnp.ones(2), a).params.sum()


def of_optimistix(a):
    optimistix = quietly("optimistix")
    solver = optimistix.FixedPointIteration(1e-8, 1e-8)
    return optimistix.fixed_point(damped_cosine, solver, jnp.ones(2), a).value.sum()


def slope(a):
    """That of the sum of both entries, written out."""
    z = fp.fixed_point(lambda z: a * np.cos(z), 1.0, rtol=1e-13).value
    return 2.0 * np.cos(z) / (1.0 + a * np.sin(z))


def test_both_on_jax_have_second_derivatives():
    expected = (slope(0.5 + 1e-5) - slope(0.5 - 1e-5)) / 2e-5
    for solution in (of_jaxopt, of_optimistix):
        assert abs(jax.grad(jax.grad(solution))(0.5) - expected) < 1e-5


def test_optimistix_has_forward_mode_and_jaxopt_has_not():
    assert abs(jax.jvp(of_optimistix, (0.5,), (1.0,))[1] - slope(0.5)) < 1e-6
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(of_jaxopt, (0.5,), (1.0,))


def test_torchdeq_has_first_derivatives():
    deq = quietly("torchdeq").get_deq(ift=True, f_solver="anderson", f_tol=1e-6)
    a = torch.tensor(0.5, requires_grad=True)
    (state, *_), _ = deq(lambda z: a * torch.cos(z), torch.ones(1, 2))
    (slope,) = torch.autograd.grad(state.sum(), a, create_graph=True)
    assert not slope.requires_grad


# An equilibrium that is exact, and a linear solve that does not get to the gradient.
SLOPES = np.linspace(-0.5, 1.0 - 1e-6, 50)
START = 1.0 / (1.0 - SLOPES)
EXACT = START**2


def test_jaxopt_is_silent_about_a_linear_solve_that_failed():
    FixedPointIteration = quietly("jaxopt").FixedPointIteration

    def theirs(a):
        solver = FixedPointIteration(lambda z, a: a * z + 1.0, tol=1e-3)
        return solver.run(START, a).params.sum()

    assert np.abs(jax.grad(theirs)(jnp.asarray(SLOPES)) / EXACT - 1.0).max() > 0.99


def test_torchdeq_is_silent_about_a_linear_solve_that_failed():
    deq = quietly("torchdeq").get_deq(ift=True, f_max_iter=3, b_max_iter=20)
    a = torch.tensor(SLOPES, requires_grad=True)
    (state, *_), _ = deq(lambda z: a * z + 1.0, torch.tensor(START)[None])
    (gradient,) = torch.autograd.grad(state.sum(), a)
    assert np.abs(gradient.numpy() / EXACT - 1.0).max() > 0.99


def test_optimistix_tells_of_a_linear_solve_that_failed():
    optimistix, lineax = quietly("optimistix"), quietly("lineax")
    adjoint = optimistix.ImplicitAdjoint(lineax.GMRES(1e-8, 1e-8, max_steps=2))
    solver = optimistix.FixedPointIteration(1e-3, 1e-3)

    def theirs(a):
        f = lambda z, a: a * z + 1.0
        found = optimistix.fixed_point(
            f, solver, jnp.asarray(START), a, adjoint=adjoint
        )
        return found.value.sum()

    with pytest.raises(Exception, match="maximum number of solver steps"):
        jax.grad(theirs)(jnp.asarray(SLOPES))


def test_this_library_tells_of_a_linear_solve_that_failed():
    adjoint = fp.ImplicitAdjoint(solver=fp.Picard(), max_steps=2)
    settings = {"rtol": 1e-3, "adjoint": adjoint, "solver": fp.Picard()}

    def ours(a):
        f, start = lambda z, a: a * z + 1.0, jnp.asarray(START)
        return fp.fixed_point(f, start, (a,), **settings).value.sum()

    assert jnp.isnan(jax.grad(ours)(jnp.asarray(SLOPES))).all()
    a = torch.tensor(SLOPES, requires_grad=True)
    f, start = lambda z, a: a * z + 1.0, torch.tensor(START)
    value = fp.fixed_point(f, start, (a,), **settings).value
    with pytest.raises(fp.ConvergenceError, match="adjoint solve failed"):
        value.sum().backward()
