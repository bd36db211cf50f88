"""Labels: words as numbers, what is counted, what are ids."""

import resource

import pytest
import torch

from fewstep.data.labels import (
    check_ids,
    counts,
    empty_classes,
    listed,
    numbered,
    rather_ids,
)


def test_whole_numbers_are_classes_and_other_words_count_in_order():
    assert numbered(["2", "10", "2"]) == ({"2": 2, "10": 10}, 11)
    assert numbered(["b", "a", "b"]) == ({"a": 0, "b": 1}, 2)
    assert numbered(["07", "2"]) == ({"07": 0, "2": 1}, 2)
    assert numbered(["20190101", "3"]) == ({"20190101": 0, "3": 1}, 2)
    assert numbered([]) == ({}, 0)


@pytest.mark.parametrize(
    ("largest", "distinct", "ids"),
    [
        (9, 1, False),
        (999, 1, False),
        (1000, 100, True),
        (1000, 101, False),
        (21840, 21841, False),
        (99_999, 100_000, False),
        (100_000, 100_001, True),
    ],
)
def test_rather_ids(largest, distinct, ids):
    assert rather_ids(largest, distinct) is ids


def test_as_many_labels_as_rows_are_ids():
    check_ids(1500, 1501, 3002, "x")
    with pytest.raises(ValueError, match=r"x goes up to 1500 with 1501 distinct .*in 3001 rows"):
        check_ids(1500, 1501, 3001, "x")
    check_ids(10, 11, 11, "few pictures, each of its own class")


def test_classes_without_images():
    labels = torch.tensor([1, 3, 3])
    assert empty_classes(labels, 5) == [0, 2, 4]
    assert empty_classes(None, 0) == []
    assert counts(labels, 5) == {
        "classes": "5, images in each: 0 1 0 2 0",
        "classes without images": "0, 2, 4",
    }
    assert counts(torch.tensor([0, 1]), 2) == {"classes": "2, images in each: 1 1"}


def test_many_classes_are_counted_together():
    labels = torch.arange(150).repeat(2)
    assert counts(labels, 150) == {"classes": "150, images in each: 2 to 2"}
    told = counts(torch.tensor([7, 7, 8]), 1000)
    assert told["classes"] == "1000, images in each: 0 to 2"
    assert told["classes without images"].endswith("101, … (998 in all)")


def test_memory_goes_with_the_labels_that_there_are():
    """Not with the largest of them: 10⁸ counts would be 800 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts(torch.tensor([3, 5]), 100)
    check = pytest.raises(ValueError, match="rather ids")
    with check:
        check_ids(10**15, 2, 2, "x")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 100 << 10  # kB


def test_names_are_listed_up_to_a_hundred():
    assert listed(["a", 1]) == "a, 1"
    assert listed(list(range(101))).endswith("98, 99, … (101 in all)")
