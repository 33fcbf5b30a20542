"""Scripts in place of programs that the daemon runs."""

import contextlib
import os
import pathlib
import stat
import subprocess

import system

# Names of Debian's one program for thin metadata, which acts by the name that it is called by.
THIN_TOOLS = ("thin_check", "thin_repair", "thin_metadata_size")


@contextlib.contextmanager
def program(name, does):
    """Replaces the thin tool `name` by the shell script `does`; the original programs are in
    /run/thin-tools.
    """
    place = pathlib.Path(system.run("sh", "-c", f"command -v {name}").strip())
    target = pathlib.Path(os.path.realpath(place))
    script, tools = pathlib.Path("/run/stand-in"), pathlib.Path("/run/thin-tools")
    tools.mkdir(exist_ok=True)
    original = tools / "program"
    original.write_bytes(target.read_bytes())
    for tool in THIN_TOOLS:
        (tools / tool).unlink(missing_ok=True)
        (tools / tool).symlink_to(original)
    others = f'[ "${{0##*/}}" = {name} ] || exec "{tools}/${{0##*/}}" "$@"'
    script.write_text(f"#!/bin/sh\n{others}\n{does}\n")
    for file in (script, original):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    system.run("mount", "--bind", script, target)
    try:
        yield
    finally:
        # A program that is still running keeps the mount busy.
        subprocess.run(["umount", "--lazy", target], check=True)
