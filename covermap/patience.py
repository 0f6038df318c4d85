"""When to try again what may pass: growing pauses with jitter, as long as a server asks, and an end."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from covermap.errors import DownloadError

log = logging.getLogger(__name__)

ATTEMPTS = 8  # in a row that bring nothing
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

T = TypeVar("T")


class Passing(DownloadError):
    """A failure that may pass: tried again, after ``pause_s`` where the server asks for it.

    ``progress`` is whether the attempt brought so much that the count begins anew.
    """

    def __init__(self, message: str, status: int | None = None, pause_s: float = 0.0) -> None:
        super().__init__(message, status)
        self.pause_s = pause_s
        self.progress = False


def persist(attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns, tried until it works, fails for good, or fails with Passing too often in a row.

    Raises
    ------
    DownloadError
        Of the last attempt.
    """
    patience = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Passing),
        after=_count_anew,
        wait=_pause_s,
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=_tell,
        sleep=time.sleep,
        reraise=True,
    )
    try:
        return patience(attempt)
    except Passing as error:
        message = f"{error}, {ATTEMPTS} times in a row: run it again later, it goes on where this one stopped"
        raise DownloadError(message, error.status) from None


def _failed(state: tenacity.RetryCallState) -> Passing:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Passing)
    return error


def _count_anew(state: tenacity.RetryCallState) -> None:
    if _failed(state).progress:
        state.attempt_number = 1


def _pause_s(state: tenacity.RetryCallState) -> float:
    """As the server asks and a little longer, so that not all come back at once; else twice as long each time."""
    asked = _failed(state).pause_s
    if asked:
        return asked + random.uniform(0, FIRST_PAUSE_S)
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (state.attempt_number - 1))
    return random.uniform(longest / 2, longest)


def _tell(state: tenacity.RetryCallState) -> None:
    error, count = _failed(state), state.attempt_number
    log.warning("%s: again in %.1f s (%d of %d)", error, state.upcoming_sleep, count, ATTEMPTS - 1)
