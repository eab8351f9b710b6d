"""The bare loop of gluon-aa's resnet34 in MXNet; see loop.py."""
import pathlib
import sys

import loop

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import bare  # noqa: E402


def main() -> None:
    options = loop.arguments(__doc__)
    step = bare.make_step(options.dtype, *loop.batch(options.batch_size))
    loop.run(options, step, bare.mx.nd.waitall, f'MXNet {bare.mx.__version__}')


if __name__ == '__main__':
    main()
