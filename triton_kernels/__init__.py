"""Triton kernels and their launchers, one file per op.

Importing this package registers every op it has under `torch.ops.lamina_triton`, with the
signatures of the C++ ops; ImportError where Triton is not installed.
"""

from importlib import import_module
from pkgutil import iter_modules

from .launch import interpreted

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["interpreted"]
