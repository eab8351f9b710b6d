"""The oracle against finite differences of itself, and against attention that is known without computing."""
import numpy as np
import pytest

from compare import relative_error
import oracle

CHANNELS = {'num_heads': 2, 'key_channels': 4, 'value_channels': 6}


@pytest.mark.parametrize('position', range(3), ids=['qkv', 'rel_h', 'rel_w'])
def test_gradients_are_those_of_finite_differences(position):
    inputs = [np.random.randn(1, 14, 2, 3), np.random.randn(3, 2), np.random.randn(5, 2)]
    head_gradient = np.random.randn(1, 6, 2, 3)

    def loss(x):
        return (head_gradient * oracle.attend(*inputs[:position], x, *inputs[position + 1:], **CHANNELS)).sum()

    found = oracle.gradients(*inputs, head_gradient, **CHANNELS)[position]
    assert relative_error(found, oracle.finite_differences(loss, inputs[position])) < 1e-8


@pytest.mark.parametrize('relative', [True, False])
def test_whole_arrays_compute_what_loops_do(relative):
    qkv, head_gradient = np.random.randn(2, 14, 3, 4), np.random.randn(2, 6, 3, 4)
    tables = [np.random.randn(5, 2), np.random.randn(7, 2)] if relative else [None, None]
    wanted = [oracle.attend(qkv, *tables, **CHANNELS), *oracle.gradients(qkv, *tables, head_gradient, **CHANNELS)]
    found = oracle.attend_and_gradients(qkv, *tables, head_gradient, **CHANNELS)
    for actual, expected in zip(found, wanted[:len(found)]):
        assert relative_error(actual, expected) < 1e-12


def test_equal_logits_average_the_values():
    qkv = np.random.randn(2, 14, 3, 4)
    qkv[:, :4] = 0  # queries of 0: every logit is 0
    output = oracle.attend(qkv, None, None, **CHANNELS)
    mean = qkv[:, 8:].mean(axis=(2, 3), keepdims=True)
    assert np.allclose(output, np.broadcast_to(mean, output.shape))


def test_a_strong_offset_shifts_the_image():
    height, width = 3, 4
    qkv = np.random.randn(1, 3, height, width)
    qkv[:, 0] = 1  # one head of depth 1: the logits are those of the tables
    qkv[:, 1] = 0
    rel_h, rel_w = np.zeros((5, 1)), np.zeros((7, 1))
    rel_h[height - 1] = rel_w[width - 1 + 1] = 1000  # the same row, the next column
    output = oracle.attend(qkv, rel_h, rel_w, num_heads=1, key_channels=1, value_channels=1)
    assert np.allclose(output[0, 0, :, :-1], qkv[0, 2, :, 1:])
