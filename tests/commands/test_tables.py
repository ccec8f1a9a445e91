"""Tables: whole lines into a pipe, and nothing that steers a terminal."""

from __future__ import annotations

from kdcore.commands.tables import show_table


def test_a_row_is_one_line_however_long(capsys):
    show_table([{"name": "a", "text": "word " * 100}])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "word " * 99 in lines[-1]


def test_letters_that_steer_a_terminal_and_markup_are_shown_as_they_are(capsys):
    show_table([{"name": "\x1b[2J\x07wiped", "range": "[red]in [0, 1][/red]"}])
    row = capsys.readouterr().out.splitlines()[-1]
    assert "\x1b" not in row
    assert row.split() == ["?[2J?wiped", "[red]in", "[0,", "1][/red]"]


def test_no_rows_no_table(capsys):
    show_table([])
    assert capsys.readouterr().out == ""
