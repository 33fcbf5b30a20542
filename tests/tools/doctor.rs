//! `stratisd-tools doctor` on the root folder of a system and images of its devices: a finding for
//! each planted fault, and none without.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use stratisd::{
    base::ids::DevUuid,
    engine::{
        bda::{Bda, Repair},
        encryption::StratisToken,
        metadata::MetadataVersion,
    },
    platform::sim::Sim,
    tools::doctor::{CHECKS, Diagnosis, Scope, Severity, examine},
};
use support::{bench::Bench, disks, keys};
use tempfile::TempDir;

use crate::{TOOLS, image, run};

const UUID: &str = "11111111-2222-3333-4444-555555555555";
const PROGRAMS: [&str; 5] = ["mkfs.xfs", "xfs_db", "thin_check", "thin_repair", "thin_metadata_size"];
const RELEASE: &str = "6.1.0-test";

/// The root folder of a system, and images of its devices.
pub(crate) struct Patient {
    root: TempDir,
    images: TempDir,
    devices: Vec<PathBuf>,
}

impl Patient {
    pub(crate) fn healthy() -> Patient {
        let patient = Patient { root: TempDir::new().unwrap(), images: TempDir::new().unwrap(), devices: Vec::new() };
        for program in PROGRAMS {
            patient.program(program);
        }
        for helper in ["stratis-base32-decode", "stratis-str-cmp", "rules.d/61-stratisd.rules"] {
            patient.put(&format!("/usr/lib/udev/{helper}"), "");
        }
        patient
            .put("/usr/lib/udev/rules.d/95-dm-notify.rules", "RUN+=\"/sbin/dmsetup udevcomplete $env{DM_COOKIE}\"\n");
        patient.put("/usr/share/dbus-1/system.d/stratisd.conf", "");
        for unit in ["stratisd.service", "stratisd-min-postinitrd.service", "stratis-fstab-setup@.service"] {
            patient.put(&format!("/usr/lib/systemd/system/{unit}"), "");
        }
        patient.put("/etc/systemd/system/multi-user.target.wants/stratisd.service", "");
        patient.put("/proc/sys/kernel/osrelease", &format!("{RELEASE}\n"));
        patient.put("/proc/filesystems", "nodev\tproc\n\txfs\n");
        patient.put("/proc/cmdline", "quiet\n");
        patient.put("/proc/keys", "");
        let modules = "kernel/drivers/md/dm-mod.ko:\nkernel/drivers/md/dm-thin-pool.ko.xz: x\nkernel/drivers/md/dm-cache.ko:\n\
                       kernel/drivers/md/dm-cache-smq.ko:\n";
        patient.put(&format!("/lib/modules/{RELEASE}/modules.dep"), modules);
        patient.put(&format!("/lib/modules/{RELEASE}/modules.builtin"), "kernel/drivers/md/dm-crypt.ko\n");
        patient.put("/etc/fstab", &format!("/dev/sda1 / ext4 defaults 0 1\n/dev/stratis/p/f /mnt xfs x-systemd.requires=stratis-fstab-setup@{UUID}.service 0 2\n"));
        patient
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.at(path)).unwrap();
    }

    fn program(&self, name: &str) {
        let path = format!("/usr/sbin/{name}");
        self.put(&path, "");
        fs::set_permissions(self.at(&path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Images of these disks.
    fn with(mut self, sim: &Sim, disks: &[&str]) -> Patient {
        self.devices.extend(disks.iter().map(|disk| image(&self.images, sim, disk)));
        self
    }

    fn report(&self) -> Diagnosis {
        examine(&Scope { root: self.root.path().to_owned(), devices: self.devices.clone() })
    }

    /// Checks the names of the findings.
    #[track_caller]
    fn has(&self, expected: &[(&str, Severity)]) {
        let report = self.report();
        let found: Vec<(&str, Severity)> =
            report.findings().iter().map(|finding| (finding.id, finding.severity)).collect();
        assert_eq!(found, expected, "{}", report.text());
        assert!(report.left_out().is_empty(), "{}", report.text());
    }
}

use Severity::{Problem, Warning};

/// A system in which one fault was planted.
#[track_caller]
fn planted(plant: impl FnOnce(&Patient), expected: &[(&str, Severity)]) {
    let patient = Patient::healthy();
    plant(&patient);
    patient.has(expected);
}

#[test]
fn a_healthy_system_has_no_findings() {
    let patient = Patient::healthy();
    patient.has(&[]);
    assert_eq!(patient.report().exit_status(), 0);
    let bench = Bench::with_two_filesystems();
    Patient::healthy().with(&bench.sim, &["/dev/a", "/dev/b"]).has(&[]);
}

#[test]
fn missing_parts_of_the_system_are_found() {
    for program in PROGRAMS {
        planted(|patient| patient.remove(&format!("/usr/sbin/{program}")), &[("program-missing", Problem)]);
    }
    for file in ["stratis-base32-decode", "stratis-str-cmp", "rules.d/61-stratisd.rules", "rules.d/95-dm-notify.rules"]
    {
        planted(|patient| patient.remove(&format!("/usr/lib/udev/{file}")), &[("udev-rules-missing", Problem)]);
    }
    planted(
        |patient| {
            fs::create_dir_all(patient.at("/etc/udev/rules.d")).unwrap();
            symlink("/dev/null", patient.at("/etc/udev/rules.d/61-stratisd.rules")).unwrap();
        },
        &[("udev-rules-missing", Problem)],
    );
    let policy = "/usr/share/dbus-1/system.d/stratisd.conf";
    planted(|patient| patient.remove(policy), &[("bus-policy-missing", Problem)]);
}

#[test]
fn missing_modules_are_found() {
    let dep = format!("/lib/modules/{RELEASE}/modules.dep");
    let builtin = format!("/lib/modules/{RELEASE}/modules.builtin");
    let without = |text: &'static str, expected: &[(&str, Severity)]| {
        planted(
            |patient| {
                let kept = fs::read_to_string(patient.at(&dep)).unwrap().replace(text, "kernel/other.ko");
                patient.put(&dep, &kept);
            },
            expected,
        );
    };
    without("kernel/drivers/md/dm-thin-pool.ko.xz", &[("module-missing", Problem)]);
    without("kernel/drivers/md/dm-cache.ko", &[("module-missing", Warning)]);
    planted(|patient| patient.put(&builtin, ""), &[("module-missing", Warning)]);
    planted(|patient| patient.put("/proc/filesystems", ""), &[("module-missing", Problem)]);
    // A loaded module needs no file.
    planted(
        |patient| {
            patient.put("/proc/filesystems", "");
            patient.put("/sys/module/xfs/version", "");
        },
        &[],
    );
    let patient = Patient::healthy();
    patient.remove("/proc/sys/kernel/osrelease");
    fs::remove_dir_all(patient.at("/lib/modules")).unwrap();
    let report = patient.report();
    assert!(report.findings().is_empty() && report.left_out()[0].id == "module-missing", "{}", report.text());
    assert_eq!(report.exit_status(), 3);
}

#[test]
fn units_that_do_not_start_are_found() {
    let units = "/usr/lib/systemd/system";
    for unit in ["stratisd.service", "stratisd-min-postinitrd.service", "stratis-fstab-setup@.service"] {
        planted(|patient| patient.remove(&format!("{units}/{unit}")), &[("unit-missing", Problem)]);
        planted(
            |patient| symlink("/dev/null", patient.at(&format!("/etc/systemd/system/{unit}"))).unwrap(),
            &[("unit-missing", Problem)],
        );
    }
    let wanted = "/etc/systemd/system/multi-user.target.wants/stratisd.service";
    planted(|patient| patient.remove(wanted), &[("unit-disabled", Warning)]);
}

#[test]
fn lines_of_fstab_are_judged() {
    let line = |options: &str| format!("/dev/stratis/p/f /mnt xfs {options} 0 0\n");
    planted(|patient| patient.put("/etc/fstab", &line("defaults")), &[("fstab-option-missing", Problem)]);
    planted(|patient| patient.put("/etc/fstab", &line("nofail")), &[]);
    let wrong = line("x-systemd.requires=stratis-fstab-setup@p1.service");
    planted(|patient| patient.put("/etc/fstab", &wrong), &[("fstab-option-wrong", Problem)]);
    planted(|patient| patient.remove("/etc/fstab"), &[]);
}

#[test]
fn a_root_on_stratis_needs_its_parameter() {
    let patient = Patient::healthy();
    patient.put("/etc/fstab", "/dev/stratis/p/root / xfs defaults 0 0\n");
    let ids = |patient: &Patient| patient.report().findings().iter().map(|finding| finding.id).collect::<Vec<_>>();
    assert_eq!(ids(&patient), ["kernel-parameter-missing"]);
    assert!(patient.report().left_out().iter().any(|left| left.id == "initramfs-incomplete"), "no image can be listed");
    patient.put("/etc/default/grub", &format!("GRUB_CMDLINE_LINUX=\"stratis.rootfs.pool_uuid={UUID}\"\n"));
    assert!(ids(&patient).is_empty());
    // A file that is not an image is reported as not examined.
    patient.put("/boot/initrd.img-6.1.0", "no image");
    let left = patient.report();
    assert!(left.left_out().iter().any(|left| left.why.contains("/boot/initrd.img-6.1.0")), "{}", left.text());
}

#[test]
fn damaged_devices_are_found() {
    let bench = Bench::with_two_filesystems();
    let sim = &bench.sim;
    let patient = || Patient::healthy().with(sim, &["/dev/a", "/dev/b"]);
    let spoil = |patient: &Patient, range: std::ops::Range<usize>| {
        let mut bytes = fs::read(&patient.devices[0]).unwrap();
        bytes[range].fill(0xff);
        fs::write(&patient.devices[0], bytes).unwrap();
    };
    let one_copy = patient();
    spoil(&one_copy, 512..1024);
    one_copy.has(&[("signature-damaged", Warning)]);
    let both = patient();
    spoil(&both, 600..604);
    spoil(&both, 4704..4708);
    both.has(&[("signature-damaged", Problem), ("device-missing", Problem)]);
    let area = patient();
    spoil(&area, 8192..8192 + 2032 * 512);
    area.has(&[("metadata-damaged", Problem)]);
    let contents = Bench::with_two_filesystems();
    disks::change(&contents.sim, "/dev/a", |json| json["flex_devs"]["thin_meta_dev_spare"][0][1] = 8.into());
    Patient::healthy().with(&contents.sim, &["/dev/a", "/dev/b"]).has(&[("metadata-damaged", Problem)]);
}

#[test]
fn missing_and_copied_devices_are_found() {
    let bench = Bench::with_two_filesystems();
    Patient::healthy().with(&bench.sim, &["/dev/a"]).has(&[("device-missing", Problem)]);
    let mut copied = Patient::healthy().with(&bench.sim, &["/dev/a", "/dev/b"]);
    let copy = copied.images.path().join("copy");
    fs::copy(&copied.devices[0], &copy).unwrap();
    copied.devices.push(copy);
    copied.has(&[("identity-duplicate", Problem)]);
    // Two pools with one name.
    let mut other = Bench::start(Sim::builder().seed(7).build());
    other.create_pool("p", &["/dev/c"]).unwrap();
    let two = Patient::healthy().with(&bench.sim, &["/dev/a", "/dev/b"]).with(&other.sim, &["/dev/c"]);
    two.has(&[("identity-duplicate", Warning)]);
}

#[test]
fn stopped_pools_are_found_without_a_daemon() {
    let mut bench = Bench::with_two_filesystems();
    bench.stop_pool("p").unwrap();
    Patient::healthy().with(&bench.sim, &["/dev/a", "/dev/b"]).has(&[("pool-stopped", Warning)]);
}

/// A LUKS2 header with these tokens.
fn luks_header(tokens: &Value) -> Vec<u8> {
    let mut bytes = vec![0; 16384];
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    bytes[8..16].copy_from_slice(&16384_u64.to_be_bytes());
    let json = json!({ "tokens": tokens }).to_string();
    bytes[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
    bytes
}

#[test]
fn keys_that_are_not_there_are_found() {
    let mut bench = keys::machine();
    keys::create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], vec![keys::by_key(None, "k")]).unwrap();
    let patient = Patient::healthy().with(&bench.sim, &["/dev/a"]);
    // The header that libcryptsetup would have written at the start of the joined devices.
    let start = disks::json_on(&bench.sim, "/dev/a")["backstore"]["data_tier"]["blockdev"]["allocs"][0][0]["start"]
        .as_u64()
        .unwrap();
    let put = |tokens: &Value| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&patient.devices[0]).unwrap();
        file.write_all_at(&luks_header(tokens), start * 512).unwrap();
    };
    let key = json!({ "type": "luks2-keyring", "keyslots": ["0"], "key_description": "stratis-1-key-k" });
    put(&json!({ "0": key }));
    patient.has(&[("key-missing", Problem)]);
    let line = |timeout: &str| {
        format!("1a2b3c4d I--Q---     1 {timeout} 3f010000     0     0 user      stratis-1-key-k: 12\n")
    };
    patient.put("/proc/keys", &line("perm"));
    patient.has(&[]);
    patient.put("/proc/keys", &line("expd"));
    patient.has(&[("key-missing", Problem)]);
    // A server can unlock the pool, if the programs for that are there.
    let protected = json!({ "clevis": { "pin": "tang", "tang": { "url": "http://10.0.0.1" } } }).to_string();
    let clevis = json!({ "type": "clevis", "keyslots": ["1"], "jwe": { "protected": BASE64URL_NOPAD.encode(protected.as_bytes()) } });
    put(&json!({ "0": key, "1": clevis }));
    for program in ["clevis", "clevis-decrypt", "clevis-decrypt-tang", "curl", "jose"] {
        patient.program(program);
    }
    patient.has(&[("key-missing", Warning)]);
    patient.remove("/usr/sbin/curl");
    patient.has(&[("program-missing", Warning), ("key-missing", Warning)]);
}

