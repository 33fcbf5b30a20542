"""What systemd reports about the installed units: no errors, and a bounded exposure."""

import subprocess

import pytest
import system

POOL = "7f951e31-059b-48bd-ba8c-4fd0405974e5"
# Highest exposure, in tenths, of each unit (`systemd-analyze security`). A change that needs more
# raises it here, with its reason in the unit.
EXPOSURE_MAX = {
    "stratisd.service": 42,
    "stratisd-min-postinitrd.service": 42,
    f"stratis-fstab-setup@{POOL}.service": 23,
    f"stratis-fstab-setup-with-network@{POOL}.service": 23,
}


def analyze(*words):
    done = subprocess.run(["systemd-analyze", "--no-pager", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)  # fmt: skip
    return done.returncode, done.stdout


def test_units_have_no_errors():
    # A cycle in the order of the units is an error too.
    status, said = analyze("verify", "--man=no", *EXPOSURE_MAX)
    ours = [line for line in said.splitlines() if "stratis" in line]
    assert (status, ours) == (0, []), said


def test_no_second_daemon_is_started():
    """systemd used to restart the unit every second, since it failed as long as stratisd ran."""
    system.start_daemon()
    unit = "stratisd-min-postinitrd.service"
    subprocess.run(["systemctl", "start", unit], check=True)
    shown = system.run("systemctl", "show", "-p", "ActiveState", "-p", "NRestarts", unit)
    assert set(shown.split()) == {"ActiveState=inactive", "NRestarts=0"}


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_exposure_of_units_is_bounded(unit):
    status, said = analyze("security", f"--threshold={EXPOSURE_MAX[unit]}", unit)
    assert status == 0, said
