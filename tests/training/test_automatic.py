"""What `auto` stands for, with budgets that are given or pretended: no GPU is needed."""
import dataclasses

import pytest

from gluon_aa.attention import DEFAULT_TILE, resolve_backend
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory.devices import CONTEXT, DEVICES, Device, in_words
from gluon_aa.training import automatic, loop
from gluon_aa.training.assembly import for_evaluation
from gluon_aa.training.automatic import TILES, Candidate, candidates, choose, resolve
from gluon_aa.training.config import load

SMALL = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4, 'batch_size': 32}
SHAPE = (3, 24, 32)
GIB = 2 ** 30


def config(**keys):
    return load(None, keys)


def test_on_cpus_auto_is_what_is_fastest():
    best = resolve_backend('auto', on_gpus=False)
    assert candidates(config()) == candidates(config(hybridize=False)) == [Candidate(best, 'speed')]


@pytest.mark.parametrize('keys, wanted', [
    ({'attention_backend': 'tiled', 'tile': 7}, [('tiled', 'speed', 7)]),
    ({'attention_backend': 'folded', 'memory_mode': 'recompute'}, [('folded', 'recompute')]),
    ({'gpus': '0'}, [('folded', 'speed')] + [('tiled', 'recompute', tile) for tile in TILES]),
    ({'gpus': '0,1', 'tile': 100}, [('folded', 'speed', 100), ('tiled', 'recompute', 100)]),
    ({'gpus': '0', 'attention_backend': 'reference'}, [('reference', 'speed'), ('reference', 'recompute')]),
    ({'gpus': '0', 'memory_mode': 'speed'}, [('folded', 'speed')]),
    ({'gpus': '0', 'memory_mode': 'recompute'}, [('tiled', 'recompute', tile) for tile in TILES]),
    ({'gpus': '0', 'hybridize': False}, [('folded', 'speed')]),
], ids=str)
def test_choices_of_the_user_are_kept(keys, wanted):
    assert candidates(config(**keys)) == [Candidate(*each) for each in wanted]


def test_recompute_on_cpus_without_native_is_for_tiled(monkeypatch):
    for best, wanted in (('folded', 'tiled'), ('native', 'native')):
        monkeypatch.setattr(automatic, 'resolve_backend', lambda name, on_gpus, best=best: best)
        assert candidates(config(memory_mode='recompute')) == [Candidate(wanted, 'recompute')]


@pytest.mark.parametrize('keys, message', [
    ({'memory_mode': 'recompute', 'hybridize': False}, 'which hybridize: false forbids'),
    ({'memory_budget': '1GB', 'hybridize': False}, 'memory_budget needs a plan'),
    ({'memory_mode': 'speed', 'recompute': 'blocks'}, 'recompute: blocks is for --memory-mode recompute'),
    ({'recompute': 'blocks'}, 'recompute: blocks is for --memory-mode recompute, not for auto'),
    ({'memory_mode': 'recompute', 'recompute': 'blocks', 'gpus': '0'}, 'only known to be right on CPUs'),
])
def test_contradictions_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        candidates(config(**keys))


def test_native_on_gpus_is_refused():
    with pytest.raises(UsageError, match='native is for CPUs: on GPUs choose folded, tiled or auto'):
        candidates(config(gpus='0', attention_backend='native'))


@pytest.mark.parametrize('best, keys, wanted', [
    ('native', {}, [('native', 'speed'), ('native', 'recompute')]),
    ('folded', {}, [('folded', 'speed')] + [('tiled', 'recompute', tile) for tile in TILES]),
    ('folded', {'memory_mode': 'speed'}, [('folded', 'speed')]),
    ('folded', {'attention_backend': 'tiled', 'tile': 9}, [('tiled', 'speed', 9), ('tiled', 'recompute', 9)]),
], ids=str)
def test_a_budget_opens_on_cpus_what_is_open_on_gpus(monkeypatch, best, keys, wanted):
    resolved = automatic.resolve_backend
    monkeypatch.setattr(automatic, 'resolve_backend', lambda name, on_gpus: (
        best if name == 'auto' else resolved(name, on_gpus)))
    assert candidates(config(memory_budget='1GiB', **keys)) == [Candidate(*each) for each in wanted]


