#!/bin/bash
# The dracut module `stratis`: pools of Stratis in the initrd. `make install` fills in @LIBEXECDIR@,
# @UDEVDIR@, @UNITDIR@, @UNITGENDIR@, @UNITEXECDIR@ and @STRATISDATADIR@.
# shellcheck disable=SC2154  # dracut sets moddir, systemdutildir, systemdsystemunitdir, hostonly

# shellcheck source=boot/contents.sh
. "${dracutsysrootdir-}@STRATISDATADIR@/initrd-contents.sh"

stratis_files='@LIBEXECDIR@/stratisd-min @UNITDIR@/stratisd-min.service @UNITGENDIR@/stratis-setup-generator @UNITEXECDIR@/stratis-setup-functions
@UDEVDIR@/stratis-str-cmp @UDEVDIR@/stratis-base32-decode'

# dracut leaves the module out if something is missing. The message names everything that is
# missing, not only the first item.
check() {
    local missing=() word
    for word in $STRATIS_PROGRAMS $STRATIS_SCRIPT_PROGRAMS stratis-min systemd-ask-password $stratis_files; do
        # kill may be a builtin of the shell.
        [[ $word == kill ]] || find_binary "$word" > /dev/null || [[ -r ${dracutsysrootdir-}$word ]] || missing+=("$word")
    done
    if ((${#missing[@]})); then
        derror "module 'stratis' is left out, and pools cannot be started in the initrd: missing ${missing[*]}"
        return 1
    fi
    return 0
}

depends() {
    echo 'dm systemd-initrd systemd-ask-password'
}

# Modules are built in or have other names on some kernels. The device-mapper targets and XFS are required.
installkernel() {
    local module missing=()
    # shellcheck disable=SC2086
    hostonly='' instmods $STRATIS_TARGET_MODULES $STRATIS_OTHER_MODULES '=crypto'
    for module in $STRATIS_TARGET_MODULES xfs; do
        modinfo -k "$kernel" "$module" > /dev/null 2>&1 || missing+=("$module")
    done
    ((${#missing[@]} == 0)) ||
        derror "module 'stratis': kernel $kernel has no ${missing[*]}; pools that need them cannot be started in the initrd"
    return 0
}

install() {
    # shellcheck disable=SC2046,SC2086
    inst_multiple $STRATIS_PROGRAMS ${STRATIS_SCRIPT_PROGRAMS/kill/} stratis-min \
        '@LIBEXECDIR@/stratisd-min' '@UDEVDIR@/stratis-str-cmp' '@UDEVDIR@/stratis-base32-decode' ||
        dfatal "module 'stratis': cannot install its programs"
    # Generated units name these places.
    inst_script "$moddir/stratis-rootfs-setup" /usr/lib/systemd/stratis-rootfs-setup
    inst_simple '@UNITEXECDIR@/stratis-setup-functions' /usr/lib/systemd/stratis-setup-functions
    inst '@UNITGENDIR@/stratis-setup-generator' "$systemdutildir/system-generators/stratis-setup-generator"
    inst_rules "$moddir/61-stratisd.rules"
    inst_simple '@UNITDIR@/stratisd-min.service' "$systemdsystemunitdir/stratisd-min.service"
    # glibc loads this library when a thread ends, so no program is linked to it.
    inst_libdir_file 'libgcc_s.so*'
}
