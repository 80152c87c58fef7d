"""Adapters: small trained changes to frozen weights.

`monarch` holds the structured matrices themselves, `more` the PEFT method that trains them.
"""
