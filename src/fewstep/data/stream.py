"""`Stream`: a dataset as an endless sequence of batches in a fixed random order."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.data.dataset import Dataset, Rows
from fewstep.data.reader import Reader
from fewstep.diffusion.conditioning import Cond
from fewstep.diffusion.draws import Draws
from fewstep.learning.batch import Batch
from fewstep.models.codec import CodecModule
from fewstep.models.conditioner import ConditionerModule


class Stream:
    """Row r of batch k is a pure function of (seed, k, r): no state to save, and any part of a
    batch can be asked for.

    Position k·batch + r walks through one random permutation per epoch; a batch may cross into the
    next one. Rows move to the device of the draws as they are stored (bytes, numbers, texts) and
    become samples and conditions there. shape: of a sample in model space; needed where the data
    holds none (prompts only). workers: processes that read `share`, the rows of each batch that
    this process wants (default: all), ahead of their use; they change no bit.
    """

    def __init__(
        self,
        dataset: Dataset,
        codec: CodecModule,
        conditioner: ConditionerModule,
        seed: int,
        batch: int,
        shape: tuple[int, ...] | None = None,
        workers: int = 0,
        share: range | None = None,
    ):
        if not len(dataset):
            raise ValueError("no rows to train on")
        self.dataset, self.codec, self.conditioner = dataset, codec, conditioner
        self.seed, self.batch = seed, batch
        self.fingerprint = dataset.fingerprint()
        self.shape = shape
        self._orders: dict[int, Tensor] = {}
        self._read = Reader(self.rows, share or range(batch), 0 if dataset.in_memory else workers)

    def on(self, dataset: Dataset, seed: int, batch: int) -> Stream:
        """A stream of other rows into the same model space."""
        return Stream(dataset, self.codec, self.conditioner, seed, batch, self.shape)

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self._read.close()

    def ids(self, number: int, rows: range) -> Tensor:
        """The dataset indices of these rows of batch `number`."""
        size = len(self.dataset)
        first, last = number * self.batch + rows.start, number * self.batch + rows.stop - 1
        epochs = range(first // size, last // size + 1)
        order = torch.cat([self._order(epoch) for epoch in epochs])
        start = first - epochs.start * size
        return order[start : start + len(rows)]

    def rows(self, number: int, rows: range) -> Rows:
        """These rows of batch `number` as they are stored."""
        return self.dataset.drawn(self.ids(number, rows), self.seed, number, rows)

    def __call__(self, number: int, rows: range, draws: Draws) -> Batch:
        """Rows of batch `number`, in model space, on the device of the draws."""
        read = self._read(number, rows, pinned=draws.device.type == "cuda")
        for name, column in read.items():
            if isinstance(column, Tensor):
                read[name] = column.to(draws.device, non_blocking=True)
        x0 = self._sample(read, draws)
        shape = self.shape if x0 is None else tuple(x0.shape[1:])
        assert shape is not None, "rows without samples, and nobody said the shape"
        return Batch(self._condition(read, draws.device), draws, shape, x0)

    @torch.no_grad()
    def _sample(self, read: Rows, draws: Draws) -> Tensor | None:
        """Latents as they are stored, or drawn from their moments; images through the codec; or
        nothing.
        """
        if "latent" in read:
            return read["latent"]
        if "moments" in read:
            return self.codec.latents(read["moments"].float(), draws.fork("codec"))
        if "image" not in read:
            return None
        images = read["image"].float() / 255
        return self.codec.to(draws.device).encode(images, draws.fork("codec"))

    @torch.no_grad()
    def _condition(self, read: Rows, device: torch.device) -> Cond:
        """Embeddings of a cache as they are stored, by the name that the conditioner has for them;
        else what the conditioner makes of the rows.
        """
        made_by, mine = self.dataset.made_by, self.conditioner
        if made_by is None or "embedding" not in read or "caption" not in mine.spec.reads:
            return mine.to(device)(read).to(device)
        (name,) = mine.columns
        null = {} if made_by.null is None else {name: made_by.null.float()}
        return Cond({name: read["embedding"].float()}, null).to(device)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            draws = Draws(self.seed, range(len(self.dataset)), stream="order", step=epoch)
            self._orders[epoch] = draws.uniform().argsort(stable=True)
        return self._orders[epoch]
