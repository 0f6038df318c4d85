"""Networks by name. A new one is one module and one line here; nothing is imported until it is used."""

MODELS = {
    "unet": "covermap.models.unet:Unet",
}
