"""Recipes of scikit-learn's digits (8×8): a teacher and a student of every method, in minutes."""

from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.diffusion.densities import Along, LogNormal
from fewstep.learning.method import Method
from fewstep.learning.schedules import Cosine, Linear
from fewstep.methods.align_your_flow import AlignYourFlow
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.consistency_training import ConsistencyTraining
from fewstep.methods.consistency_trajectory import ConsistencyTrajectory
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.diffusion import Diffusion
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.easy_consistency import EasyConsistency
from fewstep.methods.invertible_consistency import InvertibleConsistency
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.mean_flow import MeanFlow
from fewstep.methods.moment_matching import MomentMatching
from fewstep.methods.multi_boundary import MultiBoundary
from fewstep.methods.phased_consistency import PhasedConsistency
from fewstep.methods.progressive import Progressive
from fewstep.methods.shortcut import Shortcut
from fewstep.methods.trajectory_consistency import TrajectoryConsistency
from fewstep.methods.truncated_consistency import TruncatedConsistency
from fewstep.metrics.classifier import Classification
from fewstep.models.classifier import FreshClassifier
from fewstep.models.dit import Dit
from fewstep.models.network import Network
from fewstep.models.source import Fresh, Saved
from fewstep.models.unet import UNet
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import AdamW


def digits_classifier() -> Run:
    """The shipped judge of digits: features for distances, and the class of every sample.

    Cross entropy on 80 % of the digits. Made by `fewstep train digits_classifier`, then
    `python tools/ship.py runs/digits_classifier`: 34 s on one core, seed 0, 2026-11-21. All 382
    held-out images are right. Held-out images are at a Fréchet distance of 33.2 from training
    images.
    """
    return Run(
        data=Digits(),
        method=Classification(),
        teacher=FreshClassifier(),
        trainer=TrainerConfig(
            steps=3000,
            optimizer=AdamW(lr=2e-3, weight_decay=0.02),
            schedule=Cosine(warmup=100),
            ema=(0.99,),
            health_every=250,
        ),
    )


def teacher_of(network: Network, *, steps: int, lr: float) -> Run:
    """EDM training of a network on 80 % of the digits."""
    return Run(
        data=Digits(),
        method=Diffusion(),
        teacher=Fresh(network=network),
        trainer=TrainerConfig(
            steps=steps,
            optimizer=AdamW(lr=lr, weight_decay=0.01),
            schedule=Cosine(warmup=200),
            ema=(0.999, 0.9995),
            save_every=1000,
            health_every=500,
        ),
    )


def digits_teacher() -> Run:
    """The shipped teacher of scikit-learn's digits (8×8): a class-conditional EDM U-Net of 0.83 M
    parameters.

    EDM training on 80 % of the digits. Made by `fewstep train digits_teacher`, then
    `python tools/ship.py runs/digits_teacher`: 5,000 steps, 24 minutes on a busy core, seed 0,
    2026-11-21, torch 2.13.0. Measured with `fewstep demo` (2,000 samples, seed 0, in the features
    of digits_classifier; held-out images are at 33.2): Fréchet distance 3.79 with Heun and 35
    evaluations, 99.3 % confirmed, diversity 97.8 %. Its held-out loss is lowest at step 4,000
    (0.394, and 0.397 at the end; 8,000 steps: 7 % more); the median distance of its samples to the
    nearest training image is 0.124, that of held-out images 0.132.
    """
    network = UNet(
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(2,),
        head_channels=32,
        groups=16,
        dropout=0.2,
    )
    return teacher_of(network, steps=5000, lr=1e-3)


def digits_dit_teacher() -> Run:
    """A transformer as the teacher of scikit-learn's digits (8×8): a class-conditional EDM DiT of
    0.89 M parameters.

    Squares of 2×2 pixels are its tokens: with one token per pixel a step takes four times as long.
    Fréchet distance 6.31 with 35 evaluations (the U-Net of digits_teacher, of 0.83 M: 3.79), 97.9 %
    confirmed, diversity 100.7 %; 2,000 samples. 35 minutes on one thread of a busy machine, seed 0,
    2026-11-21.
    """
    network = Dit(width=96, depth=5, heads=3, patch=2, dropout=0.1)
    return teacher_of(network, steps=4000, lr=3e-3)


