"""`kdcore list`."""

from typer.testing import CliRunner

from kdcore.commands import app


def test_list_names_every_part_and_paper():
    done = CliRunner().invoke(app, ["list"])
    assert done.exit_code == 0
    assert "spherical_kd" in done.output
