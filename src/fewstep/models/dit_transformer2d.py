"""The transformer of diffusers' DiTPipeline: DiTTransformer2DModel, as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fewstep.models.diffusers_network import DiffusersNetwork, check_channels, check_pictures
from fewstep.models.library import completed
from fewstep.models.network import NetworkModule
from fewstep.models.space import Classes, Space


@dataclass(frozen=True)
class DitTransformer2d(DiffusersNetwork):
    """diffusers' DiTTransformer2DModel (arXiv:2212.09748), which reads a label or "any class"."""

    library: ClassVar[str] = "diffusers.DiTTransformer2DModel"

    def fitted(self, space: Space) -> dict[str, Any]:
        check_pictures(space, "dit_transformer_2d")
        label = space.columns.get("label")
        if not isinstance(label, Classes) or not label.null:
            raise ValueError("a dit_transformer_2d reads labels, of which one more means any")
        channels, height, width = space.shape
        if height != width:
            raise ValueError(f"a dit_transformer_2d needs square samples, got {height}×{width}")
        asked = {
            "sample_size": height,
            "in_channels": channels,
            "out_channels": channels,
            "num_embeds_ada_norm": label.num,
        }
        found = completed({**asked, **self.config}, self.library)
        check_channels(found, space)
        if found["num_embeds_ada_norm"] != label.num:
            raise ValueError(
                f"this transformer knows {found['num_embeds_ada_norm']} classes, the data has "
                f"{label.num}"
            )
        return found

    def around(self, module: nn.Module, space: Space) -> NetworkModule:
        """Without its own dropout of labels, of which no loss would know: the trainer has one."""
        for part in module.modules():
            if type(part).__name__ == "LabelEmbedding":
                part.dropout_prob = 0.0  # type: ignore[assignment]
        return super().around(module, space)
