"""Plans against peaks that MXNet's storage profiler counted over real steps, and against what is counted by hand."""
import pytest

from gluon_aa.errors import FailedError
from gluon_aa.memory import cells
from gluon_aa.memory.devices import CONTEXT, DEVICES, START_SPIKE
from gluon_aa.memory.plan import CATEGORIES, plans
from gluon_aa.models import get_model
from gluon_aa.models.summary import summarize
from gluon_aa.training.config import load

SIZE = (16, 24)
SHAPE = (3, *SIZE)
GRAPH = ('activations', 'attention', 'temporaries')
CPU, P100 = DEVICES['cpu'], DEVICES['p100-16g']


def keys(net='aa_wrn10_2', **options):
    base = {'net': net, 'memory_mode': 'speed', 'attention_backend': 'folded'}
    if net.startswith('aa'):
        base.update(num_heads=4, min_key_channels_per_head=8)
    return load(None, {**base, **options})


def plan(batch_size, net='aa_wrn10_2', device=CPU, inference=False, **options):
    return plans(keys(net, **options), 10, SHAPE, device, [batch_size], inference)[0]


@pytest.mark.parametrize('batch_size, options', [
    (5, {'attention_backend': 'reference', 'optimizer': 'adam'}),
    (9, {'attention_backend': 'native', 'net': 'aa_wrn16_2'}),
    (4, {'attention_backend': 'tiled', 'tile': 60, 'memory_mode': 'recompute'}),
    pytest.param(6, {'net': 'wrn16_2'}, marks=pytest.mark.slow),
    pytest.param(7, {'attention_backend': 'folded', 'memory_mode': 'recompute', 'recompute': 'blocks'},
                 marks=pytest.mark.slow),
    pytest.param(8, {'net': 'aa_resnet18', 'attention_backend': 'folded', 'cpus': 2}, marks=pytest.mark.slow),
])
def test_the_total_is_what_a_step_was_measured_to_take(batch_size, options):
    config = keys(**{**options, 'batch_size': batch_size})
    found = cells.measured(config.values(), 10, SHAPE, 120)['storage_bytes']
    total = plans(config, 10, SHAPE, CPU, [batch_size])[0].total
    assert -0.02 < total / found - 1 < 0.04


def test_inference_is_what_it_was_measured_to_take():
    config = keys('wrn16_4', batch_size=12)
    found = cells.measured(config.values(), 10, SHAPE, 120, inference=True)['storage_bytes']
    assert -0.02 < plans(config, 10, SHAPE, CPU, [12], inference=True)[0].total / found - 1 < 0.25


def test_what_does_not_depend_on_the_graph_is_counted():
    made = plan(64, 'wrn10_2', optimizer='adam', cpus=2).bytes
    weights = 4 * summarize(get_model('wrn10_2', 10, input_size=SIZE), SIZE)['parameters']
    norms = 16 + 32 + 32 + 64 + 64 + 128 + 128  # channels of two batch norms a block, the last one's at the end
    assert [made[name] for name in ('parameters', 'gradients', 'optimizer', 'exchange')] == \
        [weights, weights, 2 * weights, weights]
    assert made['statistics'] == 4 * (2 * norms + 2 * 3)
    assert made['input'] == 32 * (3 * 16 * 24 + 4)
    assert tuple(made) == CATEGORIES
    assert plan(64, 'wrn10_2').bytes['exchange'] == 0
    assert plan(64, 'wrn10_2', optimizer='sgd', momentum=0.0).bytes['optimizer'] == 0


def test_maps_are_attentions_and_grow_with_their_square():
    small, = plans(keys(attention_backend='reference'), 10, (3, 16, 16), CPU, [8])
    large, = plans(keys(attention_backend='reference'), 10, (3, 32, 32), CPU, [8])
    assert 12 < large.bytes['attention'] / small.bytes['attention'] < 16
    # some lie in buffers that held something larger before
    assert 3.9 < large.bytes['activations'] / small.bytes['activations'] < 8
    weights = 8 * 4 * 4 * (1024 ** 2 + 256 ** 2 + 64 ** 2)  # images, heads, bytes, maps of three stages
    assert 2 * weights < large.bytes['attention'] < 5 * weights


