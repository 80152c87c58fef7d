"""Evaluation: protocols and scores. Knows models as callables, not their names."""
