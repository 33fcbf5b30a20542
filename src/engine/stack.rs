//! The device-mapper stack of a pool: an ordered list of layers. Layers are planned as values, then
//! brought up, adopted or taken down (`docs/spec/engine/storage-stack.md` §1–3, 6, 10.3).
//!
//! Here the two metadata versions differ only in the list of layers ([`Shape::layers`]).

use std::collections::BTreeMap;

use crate::{
    base::{
        ids::PoolUuid,
        units::{DataBlocks, Sectors},
    },
    engine::{
        dm_names::Role,
        error::{Error, Result},
        layout,
        luks_devices::volume_keys,
        metadata::{MetadataVersion, pool::Segment},
        plan::sizes,
        undo::{Rollback, When, mended},
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

/// A range of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The base.
    pub base: Base,
    /// The start of the range on the base.
    pub start: Sectors,
    /// The length of the range.
    pub length: Sectors,
}

/// What a layer consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Make {
    /// Pieces one after the other.
    Linear(Vec<Piece>),
    /// A cache of this length: [`Role::CacheMeta`] and [`Role::CacheSub`] over [`Role::OriginSub`].
    Cache(Sectors),
    /// The pool's crypt device, opened from the LUKS device on [`Role::Cache`], with this length.
    /// The stack cannot open it without a key.
    Opened(Sectors),
    /// A thin pool over [`Role::ThinMeta`] and [`Role::ThinData`].
    ThinPool {
        /// Size of its data device.
        length: Sectors,
        /// The low-water mark: the kernel raises an event when fewer blocks are free.
        low_water: DataBlocks,
        /// Its feature arguments.
        features: Vec<String>,
    },
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The role of the layer.
    pub role: Role,
    /// What the layer consists of.
    pub make: Make,
}

/// Everything that determines the list of layers.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The metadata version.
    pub version: MetadataVersion,
    /// Pieces of the data devices.
    pub data: Vec<Piece>,
    /// Pieces of the cache devices, if there is a cache tier: metadata, then blocks.
    pub cache: Option<(Vec<Piece>, Vec<Piece>)>,
    /// Ranges of the cap device: the metadata volume,
    pub mdv: Vec<Segment>,
    /// the thin metadata,
    pub thin_meta: Vec<Segment>,
    /// the spare thin metadata,
    pub thin_meta_spare: Vec<Segment>,
    /// and the thin data.
    pub thin_data: Vec<Segment>,
    /// Low-water mark of the thin pool.
    pub low_water: DataBlocks,
    /// Feature arguments of the thin pool.
    pub features: Vec<String>,
    /// Length of the LUKS2 header before the data, if the whole pool is encrypted (version 2).
    pub crypt_header: Option<Sectors>,
}

impl Shape {
    /// The cap device: the layer from which the flex devices are cut.
    pub fn cap(&self) -> Role {
        match (self.version, &self.cache) {
            _ if self.crypt_header.is_some() => Role::Crypt,
            (MetadataVersion::V1, None) => Role::OriginSub,
            _ => Role::Cache,
        }
    }

    fn flexible(&self, role: Role, segments: &[Segment]) -> Layer {
        let base = Base::Layer(self.cap());
        let pieces = segments.iter().map(|&Segment { start, length }| Piece { base, start, length }).collect();
        Layer { role, make: Make::Linear(pieces) }
    }

    /// The layers of the backstore, below the thin pool, from the bottom up.
    pub fn backstore(&self) -> Vec<Layer> {
        let length = self.data.iter().map(|piece| piece.length).fold(Sectors::ZERO, Sectors::saturating_add);
        let mut layers = vec![Layer { role: Role::OriginSub, make: Make::Linear(self.data.clone()) }];
        match (&self.cache, self.version) {
            (Some((meta, blocks)), _) => layers.extend([
                Layer { role: Role::CacheMeta, make: Make::Linear(meta.clone()) },
                Layer { role: Role::CacheSub, make: Make::Linear(blocks.clone()) },
                Layer { role: Role::Cache, make: Make::Cache(length) },
            ]),
            // With the placeholder, a cache or encryption can be added later without changing
            // device numbers above or below.
            (None, MetadataVersion::V2) => layers.push(Layer {
                role: Role::Cache,
                make: Make::Linear(vec![Piece { base: Base::Layer(Role::OriginSub), start: Sectors::ZERO, length }]),
            }),
            (None, MetadataVersion::V1) => {}
        }
        if let Some(header) = self.crypt_header {
            layers.push(Layer { role: Role::Crypt, make: Make::Opened(length.saturating_sub(header)) });
        }
        layers
    }

