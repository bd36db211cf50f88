"""What every run says first."""

import re

SUMMARY = re.compile(
    r"data: [^:]*, [\d,]+ rows of .*|\w+ of .*: .* parameters|"
    r"[\d,]+ steps? of \d+ rows in \w+ on .*|"
    r"memory: weights and averages [\d,]+ MiB, gradients and optimizer about [\d,]+ MiB, .*"
)


def beside_summary(lines):
    """The lines without those of the summary, of which there are four."""
    left = [line for line in lines if not SUMMARY.fullmatch(line)]
    assert len(lines) - len(left) == 4, lines
    return left
