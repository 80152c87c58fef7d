"""Pretrained components: loading them, running a range of their layers, counting their cost."""
