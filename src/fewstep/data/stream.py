"""`Stream`: a dataset as an endless sequence of batches in a fixed random order."""

import torch
from torch import Tensor

from fewstep.data.source import Dataset
from fewstep.diffusion.draws import Draws
from fewstep.learning.batch import Batch
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner


class Stream:
    """Row r of batch k is a pure function of (seed, k, r): no state to save, and any part of a
    batch can be asked for.

    Position k·batch + r walks through one random permutation per epoch; a batch may cross into the
    next one.
    """

    def __init__(
        self, dataset: Dataset, codec: Codec, conditioner: Conditioner, seed: int, batch: int
    ):
        self.dataset, self.codec, self.conditioner = dataset, codec, conditioner
        self.seed, self.batch = seed, batch
        self.fingerprint = dataset.fingerprint()
        self._orders: dict[int, Tensor] = {}

    def ids(self, number: int, rows: range) -> Tensor:
        """The dataset indices of these rows of batch `number`."""
        size = len(self.dataset)
        first, last = number * self.batch + rows.start, number * self.batch + rows.stop - 1
        epochs = range(first // size, last // size + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        start = first - epochs.start * size
        return order[start : start + len(rows)]

    def __call__(self, number: int, rows: range, draws: Draws) -> Batch:
        """Rows of batch `number`, in model space, on the device of the draws."""
        index = self.ids(number, rows)
        labels = None if self.dataset.labels is None else self.dataset.labels[index]
        images = self.dataset.floats(index)
        if self.dataset.flip:
            mirrored = Draws(self.seed, rows, stream="flip", step=number).uniform() < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        x0 = self.codec.encode(images).to(draws.device, non_blocking=True)
        return Batch(self.conditioner(labels).to(draws.device), draws, tuple(x0.shape[1:]), x0)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            draws = Draws(self.seed, range(len(self.dataset)), stream="order", step=epoch)
            self._orders[epoch] = draws.uniform().argsort(stable=True)
        return self._orders[epoch]
