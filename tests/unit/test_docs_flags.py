"""docs/operations.md tells every flag, as the settings define it."""

from __future__ import annotations

from pathlib import Path

from router.settings import DemoSettings, RouterSettings, markdown_table

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_tables_of_flags_are_those_of_the_settings() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("\n## Flags\n")[2]
    for table in (markdown_table(RouterSettings), markdown_table(DemoSettings, keys=False)):
        assert table in text, f"docs/operations.md lacks this table:\n\n{table}"


def test_a_row_tells_flag_key_default_range_and_meaning() -> None:
    row = "| `--port N` | `port` | 30080 | 0 to 65535 | port to listen on; 0 picks a free port |\n"
    assert row in markdown_table(RouterSettings)
