"""Flags made from the keys of the configuration: the same word, type and help in YAML and on the command line."""
from typing import Any, Callable

import click

from gluon_aa.training.config import FIELDS, kind

_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, tuple: click.STRING}


def option_name(key: str) -> str:
    """The flag of a configuration key."""
    return f'--{key.replace("_", "-")}'


def key_option(name: str) -> Callable[..., Any]:
    """The flag of configuration key `name`; absent from the command line, its value is None."""
    field = FIELDS[name]
    flag, help_text, choices = option_name(name), field.metadata['help'], field.metadata['choices']
    if kind(name) is bool:
        return click.option(f'{flag}/--no-{flag[2:]}', name, default=None,
                            help=f'{help_text} [default: {_shown(field.default)}]')
    if field.default not in (None, ()):
        help_text = f'{help_text} [default: {_shown(field.default)}]'
    wanted = click.Choice(choices) if choices else _TYPES[kind(name)]
    return click.option(flag, name, type=wanted, default=None, help=help_text)


def key_options(*names: str) -> Callable[..., Any]:
    """The flags of several keys, in this order."""
    def decorate(function: Any) -> Any:
        for name in reversed(names):
            function = key_option(name)(function)
        return function
    return decorate


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return 'on' if value else 'off'
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
