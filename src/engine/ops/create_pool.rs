//! Creates a pool (`docs/spec/engine/storage-stack.md` §10.1).
//!
//! The name and the devices are claimed first. The rest runs without a lock, because no other
//! request can know of the pool before its entry is in the table. On disk, the pool exists once its
//! first metadata is written. Until then its devices carry a mark: after a power cut, they belong
//! to no pool.

use std::path::PathBuf;

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
        units::Sectors,
    },
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        devices::{self, Candidate, Planned},
        dm_names::Role,
        encryption::{self, Assigned, BindRequest, Kind, NewBinding},
        error::{Error, Result},
        layout::{LayoutDraft, NewDevice},
        luks_devices::{
            device::LuksFormat,
            lifecycle::{self, Prepared},
        },
        mdv::Mdv,
        metadata::{IntegritySpec, MetadataVersion, PoolMetadata},
        ops::candidates,
        plan::{sector_rules, sizes},
        pool::{self, Member, Members, Pool, sector_sizes},
        request::{Granted, Share, Step},
        setup,
        stack::{Layer, Stack},
        thin_devices::thin_metadata_size,
        undo::{Rollback, When},
        xfs::{self, Discard},
    },
    platform::{BlockDevice, Platform, luks},
};

/// The description of a new pool.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Its name.
    pub name: Name,
    /// Absolute paths of its data devices.
    pub devices: Vec<PathBuf>,
    /// Space to reserve for integrity data; version 2 only.
    pub integrity: IntegritySpec,
    /// The metadata version; new pools of clients are version 2.
    pub version: MetadataVersion,
    /// The bindings that unlock the pool; if empty, the pool is not encrypted.
    pub bindings: Vec<NewBinding>,
}

/// A pool that was created: its identifier and those of its devices.
pub type Created = (PoolUuid, Vec<DevUuid>);

/// Creates a pool. `None`: it already exists with exactly these data devices.
pub fn create_pool(new: NewPool) -> Step<Result<Option<Created>>> {
    // The devices belong to no pool yet, and one of them may hang.
    let share = Share::Device(new.devices.first().cloned().unwrap_or_default());
    Step::slow(share, move |engine| {
        if let Err(error) = sizes::check_integrity_spec(&new.integrity) {
            return Step::Done(Err(error.into()));
        }
        let assigned = match assign_bindings(engine.platform(), &new) {
            Ok(assigned) => assigned,
            Err(error) => return Step::Done(Err(error)),
        };
        let found = match devices::find(engine.platform(), &new.devices) {
            Ok(found) if found.is_empty() => return Step::Done(Err(Error::NoDevices)),
            Ok(found) => found,
            Err(error) => return Step::Done(Err(error)),
        };
        let keys = found.iter().map(|device| Key::Device(device.number)).chain([Key::PoolName(new.name.clone())]);
        let claim = match engine.claims().claim(keys) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, create_pool(new)),
        };
        let which = PoolRef::Name(new.name.clone());
        Step::read(which, move |_, granted| match granted {
            Granted::Read(existing) => Step::Done(compare(existing, &found).map(|()| None)),
            _ => Step::blocking(move |engine| build(engine, new, found, &assigned, claim)),
        })
    })
}

/// Assigns a token to each binding. Keys must be in the keyring; servers are not asked yet.
fn assign_bindings(platform: &dyn Platform, new: &NewPool) -> Result<Vec<Assigned>> {
    if new.bindings.is_empty() {
        return Ok(Vec::new());
    }
    let assigned = encryption::assign(new.bindings.clone())?;
    for binding in &assigned {
        if let BindRequest::Keyring(description) = &binding.request {
            encryption::key(platform, description)?;
        }
    }
    Ok(assigned)
}