    /// The metadata volume.
    pub fn mdv(&self) -> Layer {
        self.flexible(Role::Mdv, &self.mdv)
    }

    /// The thin metadata.
    pub fn thin_meta(&self) -> Layer {
        self.flexible(Role::ThinMeta, &self.thin_meta)
    }

    /// The spare thin metadata. Only a repair needs it.
    pub fn thin_meta_spare(&self) -> Layer {
        self.flexible(Role::ThinMetaSpare, &self.thin_meta_spare)
    }

    /// The thin data.
    pub fn thin_data(&self) -> Layer {
        self.flexible(Role::ThinData, &self.thin_data)
    }

    /// The flex devices, which are cut from the cap device.
    pub fn flexible_layers(&self) -> [Layer; 3] {
        [self.thin_meta(), self.thin_data(), self.mdv()]
    }

    /// All layers, from the bottom up.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers = self.backstore();
        layers.extend([self.mdv(), self.thin_meta(), self.thin_data(), self.thin_pool()]);
        layers
    }

    /// The thin pool itself.
    pub fn thin_pool(&self) -> Layer {
        let length = layout::total(&self.thin_data);
        let make = Make::ThinPool { length, low_water: self.low_water, features: self.features.clone() };
        Layer { role: Role::ThinPool, make }
    }
}

/// How a layer came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// The daemon made it.
    Created,
    /// A former daemon left it in exactly the wanted form.
    Adopted,
    /// It was up in an older form and now has the recorded one.
    Renewed,
}

/// The layers of a pool that are up, with their device numbers.
#[derive(Debug, Clone)]
pub struct Stack {
    pool: PoolUuid,
    numbers: BTreeMap<Role, DeviceNumber>,
}

impl Stack {
    /// A stack with no layer up yet.
    pub fn new(pool: PoolUuid) -> Stack {
        Stack { pool, numbers: BTreeMap::new() }
    }

    /// Its pool.
    pub fn pool(&self) -> PoolUuid {
        self.pool
    }

    /// Number of a layer that is up.
    pub fn number(&self, role: Role) -> Option<DeviceNumber> {
        self.numbers.get(&role).copied()
    }

    /// Name of the device in a role.
    pub fn name(&self, role: Role) -> String {
        role.name(self.pool)
    }

    /// The device-mapper table of a layer. The bases of the layer must be up.
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
            Make::Opened(_) => Vec::new(),
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

    /// Makes sure that a layer is up: adopts the existing device, or makes one.
    ///
    /// While a pool grows, the record is ahead of the kernel. It stays ahead if the daemon is
    /// killed at that moment. So a device that was made for an older record gets the wanted table.
    /// A device left suspended is resumed.
    ///
    /// # Errors
    /// [`Error::OtherTable`] if a device of that name is up, but its table neither is nor ever was
    /// that of the layer.
    pub fn ensure(&mut self, platform: &dyn Platform, layer: &Layer, undo: &mut Rollback) -> Result<Ensured> {
        let name = self.name(layer.role);
        let (number, ensured) = match layer.make {
            Make::Opened(length) => self.ensure_opened(platform, length, undo)?,
            _ => ensure_device(platform, &name, &self.table(&layer.make), Visibility::Private, undo)?,
        };
        self.numbers.insert(layer.role, number);
        Ok(ensured)
    }

