"""Convex games between the patches of an image: priors trained through their
equilibrium.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import torch

import fixedpoint as fp
from fixedpoint.checks import check_positive
from fixedpoint.solvers import Solver
from fixedpoint_models.contrasts import Contrasts
from fixedpoint_models.denoiser_training import train_denoiser
from fixedpoint_models.patch_grid import PatchGrid
from fixedpoint_models.patch_prior import PatchPrior
from fixedpoint_models.proximal_steps import proximal_step, pull

__all__ = ["PatchGame", "proximal_step", "train_denoiser"]

Tensor = torch.Tensor
Params = dict[str, Any]


class PatchGame(PatchPrior):
    """A denoiser whose agents, the overlapping patches of an image, play a convex game.

    Agent i describes its patch Pᵢy of the noisy image y, less its mean mᵢ, by a code
    zᵢ, and has the cost

        ½‖Pᵢy − mᵢ − Dzᵢ‖² + Σₖ φₖ(zᵢₖ) + ½κ‖mᵢ + Dzᵢ − Pᵢx̄‖² ,

    with x̄ the image in which each pixel is the mean of its values in all pieces mⱼ +
    Dzⱼ, those of agent i included: it wants to agree with its neighbors on the pixels
    they share. The penalty, with weights w > 0 and curvatures c > 0,

        φₖ(t) = ½ρt² + wₖ‖t‖ up to ‖t‖ = wₖ/cₖ ,   ½ρt² + ½cₖt² + ½wₖ²/cₖ beyond,

    has a continuous slope but at 0. It sets small codes to zero, and scales large ones,
    from which the ℓ₁ norm would subtract: but for ρ it is the reversed Huber function,
    the sum of the minimax concave penalty and the ridge ½ct² that makes it convex.

    With `filters`, the weights are each patch's own: of the noisy image, softplus(rₖ +
    Mₖsᵢ), where sᵢ tells what is seen in the patch and around it, by
    :class:`~fixedpoint_models.contrasts.Contrasts`. They are data of the game, as y is,
    and no agent's choice.

    The answer is the image in which each pixel is the mean of its values in all mᵢ +
    Wzᵢ, with `filters` a weighted one, at the Nash equilibrium, where no agent gains by
    changing its own code alone. The synthesis dictionary W has no part in the game: it
    makes up for what the penalty takes away. D, W, and the weights and curvatures, one
    of each for each atom, are learned by differentiating the equilibrium implicitly.

    *Existence and uniqueness.* Let z be all codes, 𝒟 the block diagonal matrix of the
    D, B the diagonal matrix with 1/n for a pixel that is in n patches, and Π what
    replaces each pixel of a piece by its mean. Π is an orthogonal projection and
    commutes with B. The own part of mᵢ + Dzᵢ − Pᵢx̄ is (I − Bᵢ)Dzᵢ, so that the costs
    are convex in own codes, and but for the penalty have the own gradients

        𝒟ᵀ(m + 𝒟z − Py) + κ𝒟ᵀ(I − B)(I − Π)(m + 𝒟z) .

    As (I − B)(I − Π) is symmetric and positive semidefinite, with norm at most 1, these
    are the gradients of a convex function of z. The slope of φₖ grows at the rate of ρ
    at least, and jumps up at 0: with the penalties that function is strongly convex for
    ρ > 0. Its one minimizer is the one equilibrium, whatever D, W, w and c are, and a
    continuous function of them and of y; nor need w be the same for all patches, and
    what surroundings make of it is smooth in y. A ridge is needed: where D has more
    columns than rows, Dzᵢ alone does not determine Wzᵢ.

    *Convergence.* With ‖D‖ = 1, to which D is scaled, the Hessian of all but the
    penalties lies between 0 and L = 1 + κ, and a gradient step with α < 2/L expands no
    distance. The proximal map of αφₖ, whose slopes are 0, 1/(1 + αρ) and 1/(1 + αρ +
    αcₖ), shrinks distances: z ↦ prox(z − α·gradient) is a contraction with the factor
    1/(1 + αρ) at most, and Picard iteration finds the equilibrium from any start. So
    does the adjoint's: the equation for it has a matrix whose inverse has the norm 1 +
    1/(αρ) at most.

    Parameters
    ----------
    size : int, optional
        The side of a patch, in pixels: 2 or more, as nothing is left of one pixel less
        its mean.
    atoms : int, optional
        Columns of D, which is an overcomplete cosine basis without the constant at
        first, lowest frequencies first; so is W, up to a factor.
    stride : int, optional
        Pixels from one patch to the next.
    weight : float, optional
        The weights at first.
    curvature : float, optional
        The curvatures at first.
    coupling : float, optional
        κ ≥ 0. With 0 each patch is coded alone.
    ridge : float, optional
        ρ > 0. The smaller, the slower solvers are.
    step : float, optional
        The step α, below 2/L; by default 1.9/L. The equilibrium does not depend on it.
    filters : int, optional
        Filters that look at each patch's surroundings. With 0 weights are the same for
        all patches.
    reaches : tuple of int, optional
        How far around, in pixels; the mean is taken within each.
    solver : Solver, optional
        By default ``fixedpoint.Anderson()``, and ``fixedpoint.SQUAREM()`` where that
        stalls.
    adjoint : Adjoint, optional
        By default ``fixedpoint.ImplicitAdjoint()``.
    rtol, atol : float, optional
        As in :func:`fixedpoint.fixed_point`; the adjoint solve takes `rtol` too.
    max_steps : int, optional
        Of the solve.

    References
    ----------
    Lecouat, Ponce and Mairal, "A flexible framework for designing trainable priors with
    adaptive smoothing and game encoding", NeurIPS 2020, arXiv:2006.14859. Its layers
    are unrolled, and its costs more varied. The synthesis dictionary is that of their
    "Fully trainable and interpretable non-local sparse models for image restoration",
    ECCV 2020; the penalty that of Owen, "A robust hybrid of lasso and ridge
    regression", 2007.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.games import PatchGame
    >>> game = PatchGame(size=4, atoms=25)
    >>> clean = torch.linspace(0.0, 1.0, 12).expand(1, 1, 12, 12)
    >>> noisy = clean + 0.1 * torch.randn(clean.shape,
    ...                                   generator=torch.Generator().manual_seed(0))
    >>> denoised = game.denoise(noisy)
    >>> bool((denoised - clean).square().mean() < 0.3 * (noisy - clean).square().mean())
    True
    """

    def __init__(
        self,
        size: int = 8,
        atoms: int = 100,
        *,
        stride: int = 1,
        weight: float = 0.1,
        curvature: float = 0.5,
        coupling: float = 0.5,
        ridge: float = 0.2,
        step: float | None = None,
        filters: int = 0,
        reaches: tuple[int, ...] = (4, 12),
        solver: Solver | None = None,
        adjoint: fp.Adjoint | None = None,
        rtol: float = 1e-4,
        atol: float = 1e-9,
        max_steps: int = 1000,
    ) -> None:
        super().__init__(size, atoms, weight, curvature, ridge)
        self.grid = PatchGrid(size, stride)
        if not 0.0 <= coupling < math.inf:
            raise ValueError(
                f"coupling must be finite and not negative, got {coupling!r}"
            )
        self.coupling = coupling
        self.step = self._checked(step)
        self.solver = solver or fp.Fallback([fp.Anderson(), fp.SQUAREM()])
        self.adjoint = adjoint or fp.ImplicitAdjoint()
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps
        if filters:
            self.seen = Contrasts(size, atoms, filters, tuple(reaches), weight)

    def _checked(self, step: float | None) -> float:
        """The step, by default one that is safe."""
        lipschitz = 1.0 + self.coupling
        if step is None:
            return 1.9 / lipschitz
        check_positive("step", step)
        if not step < 2.0 / lipschitz:
            raise ValueError(f"step must be below {2.0 / lipschitz:.4g}, got {step!r}")
        return step

    def params(self, image: Tensor) -> Params:
        """What :func:`proximal_step` takes: the dictionary and penalties as they are
        now, and what depends on the size of the images alone.

        Parameters
        ----------
        image : tensor of shape (batch, 1, H, W)
            The images.
        """
        count = self.grid.count(image, image.shape)
        share = self.coupling * (1.0 - 1.0 / count)
        near = 1.0 + self.step * self.ridge
        far = near + self.step * self.curvatures()[:, None]
        return {
            "dictionary": self.dictionary(),
            "slopes": (1.0 / near, 1.0 / far),
            "grid": self.grid,
            "shape": image.shape,
            "count": count,
            "share": share,
            "own": 1.0 + self.grid.cut(share),
            "step": self.step,
        }

    def own(self, image: Tensor, params: Params, seen: Tensor | None = None) -> Params:
        """What is of each image's own: of the gradients, the part that codes have no
        part in, Py − m − κ(I − B)(I − Π)m, not multiplied by 𝒟ᵀ yet; and where the
        proximal map bends.

        Parameters
        ----------
        image : tensor of shape (batch, 1, H, W)
            The noisy images.
        params : dict
            See :meth:`params`.
        seen : tensor, optional
            Their surroundings, where they are known already.

        Returns
        -------
        dict
            The "target", of shape (batch, pixels, patches), and below and above what
            the first slope begins, "zero", and how far from there the second does,
            "knee".
        """
        patches = self.grid.cut(image)
        means = patches.mean(1, keepdim=True).expand_as(patches)
        weights = self.weights(self.look(image) if seen is None else seen)
        zero = self.step * weights.expand(len(image), -1, -1)
        knee = zero * ((1.0 / self.step + self.ridge) / self.curvatures()[:, None])
        return {
            "target": patches - pull(means, params),
            "zero": (-zero, zero),
            "knee": (-knee, knee),
        }

    def look(self, image: Tensor) -> Tensor | None:
        """The surroundings of all patches, if weights depend on them."""
        return None if self.seen is None else self.seen(image, self.grid)

    def forward(self, image: Tensor) -> Tensor:
        """The denoised images, of shape (batch, 1, H, W) as the noisy ones."""
        return self.answer(image)[0]

    def answer(self, image: Tensor, **settings: Any) -> tuple[Tensor, fp.Solution[Any]]:
        """The denoised images and the equilibrium that they stand for, for which
        surroundings are looked at once.

        Parameters
        ----------
        image : tensor of shape (batch, 1, H, W)
            The noisy images.
        **settings : object
            For :func:`fixedpoint.fixed_point`.
        """
        self.check(image)
        seen = self.look(image)
        found = self.solve(image, seen=seen, **settings)
        return self.reconstruct(found.value, image, seen), found

    def denoise(self, image: Tensor) -> Tensor:
        """As :meth:`forward`, without derivatives."""
        with torch.no_grad():
            denoised: Tensor = self(image)
        return denoised

    def denoise_in_tiles(
        self, image: Tensor, tile: int = 96, margin: int = 16, **settings: Any
    ) -> Tensor:
        """As :meth:`denoise`, for images of any size, a square of them at a time: the
        memory is that of a square.

        Parameters
        ----------
        image : tensor of shape (batch, 1, H, W)
            The noisy images.
        tile : int, optional
            The side of a square, a multiple of the stride.
        margin : int, optional
            Pixels on each side of a square that are solved for along with it and not
            used; a multiple of the stride, and not less than the side of a patch. What
            is farther away has next to no influence.
        **settings : object
            For :func:`fixedpoint.fixed_point`.

        Examples
        --------
        >>> import torch
        >>> from fixedpoint_models.games import PatchGame
        >>> game = PatchGame(size=4, atoms=25)
        >>> noisy = torch.rand(1, 1, 50, 61, generator=torch.Generator().manual_seed(0))
        >>> parts, whole = game.denoise_in_tiles(noisy, 32, 8), game.denoise(noisy)
        >>> bool((parts - whole).abs().max() < 1e-2)
        True
        """
        self.grid.check_tiles(tile, margin)
        self._check_dtype(image)
        padded = self.grid.padded(image)
        whole = torch.empty_like(padded)
        rows, columns = (
            self.grid.spans(side, tile, margin) for side in padded.shape[-2:]
        )
        with torch.no_grad():
            for (solved, kept, part), (solved2, kept2, part2) in product(rows, columns):
                square = padded[..., solved, solved2]
                denoised = self.answer(square, **settings)[0]
                whole[..., kept, kept2] = denoised[..., part, part2]
        return whole[..., : image.shape[-2], : image.shape[-1]]

    def solve(
        self,
        image: Tensor,
        z0: Tensor | None = None,
        *,
        seen: Tensor | None = None,
        **settings: Any,
    ) -> fp.Solution[Any]:
        """The codes of the equilibrium, of shape (batch, atoms, patches), with their
        status.

        Parameters
        ----------
        image : tensor of shape (batch, 1, H, W)
            The noisy images, of the dtype of the parameters.
        z0 : tensor, optional
            Where to start, by default at zero.
        seen : tensor, optional
            The surroundings, where they are known already.
        **settings : object
            For :func:`fixedpoint.fixed_point`.
        """
        self.check(image)
        params = self.params(image)
        if z0 is None:
            patches = params["own"].shape[-1]
            z0 = image.new_zeros(len(image), self.atoms.shape[1], patches)
        usual: dict[str, Any] = {
            "solver": self.solver,
            "adjoint": self.adjoint,
            "rtol": self.rtol,
            "atol": self.atol,
            "test": "residual",
            "max_steps": self.max_steps,
            "batch_ndim": 1,
            "batched_args": (True, False),
        }
        own = self.own(image, params, seen)
        return fp.fixed_point(proximal_step, z0, (own, params), **(usual | settings))

    def check(self, image: Tensor) -> None:
        """Raise TypeError unless `image` has the dtype of the parameters, and
        ValueError unless patches cover it.
        """
        self._check_dtype(image)
        self.grid.check(image)

    def _check_dtype(self, image: Any) -> None:
        """Raise TypeError unless `image` has the dtype of the parameters; autocast
        casts other floats.
        """
        expected = self.atoms.dtype
        given = getattr(image, "dtype", type(image).__name__)
        is_cast = (
            torch.is_tensor(image)
            and image.is_floating_point()
            and torch.is_autocast_enabled(image.device.type)
        )
        if given != expected and not is_cast:
            raise TypeError(
                f"image must be a tensor of {expected}, the dtype of the parameters, "
                f"got {given}"
            )

    def reconstruct(
        self, codes: Tensor, image: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """The denoised images, of shape (batch, 1, H, W), that codes of the noisy ones
        stand for.
        """
        means = self.grid.cut(image).mean(1, keepdim=True)
        pieces = self.synthesis @ codes + means
        if self.seen is None:
            return self.grid.average(pieces, image.shape)
        shares = self.seen.shares(self.seen(image, self.grid) if seen is None else seen)
        total = self.grid.sum(shares, image.shape)
        return self.grid.sum(shares * pieces, image.shape) / total

    def with_stride(self, stride: int) -> PatchGame:
        """The game of patches `stride` pixels apart that shares all parameters with
        this one.
        """
        game = copy.copy(self)
        game.grid = PatchGrid(self.grid.size, stride)
        return game
