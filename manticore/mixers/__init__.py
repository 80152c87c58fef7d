"""Token mixers and the scans they share, one per file, each beside its naive twin."""
