"""gluon-aa doctor"""
from typing import Optional

import click
from tabulate import tabulate

from gluon_aa.cli.output import json_option, printer, write_result


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, json_path: Optional[str]) -> None:
    """What this machine, its versions and MXNet are like, and which known traps apply.

    Works where MXNet cannot load, and then ends with exit code 1, as it does where the compiled attention is wrong.
    """
    from gluon_aa.doctor import examine, rows
    found = examine()
    printer(json_path)(tabulate(rows(found), tablefmt='plain', maxcolwidths=[None, 100]))
    write_result(json_path, found)
    native = found['native_attention']
    ctx.exit(1 if found['mxnet']['error'] or (native['error'] and 'difference' in native) else 0)
