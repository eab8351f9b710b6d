"""The command line: parsing and printing only. MXNet is imported by the commands that need it, when they run."""
import os
import sys
import traceback
import warnings
from typing import Any

import click

import gluon_aa
from gluon_aa.cli import bench, data, doctor, evaluate, models, plan, train
from gluon_aa.errors import FailedError, Notice, OutOfMemory, UsageError, reason

INTERRUPTED = 130


class Commands(click.Group):
    """Ends every command as promised: 0 done, 1 failed, 2 wrong usage, 130 interrupted; an error is one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo('Interrupted.', err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:  # noqa: B902  the last resort: whatever it is, one line
            if ctx.obj['debug']:
                traceback.print_exc()
            click.echo(f'Error: {_one_line(error)}', err=True)
            if isinstance(error, OutOfMemory):
                _end_now()
            ctx.exit(2 if isinstance(error, UsageError) else 1)


def _end_now() -> None:
    """End the process with code 1 and without MXNet's leave, which waits for what may never come."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def _one_line(error: Exception) -> str:
    text = reason(error)
    if isinstance(error, (UsageError, FailedError, OSError)):
        return text
    text = text if len(text) < 300 else f'...{text[-300:]}'
    return f'unexpected {type(error).__name__}: {text} (gluon-aa --debug {" ".join(sys.argv[1:])} shows where)'


@click.group(cls=Commands, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(gluon_aa.__version__, prog_name='gluon-aa')
@click.option('--debug', is_flag=True, help='Show a traceback where a command fails.')
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Attention-augmented convolutional networks on MXNet / Gluon: train, evaluate, inspect."""
    ctx.obj = {'debug': debug}
    show = warnings.showwarning
    warnings.showwarning = lambda message, category, *rest: (
        click.echo(f'Note: {message}', err=True) if issubclass(category, Notice) else show(message, category, *rest))
    ctx.call_on_close(lambda: setattr(warnings, 'showwarning', show))


def _accept_debug(command: click.Command) -> None:
    """Let --debug stand after the command's name too."""
    for child in getattr(command, 'commands', {}).values():
        _accept_debug(child)
    command.params.append(click.Option(['--debug'], is_flag=True, expose_value=False, hidden=True, callback=_set_debug))


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.obj['debug'] |= value


for _command in (bench.bench, data.data, doctor.doctor, evaluate.evaluate, models.models, plan.plan, train.train):
    _accept_debug(_command)
    main.add_command(_command)
