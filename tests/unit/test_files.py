"""Outputs appear whole or not at all; parts of a dead job are found again or removed."""

import os
import subprocess
import sys

import pytest

from covermap.files import scratch, unfinished, whole


def test_a_failed_write_leaves_the_old_file(tmp_path):
    output = tmp_path / "map.tif"
    output.write_text("old")
    with pytest.raises(RuntimeError), whole(output) as part:
        part.write_text("half")
        raise RuntimeError
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_part_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    output = tmp_path / "map.tif"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale, living = (tmp_path / f".map.tif.{pid}.tif" for pid in (dead.pid, os.getppid()))
    for path in (stale, living):
        path.write_text("part")
    with whole(output) as part:
        part.write_text("new")
    assert output.read_text() == "new"
    assert not stale.exists()
    assert living.exists()


def test_a_draft_is_gone_afterwards(tmp_path):
    with scratch(tmp_path / "map.tif") as draft:
        draft.write_text("draft")
    assert not list(tmp_path.iterdir())


def test_parts_are_found_again_with_the_same_settings_only(tmp_path):
    output = tmp_path / "weights.safetensors"
    with pytest.raises(RuntimeError), unfinished(output, epochs=3) as parts:
        (parts / "latest").write_text("1")
        raise RuntimeError
    with pytest.raises(RuntimeError), unfinished(output, epochs=3) as parts:
        assert (parts / "latest").read_text() == "1"
        raise RuntimeError
    with unfinished(output, epochs=4) as parts:
        assert not list(parts.iterdir())
    assert not list(tmp_path.iterdir())
