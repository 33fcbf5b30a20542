"""The ways to run a machine: KVM, User-mode Linux, or QEMU's emulation, and the choice among them.

Makes command lines. Knows neither what runs in the machine nor what it prints.
"""

import dataclasses
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import facts
import images
from shell import Failure, find_program, say

COMMON_ARGUMENTS = ["systemd.wants=machine-agent.service", "systemd.show_status=0", "quiet", "panic=-1", "audit=0"]
PROBE_SECONDS = 15


@dataclasses.dataclass
class Machine:
    """A machine to start. `line` is a descriptor for the guest agent's output, None for our
    terminal."""

    folder: Path  # for the sockets and the copy-on-write layer
    payload: Path
    disks: list
    memory_mib: int
    console: int  # a descriptor for the kernel's console output
    line: int | None
    # Keeps what is written to the root file system for the next life; None: it is thrown away.
    root_overlay: Path | None = None
    keyboard: int | None = None  # a descriptor for what is typed at the console
    absent: tuple = ()  # numbers of disks that are not there, at first
    boot: "Boot | None" = None


@dataclasses.dataclass
class Boot:
    """What a machine boots from instead of its image: an initial ramdisk, with words for the kernel."""

    initrd: Path
    words: tuple


class UserModeLinux:
    """A kernel that is an ordinary program: needs nothing of the host, near native speed."""

    name = "uml"

    def __init__(self, cache, guest):
        if platform.machine() != "x86_64":
            raise Failure("User-mode Linux needs an x86_64 host")
        self.image = images.root(cache, guest) / "root.img"
        self.kernel = images.uml_kernel(cache)

    def _disk(self, machine, number):
        return f"ubd{number + 2}d={machine.disks[number]}"

    def plug(self, machine, number):
        """Connects an absent disk to the running machine, by the kernel's management console (a
        request is a magic number, a version, a length and 512 bytes)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            console.bind(f"{machine.folder}/plug{number}")
            console.settimeout(PROBE_SECONDS)
            request = f"config {self._disk(machine, number)}".encode()
            console.sendto(struct.pack("=III512s", 0xCAFEBABE, 2, len(request), request), f"{machine.folder}/vm/mconsole")
            failed, _, length = struct.unpack_from("=III", answer := console.recv(4096))
        if failed:
            raise Failure(f"the machine does not take disk {number}: {answer[12:12 + length].decode()}")

    def command(self, machine):
        line = "fd:0,fd:1" if machine.line is None else f"null,fd:{machine.line}"
        # ubd…t: no discard. A copy-on-write file leaves the image unchanged.
        overlay = machine.root_overlay or machine.folder / "root.cow"
        disks = [f"ubd0t={overlay},{self.image}", f"ubd1r={machine.payload}"]
        disks += [self._disk(machine, number) for number in range(len(machine.disks)) if number not in machine.absent]
        root = ["root=/dev/ubda", "rw"]
        if machine.boot:
            root = [f"initrd={machine.boot.initrd}", "rw", *machine.boot.words]
        # systemd looks for the console behind tty0, which is none here, so the console is tty1.
        keyboard = "null" if machine.keyboard is None else f"fd:{machine.keyboard}"
        return [
            str(self.kernel), f"mem={machine.memory_mib}M", "ncpus=2", "seccomp=on", *root, *disks,
            "console=tty1", "con=null", f"con1={keyboard},fd:{machine.console}", f"ssl0={line}", "ssl=null",
            f"uml_dir={machine.folder}/", "umid=vm", "noreboot", "scsi_debug.add_host=0", *COMMON_ARGUMENTS,
        ]  # fmt: skip


class Qemu:
    """Debian's stock kernel under QEMU, with KVM or emulation (4 to 20 times slower)."""

    def __init__(self, cache, guest, accelerator, cpu):
        self.name = "kvm" if accelerator == "kvm" else "tcg"
        self.image = images.root(cache, guest)
        self.accelerator, self.cpu = accelerator, cpu

    def _base(self, memory_mib):
        return ["qemu-system-x86_64", "-machine", "q35,hpet=off", "-accel", self.accelerator, "-cpu", self.cpu,
                "-smp", "2", "-m", str(memory_mib), "-display", "none", "-nodefaults", "-no-reboot",
                "-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd")]  # fmt: skip

    def command(self, machine):
        if machine.root_overlay:
            raise Failure("a root file system is kept under User-mode Linux only (--vm uml)")
        if machine.boot:
            raise Failure("boots from a pool are tested under User-mode Linux only (--vm uml)")
        if machine.line is None:
            line = ["-chardev", "stdio,id=line,signal=off"]
        else:
            line = ["-chardev", f"file,id=line,path=/dev/fd/{machine.line}"]
        drives = [(self.image / "root.img", "snapshot=on"), (machine.payload, "readonly=on")]
        drives += [(disk, "discard=unmap") for disk in machine.disks]
        arguments = self._base(machine.memory_mib)
        arguments += ["-chardev", f"file,id=console,path=/dev/fd/{machine.console}", "-serial", "chardev:console"]
        arguments += [*line, "-serial", "chardev:line"]
        for number, (file, option) in enumerate(drives):
            # cache=unsafe: the tests do not cover the host's memory; the host keeps a killed
            # machine's writes.
            arguments += ["-drive", f"id=drive{number},file={file},format=raw,if=none,cache=unsafe,{option}"]
            arguments += ["-device", f"virtio-blk-pci,drive=drive{number},serial=machine{number}"]
        kernel_line = ["console=ttyS0", "mitigations=off", "nokaslr", "no_timer_check", "selinux=0", "apparmor=0",
                       "cryptomgr.notests", "random.trust_cpu=on", *COMMON_ARGUMENTS]  # fmt: skip
        return [*arguments, "-append", " ".join(kernel_line)]

    def boots(self):
        """Boots the kernel and returns whether its first program runs within the time limit."""
        command = [*self._base(512), "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 machine-probe"]
        with tempfile.TemporaryFile() as output:
            probe = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                probe.wait(PROBE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(probe.pid, signal.SIGKILL)
                probe.wait()
            output.seek(0)
            return b"@@MACHINE probe@@" in output.read()


def _kvm(cache, guest):
    """KVM, if it boots here, or None. Inside another virtual machine, an accessible /dev/kvm proves
    nothing, so boots a kernel; caches the answer for this processor, kernel and QEMU."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or not find_program("qemu-system-x86_64"):
        return None
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    processor = next((line for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    question = [qemu, processor.strip(), platform.release()]
    answer_file = cache / "kvm-answer.json"
    try:
        answer = json.loads(answer_file.read_text())
    except (OSError, ValueError):
        answer = {}
    if answer.get("question") != question:
        say(f"testing whether KVM boots here (at most {2 * PROBE_SECONDS} s, once) ...")
        # Some nested hosts refuse one model register, which the second form omits.
        models = ("host", "host,-arch-capabilities")
        cpu = next((cpu for cpu in models if Qemu(cache, guest, "kvm", cpu).boots()), None)
        answer = {"question": question, "cpu": cpu}
        say("KVM boots" if cpu else "KVM does not boot here")
        try:
            answer_file.write_text(json.dumps(answer))
        except OSError as error:
            say(f"cannot cache the answer: {error}")
    return Qemu(cache, guest, "kvm", answer["cpu"]) if answer["cpu"] else None


def choose(cache, wanted, guest=facts.DEFAULT_GUEST):
    """The kernel with this name (`kvm`, `uml`, `tcg`), or for `auto` the first of them that works
    here, with this guest's root image."""
    if wanted in ("auto", "kvm"):
        kvm = _kvm(cache, guest)
        if kvm:
            return kvm
        if wanted == "kvm":
            raise Failure("KVM does not boot here (no /dev/kvm for this user, no QEMU, or the probe failed)")
    if wanted in ("auto", "uml"):
        try:
            return UserModeLinux(cache, guest)
        except Failure as failure:
            if wanted == "uml" or not find_program("qemu-system-x86_64"):
                raise
            say(f"User-mode Linux is unavailable, using slow emulation: {failure}")
    if not find_program("qemu-system-x86_64"):
        raise Failure("QEMU is missing; `scripts/setup machine` installs it")
    return Qemu(cache, guest, "tcg,thread=multi", "max")
