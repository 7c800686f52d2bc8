"""Checks of settings."""

from __future__ import annotations

from typing import Any


def check_positive(name: str, value: float, upper: float = float("inf")) -> None:
    """Raise ValueError unless 0 < value ≤ upper."""
    if not 0.0 < value <= upper:
        bound = "positive" if upper == float("inf") else f"in (0, {upper:g}]"
        raise ValueError(f"{name} must be {bound}, got {value!r}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is an integer, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")