    /// Makes sure that the pool's crypt device is up and has the right length: adopts the existing
    /// one, or opens the LUKS device with the volume key if the daemon has the key.
    fn ensure_opened(
        &self,
        platform: &dyn Platform,
        length: Sectors,
        undo: &mut Rollback,
    ) -> Result<(DeviceNumber, Ensured)> {
        let name = self.name(Role::Crypt);
        let luks_device = platform.dm_node(&self.name(Role::Cache));
        let volume_key = || platform.volume_key_read(&volume_keys::name(self.pool));
        let Some(found) = platform.dm_find(&name)? else {
            let volume_key = volume_key()?.ok_or(Error::VolumeKey { pool: self.pool })?;
            let made = name.clone();
            undo.push(When::Always, format!("remove {name}"), move |platform| remove_surely(platform, &made));
            platform.luks_reopen(&luks_device, &name, &volume_key)?;
            let number = platform.dm_find(&name)?.ok_or(Error::VolumeKey { pool: self.pool })?.number;
            return Ok((number, Ensured::Created));
        };
        let below = self.number(Role::Cache);
        let elsewhere = |line: &Line| matches!(line.target, Target::Crypt { device, .. } if Some(device) != below);
        if found.table.is_empty() || found.table.iter().any(elsewhere) {
            return Err(Error::OtherTable { name });
        }
        if found.suspended {
            log::warn!("{name} was left suspended; resuming it");
            resume(platform, &name, Visibility::Private)?;
        }
        let now = found.table.iter().map(|line| line.length).fold(Sectors::ZERO, Sectors::saturating_add);
        if now >= length {
            return Ok((found.number, Ensured::Adopted));
        }
        let volume_key = volume_key()?.ok_or(Error::VolumeKey { pool: self.pool })?;
        platform.luks_resize(&luks_device, &name, &volume_key, None)?;
        Ok((found.number, Ensured::Renewed))
    }

    /// Notes a layer that other code brought up or that a former daemon left up.
    ///
    /// # Errors
    /// When device-mapper cannot be queried.
    pub fn find(&mut self, platform: &dyn Platform, role: Role) -> Result<Option<DeviceNumber>> {
        let number = platform.dm_find(&self.name(role))?.map(|device| device.number);
        if let Some(number) = number {
            self.numbers.insert(role, number);
        }
        Ok(number)
    }

