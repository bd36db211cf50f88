"""Steps that were left out because something was not finite."""

import torch
from torch import Tensor

WINDOW = 100  # steps over which they are counted


class Skips:
    """Which of the last 100 steps had a bad update, counted on the device.

    flags: bool, by step modulo 100. numbers: of the first batch of each of these steps.
    """

    def __init__(self, device: torch.device):
        self.flags = torch.zeros(WINDOW, dtype=torch.bool, device=device)
        self.numbers = [0] * WINDOW

    def begin(self, step: int, number: int) -> None:
        """A step begins, with batch `number`; the one that was 100 steps before is forgotten."""
        self.flags[step % WINDOW].zero_()  # the host would wait while it sends "= False"
        self.numbers[step % WINDOW] = number

    def note(self, step: int, bad: Tensor) -> None:
        """One update of that step."""
        self.flags[step % WINDOW] |= bad

    def of(self, step: int) -> Tensor:
        """Whether it was left out: 1 or 0, 0-d, on the device."""
        return self.flags[step % WINDOW].float()

    def steps(self, step: int) -> list[int]:
        """The bad ones of the 100 steps up to this one; waits for the device."""
        places = self.flags.nonzero()[:, 0].tolist()
        return sorted(step - (step - place) % WINDOW for place in places)

    def number(self, step: int) -> int:
        """The first batch of one of these steps."""
        return self.numbers[step % WINDOW]
