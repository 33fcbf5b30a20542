//! The device-mapper stack of a pool: an ordered list of layers, planned as values, then brought up, adopted or taken down
//! (`spec/engine/storage-stack.md` §1–3, 6, 10.3).
//!
//! The two metadata versions differ in the list of layers ([`plan`]) and in nothing else here.

use std::collections::BTreeMap;

use crate::{
    engine::{
        dm_names::Role,
        error::{Error, Result},
        ids::PoolUuid,
        layout,
        metadata::{MetadataVersion, pool::Segment},
        plan::sizes,
        undo::Rollback,
        units::{DataBlocks, Sectors},
    },
    platform::{
        DeviceNumber, Platform,
        dm::{Line, Target, Visibility},
    },
};

/// What a layer lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// A block device of the pool.
    Device(DeviceNumber),
    /// A layer further down.
    Layer(Role),
}

/// A stretch of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// On what.
    pub base: Base,
    /// Where it begins there.
    pub start: Sectors,
    /// How long it is.
    pub length: Sectors,
}

/// What a layer is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Make {
    /// Pieces one after the other.
    Linear(Vec<Piece>),
    /// A cache: [`Role::CacheMeta`] and [`Role::CacheSub`] over [`Role::OriginSub`], of this length.
    Cache(Sectors),
    /// A thin pool over [`Role::ThinMeta`] and [`Role::ThinData`].
    ThinPool {
        /// Size of its data device.
        length: Sectors,
        /// An event is raised when fewer blocks are free.
        low_water: DataBlocks,
        /// Its feature arguments.
        features: Vec<String>,
    },
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub role: Role,
    /// Of what.
    pub make: Make,
}

/// What the list of layers follows from.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The metadata version.
    pub version: MetadataVersion,
    /// Pieces of the data devices.
    pub data: Vec<Piece>,
    /// Pieces of the cache devices, if there is a cache tier: metadata, then blocks.
    pub cache: Option<(Vec<Piece>, Vec<Piece>)>,
    /// Stretches of the cap device: the metadata volume,
    pub mdv: Vec<Segment>,
    /// the thin pool's metadata,
    pub thin_meta: Vec<Segment>,
    /// the spare for it,
    pub thin_meta_spare: Vec<Segment>,
    /// and the thin pool's data.
    pub thin_data: Vec<Segment>,
    /// Low water mark of the thin pool.
    pub low_water: DataBlocks,
    /// Feature arguments of the thin pool.
    pub features: Vec<String>,
}

impl Shape {
    /// The layer that the flexible devices are cut from.
    pub fn cap(&self) -> Role {
        match (self.version, &self.cache) {
            (MetadataVersion::V1, None) => Role::OriginSub,
            _ => Role::Cache,
        }
    }

    fn flexible(&self, role: Role, segments: &[Segment]) -> Layer {
        let base = Base::Layer(self.cap());
        let pieces = segments.iter().map(|&Segment { start, length }| Piece { base, start, length }).collect();
        Layer { role, make: Make::Linear(pieces) }
    }

    /// The layers under the thin pool, from the bottom up: what the backstore consists of.
    pub fn backstore(&self) -> Vec<Layer> {
        let length = self.data.iter().map(|piece| piece.length).fold(Sectors::ZERO, Sectors::saturating_add);
        let mut layers = vec![Layer { role: Role::OriginSub, make: Make::Linear(self.data.clone()) }];
        match (&self.cache, self.version) {
            (Some((meta, blocks)), _) => layers.extend([
                Layer { role: Role::CacheMeta, make: Make::Linear(meta.clone()) },
                Layer { role: Role::CacheSub, make: Make::Linear(blocks.clone()) },
                Layer { role: Role::Cache, make: Make::Cache(length) },
            ]),
            // The placeholder lets a cache or encryption come later without a change of numbers above or below.
            (None, MetadataVersion::V2) => layers.push(Layer {
                role: Role::Cache,
                make: Make::Linear(vec![Piece { base: Base::Layer(Role::OriginSub), start: Sectors::ZERO, length }]),
            }),
            (None, MetadataVersion::V1) => {}
        }
        layers
    }

