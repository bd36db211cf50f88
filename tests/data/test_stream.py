"""`Stream`: the order of training images is a pure function of (seed, batch number, row)."""

import pytest
import torch

from fewstep.data.dataset import held_images
from fewstep.data.digits import Digits
from fewstep.data.stream import Stream
from fewstep.diffusion.draws import Draws
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Labels, Unconditional
from fewstep.training.start import held_out

SIZE = 50


@pytest.fixture(scope="module")
def dataset():
    return Digits(limit=SIZE).dataset()


def stream_of(dataset, seed=0, batch=16, conditioner=None):
    return Stream(dataset, Pixels().build(), (conditioner or Labels(10)).build(), seed, batch)


def walk(stream, images):
    """The ids of the first `images` positions, batch after batch."""
    count = -(-images // stream.batch)
    return torch.cat([stream.ids(k, range(stream.batch)) for k in range(count)])[:images]


@pytest.mark.parametrize("batch", [1, 7, 16, 50, 64, 130])
def test_each_epoch_visits_every_image_once(dataset, batch):
    """Also where a batch crosses into the next epoch, or holds several."""
    epochs = walk(stream_of(dataset, batch=batch), 4 * SIZE).view(4, SIZE)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(SIZE))


def test_the_order_does_not_depend_on_the_batch(dataset):
    orders = [walk(stream_of(dataset, batch=batch), 150).tolist() for batch in (1, 16, 64)]
    assert orders[0] == orders[1] == orders[2]


def test_the_order_differs_by_epoch_and_by_seed(dataset):
    first, second = walk(stream_of(dataset), 2 * SIZE).view(2, SIZE).tolist()
    other = walk(stream_of(dataset, seed=1), SIZE).tolist()
    in_place = list(range(SIZE))
    assert len({tuple(order) for order in (first, second, other, in_place)}) == 4


def test_any_batch_can_be_asked_for_first(dataset):
    """Nothing is saved for a resumed run, so batch 40 is the same with and without the 39 before
    it.
    """
    used = stream_of(dataset)
    for number in range(40):
        used.ids(number, range(16))
    assert used.ids(40, range(16)).tolist() == stream_of(dataset).ids(40, range(16)).tolist()
    assert used.ids(3, range(16)).tolist() == stream_of(dataset).ids(3, range(16)).tolist()


@pytest.mark.parametrize("number", [0, 2, 3, 9])
@pytest.mark.parametrize(
    "rows", [range(0, 16), range(5, 16), range(0, 1), range(15, 16), range(3, 11)]
)
def test_rows_of_a_batch_equal_the_whole(dataset, number, rows):
    stream = stream_of(dataset)
    whole = stream(number, range(16), Draws(0, range(16)))
    part = stream(number, rows, Draws(0, rows))
    assert torch.equal(part.x0, whole.x0[rows.start : rows.stop])
    assert torch.equal(part.cond["label"], whole.cond["label"][rows.start : rows.stop])
    assert (
        stream.ids(number, rows).tolist()
        == stream.ids(number, range(16))[rows.start : rows.stop].tolist()
    )


def test_a_batch_holds_its_images_in_model_space(dataset):
    stream = stream_of(dataset)
    draws = Draws(0, range(16))
    batch = stream(5, range(16), draws)
    index = stream.ids(5, range(16))
    assert torch.equal(batch.x0, dataset.images[index].float() / 255 * 2 - 1)
    assert torch.equal(batch.cond["label"], dataset.labels[index])
    assert batch.cond.null["label"].tolist() == [10]
    assert batch.draws is draws
    assert batch.shape == (1, 8, 8)
    assert (batch.x0.dtype, batch.cond["label"].dtype) == (torch.float32, torch.int64)


def test_labels_are_left_out_where_the_model_takes_none(dataset):
    batch = stream_of(dataset, conditioner=Unconditional())(0, range(4), Draws(0, range(4)))
    assert dict(batch.cond.values) == {}


