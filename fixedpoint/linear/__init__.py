"""Linear algebra on spaces."""
