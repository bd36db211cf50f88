"""Laws that every measure obeys. A new file in the folder falls under them without being named."""

import math
from pathlib import Path

import pytest
import torch

from fewstep import plugins
from fewstep.data.shape_captions import COLOURS, caption_of
from fewstep.data.shapes import GREY, layer
from fewstep.metrics.features import Extracted, Extractor
from fewstep.metrics.measure import ImageSet, Measure, Scale, measures_by_default

MEASURES = {
    kind: cls for kind, cls in Measure.kinds().items() if cls.__module__.startswith("fewstep.")
}
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROWS, CLASSES = 90, 3


class Corner(Extractor):
    """Told from the brightest of the first three pixels; never wrong about `drawn` images."""

    name, classes = "corner", CLASSES

    def __init__(self, batch=512):
        self.batch = batch
        self.matrix = torch.randn(16, 5, generator=torch.Generator().manual_seed(7))

    def __call__(self, images, batch=None):
        parts = []
        for part in images.split(batch or self.batch):
            flat = part.flatten(1)
            parts.append((torch.tanh(flat @ self.matrix), flat[:, :CLASSES].argmax(1)))
        return Extracted(*(torch.cat(column) for column in zip(*parts)))


def drawn(seed, rows=ROWS):
    """Columns of images (rows, 1, 4, 4), whose class is the brightest of the first pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 * torch.rand(rows, 16, generator=generator)
    labels = torch.arange(rows) % CLASSES
    images[torch.arange(rows), labels] += 0.5
    images = images.view(rows, 1, 4, 4)
    captions = {"caption": ["x"] * rows, "captions": [("x",)] * rows}
    return {"image": images, "label": labels, **captions, "teacher": images.clone()}


def drawn_shapes(seed):
    """The same of data=shapes: captions say the colour, all else is even; the first of several
    says all.
    """
    row = torch.arange(ROWS)
    numbers = {"size": row // 3 % 2, "shape": row // 6 % 3, "place": row // 10}
    colour = torch.tensor([0, 2, 4])[row % CLASSES]
    generator = torch.Generator().manual_seed(seed)
    offset = 2 * torch.rand(ROWS, 2, generator=generator) - 1
    images = (GREY + layer({**numbers, "colour": colour}, offset.double())).float()
    captions = [caption_of({"colour": COLOURS[number]}) for number in colour.tolist()]
    several = [(f"{one}, number {i // CLASSES}", one) for i, one in enumerate(captions)]
    columns = {"caption": captions, "captions": several}
    return {"image": images, "label": row % CLASSES, **columns, "teacher": images}


def image_set(columns, extractor=None):
    return ImageSet(columns, extractor or Corner(), CLASSES)


def with_fault(columns, share, fault, reference):
    """The columns, a share of whose rows has a fault."""
    bad = torch.arange(ROWS) < round(share * ROWS)
    images, labels = columns["image"].clone(), columns["label"].clone()
    if fault == "noise":
        images[bad] = torch.rand(images.shape, generator=torch.Generator().manual_seed(3))[bad]
    elif fault == "collapse":
        images[bad] = images[labels][bad]  # rows 0, 1, 2 are of the classes 0, 1, 2
    elif fault == "mislabel":
        labels[bad] = (labels[bad] + 1) % CLASSES
    elif fault == "copies":
        images[bad] = reference["image"][bad]
    else:
        raise AssertionError(fault)
    # Rows of one class have one caption.
    captions = [columns["caption"][label] for label in labels.tolist()]
    return {**columns, "image": images, "label": labels, "caption": captions}


def shuffled(columns):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    rows = {name: columns[name][order] for name in ("image", "label", "teacher")}
    for name in ("caption", "captions"):
        rows[name] = [columns[name][i] for i in order.tolist()]
    return {**columns, **rows}


def images_for(kind, seed):
    """Those that a measure is for."""
    return drawn_shapes(seed) if "caption" in MEASURES[kind].needs else drawn(seed)


@pytest.fixture
def reference():
    return drawn(0)


@pytest.fixture
def samples():
    return drawn(1)


@pytest.mark.parametrize("kind", MEASURES)
class TestLaws:
    @pytest.fixture
    def reference(self, kind):
        return images_for(kind, 0)

    @pytest.fixture
    def samples(self, kind):
        return images_for(kind, 1)

    def test_the_reference_against_itself(self, kind, reference):
        found = MEASURES[kind]()(image_set(reference), image_set(reference))
        if MEASURES[kind].of_itself is None:  # each image would be its own neighbour
            assert kind == "kernel_distance"
            assert found < 0
        else:
            assert found == pytest.approx(MEASURES[kind].of_itself, abs=1e-6)

    def test_the_order_of_rows_is_nothing(self, kind, samples, reference):
        measure = MEASURES[kind]()
        found = measure(image_set(samples), image_set(reference))
        for one, other in (
            (shuffled(samples), reference),
            (samples, shuffled(reference)),
        ):
            again = measure(image_set(one), image_set(other))
            assert again == pytest.approx(found, rel=1e-6, abs=1e-6)

    def test_the_size_of_batches_is_nothing(self, kind, samples, reference):
        measure = MEASURES[kind]()
        found = measure(image_set(samples), image_set(reference))
        again = measure(image_set(samples, Corner(7)), image_set(reference, Corner(7)))
        assert again == pytest.approx(found, rel=1e-5, abs=1e-5)

    def test_the_more_images_have_its_fault_the_worse(self, kind, samples, reference):
        measure, scale = MEASURES[kind](), MEASURES[kind]().scale()
        ranks = []
        for share in (0, 1 / 3, 2 / 3, 1):
            bad = with_fault(samples, share, measure.fault, reference)
            value = measure(image_set(bad), image_set(reference))
            ranks.append(scale.rank(value))
        assert ranks == sorted(ranks)
        assert ranks[-1] > ranks[0] + 0.05

    def test_it_reads_what_it_needs_alone(self, kind, samples, reference):
        """With all else taken away it has the same value; without one of its needs it says so,
        and without what it only uses it has a value, too.
        """
        measure = MEASURES[kind]()
        found = measure(image_set(samples), image_set(reference))
        reads = (*measure.needs, *measure.uses)
        owned = {"image"} | {need for need in reads if need in samples}
        asked = {need.partition(".")[2] for need in reads if "." in need}
        bare = {name: samples[name] for name in owned}
        other = {name: reference[name] for name in asked}
        network = Corner() if {"features", "classes"} & set(measure.needs) else None
        kept = ImageSet(other, network, CLASSES)
        assert measure.missing(bare, kept) is None
        assert measure(ImageSet(bare, network, CLASSES), kept) == found
        for use in measure.uses:
            assert use not in measure.needs
            owner, _, name = use.rpartition(".")
            mine, its = ({k: v for k, v in one.items() if k != name} for one in (bare, other))
            one, two = (bare, its) if owner else (mine, other)
            assert measure.missing(one, ImageSet(two, network, CLASSES)) is None
            value = measure(ImageSet(one, network, CLASSES), ImageSet(two, network, CLASSES))
            assert math.isfinite(value)
            assert value != found
        for need in measure.needs:
            owner, _, name = need.rpartition(".")
            if need in ("features", "classes"):
                reason = measure.missing(bare, ImageSet(other, None, CLASSES))
                assert reason == "there is no network for features"
            elif owner:
                left = {key: value for key, value in other.items() if key != name}
                reason = measure.missing(bare, ImageSet(left, network, CLASSES))
                assert reason == f"the reference has no {name.removesuffix('s')}s"
            else:
                reason = measure.missing(set(bare) - {name}, kept)
                assert reason == f"the samples have no {name}s"

    def test_it_is_described(self, kind):
        scale = MEASURES[kind]().scale()
        assert scale.name
        assert scale.about
        assert scale.source == ""
        assert MEASURES[kind].__doc__
        assert MEASURES[kind].parse(kind) == MEASURES[kind]()


def test_the_page_lists_them():
    """docs/metrics.md, with the headings of tables."""
    lines = []
    for kind, cls in sorted(MEASURES.items(), key=lambda one: one[1].place):
        when = "by default" if cls.by_default else "where chosen"
        lines.append(f"| `{kind}` | {cls().scale().heading} | {when} | {', '.join(cls.needs)} |")
    page = PAGE.read_text(encoding="utf-8")
    assert "|---|---|---|---|\n" + "\n".join(lines) + "\n\n" in page
    assert all(f"- `{kind}`: " in page for kind in MEASURES)


def test_the_example_of_the_page_works(tmp_path, monkeypatch, samples, reference):
    monkeypatch.setattr(plugins, "_loaded", {})
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "page_brightness.py").write_text(page.split("```python\n")[1].split("```")[0])
    module = plugins.load(tmp_path / "page_brightness.py")
    measure = Measure.parse({"kind": "brightness", "power": 2})
    assert isinstance(measure, module.Brightness)
    found = measure(image_set(samples), image_set(reference))
    expected = (samples["image"] ** 2).mean() - (reference["image"] ** 2).mean()
    assert found == pytest.approx(abs(expected.item()))


def test_the_first_by_default():
    """The first decides which solver is best, so it is not left to the alphabet."""
    names = [type(measure).__name__ for measure in measures_by_default()]
    assert names[:3] == ["Frechet", "Confirmed", "Diversity"]
    assert "Authenticity" not in names


def test_a_classifier_of_other_classes(samples, reference):
    measure = MEASURES["confirmed"]()
    other = ImageSet(reference, Corner(), CLASSES + 1)
    assert measure.missing(samples, other) == "corner tells 3 classes, not 4"
    network = Corner()
    network.classes = 0
    reason = measure.missing(samples, ImageSet(reference, network, CLASSES))
    assert reason == "corner tells no classes, not 3"


def test_what_is_kept_is_worked_out_once(reference):
    calls = []

    def length(images):
        calls.append(images)
        return len(images)

    images = image_set(reference)
    assert (images.kept(length), images.kept(length), len(calls)) == (ROWS, ROWS, 1)
    assert image_set(reference).kept(length) == ROWS
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("scale", "heading", "shown"),
    [
        (Scale("distance"), "distance ↓", "0.50"),
        (Scale("confirmed", "%", "higher", 1), "confirmed ↑", "50.0%"),
        (Scale("delay", "ms", "lower", 0), "delay in ms ↓", "0"),
    ],
)
def test_how_values_are_read(scale, heading, shown):
    assert scale.heading == heading
    assert scale.shown(0.5) == shown
    assert scale.shown(None) == ""
    better, worse = (1.0, 2.0) if scale.better == "lower" else (2.0, 1.0)
    assert scale.rank(better) < scale.rank(worse)
