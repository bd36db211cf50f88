"""What every run says first."""

import re

SUMMARY = re.compile(
    r"data: [\d,]+ rows of .*|\w+: .* parameters|[\d,]+ steps? of \d+ rows in \w+ on .*"
)


def beside_summary(lines):
    """The lines without those of the summary, of which there are three."""
    left = [line for line in lines if not SUMMARY.fullmatch(line)]
    assert len(lines) - len(left) == 3, lines
    return left
