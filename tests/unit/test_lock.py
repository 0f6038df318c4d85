import subprocess
import sys

from covermap.lock import holders, release


def test_a_job_that_outlives_its_snakemake_is_waited_for(tmp_path):
    script = tmp_path / ".snakemake/scripts/tmp1.stack_block.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys; print('ready', flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, **pipes) as job:
        job.stdout.readline()
        assert holders(tmp_path) == [job.pid]
        assert holders(tmp_path.parent) == []
    assert holders(tmp_path) == []


def test_the_lock_of_a_dead_run_goes(tmp_path):
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").touch()
    release(tmp_path)
    assert not locks.exists()