def test_layers_have_what_they_cost():
    made = plan(8, attention_backend='reference', placement='last:2')
    rows = {layer.name: layer for layer in made.layers}
    assert sum(layer.activations for layer in made.layers) == made.bytes['activations']
    assert sum(layer.attention for layer in made.layers) == made.bytes['attention']
    assert sum(layer.parameters for layer in made.layers) == made.bytes['parameters']
    assert rows['stage1.block1.conv1'].attention == 0
    assert rows['stage2.block1.conv1'].attention > 5 * rows['stage3.block1.conv1'].attention > 0
    assert rows['stage2.block1.conv1'].kind == 'AttentionAugmentedConv2D'


def test_recomputing_takes_less():
    options = {'attention_backend': 'tiled', 'tile': 64, 'device': P100}
    speed, attention = (plan(64, memory_mode=mode, **options).bytes for mode in ('speed', 'recompute'))
    assert sum(attention[name] for name in GRAPH) < 0.7 * sum(speed[name] for name in GRAPH)
    attention, blocks = (plan(64, 'wrn16_4', memory_mode='recompute', recompute=what).bytes['activations']
                         for what in ('attention', 'blocks'))
    assert blocks < 0.6 * attention


def test_several_devices_share_a_batch():
    one, two = plan(32, 'wrn10_2'), plan(64, 'wrn10_2', cpus=2)
    assert (one.batch_size, two.batch_size) == (32, 32)
    assert one.bytes['activations'] == two.bytes['activations']
    assert plan(33, 'wrn10_2', cpus=2).batch_size == 17  # the larger part


def test_a_gpu_has_terms_of_its_own():
    here, there = plan(64, 'wrn16_4'), plan(64, 'wrn16_4', device=P100)
    same = [name for name in CATEGORIES if name not in ('workspace', 'rounding', 'context')]
    assert [here.bytes[name] for name in same] == [there.bytes[name] for name in same]
    assert here.bytes['context'] == here.bytes['rounding'] == 0
    assert there.bytes['context'] >= CONTEXT
    # Winograd's transform of the largest 3x3 convolutions: 36 numbers for 16 in and out, and for 9 of the filter
    maps = 64 * 4 * 64 * 16 * 24
    assert there.bytes['workspace'] == (2 * maps * 36 // 16 + 4 * 64 * 64 * 36) // 2
    assert there.safe - there.total >= there.bytes['workspace']
    assert plan(1, 'wrn10_2', device=P100).total == START_SPIKE


def test_float16_halves_maps_of_convolutions():
    full = plan(64, 'wrn16_4', device=P100).bytes
    half = cells.modelled(keys('wrn16_4', dtype='float16', gpus=[0]).values(), 10, SHAPE, P100, [64], 60)[0]['bytes']
    assert half['activations'] < 0.8 * full['activations']
    assert half['parameters'] == full['parameters']
    with pytest.raises(FailedError, match='no float16 on CPUs'):
        cells.modelled(keys(dtype='float16').values(), 10, SHAPE, CPU, [8], 60)


def test_a_plan_needs_no_memory_of_its_size():
    """A quarter of a terabyte, which few machines have."""
    made, = plans(keys('wrn28_10'), 10, (3, 32, 32), P100, [12000])
    assert made.total > 2.5e11 and not made.obstacle


def test_arrays_larger_than_mxnets_do_not_fit_anywhere():
    """Maps of 8 heads at 32x32: 256 images have 2^31 numbers, one more than an array may have."""
    config = load(None, {'net': 'aa_wrn10_2', 'memory_mode': 'speed', 'attention_backend': 'reference'})
    fits, too_large = plans(config, 10, (3, 32, 32), DEVICES['a100-40g'], [255, 256])
    assert fits.obstacle == '' and fits.safe < DEVICES['a100-40g'].usable
    assert '2,147,483,648 numbers' in too_large.obstacle and too_large.safe > 10 ** 18
    with pytest.raises(FailedError, match='choose smaller images, or attention backend tiled'):
        plans(config, 10, (3, 224, 224), DEVICES['a100-40g'], [8])
