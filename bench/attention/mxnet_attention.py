"""One backend of gluon_aa.attention, checked against the oracle, then timed turn by turn: what bench attention runs."""
from typing import Any

import worker

from gluon_aa.attention.measuring import Case, Running
from gluon_aa.compat import mx


def running(sizes: Any, backend: str) -> Running:
    """The operator on worker.arrays."""
    found = Running(Case(**sizes, relative=True, attention_backend=backend))
    for target, array in zip([*found.inputs, found.head_gradient], worker.arrays(sizes)):
        target[:] = array
    return found


def check(backend: str) -> float:
    """The largest relative error for small sizes."""
    small = running(worker.SMALL, backend)
    with mx.autograd.record():
        output = small.block(*small.inputs)
    output.backward(small.head_gradient)
    return worker.check([output.asnumpy(), *(x.grad.asnumpy() for x in small.inputs)], 1e-5)


def main() -> None:
    options = worker.arguments(__doc__)
    error = check(options.form)
    operator = running(options.sizes, options.form)
    worker.serve(operator.run, framework=f'MXNet {mx.__version__}', error=error, passes=['forward', 'forward+backward'])


if __name__ == '__main__':
    main()
