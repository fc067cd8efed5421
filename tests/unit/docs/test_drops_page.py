"""The page of drop reasons says what the table says."""

from __future__ import annotations

from scripts.drops_page import PAGE, page


def test_the_page_of_drop_reasons_is_made_from_the_table() -> None:
    assert PAGE.read_text() == page(), "run python -m scripts.drops_page"
