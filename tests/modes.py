"""The ways Gluon runs a block."""

#: Mode name -> arguments of hybridize; None for eager.
MODES = {
    'eager': None,
    'hybridized': {},
    'static_alloc': {'static_alloc': True},
    'static': {'static_alloc': True, 'static_shape': True},
}
