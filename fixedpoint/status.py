"""How the iteration of a sample ends."""

from enum import IntEnum


class Status(IntEnum):
    """How the iteration of a sample ended."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 3
    STALLED = 4
    DIVERGED = 5
    LINEAR_SOLVE_FAILED = 6
    LINE_SEARCH_FAILED = 7
    STOPPED = 8
    OUT_OF_BUDGET = 9
    NO_BRACKET = 10
    SINGULAR = 11
    COLLAPSED = 12


# What messages say of each.
MEANING = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "not converged within max_steps",
    Status.NON_FINITE: (
        "not finite: the start, or f there or at every iterate tried next"
    ),
    Status.STALLED: "stalled: the residual has long stopped falling",
    Status.DIVERGED: "diverged: the residual grew without bound",
    Status.LINEAR_SOLVE_FAILED: (
        "a linear solve failed: no step reduces the linearized residual"
    ),
    Status.LINE_SEARCH_FAILED: (
        "a line search failed: no step, however short, reduces the residual"
    ),
    Status.STOPPED: "stopped by the callback",
    Status.OUT_OF_BUDGET: "out of budget",
    Status.SINGULAR: (
        "the derivative is singular: no correction changes the residual as it should"
    ),
    Status.COLLAPSED: (
        "collapsed to zero, where f has no derivative: fix the scale of the state"
    ),
    Status.NO_BRACKET: "no bracket: F has the same sign at both ends",
}
