"""What a machine can run on: KVM, User-mode Linux, or QEMU's emulation; and which of them serves here.

Gives command lines. Knows nothing of what is run in the machine nor of what it prints.
"""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import tempfile
from pathlib import Path

import images
from shell import Failure, find_program, say

COMMON_ARGUMENTS = ["systemd.wants=machine-agent.service", "systemd.show_status=0", "quiet", "panic=-1", "audit=0"]
PROBE_SECONDS = 15


@dataclasses.dataclass
class Machine:
    """One machine to start. `line` is a descriptor for what the guest's agent says, None to join it to our terminal."""

    folder: Path  # for the sockets and the copy-on-write layer
    payload: Path
    disks: list
    memory_mib: int
    console: int  # a descriptor for what the kernel says
    line: int | None


class UserModeLinux:
    """A kernel that is an ordinary program: needs nothing of the host, near native speed."""

    name = "uml"

    def __init__(self, cache):
        if platform.machine() != "x86_64":
            raise Failure("User-mode Linux is for x86_64 hosts")
        self.image = images.root(cache) / "root.img"
        self.kernel = images.uml_kernel(cache)

    def command(self, machine):
        line = "fd:0,fd:1" if machine.line is None else f"null,fd:{machine.line}"
        # ubd…t: no discard; a copy-on-write file keeps the image as it is.
        disks = [f"ubd0t={machine.folder}/root.cow,{self.image}", f"ubd1r={machine.payload}"]
        disks += [f"ubd{number + 2}d={disk}" for number, disk in enumerate(machine.disks)]
        return [
            str(self.kernel), f"mem={machine.memory_mib}M", "ncpus=2", "seccomp=on", "root=/dev/ubda", "rw", *disks,
            f"con0=null,fd:{machine.console}", "con=null", f"ssl0={line}", "ssl=null",
            f"uml_dir={machine.folder}/", "umid=vm", "noreboot", "scsi_debug.add_host=0", *COMMON_ARGUMENTS,
        ]  # fmt: skip


class Qemu:
    """Debian's stock kernel under QEMU, by KVM or by emulation (4 to 20 times slower)."""

    def __init__(self, cache, accelerator, cpu):
        self.name = "kvm" if accelerator == "kvm" else "tcg"
        self.image = images.root(cache)
        self.accelerator, self.cpu = accelerator, cpu

    def _base(self, memory_mib):
        return ["qemu-system-x86_64", "-machine", "q35,hpet=off", "-accel", self.accelerator, "-cpu", self.cpu,
                "-smp", "2", "-m", str(memory_mib), "-display", "none", "-nodefaults", "-no-reboot",
                "-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd")]  # fmt: skip

    def command(self, machine):
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
            # cache=unsafe: the host's memory is not what we test; a killed machine's writes are kept by the host.
            arguments += ["-drive", f"id=drive{number},file={file},format=raw,if=none,cache=unsafe,{option}"]
            arguments += ["-device", f"virtio-blk-pci,drive=drive{number},serial=machine{number}"]
        kernel_line = ["console=ttyS0", "mitigations=off", "nokaslr", "no_timer_check", "selinux=0", "apparmor=0",
                       "cryptomgr.notests", "random.trust_cpu=on", *COMMON_ARGUMENTS]  # fmt: skip
        return [*arguments, "-append", " ".join(kernel_line)]

    def boots(self):
        """Starts the kernel for real: does its first program run within the time limit?"""
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


def _kvm(cache):
    """KVM as it boots here, or None. A /dev/kvm that opens proves nothing inside another virtual machine, so a kernel
    is booted; the answer is kept for this processor, kernel and QEMU."""
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
        say(f"trying whether KVM boots here (at most {2 * PROBE_SECONDS} s; the answer is kept) ...")
        # Some nested hosts refuse one model register, which the second form leaves out.
        models = ("host", "host,-arch-capabilities")
        cpu = next((cpu for cpu in models if Qemu(cache, "kvm", cpu).boots()), None)
        answer = {"question": question, "cpu": cpu}
        say("KVM boots" if cpu else "KVM does not boot here")
        try:
            answer_file.write_text(json.dumps(answer))
        except OSError as error:
            say(f"the answer could not be kept: {error}")
    return Qemu(cache, "kvm", answer["cpu"]) if answer["cpu"] else None


def choose(cache, wanted):
    """The kernel named (`kvm`, `uml`, `tcg`), or for `auto` the first of these that serves here."""
    if wanted in ("auto", "kvm"):
        kvm = _kvm(cache)
        if kvm:
            return kvm
        if wanted == "kvm":
            raise Failure("KVM does not boot here (no /dev/kvm for this user, no QEMU, or the probe failed)")
    if wanted in ("auto", "uml"):
        try:
            return UserModeLinux(cache)
        except Failure as failure:
            if wanted == "uml" or not find_program("qemu-system-x86_64"):
                raise
            say(f"no User-mode Linux, so emulation, which is slow: {failure}")
    if not find_program("qemu-system-x86_64"):
        raise Failure("QEMU is missing; `scripts/setup machine` installs it")
    return Qemu(cache, "tcg,thread=multi", "max")
