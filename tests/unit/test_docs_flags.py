"""docs/operations.md tells every flag, as the settings define it."""

from __future__ import annotations

import re
from pathlib import Path

from router.settings import DemoSettings, RouterSettings, markdown_table, settings_of

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_tables_of_flags_are_those_of_the_settings() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("\n## Flags\n")[2]
    for table in (markdown_table(RouterSettings), markdown_table(DemoSettings, keys=False)):
        assert table in text, f"docs/operations.md lacks this table:\n\n{table}"


def test_the_list_of_what_can_change_at_run_time_is_that_of_the_settings() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("\n### Changing settings")[2]
    listed = text.partition(" compares -->\n")[2].partition("\n\n")[0]
    live = [f"`{each.name}`" for each in settings_of(RouterSettings) if each.live]
    assert re.split(r",\s", listed) == live, f"docs/operations.md lacks {', '.join(live)}"


def test_a_row_tells_flag_key_default_range_and_meaning() -> None:
    row = (
        "| `-p, --port N` | `port` | 30080 | 0 to 65535 | port to listen on; 0 picks a free port |"
    )
    assert f"{row}\n" in markdown_table(RouterSettings)
