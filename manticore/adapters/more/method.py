"""Make PEFT know a method of its own name.

PEFT's list of methods is a closed enumeration and offers no way to enter from outside, while
`register_peft_method` takes members of that enumeration only. So the member `MORE` is added here,
once, in the manner of the enumeration's own members. Nothing else of PEFT needs to change.
"""

from __future__ import annotations

from peft import PeftType

NAME = "MORE"


def peft_type() -> PeftType:
    """Return PEFT's member for this method."""
    return PeftType(NAME)


def extend_peft_types() -> None:
    """Add `PeftType.MORE`; does nothing when it is there."""
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member._sort_order_ = len(PeftType.__members__)
    member.__objclass__ = PeftType
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    type.__setattr__(PeftType, NAME, member)
