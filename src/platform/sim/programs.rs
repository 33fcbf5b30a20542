//! The programs that the engine runs: their effect on devices and their output.
//!
//! Rules: arguments are parsed as by getopt. An argument that the simulation does not support is
//! refused as unknown, with status 1. A program opens its device exclusively. Each of its writes is
//! a step. The versions are those of Debian 12 (xfsprogs 6.1, thin-provisioning-tools 0.9).
//!
//! mkfs.xfs writes the superblock, a copy of it at the start of each allocation group, the end of
//! the device, and a log in the middle. Of the log, the simulation writes only the start of each
//! MiB. This maps as many blocks of a thin pool as the real program, 545 for a file system of 1
//! TiB.
//!
//! xfs_db reports a refusal only in its output: while the log needs a replay, xfs_db does not write
//! a UUID, but exits with status 0.

use std::path::Path;

use nix::libc;

use super::{
    Sim,
    faults::CallKind,
    incomplete::{Incomplete, Patience},
    machine::MachineState,
    thin,
    xfs::{self, Superblock},
    xfs_log,
};
use crate::platform::{DeviceNumber, Error, Program, ProgramEnd, Result};

/// Sizes of a log that mkfs.xfs accepts, in bytes, for devices and blocks as they are here.
const LOG_BYTES_MIN: u64 = 8 << 20;
const LOG_BYTES_MAX: u64 = (2 << 30) - (10 << 20);

/// Parsed arguments: options with their values in order, and the rest.
struct ParsedArguments<'a> {
    options: Vec<(&'a str, &'a str)>,
    rest: Vec<&'a str>,
}

impl<'a> ParsedArguments<'a> {
    /// `flags` stand alone; `valued` options take the rest of their word or the next word.
    fn parse(words: &[&'a str], flags: &[&'static str], valued: &[&'static str]) -> std::result::Result<Self, String> {
        let mut parsed = ParsedArguments { options: Vec::new(), rest: Vec::new() };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            if !word.starts_with('-') || word == "-" {
                parsed.rest.push(word);
                continue;
            }
            if let Some(flag) = flags.iter().find(|flag| **flag == word) {
                parsed.options.push((*flag, ""));
                continue;
            }
            let (option, attached) = match word.strip_prefix("--") {
                Some(_) => word.split_once('=').map_or((word, None), |(option, value)| (option, Some(value))),
                None => word.split_at_checked(2).map_or((word, None), |(o, v)| (o, (!v.is_empty()).then_some(v))),
            };
            let option = valued.iter().find(|o| **o == option).ok_or(format!("unrecognized option '{word}'"))?;
            let value = attached.or_else(|| words.next());
            parsed.options.push((*option, value.ok_or(format!("option requires an argument -- '{option}'"))?));
        }
        Ok(parsed)
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == option)
    }

    fn value(&self, names: &[&str]) -> Option<&'a str> {
        self.options.iter().rev().find(|(name, _)| names.contains(name)).map(|(_, value)| *value)
    }

    fn only(&self) -> std::result::Result<&'a str, String> {
        match self.rest[..] {
            [one] => Ok(one),
            [] => Err("no device name given in argument list".to_owned()),
            _ => Err("extra arguments".to_owned()),
        }
    }
}

impl Sim {
    /// Runs a program after its first step.
    pub(super) fn run_program(&self, program: Program, words: &[&str]) -> Result<String> {
        match program {
            Program::MkfsXfs => self.mkfs_xfs(words),
            Program::XfsDb => self.xfs_db(words),
            Program::ThinCheck => self.thin_check(words),
            Program::ThinRepair => self.thin_repair(words),
            Program::ThinMetadataSize => metadata_size(words).map_err(refusal(program)),
        }
    }

    /// The device behind a path, if it is not in use.
    fn open_exclusively(&self, program: Program, path: &str) -> Result<DeviceNumber> {
        let fail = refusal(program);
        let mut machine = self.machine()?;
        let Some((_, number)) = machine.node(Path::new(path)) else {
            return Err(fail(format!("cannot open {path}: No such file or directory")));
        };
        if machine.xfs.is_mounted(number) {
            return Err(fail(format!("{path} contains a mounted filesystem")));
        }
        if machine.is_in_use(number) {
            return Err(fail(format!("cannot open {path}: Device or resource busy")));
        }
        Ok(number)
    }

