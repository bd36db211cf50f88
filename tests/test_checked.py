"""What was built in Python is held to the rules of a file; which kinds users are offered."""

import pytest
from pydantic import ValidationError

from fewstep.choice import replaced
from fewstep.data.digits import Digits
from fewstep.diffusion.samplers import Ode
from fewstep.diffusion.times import Karras, Strided, Trailing
from fewstep.learning.method import Method
from fewstep.methods.consistency_distillation import ConsistencyDistillation
from fewstep.methods.diffusion import Diffusion
from fewstep.models.source import Fresh
from fewstep.run import Run
from fewstep.training.config import TrainerConfig
from fewstep.training.optimizers import Sgd


class TestChecked:
    """What was built in Python is held to the rules of a file."""

    def test_what_is_right_is_equal(self):
        for choice in (Karras(), Ode(), Fresh(), Run(Digits(), Diffusion())):
            assert choice.checked() == choice

    def test_every_mistake_with_its_path_nested_ones_too(self):
        run = Run(
            Digits(limit=-1),
            ConsistencyDistillation(bins=-3, times=Strided(of=Karras(rho=0.0))),
            trainer=TrainerConfig(batch="many", optimizers={"critic": Sgd(lr=-1.0)}),
            dropout=2,
        )
        with pytest.raises(ValidationError) as caught:
            run.checked()
        assert {".".join(map(str, e["loc"])) for e in caught.value.errors()} == {
            "data.limit",
            "method.bins",
            "method.times.of.rho",
            "trainer.batch",
            "trainer.optimizers.critic.lr",
            "dropout",
        }

    def test_a_choice_of_another_family(self):
        with pytest.raises(ValidationError) as caught:
            Run(Digits(), Karras()).checked()
        assert [e["loc"] for e in caught.value.errors()] == [("method",)]

    def test_shorter_spellings_become_choices(self):
        made = ConsistencyDistillation(times="trailing").checked()
        assert made.times == Trailing()

    def test_replaced_checks_what_it_is_given(self):
        with pytest.raises(ValidationError, match="rho"):
            replaced(Strided(), of=Karras(rho=0.0))


def test_what_is_no_diffusion_model_is_trained_by_methods_that_users_are_not_offered():
    assert {kind.__module__.rpartition(".")[0] for kind in Method.offered().values()} == {
        "fewstep.methods"
    }
    assert set(Method.kinds()) - set(Method.offered()) == {
        "autoencoding",
        "classification",
        "contrastive",
    }
    with pytest.raises(ValueError, match="valid: ") as caught:
        Method.parse("zzz")
    assert "classification" not in str(caught.value)
