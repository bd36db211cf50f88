"""The demo: the shipped digits teacher becomes a student of 1 to 4 evaluations.

Measured with `fewstep demo` (2,000 samples, seed 0, one thread of a 2-core machine, 2026-11-21): Fréchet distance 5.02
at 1 evaluation, 4.95 at 2, 4.97 at 4 (teacher: 107.2, 106.7, 44.4, and 4.06 at 35); confirmed 99.4, 99.6, 99.4 %;
diversity 92.7, 95.2, 94.9 %. A pixel SVM trained on all digits confirms 99.5 % of 2,000 images (2 evaluations, seed 1).
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
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500, optimizer=AdamW(lr=1e-3), schedule=Cosine(warmup=50), ema=(0.98,), save_every=250
        ),
    )
