"""The training of a text encoder: its loss, what is saved and taken up."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny_parts import TINY_CLIP

from fewstep import Run, distil, load
from fewstep.data.digits import Digits
from fewstep.data.shapes import Shapes
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.learning.batch import Batch
from fewstep.learning.method import Clock
from fewstep.models.classifier import ClassifierNetwork
from fewstep.models.folder import load_codec, load_conditioner
from fewstep.parts.clip import Clip, Contrastive, FreshClip, info_nce, told_apart
from fewstep.training.config import TrainerConfig
from fewstep.training.log import read_log
from fewstep.training.optimizers import AdamW

pytest.importorskip("transformers")
SHAPES = Shapes(num=400)
FRESH = FreshClip(TINY_CLIP, ClassifierNetwork(channels=4, features=16, dropout=0.0), merges=64)


def run_of(**changes):
    options = {
        "steps": 80,
        "batch": 32,
        "device": "cpu",
        "log_every": 1,
        "save_every": 20,
        "optimizer": AdamW(lr=1e-2),
        "ema": (0.9,),
    }
    config = TrainerConfig(**{**options, **changes})
    return Run(SHAPES, Contrastive(rows=16), FRESH, trainer=config)


@pytest.fixture(scope="module")
def fresh():
    return FRESH.load_for(SHAPES.dataset(), 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return distil(run_of(), tmp_path_factory.mktemp("runs") / "run", progress=False)


def batch_of(model, captions, rows=None):
    rows = range(len(captions)) if rows is None else rows
    x = torch.randn(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    cond = model.conditioner({"caption": captions})
    return Batch(cond, Draws(5, rows), (3, 32, 32), x)


class TestLoss:
    """InfoNCE, where equal captions are no wrong answers to each other."""

    def test_against_plain_numbers(self):
        """Rows 0 and 2 have one caption."""
        logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)) * 3
        tokens = torch.tensor([[1, 2], [1, 3], [1, 2], [4, 4]])
        given = logits.numpy().astype(np.float64)
        expected = []
        for i in range(4):
            others = [j for j in range(4) if j == i or tokens[j].tolist() != tokens[i].tolist()]
            captions = np.log(sum(np.exp(given[i, j]) for j in others)) - given[i, i]
            pictures = np.log(sum(np.exp(given[j, i]) for j in others)) - given[i, i]
            expected.append((captions + pictures) / 2)
        found = info_nce(told_apart(logits, tokens))
        assert np.allclose(found.numpy(), expected, rtol=1e-5)
        assert not np.allclose(info_nce(logits).numpy(), expected, rtol=1e-2)

    def test_without_repeats_it_is_transformers_own(self):
        from transformers.models.clip.modeling_clip import image_text_contrastive_loss

        logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(4)) * 3
        found = info_nce(told_apart(logits, torch.arange(6)[:, None]))
        assert found.mean().item() == pytest.approx(image_text_contrastive_loss(logits).item())

    def test_where_all_are_equal_nothing_is_to_be_learned(self):
        logits = torch.randn(3, 3, requires_grad=True)
        loss = info_nce(told_apart(logits, torch.ones(3, 2)))
        loss.sum().backward()
        assert loss.tolist() == [0, 0, 0]
        assert logits.grad.abs().max() == 0

    def test_it_is_what_it_says(self, fresh):
        captions = ["a red circle", "a blue square", "a red circle", "a small shape"]
        batch = batch_of(fresh, captions)
        net = fresh.network
        found = Contrastive().loss(Contrastive().build_nets(fresh, None), batch, Clock(0, 1, 4))
        pictures = F.normalize(net.heads.pictures(batch.data))
        states = net.text.module(net.text.tokens(captions)).pooler_output  # all 77 tokens
        texts = F.normalize(states @ net.heads.projection.weight.T)
        scale = math.exp(net.heads.log_scale.item())
        assert scale == pytest.approx(1 / 0.07, rel=1e-5)
        expected = info_nce(told_apart(scale * pictures @ texts.T, batch.cond["tokens"]))
        assert torch.allclose(found.terms["contrastive"], expected, atol=1e-4)
        assert found.notes["scale"].tolist() == pytest.approx([scale] * 4)

    def test_rows_of_other_groups_do_not_count(self, fresh):
        """Two groups, and a cut one as a held-out set may have it."""
        captions = SHAPES.dataset().rows(torch.arange(10), ["caption"])["caption"]
        method = Contrastive(rows=4)
        assert method.group() == 4
        nets = method.build_nets(fresh, None)
        whole = batch_of(fresh, captions)
        found = method.loss(nets, whole, Clock(0, 1, 10)).terms["contrastive"]
        for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
            tokens = Cond({"tokens": whole.cond["tokens"][rows]})
            part = Batch(tokens, whole.draws, whole.shape, whole.data[rows])
            alone = method.loss(nets, part, Clock(0, 1, 4)).terms["contrastive"]
            assert torch.allclose(found[rows], alone, atol=1e-5)

    def test_the_temperature_is_bounded(self, fresh):
        net = fresh.network
        before = net.heads.log_scale.item()
        with torch.no_grad():
            net.heads.log_scale.fill_(9.0)
            assert net.scale().item() == pytest.approx(100)
            net.heads.log_scale.fill_(before)


class TestFresh:
    """The tokenizer is learned from the captions; the encoder's configuration follows it."""

    def test_configuration(self, fresh):
        config, tokenizer = fresh.network.text.module.config, fresh.network.text.clip_tokenizer()
        assert config.vocab_size == len(tokenizer)
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == config.pad_token_id == tokenizer.eos_token_id
        assert "circle</w>" in tokenizer.get_vocab()

    def test_words_of_captions_are_tokens(self, fresh):
        tokens = fresh.network.text.tokens(["a red circle"])[0]
        end = fresh.network.text.module.config.eos_token_id
        assert (tokens != end).sum() == 4

    def test_its_size(self, fresh):
        assert sum(parameter.numel() for parameter in fresh.network.parameters()) < 50_000

    def test_the_seed(self, fresh):
        again = FRESH.load_for(SHAPES.dataset(), 0).network.state_dict()
        other = FRESH.load_for(SHAPES.dataset(), 1).network.state_dict()
        name = "text.module.embeddings.token_embedding.weight"
        for key, value in fresh.network.state_dict().items():
            assert torch.equal(again[key], value)
        assert not torch.equal(other[name], again[name])

    def test_without_captions_each_byte_is_a_token(self):
        found = FRESH.load(SHAPES.dataset().space, 0)
        assert found.network.text.module.config.vocab_size == 514

    def test_unfit_data(self):
        with pytest.raises(ValueError, match="needs images with captions, the data has image"):
            FRESH.load(Digits(limit=8).dataset().space, 0)

    def test_a_batch_that_cuts_groups(self, tmp_path):
        run = run_of(micro_batch=8)
        with pytest.raises(ValueError, match="compares 16 rows with each other"):
            distil(run, tmp_path / "run", progress=False)


