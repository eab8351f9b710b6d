"""Cores and instructions, read from made-up kernels' files."""
import pytest

from gluon_aa import machine


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty file system, for a process that may use CPUs 0 to 3."""
    monkeypatch.setattr(machine, 'usable_cpus', lambda: {0, 1, 2, 3})
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def siblings(root, *lists):
    for cpu, text in enumerate(lists):
        write(root / f'sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list', f'{text}\n')


def test_without_kernel_files_every_cpu_counts(root):
    assert machine.physical_cores(root) == 4


def test_hyper_threads_count_once(root):
    siblings(root, '0,2', '1,3', '0,2', '1,3')
    assert machine.physical_cores(root) == 2


def test_affinity_counts(root, monkeypatch):
    siblings(root, '0-1', '0-1', '2-3', '2-3')
    monkeypatch.setattr(machine, 'usable_cpus', lambda: {2, 3})
    assert machine.physical_cores(root) == 1


@pytest.mark.parametrize('limit, cores', [('150000 100000', 2), ('100000 100000', 1), ('20000 100000', 1),
                                          ('max 100000', 4), ('900000 100000', 4)])
def test_cgroup_v2_limits(root, limit, cores):
    write(root / 'proc/self/cgroup', '0::/service/child\n')
    write(root / 'sys/fs/cgroup/service/cpu.max', f'{limit}\n')  # the parent's limit holds for the child
    assert machine.physical_cores(root) == cores


def test_cgroup_v2_at_its_root(root):
    write(root / 'proc/self/cgroup', '0::/\n')
    write(root / 'sys/fs/cgroup/cpu.max', '200000 100000\n')
    assert machine.physical_cores(root) == 2


@pytest.mark.parametrize('quota, cores', [('250000', 3), ('-1', 4)])
def test_cgroup_v1_limits(root, quota, cores):
    write(root / 'proc/self/cgroup', '7:memory:/a\n4:cpu,cpuacct:/docker/x\n')
    write(root / 'sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us', f'{quota}\n')
    write(root / 'sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us', '100000\n')
    assert machine.physical_cores(root) == cores


def test_the_tightest_cgroup_wins(root):
    write(root / 'proc/self/cgroup', '0::/a/b\n')
    write(root / 'sys/fs/cgroup/a/cpu.max', '300000 100000\n')
    write(root / 'sys/fs/cgroup/a/b/cpu.max', '200000 100000\n')
    assert machine.cgroup_cpu_limit(root) == 2


def test_instructions_and_model(root):
    write(root / 'proc/cpuinfo',
          'processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\n')
    assert machine.cpu_model(root) == 'A CPU'
    found = machine.cpu_instructions(root)
    assert found['avx2'] and found['avx512_bf16'] and not found['amx_bf16'] and not found['avx512f']


def test_available_memory(root):
    assert machine.available_memory(root) is None
    write(root / 'proc/meminfo', 'MemTotal:       2000 kB\nMemFree:  100 kB\nMemAvailable:    1500 kB\n')
    assert machine.available_memory(root) == 1500 * 1024


def test_this_machine():
    assert 2 ** 20 < machine.available_memory() < 2 ** 50
    assert 1 <= machine.physical_cores() <= len(machine.usable_cpus())


@pytest.mark.parametrize('place, names, prefix', [
    ('0::/service\n', ('memory.max', 'memory.current'), ''),
    ('9:memory:/service\n', ('memory.limit_in_bytes', 'memory.usage_in_bytes'), 'memory/')])
def test_available_memory_is_within_the_cgroup(root, place, names, prefix):
    write(root / 'proc/meminfo', 'MemAvailable:    8000000 kB\n')
    write(root / 'proc/self/cgroup', place)
    own = root / 'sys/fs/cgroup' / prefix / 'service'
    write(own / names[0], '1000000\n')
    write(own / names[1], '700000\n')
    write(own / 'memory.stat', 'file 9\ninactive_file 5000\n')
    assert machine.available_memory(root) == 1000000 - 700000 + 5000
    write(own / names[0], 'max\n' if names[0] == 'memory.max' else f'{2 ** 63 - 4096}\n')
    assert machine.available_memory(root) == 8000000 * 1024
