"""What `auto` stands for, with budgets that are passed in: no GPU is needed."""
import pytest

from gluon_aa.attention import DEFAULT_TILE, resolve_backend
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.training import automatic
from gluon_aa.training.assembly import for_evaluation
from gluon_aa.training.automatic import TILES, Candidate, candidates, choose, resolve
from gluon_aa.training.config import load

SMALL = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4, 'batch_size': 32}
SHAPE = (3, 24, 32)


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


def test_the_first_that_fits_is_chosen_and_planning_stops_there():
    open_to = [Candidate('folded', 'speed'), *(Candidate('tiled', 'recompute', tile) for tile in (1024, 64))]
    sizes = dict(zip(open_to, (12_000_000_000, 9_000_000_000, 8_000_000_000)))
    asked = []

    def planned(candidate):
        asked.append(candidate)
        return sizes[candidate]

    choice = choose(open_to, planned, 10_000_000_000)
    assert choice == (open_to[1], '9.00 GB planned, 10.00 GB free for it', True)
    assert asked == open_to[:2]
    assert choose(open_to, planned, 12_000_000_000).candidate == open_to[0]
    choice = choose(open_to, planned, 7_000_000_000)
    assert choice.candidate == open_to[2] and not choice.fits
    assert choice.reason.startswith('8.00 GB planned, the least there is, but only 7.00 GB free for it: expect to run')


def test_a_network_is_resolved_within_a_budget():
    open_config = config(**SMALL, gpus='0')
    sizes = {each: automatic.planned_bytes(automatic.apply(open_config, each), 10, SHAPE)
             for each in candidates(open_config)}
    assert sizes[Candidate('folded', 'speed')] > sizes[Candidate('tiled', 'recompute', DEFAULT_TILE)]
    for each, size in sizes.items():
        resolved, choice = resolve(open_config, 10, SHAPE, budget=size)
        assert choice.fits and sizes[choice.candidate] <= size
        assert (resolved.attention_backend, resolved.memory_mode, resolved.tile) == choice.candidate
        assert resolved.model_options()['attention_backend'] == choice.candidate.attention_backend
    assert not resolve(open_config, 10, SHAPE, budget=min(sizes.values()) - 1)[1].fits


def test_the_memory_of_the_fullest_gpu_counts(monkeypatch):
    free = {0: 20e9, 3: 2e9}
    monkeypatch.setattr(mx.context, 'gpu_memory_info', lambda gpu: (free[gpu], 16e9))
    _, choice = resolve(config(**SMALL, gpus='0,3'), 10, SHAPE)
    left = 2e9 - 0.05 * 16e9 - 2 ** 30
    assert choice.reason.endswith(f'{left / 1e9:.2f} GB free for it')


def test_nothing_is_planned_on_cpus(monkeypatch):
    monkeypatch.setattr(automatic, 'planned_bytes', lambda *args: pytest.fail('planned'))
    resolved, choice = resolve(config(**SMALL, cpus=2), 10, SHAPE)
    assert (resolved.memory_mode, resolved.attention_backend) == ('speed', resolve_backend('auto'))
    assert choice.reason == ''


@pytest.mark.parametrize('net', ['resnet18', 'wrn10_1', 'cifar_resnet20_v1'])
@pytest.mark.parametrize('keys', [{}, {'gpus': '0'}])
def test_without_attention_nothing_is_compiled_or_planned(monkeypatch, net, keys):
    for name in ('planned_bytes', 'resolve_backend', 'free_bytes'):
        monkeypatch.setattr(automatic, name, lambda *args: pytest.fail('asked for'))
    resolved, choice = resolve(config(net=net, **keys), 10, (3, 32, 32))
    assert resolved.memory_mode == 'speed' and choice.reason == ''


def test_evaluation_plans_nothing(monkeypatch):
    monkeypatch.setattr(automatic, 'planned_bytes', lambda *args: pytest.fail('planned'))
    for keys in ({}, {'memory_mode': 'recompute'}, {'attention_backend': 'folded'}):
        resolved, _ = resolve(for_evaluation(config(**SMALL, gpus='0', **keys)), 10, SHAPE, budget=1)
        assert resolved.memory_mode == 'speed'
        assert resolved.attention_backend == keys.get('attention_backend', 'tiled')


@pytest.mark.slow
def test_the_reference_network_fits_two_cards_of_16_gb():
    card = 16280 * 2 ** 20  # a P100's, as its driver shows it
    resolved, choice = resolve(config(net='aa_wrn28_10', gpus='0,1'), 10, (3, 32, 32),
                               budget=int(0.95 * card - automatic.WORKSPACE - 300e6))  # 300 MB: MXNet's context
    assert choice.fits and resolved.batch_size == 128


def test_networks_of_gluoncv_have_no_attention_to_choose():
    resolved, _ = resolve(config(net='cifar_resnet20_v1', gpus='0'), 10, (3, 32, 32), budget=10 ** 10)
    assert resolved.model_options() == {} and resolved.memory_mode == 'speed'
