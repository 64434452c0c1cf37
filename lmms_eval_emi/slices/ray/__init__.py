"""Engines that spread work over machines, one file each; the mathematics is in ``core/``."""
