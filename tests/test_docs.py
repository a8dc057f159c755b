"""The documentation says what the code does."""

from __future__ import annotations

import pytest

from pages import PARTS, ROOT, written


@pytest.mark.parametrize(("page", "part"), PARTS)
def test_a_page_that_comes_from_the_code_is_up_to_date(page: str, part: str) -> None:
    assert (ROOT / page).read_text() == written(page, part, PARTS[page, part]()), "run: make pages"
