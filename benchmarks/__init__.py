"""Speed measurements, one per module; records are committed under benchmarks/results/."""
