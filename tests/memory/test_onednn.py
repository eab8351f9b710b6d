"""Layouts and workspace of a few operators, by hand; whole steps are compared with measurements in test_plan.py."""
import pytest

from gluon_aa.memory import onednn
from gluon_aa.memory.graph import Node, Sizes
from gluon_aa.memory.onednn import PLAIN


class Graph:
    """Operators on one another's first outputs: (op, shape, inputs)."""

    def __init__(self, *lines):
        self.nodes = [Node(op, op or 'x', tuple((place, 0) for place in inputs), {}, None, 1)
                      for op, _, inputs in lines]
        self.sizes = Sizes({(place, 0): shape for place, (_, shape, _) in enumerate(lines)},
                           {(place, 0): 4 for place in range(len(lines))})

    def workspace(self, taken_over=(), block=16):
        return onednn.workspace(self, self.sizes, frozenset(taken_over), len(self.nodes), block)


def convolution(channels, in_channels, before=(None, None)):
    return Graph((None, (2, in_channels, 8, 8), ()), (None, (channels, in_channels, 3, 3), ()),
                 ('Convolution', (2, channels, 8, 8), (0, 1)))


@pytest.mark.parametrize('channels, in_channels, block, moved', [
    (32, 16, 16, True), (24, 16, 16, True), (32, 16, 8, True), (10, 16, 16, False)])
def test_convolutions_ask_for_input_and_weights_in_blocks(channels, in_channels, block, moved):
    asked = 4 * (2 * in_channels * 64 + channels * in_channels * 9) if moved else 0
    assert convolution(channels, in_channels).workspace(block=block) == (2 * asked, 0, 0)


def test_convolutions_of_images_read_them_as_they_are():
    assert convolution(16, 3).workspace().temporaries == 2 * 4 * 16 * 3 * 9


def test_plain_operators_keep_a_copy_of_what_is_in_blocks():
    plain = Graph((None, (2, 16, 8, 8), ()), (None, (16, 16, 3, 3), ()), ('Convolution', (2, 16, 8, 8), (0, 1)),
                  ('slice_axis', (2, 8, 8, 8), (2,)), ('slice_axis', (2, 4, 8, 8), (3,)))
    assert plain.workspace().copies == 4 * 2 * 16 * 64
    shape_only = Graph((None, (2, 16, 8, 8), ()), (None, (16, 16, 3, 3), ()), ('Convolution', (2, 16, 8, 8), (0, 1)),
                       ('_contrib_arange_like', (8,), (2,)))
    assert shape_only.workspace().copies == 0


def test_temporaries_add_up_until_an_operator_begins_with_a_workspace():
    lines = [(None, (4, 100, 100), ()), ('_backward_softmax', (4, 100, 100), (0, 0)),
             ('_backward_softmax', (4, 100, 100), (1, 1)), ('Concat', (4, 100, 200), (1, 2)),
             ('_backward_softmax', (4, 100, 100), (0, 0))]
    taken_over = [(1, 0), (2, 0), (4, 0)]
    assert Graph(*lines).workspace(taken_over) == (2 * 2 * 4 * 40000, 0, 0)
    assert Graph(*lines).workspace() == (0, 0, 0)  # nothing is written where an input lies


def test_reshapes_of_blocks_have_an_array_of_their_own():
    reshaped = Graph((None, (2, 16, 8, 8), ()), (None, (16, 16, 3, 3), ()), ('Convolution', (2, 16, 8, 8), (0, 1)),
                     ('Reshape', (2, 16, 64), (2,)), ('Reshape', (2, 1024), (3,)))
    assert reshaped.workspace().reshapes == 4 * 2 * 16 * 64


def test_layouts_go_through_what_has_any():
    walked = Graph((None, (2, 16, 8, 8), ()), (None, (16, 16, 3, 3), ()), ('Convolution', (2, 16, 8, 8), (0, 1)),
                   ('Activation', (2, 16, 8, 8), (2,)))
    walk = onednn._Walk(walked.sizes, frozenset(), 16)
    for place, node in enumerate(walked.nodes):
        walk.visit(place, node)
    assert walk.layouts == {(2, 0): 16, (3, 0): 16} and PLAIN == 0


def test_blocks_are_as_wide_as_the_cpus_vectors(monkeypatch):
    for has, block in ((True, 16), (False, 8)):
        monkeypatch.setattr(onednn.machine, 'cpu_instructions', lambda has=has: {'avx512f': has})
        assert onednn.block() == block
