"""Easy consistency tuning, then its second stage for the noisy times alone (arXiv:2410.14895)."""

from fewstep.data.digits import Digits
from fewstep.learning.schedules import Cosine
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.models.source import Saved
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def recipe() -> Run:
    """Half of the run for each stage; `method.share=0 start=runs/digits_ect` begins with the
    second.

    Longer intervals than published: 1/(t - r) turns what a short run has not yet learned into
    noise.
    """
    return Run(
        data=Digits(),
        method=TruncatedConsistency(easy=EasyConsistency(stages=5, limit=0.97)),
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=500,
            optimizer=AdamW(lr=2e-4),
            schedule=Cosine(warmup=20),
            ema=(0.98,),
            save_every=250,
        ),
    )
