"""Rules by which a layer's settings in another library become ours.

A rule names every key that the other library writes. A key that no rule knows, or a value that we
have no counterpart for, is an error: a model that only looks like the one that was meant would be
worse. The rules are in `mad_lab_rules` and `fla_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
ANY = object()
"""Any value of the key will do: it changes nothing that a model computes."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One foreign layer."""

    mixer: str
    """Our name."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Their key -> our setting, with the same meaning."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Their key -> the value (or tuple of values) that we compute, or `ANY`."""
    derive: Callable[[Settings], dict[str, Any]] | None = None
    """Settings that follow from several of theirs."""
    reads: tuple[str, ...] = ()
    """Keys that `derive` reads."""

    def apply(self, settings: Settings, source: str) -> dict[str, Any]:
        """The layer as ours.

        Args:
            settings: their keys and values.
            source: what they come from, for messages.
        """
        for key, value in settings.items():
            if key in self.only:
                check_value(source, key.lstrip("_"), value, self.only[key])
            elif key not in self.fields and key not in self.reads:
                raise ValueError(
                    f"{source}: the setting {key!r} (here {value!r}) has no counterpart in our "
                    f"{self.mixer!r}. Leave it out if its default is meant, or write the layer "
                    "with our settings."
                )
        ours = {our: settings[their] for their, our in self.fields.items() if their in settings}
        derived = {} if self.derive is None else self.derive(settings)
        return {"mixer": self.mixer, **ours, **derived}


def check_value(source: str, key: str, value: Any, allowed: Any) -> None:
    """Raise when a key has a value that we do not compute."""
    if allowed is ANY:
        return
    choices = allowed if isinstance(allowed, tuple) else (allowed,)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{source}: {key}={value!r} has no counterpart; we have {listed}.")


def find_rule(
    rules: Mapping[str, Rule], name: str, library: str, absent: Mapping[str, str]
) -> Rule:
    """The rule of a foreign name.

    Args:
        absent: names that the library has and we do not -> why, or what comes closest.
    """
    if name in rules:
        return rules[name]
    known = f"Known: {', '.join(sorted(rules))}."
    if name in absent:
        raise ValueError(f"{library}'s {name!r} has no counterpart here: {absent[name]}. {known}")
    raise ValueError(f"{name!r} is no name of {library} that we know. {known}")
