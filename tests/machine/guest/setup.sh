# Installs the daemon in the guest and starts it, as a package would. Run by image/agent before the command.
set -e
# A test installs the packages, in the first of several lives of the same root.
[ ! -d packages ] || exit 0
# A root file system on a pool has the daemon from the life that made it, and may still be starting.
! grep -q 'root=/dev/stratis/' /proc/cmdline || exit 0
# Where the daemon runs already, its file is in use.
cp -a --remove-destination root/. /
if ! /usr/libexec/stratisd --version > /dev/null; then
    echo "cannot run stratisd: it was built with a newer C library than Debian 12's; build it on Debian 12" >&2
    exit 1
fi
systemctl daemon-reload
systemctl reload dbus
udevadm control --reload
systemctl start stratisd
if [ "$MODE" = shell ]; then
    echo "stratisd is up:"
    stratis pool list
    echo
    echo "This machine is discarded when the shell exits. Its disks: $MACHINE_DISKS"
    echo "Try:  stratis pool create p1 ${MACHINE_DISKS%% *}; stratis fs create p1 f1; mount /dev/stratis/p1/f1 /mnt"
    echo "The daemon's log: journalctl -u stratisd"
fi
