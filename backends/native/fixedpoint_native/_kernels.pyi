from typing import Any

LARGEST_MEMORY: int
RISEN: int

class _Anderson:
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
        diagonal: float,
        rounding: float,
        smallest: float,
        fall: float,
        zero: float,
    ) -> None: ...
    def advance(
        self,
        pushed: int,
        slot: int,
        count: int,
        value: Any,
        image: Any,
        old: tuple[Any, Any, Any, Any],
        history: tuple[Any, Any, Any],
        envelope: Any,
        known: tuple[Any, Any, Any, Any, Any],
        active: Any,
        shortened: Any,
        point: tuple[Any, Any, Any, Any],
        verdict: tuple[Any, Any, Any, Any, Any, Any, Any, Any],
    ) -> int: ...

class AndersonFloat32(_Anderson): ...
class AndersonFloat64(_Anderson): ...