def test_one_image_is_enough():
    dataset = Digits(limit=1).dataset()
    stream = stream_of(dataset, batch=5)
    assert stream.ids(3, range(5)).tolist() == [0] * 5
    assert stream(0, range(5), Draws(0, range(5))).x0.shape == (5, 1, 8, 8)


def test_the_memory_of_orders_stays_small(dataset):
    stream = stream_of(dataset, batch=SIZE)
    for number in range(200):
        stream.ids(number, range(SIZE))
    assert len(stream._orders) <= 3


def test_the_fingerprint_is_the_dataset_s(dataset):
    assert stream_of(dataset).fingerprint == dataset.fingerprint()


class TestFlip:
    @pytest.fixture
    def mirrored(self, dataset):
        return held_images(dataset.images, dataset.labels, 10, flip=True)

    @staticmethod
    def flipped(stream, number, rows=range(16)):
        """Which rows are mirrored; every row is one or the other."""
        index = stream.ids(number, rows)
        plain = stream.dataset.floats(index) * 2 - 1
        found = stream(number, rows, Draws(0, rows)).x0
        turned = (found == plain.flip(-1)).all((1, 2, 3))
        assert (turned | (found == plain).all((1, 2, 3))).all()
        assert (
            not (plain == plain.flip(-1)).all((1, 2, 3)).any()
        )  # no picture is its own mirror image
        return turned

    def test_half_of_the_rows(self, mirrored):
        turned = torch.cat([self.flipped(stream_of(mirrored), number) for number in range(100)])
        assert len(turned) == 1600
        assert abs(turned.float().mean() - 0.5) < 4 * 0.5 / 40

    def test_none_without_it(self, dataset):
        assert not any(self.flipped(stream_of(dataset), number).any() for number in range(20))

    @pytest.mark.parametrize("number", [0, 3, 7])
    @pytest.mark.parametrize("rows", [range(0, 5), range(5, 16), range(15, 16)])
    def test_rows_of_a_batch_equal_the_whole(self, mirrored, number, rows):
        whole = stream_of(mirrored)(number, range(16), Draws(0, range(16)))
        part = stream_of(mirrored)(number, rows, Draws(0, rows))
        assert torch.equal(part.x0, whole.x0[rows.start : rows.stop])

    def test_each_epoch_and_seed_mirrors_others(self, mirrored):
        by_epoch = [
            self.flipped(stream_of(mirrored, batch=SIZE), k, range(SIZE)).tolist() for k in range(3)
        ]
        other = self.flipped(stream_of(mirrored, seed=1, batch=SIZE), 0, range(SIZE)).tolist()
        assert len({tuple(rows) for rows in (*by_epoch, other)}) == 4

    def test_order_labels_and_noise_stay(self, dataset, mirrored):
        one, other = (
            stream_of(data)(4, range(16), Draws(0, range(16))) for data in (dataset, mirrored)
        )
        assert torch.equal(one.cond["label"], other.cond["label"])
        assert torch.equal(one.noise(), other.noise())
        assert (
            stream_of(dataset).ids(4, range(16)).tolist()
            == stream_of(mirrored).ids(4, range(16)).tolist()
        )

    def test_the_images_of_the_dataset_stay(self, mirrored):
        before = mirrored.images.clone()
        stream_of(mirrored)(0, range(16), Draws(0, range(16)))
        assert torch.equal(mirrored.images, before)
        assert mirrored.select(torch.arange(3)).flip


def test_held_out_images_are_never_mirrored():
    source = Digits(flip=True)
    assert source.dataset().flip
    held = held_out(source, source.read())
    assert torch.equal(held.images, Digits().dataset("test").images)
    stream = stream_of(held)
    for number in range(10):
        index = stream.ids(number, range(16))
        assert torch.equal(
            stream(number, range(16), Draws(0, range(16))).x0, held.floats(index) * 2 - 1
        )
