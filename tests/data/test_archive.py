"""Reading archives that nobody vouches for."""
import bz2
import gzip
import io
import lzma
import os
import tarfile

import pytest

from gluon_aa.data import archive
from gluon_aa.data.archive import read_members
from gluon_aa.errors import FailedError
from pictures import member, write_tar

FILES = {'a/1.txt': b'one', 'a/2.txt': bytes(512), 'b/3.txt': os.urandom(3000), 'b/4.txt': b''}


def read(path, wanted=lambda name: 10_000):
    return {name: content for name, content in read_members(path, wanted)}


def refusal(path, wanted=lambda name: 10_000):
    with pytest.raises(FailedError) as caught:
        read(path, wanted)
    assert str(caught.value).startswith(f'{path} ') and '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize('compression', ['', 'gz', 'xz', 'bz2'])
def test_every_compression_and_format_is_read(tmp_path, compression, format):
    files = {**FILES, f'{"long" * 20}/{"n" * 90}': b'long name'}
    with tarfile.open(str(tmp_path / 'x'), f'w:{compression}', format=format) as tar:
        tar.addfile(*member('a', kind=tarfile.DIRTYPE))
        for name, content in files.items():
            tar.addfile(member(f'./{name}', content)[0], io.BytesIO(content))
    assert read(tmp_path / 'x') == {'a': None, **files}


def test_only_what_is_wanted_is_read(tmp_path):
    path = write_tar(tmp_path / 'x.tar', FILES)
    assert list(read(path, lambda name: 3 if name == 'a/1.txt' else 0)) == ['a/1.txt']


@pytest.mark.parametrize('bad, message', [
    (member('../outside'), "holds '../outside', a name that leads out of it"),
    (member('a/../../outside'), "holds 'a/../../outside', a name that leads out of it"),
    (member('/etc/passwd'), "holds '/etc/passwd', a name that leads out of it"),
    (member('../outside', kind=tarfile.DIRTYPE), 'leads out of it'),
    (member('link', kind=tarfile.SYMTYPE, linkname='/etc/passwd'), "holds 'link', which is a link to '/etc/passwd'"),
    (member('link', kind=tarfile.LNKTYPE, linkname='a/1.txt'), "which is a link to 'a/1.txt'"),
    (member('device', kind=tarfile.CHRTYPE), "holds 'device', which is no file"),
    (member('pipe', kind=tarfile.FIFOTYPE), "holds 'pipe', which is no file"),
    (member('./a//1.txt', b'again'), "holds './a//1.txt' more than once"),
    (member('large', bytes(10_001)), "holds 'large' of 10,001 bytes, where at most 10,000 are expected"),
], ids=['above', 'above within', 'absolute', 'directory above', 'symbolic link', 'hard link', 'device', 'pipe', 'twice',
        'large'])
def test_members_that_do_harm_are_refused_by_name(tmp_path, bad, message):
    path = write_tar(tmp_path / 'x.tar', [*(member(*file) for file in FILES.items()), bad])
    before = sorted(os.listdir(tmp_path))
    assert message in refusal(path)
    assert sorted(os.listdir(tmp_path)) == before and not (tmp_path.parent / 'outside').exists()


def test_sizes_are_judged_before_anything_is_read(tmp_path):
    header = member('huge', size=1 << 40)[0].tobuf()
    (tmp_path / 'x.tar').write_bytes(header + bytes(1024))
    assert "holds 'huge' of 1,099,511,627,776 bytes" in refusal(tmp_path / 'x.tar')
    header = member('back', size=-512)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / 'x.tar').write_bytes(header + bytes(1024))
    refusal(tmp_path / 'x.tar')


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, 'FREE_BYTES', 1 << 20)
    path = write_tar(tmp_path / 'x.tar.xz', [member('zeros', bytes(4 << 20)), member('a', b'')], 'w:xz')
    assert path.stat().st_size < 5000
    assert 'unpacks to more than 1,048,576 bytes' in refusal(path, lambda name: 0)


def test_bombs_in_headers_are_not_unpacked(tmp_path):
    # tarfile takes an extended header into memory whole, whatever its size
    info = member('././@PaxHeader', kind=tarfile.XHDTYPE)[0]
    info.size = 1 << 30
    with lzma.open(tmp_path / 'x.tar.xz', 'w', preset=0) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    assert 'has a header of 1,073,741,824 bytes' in refusal(tmp_path / 'x.tar.xz')


@pytest.mark.parametrize('compress', [lambda data: data, gzip.compress, bz2.compress, lzma.compress])
def test_no_truncated_archive_passes_for_a_whole_one(tmp_path, compress):
    whole = write_tar(tmp_path / 'whole', FILES).read_bytes()[:512 * 16]  # with 2 blocks of the end and more
    data, path = compress(whole), tmp_path / 'x.tar'
    path.write_bytes(data)
    assert read(path) == FILES
    end = 512 * (1 + 1 + 1 + 1 + 1 + 6 + 1)  # headers and content, to where the archive's end is marked
    cuts = range(0, end, 128) if len(data) == len(whole) else range(0, len(data), max(1, len(data) // 40))
    for cut in cuts:
        path.write_bytes(data[:cut])
        assert 'is damaged, truncated or no tar archive: ' in refusal(path)


@pytest.mark.parametrize('compress', [gzip.compress, bz2.compress, lzma.compress])
def test_a_flipped_bit_is_found_by_the_compressions_checksum(tmp_path, compress):
    data = bytearray(compress(write_tar(tmp_path / 'whole', FILES).read_bytes()))
    for place in range(20, len(data), len(data) // 20):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / 'x.tar').write_bytes(damaged)
        refusal(tmp_path / 'x.tar')


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(write_tar(tmp_path / 'x.tar', FILES).read_bytes())
    data[1024] ^= 1  # the second member's name: its header's checksum is wrong
    (tmp_path / 'x.tar').write_bytes(data)
    assert 'the end of the archive is missing' in refusal(tmp_path / 'x.tar')


@pytest.mark.parametrize('content', [b'', b'<html>no tar</html>' * 100, b'\x1f\x8b', bytes(range(256)) * 8],
                         ids=['empty', 'text', 'barely gzip', 'other bytes'])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / 'x.tar').write_bytes(content)
    assert 'is damaged, truncated or no tar archive: ' in refusal(tmp_path / 'x.tar')


def test_an_archive_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FailedError, match='^cannot read .*none.tar: No such file or directory$'):
        read(tmp_path / 'none.tar')
