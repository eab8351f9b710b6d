"""The ways a block runs: Gluon's, and the symbol executor."""
from gluon_aa.compat import mx

#: Mode name -> arguments of hybridize; None for eager.
MODES = {
    'eager': None,
    'hybridized': {},
    'static_alloc': {'static_alloc': True},
    'static': {'static_alloc': True, 'static_shape': True},
}


def executor_of(block, arrays, grad_req='write'):
    """The symbol executor of a block without parameters, bound to its input `arrays`; marked nodes are recomputed."""
    names = [f'input{number}' for number in range(len(arrays))]
    symbol = block(*map(mx.sym.var, names))
    gradients = {name: mx.nd.zeros_like(array) for name, array in zip(names, arrays)}
    return symbol.bind(arrays[0].context, args=dict(zip(names, arrays)), args_grad=gradients, grad_req=grad_req)
