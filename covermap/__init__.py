"""Land-cover maps from Sentinel-1 and Sentinel-2, as one Snakemake workflow over one small library."""

__version__ = "0.1.0"
