"""A run that has not ended is a model too: its student as a checkpoint has it."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tests.cli.conftest import TEACHER

from fewstep import begun, load

NUM = ("--num", "4", "--seed", "3")


def images(path):
    return np.load(path)["arr_0"]


def test_it_is_sampled_as_the_finished_run_with_such_weights(done, runs, unfinished):
    """Checkpoint 3 of the finished run is what its student was saved from; one of a run that is
    half done is told, and is another one.
    """
    done("sample", "runs/tiny", *NUM, "--out", "whole.npz")
    out = done("sample", "runs/tiny", *NUM, "--out", "three.npz", "--checkpoint", "3")
    assert "runs/tiny behind step 3 of 3" in out
    assert np.array_equal(images("whole.npz"), images("three.npz"))
    out = done("sample", "runs/half", *NUM, "--out", "half.npz")
    assert "runs/half behind step 2 of 3" in out
    done("sample", "runs/tiny", *NUM, "--out", "two.npz", "--checkpoint", "2")
    assert np.array_equal(images("half.npz"), images("two.npz"))
    assert not np.array_equal(images("half.npz"), images("whole.npz"))
    assert json.loads((unfinished / "status.json").read_text())["state"] == "stopped"
    assert not (unfinished / "student").exists()


def test_every_verb_that_takes_a_model_takes_it(done, runs, unfinished):
    done("evaluate", "runs/half", "--num", "20", "--measures", "diversity")
    done("compare", "runs/half,checkpoint=2", "runs/tiny", "--out", "x.png", "--num", "2")
    assert "behind step 2 of 3" in done("inspect", "runs/half")
    done("export", "runs/cd", "--checkpoint", "2", "--to", "diffusers", "--out", "there")
    assert Path("there", "model_index.json").is_file()


def test_in_python(done, runs, unfinished):
    said = []
    made = begun.load("runs/half", say=said.append)
    assert said == ["runs/half behind step 2 of 3"]
    same = load("runs/tiny", checkpoint=2).generate(num=2, seed=1)
    assert torch.equal(made.generate(num=2, seed=1), same)


def test_averages(done, runs):
    for ema in ("0.5", "0.9995"):
        for how in ([], ["--checkpoint", "newest"]):
            out = f"{ema}-{len(how)}.npz"
            done("sample", "runs/tiny", *NUM, "--ema", ema, "--out", out, *how)
        assert np.array_equal(images(f"{ema}-0.npz"), images(f"{ema}-2.npz"))
    assert not np.array_equal(images("0.5-0.npz"), images("0.9995-0.npz"))


def test_the_best_is_the_one_that_was_kept(done, runs, refused):
    words = [
        *TEACHER,
        "name=kept",
        "trainer.keep_best=health.held_out_loss",
        "trainer.health_every=1",
    ]
    done(*words, "trainer.save_every=1")
    log = [json.loads(line) for line in Path("runs/kept/log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["health.held_out_loss"] for line in log}
    best = min(scores, key=scores.get)
    out = done("sample", "runs/kept", *NUM, "--checkpoint", "best", "--out", "x.npz")
    assert f"behind step {best} of 3" in out
    refused(
        2,
        *("sample", "runs/tiny", "--checkpoint", "best", "--out", "x.npz"),
        says="runs/tiny: trainer.keep_best was not set, so none is the best",
    )


def test_what_is_not_there(refused, runs, unfinished):
    sample = ("sample", "runs/half", "--out", "x.npz")
    refused(2, *sample, "--checkpoint", "7", says="no checkpoint 7; it has: 2, newest, best")
    refused(2, *sample, "--checkpoint", "x", says="no checkpoint x; it has")
    refused(2, *sample, "--ema", "0.1", says="has no weights '0.1'; it has: 0.5, 0.9995")
    refused(
        2,
        *("sample", "digits_teacher", "--checkpoint", "best", "--out", "x.npz"),
        says="digits_teacher is no run, so it has no checkpoints",
    )
    file = unfinished / "checkpoints" / "step-00000002" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(2, *sample, says="no checkpoint of runs/half is whole")
    refused(2, *sample, "--checkpoint", "2", says="the checkpoint 2 of runs/half is damaged: ema")
    assert file.is_file()  # nothing is set aside by one who only looks
    shutil.rmtree(unfinished / "checkpoints")
    refused(2, *sample, says="runs/half has no checkpoint yet: train it further")
