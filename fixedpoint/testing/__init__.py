"""Public helpers for testing solvers."""