def test_the_first_that_fits_is_chosen_and_planning_stops_there():
    open_to = [Candidate('folded', 'speed'), *(Candidate('tiled', 'recompute', tile) for tile in (1024, 64))]
    sizes = dict(zip(open_to, (12 * GIB, 9 * GIB, 8 * GIB)))
    asked = []

    def planned(candidate):
        asked.append(candidate)
        return sizes[candidate]

    choice = choose(open_to, planned, 10 * GIB)
    assert choice == (open_to[1], '9.00 GiB planned, 10.00 GiB there for it', True)
    assert asked == open_to[:2]
    assert choose(open_to, planned, 12 * GIB).candidate == open_to[0]
    choice = choose(open_to, planned, 7 * GIB)
    assert choice.candidate == open_to[2] and not choice.fits
    assert choice.reason == '8.00 GiB planned, the least there is, but only 7.00 GiB there for it'


@pytest.fixture
def gpus(monkeypatch):
    """Free bytes of a GPU by its id, of 16 GB each."""
    free = {}
    monkeypatch.setattr(mx.context, 'gpu_memory_info', lambda gpu: (free[gpu], 16 * 10 ** 9))
    return free


def planned_sizes(asked, device):
    return {each: automatic.plan(automatic.apply(asked, each), 10, SHAPE, device).safe for each in candidates(asked)}


def test_a_network_is_resolved_within_what_a_gpu_has_free(gpus):
    asked = config(**{**SMALL, 'batch_size': 512}, gpus='0')  # less than 900 MB are planned as what starting takes
    sizes = planned_sizes(asked, Device('gpu', 'GPU', True))
    assert sizes[Candidate('folded', 'speed')] > sizes[Candidate('tiled', 'recompute', DEFAULT_TILE)]
    for each, size in sizes.items():
        # the plan counts the context, which is there before anybody asks what is free; the pool keeps its reserve
        gpus[0] = size - CONTEXT + 0.05 * 16e9 + 9
        resolved, choice = resolve(asked, 10, SHAPE)
        assert choice.fits and sizes[choice.candidate] <= size
        assert (resolved.attention_backend, resolved.memory_mode, resolved.tile) == choice.candidate
        assert resolved.model_options()['attention_backend'] == choice.candidate.attention_backend
    gpus[0] = min(sizes.values()) - CONTEXT + 0.05 * 16e9 - 9
    assert not resolve(asked, 10, SHAPE)[1].fits


def test_the_memory_of_the_fullest_gpu_counts(gpus):
    gpus.update({0: 15 * 10 ** 9, 3: 2 * 10 ** 9})
    assert automatic.device_of(config(gpus='0,3')).usable == pytest.approx(2e9 - 0.05 * 16e9 + CONTEXT, abs=9)


def test_a_budget_is_that_of_each_device(gpus):
    assert automatic.device_of(config(gpus='0', memory_budget='10GB')).usable == pytest.approx(9.5e9)
    assert automatic.device_of(config(cpus=2, memory_budget='10GB')).usable == 10 ** 10


@pytest.mark.parametrize('net', ['aa_wrn10_1', 'wrn10_1', 'cifar_resnet20_v1'])
def test_within_a_budget_everything_is_planned_on_cpus(net):
    small = SMALL if net.startswith('aa') else {'batch_size': 32}
    asked = config(**{**small, 'net': net, 'memory_budget': '1TB'})
    resolved, choice = resolve(asked, 10, SHAPE)
    size = automatic.plan(resolved, 10, SHAPE, DEVICES['cpu']).safe
    assert choice.fits and choice.reason.startswith(in_words(size)) and resolved.memory_mode == 'speed'
    for budget in (size, size - 1):
        asked = config(**{**small, 'net': net, 'memory_budget': str(budget)})
        found = resolve(asked, 10, SHAPE)[0]
        assert found.memory_mode == ('speed' if budget == size else 'recompute')


