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
