"""Pretrained hybrids: configuration, models, projectors, search, baselines."""
