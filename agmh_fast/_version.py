"""The version, read by the build and by `agmh_fast.__version__`."""

__version__ = "0.1.0"
