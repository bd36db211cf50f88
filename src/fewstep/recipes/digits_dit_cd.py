"""The transformer teacher of the digits becomes a student of 1 to 4 evaluations.

It needs the finished run of digits_dit_teacher: `fewstep train digits_dit_teacher`.
"""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Consistency distillation with the teacher's Heun step, without dropout."""
    return Run(
        data=Digits(),
        method=ConsistencyDistillation(),
        teacher=Saved("runs/digits_dit_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500, optimizer=AdamW(lr=1e-3), schedule=Cosine(warmup=50), ema=(0.98,), save_every=250
        ),
    )
