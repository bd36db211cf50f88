"""Methods of different shape keep their laws where their networks are additions to one base."""

import functools

import pytest

from fewstep.contracts.laws import LAWS
from fewstep.contracts.trained import bf16_follows_fp32
from fewstep.contracts.trial import Trial
from fewstep.diffusion.denoiser import Denoiser
from fewstep.methods.continuous_consistency import ContinuousConsistency
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.latent_consistency import LatentConsistency
from fewstep.methods.progressive import Progressive
from fewstep.models.lora import Lora, LoraView

pytest.importorskip("peft")

METHODS = [ContinuousConsistency, DMD2, LatentConsistency, Progressive]
CHEAP = [
    "trains_at_all",
    "gradients_reach_what_trains",
    "only_declared_networks_change",
    "the_student_saves_and_loads",
]


@functools.cache
def trial_of(cls):
    return Trial(cls, Lora(rank=2))


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
class TestMethod:
    @pytest.mark.parametrize("law", CHEAP)
    def test_keeps_the_law(self, cls, law):
        assert LAWS[law](trial_of(cls)) is None

    @pytest.mark.parametrize("precision", ["bf16", "fp16_teacher"])
    def test_other_arithmetic_follows_fp32(self, cls, precision):
        assert bf16_follows_fp32(trial_of(cls), precision) is None

    def test_its_networks_are_additions(self, cls):
        state = trial_of(cls).finished.trainer.state
        kept = [state.modules[name] for name in state.kept]
        networks = [module.network for module in kept if isinstance(module, Denoiser)]
        assert networks
        assert all(isinstance(network, LoraView) for network in networks)
