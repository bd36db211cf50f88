"""Several captions of a picture: one is drawn for each row of each batch."""

import torch

from fewstep.data.dataset import Held, held_images
from fewstep.data.stream import Stream
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Unconditional
from fewstep.models.space import Image, Text, Texts

COUNTS = [1, 2, 5, 3] * 10
CAPTIONS = [tuple(f"{row}/{i}" for i in range(count)) for row, count in enumerate(COUNTS)]


def dataset(captions=CAPTIONS):
    images = torch.arange(len(captions), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    values = {"image": images, "caption": [several[0] for several in captions]}
    columns = {"image": Image((1, 2, 2)), "caption": Text(), "captions": Texts()}
    values["captions"] = captions
    return Held(values, columns, torch.arange(len(captions)))


def stream_of(rows, seed=0, batch=16):
    return Stream(rows, Pixels().build(), Unconditional().build(), seed, batch)


def test_rows_have_the_first_and_all():
    rows = dataset().rows(torch.tensor([2, 0]))
    assert rows["caption"] == ["2/0", "0/0"]
    assert rows["captions"] == [CAPTIONS[2], CAPTIONS[0]]


def test_one_is_drawn_of_those_of_the_row():
    stream = stream_of(dataset())
    seen = {row: set() for row in range(len(COUNTS))}
    for number in range(200):
        read = stream.rows(number, range(16))
        assert set(read) == {"image", "caption"}
        for row, caption in zip(stream.ids(number, range(16)).tolist(), read["caption"]):
            seen[row].add(caption)
    assert seen == {row: set(several) for row, several in enumerate(CAPTIONS)}


def test_each_is_as_likely():
    stream = stream_of(dataset([("a", "b", "c", "d")] * 16))
    drawn = [c for number in range(400) for c in stream.rows(number, range(16))["caption"]]
    for caption in "abcd":
        share = drawn.count(caption) / len(drawn)
        assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(drawn)) ** 0.5


def test_a_row_is_a_function_of_seed_batch_and_place():
    whole = stream_of(dataset()).rows(7, range(16))["caption"]
    for rows in (range(0, 5), range(5, 16), range(15, 16)):
        assert stream_of(dataset()).rows(7, rows)["caption"] == whole[rows.start : rows.stop]
    others = [
        stream_of(dataset(), seed=1).rows(7, range(16)),
        stream_of(dataset()).rows(8, range(16)),
    ]
    assert all(other["caption"] != whole for other in others)


def test_images_and_their_mirroring_do_not_depend_on_captions():
    several = dataset()
    plain = held_images(several.images, None, 0)
    for flip in (False, True):
        several.flip = plain.flip = flip
        one, other = (stream_of(rows).rows(3, range(16))["image"] for rows in (several, plain))
        assert torch.equal(one, other)


def test_the_fingerprint_knows_all_captions():
    other = [*CAPTIONS[:-1], (*CAPTIONS[-1][:-1], "else")]
    prints = {dataset(captions).fingerprint() for captions in (CAPTIONS, other)}
    assert len(prints) == 2
