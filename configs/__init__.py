"""Recipes by name: `cpu/digits` is the file cpu/digits.yaml beside this one."""
import pathlib
from typing import List

from gluon_aa.errors import UsageError, unknown

DIRECTORY = pathlib.Path(__file__).parent


def recipes() -> List[str]:
    """The names of the recipes."""
    return sorted(path.relative_to(DIRECTORY).with_suffix('').as_posix() for path in DIRECTORY.glob('*/*.yaml'))


def find_recipe(name: str) -> pathlib.Path:
    """The file called `name`: a path that exists, or a recipe's name.

    Raises:
        UsageError: neither (lists the near ones).
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if name in recipes():
        return DIRECTORY / f'{name}.yaml'
    if path.suffix in ('.yaml', '.yml'):
        raise UsageError(f'there is no file {name}; recipes of ours are {", ".join(recipes())}')
    raise unknown('configuration', name, recipes())
