"""Recipes of pictures of your own (`data.path=` a folder, a table or any data with images): what
fits them is read from them.

Pictures of up to 64 pixels that are squares of one size are taken as they are; others become
squares of at most 64. Batch, network, steps and dropout follow their size and number.
`data.size=128` and every other option may be given as ever.
"""

from dataclasses import fields
from typing import Any

from fewstep.choice import replaced
from fewstep.data.folder import Folder
from fewstep.data.sight import Sight
from fewstep.diffusion.densities import Along, LogNormal
from fewstep.learning.method import Method
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW

EXAMPLE = Sight(Folder(size=32, channels="rgb", label="none"), count=5000, side=32, square=True)
"""What the recipes show where no pictures are named."""
LARGEST = 64  # pixels of a side, where nobody wants more
TEACHER = "runs/images_teacher"


def images_teacher(pictures: Sight = EXAMPLE) -> Run:
    """A teacher of your own pictures: an EDM U-Net that fits their size and number.

    Conditioned on classes where there are some.
    """
    return _run(pictures, Diffusion(), Fresh(network=_network(pictures)), share=1.0, lr=1e-3)


def images_ct(pictures: Sight = EXAMPLE) -> Run:
    """A few-step model of your own pictures without any teacher, by consistency training."""
    method = ConsistencyTraining(first=4, last=128)
    return _run(pictures, method, Fresh(network=_network(pictures)), share=1.0, lr=1e-3)


def images_cd(pictures: Sight = EXAMPLE) -> Run:
    """A few-step student of the recipe images_teacher, by consistency distillation.

    One Heun step of the teacher over 18 intervals.
    """
    return _run(pictures, ConsistencyDistillation(), Saved(TEACHER), share=0.3, lr=1e-3)


def images_dmd2(pictures: Sight = EXAMPLE) -> Run:
    """A one-step student of the recipe images_teacher, by distribution matching.

    `start=runs/images_cd` begins with the student of images_cd.
    """
    method = DMD2(
        gan=0.1,
        gan_fake=0.1,
        density=Along(low=0.02, high=0.6),
        fake_density=LogNormal(mean=-0.6, std=1.4),
    )
    run = _run(pictures, method, Saved(TEACHER), share=0.1, lr=2e-4)
    trainer = replaced(run.trainer, optimizers={"head": AdamW(lr=1e-3)})
    return replaced(run, trainer=trainer, dropout=None)


def side_of(pictures: Sight) -> int:
    """The side of the squares that are trained on; 0 where they are taken as they are."""
    if asked := getattr(pictures.source, "size", 0):
        return int(asked)
    if pictures.square and pictures.side <= LARGEST and pictures.side % 4 == 0:
        return 0
    side = min(pictures.side, LARGEST)
    return max(8, side - side % 8)


def _network(pictures: Sight) -> UNet:
    """Halved down to about 8 pixels; dropout where few pictures would be learned by heart."""
    side = side_of(pictures) or pictures.side
    levels = 2 if side <= 12 else 3 if side <= 32 else 4
    dropout = 0.2 if pictures.count < 2000 else 0.1 if pictures.count < 10_000 else 0.0
    return UNet(
        channels=32,
        multipliers=(1, *[2] * (levels - 1)),
        blocks=1,
        attention=(2 ** (levels - 1),),
        head_channels=32,
        groups=16,
        dropout=dropout,
    )


def _run(pictures: Sight, method: Method, teacher: Any, *, share: float, lr: float) -> Run:
    """share: of a teacher's steps."""
    side = side_of(pictures) or pictures.side
    data = pictures.source
    told: dict[str, Any] = {"flip": pictures.channels == 3}
    if "size" in {field.name for field in fields(data)}:
        told["size"] = side_of(pictures)
    batch = 64 if side <= 32 else 32
    # 100 looks at each picture, within what a laptop does in an hour or so.
    whole = min(max(100 * pictures.count // batch, 2000), 5000 if side <= 16 else 4000)
    steps = round(share * whole / 100) * 100
    return Run(
        data=replaced(data, **told),
        method=method,
        teacher=teacher,
        dropout=0.0 if isinstance(teacher, Saved) else None,
        trainer=TrainerConfig(
            steps=steps,
            batch=batch,
            optimizer=AdamW(lr=lr),
            schedule=Cosine(warmup=50),
            ema=(0.998 if share == 1.0 else 0.99,),
            save_every=250,
        ),
    )
