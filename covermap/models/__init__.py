"""Networks by name. A new one is a module and a line here, and its options with their bounds in ``options``.

No network is imported until it is used. Indices are further input bands of any network, a line here each.
"""

MODELS = {
    "unet": "covermap.models.unet:Unet",
    # Cherif, Hell, Brandmeier 2022, doi:10.3390/rs14195000: DeepForest, and what it was compared with
    "deepforest_1a": "covermap.models.deepforest:DeepForest1a",
    "deepforest_1b": "covermap.models.deepforest:DeepForest1b",
    "deepforest_1c": "covermap.models.deepforest:DeepForest1c",
    "deepforest_2a": "covermap.models.deepforest:DeepForest2a",
    "deepforest_2b": "covermap.models.deepforest:DeepForest2b",
    "deepforest_unet": "covermap.models.deepforest_peers:WideUnet",
    "deepforest_deeplab": "covermap.models.deepforest_peers:DeepLab",
    # Sefrin, Riese, Keller 2021, doi:10.3390/rs13010078
    "fcn": "covermap.models.fcn_lstm:Fcn",
    "fcn_lstm": "covermap.models.fcn_lstm:FcnLstm",
    # any encoder of timm, in any architecture of segmentation_models_pytorch, or alone for patches
    "segmenter": "covermap.models.zoo:Segmenter",
    "classifier": "covermap.models.zoo:Classifier",
}

# Losses and rules of class weights, by the names of the functions in covermap.losses.
LOSSES = ("cross_entropy", "focal", "dice", "lovasz", "robust")
OVERLAP_LOSSES = ("dice", "lovasz")  # in which every class counts alike
CLASS_WEIGHTS = ("none", "inverse_sqrt", "inverse", "effective", "median", "complement")

# Index: the sensor that it comes from and its channels a and b, for (a - b) / (a + b) of reflectance, a - b of dB.
# NDVI: Tucker 1979, doi:10.1016/0034-4257(79)90013-0; NDWI: McFeeters 1996, doi:10.1080/01431169608948714;
# NBR: Lopez Garcia & Caselles 1991, doi:10.1080/10106049109354290.
INDICES = {
    "ndvi": ("sentinel2", "B08", "B04"),
    "ndwi": ("sentinel2", "B03", "B08"),
    "nbr": ("sentinel2", "B08", "B12"),
    "vh_minus_vv": ("sentinel1", "VH", "VV"),
}
