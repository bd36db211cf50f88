"""What the pages point to is there: files, and tests by their names."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@functools.cache
def named_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def anchors(page):
    """The anchors of a page's headings, as Markdown viewers make them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            words = re.sub(r"[^\w\s-]", "", line.lstrip("# ").lower())
            found.add(f"#{words.replace(' ', '-')}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        there = (page.parent / target).resolve()
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tests_that_are_named_exist(page):
    for path, name in TEST.findall(page.read_text(encoding="utf-8")):
        assert name in named_in(path), f"{path}::{name}"
