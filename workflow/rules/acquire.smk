from covermap.files import stamp
from covermap.providers import sources_of


localrules:
    search_scenes,
    plan,
    download_scene,
    download_dem,
    download_geoid,
    download_orbit,
    download_labels,
    download_reference,
    download_other_year,
    download_agreeing,
    download_urban_atlas,
    download_urban_atlas_reference,
    download_weights,


rule simulate_demo:
    output:
        catalog="resources/demo/catalog.json",
        dem="resources/demo/dem.tif",
        labels="resources/demo/mapbiomas_2021.tif",
        truth="resources/demo/truth.tif",
    log:
        "results/logs/simulate_demo.log",
    benchmark:
        "results/benchmarks/simulate_demo.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: 2
    params:
        pixels=CFG.simulator.pixels,
        seed=CFG.simulator.seed,
        version=1,
    script:
        "../scripts/simulate_demo.py"


checkpoint search_scenes:
    input:
        catalog=catalogue,
        pinned=lambda wildcards: CFG.aois[wildcards.aoi].scenes or [],
        labels=labels_brought,
    output:
        listing="results/scenes/{aoi}.json",
    log:
        "results/logs/search_scenes/{aoi}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        area=aoi_area,
        period=aoi_setting("period"),
        sensors=aoi_setting("sensors"),
        provider=aoi_setting("provider"),
        level=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).fetched_level,
        max_cloud=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).max_cloud,
        orbit_state=orbits_wanted("orbit_state"),
        relative_orbits=orbits_wanted("relative_orbits"),
        polarisations=orbits_wanted("polarisations"),
        composite=times_of,
        version=4,
    script:
        "../scripts/search_scenes.py"


rule plan:
    input:
        listing="results/scenes/{aoi}.json",
    output:
        plan="results/plans/{aoi}.txt",
    log:
        "results/logs/plan/{aoi}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        area=aoi_area,
        period=aoi_setting("period"),
        provider=aoi_setting("provider"),
        scenes=lambda wildcards: [item["id"] for item in chosen(wildcards)],
        bands=bands_of_sensors,
        fetched=fetched_bands,
        grid=aoi_grid,
        version=1,
    script:
        "../scripts/plan.py"


rule download_scene:
    input:
        listing=ancient("results/scenes/{aoi}.json"),
        sources=lambda wildcards: plainly(sources_of)(scene_item(wildcards), CFG.aois[wildcards.aoi].provider.name),
    output:
        product=temp("resources/scenes/{aoi}/{scene}.zip"),
    log:
        "results/logs/download_scene/{aoi}/{scene}.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        item=scene_item,
        provider=delivery_of,
        bands=bands_of,
        grid=aoi_grid,
        # newer than the zip is not enough: unzipping and copying may keep old times
        stamp=lambda wildcards: stamp(sources_of(scene_item(wildcards), CFG.aois[wildcards.aoi].provider.name)),
        version=1,
    script:
        "../scripts/download_scene.py"


rule download_dem:
    output:
        dem="resources/dem/{aoi}.tif",
    log:
        "results/logs/download_dem/{aoi}.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=aoi_grid,
        mirrors=plain(CFG.mirrors),
        version=1,
    script:
        "../scripts/download_dem.py"


rule download_geoid:
    output:
        geoid="resources/geoid/us_nga_egm08_25.tif",
    log:
        "results/logs/download_geoid.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        url=CFG.mirrors.geoid,
        version=1,
    script:
        "../scripts/download_geoid.py"


rule download_orbit:
    output:
        orbit="resources/orbits/{scene}.EOF",
    log:
        "results/logs/download_orbit/{scene}.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        scene="{scene}",
        url=CFG.mirrors.orbits,
        version=1,
    script:
        "../scripts/download_orbit.py"


rule download_labels:
    output:
        labels="resources/labels/{aoi}.tif",
    log:
        "results/logs/download_labels/{aoi}.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=aoi_grid,
        collection=lambda wildcards: CFG.aois[wildcards.aoi].labels.collection,
        year=lambda wildcards: CFG.aois[wildcards.aoi].labels.year,
        mirrors=plain(CFG.mirrors),
        version=1,
    script:
        "../scripts/download_labels.py"


use rule download_labels as download_reference with:
    output:
        labels="resources/references/{aoi}.tif",
    log:
        "results/logs/download_reference/{aoi}.log",
    params:
        grid=aoi_grid,
        collection=lambda wildcards: CFG.aois[wildcards.aoi].reference.collection,
        year=lambda wildcards: CFG.aois[wildcards.aoi].reference.year,
        mirrors=plain(CFG.mirrors),
        version=1,


use rule download_labels as download_other_year with:
    output:
        labels="resources/labels/{aoi}/{year}.tif",
    log:
        "results/logs/download_other_year/{aoi}/{year}.log",
    wildcard_constraints:
        year=r"\d{4}",
    params:
        grid=aoi_grid,
        collection=lambda wildcards: CFG.aois[wildcards.aoi].labels.collection,
        year=lambda wildcards: int(wildcards.year),
        mirrors=plain(CFG.mirrors),
        version=1,


use rule download_labels as download_agreeing with:
    output:
        labels="resources/agreeing/{aoi}.tif",
    log:
        "results/logs/download_agreeing/{aoi}.log",
    params:
        grid=aoi_grid,
        collection=lambda wildcards: CFG.aois[wildcards.aoi].labels.weak.agree_with.collection,
        year=lambda wildcards: CFG.aois[wildcards.aoi].labels.weak.agree_with.year,
        mirrors=plain(CFG.mirrors),
        version=1,


rule download_urban_atlas:
    output:
        labels="resources/labels/{aoi}.gpkg",
    log:
        "results/logs/download_urban_atlas/{aoi}.log",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=aoi_grid,
        year=lambda wildcards: CFG.aois[wildcards.aoi].labels.year,
        mirrors=plain(CFG.mirrors),
        version=1,
    script:
        "../scripts/download_urban_atlas.py"


use rule download_urban_atlas as download_urban_atlas_reference with:
    output:
        labels="resources/references/{aoi}.gpkg",
    log:
        "results/logs/download_urban_atlas_reference/{aoi}.log",
    params:
        grid=aoi_grid,
        year=lambda wildcards: CFG.aois[wildcards.aoi].reference.year,
        mirrors=plain(CFG.mirrors),
        version=1,


rule download_weights:
    output:
        weights="resources/weights/{hub}/{name}",
    log:
        "results/logs/download_weights/{hub}/{name}.log",
    wildcard_constraints:
        hub="timm|torchgeo",
        name=r"[\w.@-]+",
    retries: 2
    conda:
        "../../envs/covermap.yaml"
    params:
        name="{hub}/{name}",
        url=CFG.mirrors.weights,
        version=1,
    script:
        "../scripts/download_weights.py"
