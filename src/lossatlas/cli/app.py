"""The command `lossatlas`: its subcommands, one file a group. Imports neither torch nor scikit-learn."""

from __future__ import annotations

from typing import Annotated

import typer

from lossatlas.cli import explore, findings, local, pair, presets, report, status, sweep
from lossatlas.cli.output import say

app = typer.Typer(
    name="lossatlas",
    help="Maps of neural-network loss landscapes: from one trained model to the phase diagram of a grid of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, so that nothing is wrapped or cut when piped
)
app.command()(presets.presets)
app.command()(sweep.plan)
app.command()(sweep.run)
app.command()(status.status)
app.command()(status.verify)
app.command()(sweep.cancel)
app.command()(sweep.worker)
app.command()(explore.phases)
app.command()(explore.figures)
app.command()(findings.findings)
app.command()(findings.advise)
app.command()(report.report)
app.command()(local.spectrum)
app.command()(local.line)
app.command()(local.surface)
app.command()(local.mine)
app.command()(pair.connect)
app.command()(pair.compare)
app.command()(pair.plane)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Maps of neural-network loss landscapes: from one trained model to the phase diagram of a grid of them."""
    if version:
        from importlib.metadata import version as version_of

        say(version_of("lossatlas"))
        raise typer.Exit
