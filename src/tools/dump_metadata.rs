//! `stratis-dumpmetadata`: prints the pool metadata on a device (`docs/spec/tools/utilities.md`
//! §4).
//!
//! The output without `--only` is for people. It has the form of the existing program, which prints
//! each value within the name of its type. This module must never write to the device.

use std::{
    fmt::{self, Debug, Write as _},
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    base::{
        error_chain,
        ids::{DevUuid, PoolUuid},
    },
    engine::{
        bda::{Bda, BdaError, Repair},
        metadata::{
            StaticHeader,
            header::{BLOCK_BYTES, CopyContents, Half},
            mda::Generation,
        },
    },
    platform::Timestamp,
    tools::image::Image,
};

/// What to dump.
#[derive(Debug, Clone)]
pub struct Dump {
    /// The device or image.
    pub device: PathBuf,
    /// Also show the bytes of the signature blocks.
    pub bytes: bool,
    /// Show nothing but the pool metadata.
    pub pool_only: bool,
}

/// Why a device cannot be dumped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NoDump {
    #[error("Error opening device: {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("No valid StaticHeader found: {0}")]
    Header(String),
    #[error("No valid Stratis signature found")]
    NotStratis,
    #[error("BDA detected but error found: {0}")]
    Area(String),
    #[error("Error during load state: {0}")]
    Load(String),
    #[error("Error during state JSON extract: {0}")]
    Json(serde_json::Error),
}

/// The text of a dump, and whether it is complete.
pub struct Dumped {
    /// The part that could be read.
    pub text: String,
    /// `Err` if the rest could not be read.
    pub end: Result<(), NoDump>,
}

/// Dumps a device.
pub fn dump(what: &Dump) -> Dumped {
    let mut text = String::new();
    let end = write(what, &mut text);
    Dumped { text, end }
}

fn write(what: &Dump, out: &mut String) -> Result<(), NoDump> {
    let path = &what.device;
    let image = Image::open(path).map_err(|source| NoDump::Open { path: path.clone(), source })?;
    if !what.pool_only {
        write_signatures(&image, what.bytes, out);
    }
    let bda = match Bda::load(&image, path, Repair::ReadOnly) {
        Ok(Some(bda)) => bda,
        Ok(None) => return Err(NoDump::NotStratis),
        Err(error @ BdaError::Mda { .. }) => return Err(NoDump::Area(error_chain::sentence(&error))),
        Err(error) => return Err(NoDump::Header(error_chain::sentence(&error))),
    };
    if !what.pool_only {
        let _ = writeln!(out, "\n\n{:#?}\n\nPool metadata:", ShownArea(&bda));
    }
    match read_pool(&image, path, &bda)? {
        Some(pool) => {
            let _ = writeln!(out, "{pool:#}");
        }
        None if what.pool_only => {}
        None => out.push_str("None found\n"),
    }
    Ok(())
}

/// The pool metadata as a JSON value.
fn read_pool(image: &Image, path: &Path, bda: &Bda) -> Result<Option<Value>, NoDump> {
    let json = bda.read_json(image, path).map_err(|error| NoDump::Load(error_chain::sentence(&error)))?;
    json.map(|json| serde_json::from_slice(&json)).transpose().map_err(NoDump::Json)
}

/// Both copies of the signature block: once if they agree.
fn write_signatures(image: &Image, bytes: bool, out: &mut String) {
    let copies = Half::BOTH.map(|half| image.bytes(half.block_offset(), BLOCK_BYTES).ok());
    let [first, second] =
        copies.clone().map(|block| block.as_deref().map_or(CopyContents::Unreadable, CopyContents::in_block));
    let agree = matches!(first, CopyContents::Valid(_)) && first == second;
    let blocks = copies.iter().zip([&first, &second]).zip(["Signature block 1: ", "Signature block 2: "]);
    for ((block, contents), title) in blocks.take(if agree { 1 } else { 2 }) {
        if title.ends_with("2: ") {
            out.push_str("\n\n");
        }
        let title = if agree { "Signature block: " } else { title };
        let _ = write!(out, "{title}\n\nHeader:\n{}\n", shown(contents));
        if let Some(block) = block.as_ref().filter(|_| bytes) {
            let _ = write!(out, "\n\nBytes:\n\n{}", hex(block));
        }
    }
}