    /// The metadata volume.
    pub fn mdv(&self) -> Layer {
        self.flexible(Role::Mdv, &self.mdv)
    }

    /// Metadata of the thin pool.
    pub fn thin_meta(&self) -> Layer {
        self.flexible(Role::ThinMeta, &self.thin_meta)
    }

    /// The spare for it, needed for a repair only.
    pub fn thin_meta_spare(&self) -> Layer {
        self.flexible(Role::ThinMetaSpare, &self.thin_meta_spare)
    }

    /// Data of the thin pool.
    pub fn thin_data(&self) -> Layer {
        self.flexible(Role::ThinData, &self.thin_data)
    }

    /// The thin pool itself.
    pub fn thin_pool(&self) -> Layer {
        let length = layout::total(&self.thin_data);
        let make = Make::ThinPool { length, low_water: self.low_water, features: self.features.clone() };
        Layer { role: Role::ThinPool, make }
    }
}

/// How a layer came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It was made.
    Created,
    /// It was there already, left by a daemon that ran before.
    Adopted,
}

/// The layers of a pool that are up, with their device numbers.
#[derive(Debug, Clone)]
pub struct Stack {
    pool: PoolUuid,
    numbers: BTreeMap<Role, DeviceNumber>,
}

impl Stack {
    /// A stack with nothing up yet.
    pub fn new(pool: PoolUuid) -> Stack {
        Stack { pool, numbers: BTreeMap::new() }
    }

    /// Number of a layer that is up.
    pub fn number(&self, role: Role) -> Option<DeviceNumber> {
        self.numbers.get(&role).copied()
    }

    /// Name of the device in a role.
    pub fn name(&self, role: Role) -> String {
        role.name(self.pool)
    }

    /// The device-mapper table of a layer; its bases must be up.
    fn table(&self, make: &Make) -> Vec<Line> {
        let number = |role: Role| {
            self.number(role).expect("layers are brought up from the bottom, so what a layer lies on is up before it")
        };
        match make {
            Make::Linear(pieces) => {
                let mut at = Sectors::ZERO;
                let line = |piece: &Piece| {
                    let device = match piece.base {
                        Base::Device(device) => device,
                        Base::Layer(role) => number(role),
                    };
                    let line = Line::linear(at, piece.length, device, piece.start);
                    at = at.saturating_add(piece.length);
                    line
                };
                pieces.iter().map(line).collect()
            }
            Make::Cache(length) => vec![Line {
                start: Sectors::ZERO,
                length: *length,
                target: Target::Cache {
                    metadata: number(Role::CacheMeta),
                    cache: number(Role::CacheSub),
                    origin: number(Role::OriginSub),
                    block: sizes::DATA_BLOCK,
                    features: vec!["writethrough".to_owned()],
                    policy: "default".to_owned(),
                },
            }],
            Make::ThinPool { length, low_water, features } => vec![Line {
                start: Sectors::ZERO,
                length: *length,
                target: Target::ThinPool {
                    metadata: number(Role::ThinMeta),
                    data: number(Role::ThinData),
                    block: sizes::DATA_BLOCK,
                    low_water: *low_water,
                    features: features.clone(),
                },
            }],
        }
    }

    /// Makes sure that a layer is up: adopts the device that is there, or makes it.
    ///
    /// A device that was left suspended (its daemon was killed in the middle of a change) gets the wanted table and is
    /// resumed.
    ///
    /// # Errors
    /// [`Error::OtherTable`] if a device of the name is there that is not what the layer asks for.
    pub fn ensure(&mut self, platform: &dyn Platform, layer: &Layer, undo: &mut Rollback) -> Result<Ensured> {
        let name = self.name(layer.role);
        let table = self.table(&layer.make);
        let (number, ensured) = ensure_device(platform, &name, &table, Visibility::Private, undo)?;
        self.numbers.insert(layer.role, number);
        Ok(ensured)
    }

    /// Removes a layer if it is up.
    ///
    /// # Errors
    /// When it is busy.
    pub fn remove(&mut self, platform: &dyn Platform, role: Role) -> Result<()> {
        remove_if_up(platform, &self.name(role))?;
        self.numbers.remove(&role);
        Ok(())
    }
}

