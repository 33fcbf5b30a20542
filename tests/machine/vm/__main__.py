"""A throw-away machine with a real kernel, device-mapper, systemd, udev, D-Bus and the stratis client.

  python3 tests/machine/vm [options] run COMMAND...    run a command in it, with its exit status as ours
  python3 tests/machine/vm [options] shell             a shell in it, on this terminal
  python3 tests/machine/vm [options] build             only build what is kept in the cache

The exit status is 124 at the time limit and 125 if the machine died. See README.md in tests/machine.
"""

import argparse
from pathlib import Path

import images
import kernels
import session
from shell import command_line, say


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vm", choices=["auto", "kvm", "uml", "tcg"], default="auto", help="what it runs on")
    parser.add_argument("--cache", type=Path, default=images.default_cache(), help="folder of the built images (%(default)s)")
    parser.add_argument("--share", type=Path, help="folder to copy to /host/share; its setup.sh is run first")
    parser.add_argument("--disk", action="append", default=[], metavar="SIZE", help="add a disk, e.g. 4G (repeat)")
    parser.add_argument("--disks-folder", type=Path, help="keep the disks there and use those that are there")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of `run`")
    parser.add_argument("--cut", type=float, metavar="SECONDS", help="cut the power within this time of the guest's "
                        "line @@MACHINE cut-window@@")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws the moment of --cut")
    parser.add_argument("--console", type=Path, help="file for what the kernel says")
    parser.add_argument("what", choices=["run", "shell", "build"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main():
    given = arguments()
    kernel = kernels.choose(given.cache.absolute(), given.vm)
    say(f"runs on {kernel.name}")
    if given.what == "build":
        return 0
    words = given.command[1:] if given.command[:1] == ["--"] else given.command
    job = session.Job(
        command=" ".join(words) if given.what == "run" else None,
        share=given.share,
        disk_sizes=tuple(given.disk),
        disks_folder=given.disks_folder,
        memory_mib=given.memory,
        seconds=given.seconds,
        power_cut=session.PowerCut(given.seed, given.cut) if given.cut is not None else None,
        console=given.console,
    )
    return session.live(kernel, job).status


if __name__ == "__main__":
    command_line(main)
