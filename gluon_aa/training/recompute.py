"""Training through MXNet's symbol executor, the one place where MXNet 1.9.1 computes again instead of keeping.

The executor is bound to the Gluon parameters' own arrays and gradients, so that trainer, kvstore and checkpoints know
nothing of it. It recomputes the nodes that are marked: those of the attention backend `tiled` always are.
"""
import contextlib
import json
import os
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from gluon_aa.compat import mx
from gluon_aa.training.engine import Engine, Part

MARK = '__force_mirroring__'

#: What `recompute: blocks` keeps: the sums that residual blocks end with. All else is computed again from them, block
#: by block. Batch norm and activations alone, which are cheap, would save nothing: MXNet keeps the input of a
#: convolution that is not computed again.
KEPT = ('null', 'elemwise_add')

#: While binding: MXNet need not say on standard error that it could fuse operators, were it for inference.
_QUIET = {'MXNET_SUBGRAPH_VERBOSE': '0'}

#: While binding to train. MXNet reuses a buffer for what is up to 16 times smaller, so that a map's is held by
#: something small while another map comes. With 2 the plan of aa_wrn28_10 (tiles of 256, batch 8) is 603 MB instead
#: of 936.
_TIGHT = {**_QUIET, 'NNVM_EXEC_MATCH_RANGE': '2'}


def trace(classifier: Any, recompute: str = 'attention') -> Any:
    """The symbol of a `Classifier`, from `images` and `labels`; `recompute` as the configuration has it."""
    loss, correct = classifier(mx.sym.var('images'), mx.sym.var('labels'))
    symbol = mx.sym.Group([loss, mx.sym.BlockGrad(correct)])
    if recompute == 'blocks':
        nodes = json.loads(symbol.tojson())['nodes']
        mark(symbol, [node['name'] for node in nodes if node['op'] not in KEPT and MARK not in node.get('attrs', {})])
    return symbol


def mark(symbol: Any, names: Sequence[str], recomputed: bool = True) -> None:
    """Let the executor compute the nodes called `names` again, or keep them."""
    chosen = set(names)
    for node in symbol.get_internals():  # each output of each node; they share it with `symbol`
        if node.name in chosen:
            node._set_attr(**{MARK: str(recomputed)})


def bind(symbol: Any, device: Any, arguments: Dict[str, Any], gradients: Dict[str, Any], auxiliary: Dict[str, Any],
         shared: Any = None, tight: bool = True) -> Any:
    """An executor of `symbol` that works on these arrays, and on the memory of the executor `shared`.

    Not `tight`, buffers are planned as MXNet does by itself, and as it does for hybridized networks.
    """
    requests = {name: 'write' if name in gradients else 'null' for name in arguments}
    with _environment(_TIGHT if tight else _QUIET):
        return symbol.bind(device, args=arguments, args_grad=gradients, grad_req=requests, aux_states=auxiliary,
                           shared_exec=shared)


@contextlib.contextmanager
def _environment(values: Dict[str, str]) -> Iterator[None]:
    """Variables set for a while, except those that the user set. MXNet is idle when they change: its threads read them,
    and the C library lets nobody read while another writes."""
    mx.nd.waitall()
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        mx.nd.waitall()
        for name in ours:
            del os.environ[name]


class RecomputeEngine(Engine):
    """The symbol executor: least memory. Evaluates in the same executors, that is in memory that is there anyway."""

    def _compile(self) -> None:
        self._symbol = trace(self.classifier, self.config.recompute)
        self._executors: Dict[Tuple[Any, int], Any] = {}
        self._largest: Dict[Any, Any] = {}
        self._heads = {device: [mx.nd.ones((1,), ctx=device), mx.nd.zeros((1,), ctx=device)]
                       for device in self.devices}

    def _gradients(self, parts: Sequence[Part]) -> Tuple[List[Any], List[Any]]:
        executors = [self._executor(part) for part in parts]
        outputs = [self._forward(executor, part, is_train=True) for executor, part in zip(executors, parts)]
        heads = [self._heads[device] for device in self.devices[:len(parts)]]
        with self._scaled([of_loss for of_loss, _ in heads]) as scaled:
            for executor, of_loss, (_, of_correct) in zip(executors, scaled, heads):
                executor.backward([of_loss, of_correct])
        for parameter in self._trainable().values():
            for device in self.devices[:len(parts)]:
                parameter.data(device)._fresh_grad = True  # as Gluon's backward pass says to the trainer
        losses, corrects = map(list, zip(*outputs))
        return losses, corrects

    def _correct(self, part: Part) -> Any:
        return self._forward(self._executor(part), part, is_train=False)[1]

    @staticmethod
    def _forward(executor: Any, part: Part, is_train: bool) -> List[Any]:
        images, labels = part
        # copies, as the next pass writes over the executor's own
        return [output.copy() for output in executor.forward(is_train, images=images, labels=labels)]

    def _executor(self, part: Part) -> Any:
        """The executor for a part of this size on its device; all of a device share their memory."""
        images, labels = part
        device, count = images.context, len(labels)
        if (device, count) not in self._executors:
            executor = self._bind(images, labels, self._largest.get(device))
            self._executors[device, count] = executor
            if self._largest.setdefault(device, executor).arg_dict['labels'].size < count:
                self._largest[device] = executor
        return self._executors[device, count]

    def _bind(self, images: Any, labels: Any, shared: Any) -> Any:
        device, parameters = images.context, self.classifier.collect_params()
        arguments = {name: parameters[name].data(device) for name in self._symbol.list_arguments()
                     if name in parameters.keys()}
        arguments.update(images=mx.nd.zeros_like(images), labels=mx.nd.zeros_like(labels))
        gradients = {name: parameters[name].grad(device) for name in arguments
                     if name in parameters.keys() and parameters[name].grad_req != 'null'}
        auxiliary = {name: parameters[name].data(device) for name in self._symbol.list_auxiliary_states()}
        return bind(self._symbol, device, arguments, gradients, auxiliary, shared)
