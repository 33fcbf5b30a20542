"""Gathers what the daemon's guest needs: the installed daemon as a directory tree, and the guest's
scripts and tests.

Knows what `make install` installs where, but not kernels and machines.
"""

import os
import shutil
from pathlib import Path

from shell import Failure, run

PROJECT = Path(__file__).resolve().parents[3]
GUEST_SCRIPTS = Path(__file__).resolve().parent.parent / "guest"
# The built programs to install, stripped: copying debug information would take seconds.
PROGRAMS = ["stratisd", "stratisd-min", "stratis-min", "stratis-predict-usage", "stratis-decode-dm", "stratisd-tools", "static/stratis-base32-decode", "static/stratis-str-cmp", "static/stratis-generator"]
# The checks of the platform (../platform): an example of the daemon's package, because it is no
# `cargo test`.
PLATFORM_CHECKS = "examples/platform_machine"


def gather(built, share):
    """Fills the directory `share` from the programs in `built` (a cargo output directory). With packages, whose folder
    MACHINE_PACKAGES names, nothing is installed: a test does that."""
    shutil.copytree(GUEST_SCRIPTS, share, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    if packages := os.environ.get("MACHINE_PACKAGES"):
        shutil.copytree(packages, share / "packages")
        return
    programs = share.parent / "programs" / built.name
    (programs / "static").mkdir(parents=True)
    for program in PROGRAMS:
        if not (built / program).exists():
            raise Failure(f"{built / program} is not built; run `make build PROFILEDIR={built.name}`")
        run(f"strip -o {programs / program} {built / program}")
    run(f"make --no-print-directory install-programs DESTDIR={share}/root PROFILEDIR={built.name} TARGET_DIR={programs.parent}",
        cwd=PROJECT)  # fmt: skip
    if (built / PLATFORM_CHECKS).exists():
        run(f"strip -o {share}/platform_machine {built / PLATFORM_CHECKS}")
    # The machine also tests `make run` on real disks.
    shutil.copytree(PROJECT / "scripts", share / "project/scripts")
    for name in ("Makefile", "boot", "udev", "dbus", "systemd"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, share / "project" / name)
