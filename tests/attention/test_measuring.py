"""What is counted for the operator alone, and what becomes of a case that ends badly."""
import functools

import pytest

from gluon_aa import isolation
from gluon_aa.attention import measuring
from gluon_aa.attention.measuring import Case, Protocol, cases, measure_all

TINY = Case(height=3, width=4, batch_size=2, num_heads=2, key_channels=6, value_channels=4, relative=True,
            attention_backend='reference')


def test_flops_are_those_of_the_products_of_the_equations():
    pixels, heads, depth, value_depth = 12, 2, 3, 2
    forward = {'QK': pixels * pixels * depth, 'PV': pixels * pixels * value_depth,
               'rows': pixels * 3 * depth, 'columns': pixels * 4 * depth}
    backward = {**{f'{name}, left': count for name, count in forward.items()},
                **{f'{name}, right': count for name, count in forward.items()}}
    assert TINY.flops('forward') == 2 * 2 * heads * sum(forward.values())
    assert TINY.flops('backward') == 2 * 2 * heads * sum(backward.values())
    assert TINY.flops('forward+backward') == TINY.flops('forward') + TINY.flops('backward')


def test_default_sizes_are_the_maps_of_aa_wrn28_10():
    found = cases([], [], [], ['folded'], num_heads=8, key_channels=160, relative=True)
    assert [(case.height, case.width, case.batch_size, case.value_channels) for case in found] == [
        (32, 32, 8, 16), (16, 16, 32, 32), (8, 8, 128, 64)]


@functools.lru_cache(maxsize=None)
def extra_bytes(case, pass_='forward+backward'):
    """The answer of a process of its own, asked for once."""
    return measuring._ask('extra_bytes', case, Protocol(), pass_=pass_)


def test_extra_memory_of_the_reference_holds_its_maps():
    """Inference has one, as its steps work in place; training has its softmax and that one's gradient, or more."""
    case = TINY._replace(height=16, width=12, batch_size=4)
    forward, both = (extra_bytes(case, pass_) for pass_ in ('forward', 'forward+backward'))
    a_map = 4 * case.batch_size * case.num_heads * (case.height * case.width) ** 2
    assert a_map <= forward['storage_bytes'] < 2 * a_map
    assert 2 * a_map <= both['storage_bytes'] < 8 * a_map


def test_extra_memory_grows_with_the_batch():
    one, four = (extra_bytes(TINY._replace(height=16, width=12, batch_size=batch)) for batch in (1, 4))
    assert four['storage_bytes'] == pytest.approx(4 * one['storage_bytes'], rel=0.05)
    assert four['resident_bytes'] > one['resident_bytes']


NATIVE = Case(height=32, width=32, batch_size=3, num_heads=8, key_channels=160, value_channels=16, relative=True,
              attention_backend='native')


def test_native_needs_a_hundredth_of_the_references_memory():
    native, reference = (extra_bytes(NATIVE._replace(attention_backend=name)) for name in ('native', 'reference'))
    assert 4 * 3 * 8 * 1024 < native['storage_bytes'] < 0.01 * reference['storage_bytes']  # the log-sum-exp at least
    assert native['resident_bytes'] < 0.01 * reference['resident_bytes']


def test_the_memory_of_native_grows_with_the_pixels():
    """From 32x16 to 32x32 it doubles; a map of logits would become four times as large."""
    small, large = (extra_bytes(NATIVE._replace(width=width))['storage_bytes'] for width in (16, 32))
    assert 1.5 < large / small < 3


@pytest.mark.parametrize('code, limit, message', [
    ('import os; os.abort()', 60, 'its process ended with code -6: it said nothing'),
    ('import time; time.sleep(60)', 0.5, 'not done after 0.5 s'),
])
def test_a_process_that_crashes_or_hangs_is_a_row_with_an_error(monkeypatch, code, limit, message):
    monkeypatch.setattr(isolation, '_CHILD', code)
    row, = measure_all([TINY], Protocol(time_limit=limit))
    assert row['error'] == message and row['attention_backend'] == 'reference' and 'seconds' not in row
