"""The command line: one verb per file, one table of verbs in `main`."""
