"""A flow map in continuous time, aligned with the shipped digits teacher, for 1 to 4
evaluations.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.align_your_flow import AlignYourFlow
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """The Eulerian objective without dropout, at a low rate and with a long warm-up, as in
    digits_scm.
    """
    return Run(
        data=Digits(),
        method=AlignYourFlow(warmup=0.5),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=2e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=100,
        ),
    )
