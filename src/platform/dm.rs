//! Device-mapper tables as plain values, formatted and parsed as the kernel does.
//!
//! This module knows the text forms of the targets that Stratis uses
//! (`docs/spec/engine/storage-stack.md` §1, 6, 7), but not what the devices are for.

use std::fmt;

use crate::{
    base::units::{DataBlocks, Sectors},
    platform::DeviceNumber,
};

/// A device in the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// How many events the device has had; `None` if the kernel does not report the number here.
    pub event: Option<u32>,
}

/// A device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub number: DeviceNumber,
    /// Its device-mapper UUID.
    pub uuid: String,
    /// It is suspended.
    pub suspended: bool,
    /// Its live table; empty if it has none.
    pub table: Vec<Line>,
}

impl Device {
    /// Its size: the end of its table.
    pub fn size(&self) -> Sectors {
        self.table.last().map_or(Sectors::ZERO, |line| line.start.saturating_add(line.length))
    }
}

/// Whether udev rules process a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// An internal device of the table stack: no links, no probing.
    Private,
    /// A filesystem: udev probes it like any disk.
    Public,
}

/// One line of a table: a range of the device and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First sector.
    pub start: Sectors,
    /// Number of sectors.
    pub length: Sectors,
    /// The target.
    pub target: Target,
}

/// A device-mapper target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Maps to a range of another device.
    Linear {
        /// The other device.
        device: DeviceNumber,
        /// Start of the range on it.
        offset: Sectors,
    },
    /// A thin pool: data blocks for thin devices.
    ThinPool {
        /// The metadata device.
        metadata: DeviceNumber,
        /// The data device.
        data: DeviceNumber,
        /// Size of a block.
        block: Sectors,
        /// The kernel raises an event when fewer blocks are free.
        low_water: DataBlocks,
        /// Feature arguments, in any order.
        features: Vec<String>,
    },
    /// A thin device of a thin pool.
    Thin {
        /// The thin pool.
        pool: DeviceNumber,
        /// Its thin device number.
        id: u32,
    },
    /// A slow device with a fast one as its cache.
    Cache {
        /// The metadata device.
        metadata: DeviceNumber,
        /// The fast device.
        cache: DeviceNumber,
        /// The slow device.
        origin: DeviceNumber,
        /// Size of a block.
        block: Sectors,
        /// Feature arguments.
        features: Vec<String>,
        /// Replacement policy.
        policy: String,
    },
    /// A range of an encrypted device. The LUKS2 code creates these tables; this type never does,
    /// because it does not keep the volume key that the kernel shows to root.
    Crypt {
        /// The cipher, such as `aes-xts-plain64`.
        cipher: String,
        /// Offset added to the sector numbers that go into the cipher.
        iv_offset: Sectors,
        /// The encrypted device.
        device: DeviceNumber,
        /// Start of the range on it.
        offset: Sectors,
    },
    /// A target that Stratis does not create, as the kernel printed it.
    Foreign {
        /// Name of the target.
        kind: String,
        /// Its parameters.
        parameters: String,
    },
}

impl Line {
    /// A line of a linear table.
    pub fn linear(start: Sectors, length: Sectors, device: DeviceNumber, offset: Sectors) -> Line {
        Line { start, length, target: Target::Linear { device, offset } }
    }

    /// The kernel's name of the target.
    pub fn kind(&self) -> &str {
        match &self.target {
            Target::Linear { .. } => "linear",
            Target::ThinPool { .. } => "thin-pool",
            Target::Thin { .. } => "thin",
            Target::Cache { .. } => "cache",
            Target::Crypt { .. } => "crypt",
            Target::Foreign { kind, .. } => kind,
        }
    }

    /// Parses a line as the kernel prints it. Unknown forms become [`Target::Foreign`].
    pub fn parse(start: Sectors, length: Sectors, kind: &str, parameters: &str) -> Line {
        let words: Vec<&str> = parameters.split_ascii_whitespace().collect();
        // A crypt table contains the key, so never keep its unparsed text.
        let parameters = if kind == "crypt" { "" } else { parameters };
        let target = parse_target(kind, &words)
            .unwrap_or_else(|| Target::Foreign { kind: kind.to_owned(), parameters: parameters.to_owned() });
        Line { start, length, target }
    }
}

fn parse_target(kind: &str, words: &[&str]) -> Option<Target> {
    let device = |i: usize| words.get(i).and_then(|w| w.parse::<DeviceNumber>().ok());
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok());
    let features = |at: usize| -> Option<(Vec<String>, usize)> {
        let count = usize::try_from(number(at)?).ok()?;
        let end = (at + 1).checked_add(count)?;
        Some((words.get(at + 1..end)?.iter().map(|w| (*w).to_owned()).collect(), end))
    };
    match kind {
        "linear" => Some(Target::Linear { device: device(0)?, offset: Sectors(number(1)?) }),
        "thin" => Some(Target::Thin { pool: device(0)?, id: u32::try_from(number(1)?).ok()? }),
        "thin-pool" => Some(Target::ThinPool {
            metadata: device(0)?,
            data: device(1)?,
            block: Sectors(number(2)?),
            low_water: DataBlocks(number(3)?),
            features: if words.len() > 4 { features(4)?.0 } else { Vec::new() },
        }),
        "crypt" => Some(Target::Crypt {
            cipher: (*words.first()?).to_owned(),
            iv_offset: Sectors(number(2)?),
            device: device(3)?,
            offset: Sectors(number(4)?),
        }),
        "cache" => {
            let (features, after) = features(4)?;
            Some(Target::Cache {
                metadata: device(0)?,
                cache: device(1)?,
                origin: device(2)?,
                block: Sectors(number(3)?),
                features,
                policy: (*words.get(after)?).to_owned(),
            })
        }
        _ => None,
    }
}

/// The target's parameters in the kernel's format.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Linear { device, offset } => write!(f, "{device} {}", offset.0),
            Target::Thin { pool, id } => write!(f, "{pool} {id}"),
            Target::ThinPool { metadata, data, block, low_water, features } => {
                write!(f, "{metadata} {data} {} {} {}", block.0, low_water.0, features.len())?;
                features.iter().try_for_each(|feature| write!(f, " {feature}"))
            }
            Target::Cache { metadata, cache, origin, block, features, policy } => {
                write!(f, "{metadata} {cache} {origin} {} {}", block.0, features.len())?;
                features.iter().try_for_each(|feature| write!(f, " {feature}"))?;
                write!(f, " {policy} 0")
            }
            Target::Crypt { cipher, iv_offset, device, offset } => {
                write!(f, "{cipher} - {} {device} {}", iv_offset.0, offset.0)
            }
            Target::Foreign { parameters, .. } => f.write_str(parameters),
        }
    }
}
