"""A throw-away machine with a real kernel, device-mapper, systemd, udev, D-Bus and the stratis client.

  python3 tests/machine/vm [options] run COMMAND...    run a command in it and return its exit status
  python3 tests/machine/vm [options] shell             a shell in it, on this terminal
  python3 tests/machine/vm [options] build             build the images of the cache only

The exit status is 124 at the time limit and 125 if the machine died. See README.md in tests/machine.
"""

import argparse
from pathlib import Path

import facts
import images
import kernels
import session
from shell import command_line, say


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vm", choices=["auto", "kvm", "uml", "tcg"], default="auto", help="kernel or emulator to use")
    parser.add_argument("--guest", choices=sorted(facts.GUESTS), default="root", help="root image to use (%(default)s)")
    parser.add_argument("--cache", type=Path, default=images.default_cache(), help="directory of the built images (%(default)s)")
    parser.add_argument("--share", type=Path, help="directory to copy to /host/share; its setup.sh runs first")
    parser.add_argument("--disk", action="append", default=[], metavar="SIZE", help="add a disk, e.g. 4G (repeat)")
    parser.add_argument("--disks-folder", type=Path, help="keep the disks there, and use existing ones")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of `run`")
    parser.add_argument("--cut", type=float, metavar="SECONDS", help="cut the power within this time after the guest's "
                        "line @@MACHINE cut-window@@")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed for the moment of --cut")
    parser.add_argument("--console", type=Path, help="file for the kernel's console output")
    parser.add_argument("what", choices=["run", "shell", "build"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main():
    given = arguments()
    kernel = kernels.choose(given.cache.absolute(), given.vm, facts.GUESTS[given.guest])
    say(f"using {kernel.name}")
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
