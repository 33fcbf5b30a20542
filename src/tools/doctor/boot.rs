//! What the boot needs: the options of Stratis filesystems in fstab, and, if the root filesystem is
//! one, the kernel command line and the contents of the initramfs
//! (`docs/spec/tools/system-integration.md` §3.3, 3.4, 4).
//!
//! This module must never look at a device.

use std::{io, time::Duration};

use super::{Diagnosis, system::System};
use crate::{
    base::ids::PoolUuid,
    platform::linux::needed::{self, NoOutput},
};

const FSTAB: &str = "/etc/fstab";
const LINKS: &str = "/dev/stratis/";
const REQUIRES: &str = "x-systemd.requires=";
const SETUP: &str = "stratis-fstab-setup@";
const SETUP_NETWORK: &str = "stratis-fstab-setup-with-network@";
const PARAMETER: &str = "stratis.rootfs.pool_uuid=";
/// Where the kernel's command line of the next boot is configured.
const COMMAND_LINES: [&str; 5] =
    ["/proc/cmdline", "/etc/kernel/cmdline", "/etc/default/grub", "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"];
/// Folders with one file for each boot entry or configuration.
const COMMAND_LINE_FOLDERS: [&str; 3] = ["/boot/loader/entries", "/etc/default/grub.d", "/etc/cmdline.d"];
/// Listing an image of hundreds of megabytes takes some seconds.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// Files that an initramfs must have to start a pool.
const IN_INITRAMFS: [&str; 3] = ["stratisd-min", "stratis-min", "61-stratisd.rules"];

/// A line of fstab that names a Stratis filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FstabLine {
    number: usize,
    device: String,
    mount_point: String,
    options: Vec<String>,
}

impl FstabLine {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// The units that set up a pool for the line.
    pub(super) fn units(&self) -> impl Iterator<Item = &str> {
        let named = self.options.iter().filter_map(|option| option.strip_prefix(REQUIRES));
        named.filter(|unit| unit.starts_with(SETUP) || unit.starts_with(SETUP_NETWORK))
    }

    /// Whether the boot waits for the mount.
    pub(super) fn is_awaited(&self) -> bool {
        !["noauto", "nofail", "x-systemd.automount"].iter().any(|option| self.has(option))
    }

    /// Whether the initramfs mounts it.
    fn is_early(&self) -> bool {
        ["/", "/usr"].contains(&self.mount_point.as_str())
    }
}

/// The lines of fstab that name Stratis filesystems.
pub(super) fn read_fstab(system: &System, report: &mut Diagnosis) -> Vec<FstabLine> {
    match system.read(FSTAB) {
        Ok(text) => parse_fstab(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            report.unexamined("fstab-option-missing", format!("cannot read {FSTAB}: {error}"));
            Vec::new()
        }
    }
}

fn parse_fstab(text: &str) -> Vec<FstabLine> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#'));
    let parsed = lines.filter_map(|(at, line)| {
        let mut fields = line.split_whitespace();
        let (device, mount_point) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let options = fields.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
        Some(FstabLine { number: at + 1, device, mount_point, options })
    });
    parsed.filter(|line| line.device.starts_with(LINKS) || line.device.starts_with("/dev/mapper/stratis-1-")).collect()
}

pub(super) fn check(system: &System, fstab: &[FstabLine], report: &mut Diagnosis) {
    for line in fstab {
        if line.is_early() {
            continue;
        }
        check_line(line, report);
    }
    let command_lines = command_lines(system);
    let root_is_ours = fstab.iter().any(FstabLine::is_early)
        || system.text("/proc/cmdline").is_some_and(|text| text.contains(&format!("root={LINKS}")));
    if root_is_ours {
        if !command_lines.iter().any(|text| has_parameter(text)) {
            report.problem(
                "kernel-parameter-missing",
                format!("The root filesystem is on a pool, but no kernel command line has {PARAMETER}UUID"),
                "without it the initramfs starts no pool, and the boot ends in the emergency shell",
                format!("add {PARAMETER}UUID to the kernel command line, and update the boot loader"),
            );
        }
        check_images(system, report);
    }
}

