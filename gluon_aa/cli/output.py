"""--json, and printing that makes way for it."""
import json
import pathlib
from typing import Any, Callable, Optional

import click

from gluon_aa.errors import FailedError

STANDARD_OUTPUT = '-'

json_option = click.option('--json', 'json_path', metavar='PATH',
                           help='Write the result as JSON; - for standard output.')


def printer(json_path: Optional[str]) -> Callable[[str], None]:
    """Prints for people: to standard output, or to standard error where JSON goes to the former."""
    return lambda text: click.echo(text, err=json_path == STANDARD_OUTPUT)


def write_result(json_path: Optional[str], value: Any) -> None:
    """Write `value` where --json says, if anywhere."""
    if json_path is None:
        return
    if json_path == STANDARD_OUTPUT:
        click.echo(json.dumps(value, indent=2, allow_nan=False))
        return
    from gluon_aa.training import files
    try:
        files.write_json(pathlib.Path(json_path), value)
    except OSError as error:
        raise FailedError(f'cannot write {json_path}: {error.strerror}') from error
