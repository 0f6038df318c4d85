"""Each fault of a server alone: the right bytes or one clear sentence, and no secret anywhere."""

import errno
import hashlib
import logging
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import blake3
import pytest

from covermap import patience, slots, transfer, web
from covermap.errors import DownloadError, SettingError
from tests.servers.faulty import FAULTS, SECRET, SIGNATURE, serving
from tests.servers.fetching import IMPATIENT, access_to

CONTENT = random.Random(1).randbytes(700_000)
DIGESTS = {
    "md5": hashlib.md5(CONTENT).hexdigest(),
    "SHA-256": hashlib.sha256(CONTENT).hexdigest(),
    "BLAKE3": blake3.blake3(CONTENT).hexdigest().upper(),
}
MD5 = ("md5", DIGESTS["md5"])
MENDED = [fault for fault in FAULTS if fault != "refused"]
LATER = {"range_ignored", "other_part", "changed", "behind"}  # where something has come
UNCHECKED = [fault for fault in MENDED if fault not in {"corrupt", "length_too_short"}]  # no client can see these


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    for (module, name), value in IMPATIENT.items():
        monkeypatch.setattr(module, name, value)
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files" / "a.zip"


@contextmanager
def faulty(*faults, **settings):
    with serving({"/a.zip": CONTENT, "/empty": b""}, faults, **settings) as server:
        yield server


def fetch(server, path, query="", access=None, **known):
    transfer.fetch_file(f"{server.url}/a.zip{query}", path, access=access or access_to(f"{server.url}/token"), **known)


