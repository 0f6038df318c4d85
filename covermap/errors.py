"""What can go wrong and is the user's to mend: each message is one sentence with the thing, the value and the fix."""


class CovermapError(Exception):
    """Base of all errors that a user can mend."""


class SettingError(CovermapError):
    """A setting, an area or a legend does not make sense."""


class ProductError(CovermapError):
    """A scene, a DEM or a label file is missing, broken or not what it claims to be."""


class CoverageError(CovermapError):
    """Nothing was found where something is needed: no scene, no overlap, no label."""


class ModelError(CovermapError):
    """A network cannot be trained or applied with what it was given."""


class RoomError(CovermapError):
    """The disk is full, or something else keeps a file from being written."""


class DownloadError(CovermapError):
    """A server or the way to it failed, or what came is not the file: names host and path, never a query or a header.

    ``status`` is the HTTP status of the last answer, None where none came.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
