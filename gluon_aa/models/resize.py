"""Running a network at another resolution than it was built, and trained, for."""
from typing import Any

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.errors import UsageError

#: Relative tables: the parameters whose shape depends on the size of the map.
TABLES = ('rel_h', 'rel_w')


def copy_weights(source: Any, target: Any) -> Any:
    """Give `target` the parameters of `source`, the same network for images of another size; returns `target`.

        target = copy_weights(net, get_model('aa_wrn28_10', input_size=(40, 48)))

    All but the relative tables are copied as they are; those are interpolated linearly over the offsets, see
    `resize_table`.

    Args:
        source: a network with its parameters.
        target: one that is initialised or not; it is given the devices of `source` where it is not.

    Raises:
        UsageError: a parameter that one of them lacks, or that has another shape and is no relative table.
    """
    given, wanted = source._collect_params_with_prefix(), target._collect_params_with_prefix()
    for name in sorted({*given, *wanted}):
        if name not in given or name not in wanted:
            raise UsageError(f'the networks differ: only {"the target" if name in wanted else "the source"} has {name}')
    mx.nd.waitall()  # batch norm's running statistics lag behind
    values = {name: _fitting(name, parameter.data(parameter.list_ctx()[0]), wanted[name].shape)
              for name, parameter in given.items()}
    for name, value in values.items():
        if np.dtype(value.dtype) != np.dtype(wanted[name].dtype):
            raise UsageError(f'the networks differ: {name} is {np.dtype(value.dtype)} in the source and '
                             f'{np.dtype(wanted[name].dtype)} in the target')
    for name, value in values.items():
        has_devices = wanted[name]._data is not None or wanted[name]._deferred_init
        wanted[name]._load_init(value, None if has_devices else given[name].list_ctx())
    return target


def _fitting(name: str, value: Any, shape: Any) -> Any:
    # 0 stands for what the first images will tell
    if len(shape) == len(value.shape) and all(theirs in (0, ours) for theirs, ours in zip(shape, value.shape)):
        return value
    if name.split('.')[-1] in TABLES and shape[1:] == value.shape[1:]:
        return mx.nd.array(resize_table(value.asnumpy(), shape[0]))
    raise UsageError(f'the networks differ in more than the size of their images: {name} is {value.shape} in the '
                     f'source and {tuple(shape)} in the target')


def resize_table(table: np.ndarray, entries: int) -> np.ndarray:
    """A relative table (2L-1, d) for a map of another length, (entries, d), interpolated linearly.

    Its entries stand for the offsets -(L-1) to L-1. Both ends are aligned, so that offset 0, the middle, stays the
    middle, and an offset means the same share of the map as before. The one entry of a map of length 1 becomes all.

    Raises:
        UsageError: an even number of entries, or none.
    """
    if entries < 1 or entries % 2 == 0:
        raise UsageError(f'a relative table of {entries} entries: a map of length L has 2L - 1, at least 1')
    places = np.linspace(-1, 1, entries) if entries > 1 else np.zeros(1)
    known = np.linspace(-1, 1, len(table)) if len(table) > 1 else np.zeros(1)
    columns = [np.interp(places, known, column) for column in table.T.astype(np.float64)]
    return np.stack(columns, axis=1).astype(table.dtype)