    /// Does I/O on behalf of a program, waiting where needed.
    fn program_io<T>(
        &self,
        program: Program,
        act: impl FnMut(&mut MachineState) -> std::result::Result<T, Incomplete>,
    ) -> Result<T> {
        self.wait_for_io(act, |errno| refusal(program)(format!("{}", std::io::Error::from_raw_os_error(errno))))
    }

    fn program_write(&self, program: Program, number: DeviceNumber, offset: u64, bytes: &[u8]) -> Result<()> {
        let subject = number.to_string();
        self.step(CallKind::ProgramWrite(program), &subject, || {
            self.program_io(program, |machine| machine.write_at(number, offset, bytes, Patience::Wait))
        })
    }

    fn program_flush(&self, program: Program, number: DeviceNumber) -> Result<()> {
        let subject = number.to_string();
        self.step(CallKind::ProgramWrite(program), &subject, || {
            self.program_io(program, |machine| machine.flush(number, Patience::Wait))
        })
    }

    /// Writes the secondary superblocks, the log with its only record, and the end of the device: one
    /// step, which is idempotent if it has to wait in the middle. Of the log, the first `records`
    /// bytes are cleared, where there were records.
    fn program_write_layout(
        &self,
        program: Program,
        number: DeviceNumber,
        superblock: &Superblock,
        records: usize,
    ) -> Result<()> {
        const STRETCH: u64 = 1 << 20;
        let sector = superblock.encode();
        let record = superblock.first_record();
        let last = superblock.blocks * xfs::BLOCK - xfs::BLOCK;
        let stretches = superblock.log_bytes() / STRETCH;
        self.step(CallKind::ProgramWrite(program), &number.to_string(), || {
            self.program_io(program, |machine| {
                for copy in superblock.copies() {
                    machine.write_at(number, copy, &sector, Patience::Wait)?;
                }
                let log = (0..=stretches).map(|stretch| superblock.log() + stretch * STRETCH);
                for at in log.chain((program == Program::MkfsXfs).then_some(last)) {
                    machine.write_at(number, at, &[0; 512], Patience::Wait)?;
                }
                machine.write_at(number, superblock.log(), &vec![0; records], Patience::Wait)?;
                machine.write_at(number, superblock.log(), &record, Patience::Wait)
            })
        })
    }

