import pytest

from gluon_aa import machine
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import DEVICES, find_device, in_words, parse_bytes


@pytest.mark.parametrize('text, count', [
    ('11GiB', 11 * 2 ** 30), ('500MB', 500 * 10 ** 6), ('1.5 gb', 15 * 10 ** 8), ('1000000', 10 ** 6), ('7b', 7),
    ('2e3 KiB', 2_048_000), (' 1TiB ', 2 ** 40)])
def test_bytes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize('text, why', [
    ('11GiBs', "unknown unit 'GiBs': use B, KB"), ('11 bananas', 'unknown unit'), ('many', 'not a size in bytes'),
    ('', 'not a size'), ('1.2.3GB', 'not a size'), ('0', 'at least one byte'), ('0.1B', 'at least one byte'),
    ('-4GiB', 'at least one byte'), ('inf', 'not a size'), ('9e30GB', 'less than there is anywhere')])
def test_what_is_no_budget_is_refused(text, why):
    with pytest.raises(UsageError, match=why):
        parse_bytes(text)


def test_devices_have_what_nvidia_smi_shows_less_the_pools_reserve():
    p100 = find_device('p100-16g')
    assert p100.memory == 16280 * 2 ** 20 and p100.flops['float32'] == 9.3e12  # of the data sheet and nvidia-smi
    assert p100.usable == int(0.95 * p100.memory)
    assert set(DEVICES) == {'p100-12g', 'p100-16g', 'v100-16g', 'v100-32g', 't4-16g', 'a100-40g', 'cpu'}


def test_a_budget_takes_the_place_of_a_devices_memory():
    assert find_device('p100-16g', 11 * 2 ** 30).usable == int(0.95 * 11 * 2 ** 30)
    assert find_device('cpu', 10 ** 9).usable == 10 ** 9


def test_a_cpu_has_what_this_machine_has_free(monkeypatch):
    monkeypatch.setattr(machine, 'available_memory', lambda: 123)
    assert find_device('cpu').usable == 123


def test_unknown_devices_name_the_near_ones():
    with pytest.raises(UsageError, match="unknown device 'p100': did you mean p100-1"):
        find_device('p100')


def test_bytes_for_people():
    assert [in_words(count) for count in (11, 5120, 3 * 2 ** 20, 1.5 * 2 ** 34)] == [
        '11 bytes', '5 KiB', '3 MiB', '24.00 GiB']