/// Compares the existing pool of that name with the request.
fn compare(existing: &Pool, requested: &[BlockDevice]) -> Result<()> {
    let present: Vec<&Member> = existing.meta().data_devices().filter_map(|uuid| existing.members.get(uuid)).collect();
    let only_requested: Vec<PathBuf> = requested
        .iter()
        .filter(|device| present.iter().all(|member| member.device.number != device.number))
        .map(|device| device.path.clone())
        .collect();
    let only_present: Vec<PathBuf> = present
        .iter()
        .filter(|member| requested.iter().all(|device| device.number != member.device.number))
        .map(|member| member.device.path.clone())
        .collect();
    match only_requested.is_empty() && only_present.is_empty() {
        true => Ok(()),
        false => Err(Error::OtherDevices { name: existing.name().clone(), only_requested, only_present }),
    }
}

fn build(
    engine: &Engine,
    new: NewPool,
    found: Vec<BlockDevice>,
    assigned: &[Assigned],
    claim: Claim,
) -> Step<Result<Option<Created>>> {
    if let Err(error) = engine.check_ending() {
        return Step::Done(Err(error));
    }
    let platform = engine.platform();
    // Version 1 turns each device into a LUKS device instead, each with its own passphrases.
    let as_a_whole = !assigned.is_empty() && new.version == MetadataVersion::V2;
    let prepared = || as_a_whole.then(|| Prepared::new(platform, assigned)).transpose();
    let uuid = PoolUuid::from_random(platform.random());
    // Writing to the devices causes events. The claim keeps other requests from taking the new pool
    // for left over.
    let Ok(making) = engine.claims().claim([Key::Pool(uuid)]) else {
        return Step::Done(Err(Error::PoolNameTaken(new.name)));
    };
    let examined = examine(engine, found).and_then(|candidates| Ok((candidates, prepared()?)));
    let (candidates, prepared) = match examined {
        Ok(examined) => examined,
        Err(error) => return Step::Done(Err(error)),
    };
    let making = Making { uuid, new, prepared, claim, making };
    if making.new.version == MetadataVersion::V2 || assigned.is_empty() {
        return making.complete(engine, candidates, Rollback::new());
    }
    let name = making.new.name.as_str().to_owned();
    let format = LuksFormat { pool: uuid, name, bindings: assigned.to_vec(), sector_size: None };
    candidates::format_each_luks(format, candidates).then(move |formatted| {
        Step::blocking(move |engine| match formatted {
            Ok((inside, undo)) => making.complete(engine, inside, undo),
            Err(error) => Step::Done(Err(error)),
        })
    })
}

/// A pool that is being made.
struct Making {
    uuid: PoolUuid,
    new: NewPool,
    prepared: Option<Prepared>,
    /// The claim on its name and devices.
    claim: Claim,
    /// The claim on the pool.
    making: Claim,
}

impl Making {
    /// Makes the pool on devices that may be crypt devices, and inserts it into the table. `undo`
    /// removes the LUKS devices below these.
    fn complete(self, engine: &Engine, candidates: Vec<Candidate>, undo: Rollback) -> Step<Result<Option<Created>>> {
        let platform = engine.platform();
        let Making { uuid, new, prepared, claim, making } = self;
        let made = undo.guard(platform, |undo| {
            let mut pool = assemble(platform, uuid, &new, candidates, prepared.as_ref(), undo)?;
            // From here on the pool exists on disk, and no step fails. But a panic would leave the
            // pool up without an entry in the table.
            pool.members.confirm(platform);
            pool.refresh(platform, None);
            Ok(pool)
        });
        let (pool, undo) = match made {
            Ok(made) => made,
            Err(error) => return Step::Done(Err(error)),
        };
        undo.forget();
        let created = (pool.uuid(), pool.meta().data_devices().collect());
        setup::insert(pool, claim).map(move |inserted| {
            drop(making);
            inserted.map(|()| Some(created))
        })
    }
}

fn examine(engine: &Engine, found: Vec<BlockDevice>) -> Result<Vec<Candidate>> {
    let candidates: Vec<Candidate> =
        found.into_iter().map(|device| candidates::examine(engine, device, None)).collect::<Result<_>>()?;
    sector_rules::common(candidates.iter().map(|candidate| sector_sizes::of_device(&candidate.geometry)))?;
    Ok(candidates)
}

