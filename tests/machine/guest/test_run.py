"""`make run` on real disks, after it has asked for packages and built: as on a machine that never
had a stratisd.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest
import system

PROJECT = pathlib.Path("project").resolve()
BUILT = PROJECT / "target/debug"
INSTALLED = ["/usr/libexec/stratisd", "/usr/lib/udev/stratis-base32-decode", "/usr/lib/udev/stratis-str-cmp"]
RULES = pathlib.Path("/usr/lib/udev/rules.d/61-stratisd.rules")
POLICY = pathlib.Path("/usr/share/dbus-1/system.d/stratisd.conf")


@pytest.fixture
def nothing_installed(disks):
    """The programs lie in a checkout only; neither udev nor the bus knows them."""
    system.stop_daemon()
    (BUILT / "static").mkdir(parents=True, exist_ok=True)
    kept = {}
    for program in INSTALLED:
        shutil.copy(program, BUILT / ("static" if "udev" in program else ""))
    for file in (RULES, POLICY):
        kept[file] = file.read_bytes()
        file.unlink()
    system.run("udevadm", "control", "--reload")
    system.run("systemctl", "reload", "dbus")
    yield disks
    for file, content in kept.items():
        file.write_bytes(content)
    system.run("udevadm", "control", "--reload")
    system.run("systemctl", "reload", "dbus")


def scripts_run(*words, **environment):
    """Waits for the script only, not for the daemon that it leaves running with its output in a
    file."""
    return subprocess.run(
        ["scripts/run", *words], cwd=PROJECT, env={**os.environ, "STRATIS": "stratis", "BUILT": "target/debug", **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def test_asks_before_it_overwrites_disks(nothing_installed):
    before = [system.digest(disk) for disk in nothing_installed]
    said = scripts_run("start", *nothing_installed)
    assert said.returncode == 1, said.stdout
    assert "will be lost" in said.stdout and "CONFIRM=yes" in said.stdout
    assert not RULES.exists() and not POLICY.exists()
    assert [system.digest(disk) for disk in nothing_installed] == before


def test_pool_on_these_disks(nothing_installed):
    said = scripts_run("start", *nothing_installed, CONFIRM="yes")
    try:
        assert said.returncode == 0, said.stdout
        for disk in nothing_installed:
            assert re.search(rf"^demo +{disk} ", said.stdout, re.M), said.stdout
        # The commands that it suggests, except the list.
        assert "mount /dev/stratis/demo/home /mnt" in said.stdout
        system.mount("/dev/stratis/demo/home", "/mnt/home")
        pathlib.Path("/mnt/home/file").write_text("kept")
    finally:
        stopped = scripts_run("stop")
    assert stopped.returncode == 0 and "ended the stratisd" in stopped.stdout, stopped.stdout
    # The pool survives the daemon.
    assert pathlib.Path("/mnt/home/file").read_text() == "kept"
