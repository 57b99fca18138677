"""The ``box-policy`` command."""

from typing import Annotated

import typer

import box_policy
from box_policy.cli.check import check
from box_policy.cli.doctor import doctor
from box_policy.cli.explain import explain
from box_policy.cli.gate import gate
from box_policy.cli.gc import gc
from box_policy.cli.policy import app as policy
from box_policy.cli.run import run
from box_policy.cli.serve import serve
from box_policy.cli.status import status
from box_policy.cli.tail import tail

app = typer.Typer(
    help="Decides what a sandbox may connect to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"box-policy {box_policy.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("check")(check)
app.command("doctor")(doctor)
app.command("explain")(explain)
app.command("gate")(gate)
app.command("gc")(gc)
# What follows the program's name is the program's own.
app.command("run", context_settings={"allow_interspersed_args": False})(run)
app.command("serve")(serve)
app.add_typer(policy, name="policy")
app.command("status")(status)
app.command("tail")(tail)
