"""The plan that is done again here against what MXNet says of its own, and against peaks that were counted."""
import re

import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.memory import buffers, graph
from gluon_aa.memory.graph import StepGraph
from gluon_aa.models import get_model
from gluon_aa.training.engine import Classifier
from gluon_aa.training.recompute import MARK, mark, trace

SIZE = (24, 16)
PILOT = 24  # large enough for megabytes to tell


def make(monkeypatch, net, recompute=None, label_smoothing=0.0, **options):
    monkeypatch.setattr(graph, '_PILOT', PILOT)
    classifier = Classifier(get_model(net, 10, input_size=SIZE, **options), np.zeros((3, 1, 1)), np.ones((3, 1, 1)),
                            label_smoothing)
    symbol = trace(classifier, recompute or 'attention')
    if not recompute:
        mark(symbol, [name for name, attributes in symbol.attr_dict().items() if MARK in attributes], False)
    trainable = {name for name, parameter in classifier.collect_params().items() if parameter.grad_req != 'null'}
    return StepGraph(symbol, trainable, (3, *SIZE), tight=recompute is not None)


CASES = [
    ('wrn10_2', None, {}),
    ('wrn10_2', 'blocks', {'dropout': 0.1}),
    ('aa_wrn10_2', None, {'attention_backend': 'reference'}),
    ('aa_wrn10_2', None, {'attention_backend': 'reference', 'relative': False}),
    ('aa_wrn10_2', None, {'attention_backend': 'folded'}),
    ('aa_wrn10_2', None, {'attention_backend': 'native'}),
    ('aa_wrn10_2', None, {'attention_backend': 'tiled', 'tile': 50}),
    ('aa_wrn10_2', 'attention', {'attention_backend': 'tiled', 'tile': 50}),
    ('aa_wrn10_2', 'blocks', {'attention_backend': 'tiled', 'tile': 100}),
    ('aa_wrn16_4', None, {'attention_backend': 'folded', 'placement': 'all'}),
    ('aa_resnet18', 'attention', {'attention_backend': 'tiled', 'tile': 20}),
    ('aa_resnet50', None, {'attention_backend': 'reference', 'stem': 'imagenet'}),
    ('cifar_resnet20_v2', None, {}),
]


@pytest.mark.parametrize('net, recompute, options', CASES)
def test_an_executor_is_planned_as_mxnet_says(monkeypatch, net, recompute, options):
    step = make(monkeypatch, net, recompute, **options)
    ours = buffers.of_executor(step, step.sizes(PILOT)).total
    assert int(ours / 2 ** 20) == step.planned_megabytes > 2


def test_label_smoothing_is_in_the_graph(monkeypatch):
    step = make(monkeypatch, 'aa_wrn10_2', label_smoothing=0.1, attention_backend='folded')
    assert any(node.op == 'mean' for node in step.nodes)
    assert int(buffers.of_executor(step, step.sizes(PILOT)).total / 2 ** 20) == step.planned_megabytes


def test_the_plan_of_another_batch_is_mxnets_at_that_batch(monkeypatch):
    step = make(monkeypatch, 'aa_wrn10_2', attention_backend='folded')
    ours = buffers.of_executor(step, step.sizes(3 * PILOT)).total
    monkeypatch.setattr(graph, '_PILOT', 3 * PILOT)
    text = graph._description(step.symbol, {name for name in step.symbol.list_arguments() if name not in (
        'images', 'labels')}, (3, *SIZE), False)
    assert abs(int(re.search(r'Total (\d+) MB', text).group(1)) - ours / 2 ** 20) < 1.5


def test_shapes_of_gradients_are_those_of_what_they_are_of(monkeypatch):
    step = make(monkeypatch, 'aa_wrn10_2', attention_backend='reference')
    shapes = step.sizes(5).shapes
    arguments = step.symbol.list_arguments()
    wanted = dict(zip(arguments, step.symbol.infer_shape(images=(5, 3, *SIZE), labels=(5,))[0]))
    found = [shapes[entry] for entry in step.outputs[2:]]
    others = ('images', 'labels', 'classifier')
    assert found == [wanted[name] for name in arguments if not name.startswith(others)]


def test_inference_needs_less_than_what_is_kept(monkeypatch):
    step = make(monkeypatch, 'wrn16_4')
    sizes = step.sizes(PILOT)
    inference, training = (buffers.of_forward(step, sizes, recording).total for recording in (False, True))
    assert inference < 0.3 * training
    kept = sum(sizes.bytes(entry) for entry in buffers.kept(step) if step.nodes[entry[0]].op == 'Convolution')
    assert training > kept > 0.2 * training


def test_buffers_hold_what_lies_in_them(monkeypatch):
    step = make(monkeypatch, 'aa_wrn10_2', attention_backend='folded')
    sizes = step.sizes(PILOT)
    for part in (buffers.of_forward(step, sizes, True), buffers.of_backward(step, sizes)):
        for entry, buffer in part.of.items():
            assert sizes.bytes(entry) <= part.sizes[buffer]


def test_16_bits_take_half(monkeypatch):
    step = make(monkeypatch, 'wrn10_2')
    sizes = step.sizes(PILOT)
    halved = graph.Sizes(sizes.shapes, {entry: item // 2 or item for entry, item in sizes.items.items()})
    half, full = (buffers.of_executor(step, each).total for each in (halved, sizes))
    assert half == pytest.approx(full / 2, rel=1e-3)


def test_free_buffers_are_given_as_mxnet_gives_them():
    free = buffers._Free(match_range=16)
    sizes = [1000, 2000, 4000]
    for number, size in enumerate(sizes):
        assert free.request(size) == number
    for number in range(3):
        free.release(number)
    assert free.request(1500) == 1  # the smallest that holds it
    assert free.request(5000) == 2  # none does: the largest grows
    assert free.planned == [1000, 2000, 5000]
    assert free.request(17 * 1000) == 3  # 1000 is too far from it
    assert free.request(60) == 4 and free.request(63) == 0  # so is 60 from 1000, but not 63


def test_the_graph_says_what_it_cannot_read(monkeypatch):
    monkeypatch.setattr(graph, '_description', lambda *arguments: 'Symbol Outputs:\n\toutput[0]=a(0)\nVariable:a\n')
    with pytest.raises(AssertionError, match='ends its description'):
        StepGraph(mx.sym.var('a'), set(), (3, 8, 8), False)
