//! `stratis-setup-generator` and `stratis-clevis-setup-generator`: systemd generators
//! (systemd.generator(7)) that make the initrd start the pool of the root file system.
//!
//! The kernel command line names the pool: `stratis.rootfs.pool_uuid=UUID`. Each program writes one
//! unit into the second of the three directories that systemd passes (`early`), and nothing
//! anywhere else. Outside an initrd, and without that parameter, it writes nothing and succeeds.
//!
//! One program with two names, statically linked, because an initrd may have no libraries. It knows
//! nothing of pools or the daemon.

mod kernel_line;
mod report;
mod units;

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use report::{Priority, report};
use units::Generator;
use uuid::{Uuid, fmt};

/// Lengths of the two forms of a UUID.
const SIMPLE: usize = fmt::Simple::LENGTH;
const HYPHENATED: usize = fmt::Hyphenated::LENGTH;

/// The parameter that names a pool. It may be repeated.
const PARAMETER: &str = "stratis.rootfs.pool_uuid";
/// Exists in an initrd and nowhere else (systemd.generator(7)).
const INITRD_MARK: &str = "/etc/initrd-release";
/// Variables of systemd, which its tests set too.
const IN_INITRD: &str = "SYSTEMD_IN_INITRD";
const KERNEL_LINE: &str = "SYSTEMD_PROC_CMDLINE";

#[derive(Debug, thiserror::Error)]
enum GeneratorError {
    #[error("cannot write units: unknown program name; use stratis-setup-generator or stratis-clevis-setup-generator")]
    Name,
    #[error("cannot write units: systemd passes three directories (normal, early, late), but there are {0} arguments")]
    Arguments(usize),
    #[error("cannot read the kernel command line from {}: {source}", .path.display())]
    KernelLine { path: PathBuf, source: io::Error },
    #[error("cannot start the pool of the root file system: {PARAMETER}={0} on the kernel command line is not a UUID")]
    NotUuid(String),
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match generate(&name, &arguments.collect::<Vec<OsString>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&name, Priority::Error, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn generate(name: &str, arguments: &[OsString]) -> Result<(), GeneratorError> {
    let generator = Generator::by_name(name).ok_or(GeneratorError::Name)?;
    let [_, early, _] = arguments else { return Err(GeneratorError::Arguments(arguments.len())) };
    if !in_initrd() {
        return Ok(());
    }
    let text = match env::var(KERNEL_LINE) {
        Ok(text) => text,
        Err(_) => read_kernel_line(Path::new("/proc/cmdline"))?,
    };
    let pools = pools(&text)?;
    if pools.is_empty() {
        report(name, Priority::Info, &format!("no {PARAMETER} on the kernel command line: nothing to do"));
        return Ok(());
    }
    write(Path::new(early), generator, &pools)
}

fn read_kernel_line(path: &Path) -> Result<String, GeneratorError> {
    let bytes = fs::read(path).map_err(|source| GeneratorError::KernelLine { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn in_initrd() -> bool {
    match env::var(IN_INITRD).as_deref() {
        Ok("1" | "yes" | "y" | "true" | "t" | "on") => true,
        Ok("0" | "no" | "n" | "false" | "f" | "off") => false,
        _ => Path::new(INITRD_MARK).exists(),
    }
}

/// The pools that a kernel command line names, each once, in its order, with hyphens and in lower
/// case. A parameter without a value names none.
fn pools(text: &str) -> Result<Vec<String>, GeneratorError> {
    let mut pools = Vec::new();
    for value in kernel_line::values(text, PARAMETER).into_iter().filter(|value| !value.is_empty()) {
        let pool = hyphenated(&value).ok_or(GeneratorError::NotUuid(value))?;
        if !pools.contains(&pool) {
            pools.push(pool);
        }
    }
    Ok(pools)
}

/// A UUID of 32 hexadecimal digits, with or without its four hyphens, in its usual form. The crate
/// knows two longer forms, which are not taken.
fn hyphenated(text: &str) -> Option<String> {
    if !matches!(text.len(), SIMPLE | HYPHENATED) {
        return None;
    }
    Uuid::try_parse(text).ok().map(|uuid| uuid.hyphenated().to_string())
}

/// Writes the unit and the link that makes systemd start it. Replaces both if they exist.
fn write(early: &Path, generator: Generator, pools: &[String]) -> Result<(), GeneratorError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| GeneratorError::Write { path, source }
    };
    let unit = early.join(generator.unit_name());
    fs::write(&unit, generator.unit(pools)).map_err(failed(&unit))?;
    let Some(wanted_by) = generator.wanted_by() else { return Ok(()) };
    let wants = early.join(format!("{wanted_by}.wants"));
    fs::create_dir_all(&wants).map_err(failed(&wants))?;
    let link = wants.join(generator.unit_name());
    let target = Path::new("..").join(generator.unit_name());
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    match fs::remove_file(&link) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(&link)(source)),
        _ => {}
    }
    std::os::unix::fs::symlink(&target, &link).map_err(failed(&link))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "7f951e31-059b-48bd-ba8c-4fd0405974e5";

    #[test]
    fn uuids_have_two_forms_and_no_other() {
        assert_eq!(hyphenated(POOL).as_deref(), Some(POOL));
        assert_eq!(hyphenated("7F951E31059B48BDBA8C4FD0405974E5").as_deref(), Some(POOL));
        for text in [
            "",
            "7f951e31",
            "7f951e31-059b-48bd-ba8c4-fd0405974e5",
            "{7f951e31-059b-48bd-ba8c-4fd0405974e5}",
            "gf951e31059b48bdba8c4fd0405974e5",
        ] {
            assert_eq!(hyphenated(text), None, "{text}");
        }
    }

    #[test]
    fn several_pools_are_taken_once_each() {
        let other = "00000000-0000-0000-0000-00000000000a";
        let text = format!("{PARAMETER}={other} {PARAMETER} {PARAMETER}= {PARAMETER}={POOL} {PARAMETER}={other}");
        assert_eq!(pools(&text).unwrap(), [other, POOL]);
        assert!(pools("root=/dev/sda1 quiet").unwrap().is_empty());
        assert!(pools(&format!("{PARAMETER}={POOL} {PARAMETER}=p1")).is_err());
    }
}
