"""--json, and printing that makes way for it."""
import json
import pathlib
from typing import Any, Callable, Optional

import click

from gluon_aa.errors import FailedError

STANDARD_OUTPUT = '-'


def writable(ctx: click.Context, parameter: click.Parameter, value: Optional[str]) -> Optional[pathlib.Path]:
    """Refuse the name of a file that cannot be written before any work is done."""
    if value is None:
        return None
    path = pathlib.Path(value)
    if not value or path.is_dir() or not path.resolve().parent.is_dir():
        raise click.BadParameter(f'{value!r} is no file in a directory that exists')
    return path


def _writable_or_standard(ctx: click.Context, parameter: click.Parameter, value: Optional[str]) -> Optional[str]:
    if value != STANDARD_OUTPUT:
        writable(ctx, parameter, value)
    return value


json_option = click.option('--json', 'json_path', metavar='PATH', callback=_writable_or_standard,
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
    from gluon_aa import files
    path = pathlib.Path(json_path).resolve()
    try:
        if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
            path.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')
        else:
            files.write_json(path, value)
    except OSError as error:
        raise FailedError(f'cannot write {json_path}: {error.strerror}') from error