    fn mkfs_xfs(&self, words: &[&str]) -> Result<String> {
        const PROGRAM: Program = Program::MkfsXfs;
        let fail = refusal(PROGRAM);
        let arguments =
            ParsedArguments::parse(words, &["-f", "-V", "-q", "-K"], &["-m", "-i", "-l", "-d"]).map_err(&fail)?;
        if arguments.has("-V") {
            let version = if self.0.old_mkfs { "5.10.0" } else { "6.1.0" };
            return Ok(format!("mkfs.xfs version {version}\n"));
        }
        let (mut log, mut groups) = (None, None);
        let mut uuid = *uuid::Builder::from_random_bytes(self.random_bytes()).into_uuid().as_bytes();
        for (option, value) in arguments.options.iter().filter(|(_, value)| !value.is_empty()) {
            match (*option, value.split_once('=')) {
                ("-m", Some(("uuid", text))) => {
                    let parsed = uuid::Uuid::try_parse(text).map_err(|_| fail(format!("illegal uuid value {text}")))?;
                    uuid = *parsed.as_bytes();
                }
                ("-i", Some(("nrext64", "0" | "1"))) if !self.0.old_mkfs => {}
                ("-l", Some(("size", bytes))) => {
                    let bytes =
                        bytes.parse::<u64>().ok().filter(|bytes| (LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(bytes));
                    log = Some(bytes.ok_or_else(|| fail(format!("illegal log size {value}")))?);
                }
                ("-d", Some(("agcount", count))) => {
                    let count = count.parse::<u64>().map_err(|_| fail(format!("illegal agcount {value}")))?;
                    groups = Some(count);
                }
                _ => return Err(fail(format!("unknown option {option} {value}"))),
            }
        }
        let path = arguments.only().map_err(&fail)?;
        let number = self.open_exclusively(PROGRAM, path)?;
        let (size, held) = {
            let machine = self.machine()?;
            (machine.size_of(number).unwrap_or(0), machine.probe(number))
        };
        if groups.is_some_and(|groups| !xfs::can_have(size, groups)) {
            return Err(fail(format!("illegal number of allocation groups for {size} bytes")));
        }
        if size < xfs::BYTES_MIN {
            return Err(fail("Filesystem must be larger than 300MB.".to_owned()));
        }
        let held = match held {
            Ok(contents) => contents.superblock.is_some() || contents.partitions > 0,
            // The error is reported below, where waiting is possible.
            Err(_) => false,
        };
        if held && !arguments.has("-f") {
            return Err(fail(format!("{path} appears to contain an existing filesystem; use -f to force overwrite")));
        }
        if !arguments.has("-K") {
            self.step(CallKind::ProgramWrite(PROGRAM), &number.to_string(), || {
                self.program_io(PROGRAM, |machine| machine.discard_at(number, 0, size / xfs::BLOCK * xfs::BLOCK))
            })?;
        }
        let key = self.machine()?.new_key();
        let superblock = Superblock::new(uuid, size, key, log, groups);
        let sector = superblock.encode();
        self.program_write_layout(PROGRAM, number, &superblock, 0)?;
        // The first sector is written last, because it makes the device a file system.
        self.machine()?.xfs.new_files(key);
        self.program_write(PROGRAM, number, 0, &sector)?;
        self.program_flush(PROGRAM, number)?;
        self.written(number)?;
        Ok(format!("meta-data={path} isize=512 agcount=4\ndata     = bsize=4096 blocks={}\n", size / xfs::BLOCK))
    }

    fn xfs_db(&self, words: &[&str]) -> Result<String> {
        const PROGRAM: Program = Program::XfsDb;
        let fail = refusal(PROGRAM);
        let arguments = ParsedArguments::parse(words, &["-x", "-r"], &["-c"]).map_err(&fail)?;
        let path = arguments.only().map_err(&fail)?;
        let number = self.open_exclusively(PROGRAM, path)?;
        let superblock = self.program_io(PROGRAM, |machine| machine.superblock(number, Patience::Wait))?;
        let Some(mut superblock) = superblock else {
            return Err(fail(format!("{path} is not a valid XFS filesystem (unexpected SB magic number 0x00000000)")));
        };
        let accepts = self.program_io(PROGRAM, |machine| machine.accepts_log(number, &superblock))?;
        let mut said = String::new();
        for (_, command) in arguments.options.iter().filter(|(option, _)| *option == "-c") {
            match command.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                ["uuid"] => {}
                ["uuid", _] if !arguments.has("-x") => {
                    return Err(fail(format!("{path}: not in expert mode, writing disabled")));
                }
                ["uuid", text] => {
                    let uuid = uuid::Uuid::try_parse(text).map_err(|_| fail("invalid UUID".to_owned()))?;
                    if superblock.dirty {
                        said.push_str(
                            "ERROR: The filesystem has valuable metadata changes in a log which needs to\n\
                             be replayed.  Mount the filesystem to replay the log, and unmount it before\n\
                             re-running xfs_db.  If you are unable to mount the filesystem, then use\n\
                             the xfs_repair -L option to destroy the log and attempt a repair.\n\
                             Note that destroying the log may cause corruption -- please attempt a mount\n\
                             of the filesystem before doing this.\n",
                        );
                        continue;
                    }
                    if !accepts {
                        return Err(fail("ERROR: cannot find log head/tail, run xfs_repair".to_owned()));
                    }
                    let records = superblock.record(superblock.end) - superblock.log();
                    superblock = superblock.with_uuid(*uuid.as_bytes());
                    self.program_write_layout(PROGRAM, number, &superblock, records as usize + xfs_log::RECORD)?;
                    self.program_write(PROGRAM, number, 0, &superblock.encode())?;
                    self.program_flush(PROGRAM, number)?;
                    self.written(number)?;
                    said.push_str("Clearing log and setting UUID\nwriting all SBs\nnew ");
                }
                _ => return Err(fail(format!("command {command} not found"))),
            }
            said.push_str(&format!("UUID = {}\n", uuid::Uuid::from_bytes(superblock.uuid).hyphenated()));
        }
        Ok(said)
    }

