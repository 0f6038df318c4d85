"""Networks by name. A new one is a module and a line here, and its options with their bounds in ``options``.

No network is imported until it is used.
"""

MODELS = {
    "unet": "covermap.models.unet:Unet",
}
