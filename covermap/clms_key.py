"""The service key that signs orders of the Copernicus Land Monitoring Service. Light enough for the Snakefile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from covermap.errors import SettingError

VARIABLE = "CLMS_SERVICE_KEY_FILE"
FIELDS = ("client_id", "user_id", "token_uri", "private_key")
WHERE = "log in at https://land.copernicus.eu, make one under 'API tokens' of the profile and save its JSON as a file"
BRING = "or bring a file of Urban Atlas and name it in labels.path"


def service_key() -> dict[str, str]:
    """The fields of the key in the file that CLMS_SERVICE_KEY_FILE names (CLMS API documentation, 'Authentication').

    Raises
    ------
    SettingError
        There is none, or it is no service key; says where to get one.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        raise SettingError(f"{VARIABLE} is not set, but Urban Atlas is to be downloaded: {WHERE}, {BRING}")
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        key = {field: str(told[field]) for field in FIELDS}
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(
            f"{VARIABLE} names {path}, which is not a service key with {', '.join(FIELDS)}: {WHERE}, {BRING}"
        ) from None
    if not _is_private(key["token_uri"]):
        raise SettingError(f"{VARIABLE} names {path}, whose token_uri is no address of https: {WHERE}")
    return key


def _is_private(url: str) -> bool:
    """Whether nobody listens on the way."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"})