    /// Grows a mounted XFS after the first step.
    pub(super) fn grow(&self, at: &Path, expected: DeviceNumber) -> Result<()> {
        let fail = |what: String| Error::Grow { path: at.to_owned(), what };
        let failed = |errno| fail(format!("exit status 1: {}", std::io::Error::from_raw_os_error(errno)));
        let Some(number) = self.machine()?.xfs.device_at(at) else { return Err(failed(libc::ENOENT)) };
        if number != expected {
            return Err(Error::OtherMount { path: at.to_owned(), number: expected });
        }
        if self.machine()?.xfs.is_shut_down(number) {
            return Err(failed(libc::EIO));
        }
        let superblock = self.wait_for_io(|machine| machine.superblock(number, Patience::Wait), failed)?;
        let Some(superblock) = superblock else { return Err(failed(libc::ENOTTY)) };
        let blocks = self.machine()?.size_of(number).unwrap_or(0) / xfs::BLOCK;
        if blocks <= superblock.blocks {
            return Ok(());
        }
        let grown = superblock.grown(blocks);
        let sector = grown.encode();
        let subject = number.to_string();
        let known = superblock.copies().last().unwrap_or(0);
        self.step(CallKind::GrowWrite, &subject, || {
            self.wait_for_io(
                |machine| {
                    for group in grown.copies().filter(|at| *at > known) {
                        machine.write_at(number, group, &sector, Patience::Wait)?;
                    }
                    machine.write_at(number, 0, &sector, Patience::Wait)
                },
                failed,
            )
        })?;
        let logged =
            self.step(CallKind::GrowWrite, &subject, || self.wait_for_io(|machine| machine.write_log(number), failed));
        if let (Err(_), Ok(mut machine)) = (&logged, self.machine()) {
            machine.xfs.shut_down(number);
        }
        logged
    }

    fn thin_check(&self, words: &[&str]) -> Result<String> {
        const PROGRAM: Program = Program::ThinCheck;
        let fail = refusal(PROGRAM);
        let flags = ["--auto-repair", "--clear-needs-check-flag", "-q", "--quiet", "--skip-mappings", "-V"];
        let arguments = ParsedArguments::parse(words, &flags, &[]).map_err(&fail)?;
        if arguments.has("-V") {
            return Ok("0.9.0\n".to_owned());
        }
        let path = arguments.only().map_err(&fail)?;
        let number = self.open_exclusively(PROGRAM, path)?;
        self.program_io(PROGRAM, |machine| {
            let Some(key) = machine.metadata_key(number)? else { return Ok(None) };
            let Some(store) = machine.thin.get_mut(&key).filter(|store| !store.damaged) else { return Ok(None) };
            if store.current.needs_check && (arguments.has("--auto-repair") || arguments.has(flags[1])) {
                store.current.needs_check = false;
                store.commit();
            }
            Ok(Some(()))
        })?
        .map(|()| String::new())
        .ok_or_else(|| {
            fail("examining superblock superblock is corrupt bad checksum in superblock, wanted 7".to_owned())
        })
    }

    fn thin_repair(&self, words: &[&str]) -> Result<String> {
        const PROGRAM: Program = Program::ThinRepair;
        let fail = refusal(PROGRAM);
        let arguments = ParsedArguments::parse(words, &[], &["-i", "--input", "-o", "--output"]).map_err(&fail)?;
        let missing = |what: &str| fail(format!("no {what} file provided"));
        let from = arguments.value(&["-i", "--input"]).ok_or_else(|| missing("input"))?;
        let to = arguments.value(&["-o", "--output"]).ok_or_else(|| missing("output"))?;
        if !arguments.rest.is_empty() {
            return Err(fail("extra arguments".to_owned()));
        }
        let (from, to) = (self.open_exclusively(PROGRAM, from)?, self.open_exclusively(PROGRAM, to)?);
        let made = self.program_io(PROGRAM, |machine| {
            let Some(key) = machine.metadata_key(from)? else { return Ok(None) };
            let Some(mut meta) = machine.thin.get(&key).map(|store| store.current.clone()) else { return Ok(None) };
            meta.needs_check = false;
            meta.metadata_blocks = machine.size_of(to).unwrap_or(0) / thin::METADATA_BLOCK;
            if meta.used_metadata() > meta.metadata_blocks {
                return Err(Incomplete::Errno(libc::ENOSPC));
            }
            let key = machine.new_key();
            let sector = thin::superblock(&key, meta.transaction);
            machine.thin.insert(key, thin::Store::new(meta));
            Ok(Some(sector))
        })?;
        let Some(sector) = made else {
            return Err(fail(
                "The following field needs to be provided on the command line due to corruption in the \
                             superblock: transaction id"
                    .to_owned(),
            ));
        };
        let mut first = vec![0; thin::METADATA_BLOCK as usize];
        first[..sector.len()].copy_from_slice(&sector);
        self.program_write(PROGRAM, to, 0, &first)?;
        self.program_flush(PROGRAM, to)?;
        Ok(String::new())
    }
}