def alone(path):
    """Whether nothing but the file is in its folder."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def ranges(server):
    return [headers["Range"] for _, _, headers in server.asked if "Range" in headers]


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_a_file_comes_whole_with_each_checksum(path, algorithm):
    with faulty() as server:
        fetch(server, path, size=len(CONTENT), checksum=(algorithm, DIGESTS[algorithm]))
    assert path.read_bytes() == CONTENT
    assert alone(path)


def test_an_empty_file_is_a_file(path):
    with faulty() as server:
        transfer.fetch_file(f"{server.url}/empty", path, size=0, access=access_to(f"{server.url}/token"))
    assert path.read_bytes() == b""


@pytest.mark.parametrize("fault", MENDED)
def test_each_fault_is_mended(path, fault, caplog):
    caplog.set_level(logging.DEBUG)
    faults = ("cut", fault) if fault in LATER else (fault,)
    with faulty(*faults, seed=3) as server:
        fetch(server, path, size=len(CONTENT), checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert alone(path)
    assert not server.faults
    assert not server.leaks
    assert not any(secret in caplog.text for secret in (SECRET, SIGNATURE, server.token, "Bearer"))


@pytest.mark.parametrize("fault", UNCHECKED)
def test_each_fault_is_mended_where_the_catalogue_tells_nothing(path, fault):
    faults = ("cut", fault) if fault in LATER else (fault,)
    with faulty(*faults, seed=4) as server:
        fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_refused_refresh_is_an_error_that_keeps_what_came(path):
    with faulty("refused") as server:
        with pytest.raises(DownloadError, match=r"^127\.0\.0\.1:\d+/token answered 400 \(Bad Request\): ") as caught:
            fetch(server, path, size=len(CONTENT), checksum=MD5)
        assert caught.value.status == 400
        assert not path.exists()
        had = (path.parent / ".a.zip.part").stat().st_size
        server.refusing = False
        fetch(server, path, size=len(CONTENT), checksum=MD5)
        assert ranges(server)[-1] == f"bytes={had}-"
    assert path.read_bytes() == CONTENT


def test_an_expired_token_is_renewed_once_and_the_body_goes_on(path):
    with faulty("expired", "expired", "expired") as server:
        fetch(server, path, checksum=MD5)
        renewed = [headers["Authorization"] for _, _, headers in server.asked]
    assert path.read_bytes() == CONTENT
    assert len(set(renewed)) == 4
    assert len(ranges(server)) == 6  # each refused once, then granted


@pytest.mark.parametrize("fault", ["500", "reset", "slow_headers"])
def test_what_does_not_pass_is_one_sentence(path, fault, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 3)
    with faulty(*[fault] * 9, seed=5) as server, pytest.raises(DownloadError) as caught:
        server.files["/a.zip"] = CONTENT[:1000]
        fetch(server, path, query=f"?signature={SIGNATURE}", checksum=MD5)
    text = str(caught.value)
    assert text.startswith(f"127.0.0.1:{server.server_port}/a.zip")
    assert "3 times in a row: run it again later" in text
    assert SIGNATURE not in text and "Bearer" not in text and "\n" not in text
    assert caught.value.__suppress_context__


def test_a_body_that_never_has_the_checksum_is_not_asked_for_again_and_again(path):
    with faulty() as server, pytest.raises(DownloadError, match=r"has the md5 .* of the catalogue, 3 times in a row"):
        fetch(server, path, checksum=("md5", "0" * 32))
    assert len(server.asked) == transfer.MISMATCHES
    assert list(path.parent.iterdir()) == []


def test_a_file_of_another_size_than_the_catalogue_tells_is_no_file(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    with faulty() as server, pytest.raises(DownloadError, match="announces 700000 bytes, not 5 as the catalogue tells"):
        fetch(server, path, size=5)
    assert not path.exists()


def test_404_is_told_at_once(path):
    with faulty() as server:
        with pytest.raises(DownloadError, match=r"/b.zip answered 404 \(Not Found\): ") as caught:
            transfer.fetch_file(f"{server.url}/b.zip?key=x", path)
        assert len(server.asked) == 1
    assert caught.value.status == 404


def test_a_server_that_brings_a_little_each_time_is_not_given_up(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 1)
    with faulty(*["cut"] * 6) as server:
        fetch(server, path, checksum=MD5)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", [None, MD5])
def test_an_interrupted_run_goes_on_where_it_was(path, checksum, monkeypatch):
    with faulty("cut", seed=1) as server:
        with monkeypatch.context() as patched:
            patched.setattr(patience, "ATTEMPTS", 1)
            with pytest.raises(DownloadError, match=r"closed before the end"):
                fetch(server, path, checksum=checksum)
        had = (path.parent / ".a.zip.part").stat().st_size
        assert 0 < had < len(CONTENT)
        fetch(server, path, checksum=checksum)
        assert ranges(server) == [f"bytes={had}-"]
        assert len(server.asked) == 2
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("note", ["", "{}", '{"url": "elsewhere/a.zip", "validator": "x", "checksum": null}', "[1]"])
@pytest.mark.parametrize("checksum", [None, MD5])
@pytest.mark.parametrize("fault", ["", "part"])
def test_a_part_of_something_else_is_not_gone_on_with(path, note, checksum, fault):
    (path.parent / ".a.zip.part").write_bytes(b"something else")
    (path.parent / ".a.zip.part.json").write_text(note)
    with faulty(fault, seed=2) as server:
        fetch(server, path, checksum=checksum)
        assert len(ranges(server)) == bool(fault)
    assert path.read_bytes() == CONTENT
    assert alone(path)


def test_a_file_that_changed_since_the_interruption_comes_anew(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    with faulty("cut", seed=1) as server:
        with pytest.raises(DownloadError):
            fetch(server, path)
        server.files["/a.zip"] = CONTENT[::-1]
        fetch(server, path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_part_that_went_wrong_on_disk_is_found_out(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    with faulty("cut", seed=1) as server:
        with pytest.raises(DownloadError):
            fetch(server, path, checksum=MD5)
        part = path.parent / ".a.zip.part"
        part.write_bytes(bytes(part.stat().st_size))
        monkeypatch.setattr(patience, "ATTEMPTS", 2)
        fetch(server, path, checksum=MD5)
    assert path.read_bytes() == CONTENT


def test_a_part_without_a_note_is_not_added_to(path):
    """As a kill leaves one behind a 206 that nobody asked for."""
    (path.parent / ".a.zip.part").write_bytes(CONTENT[:999])
    with faulty("part", seed=2) as server:
        fetch(server, path, size=len(CONTENT), checksum=MD5)
    assert path.read_bytes() == CONTENT


def test_bytes_that_somebody_else_added_are_found_out(path):
    part = transfer._Part(path, "https://a/a.zip", None, MD5)
    part.write(iter([CONTENT]), None)
    with part.file.open("ab") as file:
        file.write(b"more")
    with pytest.raises(patience.Passing, match="has 700004 bytes on disk, though 700000 came"):
        part.check()
    assert not part.file.exists()


def test_what_a_kill_left_beside_a_whole_file_is_removed(path):
    path.write_bytes(CONTENT)
    for end in ("part", "part.json", "lock"):
        (path.parent / f".a.zip.{end}").write_text("")
    with faulty() as server:
        fetch(server, path, checksum=MD5)
        assert server.asked == []
    assert alone(path)


def test_a_wrong_file_does_not_keep_its_name_where_no_other_comes(path):
    path.write_bytes(CONTENT[:-1] + b"x")
    with faulty() as server, pytest.raises(DownloadError, match="answered 404"):
        transfer.fetch_file(f"{server.url}/b.zip", path, checksum=MD5, access=access_to(f"{server.url}/token"))
    assert not path.exists()


def test_json_is_a_file_where_the_name_says_so(path):
    with faulty("json") as server:
        fetch(server, path.with_suffix(".json"))
    assert path.with_suffix(".json").read_bytes().startswith(b'{"state"')


def test_no_more_is_written_than_the_catalogue_tells(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n"
    with saying(endless) as port, pytest.raises(DownloadError, match="sends more than the 5 bytes that it should have"):
        transfer.fetch_file(f"http://127.0.0.1:{port}/a.zip", path, size=5)
    assert not path.exists() and not (path.parent / ".a.zip.part").exists()


def test_a_small_answer_that_may_be_cut_is_asked_for_again():
    with faulty("no_length") as server:
        answer = web.request("GET", f"{server.url}/a.zip", access=access_to(f"{server.url}/token"))
        assert sum(asked == "/a.zip" and "Authorization" in headers for _, asked, headers in server.asked) == 2
    assert answer.content == CONTENT


@pytest.mark.parametrize("ask", [lambda url, path, access: web.request("GET", url, access=access), transfer.fetch_file])
def test_credentials_that_no_header_can_hold_are_one_sentence(path, ask):
    access = web.Access("x", 2, frozenset({"127.0.0.1"}), headers=lambda _: {"Authorization": "Bearer ключ"})
    with faulty() as server, pytest.raises(DownloadError, match="credentials hold characters that no header") as told:
        ask(f"{server.url}/a.zip", path, access=access)
    assert "ключ" not in str(told.value)


@pytest.mark.parametrize("ask", [lambda url, path, access: web.request("GET", url, access=access), transfer.fetch_file])
def test_a_slot_that_can_not_be_had_is_not_the_fault_of_the_file(path, ask):
    (slots.runtime_folder() / "x-0.slot").mkdir()
    with pytest.raises(SettingError, match=r"x-0\.slot, where processes share .* cannot be used \(Is a directory\): "):
        ask("http://127.0.0.1/a.zip", path, access=web.Access("x", 1))


def test_a_lock_that_lost_its_name_does_not_count(path):
    """Of three that want one file the first unlinks its lock, on which the second waits and which the third lacks."""
    lock, entered = path.with_name(".a.zip.lock"), threading.Event()

    def second():
        with slots.alone(path):
            entered.set()

    thread = threading.Thread(target=second)
    with lock.open("ab") as first:
        assert slots._lock(first)
        thread.start()
        _wait_for_lock(lock)
        lock.unlink()
        with slots.alone(path):
            first.close()
            assert not entered.wait(0.3)
        thread.join(5)
    assert entered.is_set()


def _wait_for_lock(lock):
    """Until somebody waits for a lock (proc(5), /proc/locks: such lines have an arrow)."""
    number = f":{lock.stat().st_ino} "
    for _ in range(500):
        if any("->" in line and number in line for line in Path("/proc/locks").read_text().splitlines()):
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


def test_a_file_that_is_there_is_not_fetched_again(path):
    path.write_bytes(CONTENT)
    with faulty() as server:
        fetch(server, path, checksum=MD5)
        fetch(server, path, size=len(CONTENT))
        assert server.asked == []
        path.write_bytes(CONTENT[:-1] + b"x")
        fetch(server, path, checksum=MD5)
    assert path.read_bytes() == CONTENT


def test_credentials_stay_with_their_hosts(path):
    with faulty("away") as server:
        fetch(server, path, checksum=MD5)
        hosts = [(host.partition(":")[0], "Authorization" in headers) for host, _, headers in server.asked]
    assert hosts == [("127.0.0.1", True), ("localhost", False)]


def test_netrc_does_not_take_the_place_of_a_token(path, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with faulty() as server:
        fetch(server, path)
        assert all("Bearer" in headers["Authorization"] for _, _, headers in server.asked)


@pytest.mark.parametrize(
    ("url", "belongs"),
    [
        ("https://a.example.org/x", True),
        ("https://deep.below.example.net/x", True),
        ("https://example.net/x", False),
        ("https://evil-a.example.org/x", False),
        ("https://a.example.org.evil.com/x", False),
        ("https://a.example.org@evil.com/x", False),
        ("http://a.example.org/x", False),
        ("https://with.port:8443/x", True),
        ("https://with.port/x", False),
    ],
)
def test_hosts_that_credentials_belong_to(url, belongs):
    access = web.Access("a", hosts=frozenset({"a.example.org", ".example.net", "with.port:8443"}))
    assert web.belongs(url, access) is belongs


def test_a_password_is_not_sent_where_a_post_is_redirected():
    with faulty() as server, pytest.raises(DownloadError, match="redirects a POST to localhost"):
        web.request("POST", f"{server.url}/moved", data={"password": "hidden"})


def test_further_headers_stay_with_their_host():
    with faulty("away") as server:
        access = access_to(f"{server.url}/token")
        answer = web.request("GET", f"{server.url}/a.zip", access=access, headers={"X-Key": "hidden"})
        assert ["X-Key" in headers for _, _, headers in server.asked] == [True, False]
    assert answer.content == CONTENT


@pytest.mark.parametrize("fault", ["429_retry_after", "500", "reset", "cut", "slow_body", "slow_headers", "expired"])
def test_small_answers_are_tried_again_too(fault):
    with faulty(fault, seed=2) as server:
        answer = web.request("GET", f"{server.url}/a.zip", access=access_to(f"{server.url}/token"))
    assert answer.status_code == 200
    assert answer.content == CONTENT


def test_a_status_that_is_expected_is_an_answer():
    with faulty() as server:
        answer = web.request("POST", f"{server.url}/token", data={"secret": "wrong"}, accept=(401,))
        with pytest.raises(DownloadError, match="answered 401") as caught:
            web.request("POST", f"{server.url}/token", data={"secret": "wrong"})
    assert (answer.status_code, caught.value.status) == (401, 401)


def test_retry_after_is_waited_for(path):
    with faulty("429_retry_after") as server:
        began = time.monotonic()
        fetch(server, path)
    assert 1.0 <= time.monotonic() - began < 3


@pytest.mark.parametrize(("text", "seconds"), [("120", 120), ("", 0), ("soon", 0), ("-3", 0)])
def test_retry_after_in_seconds(text, seconds):
    assert web.retry_after_s(_Headers({"Retry-After": text})) == seconds


@pytest.mark.parametrize(("ahead", "low", "high"), [(100, 98, 100), (-100, 0, 0)])
def test_retry_after_as_a_date(ahead, low, high):
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    assert low <= web.retry_after_s(_Headers({"Retry-After": text})) <= high


class _Headers:
    def __init__(self, headers):
        self.headers = headers


@pytest.mark.parametrize("fault", ["slow_headers", "slow_body"])
def test_what_drips_is_not_waited_for(path, fault):
    with faulty(fault, seed=3) as server:
        began = time.monotonic()
        fetch(server, path)
    assert time.monotonic() - began < 4  # the headers alone would take ten seconds


def test_too_long_a_wait_is_left_to_the_user(path, monkeypatch):
    monkeypatch.setattr(web, "LONGEST_WAIT_S", 0.5)
    with faulty("429_retry_after") as server, pytest.raises(DownloadError, match="asks to wait for 1 s: run it again"):
        fetch(server, path)


def test_pauses_grow_and_differ():
    def pauses(number):
        state = patience.tenacity.RetryCallState(None, None, (), {})
        state.attempt_number = number
        state.set_exception((patience.Passing, patience.Passing("x"), None))
        return [patience._pause_s(state) for _ in range(50)]

    for number in range(1, 5):
        longest = min(patience.LONGEST_PAUSE_S, patience.FIRST_PAUSE_S * 2 ** (number - 1))
        drawn = pauses(number)
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


def test_room_is_checked_before(path, monkeypatch):
    usage = transfer.shutil.disk_usage(path.parent)._replace(free=1000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    with faulty() as server, pytest.raises(DownloadError, match=r"needs 0\.7 MB more, but .* has 0\.0 MB free"):
        fetch(server, path)
    assert not path.exists()


def test_a_disk_that_fills_up_keeps_what_came(path, monkeypatch):
    write = transfer._Part.write

    def full(part, chunks, total):
        def until_full():
            yield next(chunks)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        write(part, until_full(), total)

    with faulty() as server:
        with monkeypatch.context() as patched:
            patched.setattr(transfer._Part, "write", full)
            with pytest.raises(DownloadError, match="No space left on device"):
                fetch(server, path, checksum=MD5)
        assert not path.exists()
        fetch(server, path, checksum=MD5)
        assert len(ranges(server)) == 1
    assert path.read_bytes() == CONTENT


def test_one_fetches_and_the_others_take_it(path):
    with faulty(rate=2e6) as server:
        threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT
    assert alone(path)


def test_no_more_connections_than_the_provider_allows(tmp_path):
    with faulty(rate=4e6) as server:
        access = access_to(f"{server.url}/token", connections=2)
        access.headers("")
        paths = [tmp_path / f"{number}.zip" for number in range(6)]
        threads = [threading.Thread(target=fetch, args=(server, path), kwargs={"access": access}) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_open == 2
    assert all(path.read_bytes() == CONTENT for path in paths)


def test_the_runtime_folder_is_of_the_user_alone(tmp_path, monkeypatch):
    folder = slots.runtime_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(SettingError, match="you alone can read"):
        slots.runtime_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(slots.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"covermap-{os.getuid()}").symlink_to(tmp_path / "runtime")
    with pytest.raises(SettingError, match="you alone can read"):
        slots.runtime_folder()


def test_a_proxy_is_used(path, monkeypatch):
    with faulty() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        with pytest.raises(DownloadError, match=r"^nowhere\.invalid/a\.zip answered 401"):
            transfer.fetch_file("http://nowhere.invalid/a.zip", path)
        assert [(host, asked) for host, asked, _ in server.asked] == [
            ("nowhere.invalid", "http://nowhere.invalid/a.zip")
        ]


def test_nobody_there_is_one_sentence(path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        DownloadError, match=rf"^127\.0\.0\.1:{port}/a: the connection failed \(Connection refused\), 2 "
    ):
        transfer.fetch_file(f"http://127.0.0.1:{port}/a?key=hidden", path)


@pytest.mark.parametrize(
    "url", ["a.zip?key=hidden", "https://", "ftp://x/a.zip?key=hidden", "http://[::1/a?key=hidden"]
)
def test_no_address_is_one_sentence(path, url):
    with pytest.raises(DownloadError, match="is no address: expected https://host/path") as caught:
        transfer.fetch_file(url, path)
    assert "hidden" not in str(caught.value)


NONSENSE = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nabc",
    "endless length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabc",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "another's content": b"HTTP/1.1 203 Changed\r\nContent-Length: 3\r\n\r\nabc",
    "unknown success": b"HTTP/1.1 299 Good\r\nContent-Length: 3\r\n\r\nabc",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "part unasked": b"HTTP/1.1 206 Partial\r\nContent-Range: bytes x-y/z\r\nContent-Length: 3\r\n\r\nabc",
    "zipped": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "to nowhere": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "to no text": b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe/\r\nContent-Length: 0\r\n\r\n",
    "to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "to itself": b"HTTP/1.1 302 Found\r\nLocation: /a.zip\r\nContent-Length: 0\r\n\r\n",
    "no redirect": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n",
    "endless wait": b"HTTP/1.1 429 No\r\nRetry-After: Mon, 01 Jan 9999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
}


@contextmanager
def saying(answer):
    """Port of a server that gives one answer to everything."""

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_one_sentence(path, kind, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    access = web.Access("x", hosts=frozenset({"127.0.0.1"}))
    with saying(NONSENSE[kind]) as port, pytest.raises(DownloadError) as caught:
        transfer.fetch_file(f"http://127.0.0.1:{port}/a.zip?key=hidden", path, access=access)
    text = str(caught.value)
    assert text.startswith(f"127.0.0.1:{port}/a.zip") and "hidden" not in text and "\n" not in text
    assert not path.exists()


@pytest.fixture
def certificate(tmp_path):
    """A certificate that nobody vouches for, and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    file = tmp_path / "certificate.pem"
    line = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=loopback -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*line.split(), "-keyout", file, "-out", tmp_path / "public.pem"], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (tmp_path / "public.pem").read_bytes())
    return file


