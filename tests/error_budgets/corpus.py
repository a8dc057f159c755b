"""Texts with the marks of many raters, and what a small sentiment model says of them.

They are in the source archive of the package vaderSentiment: C. J. Hutto and E. Gilbert, "VADER: A parsimonious
rule-based model for sentiment analysis of social media text", ICWSM 2014.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
FILES = {
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "films": "movieReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
Score = Callable[[str], float]


class Answer(NamedTuple):
    """The model's opinion of a text."""

    confidence: float
    """Absolute value of its score, from 0 to 1."""
    is_wrong: bool
    """True if the sign of the score is not that of the mean mark."""


def archive() -> Path:
    """Return the path of the source archive, which `make` downloads."""
    return Path(sys.prefix) / "corpora" / ARCHIVE


def read_answers(name: str, at_most: int | None = None) -> Sequence[Answer]:
    """Return the answers of the model to the texts of a corpus; to `at_most` of them, spread evenly over its file."""
    with tarfile.open(archive()) as outer:
        resources = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert resources is not None
        with tarfile.open(fileobj=io.BytesIO(resources.read())) as inner:
            member = inner.extractfile(f"hutto_ICWSM_2014/{FILES[name]}_GroundTruth.txt")
            assert member is not None
            lines = member.read().decode("utf-8", "replace").splitlines()
        score = _model(outer)
    chosen = lines if at_most is None else [lines[i * len(lines) // at_most] for i in range(at_most)]
    return [_answer(line, score) for line in chosen]


def _answer(line: str, score: Score) -> Answer:
    _, mark, text = line.split("\t", 2)
    value = score(text)
    return Answer(abs(value), _sign(value) != _sign(float(mark)))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _model(outer: tarfile.TarFile) -> Score:
    """Return the function that gives the score of a text, from -1 to 1."""
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in outer.getnames() if name.startswith("vaderSentiment-3.3.2/vaderSentiment/")]
        outer.extractall(folder, [outer.getmember(name) for name in names], filter="data")
        path = Path(folder) / "vaderSentiment-3.3.2" / "vaderSentiment" / "vaderSentiment.py"
        spec = importlib.util.spec_from_file_location("vader_sentiment", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        analyzer = module.SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]
