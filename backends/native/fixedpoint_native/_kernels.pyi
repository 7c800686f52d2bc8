from typing import Any

ANDERSON_MEMORY: int
BROYDEN_MEMORY: int
RISEN: int
ENDED: int

class _Kernel:
    def __init__(
        self,
        samples: int,
        size: int,
        memory: int,
        entries: bool,
        peaks: bool,
        on_error: bool,
        rtol: float,
        atol: float,
        least: float,
        rounding: float,
        smallest: float,
        fall: float,
        zero: float,
        roundings: float,
    ) -> None: ...
    def advance(
        self,
        pushed: int,
        slot: int,
        count: int,
        value: Any,
        image: Any,
        old: tuple[Any, Any, Any, Any],
        known: tuple[Any, Any],
        active: Any,
        shortened: Any,
        made: tuple[Any, Any, Any, Any, Any],
        memory: tuple[Any, ...],
        threads: int,
    ) -> int: ...

class AndersonFloat32(_Kernel): ...
class AndersonFloat64(_Kernel): ...
class BroydenFloat32(_Kernel): ...
class BroydenFloat64(_Kernel): ...
class PicardFloat32(_Kernel): ...
class PicardFloat64(_Kernel): ...
