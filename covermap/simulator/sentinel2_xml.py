"""XML files of a Sentinel-2 L2A product: its metadata, those of its tile, and the manifest."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from covermap.simulator.granule import TILE, Granule, product_name
from covermap.simulator.overpass import RELATIVE_ORBIT, Acquisition, generation_time, sensing_time, sun_angles


def product_xml(granule: Granule, acquisition: Acquisition, part: Path) -> str:
    """MTD_MSIL2A.xml: what readers take from it, in the structure of the real one."""
    name, made, baseline = product_name(acquisition), generation_time(acquisition), acquisition.baseline
    images = sorted(path.relative_to(part).with_suffix("").as_posix() for path in part.rglob("*.jp2"))
    listed = "\n".join(f"            <IMAGE_FILE>{image}</IMAGE_FILE>" for image in images)
    offsets = ""
    if baseline >= "04.00":
        rows = "\n".join(f'        <BOA_ADD_OFFSET band_id="{k}">-1000</BOA_ADD_OFFSET>' for k in range(13))
        offsets = f"\n      <BOA_ADD_OFFSET_VALUES_LIST>\n{rows}\n      </BOA_ADD_OFFSET_VALUES_LIST>"
    strip = f"{acquisition.satellite}_OPER_MSI_L2A_DS_VGS1_{made:%Y%m%dT%H%M%S}"
    datastrip = f"{strip}_S{granule.folder[-15:]}_N{baseline}"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{stamp(acquisition.start)}</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>{stamp(acquisition.start)}</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>{stamp(made)}</GENERATION_TIME>
      <PREVIEW_IMAGE_URL>Not applicable</PREVIEW_IMAGE_URL>
      <PREVIEW_GEO_INFO>Not applicable</PREVIEW_GEO_INFO>
      <Datatake datatakeIdentifier="G{name[:3]}_{name[11:26]}_{acquisition.absolute_orbit:06d}_N{baseline}">
        <SPACECRAFT_NAME>Sentinel-{acquisition.satellite[1:]}</SPACECRAFT_NAME>
        <DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
        <DATATAKE_SENSING_START>{stamp(acquisition.start)}</DATATAKE_SENSING_START>
        <SENSING_ORBIT_NUMBER>{RELATIVE_ORBIT}</SENSING_ORBIT_NUMBER>
        <SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
      </Datatake>
      <Query_Options completeSingleTile="true">
        <PRODUCT_FORMAT>SAFE_COMPACT</PRODUCT_FORMAT>
      </Query_Options>
      <Product_Organisation>
        <Granule_List>
          <Granule datastripIdentifier="{datastrip}" granuleIdentifier="{_tile_id(acquisition)}" imageFormat="JPEG2000">
{listed}
          </Granule>
        </Granule_List>
      </Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
      </Special_Values>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
      </Special_Values>
      <Image_Display_Order>
        <RED_CHANNEL>3</RED_CHANNEL>
        <GREEN_CHANNEL>2</GREEN_CHANNEL>
        <BLUE_CHANNEL>1</BLUE_CHANNEL>
      </Image_Display_Order>
      <QUANTIFICATION_VALUES_LIST>
        <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
        <AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>
        <WVP_QUANTIFICATION_VALUE unit="cm">1000.0</WVP_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>{offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Product_Footprint>
      <Product_Footprint>
        <Global_Footprint>
          <EXT_POS_LIST>{_footprint_text(granule)} </EXT_POS_LIST>
        </Global_Footprint>
      </Product_Footprint>
      <RASTER_CS_TYPE>POINT</RASTER_CS_TYPE>
      <PIXEL_ORIGIN>1</PIXEL_ORIGIN>
    </Product_Footprint>
    <Coordinate_Reference_System>
      <GEO_TABLES version="1">EPSG</GEO_TABLES>
      <HORIZONTAL_CS_TYPE>GEOGRAPHIC</HORIZONTAL_CS_TYPE>
    </Coordinate_Reference_System>
  </n1:Geometric_Info>
</n1:Level-2A_User_Product>
"""