def test_what_does_not_fit_a_budget_is_refused_with_the_parts_that_would():
    asked = config(**SMALL, attention_backend='folded', memory_mode='speed', memory_budget='1TB')
    sizes = {number: automatic.plan(dataclasses.replace(asked, accumulate=number), 10, SHAPE, DEVICES['cpu']).safe
             for number in (1, 2, 4, 8, 16, 32)}
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    for number in (2, 8):
        tight = dataclasses.replace(asked, memory_budget=str(sizes[number]))
        with pytest.raises(FailedError, match=f'with --batch-size 32 does not fit .*--accumulate {number} does'):
            resolve(tight, 10, SHAPE)
        assert resolve(dataclasses.replace(tight, accumulate=number), 10, SHAPE)[1].fits
    with pytest.raises(FailedError, match='does not fit .*, and no --accumulate makes it: raise --memory-budget'):
        resolve(dataclasses.replace(asked, memory_budget=str(sizes[32] - 1)), 10, SHAPE)


def test_what_does_not_fit_is_refused_before_a_run_directory_is_made(tmp_path):
    keys = {**SMALL, 'dataset': 'digits', 'memory_budget': '4MiB'}
    with pytest.raises(FailedError, match='does not fit'):
        loop.train(config(**keys), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_nothing_is_planned_on_cpus(monkeypatch):
    monkeypatch.setattr(automatic, 'plan', lambda *args: pytest.fail('planned'))
    resolved, choice = resolve(config(**SMALL, cpus=2), 10, SHAPE)
    assert (resolved.memory_mode, resolved.attention_backend) == ('speed', resolve_backend('auto'))
    assert choice.reason == ''


@pytest.mark.parametrize('net', ['resnet18', 'wrn10_1', 'cifar_resnet20_v1'])
@pytest.mark.parametrize('keys', [{}, {'gpus': '0'}])
def test_without_attention_nothing_is_compiled_or_planned(monkeypatch, net, keys):
    for name in ('plan', 'resolve_backend', 'gpu_bytes'):
        monkeypatch.setattr(automatic, name, lambda *args: pytest.fail('asked for'))
    resolved, choice = resolve(config(net=net, **keys), 10, (3, 32, 32))
    assert resolved.memory_mode == 'speed' and choice.reason == ''


def test_evaluation_plans_nothing(monkeypatch):
    monkeypatch.setattr(automatic, 'plan', lambda *args: pytest.fail('planned'))
    for keys in ({}, {'memory_mode': 'recompute'}, {'attention_backend': 'folded'}, {'memory_budget': '1MB'}):
        resolved, _ = resolve(for_evaluation(config(**SMALL, gpus='0', **keys)), 10, SHAPE)
        assert resolved.memory_mode == 'speed'
        assert resolved.attention_backend == keys.get('attention_backend', 'tiled')


def test_evaluation_takes_batches_in_parts_as_far_as_there_are_images():
    assert for_evaluation(config(batch_size=128, accumulate=8)).accumulate == 8
    assert for_evaluation(config(batch_size=7, accumulate=8, cpus=2)).accumulate == 3


@pytest.mark.slow
def test_the_reference_network_fits_two_cards_of_16_gb():
    card = DEVICES['p100-16g'].memory
    resolved, choice = resolve(config(net='aa_wrn28_10', gpus='0,1', memory_budget=str(card)), 10, (3, 32, 32))
    assert choice.fits and resolved.batch_size == 128


def test_networks_of_gluoncv_have_no_attention_to_choose():
    resolved, _ = resolve(config(net='cifar_resnet20_v1', gpus='0'), 10, (3, 32, 32))
    assert resolved.model_options() == {} and resolved.memory_mode == 'speed'
