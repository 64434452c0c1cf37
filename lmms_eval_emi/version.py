"""The one place that contains the version."""

__version__ = "0.1.0"
