"""Strict recipes: dataclasses filled from defaults, a YAML file and overrides."""