fn shown(contents: &CopyContents) -> String {
    match contents {
        CopyContents::Unreadable => "Unreadable".to_owned(),
        CopyContents::Nothing => "No signature buffer".to_owned(),
        CopyContents::Invalid(invalid) => format!("Error: {invalid}"),
        CopyContents::Valid(header) => format!("{:#?}", ShownHeader(header)),
    }
}

/// Bytes in lines of sixteen, with their printable characters.
fn hex(bytes: &[u8]) -> String {
    let mut text = format!("Length: {0} (0x{0:x}) bytes\n", bytes.len());
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let quads =
            chunk.chunks(4).map(|quad| quad.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
        let printed: String =
            chunk.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' }).collect();
        let _ = writeln!(text, "{:04x}:   {}   {printed}", line * 16, quads.collect::<Vec<_>>().join("  "));
    }
    text
}

/// A value within the name of its type, as in `Sectors(8)`.
struct InType<T>(&'static str, T);

impl<T: Debug> Debug for InType<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(self.0).field(&self.1).finish()
    }
}

/// As [`InType`], on one line.
struct OnOneLine(&'static str, u64);

impl Debug for OnOneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.0, self.1)
    }
}

/// A point in time, or its numbers if it is outside the calendar.
struct ShownTime(Timestamp);

impl Debug for ShownTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timestamp { seconds, nanoseconds } = self.0;
        let time = i64::try_from(seconds).ok().zip(i32::try_from(nanoseconds).ok());
        match time.and_then(|(seconds, nanoseconds)| jiff::Timestamp::new(seconds, nanoseconds).ok()) {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "{seconds} s {nanoseconds} ns"),
        }
    }
}

struct ShownHeader<'a>(&'a StaticHeader);

impl Debug for ShownHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StaticHeader { pool, device, version, device_size, mda_size, reserved, flags, initialized } = self.0;
        let sectors = |of: &'static str, size: u64| InType(of, OnOneLine("Sectors", size));
        f.debug_struct("StaticHeader")
            .field("blkdev_size", &sectors("BlockdevSize", device_size.0))
            .field("sigblock_version", &format_args!("V{}", version.number()))
            .field("identifiers", &ShownIdentity(*pool, *device))
            .field("mda_size", &sectors("MDASize", mda_size.0))
            .field("reserved_size", &sectors("ReservedSize", reserved.0))
            .field("flags", &flags.0)
            .field("initialization_time", &ShownTime(Timestamp { seconds: *initialized, nanoseconds: 0 }))
            .finish()
    }
}

struct ShownIdentity(PoolUuid, DevUuid);

impl Debug for ShownIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StratisIdentifiers")
            .field("pool_uuid", &InType("PoolUuid", format_args!("{}", self.0)))
            .field("device_uuid", &InType("DevUuid", format_args!("{}", self.1)))
            .finish()
    }
}

struct ShownArea<'a>(&'a Bda);

impl Debug for ShownArea<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BDA")
            .field("header", &ShownHeader(self.0.header()))
            .field("regions", &ShownRegions(self.0))
            .finish()
    }
}

struct ShownRegions<'a>(&'a Bda);

impl Debug for ShownRegions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generations = self.0.generations().map(|generation| generation.map(ShownGeneration));
        f.debug_struct("MDARegions")
            .field("region_size", &InType("MDARegionSize", OnOneLine("Sectors", self.0.header().mda_size.0 / 4)))
            .field("mda_headers", &generations)
            .finish()
    }
}

struct ShownGeneration(Generation);

impl Debug for ShownGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MDAHeader")
            .field("last_updated", &ShownTime(self.0.time))
            .field("used", &InType("MetaDataSize", OnOneLine("Bytes", self.0.length)))
            .field("data_crc", &self.0.crc)
            .finish()
    }
}
