"""The number that stands for the time inside a network: distinct times stay distinct."""

import json
import shutil

import pytest
import torch

from fewstep.choice import replaced
from fewstep.diffusion.parameterization import Edm
from fewstep.diffusion.process import Process, VariancePreservingTable
from fewstep.models.dit import Dit
from fewstep.models.folder import load
from fewstep.models.named import shipped
from fewstep.models.network import Network, noise_features, sinusoid
from fewstep.models.source import Fresh
from fewstep.models.space import image_space, labelled
from fewstep.models.unet import UNet

PROCESSES = {kind: cls() for kind, cls in Process.kinds().items()}
NETWORKS = {
    "unet": UNet(channels=4, multipliers=(1,), blocks=1, attention=(), head_channels=2, groups=2),
    "dit": Dit(width=24, depth=1, heads=2, patch=4),
}


def loaded(network, process):
    source = Fresh(network=network, process=process, parameterization=Edm())
    return source.load(image_space((1, 8, 8), 3), seed=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_distinct_times_stay_distinct(network, process):
    """The data, whole and half indices of a table, both ends: all that a network or a flow map's
    target can be asked for.
    """
    module = loaded(network, process).denoiser.network
    times = [process.t_data, process.t_min, process.t_max]
    if process.discrete:
        times += [-0.5, 0.5, 1.0, 1.5, 2.0, 500.0, 500.5, 998.0]
    times = torch.tensor(sorted(times), dtype=torch.float64)
    numbers = module.number(times)
    assert (numbers.diff() > 0.4).all()
    features = sinusoid(numbers, module.frequencies)
    far = torch.cdist(features, features) + torch.eye(len(times))
    assert far.min() > 0.1


def test_the_number_of_a_process_in_numbers():
    t = torch.tensor([-1.0, 0.0, 0.5, 1.0, 999.0], dtype=torch.float64)
    spec = NETWORKS["unet"]
    table = VariancePreservingTable()
    assert loaded(spec, table).denoiser.network.number(t).tolist() == t.tolist()
    for name in ("variance_exploding", "rectified_flow", "trig", "variance_preserving"):
        assert loaded(spec, PROCESSES[name]).denoiser.network.spec.time_input == "log_sigma"
    said = replaced(spec, time_input="log_sigma")
    assert loaded(said, table).denoiser.network.spec.time_input == "log_sigma"
    assert spec.build(labelled((1, 8, 8), 3)).number(t[3:]).tolist() == pytest.approx(
        [0.0, 1726.7], rel=1e-4
    )
    assert torch.equal(noise_features(t, None), noise_features(t, "log_sigma"))


def test_what_was_chosen_is_written_and_read_again(tmp_path):
    model = loaded(NETWORKS["unet"], VariancePreservingTable())
    model.save(tmp_path / "model")
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["network"]["time_input"] == "identity"
    again = load(tmp_path / "model").denoiser.network
    assert again.spec == model.denoiser.network.spec


def test_a_table_that_was_saved_with_log_sigma_loads_as_before(tmp_path):
    spec = replaced(NETWORKS["unet"], time_input="log_sigma")
    loaded(spec, VariancePreservingTable()).save(tmp_path / "model")
    again = load(tmp_path / "model").denoiser.network
    assert again.spec.time_input == "log_sigma"
    assert again.number(torch.tensor([0.0])).item() == pytest.approx(-11513, rel=1e-4)


def test_a_shipped_model_loads_as_before(tmp_path):
    shutil.copytree(shipped()["digits_teacher"], tmp_path / "model")
    assert load(tmp_path / "model").denoiser.network.spec.time_input == "log_sigma"


@pytest.mark.parametrize("kind", NETWORKS)
def test_none_can_be_said_in_a_file(kind):
    assert Network.parse({"kind": kind, "time_input": None}).time_input is None
    with pytest.raises(ValueError, match="time_input"):
        Network.parse({"kind": kind, "time_input": "seconds"})
