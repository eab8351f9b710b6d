"""Downloads from hosts on this machine: the first that gives the right file, whole or not at all."""
import functools
import hashlib
import http.server
import threading

import pytest

from gluon_aa.data import cifar, download, load_dataset
from gluon_aa.data.download import Source, fetch
from gluon_aa.errors import FailedError
from pictures import member, write_tar

CONTENT = bytes(range(256)) * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from `pages`, path -> content; `short` ones promise more than they send, `silent` ones nothing."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.pages.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        if 'silent' not in self.path:
            self.send_header('Content-Length', str(len(content) + (1000 if 'short' in self.path else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class Host(http.server.ThreadingHTTPServer):
    """`pages` and `asked` are its content and log, `url` its address."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.pages, self.asked = {}, []
        self.url = f'http://127.0.0.1:{self.server_address[1]}'

    def handle_error(self, *args):
        """A client that hangs up is no news."""


@pytest.fixture
def host():
    server = Host()
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source(host, path, content=CONTENT, algorithm='sha256'):
    return Source(host.url + path, algorithm, hashlib.new(algorithm, content).hexdigest())


def left(directory):
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize('path', ['/file', '/silent'])
@pytest.mark.parametrize('algorithm', ['sha1', 'sha256'])
def test_a_file_is_fetched_with_one_notice(host, tmp_path, path, algorithm):
    host.pages[path] = CONTENT
    notices = []
    fetch([source(host, path, algorithm=algorithm)], tmp_path / 'made' / 'file', len(CONTENT), notices.append)
    assert (tmp_path / 'made' / 'file').read_bytes() == CONTENT and left(tmp_path / 'made') == ['file']
    assert notices == [f'downloading {host.url}{path} ({1 if path == "/file" else 0} MB)']


@pytest.mark.parametrize('bad, content, message', [
    ('/absent', None, 'HTTP Error 404: Not Found'),
    ('/other', b'<html>sign in</html>', 'what it sends is not the official file (SHA256 '),
    ('/short', CONTENT, 'the connection broke off after 1,280,000 of 1,281,000 bytes'),
    ('/large', CONTENT + b'x', 'it sends more than the 1,280,000 bytes expected'),
    ('/silent-large', CONTENT + b'x', 'it sends more than the 1,280,000 bytes expected'),
], ids=['absent', 'other', 'short', 'large', 'large without a length'])
def test_the_next_host_is_asked_where_one_fails(host, tmp_path, bad, content, message):
    if content is not None:
        host.pages[bad] = content
    limit = len(CONTENT) + (1000 if 'short' in bad else 0)
    with pytest.raises(FailedError) as caught:
        fetch([source(host, bad)], tmp_path / 'file', limit, lambda notice: None)
    assert str(caught.value).startswith(f'{host.url}{bad}: {message}') and not left(tmp_path)
    host.pages['/good'] = CONTENT
    fetch([source(host, bad), source(host, '/good')], tmp_path / 'file', limit, lambda notice: None)
    assert (tmp_path / 'file').read_bytes() == CONTENT and left(tmp_path) == ['file']


def test_all_failures_are_named_and_an_old_file_stays(host, tmp_path):
    (tmp_path / 'file').write_text('old')
    sources = [Source('nonsense', 'sha1', ''), Source('http://127.0.0.1:9/x', 'sha1', ''), source(host, '/absent')]
    with pytest.raises(FailedError, match='^nonsense: unknown url type.*; http://127.0.0.1:9/x: .*refused.*404'):
        fetch(sources, tmp_path / 'file', 10, lambda notice: None)
    assert (tmp_path / 'file').read_text() == 'old'


def test_a_host_that_falls_silent_is_given_up(host, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT_SECONDS', 0.1)
    release = threading.Event()
    host.pages = type('Slow', (), {'get': lambda self, path: release.wait(10) and None})()
    with pytest.raises(FailedError, match='timed out'):
        fetch([source(host, '/slow')], tmp_path / 'file', 10, lambda notice: None)
    release.set()


def test_a_directory_that_cannot_be_written_is_named(host, tmp_path):
    host.pages['/file'] = CONTENT
    (tmp_path / 'file').mkdir()
    with pytest.raises(FailedError, match='cannot write .*file'):
        fetch([source(host, '/file')], tmp_path / 'file', len(CONTENT), lambda notice: None)


def test_an_interruption_leaves_nothing(host, tmp_path):
    host.pages['/file'] = CONTENT

    def interrupt(notice):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fetch([source(host, '/file')], tmp_path / 'file', len(CONTENT), interrupt)
    assert not left(tmp_path)


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """CIFAR-100 with 200 images a file, as the official archive and as the mirror's."""
    monkeypatch.setattr(cifar, 'VALIDATION_IMAGES', 100)
    row = cifar.FORMATS['cifar100']
    contents = {file.name: b''.join(bytes([0, number % 100]) + np_bytes(number) for number in range(200))
                for file in row.files}
    archives = [write_tar(tmp_path / name, [member(top + name, content) for name, content in contents.items()],
                          'w:gz').read_bytes() for name, top in (('mirror', ''), ('official', row.directory + '/'))]
    files = [file._replace(images=200, sha1=hashlib.sha1(contents[file.name]).hexdigest()) for file in row.files]
    row = row._replace(train=tuple(files[:-1]), test=files[-1], mirror_sha1=hashlib.sha1(archives[0]).hexdigest(),
                       sha256=hashlib.sha256(archives[1]).hexdigest())
    monkeypatch.setitem(cifar.FORMATS, row.name, row)
    return row, archives


def np_bytes(number):
    return bytes([number]) * cifar.PIXEL_BYTES


@pytest.mark.parametrize('mirror_works', [True, False])
def test_an_absent_data_set_is_downloaded_once(small_archive, host, monkeypatch, mirror_works):
    row, (mirror, official) = small_archive
    monkeypatch.setenv('MXNET_GLUON_REPO', host.url)
    monkeypatch.setitem(cifar.FORMATS, row.name, row._replace(url=f'{host.url}/official'))
    path = f'/gluon/dataset/cifar100/{row.archive}'
    host.pages = {path: mirror if mirror_works else b'damaged', '/official': official}
    for _ in range(2):
        dataset = load_dataset('cifar100')
        assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [100, 100, 200]
    assert host.asked == [path] if mirror_works else [path, '/official']
    assert left(row.default_directory()) == [row.archive]
    assert cifar.find('cifar100') == str(row.default_directory() / row.archive)