def tile_xml(granule: Granule, acquisition: Acquisition, shares: NDArray[np.float64]) -> str:
    """MTD_TL.xml: geocoding, mean angles and the shares [%] of the scene classes by code."""
    sizes = "\n".join(
        f'      <Size resolution="{m}">\n        <NROWS>{granule.size * 10 // m}</NROWS>\n'
        f"        <NCOLS>{granule.size * 10 // m}</NCOLS>\n      </Size>"
        for m in (10, 20, 60)
    )
    corners = "\n".join(
        f'      <Geoposition resolution="{m}">\n        <ULX>{granule.left}</ULX>\n        <ULY>{granule.top}</ULY>\n'
        f"        <XDIM>{m}</XDIM>\n        <YDIM>-{m}</YDIM>\n      </Geoposition>"
        for m in (10, 20, 60)
    )
    zenith, azimuth = sun_angles(sensing_time(acquisition))
    views = "\n".join(
        f'        <Mean_Viewing_Incidence_Angle bandId="{k}">\n          <ZENITH_ANGLE unit="deg">3.1</ZENITH_ANGLE>\n'
        '          <AZIMUTH_ANGLE unit="deg">107.5</AZIMUTH_ANGLE>\n        </Mean_Viewing_Incidence_Angle>'
        for k in range(13)
    )
    names = {
        "NODATA_PIXEL": 0, "SATURATED_DEFECTIVE_PIXEL": 1, "DARK_FEATURES": 2, "CLOUD_SHADOW": 3, "VEGETATION": 4,
        "NOT_VEGETATED": 5, "WATER": 6, "UNCLASSIFIED": 7, "MEDIUM_PROBA_CLOUDS": 8, "HIGH_PROBA_CLOUDS": 9,
        "THIN_CIRRUS": 10, "SNOW_ICE": 11,
    }  # fmt: skip
    quality = "\n".join(
        f"      <{name}_PERCENTAGE>{shares[code]:.6f}</{name}_PERCENTAGE>" for name, code in names.items()
    )
    epsg = granule.crs.split(":")[1]
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">
  <n1:General_Info>
    <TILE_ID metadataLevel="Brief">{_tile_id(acquisition)}</TILE_ID>
    <SENSING_TIME metadataLevel="Standard">{stamp(sensing_time(acquisition))}</SENSING_TIME>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Tile_Geocoding metadataLevel="Brief">
      <HORIZONTAL_CS_NAME>WGS84 / UTM zone {epsg[3:]}{"S" if epsg[2] == "7" else "N"}</HORIZONTAL_CS_NAME>
      <HORIZONTAL_CS_CODE>{granule.crs}</HORIZONTAL_CS_CODE>
{sizes}
{corners}
    </Tile_Geocoding>
    <Tile_Angles metadataLevel="Standard">
      <Mean_Sun_Angle>
        <ZENITH_ANGLE unit="deg">{zenith:.6f}</ZENITH_ANGLE>
        <AZIMUTH_ANGLE unit="deg">{azimuth:.6f}</AZIMUTH_ANGLE>
      </Mean_Sun_Angle>
      <Mean_Viewing_Incidence_Angle_List>
{views}
      </Mean_Viewing_Incidence_Angle_List>
    </Tile_Angles>
  </n1:Geometric_Info>
  <n1:Quality_Indicators_Info metadataLevel="Standard">
    <Image_Content_QI>
      <CLOUDY_PIXEL_PERCENTAGE>{shares[8:11].sum():.6f}</CLOUDY_PIXEL_PERCENTAGE>
      <DEGRADED_MSI_DATA_PERCENTAGE>0.000000</DEGRADED_MSI_DATA_PERCENTAGE>
{quality}
    </Image_Content_QI>
  </n1:Quality_Indicators_Info>
