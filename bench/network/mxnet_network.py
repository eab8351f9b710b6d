"""The bare loop of wrn28_10 or aa_wrn28_10 in gluon-aa, or MXNet's own count of its memory; see compare.py."""
import json
import pathlib
import sys

import numpy as np

BENCH = pathlib.Path(__file__).parents[1]
sys.path += [str(BENCH), str(BENCH / 'frameworks')]
import loop  # noqa: E402
import bare  # noqa: E402

from gluon_aa.memory import meter  # noqa: E402
from gluon_aa.models import get_model  # noqa: E402

mx = bare.mx


def check(backend: str, path: str) -> None:
    """Save the network's weights to `path`, its logits for two images beside it: in inference, and in training."""
    mx.random.seed(0)
    net = get_model('aa_wrn28_10', classes=10, input_size=(32, 32), attention_backend=backend)
    net.initialize(mx.init.MSRAPrelu('in', 0))
    images = mx.nd.array(loop.batch(2)[0])
    found = [net(images).asnumpy()]
    np.savez(path, **{name: parameter.data().asnumpy()
                      for name, parameter in net._collect_params_with_prefix().items()})
    with mx.autograd.train_mode():
        found.append(net(images).asnumpy())
    np.savez(f'{path}.logits.npz', *found)


def main() -> None:
    parser = loop.parser(__doc__)
    parser.add_argument('--form', default='folded', help='attention backend; none for the plain network')
    parser.add_argument('--profile', action='store_true', help="MXNet's peak in three steps, in place of images/s")
    parser.add_argument('--check', metavar='NPZ', help='file for the weights')
    options = parser.parse_args()
    if options.check:
        check(options.form, options.check)
        return
    if options.profile:
        meter.start()
    chosen = {} if options.form == 'none' else {'attention_backend': options.form}
    name = 'aa_wrn28_10' if chosen else 'wrn28_10'

    def begin():
        return bare.make_step(options.dtype, *loop.batch(options.batch_size), net_name=name, **chosen)

    if not options.profile:
        loop.run(options, begin(), mx.nd.waitall, f'MXNet {mx.__version__}')
        return
    with meter.storage(mx.cpu()) as usage:
        step = begin()
        for _ in range(3):
            step()
    print(json.dumps({'framework': f'MXNet {mx.__version__}', 'peak_storage_bytes': usage.peak}))


if __name__ == '__main__':
    main()
