"""Contents of the throw-away machine: packages, suites, masked units, names shared with the guest.

Facts only, each with its reason. Knows nothing of how images are built or machines run.
"""

import dataclasses
from pathlib import Path

IMAGE_FILES = Path(__file__).resolve().parent.parent / "image"

# Debian 12's stock kernel runs every guest.
KERNEL_SUITE = "bookworm"

PACKAGES = [
    # a system with systemd, udev and D-Bus
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps",
    # another implementation of the system bus, to which one test switches
    "dbus-broker",
    # what the daemon runs and links to
    "xfsprogs", "thin-provisioning-tools", "cryptsetup-bin", "dmsetup", "keyutils",
    "clevis", "clevis-luks", "clevis-tpm2", "tpm2-tools", "tang", "jose", "jq", "curl",
    # a TPM in software, because User-mode Linux has none
    "swtpm", "libtss2-tcti-swtpm0",
    # what `make run` on disks installs files with
    "make",
    # Python packages for the stratis client and our tests
    "python3-dbus", "python3-psutil", "python3-dateutil", "python3-wcwidth", "python3-packaging",
    "python3-pyparsing", "python3-pytest",
    # the two generators of an initial ramdisk, without the packages that would make one for each
    # kernel; what they and the prompts in it use
    "dracut-core", "initramfs-tools-core", "busybox", "cryptsetup",
    # to make and observe load
    "fio", "less",
]  # fmt: skip

# The client's own dependencies that Debian does not package; the others are in PACKAGES.
STRATIS_LIBRARIES = [
    "dbus-client-gen", "dbus-python-client-gen", "into-dbus-python", "dbus-signature-pyparsing",
    "justbytes", "justbases",
]  # fmt: skip

# Units that a machine of a few seconds' life does not need; without them it boots in about two
# seconds. modprobe@ fails in User-mode Linux (which has no modules), firstboot would wait for
# input.
MASKED_UNITS = [
    "apt-daily.timer", "apt-daily-upgrade.timer", "dev-hugepages.mount", "dev-mqueue.mount", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target", "ldconfig.service",
    "modprobe@.service", "proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-ask-password-wall.path",
    "systemd-binfmt.service", "systemd-firstboot.service", "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service", "systemd-journal-flush.service", "systemd-logind.service",
    "systemd-machine-id-commit.service", "systemd-pstore.service", "systemd-random-seed.service",
    "systemd-remount-fs.service", "systemd-sysusers.service", "systemd-tmpfiles-clean.timer",
    "systemd-update-done.service", "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
    "systemd-user-sessions.service", "tangd.socket",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Guest:
    """What a guest's root image consists of."""

    name: str
    suite: str
    python: str  # the suite's own version
    packages: tuple
    # Each in a separate directory; `stratis` is the first.
    stratis_versions: tuple
    # Programs from PyPI without their dependencies, which are in `packages` or named here.
    python_programs: tuple = ()
    # Each with all its dependencies in the directory /opt/NAME.
    python_applications: tuple = ()
    # Units of MASKED_UNITS that this guest needs.
    unmasked: tuple = ()
    size: str = "2G"


# Debian 12 on every host: one set of program versions to reason about. Both versions of the client
# are in use: 3.7.0 speaks revision r7 of the interfaces, 3.8.2 speaks r8.
DEFAULT_GUEST = Guest("root", "bookworm", "3.11", tuple(PACKAGES), ("3.8.2", "3.7.0"))

# Packages for other programs that use the daemon.
_CLIENT_PACKAGES = (
    # Cockpit's storage page, a user who may log in to it, and a browser
    "cockpit-ws", "cockpit-bridge", "cockpit-system", "cockpit-storaged", "udisks2", "sudo", "polkitd", "passwd",
    "chromium-headless-shell", "fonts-dejavu-core",
    # lists, and reads disks as users do
    "util-linux", "lvm2", "mdadm",
)  # fmt: skip
_COCKPIT_UNITS = ("systemd-logind.service", "systemd-user-sessions.service")

# Debian 13, whose Python and libblockdev the newest clients need. All of them are unchanged.
CLIENTS_GUEST = Guest(
    "clients", "trixie", "3.13",
    (*PACKAGES, *_CLIENT_PACKAGES,
     # blivet: libblockdev 3 with its plug-ins and tools, and its Python modules
     "python3-blockdev", "gir1.2-blockdev-3.0", "libblockdev-plugins-all", "libblockdev-tools", "python3-gi",
     "python3-bytesize", "python3-parted", "python3-pyudev", "python3-dasbus", "python3-selinux", "gdisk", "dosfstools",
     # snapm
     "python3-magic"),
    ("3.9.1", "3.8.2", "3.7.0"),
    python_programs=("blivet==3.14.2", "snapm==0.7.0", "boom-boot==1.6.8"),
    python_applications=("playwright==1.65.2",),
    unmasked=_COCKPIT_UNITS,
    size="5G",
)  # fmt: skip

GUESTS = {guest.name: guest for guest in (DEFAULT_GUEST, CLIENTS_GUEST)}

# User-mode Linux needs 6.13 or newer: older ones crash on processors with much register state
# (AVX-512, AMX). Debian's user-mode-linux packages are either older or lack persistent keyrings, so
# we build our own.
UML_SUITE = "trixie-backports"
UML_SOURCE = "linux-source-7.2"

# Loaded by the initial ramdisk of the stock kernel, in this order, so that it finds its root file
# system.
BOOT_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
# The stock kernel's modules for the guest: storage and its dependencies.
MODULE_FOLDERS = [
    "kernel/drivers/md", "kernel/drivers/block", "kernel/drivers/virtio", "kernel/drivers/scsi", "kernel/drivers/char",
    "kernel/fs", "kernel/crypto", "kernel/arch", "kernel/lib", "kernel/security",
]  # fmt: skip

# UML's block driver has 16 devices; the root image and the payload take two of them.
DISKS_MAX = 14

# Programs that a build needs on the host, each with its Debian package.
IMAGE_TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "cpio": "cpio", "xz": "xz-utils"}
STOCK_KERNEL_TOOLS = {"busybox": "busybox-static"}
UML_TOOLS = {"flex": "flex", "bison": "bison", "bc": "bc", "gcc": "gcc", "make": "make"}

# Exit statuses of a run besides those of the command.
EXIT_TIME_LIMIT = 124
EXIT_MACHINE_DIED = 125

# Lines from the guest to the host: `@@MACHINE word argument@@`. Also in image/agent and the tests.
MARK = rb"@@MACHINE ([a-z-]+) ?([0-9.]*)@@\r?$"
