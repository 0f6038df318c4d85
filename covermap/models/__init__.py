"""Networks by name. A new one is a module and a line here, and its options with their bounds in ``options``.

No network is imported until it is used. Indices are further input bands of any network, a line here each.
"""

MODELS = {
    "unet": "covermap.models.unet:Unet",
}

# Index: the sensor that it comes from and its channels a and b, for (a - b) / (a + b) of reflectance, a - b of dB.
# NDVI: Tucker 1979, doi:10.1016/0034-4257(79)90013-0; NDWI: McFeeters 1996, doi:10.1080/01431169608948714;
# NBR: Lopez Garcia & Caselles 1991, doi:10.1080/10106049109354290.
INDICES = {
    "ndvi": ("sentinel2", "B08", "B04"),
    "ndwi": ("sentinel2", "B03", "B08"),
    "nbr": ("sentinel2", "B08", "B12"),
    "vh_minus_vv": ("sentinel1", "VH", "VV"),
}
