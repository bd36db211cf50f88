"""A student without a teacher's answers: improved consistency training on the digits
(arXiv:2310.14189).
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """From the shipped teacher's weights, for the run is short; published from scratch, with up to
    1280 intervals.
    """
    return Run(
        data=Digits(),
        method=ConsistencyTraining(first=5, last=40),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=5e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=250,
        ),
    )
