"""Whether samples are as varied as the images that have the same caption, in what other captions of
these say.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from fewstep.metrics.authenticity import neighbours
from fewstep.metrics.measure import Fault, ImageSet, Measure


class Holder(NamedTuple):
    """A reference image that has a caption. place: its row. share: of its captions. beyond: what
    its first caption says behind that one.
    """

    place: int
    share: float
    beyond: str


@dataclass(frozen=True)
class UnsaidVariation(Measure):
    """The total variation between what samples show of what their caption leaves unsaid, and what
    the data do.

    Looked at are samples whose caption several reference images have, unlike in what their first
    caption says behind it: of "a hand" images of "a hand, red" and "a hand, blue". A sample shows
    what the one of them does that is nearest, pixel by pixel. ½ Σ |p - q| over all that is said so:
    p the share of samples, q what is expected of images drawn with one of their captions, as a
    training draws them. 0 is as varied as the data; one of k equally frequent values alone gives
    1 - 1/k, as does a blur of all of them. n samples of the data themselves give about
    √((k - 1) / (2 π n)), which is not taken off: compare equal numbers of samples.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption", "reference.image", "reference.captions")
    name: ClassVar[str] = "unsaid variation"
    digits: ClassVar[int] = 3
    about: ClassVar[str] = "total variation, to the data's, of what captions leave unsaid"
    place: ClassVar[int] = 80
    by_default: ClassVar[bool] = False  # captions of most data differ from image to image
    fault: ClassVar[Fault] = "collapse"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        known = reference.kept(_holders)
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, caption in enumerate(samples.columns["caption"]):
            if len({holder.beyond for holder in known.get(caption, ())}) > 1:
                rows[caption].append(row)
        if not rows:
            raise ValueError(
                "no caption of the samples leaves unsaid what others of its images say"
            )
        surplus: defaultdict[str, float] = defaultdict(float)  # to the expected numbers
        for caption, mine in rows.items():
            holders = known[caption]
            theirs = reference.images[[holder.place for holder in holders]]
            _, places = neighbours(
                samples.images[mine].flatten(1).double(), theirs.flatten(1).double()
            )
            for place in places.tolist():
                surplus[holders[place].beyond] += 1
            whole = sum(holder.share for holder in holders)
            for holder in holders:
                surplus[holder.beyond] -= len(mine) * holder.share / whole
        return sum(map(abs, surplus.values())) / 2 / sum(map(len, rows.values()))


def _holders(reference: ImageSet) -> Mapping[str, list[Holder]]:
    """The images that have each caption."""
    found: defaultdict[str, list[Holder]] = defaultdict(list)
    for place, captions in enumerate(reference.columns["captions"]):
        for caption in captions:
            beyond = captions[0].removeprefix(caption)
            found[caption].append(Holder(place, 1 / len(captions), beyond))
    return dict(found)
