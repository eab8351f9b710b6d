"""Advice on made-up sizes, where the answer is known, and on planned ones, where it is planned again."""
import json

import pytest

from gluon_aa import isolation
from gluon_aa.errors import UsageError
from gluon_aa.memory import advice, ways
from gluon_aa.memory.advice import Change, advise, change_that_fits
from gluon_aa.memory.devices import find_device
from gluon_aa.memory.plan import CATEGORIES, Plan, plans
from gluon_aa.memory.work import work
from gluon_aa.training.config import load

SHAPE = (3, 8, 12)
NET = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4, 'gpus': [0], 'batch_size': 8}
MEGABYTE = 10 ** 6

#: Made-up bytes of an image, in MB, of each way: see `made_up`.
IMAGE = {'reference': 20, 'reference, recompute': 20, 'folded': 10, 'tiled 1024, recompute': 8,
         'tiled 256, recompute': 6, 'tiled 64, recompute': 4}
BASE, UNCERTAIN = 100, 7


@pytest.fixture
def made_up(monkeypatch):
    """Every plan is a base and so much an image and augmented layer, nothing is planned in float16."""
    class Planner:
        def __init__(self, config, classes, image_shape, device):
            self.config = config

        def plan(self, batch_size):
            config = self.config
            layers = 3 if config.placement in (None, 'paper') else int(config.placement[-1])
            parts = len(config.gpus) * config.accumulate
            size = batch_size * layers * IMAGE[ways.title(config, True)] * MEGABYTE // parts
            return Plan(batch_size, {**dict.fromkeys(CATEGORIES, 0), 'parameters': BASE * MEGABYTE, 'attention': size},
                        (), UNCERTAIN * MEGABYTE)
    monkeypatch.setattr(ways, 'Planner', Planner)
    monkeypatch.setattr(advice._Subject, '_in_float16', lambda self, combined: [])


def on(megabytes, **keys):
    """The arguments of a function of advice: a GPU on which so much can be used."""
    return {**NET, **keys}, 10, SHAPE, find_device('t4-16g', int(megabytes * MEGABYTE / 0.95) + 1)


def advised(megabytes, **keys):
    config, *rest = on(megabytes, **keys)
    return advise(load(None, config), *rest)


def test_what_fits_needs_no_change(made_up):
    found = advised(BASE + UNCERTAIN + 3 * 10 * 8)
    assert found['cells'][0]['fits'] and found['changes'] == [] and found['least'] is None
    assert change_that_fits(*on(BASE + UNCERTAIN + 3 * 10 * 8)) is None


def test_the_uncertainty_counts(made_up):
    found = advised(BASE + 3 * 10 * 8, attention_backend='folded', memory_mode='speed')
    assert not found['cells'][0]['fits']


def test_auto_is_what_a_training_takes_there(made_up):
    assert advised(BASE + UNCERTAIN + 3 * 10 * 8)['cells'][0]['way'] == 'folded'
    assert advised(BASE + UNCERTAIN + 3 * 6 * 8)['cells'][0]['way'] == 'tiled 256, recompute'


