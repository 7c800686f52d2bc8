"""The settings of generative modeling: images, decoders, solves and penalties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fixedpoint_models.config import setting


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images.

    Parameters
    ----------
    name : {"digits", "photographs", "mnist", "cifar10", "celeba"}
        The set.
    folder : str, optional
        Where the files of the last three are; or photographs of any size, in place of
        those that come along.
    test_folder : str, optional
        Photographs to test with; without it a tenth of those in `folder`.
    train, test : str
        Of MNIST and CIFAR-10, what to read: as "train" and "test[:2000]".
    size : int
        The side of the patches of photographs, or of faces.
    stride : int, optional
        From one patch of photographs to the next.
    limit, held_out : int, optional
        How many to train on, and to test with; all by default. Digits and faces, which
        come in one piece, are divided: a quarter of the digits and a tenth of the faces
        are for testing.
    """

    name: Literal["digits", "photographs", "mnist", "cifar10", "celeba"]
    folder: str | None = None
    test_folder: str | None = None
    train: str = "train"
    test: str = "test"
    size: int = setting(64, least=8)
    stride: int | None = setting(None, least=1)
    limit: int | None = setting(None, least=1)
    held_out: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.folder is None and self.name in ("mnist", "cifar10", "celeba"):
            raise ValueError(f"folder: missing, {self.name} is read from files")
        if self.test_folder and not (self.folder and self.name == "photographs"):
            raise ValueError("test_folder: expected with a folder of photographs")


@dataclass(frozen=True, kw_only=True)
class Network:
    """The decoder.

    Parameters
    ----------
    kind : {"dense", "principal", "mdeq"}
        :class:`DenseDecoder`, :class:`PrincipalImages` or :class:`MDEQDecoder`.
    latent : int
        Entries of a code.
    width, bound
        Of the dense decoders: entries of their state, and the bound of ‖W‖₂.
    basis : int
        Of the second: the principal axes that its images are made of.
    head_gain : float
        Of the third: what the weights of its last convolution are multiplied by at
        first. Where images move little with the state, codes are driven far out to
        explain anything, to where the state no longer follows them, as its norms allow
        it a certain size only.
    channels, side, groups, activation, gain, weight_norm, sigmoid
        Of the third. The activation is "softplus" where Newton's method solves: with
        "relu" the derivative jumps from step to step, and solves have been seen to
        fail, or to succeed at the code zero because no unit of the head was active.
    """

    kind: Literal["dense", "principal", "mdeq"]
    latent: int = setting(16, least=1)
    width: int = setting(128, least=1)
    bound: float = setting(0.9, above=0.0, below=1.0)
    basis: int = setting(512, least=1)
    channels: tuple[int, ...] = setting((16, 16), least=1)
    side: int = setting(16, least=1)
    groups: int = setting(4, least=1)
    activation: Literal["relu", "softplus"] = "softplus"
    gain: float = setting(0.15, above=0.0)
    weight_norm: bool = True
    sigmoid: bool = False
    head_gain: float = setting(1.0, above=0.0)


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How the augmented system is solved for a batch.

    Parameters
    ----------
    method : {"newton", "recipe"}
        :class:`TrackedNewton`; or the published recipe, Anderson's method on the joint
        map.
    steps : int
        At most, in training.
    rtol : float
        Of every block, in training.
    blocks : int
        Of Newton's method.
    damping : float
        Of Newton's method at first. With more it is less daring far from a solution.
    memory : int
        Of Anderson's.
    step_size, final_step_size : float
        The step α of the recipe in x, and that of its second part.
    drop : float
        Where the second part begins, in parts of the steps.
    state_damping, adjoint_damping : float
        Of the recipe.
    warm : {"none", "code", "all"}
        What the recipe begins with: zeros, or what it found an epoch ago of x alone, or
        of z and μ as well, which takes memory. Newton's method is fastest from zeros.
    """

    method: Literal["newton", "recipe"] = "newton"
    steps: int = setting(20, least=1)
    rtol: float = setting(1e-3, above=0.0)
    blocks: int = setting(4, least=1)
    damping: float = setting(0.1, above=0.0)
    memory: int = setting(40, least=1)
    step_size: float = setting(0.01, above=0.0)
    final_step_size: float = setting(0.003, above=0.0)
    drop: float = setting(0.5, least=0.0, most=1.0)
    state_damping: float = setting(0.8, above=0.0, most=1.0)
    adjoint_damping: float = setting(0.6, above=0.0, most=1.0)
    warm: Literal["none", "code", "all"] = "none"

    def __post_init__(self) -> None:
        if self.method == "newton" and self.warm != "none":
            raise ValueError("warm: expected none with the method newton")


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """The penalty on the Jacobian ∂f/∂z.

    Parameters
    ----------
    weight : float
        Of the estimate of ‖J‖²/d.
    where : {"end", "trajectory"}
        At the solution; or at the state after a random number of steps, for which the
        solve is repeated up to there.
    probes : int
        Of the estimate.
    """

    weight: float = setting(0.0, least=0.0)
    where: Literal["end", "trajectory"] = "end"
    probes: int = setting(2, least=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the task.

    Parameters
    ----------
    images, network, solve, jacobian
        The parts.
    prior : float
        The weight of ‖x‖² in the loss; with principal components, of that of x in parts
        of its standard deviations.
    codes : {"solved", "encoded"}
        Whether codes are solved for in training; or are those of the principal
        components, which a step can do with an equilibrium and its adjoint alone. Codes
        of held-out images are always solved for.
    batch_size : int
        Images of a step.
    test_steps : int
        Steps at most for held-out images.
    components : int
        Of the mixture that new codes are drawn from.
    seed : int
        Of everything random.
    """

    images: Images
    network: Network
    solve: Solve = field(default_factory=Solve)
    jacobian: Regularization = field(default_factory=Regularization)
    prior: float = setting(0.03, least=0.0)
    codes: Literal["solved", "encoded"] = "solved"
    batch_size: int = setting(64, least=1)
    test_steps: int = setting(200, least=1)
    components: int = setting(8, least=1)
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        if self.codes == "encoded" and self.network.kind != "principal":
            raise ValueError("codes: encoded needs a network of the kind principal")
