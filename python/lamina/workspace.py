"""The scratch memory that the C++ kernels keep from call to call."""

from __future__ import annotations

import torch

from lamina.modules import missing


def release_workspace() -> int:
    """Give back the calling thread's scratch memory, and return how many bytes it was.

    Kernels keep packed panels and other scratch for the next call, since fresh memory costs a page
    fault every 4 kB; the largest call so far sets the size. The next call takes what it needs anew.
    """
    return 0 if missing["cpp"] else torch.ops.lamina.release_workspace()