def test_cells_tell_the_largest_batch_and_the_deepest_augmentation(made_up):
    room = 500
    found = advised(BASE + UNCERTAIN + room, gpus=[0, 1])
    assert found['eligible'] == 3 and len(found['cells']) == 5
    for cell in found['cells']:
        each = IMAGE[cell['way']]
        assert cell['source'] == 'modelled' and cell['devices'] == 2
        assert cell['largest_batch'] == 2 * (room // (3 * each))
        assert cell['deepest'] == min(3, room * 2 // (8 * each))
        assert cell['total_bytes'] == sum(cell['bytes'].values()) == (BASE + 3 * 8 * each / 2) * MEGABYTE
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_backend_is_changed_before_what_is_computed_again_and_the_batch(made_up):
    asked = {'attention_backend': 'reference', 'memory_mode': 'speed'}
    change = change_that_fits(*on(BASE + UNCERTAIN + 3 * 10 * 8, **asked))
    assert change.keys == {'attention_backend': 'folded'} and change.extra_time == 0 and change.effect == ''
    assert change.flags() == ['--attention-backend', 'folded']
    assert change.safe_bytes == (BASE + UNCERTAIN + 3 * 10 * 8) * MEGABYTE
    found = advised(BASE + UNCERTAIN + 3 * 6 * 8, **asked)
    keys = [change['keys'] for change in found['changes']]
    assert keys[:2] == [{'attention_backend': 'tiled', 'memory_mode': 'recompute', 'tile': tile} for tile in (256, 64)]
    assert keys[-1] == {'batch_size': 2}
    amount = work(load(None, {**NET, **asked}), 10, SHAPE)
    assert found['changes'][0]['extra_time'] == pytest.approx(amount.maps / (3 * amount.forward))
    assert 'the training: 2 images a step' in found['changes'][-1]['why']


def test_micro_batches_are_as_few_as_fit_and_come_after_what_alters_nothing(made_up):
    asked = {'attention_backend': 'reference', 'memory_mode': 'speed'}
    found = advised(BASE + UNCERTAIN + 3 * 6 * 8, **asked)
    assert [change['keys'] for change in found['changes']][-2:] == [{'accumulate': 4}, {'batch_size': 2}]
    assert 'alters batch norm: 2 images at a time' in found['changes'][-2]['why']
    change = change_that_fits(*on(BASE + UNCERTAIN + 3 * 4 * 4, **asked))  # no way fits, one image does not either
    assert change.keys == {'attention_backend': 'tiled', 'memory_mode': 'recompute', 'tile': 64, 'accumulate': 2}
    assert change.flags() == ['--attention-backend', 'tiled', '--tile', '64', '--memory-mode', 'recompute',
                              '--accumulate', '2']


def test_where_auto_leaves_it_open_micro_batches_take_the_fastest_way(made_up):
    change = change_that_fits(*on(BASE + UNCERTAIN + 3 * 6 * 4))  # two parts, in tiles of 256 or 64
    assert change.keys == {'attention_backend': 'tiled', 'memory_mode': 'recompute', 'tile': 256, 'accumulate': 2}


def test_the_largest_batch_in_micro_batches_is_a_multiple_of_them(made_up):
    cell = advised(BASE + UNCERTAIN + 3 * 20 * 3 + 59, accumulate=4, attention_backend='reference',
                   memory_mode='speed')['cells'][0]
    assert (cell['accumulate'], cell['largest_batch']) == (4, 12)


def test_a_smaller_batch_is_the_last_way_out(made_up):
    *_, change = advised(BASE + UNCERTAIN + 3 * 4 * 7 + 1)['changes']
    assert change['keys'] == {'attention_backend': 'tiled', 'memory_mode': 'recompute', 'tile': 64, 'batch_size': 7}
    asked = {'attention_backend': 'reference', 'memory_mode': 'speed'}
    *_, change = advised(BASE + UNCERTAIN + 3 * 4 * 3, **asked)['changes']  # for no image of the reference
    assert (change['keys']['batch_size'], change['keys']['attention_backend']) == (3, 'tiled')


def test_where_nothing_fits_it_tells_the_least(made_up):
    found = advised(BASE + UNCERTAIN + 3 * 4 - 1)
    assert found['changes'] == [] and change_that_fits(*on(BASE + UNCERTAIN + 3 * 4 - 1)) is None
    assert found['least'] == {'way': 'tiled 64, recompute', 'batch_size': 1, 'uncertainty_bytes': UNCERTAIN * MEGABYTE,
                              'total_bytes': (BASE + 3 * 4) * MEGABYTE}
    assert all(cell['largest_batch'] == 0 and cell['deepest'] in (0, None) for cell in found['cells'])


def test_times_within_a_tenth_are_equal_and_then_the_least_is_altered():
    def change(extra, **keys):
        return Change(keys, 1, 2, extra, '')
    ranked = [change(0.0, attention_backend='folded'), change(0.045, memory_mode='recompute'),
              change(0.0, accumulate=2), change(0.0, accumulate=4), change(0.01, accumulate=4, memory_mode='recompute'),
              change(0.0, dtype='float16'), change(0.0, dtype='float16', accumulate=2),
              change(0.2, memory_mode='recompute'), change(0.33, recompute='blocks'), change(0.0, batch_size=5)]
    assert sorted(reversed(ranked), key=lambda each: each.rank) == ranked
    # what computes less than what was asked is not cheaper than what does not alter anything
    assert sorted([change(-0.3, accumulate=2), ranked[0]], key=lambda each: each.rank)[0] == ranked[0]


def test_flags_are_words_of_the_command_line():
    keys = {'net': 'wrn10_1', 'relative': False, 'hybridize': True, 'gpus': (0, 1), 'key_ratio': 0.25}
    assert ' '.join(advice.flags(keys)) == '--net wrn10_1 --no-relative --hybridize --gpus 0,1 --key-ratio 0.25'


@pytest.mark.slow
def test_planned_again_the_changed_configuration_fits_and_the_asked_one_does_not():
    asked = {**NET, 'attention_backend': 'reference', 'memory_mode': 'speed', 'batch_size': 64}
    shape, device = (3, 32, 48), find_device('p100-12g')

    def safe(**keys):
        return plans(load(None, {**asked, **keys}), 10, shape, device, [keys.get('batch_size', 64)])[0].safe
    small = safe(attention_backend='tiled', memory_mode='recompute', tile=64)
    device = find_device('p100-12g', int((small + 2 ** 24) / 0.95))
    values = load(None, asked).values()  # as a run directory has them, cpus too
    change = Change(**isolation.call('gluon_aa.memory.advice:change_that_fits_here', {
        'config': values, 'classes': 10, 'image_shape': shape, 'device': list(device)}, 120))
    assert change.keys and 'batch_size' not in change.keys
    assert safe(**change.keys) == change.safe_bytes <= device.usable < safe()


def test_blocks_are_computed_again_on_cpus_at_a_third_more():
    asked = {'net': 'wrn10_2', 'batch_size': 64, 'cpus': 1}
    planned = plans(load(None, {**asked, 'memory_mode': 'recompute', 'recompute': 'blocks'}), 10, (3, 32, 48),
                    find_device('cpu'), [64])[0].safe
    found = advise(load(None, asked), 10, (3, 32, 48), find_device('cpu', planned))
    change, = [change for change in found['changes'] if 'recompute' in change['keys']]
    assert change['keys'] == {'memory_mode': 'recompute', 'recompute': 'blocks'}
    assert change['safe_bytes'] == planned and change['extra_time'] == pytest.approx(1 / 3)


def test_float16_is_offered_on_gpus():
    """Planned in a process of its own: this one is float32's."""
    asked = {**NET, 'attention_backend': 'tiled', 'memory_mode': 'recompute', 'tile': 64, 'batch_size': 64}
    device = find_device('t4-16g')
    rows = isolation.call('gluon_aa.memory.advice:ways_in_float16', {
        'config': asked, 'classes': 10, 'image_shape': SHAPE, 'device': list(device), 'combined': False}, 120)
    row, = rows
    assert row['keys']['dtype'] == 'float16'
    subject = advice._Subject(load(None, asked), 10, SHAPE, device)
    change = subject._change_of(row)
    assert change.keys == {'dtype': 'float16'} and 'float16' in change.effect and change.extra_time == 0


@pytest.mark.parametrize('keys, message', [
    ({'attention_backend': 'native'}, 'native is for CPUs'), ({'gpus': [0, 1], 'batch_size': 1}, 'at least the number'),
    ({'hybridize': False}, 'leave out hybridize'), ({'placement': 'last:4'}, 'K must be 0 to 3'),
    ({'recompute': 'blocks', 'memory_mode': 'recompute'}, 'on GPUs choose --recompute attention')])
def test_what_no_training_could_have(keys, message):
    with pytest.raises(UsageError, match=message):
        advised(10_000, **keys)


def test_networks_without_attention_have_no_depth():
    for net in ('wrn10_1', 'cifar_resnet20_v1'):
        found = advise(load(None, {'net': net, 'gpus': [0], 'batch_size': 8}), 10, (3, 32, 32), find_device('p100-12g'))
        assert found['eligible'] == 0 and [cell['deepest'] for cell in found['cells']] == [None, None]
        assert [cell['way'] for cell in found['cells']] == ['speed', 'recompute']