def student_of(
    method: Method, *, lr: float, steps: int = 500, warmup: int = 20, save_every: int = 250
) -> Run:
    """A student of the shipped teacher, without dropout."""
    return Run(
        data=Digits(),
        method=method,
        teacher=Saved("digits_teacher"),
        dropout=0.0,
        trainer=TrainerConfig(
            steps=steps,
            optimizer=AdamW(lr=lr),
            schedule=Cosine(warmup=warmup),
            ema=(0.98,),
            save_every=save_every,
        ),
    )


def digits_cd() -> Run:
    """The demo: the shipped digits teacher becomes a student of 1 to 4 evaluations.

    Consistency distillation with the teacher's Heun step. Measured with `fewstep demo` (2,000
    samples, seed 0, one thread of a 2-core machine, 2026-11-21): Fréchet distance 5.33 at 1
    evaluation, 5.23 at 2, 4.59 at 4 (teacher: 95.6, 95.0, 39.2, and 3.79 at 35); confirmed 98.9,
    99.2, 99.4 %; diversity 94.0, 96.0, 96.3 %. A pixel SVM trained on all digits confirms 99.4 % of
    2,000 images (2 evaluations, seed 1).
    """
    return student_of(ConsistencyDistillation(), lr=1e-3, warmup=50)


def digits_dit_cd() -> Run:
    """The transformer teacher of the digits becomes a student of 1 to 4 evaluations.

    It needs the finished run of digits_dit_teacher: `fewstep train digits_dit_teacher`. Fréchet
    distance 8.97, 8.63, 7.98 at 1, 2 and 4 evaluations (the U-Net's student, digits_cd: 5.33, 5.23,
    4.59; this teacher with 35: 6.31), 97.5 to 98.2 % confirmed, diversity 96 to 101 %; 2,000
    samples. 6 minutes on one thread of a busy machine, seed 0, 2026-11-21.
    """
    return replaced(digits_cd(), teacher=Saved("runs/digits_dit_teacher"))


def digits_ct() -> Run:
    """A student without a teacher's answers: improved consistency training on the digits
    (arXiv:2310.14189).

    From the shipped teacher's weights, for the run is short; published from scratch, with up to
    1280 intervals.
    """
    return student_of(ConsistencyTraining(first=5, last=40), lr=5e-4)


def digits_ect() -> Run:
    """Easy consistency tuning of the shipped digits teacher (arXiv:2406.14548).

    All eight stages in a short run.
    """
    return student_of(EasyConsistency(), lr=5e-4)


def digits_tcm() -> Run:
    """Easy consistency tuning, then its second stage for the noisy times alone (arXiv:2410.14895).

    Half of the run for each stage; `method.share=0 start=runs/digits_ect` begins with the second.
    Longer intervals than published: 1/(t - r) turns what a short run has not yet learned into
    noise.
    """
    method = TruncatedConsistency(easy=EasyConsistency(stages=5, limit=0.97))
    return student_of(method, lr=2e-4)


def digits_lcm() -> Run:
    """Latent consistency distillation on digits: the student reads the guidance scale.

    Guided from 1 to 5 through the teacher's "no label".
    """
    return student_of(LatentConsistency(), lr=1e-3, steps=300, warmup=50)


def digits_mbcd() -> Run:
    """Multi-boundary distillation on digits: four deterministic steps.

    Four segments of a grid of 20 first-order steps of the teacher.
    """
    return student_of(MultiBoundary(bins=20), lr=2e-4, steps=400, warmup=50)


def digits_icd() -> Run:
    """Invertible distillation on digits: a student down and one up, which encodes images.

    Four segments of a grid of 20 steps of the teacher in each direction.
    """
    method = InvertibleConsistency(reverse=MultiBoundary(bins=20))
    return student_of(method, lr=2e-4, steps=300, warmup=50)


def digits_pcm() -> Run:
    """Phased consistency on digits, with a discriminator on the teacher's features.

    Four phases of a grid of 20 first-order steps of the teacher.
    """
    return student_of(PhasedConsistency(bins=20), lr=2e-4, steps=300, warmup=50)


