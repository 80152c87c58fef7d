"""Adapters: small trained changes to frozen weights.

`monarch` holds the structured matrices themselves, `more` the PEFT method that trains them.
"""

# First of all: importing PEFT registers our method, which loads the modules of this room. Were it
# one of them that imported PEFT, it would be asked for before it is there.
import peft  # noqa: F401
