"""Strict recipes: dataclasses filled from defaults, a YAML file and overrides."""

from manticore.config.describe import FieldHelp, describe_fields
from manticore.config.load import ConfigError, load_recipe
from manticore.config.locate import find_recipe, recipe_kind, recipes_root
from manticore.config.plain import dump_yaml, to_plain

__all__ = [
    "ConfigError",
    "FieldHelp",
    "describe_fields",
    "dump_yaml",
    "find_recipe",
    "load_recipe",
    "recipe_kind",
    "recipes_root",
    "to_plain",
]
