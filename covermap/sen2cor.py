"""Level-2A out of Level-1C by ESA's Sen2Cor, which a person has installed: the step ``sen2cor``.

Command line, exit status (0 and 1) and names of what is written: Sen2Cor Configuration and User Manual
(S2-PDGS-MPC-L2A-SUM-V2.9) and the sources of release 2.8. What was never run against a real Sen2Cor: docs/sentinel2.md.
Light enough for the Snakefile.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import CovermapError, ProductError, SettingError
from covermap.files import whole
from covermap.program import end_of_log, run_program
from covermap.providers.stac import pack_safe
from covermap.scenes import OPTICAL_PRODUCT

log = logging.getLogger(__name__)

HOME = "https://step.esa.int/main/snap-supported-plugins/sen2cor"
PROGRAM = "L2A_Process"
FAILED = "terminated with at least one error"  # what it prints at its end, whatever its exit status
KILLED = 137  # by the system, which does so where memory runs out
OURS = {"PYTHONPATH", "PYTHONHOME"}  # of this Python, which Sen2Cor's own must not see
WANTED_FOLDERS = ("AUX_DATA", "HTML")  # empty in products, so that no zip of files has them


def sen2cor(
    product: Path,
    corrected: Path,
    item: dict[str, Any],
    program: Path | None,
    gipp: Path | None,
    runtime: int = 120,
) -> None:
    """The Level-2A product that Sen2Cor makes of a Level-1C product.

    Works in a folder beside the output that is gone at the end, whatever happens. Sen2Cor and what it starts end when
    the time is over or this process ends.

    Parameters
    ----------
    product : stored zip of a whole Level-1C SAFE.
    corrected : output, stored zip of the Level-2A SAFE as Sen2Cor names it (baseline 99.99).
    item : STAC item of the scene.
    program : Sen2Cor's L2A_Process; None: the one on the PATH.
    gipp : settings of Sen2Cor (L2A_GIPP.xml); None: those of its installation.
    runtime : minutes of the job; Sen2Cor is ended a minute before, so that its log can be told.

    Raises
    ------
    SettingError
        Sen2Cor is not installed.
    ProductError
        The product is no whole Level-1C SAFE.
    CovermapError
        Sen2Cor failed, ran out of time, or wrote something else; the message ends with the last lines of its log.
    """
    found = find_sen2cor(program)
    corrected.parent.mkdir(parents=True, exist_ok=True)
    for stale in corrected.parent.glob(f".{corrected.name}.sen2cor.*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{corrected.name}.sen2cor.", dir=corrected.parent) as name:
        folder = Path(name).absolute()
        safe = _unpack(product, folder / "L1C", item["id"])
        made = _run(found, safe, folder, gipp, 60.0 * runtime - 60)
        with whole(corrected) as part:
            pack_safe(made, part)
        log.info("%s is %s, %.1f MB", corrected, made.name, corrected.stat().st_size / 1e6)


def find_sen2cor(program: Path | None) -> Path:
    """Sen2Cor's program: the one that the settings name, or L2A_Process on the PATH.

    Raises
    ------
    SettingError
        There is none, or it cannot be run; says where to get it.
    """
    found = shutil.which(program.absolute() if program else PROGRAM)
    if found:
        return Path(found).absolute()
    lacking = f"{program} is no program that can be run" if program else f"there is no {PROGRAM} on the PATH"
    raise SettingError(
        f"sentinel2.processor is sen2cor, but {lacking}: install Sen2Cor from {HOME} and put its folder bin on the "
        f"PATH, name its {PROGRAM} in sentinel2.sen2cor_program, or set sentinel2.processor to none"
    )


def _unpack(product: Path, folder: Path, scene: str) -> Path:
    """Write the SAFE of a zip into a folder; its name there."""
    members = safe_members(product)
    name = members[0].filename.partition("/")[0] if members else ""
    named, inside = OPTICAL_PRODUCT.match(name), {member.filename.removeprefix(f"{name}/") for member in members}
    if not (named and named["level"] == "L1C" and name.endswith(".SAFE") and "MTD_MSIL1C.xml" in inside):
        raise ProductError(
            f"scene {scene}: {product} holds no folder S2?_MSIL1C_*.SAFE with MTD_MSIL1C.xml, which Sen2Cor needs: "
            "take a provider that delivers whole products, such as cdse, or set sentinel2.processor to none"
        )
    try:
        with zipfile.ZipFile(product) as archive:
            archive.extractall(folder, members)
    except BAD_ZIP as error:
        raise ProductError(
            f"scene {scene}: {product} cannot be unpacked ({error}): make room where the disk is full, else remove it "
            "and run again, which fetches it anew"
        ) from None
    for empty in WANTED_FOLDERS:
        (folder / name / empty).mkdir(exist_ok=True)
    return folder / name


def command_line(program: Path, safe: Path, output: Path, gipp: Path | None) -> list[str]:
    """Words of the command that makes 10 m bands, and those of 20 and 60 m on the way."""
    own = ["--GIP_L2A", str(gipp.absolute())] if gipp else []
    return [str(program), "--resolution", "10", "--output_dir", str(output), *own, str(safe)]


def _run(program: Path, safe: Path, folder: Path, gipp: Path | None, time_limit_s: float) -> Path:
    """Run Sen2Cor; the product that it made."""
    output, told = folder / "L2A", folder / "sen2cor.log"
    output.mkdir()
    line = command_line(program, safe, output, gipp)
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    status = run_program(line, folder, told, time_limit_s=time_limit_s, environment=environment)
    lines = told.read_text(errors="replace").splitlines()
    made = sorted(path for path in output.iterdir() if path.suffix == ".SAFE")
    fault = _fault(status, lines, time_limit_s) or _other_product(made, safe.name)
    if fault:
        raise CovermapError(f"scene {safe.stem}: Sen2Cor {fault}; {end_of_log(lines)}")
    log.info("%s", next((line for line in lines if "Version" in line), "Sen2Cor does not tell its version"))
    return made[0]


def _fault(status: int | None, lines: list[str], time_limit_s: float) -> str | None:
    """What went wrong and how to mend it."""
    if status is None:
        return f"did not end within {time_limit_s / 60:.3g} minutes and was stopped: give the rule sen2cor more runtime"
    if status == KILLED:
        return "was killed, as the system does where memory runs out: give the rule sen2cor more mem_mb"
    if status or any(FAILED in line for line in lines):
        return f"failed with status {status}: mend what its log says, or leave the scene out of a pinned list"
    return None


def _other_product(made: list[Path], source: str) -> str | None:
    """What is wrong with the products that were made of ``source``; None: it is the one of Level-2A."""
    if not made:
        return "ended well but wrote no product: check its installation by hand"
    wanted = OPTICAL_PRODUCT.match(source)
    found = OPTICAL_PRODUCT.match(made[0].name)
    assert wanted  # _unpack
    same = found and all(found[part] == wanted[part] for part in ("unit", "time", "tile"))
    if len(made) > 1 or not (found and same and found["level"] == "L2A" and (made[0] / "MTD_MSIL2A.xml").is_file()):
        names = " and ".join(path.name for path in made)
        return f"wrote {names}: expected one Level-2A product of {source}, so check its installation by hand"
    return None