fn check_line(line: &FstabLine, report: &mut Diagnosis) {
    let FstabLine { number, device, mount_point, .. } = line;
    let place = format!("Line {number} of {FSTAB} ({device} on {mount_point})");
    let units: Vec<&str> = line.units().collect();
    if units.is_empty() && line.is_awaited() && !line.has("_netdev") {
        report.problem(
            "fstab-option-missing",
            format!("{place} has no option {REQUIRES}{SETUP}POOLUUID.service"),
            "local-fs.target waits for the mount, but stratisd starts later: the boot ends in emergency mode",
            format!(
                "add the option {REQUIRES}{SETUP}POOLUUID.service, or nofail if the boot may continue without the mount"
            ),
        );
    }
    for unit in units {
        let network = unit.starts_with(SETUP_NETWORK);
        let instance = unit.strip_prefix(if network { SETUP_NETWORK } else { SETUP }).unwrap_or_default();
        let pool = instance.strip_suffix(".service").and_then(|uuid| uuid.parse::<PoolUuid>().ok());
        if pool.is_none() {
            report.problem(
                "fstab-option-wrong",
                format!("{place} requires {unit}, which is not {SETUP}POOLUUID.service"),
                "systemd starts no such unit, and the mount fails",
                "write the UUID of the pool, with hyphens, and the suffix .service",
            );
        }
        if network && !line.has("_netdev") {
            report.problem(
                "fstab-option-wrong",
                format!("{place} waits for the network but has no option _netdev"),
                "systemd finds an ordering cycle, and drops jobs of the boot to break it",
                "add the option _netdev",
            );
        }
    }
}

fn command_lines(system: &System) -> Vec<String> {
    let in_folders = COMMAND_LINE_FOLDERS
        .iter()
        .flat_map(|folder| system.names(folder).into_iter().map(move |name| format!("{folder}/{name}")));
    COMMAND_LINES
        .iter()
        .map(|path| (*path).to_owned())
        .chain(in_folders)
        .filter_map(|path| system.text(&path))
        .collect()
}

fn has_parameter(text: &str) -> bool {
    text.split(PARAMETER).skip(1).any(|rest| {
        let value: String = rest.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '-').collect();
        value.parse::<PoolUuid>().is_ok()
    })
}

fn check_images(system: &System, report: &mut Diagnosis) {
    let names = system.names("/boot");
    let is_image = |name: &String| {
        (name.starts_with("initrd.img-") || name.starts_with("initramfs-"))
            && !name.contains("rescue")
            && !name.contains("kdump")
    };
    let images: Vec<&String> = names.iter().filter(|name| is_image(name)).collect();
    if images.is_empty() {
        report.unexamined("initramfs-incomplete", "no image of an initramfs was found in /boot");
    }
    for image in images {
        match list(system, image) {
            Ok(listing) => check_listing(image, &listing, report),
            Err(why) => report.unexamined("initramfs-incomplete", format!("/boot/{image}: {why}")),
        }
    }
}

/// The list of files in an image, from a program of this machine.
fn list(system: &System, image: &str) -> Result<String, String> {
    let path = system.path(&format!("/boot/{image}"));
    let mut why = "neither lsinitramfs nor lsinitrd is installed".to_owned();
    for program in ["lsinitramfs", "lsinitrd"] {
        match needed::output(program, vec![path.as_os_str()], LIST_LIMIT) {
            Ok(listing) => return Ok(listing),
            Err(NoOutput::NotInstalled(_)) => {}
            Err(reason) => why = reason.to_string(),
        }
    }
    Err(why)
}

fn check_listing(image: &str, listing: &str, report: &mut Diagnosis) {
    let names: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split(" -> ").next()?.split_whitespace().last())
        .filter_map(|path| path.rsplit('/').next())
        .collect();
    let missing: Vec<&str> = IN_INITRAMFS.into_iter().filter(|name| !names.contains(name)).collect();
    if !missing.is_empty() {
        report.problem(
            "initramfs-incomplete",
            format!("The initramfs /boot/{image} has no {}", missing.join(", ")),
            "the root filesystem is on a pool, which this initramfs cannot start",
            "install the initramfs part of stratisd, and rebuild the image (update-initramfs -u, or dracut --force)",
        );
    }
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
