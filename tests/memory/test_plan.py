"""Plans against what is counted by hand, and against each other."""
import numpy as np
import pytest

from gluon_aa.compat import mx
from gluon_aa.memory import plan
from gluon_aa.memory.plan import plan_step
from gluon_aa.models import get_model
from gluon_aa.models.summary import summarize
from gluon_aa.training.engine import Classifier

SIZE = (16, 24)
MEGABYTE = 2 ** 20


def classifier(net='aa_wrn10_2', **options):
    options = {'num_heads': 2, 'min_key_channels_per_head': 4, **options} if net.startswith('aa') else options
    return Classifier(get_model(net, 10, input_size=SIZE, **options), np.zeros((3, 1, 1)), np.ones((3, 1, 1)))


def make(batch_size, net='aa_wrn10_2', options=None, **keys):
    return plan_step(classifier(net, **(options or {})), (3, *SIZE), batch_size, **keys)


def test_what_does_not_depend_on_the_graph_is_counted():
    made = make(64, 'wrn10_2', optimizer_states=2, devices=2)
    weights = 4 * summarize(get_model('wrn10_2', 10, input_size=SIZE), SIZE)['parameters']
    norms = 16 + 32 + 32 + 64 + 64 + 128 + 128  # channels of two batch norms a block, the last one's at the end
    assert (made.parameters, made.gradients, made.optimizer, made.exchange) == (weights, weights, 2 * weights, weights)
    assert made.statistics == 4 * (2 * norms + 2 * 3)
    assert made.batch == 64 * (3 * 16 * 24 + 4)
    assert made.total == 5 * weights + made.statistics + made.batch + made.graph
    assert make(64, 'wrn10_2').exchange == 0


@pytest.mark.parametrize('keys', [{}, {'recompute': 'attention'}, {'recompute': 'blocks'}])
def test_large_batches_are_extrapolated_from_small_ones(monkeypatch, keys):
    options = {'attention_backend': 'tiled', 'tile': 64}
    extrapolated = make(64, options=options, **keys).graph
    monkeypatch.setattr(plan, '_PILOTS', (4, 64))
    read = make(64, options=options, **keys).graph
    assert abs(extrapolated - read) < 8 * MEGABYTE + 0.02 * read  # half a megabyte at 8 images
    assert read > 20 * MEGABYTE


def test_recomputing_takes_less():
    options = {'attention_backend': 'tiled', 'tile': 64}
    speed, attention = (make(64, options=options, recompute=what).graph for what in (None, 'attention'))
    assert attention < 0.7 * speed
    attention, blocks = (make(64, 'wrn16_4', recompute=what).graph for what in ('attention', 'blocks'))
    assert blocks < 0.6 * attention
    # without marks there is nothing to compute again: what is left is how tightly buffers are planned
    folded = {'attention_backend': 'folded'}
    speed, attention = (make(64, options=folded, recompute=what).graph for what in (None, 'attention'))
    assert speed == pytest.approx(attention, rel=0.02)


def test_the_network_needs_no_weights_and_gets_none():
    made = classifier()
    plan_step(made, (3, *SIZE), 8)
    with pytest.raises(RuntimeError, match='has not been initialized'):
        made.net.output.weight.data(mx.cpu())
