"""The pages that show other libraries: their code runs, and agrees with ours beside
it.
"""

import doctest
import importlib.util
import re
import textwrap
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
HEADING = re.compile(r"^(.+)\n-+\n", re.MULTILINE)
BLOCK = re.compile(
    r"\.\. code-block:: python\n    :caption: (\w+)\n\n((?:    .*\n|\n)+)"
)


def sections(page):
    """The texts of the sections of a page, by their titles."""
    parts = HEADING.split((DOCS / page).read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def theirs(text, library):
    """What is defined by the code under the caption `library`."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    (code,) = [code for caption, code in BLOCK.findall(text) if caption == library]
    namespace = {"__name__": "theirs"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own, such as of deprecated functions
        exec(compile(textwrap.dedent(code), library, "exec"), namespace)
    return namespace


def ours(text):
    """What is defined by the examples, their output aside: that the documentation
    compares.
    """
    namespace = {"__name__": "ours"}
    examples = doctest.DocTestParser().get_examples(text)
    for example in examples:
        exec(compile(example.source, "example", "single"), namespace)
    return namespace


def numbers(array):
    return (
        array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    )


@pytest.mark.parametrize("title", ["SciPy", "torchdeq", "jaxopt", "Optimistix"])
def test_both_sides_agree(title):
    text = sections("migrating.rst")[title]
    there, here = theirs(text, title.lower()), ours(text)
    for name in ("value", "gradient"):
        got, expected = numbers(here[name]), numbers(there[name])
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_every_section_is_compared():
    compared = test_both_sides_agree.pytestmark[0].args[1]
    assert list(sections("migrating.rst")) == compared


@pytest.mark.parametrize("library", ["equinox", "flax"])
def test_layers_inside_modules_of_others_are_trained(library):
    if library == "flax" and importlib.util.find_spec("optax") is None:
        pytest.skip("optax is not installed")
    found = theirs(sections("layers_in_jax_modules.rst")[library.title()], library)
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    layer = found["model"].layer
    solution = (
        layer.solve(found["x"])
        if library == "flax"
        else jax.vmap(layer.solve)(found["x"])
    )
    assert solution.converged.all()


@pytest.mark.slow
def test_a_module_of_linen_is_differentiated_where_it_is_solved_for():
    found = theirs(sections("layers_in_jax_modules.rst")["Flax Linen"], "flax")
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    params, model, x = found["params"], found["model"], found["x"]
    loss = jax.jit(lambda params: model.apply(params, x).sum())
    kernel = params["params"]["Cell_0"]["Dense_0"]["kernel"]
    slope = jax.jit(jax.grad(loss))(params)["params"]["Cell_0"]["Dense_0"]["kernel"]

    def moved(by):
        return loss(jax.tree.map(lambda a: a + by if a is kernel else a, params))

    quotient = (moved(0.01) - moved(-0.01)) / 0.02
    np.testing.assert_allclose(slope.sum(), quotient, rtol=1e-2)
