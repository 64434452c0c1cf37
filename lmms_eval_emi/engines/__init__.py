"""Engines that spread work over machines: a file each, with nothing of the mathematics."""
