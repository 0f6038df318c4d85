from covermap.files import stamp
from covermap.providers import sources_of


localrules:
    search_scenes,
    download_scene,


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
        labels=lambda wildcards: CFG.aois[wildcards.aoi].labels.path if CFG.aois[wildcards.aoi].labels else [],
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
        level=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).level,
        max_cloud=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).max_cloud,
        version=3,
    script:
        "../scripts/search_scenes.py"


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
        provider=lambda wildcards: CFG.aois[wildcards.aoi].provider.name,
        # newer than the zip is not enough: unzipping and copying may keep old times
        stamp=lambda wildcards: stamp(sources_of(scene_item(wildcards), CFG.aois[wildcards.aoi].provider.name)),
        version=1,
    script:
        "../scripts/download_scene.py"