/// Makes sure that a device of this name and table is there. See [`Stack::ensure`].
///
/// # Errors
/// As there.
pub fn ensure_device(
    platform: &dyn Platform,
    name: &str,
    table: &[Line],
    visibility: Visibility,
    undo: &mut Rollback,
) -> Result<(DeviceNumber, Ensured)> {
    if let Some(found) = platform.dm_find(name)? {
        if found.table.is_empty() {
            // Whoever was making it was killed before it had a table.
            log::warn!("{name} was left without a table; making it anew");
            platform.dm_remove(name)?;
            return ensure_device(platform, name, table, visibility, undo);
        }
        // A device renamed after a repair keeps the UUID of its first name, so a UUID of ours for the pool will do.
        if !equivalent(&found.table, table) {
            return Err(Error::OtherTable { name: name.to_owned() });
        }
        if found.suspended {
            log::warn!("{name} was left suspended; resuming it");
            platform.dm_load(name, table)?;
            platform.dm_resume(name, visibility)?;
        }
        return Ok((found.number, Ensured::Adopted));
    }
    let number = platform.dm_create(name, name, table, visibility)?;
    let made = name.to_owned();
    // It may be gone by then: a later step of the same work may have taken it down again.
    undo.push(format!("remove {name}"), move |platform| remove_if_up(platform, &made));
    Ok((number, Ensured::Created))
}

/// Removes a device if it is there.
///
/// # Errors
/// When it is busy.
pub fn remove_if_up(platform: &dyn Platform, name: &str) -> Result<()> {
    match platform.dm_find(name)? {
        Some(_) => Ok(platform.dm_remove(name)?),
        None => Ok(()),
    }
}

/// Replaces a device's table.
///
/// # Errors
/// When the kernel refuses; the old table is active then.
pub fn replace_table(platform: &dyn Platform, name: &str, table: &[Line], visibility: Visibility) -> Result<()> {
    platform.dm_load(name, table)?;
    let suspended = platform.dm_suspend(name, true);
    // Whatever the suspend said, nobody must be left waiting.
    let resumed = platform.dm_resume(name, visibility);
    suspended?;
    Ok(resumed?)
}

/// Removes a device if it is there, and lets `undo` make it again with the table it had.
///
/// # Errors
/// When it is busy.
pub fn remove_device(platform: &dyn Platform, name: &str, visibility: Visibility, undo: &mut Rollback) -> Result<()> {
    let Some(device) = platform.dm_find(name)? else { return Ok(()) };
    let again = name.to_owned();
    // Pushed first: a removal that is said to have failed may have been carried out.
    undo.push(format!("make {name} again"), move |platform| match platform.dm_find(&again)? {
        Some(_) => Ok(()),
        None => platform.dm_create(&again, &device.uuid, &device.table, visibility).map(drop),
    });
    Ok(platform.dm_remove(name)?)
}

/// Whether a table found in the kernel does what the wanted one asks for (`spec/engine/storage-stack.md` §2): marks and
/// features of a thin pool and the policy of a cache may differ.
fn equivalent(found: &[Line], wanted: &[Line]) -> bool {
    let same = |(found, wanted): (&Line, &Line)| {
        (found.start, found.length) == (wanted.start, wanted.length)
            && match (&found.target, &wanted.target) {
                (
                    Target::ThinPool { metadata, data, block, .. },
                    Target::ThinPool { metadata: wanted_metadata, data: wanted_data, block: wanted_block, .. },
                ) => (metadata, data, block) == (wanted_metadata, wanted_data, wanted_block),
                (
                    Target::Cache { metadata, origin, block, .. },
                    Target::Cache { metadata: wanted_metadata, origin: wanted_origin, block: wanted_block, .. },
                ) => (metadata, origin, block) == (wanted_metadata, wanted_origin, wanted_block),
                (found, wanted) => found == wanted,
            }
    };
    found.len() == wanted.len() && found.iter().zip(wanted).all(same)
}