</n1:Level-2A_Tile_ID>
"""


def manifest(granule: Granule, acquisition: Acquisition, part: Path) -> str:
    """manifest.safe: the platform, the orbit, the footprint, and every file with its size and MD5 sum."""
    objects = []
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
        kind = "text/xml" if path.suffix == ".xml" else "application/octet-stream"
        content = path.read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        name = {"MTD_MSIL2A.xml": "S2_Level-2A_Product_Metadata", "MTD_TL.xml": "S2_Level-2A_Tile1_Metadata"}
        key = name.get(path.name, f"{path.stem.removeprefix(granule.prefix + '_')}_Tile1_Data")
        objects.append(
            f'    <dataObject ID="{key}">\n      <byteStream mimeType="{kind}" size="{len(content)}">\n'
            f'        <fileLocation locatorType="URL" href="./{path.relative_to(part).as_posix()}"/>\n'
            f'        <checksum checksumName="MD5">{digest}</checksum>\n'
            "      </byteStream>\n    </dataObject>"
        )
    listed = "\n".join(objects)

    def section(key: str, text: str, body: str) -> str:
        return (
            f'    <metadataObject ID="{key}" classification="DESCRIPTION" category="DMD">\n'
            f'      <metadataWrap mimeType="text/xml" vocabularyName="Sentinel-SAFE" textInfo="{text}">\n'
            f"        <xmlData>{body}</xmlData>\n      </metadataWrap>\n    </metadataObject>"
        )

    start, orbit = stamp(acquisition.start), acquisition.absolute_orbit
    body = "\n".join(
        [
            section(
                "acquisitionPeriod",
                "Acquisition Period",
                f"<safe:acquisitionPeriod><safe:startTime>{start}</safe:startTime></safe:acquisitionPeriod>",
            ),
            section(
                "measurementOrbitReference",
                "Orbit Reference",
                '<safe:orbitReference><safe:orbitNumber groundTrackDirection="descending" type="start">'
                f'{orbit:06d}</safe:orbitNumber><safe:relativeOrbitNumber type="start">{RELATIVE_ORBIT:03d}'
                "</safe:relativeOrbitNumber></safe:orbitReference>",
            ),
            section(
                "platform",
                "Platform Description",
                f"<safe:platform><safe:familyName>SENTINEL</safe:familyName><safe:number>{acquisition.satellite[1:]}"
                '</safe:number><safe:instrument><safe:familyName abbreviation="MSI">Multi-Spectral Instrument'
                "</safe:familyName></safe:instrument></safe:platform>",
            ),
            section(
                "measurementFrameSet",
                "Frame Set",
                '<safe:frameSet><safe:footPrint srsName="http://www.opengis.net/gml/srs/epsg.xml#4326">'
                f"<gml:coordinates>{_footprint_text(granule)}</gml:coordinates></safe:footPrint></safe:frameSet>",
            ),
        ]
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<xfdu:XFDU xmlns:gml="http://www.opengis.net/gml" xmlns:safe="http://www.esa.int/safe/sentinel/1.1"
 xmlns:xfdu="urn:ccsds:schema:xfdu:1" version="esa/safe/sentinel/1.1/sentinel-2/msi/archive_l2a_user_product">
  <informationPackageMap>
    <xfdu:contentUnit unitType="Product_Level-2A" textInfo="SENTINEL-2 MSI Level-2A User Product" pdiID="processing"/>
  </informationPackageMap>
  <metadataSection>
{body}
  </metadataSection>
  <dataObjectSection>
{listed}
  </dataObjectSection>
</xfdu:XFDU>
"""


def stamp(moment: datetime) -> str:
    """Time as the products write it."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.024Z"


def _footprint_text(granule: Granule) -> str:
    return " ".join(f"{latitude} {longitude}" for longitude, latitude in granule.footprint)


def _tile_id(acquisition: Acquisition) -> str:
    made, orbit = generation_time(acquisition), acquisition.absolute_orbit
    owner = f"{acquisition.satellite}_OPER_MSI_L2A_TL_VGS1"
    return f"{owner}_{made:%Y%m%dT%H%M%S}_A{orbit:06d}_{TILE}_N{acquisition.baseline}"
