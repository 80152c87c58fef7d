"""Carry a pretrained transformer into a linear-cost model or a hybrid (XATL)."""
