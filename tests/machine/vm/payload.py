"""Gathers what the daemon's guest needs: the installed daemon as a tree, the guest's scripts and tests.

Knows what `make install` installs where; knows nothing of kernels and machines.
"""

import shutil
from pathlib import Path

from shell import Failure, run

PROJECT = Path(__file__).resolve().parents[3]
GUEST_SCRIPTS = Path(__file__).resolve().parent.parent / "guest"
# Of the built programs, those that are installed; debug information is left behind, the copy takes seconds otherwise.
PROGRAMS = ["stratisd", "static/stratis-base32-decode", "static/stratis-str-cmp"]
# Checks of the platform (../platform), an example of the daemon's package because it is no `cargo test`.
PLATFORM_CHECKS = "examples/platform_machine"


def gather(built, share):
    """Fills the folder `share` from the programs built in `built` (a cargo output folder)."""
    programs = share.parent / "programs" / built.name
    (programs / "static").mkdir(parents=True)
    for program in PROGRAMS:
        if not (built / program).exists():
            raise Failure(f"{built / program} is not built; `make build PROFILEDIR={built.name}` builds it")
        run(f"strip -o {programs / program} {built / program}")
    run(f"make --no-print-directory install DESTDIR={share}/root PROFILEDIR={built.name} TARGET_DIR={programs.parent}",
        cwd=PROJECT)  # fmt: skip
    if (built / PLATFORM_CHECKS).exists():
        run(f"strip -o {share}/platform_machine {built / PLATFORM_CHECKS}")
    shutil.copytree(GUEST_SCRIPTS, share, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    # `make run` on real disks is tried in the machine too.
    shutil.copytree(PROJECT / "scripts", share / "project/scripts")
    for name in ("Makefile", "udev", "dbus", "systemd"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, share / "project" / name)
