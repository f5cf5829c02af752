"""Triton kernels: in a source checkout they live in the top-level folder kernels/, one folder an op."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "kernels"
if (
    not any(child.is_dir() and child.name != "__pycache__" for child in Path(__file__).parent.iterdir())
    and _checkout.is_dir()
):
    __path__.append(str(_checkout))
