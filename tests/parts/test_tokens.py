"""Tokenizers that are learned from captions."""

import pytest
import torch

from fewstep.data.dataset import Held
from fewstep.models.clip_text import clip_tokenizer
from fewstep.models.space import Text, Texts
from fewstep.parts.tokens import captions_of, learned_merges

pytest.importorskip("transformers")
CAPTIONS = ["a red circle", "a blue circle", "a red square", "Ein Haus, é 日本"] * 3


def test_the_most_frequent_pair_is_the_first():
    """ "ab" stands three times more often than any other pair."""
    merges = learned_merges(["abx aby abz", "cd cd"], 8)
    assert merges[0] == ("a", "b")
    assert ("c", "d</w>") in merges


def test_words_that_repeat_become_one_token():
    tokenizer = clip_tokenizer(learned_merges(CAPTIONS, 500))
    assert tokenizer.tokenize("a red circle") == ["a</w>", "red</w>", "circle</w>"]


def test_no_more_than_asked_for():
    whole = learned_merges(CAPTIONS, 500)
    assert learned_merges(CAPTIONS, 5) == whole[:5]
    assert learned_merges(CAPTIONS, 0) == []


def test_the_order_of_captions_does_not_count():
    assert learned_merges(CAPTIONS, 500) == learned_merges(CAPTIONS[::-1], 500)


def test_pairs_that_stand_once_are_left_apart():
    assert learned_merges(["qz", "ab", "ab"], 500) == [("a", "b</w>")]


@pytest.mark.parametrize("caption", ["a red circle", "ein haus, é 日本", "🙂 never seen"])
def test_bytes_round_trip(caption):
    tokenizer = clip_tokenizer(learned_merges(CAPTIONS, 500))
    again = tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True)
    assert again.replace(" ", "") == caption.replace(" ", "")


def test_all_captions_of_a_dataset():
    ids = torch.arange(2)
    one = Held({"caption": ["a", "b"]}, {"caption": Text()}, ids)
    assert captions_of(one) == ["a", "b"]
    values = {"caption": ["a", "b"], "captions": [["a", "c"], ["b"]]}
    several = Held(values, {"caption": Text(), "captions": Texts()}, ids)
    assert captions_of(several) == ["a", "c", "b"]