class TestTrained:
    """What a finished run has learned, and holds."""

    def test_pictures_and_captions_find_each_other(self, made):
        lines = read_log(made.folder / "log.jsonl")
        first = np.mean([line["contrastive"] for line in lines[:5]])
        last = np.mean([line["contrastive"] for line in lines[-5:]])
        assert last < 0.8 * first, (first, last)

    def test_similarities(self, made):
        dataset = SHAPES.dataset()
        rows = dataset.rows(torch.arange(6))
        found = made.student.similarities(rows["image"].float() / 255, rows["caption"][:4])
        net = made.student.network
        pictures = net.of_pictures(rows["image"].float() / 255 * 2 - 1)
        texts = net.of_text(net.text.tokens(rows["caption"][:4]))
        assert found.shape == (6, 4)
        assert torch.allclose(found, F.cosine_similarity(pictures[:, None], texts[None], dim=2))

    def test_as_a_conditioner(self, made):
        text = load_conditioner(made.folder)
        cond = text({"caption": ["a red circle", ""]})
        mine = made.student.network.text({"caption": ["a red circle", ""]})
        assert torch.equal(cond["text"], mine["text"])
        assert cond.is_null().tolist() == [False, True]
        assert not any(parameter.requires_grad for parameter in text.parameters())

    def test_a_finished_run_is_read(self, made):
        again = distil(run_of(), made.folder, progress=False)
        assert again.already
        assert isinstance(again.student, Clip)
        assert again.student.shape == (3, 32, 32)
        assert again.student.card == made.student.card
        state = made.student.network.state_dict()
        for name, tensor in again.student.network.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_it_is_nothing_else(self, made):
        with pytest.raises(ValueError, match="does not describe a diffusion model"):
            load(made.folder)
        with pytest.raises(ValueError, match="holds no codec"):
            load_codec(made.folder)
        with pytest.raises(ValueError, match="holds no trained text encoder"):
            Clip.load("digits_teacher")

    def test_heads_of_another_size(self, made, tmp_path):
        made.student.save(tmp_path / "copy")
        path = tmp_path / "copy" / "model.json"
        path.write_text(path.read_text().replace('"features": 16', '"features": 8'))
        with pytest.raises(ValueError, match=r"does not fit its model\.json"):
            Clip.load(tmp_path / "copy")


def test_a_run_that_was_stopped_has_the_same_bits(tmp_path):
    def stop(seen):
        if seen.done == 2:
            raise KeyboardInterrupt

    run = run_of(steps=4, save_every=1)
    straight = distil(run, tmp_path / "straight", progress=False)
    with pytest.raises(KeyboardInterrupt):
        distil(run, tmp_path / "stopped", observers=[stop], progress=False)
    again = distil(run, tmp_path / "stopped", progress=False)
    state = straight.student.network.state_dict()
    for name, tensor in again.student.network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_smaller_passes_give_the_same_gradient(tmp_path):
    """Two passes of whole groups, up to rounding."""
    whole = distil(run_of(steps=2), tmp_path / "whole", progress=False)
    parts = distil(run_of(steps=2, micro_batch=16), tmp_path / "parts", progress=False)
    lines = [read_log(one.folder / "log.jsonl") for one in (whole, parts)]
    for name in ("contrastive", "norm.student"):
        assert lines[0][1][name] == pytest.approx(lines[1][1][name], rel=1e-3)