/// A device of an encrypted pool of version 1 shows its pool only in the tokens of its LUKS2 header.
#[test]
fn closed_devices_of_version_1_are_recognized() {
    let mut patient = Patient::healthy();
    let device: DevUuid = UUID.parse().unwrap();
    let token = StratisToken::new(UUID.parse().unwrap(), device, "old").to_value();
    let key = json!({ "type": "luks2-keyring", "keyslots": ["0"], "key_description": "stratis-1-key-k" });
    let path = patient.images.path().join("closed");
    fs::write(&path, luks_header(&json!({ "0": token, "1": key }))).unwrap();
    patient.devices.push(path);
    patient.has(&[("key-missing", Problem)]);
}

#[test]
fn the_report_for_programs_is_as_documented() {
    let patient = Patient::healthy();
    patient.remove("/usr/sbin/xfs_db");
    let root = patient.root.path().display().to_string();
    let said = run(TOOLS, &["doctor", "--json", "--root", &root]);
    assert_eq!((said.status, said.stderr.as_str()), (2, ""));
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    let finding = &report["findings"][0];
    let keys: Vec<&String> = finding.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["do", "id", "severity", "what", "why"]);
    assert_eq!((&finding["id"], &finding["severity"]), (&json!("program-missing"), &json!("problem")));
    assert_eq!(report["unexamined"], json!([]));
    let text = run(TOOLS, &["stratis-doctor", "--root", &root]);
    assert!(text.stdout.starts_with("problem: The program xfs_db is not installed [program-missing]\n"), "{text:?}");
    patient.program("xfs_db");
    assert_eq!(run(TOOLS, &["doctor", "--root", &root]).status, 0);
}

/// docs/doctor.md describes each check, and no other.
#[test]
fn every_check_is_documented() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(id, _)| id);
    let documented: Vec<&str> = rows.collect();
    let checks: Vec<&str> = CHECKS.iter().map(|(id, _)| *id).collect();
    assert_eq!(documented, checks);
}

/// The doctor only reads.
#[test]
fn nothing_is_changed() {
    let bench = Bench::with_two_filesystems();
    let patient = Patient::healthy().with(&bench.sim, &["/dev/a", "/dev/b"]);
    let damaged = &patient.devices[0];
    let mut bytes = fs::read(damaged).unwrap();
    bytes[512..1024].fill(0);
    fs::write(damaged, &bytes).unwrap();
    patient.has(&[("signature-damaged", Warning)]);
    assert_eq!(fs::read(damaged).unwrap(), bytes);
    assert!(Bda::load(&bench.sim, "/dev/a".as_ref(), Repair::ReadOnly).unwrap().is_some());
}
