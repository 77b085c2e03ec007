"""Layers whose weight may have several layouts, and state_dicts that say which one."""

from __future__ import annotations

from typing import Any

from torch import nn


class LayoutInMetadata(nn.Module):
    """Refuses a weight of another layout where its shape does not give it away.

    A weight that is square, say, would load transposed without an error. torch keeps metadata
    beside a state_dict; there the layer names its `weight_layout`, and load_state_dict raises
    RuntimeError where the weight is of another one and has the same shape in both. The keys of the
    state_dict stay as they are. What has no metadata (a plain dict, as safetensors gives it) is
    taken to be of the layer's own layout.
    """

    weight_layout: str
    _unnamed_layout: str | None = None  # of metadata that names none; None: the layer's own

    def _weight_shape(self, layout: str) -> list[int]:
        """The shape that the weight has in a layout."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["weight_layout"] = self.weight_layout

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *lists: Any
    ) -> None:
        ours = self.weight_layout
        given = local_metadata.get("weight_layout", self._unnamed_layout) or ours
        shape = self._weight_shape(ours)
        if (
            "version" in local_metadata  # Where there is none, assign=True has made some up.
            and given != ours
            and self._weight_shape(given) == shape != [1] * len(shape)
            and any(key.startswith(prefix) and "weight" in key for key in state_dict)
        ):
            lists[-1].append(
                f"{prefix}weight is of layout {given!r}, as the metadata of the state_dict has "
                f"it, and this layer's weight_layout is {ours!r}: permute the weight, unless you "
                "know better (wrappers around layers hide their metadata), and load "
                "dict(state_dict), which has none"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *lists)