def digits_tcd() -> Run:
    """Trajectory consistency distillation on digits: jumps to any time, told to the student.

    A grid of 20 first-order steps of the teacher.
    """
    return student_of(TrajectoryConsistency(bins=20, told_end=True), lr=5e-4, warmup=50)


def digits_ctm() -> Run:
    """A consistency trajectory model on digits: jumps to any time, learned with a denoising term.

    One to four of the teacher's Heun steps at a time.
    """
    return student_of(ConsistencyTrajectory(), lr=1e-3, steps=400, warmup=50)


def digits_scm() -> Run:
    """Continuous-time consistency distillation of the shipped digits teacher, for 1 or 2
    evaluations.

    sCD; the teacher's fast sinusoids make large derivatives: a low rate and a long warm-up.
    """
    return student_of(ContinuousConsistency(warmup=0.5), lr=3e-4, save_every=100)


def digits_ayf() -> Run:
    """A flow map in continuous time, aligned with the shipped digits teacher, for 1 to 4
    evaluations.

    The Eulerian objective, at a low rate and with a long warm-up, as in digits_scm.
    """
    return student_of(AlignYourFlow(warmup=0.5), lr=2e-4, save_every=100)


def digits_mean_flow() -> Run:
    """A mean flow from the shipped digits teacher, for one evaluation.

    The velocity is that of the teacher, which has less noise than the data.
    """
    return student_of(MeanFlow(velocity="teacher"), lr=5e-4, save_every=100)


def digits_shortcut() -> Run:
    """Shortcut models from the shipped digits teacher, for 1 to 8 evaluations.

    The velocity of the teacher on a grid of 32 intervals; half of the rows join jumps.
    """
    method = Shortcut(intervals=32, velocity="teacher", bootstrap=0.5, target_decay=0.95)
    return student_of(method, lr=5e-4, save_every=100)


def digits_imm() -> Run:
    """Inductive moment matching on the digits, from the weights of the shipped teacher.

    Groups of 16 rows, of which about two share a label.
    """
    return student_of(MomentMatching(samples=16), lr=5e-4, save_every=100)


def digits_progressive() -> Run:
    """Progressive distillation of the shipped digits teacher, from 32 steps to 4.

    Three rounds of equal length; the rate falls to 0 in each, the optimizer begins anew. Fréchet
    distance 5.70 at 4 evaluations (the teacher's best there is 39.2, with 35 evaluations 3.79),
    99.7 % confirmed, diversity 88.0 %; 2,000 samples. 4 minutes on one thread, seed 0, 2026-11-21.
    """
    run = student_of(Progressive(), lr=5e-4, steps=600, save_every=100)
    trainer = replaced(run.trainer, schedule=Linear(warmup=10), ema=(0.9,))
    return replaced(run, trainer=trainer)


def digits_dmd2() -> Run:
    """The demo's student, sharpened: distribution matching with a discriminator, for one
    evaluation.

    `start=runs/demo` begins with the demo's consistency student (`fewstep demo` first); without it
    the shipped teacher. Times up to 6 instead of 80: above, 8×8 pixels of std 0.5 are noise to both
    scores. The matching gradient is a mean over 64 pixels, so the adversarial weights are larger
    than the published ones. fp32; the method takes no dropout.

    From `start=runs/demo`, at 1 evaluation with 2,000 samples, seed 0: Fréchet distance 3.76 after
    5.33 (the teacher with 35 evaluations: 3.79), 99.6 % confirmed (99.3), diversity 95.0 % (97.8).
    With 10,000 samples, which are less noisy: 2.63 after 4.17 (2.50). 8 minutes on one thread of a
    busy machine, seed 0, 2026-11-21.
    """
    method = DMD2(
        gan=0.1,
        gan_fake=0.1,
        density=Along(low=0.02, high=0.6),
        fake_density=LogNormal(mean=-0.6, std=1.4),
    )
    run = student_of(method, lr=2e-4, steps=300, warmup=10, save_every=50)
    trainer = replaced(run.trainer, batch=64, optimizers={"head": AdamW(lr=1e-3)})
    return replaced(run, trainer=trainer, dropout=None)
