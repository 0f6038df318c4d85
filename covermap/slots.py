"""What processes share: a provider's connections, files that one of them makes, and the folder where this is told.

Each is a lock on a file, which the system gives back when its process ends in whatever way.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from covermap.errors import SettingError

log = logging.getLogger(__name__)


def runtime_folder() -> Path:
    """Folder of this user alone (mode 0700) for slots and tokens: below $XDG_RUNTIME_DIR, else the temporary folder.

    Raises
    ------
    SettingError
        Somebody else made it, or others may read it.
    """
    home = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    private = home.is_absolute() and home.is_dir()
    folder = home / "covermap" if private else Path(tempfile.gettempdir()) / f"covermap-{os.getuid()}"
    with usable(folder):
        with suppress(FileExistsError):  # looked at below, whatever it is
            folder.mkdir(mode=0o700)
        state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise SettingError(f"{folder} is not a folder that you alone can read: remove it, or set XDG_RUNTIME_DIR")
    return folder


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Tells what goes wrong with the runtime folder or a file in it as such, not as the fault of what is fetched."""
    try:
        yield
    except OSError as error:
        raise SettingError(
            f"{path}, where processes share connections and tokens, cannot be used ({error.strerror or error}): remove "
            "it or make room, or set XDG_RUNTIME_DIR to a folder of yours"
        ) from None


@contextmanager
def slot(name: str, connections: int) -> Iterator[None]:
    """One of so many connections to a provider or server, over all processes of this user; waits for a free one.

    Who holds one must not ask for another of the same name: all could wait for each other.
    """
    with _free_slot(name, connections):
        yield


def _free_slot(name: str, connections: int) -> IO[bytes]:
    stem = re.sub(r"[^\w-]", "_", name)
    folder, told = runtime_folder(), False
    while True:
        for number in range(connections):
            path = folder / f"{stem}-{number}.slot"
            with usable(path):
                file = path.open("ab")
                if _lock(file):
                    return file
                file.close()
        if not told:
            log.info("all %d connections to %s are in use: waiting for one", connections, name)
            told = True
        time.sleep(random.uniform(0.05, 0.2))


def _lock(file: IO[bytes]) -> bool:
    """Whether the file could be locked at once. BSD locks: they tell threads of one process apart too."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Hold what is made under ``path`` against other processes; whether another held it before."""
    lock = path.with_name(f".{path.name}.lock")
    waited = False
    while True:
        with lock.open("ab") as file:
            if not _lock(file):
                log.info("another process fetches %s: waiting for it", path)
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, lock):
                try:
                    yield waited
                finally:
                    lock.unlink(missing_ok=True)  # while it is held: who waits for it sees below that it is no more
                return


def _is_named(file: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
