"""What others wrote is shown as they wrote it: it is neither markup of ours nor a command for a terminal."""

from io import StringIO

import pytest
from rich.console import Console

from schemas.item import Item
from streaming.__main__ import ranking

TITLES = {
    "markup that ends nothing": ("Mug [/bold] red", "Mug [/bold] red"),
    "markup": ("[red]Mug[/red]", "[red]Mug[/red]"),
    "a link": ("[link=https://example.org]Mug[/link]", "[link=https://example.org]Mug[/link]"),
    "an emoji's name": ("Mug :smile:", "Mug :smile:"),
    "a terminal's command": ("Mug\x1b[2J\x1b]0;title\x07", "Mug[2J]0;title"),
    "a line feed": ("Mug\nred", "Mugred"),
    "from right to left": ("Mug \u202egniht", "Mug gniht"),
    "a backslash at the end": ("Mug \\", "Mug \\"),
}


@pytest.mark.parametrize(("title", "shown"), TITLES.values(), ids=TITLES)
def test_a_title_and_an_id_of_any_characters(title: str, shown: str) -> None:
    item_id = "[item]\\"
    out = StringIO()
    Console(file=out, width=120, force_terminal=True, color_system=None).print(
        ranking([(item_id, 1.5)], {item_id: Item(item_id, title)})
    )
    row = next(line for line in out.getvalue().splitlines() if "1.500" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["1", item_id, shown, "1.500"]