/// Initializes the devices and brings up all layers on them. The last step writes the metadata that
/// makes the devices a pool.
fn assemble(
    platform: &dyn Platform,
    uuid: PoolUuid,
    new: &NewPool,
    candidates: Vec<Candidate>,
    prepared: Option<&Prepared>,
    undo: &mut Rollback,
) -> Result<Pool> {
    let planned = devices::plan(platform, uuid, new.version, candidates);
    let mut meta = plan_metadata(platform, new, &planned)?;
    if prepared.is_some() {
        let has = |kind| new.bindings.iter().any(|binding| binding.request.kind() == kind);
        meta.set_encrypted(has(Kind::Keyring), has(Kind::Clevis))?;
    }
    let initialized = devices::initialize(platform, planned, undo)?;
    let members: Members = initialized
        .into_iter()
        .map(|made| {
            let member = Member::of(made.candidate, made.bda);
            (member.bda.header().device, member)
        })
        .collect();
    let mut stack = Stack::new(uuid);
    let shape = pool::shape(new.version, &meta, &members);

    let mut header = None;
    for layer in shape.backstore() {
        if let (Role::Crypt, Some(prepared)) = (layer.role, prepared) {
            let (layout, purpose) = (&lifecycle::LAYOUT_V2, luks::FormatPurpose::New);
            header = Some(lifecycle::make(platform, &stack, prepared, layout, purpose, undo)?);
        }
        create(platform, &mut stack, &layer, undo)?;
    }
    if new.version == MetadataVersion::V2 && header.is_none() {
        // A stale LUKS2 header on the disks must never be taken for the pool's.
        zero(platform, &stack, shape.cap(), meta.crypt_reserved())?;
    }
    create(platform, &mut stack, &shape.thin_meta(), undo)?;
    // The kernel takes a thin pool whose metadata begins with zeros for new.
    zero(platform, &stack, Role::ThinMeta, sizes::METADATA_ZEROED)?;
    create(platform, &mut stack, &shape.thin_data(), undo)?;
    create(platform, &mut stack, &shape.mdv(), undo)?;
    let node = platform.dm_node(&stack.name(Role::Mdv));
    xfs::make(
        platform,
        &node,
        uuid::Uuid::from_bytes(*uuid.as_bytes()),
        sizes::XfsParameters::default(),
        Discard::Yes,
    )?;
    undo.push(When::Always, "unmount the metadata volume", move |platform| Mdv::new(platform, uuid).unmount());
    let mdv = Mdv::new(platform, uuid);
    mdv.mount(&node)?;
    // This makes the directory, so that other daemons find what they expect.
    mdv.records(&[])?;
    create(platform, &mut stack, &shape.thin_pool(), undo)?;

    let mut pool = Pool::new(uuid, new.name.clone(), new.version, meta, members, stack);
    if let Some(header) = header {
        pool.note_header(&header)?;
        pool.note_volume_key(true);
    }
    pool.note_luks_devices()?;
    let meta = pool.meta().clone();
    pool.commit(platform, Choose::Everywhere, None, meta)?;
    Ok(pool)
}

/// Brings up a layer of a new pool, for which no device of that name can exist.
fn create(platform: &dyn Platform, stack: &mut Stack, layer: &Layer, undo: &mut Rollback) -> Result<()> {
    stack.ensure(platform, layer, undo).map(drop)
}

pub(super) fn zero(platform: &dyn Platform, stack: &Stack, role: Role, length: Sectors) -> Result<()> {
    lifecycle::wipe(platform, &platform.dm_node(&stack.name(role)), Sectors::ZERO, length)
}

/// The metadata of a new pool, with the layout of its space (`docs/spec/engine/storage-stack.md`
/// §4, 5, 7.2, 7.3).
fn plan_metadata(platform: &dyn Platform, new: &NewPool, planned: &[Planned]) -> Result<PoolMetadata> {
    let devices: Vec<NewDevice<'_>> = planned.iter().map(Into::into).collect();
    let draft = LayoutDraft::new(new.version, new.integrity, &devices)?;
    let thin_metadata = thin_metadata_size(platform, draft.usable(), sizes::FS_LIMIT)?;
    draft.lay_out(new.name.as_str(), thin_metadata)
}