def test_a_certificate_must_hold(path, certificate, monkeypatch):
    with faulty("cut", "slow_headers", seed=1) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http", "https")
        access = access_to(f"{url}/token")
        with pytest.raises(DownloadError, match="the certificate of the host does not hold"):
            transfer.fetch_file(f"{url}/a.zip", path, access=access)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        transfer.fetch_file(f"{url}/a.zip", path, access=access)
        assert not server.faults
    assert path.read_bytes() == CONTENT


def test_https_does_not_lead_to_http():
    answer = web.requests.Response()
    answer.status_code, answer.headers["Location"] = 302, "http://b.example.org/x?key=hidden"
    with pytest.raises(DownloadError, match=r"^a\.example\.org/y redirects from https to http: ") as caught:
        web._target(answer, "GET", "https://a.example.org/y")
    assert "hidden" not in str(caught.value)


def test_an_unknown_checksum_is_one_sentence(path):
    with pytest.raises(DownloadError, match="'crc32' is not known: expected one of blake3, md5"):
        transfer.fetch_file("http://127.0.0.1/a", path, checksum=("crc32", "00"))


def test_a_folder_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        transfer.fetch_file("http://127.0.0.1/a", tmp_path / "file" / "a.zip")


def test_progress_tells_rate_and_rest(path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(transfer, "REPORT_S", 0.02)
    with faulty(rate=4e6) as server:
        fetch(server, path)
    assert "of 0.7 MB" in caplog.text and "MB/s" in caplog.text and "s left" in caplog.text
    assert transfer._progress(250, 1000, 50) == "0.0 of 0.0 MB, 0.0 MB/s, 15 s left"


def test_a_url_is_signed_anew_for_each_request(path):
    count = iter(range(99))
    with faulty("cut", "away", seed=1) as server:
        access = access_to(f"{server.url}/token")
        signed = web.Access(
            "s", 4, access.hosts, access.headers, sign=lambda url: f"{url}?n={next(count)}", renew=access.renew
        )
        fetch(server, path, access=signed)
        asked = [urlpath for host, urlpath, _ in server.asked if host.startswith("127")]
        away = [urlpath for host, urlpath, _ in server.asked if host.startswith("localhost")]
    assert len(set(asked)) == 2
    assert away == [f"/a.zip?signature={SIGNATURE}"]
    assert Path(path).read_bytes() == CONTENT


def test_a_web_page_in_between_leaves_what_came(path):
    with faulty("cut", "web_page", seed=1) as server:
        fetch(server, path, checksum=MD5)
        first, second = ranges(server)
    assert first == second != "bytes=0-"
    assert path.read_bytes() == CONTENT


def test_who_waited_does_not_take_a_file_of_another_checksum(path):
    with faulty(rate=2e6) as server:
        thread = threading.Thread(target=fetch, args=(server, path), kwargs={"checksum": MD5})
        thread.start()
        while not server.asked:
            time.sleep(0.001)
        with pytest.raises(DownloadError, match=r"has the md5 .* of the catalogue, 3 times in a row"):
            fetch(server, path, checksum=("md5", "0" * 32))
        thread.join()
    assert not path.exists()  # the latter of two catalogues that differ


@contextmanager
def leading_on(target):
    """Port of a server that redirects with a body that never ends."""

    def serve():
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + target.encode() + b"\r\n\r\n")
            while True:
                connection.sendall(b"more ")
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def test_the_body_of_a_redirect_is_not_waited_for(path):
    with faulty() as server, leading_on(f"{server.url}/a.zip") as port:
        transfer.fetch_file(f"http://127.0.0.1:{port}/a.zip", path, access=access_to(f"{server.url}/token"))
    assert path.read_bytes() == CONTENT


def test_a_file_in_place_of_the_runtime_folder_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "runtime" / "covermap").write_text("")
    with pytest.raises(SettingError, match="runtime/covermap is not a folder that you alone can read"):
        slots.runtime_folder()
