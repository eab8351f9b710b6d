"""Flags that take lists: a,b or 1,2."""
from typing import Any, Callable, Optional, Tuple

import click

from gluon_aa.errors import UsageError


def list_of(kind: Callable[[str], Any], repeats: bool = False) -> Callable[..., Any]:
    """A callback that reads 1,2,3; `repeats` allows the same item twice."""
    def read(ctx: click.Context, parameter: click.Parameter, value: Optional[str]) -> Tuple[Any, ...]:
        try:
            items = tuple(kind(item.strip()) for item in (value or '').split(',') if item.strip())
        except UsageError:
            raise  # it says more
        except ValueError:
            raise click.BadParameter(f'{value!r} is not a list of whole numbers, such as 1,2') from None
        if len(set(items)) < len(items) and not repeats:
            raise click.BadParameter(f'{value!r} names something twice')
        return items
    return read