    /// Makes sure that layers are up, from the bottom up, each as [`Stack::ensure`] does.
    ///
    /// # Errors
    /// Those of [`Stack::ensure`].
    pub fn ensure_all(
        &mut self,
        platform: &dyn Platform,
        layers: impl IntoIterator<Item = Layer>,
        undo: &mut Rollback,
    ) -> Result<()> {
        let (mut more_cache, mut more_metadata) = (false, false);
        for layer in layers {
            let ensured = self.ensure(platform, &layer, undo)?;
            // These targets read the size of the device below only when a table becomes live. The
            // table does not contain that size.
            let overlooks = match layer.role {
                Role::Cache => more_cache,
                Role::ThinPool => more_metadata,
                _ => false,
            };
            if overlooks && ensured == Ensured::Adopted {
                self.put(platform, &layer)?;
            }
            match layer.role {
                Role::CacheSub => more_cache = ensured == Ensured::Renewed,
                Role::ThinMeta => more_metadata = ensured == Ensured::Renewed,
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves the flex devices to the cap device when the cap has changed: when a cache has been
    /// inserted (version 1), or encryption has been added or removed (version 2). Devices that
    /// already lie on the cap, or are not up, stay as they are.
    ///
    /// A cache block may hold the end of one flex device and the beginning of another. No I/O may
    /// bypass the cache on one of them while the cache serves the other, so all of them are
    /// suspended until all have moved.
    ///
    /// # Errors
    /// When a device cannot be moved. I/O continues through the devices that did not move, and
    /// another call completes the move.
    pub fn move_to_cap(&self, platform: &dyn Platform, shape: &Shape) -> Result<()> {
        let cap = shape.cap();
        let others = [Role::OriginSub, Role::Cache, Role::Crypt].into_iter().filter(|role| *role != cap);
        let others: Vec<DeviceNumber> = others.filter_map(|role| self.number(role)).collect();
        let mut moved = Vec::new();
        let mut elsewhere = false;
        for layer in shape.flexible_layers() {
            let name = self.name(layer.role);
            let Some(found) = platform.dm_find(&name)? else { continue };
            let on_other =
                |line: &Line| matches!(line.target, Target::Linear { device, .. } if others.contains(&device));
            elsewhere |= found.table.iter().any(on_other);
            moved.push((name, self.table(&layer.make)));
        }
        if !elsewhere {
            return Ok(());
        }
        let mut held = Vec::new();
        for role in [Role::ThinPool, Role::Mdv] {
            // A device whose creation was interrupted has no table. It cannot be suspended, and the
            // kernel does not resume it.
            if platform.dm_find(&self.name(role))?.is_some_and(|found| !found.table.is_empty()) {
                held.push(self.name(role));
            }
        }
        swap_together(platform, &moved, &held)
    }

    /// Moves the flex devices back after a complete or partial [`Stack::move_to_cap`]. `shape` is
    /// the shape from before.
    ///
    /// # Errors
    /// When a device cannot be moved.
    pub fn move_from_cap(&self, platform: &dyn Platform, shape: &Shape) -> Result<()> {
        let moved: Vec<_> =
            shape.flexible_layers().into_iter().map(|layer| (self.name(layer.role), self.table(&layer.make))).collect();
        swap_together(platform, &moved, &[self.name(Role::ThinPool), self.name(Role::Mdv)])
    }

    /// Loads a layer's table without making it live, so that the kernel validates it.
    ///
    /// # Errors
    /// When the kernel refuses the table.
    pub fn load(&self, platform: &dyn Platform, layer: &Layer) -> Result<()> {
        Ok(platform.dm_load(&self.name(layer.role), &self.table(&layer.make))?)
    }

    /// Replaces the live table of a layer, and any table that was loaded.
    ///
    /// # Errors
    /// When the kernel refuses the table.
    pub fn put(&self, platform: &dyn Platform, layer: &Layer) -> Result<()> {
        swap(platform, &self.name(layer.role), &self.table(&layer.make), Visibility::Private)
    }

    /// Whether a layer is up in exactly the wanted form.
    ///
    /// # Errors
    /// When device-mapper cannot be queried.
    pub fn is_as(&self, platform: &dyn Platform, layer: &Layer) -> Result<bool> {
        let found = platform.dm_find(&self.name(layer.role))?;
        Ok(found.is_some_and(|found| match layer.make {
            Make::Opened(length) => found.size() == length,
            _ => {
                let wanted = self.table(&layer.make);
                found.table.len() == wanted.len() && found.table.iter().zip(&wanted).all(|(f, w)| is_same(f, w))
            }
        }))
    }

    /// Removes a layer if it is up.
    ///
    /// # Errors
    /// When the device is busy.
    pub fn remove(&mut self, platform: &dyn Platform, role: Role) -> Result<()> {
        remove_if_up(platform, &self.name(role))?;
        self.numbers.remove(&role);
        Ok(())
    }
}

/// Makes sure that a device with this name and table is up. See [`Stack::ensure`].
///
/// # Errors
/// Those of [`Stack::ensure`].
pub fn ensure_device(
    platform: &dyn Platform,
    name: &str,
    table: &[Line],
    visibility: Visibility,
    undo: &mut Rollback,
) -> Result<(DeviceNumber, Ensured)> {
    if let Some(found) = platform.dm_find(name)? {
        if found.table.is_empty() {
            // The process that made it was killed before it could load a table.
            log::warn!("recreating {name}, which was left without a table");
            platform.dm_remove(name)?;
            return ensure_device(platform, name, table, visibility, undo);
        }
        // A device renamed after a repair keeps the UUID of its first name, so any UUID in Stratis'
        // format with this pool's UUID will do.
        let same = found.table.len() == table.len() && found.table.iter().zip(table).all(|(f, w)| is_same(f, w));
        if same && !found.suspended {
            return Ok((found.number, Ensured::Adopted));
        }
        if !same && !precedes(&found.table, table) {
            return Err(Error::OtherTable { name: name.to_owned() });
        }
        if found.suspended {
            log::warn!("{name} was left suspended; resuming it");
        }
        swap(platform, name, table, visibility)?;
        return Ok((found.number, Ensured::Renewed));
    }
    let made = name.to_owned();
    // Push the undo first: a creation that panics may have been carried out in part. The device may
    // be gone when the undo runs, because a later step may have taken it down again.
    undo.push(When::Always, format!("remove {name}"), move |platform| remove_surely(platform, &made));
    Ok((platform.dm_create(name, name, table, visibility)?, Ensured::Created))
}

/// Removes a device if it exists.
///
/// # Errors
/// When the device is busy.
pub fn remove_if_up(platform: &dyn Platform, name: &str) -> Result<()> {
    match platform.dm_find(name)? {
        Some(_) => Ok(platform.dm_remove(name)?),
        None => Ok(()),
    }
}

/// As [`remove_if_up`], but tries twice: a device that stays up keeps everything below it busy.
///
/// # Errors
/// Those of [`remove_if_up`].
pub fn remove_surely(platform: &dyn Platform, name: &str) -> Result<()> {
    remove_if_up(platform, name).or_else(|_| remove_if_up(platform, name))
}

/// Replaces the table of a device. I/O is held back only during the swap, because the table is
/// loaded beforehand.
///
/// # Errors
/// When the kernel refuses the table; the device then keeps its old one. A swap that reports a
/// failure may have been carried out all the same.
fn swap(platform: &dyn Platform, name: &str, table: &[Line], visibility: Visibility) -> Result<()> {
    platform.dm_load(name, table)?;
    let swap = || {
        if visibility == Visibility::Public {
            // Do not flush: writes that wait in a full thin pool are requeued. They can only be
            // served after this swap has given the pool space.
            if let Err(error) = platform.dm_suspend(name, false) {
                resume(platform, name, visibility)?;
                return Err(error.into());
            }
        }
        resume(platform, name, visibility)
    };
    mended(swap, || drop(resume(platform, name, visibility)))
}

/// Resumes a device, which makes a loaded table live. Tries again after an error, because no I/O
/// may be left waiting. The device may then continue with its old table, so the error is still
/// returned.
fn resume(platform: &dyn Platform, name: &str, visibility: Visibility) -> Result<()> {
    platform.dm_resume(name, visibility).map_err(|error| {
        if let Err(again) = platform.dm_resume(name, visibility) {
            log::error!("{name} is left suspended: {again}");
        }
        error.into()
    })
}

/// Swaps the tables of several devices while others (or some of the same) are suspended.
fn swap_together(platform: &dyn Platform, changes: &[(String, Vec<Line>)], held: &[String]) -> Result<()> {
    for (name, table) in changes {
        platform.dm_load(name, table)?;
    }
    let swap = || -> Result<()> {
        for name in held {
            platform.dm_suspend(name, true)?;
        }
        changes.iter().try_for_each(|(name, _)| resume(platform, name, Visibility::Private))
    };
    // Resume devices that were never suspended, too: resuming a running device is no error.
    let go_on = || held.iter().rev().map(|name| resume(platform, name, Visibility::Private)).collect::<Vec<_>>();
    let swapped = mended(swap, || drop(go_on()));
    swapped.and(go_on().into_iter().collect())
}

/// Removes a device if it exists. `undo` makes it again with its former table, unless a later step
/// could not be taken back.
///
/// # Errors
/// When the device is busy.
pub fn remove_device(platform: &dyn Platform, name: &str, visibility: Visibility, undo: &mut Rollback) -> Result<()> {
    let Some(device) = platform.dm_find(name)? else { return Ok(()) };
    let again = name.to_owned();
    // Push the undo first: a removal that reports a failure may have been carried out.
    undo.push(When::Unused, format!("make {name} again"), move |platform| match platform.dm_find(&again)? {
        Some(_) => Ok(()),
        None => platform.dm_create(&again, &device.uuid, &device.table, visibility).map(drop),
    });
    Ok(platform.dm_remove(name)?)
}

/// Whether a line found in the kernel is the wanted one (`docs/spec/engine/storage-stack.md` §2).
/// The kernel renames a cache's policy and reorders feature arguments. The low-water mark of a thin
/// pool moves with demand, so it is ignored.
fn is_same(found: &Line, wanted: &Line) -> bool {
    (found.start, found.length) == (wanted.start, wanted.length)
        && match (&found.target, &wanted.target) {
            (
                Target::ThinPool { metadata, data, block, features, .. },
                Target::ThinPool { metadata: m, data: d, block: b, features: f, .. },
            ) => (metadata, data, block) == (m, d, b) && is_permutation(features, f),
            (Target::Cache { .. }, Target::Cache { .. }) => is_older_target(&found.target, &wanted.target),
            (found, wanted) => found == wanted,
        }
}

fn is_permutation(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|word| b.contains(word))
}

/// Whether a table found in the kernel is an earlier form of the wanted one: from before the pool
/// grew, got a cache, or changed its settings. Data written through the earlier table is at the
/// same place in the wanted one.
fn precedes(found: &[Line], wanted: &[Line]) -> bool {
    match (found, wanted) {
        ([found], [wanted]) if is_unrecorded_cache(found, wanted) => true,
        ([found], [wanted]) if !matches!(wanted.target, Target::Linear { .. }) => {
            found.start == wanted.start
                && found.length <= wanted.length
                && is_older_target(&found.target, &wanted.target)
        }
        _ => is_beginning(found, wanted),
    }
}

/// Whether a cache was found where version 2 wants its placeholder: the addition of the cache had
/// begun, could not be recorded, and could not be taken back. The cache is in writethrough mode, so
/// its origin has all data.
fn is_unrecorded_cache(found: &Line, wanted: &Line) -> bool {
    let on_origin = match (&found.target, &wanted.target) {
        (Target::Cache { origin, features, .. }, Target::Linear { device, offset: Sectors::ZERO }) => {
            origin == device && features.iter().any(|feature| feature == "writethrough")
        }
        _ => false,
    };
    on_origin && found.start == wanted.start && found.length <= wanted.length
}

/// As [`precedes`], for targets that span a whole device.
fn is_older_target(found: &Target, wanted: &Target) -> bool {
    match (found, wanted) {
        (
            Target::ThinPool { metadata, data, block, .. },
            Target::ThinPool { metadata: wanted_metadata, data: wanted_data, block: wanted_block, .. },
        ) => (metadata, data, block) == (wanted_metadata, wanted_data, wanted_block),
        (
            Target::Cache { metadata, origin, block, .. },
            Target::Cache { metadata: wanted_metadata, origin: wanted_origin, block: wanted_block, .. },
        ) => (metadata, origin, block) == (wanted_metadata, wanted_origin, wanted_block),
        // The placeholder of version 2. Data written through it lies where the cache looks for it.
        (Target::Linear { device, offset: Sectors::ZERO }, Target::Cache { origin, .. }) => device == origin,
        (found, wanted) => found == wanted,
    }
}

/// Whether linear lines map to the same place as the beginning of the wanted ones, however they are
/// split.
fn is_beginning(found: &[Line], wanted: &[Line]) -> bool {
    let linear = |line: &Line| match line.target {
        Target::Linear { device, offset } => Some((device, offset, line.length)),
        _ => None,
    };
    let mut wanted = wanted.iter().map_while(linear);
    let mut rest: Option<(DeviceNumber, Sectors, Sectors)> = None;
    for line in found {
        let Some((device, mut offset, mut length)) = linear(line) else { return false };
        while length > Sectors::ZERO {
            let Some((to, at, left)) = rest.filter(|(.., left)| *left > Sectors::ZERO).or_else(|| wanted.next()) else {
                return false;
            };
            if (to, at) != (device, offset) {
                return false;
            }
            let part = left.min(length);
            rest = Some((to, at.saturating_add(part), left.saturating_sub(part)));
            (offset, length) = (offset.saturating_add(part), length.saturating_sub(part));
        }
    }
    true
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
