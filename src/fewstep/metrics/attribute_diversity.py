"""Whether what a caption leaves free is as varied as it should be: for data of drawn shapes."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import ClassVar

from fewstep.data.shape_captions import attributes_of, parsed, truth
from fewstep.data.shape_reader import agreed
from fewstep.metrics.caption_accuracy import readings
from fewstep.metrics.measure import Fault, ImageSet, Measure


@dataclass(frozen=True)
class AttributeDiversity(Measure):
    """The total variation between the attributes that captions leave free and their true
    distribution (data=shapes).

    Of each attribute, over the samples that follow their caption and whose caption does not say it:
    ½ Σ |p - q| over its k values, p the share of samples with that value, q what the data have,
    1/k (of two colours: even over those that the other one leaves). The mean over the attributes.
    0 is as varied as the data; one value alone gives 1 - 1/k. n samples of the data themselves
    give about √((k - 1) / (2 π n)), which is not taken off: compare equal numbers of samples.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption",)
    name: ClassVar[str] = "attribute variation"
    digits: ClassVar[int] = 3
    about: ClassVar[str] = (
        "total variation of the attributes that captions leave free, to the data's (drawn shapes)"
    )
    place: ClassVar[int] = 60
    by_default: ClassVar[bool] = False  # captions of other data say other things
    fault: ClassVar[Fault] = "collapse"

    def __call__(self, samples: ImageSet, reference: ImageSet) -> float:
        numbers: Counter[str] = Counter()
        surplus: dict[str, defaultdict[str, float]] = {}  # of values, to their expected numbers
        for caption, reading in zip(
            samples.columns["caption"], samples.kept(readings), strict=True
        ):
            said = parsed(caption)
            whole = agreed(said, reading)
            if whole is None:
                continue
            for name in attributes_of(said):
                if name in said:
                    continue
                numbers[name] += 1
                values = surplus.setdefault(name, defaultdict(float))
                values[whole[name]] += 1
                for value, probability in truth(name, said).items():
                    values[value] -= probability
        if not numbers:
            raise ValueError("no sample follows a caption that leaves something free")
        variations = []
        for name, values in surplus.items():
            variations.append(sum(map(abs, values.values())) / 2 / numbers[name])
        return sum(variations) / len(variations)
