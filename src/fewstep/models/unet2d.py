"""The U-Net of diffusers' pipelines of pixels: UNet2DModel, as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fewstep.models.diffusers_network import DiffusersNetwork, check_channels, check_pictures
from fewstep.models.library import completed
from fewstep.models.space import Classes, Space


@dataclass(frozen=True)
class UNet2d(DiffusersNetwork):
    """diffusers' UNet2DModel: images, with a label where `num_class_embeds` says so."""

    library: ClassVar[str] = "diffusers.UNet2DModel"

    def fitted(self, space: Space) -> dict[str, Any]:
        check_pictures(space, "unet_2d")
        channels, height, width = space.shape
        label = space.columns.get("label")
        rows = label.num + label.null if isinstance(label, Classes) else None
        asked = {
            "sample_size": height if height == width else [height, width],
            "in_channels": channels,
            "out_channels": channels,
            "num_class_embeds": rows,
        }
        found = completed({**asked, **self.config}, self.library)
        check_channels(found, space)
        if found["num_class_embeds"] != rows:
            raise ValueError(
                f"this U-Net knows {found['num_class_embeds'] or 'no'} classes, the data asks for "
                f"{rows or 'none'}"
            )
        if found["class_embed_type"] is not None:
            raise ValueError(f"this U-Net reads more than labels: {found['class_embed_type']!r}")
        if found["time_embedding_type"] == "learned":
            raise ValueError("this U-Net looks its times up in a table: none between them")
        return found
