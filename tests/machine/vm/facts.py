"""Contents of the throw-away machine: packages, suites, masked units, names shared with the guest.

Facts only, each with its reason. Knows nothing of how images are built or machines run.
"""

from pathlib import Path

IMAGE_FILES = Path(__file__).resolve().parent.parent / "image"

# The guest is Debian 12 on every host: one set of program versions to reason about.
GUEST_SUITE = "bookworm"

GUEST_PACKAGES = [
    # a system with systemd, udev and D-Bus
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "procps",
    # the other system bus, which one test switches to
    "dbus-broker",
    # what the daemon runs and links to
    "xfsprogs", "thin-provisioning-tools", "cryptsetup-bin", "dmsetup", "keyutils",
    "clevis", "clevis-luks", "clevis-tpm2", "tpm2-tools", "tang", "jose", "jq", "curl",
    # a TPM in software, because User-mode Linux has none
    "swtpm", "libtss2-tcti-swtpm0",
    # what `make run` on disks installs with
    "make",
    # Python packages for the stratis client and our tests
    "python3-dbus", "python3-psutil", "python3-dateutil", "python3-wcwidth", "python3-packaging",
    "python3-pyparsing", "python3-pytest",
    # to make and observe load
    "fio", "less",
]  # fmt: skip

# Both are in use: 3.7.0 speaks revision r7 of the interfaces, 3.8.2 speaks r8. `stratis` is the
# first.
STRATIS_VERSIONS = ["3.8.2", "3.7.0"]
# The client's own dependencies that Debian does not package; the others are in GUEST_PACKAGES.
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
