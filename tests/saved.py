"""How many bytes a call keeps for its backward pass."""

from __future__ import annotations

import torch


def saved_bytes(call, exclude=()):
    """Bytes of the storages that autograd keeps for `call`, without those of `exclude`."""
    known = {t.untyped_storage().data_ptr() for t in exclude}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    assert output.requires_grad
    return sum(kept.values())
