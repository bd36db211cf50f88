"""`fewstep data`."""

from collections.abc import Sequence

from fewstep.choice import kind_of
from fewstep.cli.configure import source_of
from fewstep.cli.tables import print_facts
from fewstep.data.captions import every, told
from fewstep.data.labels import counts, empty_classes, listed
from fewstep.models.folder import load_conditioner
from fewstep.models.space import described


def check(source: str, overrides: Sequence[str] | None, model: str | None) -> None:
    """Reads all of a data source and says what was found."""
    chosen = source_of(source, overrides or [])
    reader = None if model is None else load_conditioner(model)
    everything = chosen.read()
    everything.verify()
    kept = chosen.choose(everything)
    print(f"kind: {kind_of(type(chosen))}")
    print_facts(everything.notes)
    if "image" in everything.columns:
        channels, height, width = everything.shape
        many = "s" if channels > 1 else ""
        print(f"images: {len(everything)} of {height}×{width}, {channels} channel{many}")
    else:
        print(f"rows: {len(everything)} of {described(everything.columns)}")
    if everything.labels is not None:
        print_facts(counts(everything.labels, everything.classes))
    print_facts(told(everything))
    if reader is not None and "caption" in everything.columns:
        captions = every(everything)
        cut = reader.truncated(captions)
        print(f"captions that {model} cannot read to their end: {cut:,} of {len(captions):,}")
    for split in ("train", "test"):
        print(f"split {split}: {len(chosen.choose(everything, split, empty=True))}")
    print(
        f"kept with these options: {len(kept)} (split {chosen.split}), "
        f"fingerprint {kept.fingerprint()}"
    )
    gone = empty_classes(kept.labels, kept.classes)
    if gone and gone != empty_classes(everything.labels, everything.classes):
        print(f"classes without images in what is kept: {listed(gone)}")