impl MachineState {
    /// Key of the mappings on a thin-pool metadata device.
    pub(super) fn metadata_key(
        &self,
        number: DeviceNumber,
    ) -> std::result::Result<Option<thin::MappingsKey>, Incomplete> {
        let mut sector = [0; 512];
        self.read_at(number, 0, &mut sector, Patience::Wait)?;
        Ok(thin::key_of(&sector))
    }
}

/// The error of a program that exits with status 1 and prints these words.
fn refusal(program: Program) -> impl Fn(String) -> Error {
    move |words| Error::Program { program, end: ProgramEnd::Status(1), what: format!("exit status 1: {words}") }
}

/// Parses a size with its unit into bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "b" => 1,
        "" | "s" => 512,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn metadata_size(words: &[&str]) -> std::result::Result<String, String> {
    let valued = ["-b", "--block-size", "-s", "--pool-size", "-m", "--max-thins"];
    let arguments = ParsedArguments::parse(words, &["-n", "--numeric-only", "-V"], &valued)?;
    if arguments.has("-V") {
        return Ok("0.9.0\n".to_owned());
    }
    if let Some(extra) = arguments.rest.first() {
        return Err(format!("unexpected argument {extra}"));
    }
    let wanted = |names: &[&str]| arguments.value(names).ok_or(format!("{} must be given", names[1]));
    let in_bytes = |names: &[&str]| size(wanted(names)?).ok_or(format!("invalid size for {}", names[1]));
    let (block, pool) = (in_bytes(&valued[..2])?, in_bytes(&valued[2..4])?);
    let thins: u64 = wanted(&valued[4..])?.parse().map_err(|_| "invalid number for --max-thins".to_owned())?;
    if !(64 << 10..=1 << 30).contains(&block) || !block.is_multiple_of(64 << 10) {
        return Err("block size must be a multiple of 64 KiB, from 64 KiB to 1 GiB".to_owned());
    }
    if pool < block {
        return Err("pool size must be larger than block size".to_owned());
    }
    let sectors = pool
        .div_ceil(block)
        .div_ceil(thin::MAPPINGS_PER_LEAF)
        .checked_add(thins)
        .and_then(|blocks| blocks.checked_mul(8))
        .ok_or("number of thins too large")?;
    Ok(if arguments.has("-n") || arguments.has("--numeric-only") {
        format!("{sectors}\n")
    } else {
        format!("thin_metadata_size - {sectors} sectors estimated metadata area size\n")
    })
}

#[cfg(test)]
mod tests {
    use super::metadata_size;

    /// The samples of storage-stack §7.2 and ondisk-metadata §6.9, 6.10.
    #[test]
    fn metadata_sizes_are_those_of_the_real_program() {
        let samples: [(u64, u64); 6] = [
            (1 << 30, 872),
            (10 << 30, 1456),
            (100 << 30, 7304),
            (1 << 40, 67384),
            (10 << 40, 666_568),
            (10_413_404_160, 1432),
        ];
        for (pool, sectors) in samples {
            let words = ["-b", "1048576b", "-s", &format!("{pool}b"), "-m", "100", "-n"];
            assert_eq!(metadata_size(&words), Ok(format!("{sectors}\n")), "{pool}");
        }
    }

    #[test]
    fn metadata_size_refuses_unknown_arguments() {
        let good = ["-b", "1m", "-s", "1g", "-m", "100", "-n"];
        assert!(metadata_size(&good).is_ok());
        for bad in [&["-x"][..], &["extra"], &["-b", "1000b"], &["-s", "10q"], &["-m", "many"], &["-s", "1k"]] {
            let words: Vec<&str> = good.iter().chain(bad).copied().collect();
            assert!(metadata_size(&words).is_err(), "{bad:?}");
        }
        assert!(metadata_size(&good[..4]).is_err());
    }
}
