//! What the doctor finds in lines of fstab, kernel command lines and listings of images.

use super::*;

fn ids_of(check: impl FnOnce(&mut Diagnosis)) -> Vec<&'static str> {
    let mut report = Diagnosis::default();
    check(&mut report);
    report.findings().iter().map(|finding| finding.id).collect()
}

const UUID: &str = "11111111-2222-3333-4444-555555555555";

fn of_line(options: &str) -> Vec<&'static str> {
    let text = format!("# comment\n\n/dev/sda1 /boot ext4 defaults 0 2\n/dev/stratis/p/f /mnt xfs {options} 0 2\n");
    let lines = parse_fstab(&text);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].number, 4);
    ids_of(|report| check_line(&lines[0], report))
}

#[test]
fn a_line_without_its_option_is_found() {
    for good in [
        "defaults,nofail",
        "noauto",
        "x-systemd.automount",
        "_netdev",
        &format!("defaults,x-systemd.requires=stratis-fstab-setup@{UUID}.service"),
        &format!("_netdev,x-systemd.requires=stratis-fstab-setup-with-network@{UUID}.service"),
    ] {
        assert!(of_line(good).is_empty(), "{good}");
    }
    assert_eq!(of_line("defaults"), ["fstab-option-missing"]);
    assert_eq!(of_line("defaults,x-systemd.requires=other.service"), ["fstab-option-missing"]);
}

#[test]
fn a_line_with_a_wrong_option_is_found() {
    for wrong in [
        "x-systemd.requires=stratis-fstab-setup@.service".to_owned(),
        format!("x-systemd.requires=stratis-fstab-setup@{UUID}"),
        format!("x-systemd.requires=stratis-fstab-setup-with-network@{UUID}.service"),
    ] {
        assert_eq!(of_line(&wrong), ["fstab-option-wrong"], "{wrong}");
    }
}

#[test]
fn the_parameter_needs_a_uuid() {
    assert!(has_parameter(&format!("ro root=/dev/stratis/p/f stratis.rootfs.pool_uuid={UUID} quiet")));
    assert!(has_parameter(&format!("GRUB_CMDLINE_LINUX=\"stratis.rootfs.pool_uuid={UUID}\"")));
    assert!(!has_parameter("stratis.rootfs.pool_uuid= quiet"));
    assert!(!has_parameter("quiet"));
}

#[test]
fn an_initramfs_without_the_daemon_is_found() {
    let complete = "usr/lib/udev/rules.d/61-stratisd.rules\nusr/bin/stratis-min\nusr/libexec/stratisd-min\n";
    assert!(ids_of(|report| check_listing("initrd.img-6", complete, report)).is_empty());
    // The long form, as lsinitrd prints it.
    let long = "-rwxr-xr-x   1 root     root  1 Jan  1 2024 usr/bin/stratis-min\n\
                -rwxr-xr-x   1 root     root  1 Jan  1 2024 usr/libexec/stratisd-min\n\
                lrwxrwxrwx   1 root     root  1 Jan  1 2024 etc/61-stratisd.rules -> ../x\n";
    assert!(ids_of(|report| check_listing("initramfs-6.img", long, report)).is_empty());
    let incomplete = "usr/bin/stratis-min\nusr/bin/stratisd-min.old\n";
    assert_eq!(ids_of(|report| check_listing("initrd.img-6", incomplete, report)), ["initramfs-incomplete"]);
}
