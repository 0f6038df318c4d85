"""Level-2A by Sen2Cor, with a program in its place: what it is given, what is taken, and every way that it fails."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from covermap.config import check_files, load
from covermap.errors import CovermapError, ProductError, SettingError
from covermap.program import run_program
from covermap.sen2cor import command_line, find_sen2cor, sen2cor
from covermap.sentinel2 import open_product
from tests.conftest import small_settings
from tests.sen2cor import install
from tests.unit.test_sentinel2 import GRANULE, metadata

SOURCE = "S2A_MSIL1C_20220510T140101_N0400_R067_T21LXF_20220510T160000.SAFE"
READY = "S2A_MSIL2A_20220510T140101_N0400_R067_T21LXF_20220510T201010.SAFE"
ITEM = {"id": SOURCE.removesuffix(".SAFE")}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The stand-in, with a product that lies ready."""
    uri = f"<PRODUCT_URI>{READY}</PRODUCT_URI>"
    for name in ("MTD_MSIL2A.xml", f"{GRANULE}/IMG_DATA/R10m/T21LXF_20220510T140101_B02_10m.jp2"):
        (tmp_path / "ready" / READY / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ready" / READY / name).write_text(metadata(uri=uri))
    monkeypatch.setenv("STAND_IN_PRODUCTS", str(tmp_path / "ready"))
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    return install(tmp_path / "bin")


@pytest.fixture
def product(tmp_path):
    return zipped(tmp_path / "product.zip", {f"{SOURCE}/MTD_MSIL1C.xml": "<a/>", f"{SOURCE}/GRANULE/a/b.jp2": "b"})


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_product_of_level_2a_comes_out(program, product, tmp_path):
    corrected = tmp_path / "out" / "scene.zip"
    sen2cor(product, corrected, ITEM, program, None)
    name = READY.replace("N0400", "N9999").replace("20220510T201010", "20260101T000000")
    with zipfile.ZipFile(corrected) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert f"{name}/MTD_MSIL2A.xml" in archive.namelist()
    found = open_product(corrected)
    assert (found.level, found.baseline) == ("L2A", "99.99")
    assert (found.bands["B02"].offset, found.bands["B02"].offset_from) == (-1000, "MTD_MSIL2A.xml")
    assert [path.name for path in corrected.parent.iterdir()] == ["scene.zip"]


@pytest.mark.parametrize(
    ("baseline", "offset", "expected"), [("99.99", None, 0), ("99.33", None, 0), ("99.33", -1000, -1000)]
)
def test_the_offset_is_the_one_that_sen2cor_declares(baseline, offset, expected, tmp_path):
    files = {"MTD_MSIL2A.xml": metadata(offset=offset, baseline=baseline)}
    files[f"{GRANULE}/IMG_DATA/R10m/T21LXF_20220510T140101_B02_10m.jp2"] = "pixels"
    name = READY.replace("N0400", f"N{baseline.replace('.', '')}")
    found = open_product(zipped(tmp_path / "a.zip", {f"{name}/{file}": text for file, text in files.items()}))
    assert found.bands["B02"].offset == expected


def test_own_settings_and_resolution_are_words_of_the_command(program, product, tmp_path, caplog):
    caplog.set_level("INFO")
    gipp = tmp_path / "L2A_GIPP.xml"
    line = command_line(program, Path("in.SAFE"), Path("out"), gipp)
    assert line == [str(program), "--resolution", "10", "--output_dir", "out", "--GIP_L2A", str(gipp), "in.SAFE"]
    gipp.write_text("mine")
    sen2cor(product, tmp_path / "scene.zip", ITEM, program, gipp)
    assert "Version: 02.11.00" in caplog.text


FAILURES = {
    "fails": r"Sen2Cor failed with status 1: .*; its log ends:\n(.*\n)*.*terminated with at least one error",
    "fails quietly": "Sen2Cor failed with status 0",
    "killed": "Sen2Cor was killed, as the system does where memory runs out: give the rule sen2cor more mem_mb",
    "nothing": "Sen2Cor ended well but wrote no product",
    "level": r"Sen2Cor wrote S2A_MSIL1C_\w+\.SAFE: expected one Level-2A product of S2A_MSIL1C_20220510T140101",
    "tile": r"Sen2Cor wrote \w+_T01ABC_\w+\.SAFE: expected one Level-2A product of",
    "two": r"Sen2Cor wrote \w+\.SAFE and \w+\.SAFE: expected one Level-2A product of",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_is_one_sentence_with_the_end_of_the_log_and_no_file(how, program, product, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", how)
    (tmp_path / "out").mkdir()
    with pytest.raises(CovermapError, match=rf"scene {ITEM['id']}: {FAILURES[how]}") as caught:
        sen2cor(product, tmp_path / "out" / "scene.zip", ITEM, program, None)
    assert "Version: 02.11.00" in str(caught.value) or how == "killed"  # whose output was never flushed
    assert not list((tmp_path / "out").iterdir())


def test_one_that_hangs_is_ended_with_all_it_started(program, product, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr("covermap.sen2cor.run_program", hasty)
    with pytest.raises(CovermapError, match="did not end within 119 minutes and was stopped: give the rule sen2cor"):
        sen2cor(product, tmp_path / "scene.zip", ITEM, program, None)
    assert soon(lambda: not any(map(alive, (tmp_path / "pids").read_text().split())))


def hasty(*words, **more):
    """Two seconds in the place of two hours."""
    return run_program(*words, **more | {"time_limit_s": 2})


KILLED = """
import sys
from pathlib import Path
from covermap.sen2cor import sen2cor
product, corrected, program = map(Path, sys.argv[1:])
sen2cor(product, corrected, {"id": "a"}, program, None)
"""


def test_it_ends_when_its_job_is_killed_and_the_next_one_clears_up(program, product, tmp_path, monkeypatch):
    corrected, pids = tmp_path / "out" / "scene.zip", tmp_path / "pids"
    environment = {**os.environ, "STAND_IN": "hang", "STAND_IN_PIDS": str(pids), "PYTHONPATH": os.getcwd()}
    job = subprocess.Popen([sys.executable, "-c", KILLED, product, corrected, program], env=environment)
    assert soon(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert soon(lambda: not any(map(alive, pids.read_text().split())))
    assert [path.name[:19] for path in corrected.parent.iterdir()] == [".scene.zip.sen2cor."]
    sen2cor(product, corrected, ITEM, program, None)
    assert [path.name for path in corrected.parent.iterdir()] == ["scene.zip"]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def soon(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(
    "files",
    [
        {"item.json": "{}", "B02.tif": "pixels"},
        {f"{READY}/MTD_MSIL2A.xml": "<a/>"},
        {f"{SOURCE}/GRANULE/a/b.jp2": "b"},
        {"mine.SAFE/MTD_MSIL1C.xml": "<a/>"},
    ],
)
def test_only_whole_products_of_level_1c_are_given_to_it(files, program, tmp_path):
    with pytest.raises(ProductError, match=r"no folder S2\?_MSIL1C_\*\.SAFE with MTD_MSIL1C\.xml, .* such as cdse"):
        sen2cor(zipped(tmp_path / "p.zip", files), tmp_path / "scene.zip", ITEM, program, None)


def test_a_member_that_would_leave_its_folder_is_refused(program, tmp_path):
    files = {f"{SOURCE}/MTD_MSIL1C.xml": "<a/>", f"{SOURCE}/../../evil": "b"}
    with pytest.raises(ProductError, match="unsafe"):
        sen2cor(zipped(tmp_path / "p.zip", files), tmp_path / "scene.zip", ITEM, program, None)
    assert not list(tmp_path.rglob("evil"))


def test_a_broken_zip_is_told(program, product, tmp_path):
    content = product.read_bytes()
    place = content.index(b"<a/>")
    product.write_bytes(content[:place] + b"<b/>" + content[place + 4 :])
    with pytest.raises(ProductError, match=r"product\.zip cannot be unpacked \(Bad CRC-32 .*remove it and run again"):
        sen2cor(product, tmp_path / "out" / "scene.zip", ITEM, program, None)
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_program_says_where_to_get_it(program, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SettingError, match=r"no L2A_Process on the PATH: install Sen2Cor from https://step\.esa\.int/"):
        find_sen2cor(None)
    program.chmod(0o644)
    with pytest.raises(SettingError, match=r"bin/L2A_Process is no program that can be run: install"):
        find_sen2cor(program)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_sen2cor(None) == find_sen2cor(program) == program


def settings_with(folder, optics, provider=None):
    settings = small_settings(folder)
    settings["sentinel2"] = {"processor": "sen2cor", **optics}
    settings["aois"]["demo"] |= {"provider": provider or {"name": "cdse"}, "area": [0, 0, 1, 1]}
    return settings


def test_the_settings_are_checked_with_the_area(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    made = {Path(f"resources/demo/{name}") for name in ("dem.tif", "mapbiomas_2021.tif", "truth.tif")}
    config = load(settings_with(tmp_path, {}))
    assert config.section("sentinel2", "demo").fetched_level == "L1C"
    with pytest.raises(SettingError, match="no L2A_Process on the PATH"):
        check_files(config, "demo", made)
    check_files(load(settings_with(tmp_path, {"sen2cor_program": str(program)})), "demo", made)
    for optics in ({"sen2cor_program": "no"}, {"sen2cor_program": str(program), "sen2cor_gipp": "no"}):
        with pytest.raises(SettingError, match=r"sentinel2\.sen2cor_\w+ is no, which does not exist"):
            check_files(load(settings_with(tmp_path, optics)), "demo", made)
    with pytest.raises(SettingError, match=r"sentinel2\.processor is sen2cor, which makes Level-2A, but level is L1C"):
        load(settings_with(tmp_path, {"level": "L1C"}))
    with pytest.raises(SettingError, match="provider sentinelhub delivers no whole products"):
        load(settings_with(tmp_path, {}, {"name": "sentinelhub"}))
