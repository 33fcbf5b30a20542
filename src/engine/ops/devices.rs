//! Operations on a pool's devices (`docs/spec/engine/storage-stack.md` §10.4, 10.6, 12).

use std::path::PathBuf;

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::{self, TextPurpose},
    },
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        devices::{self, Candidate},
        encryption::{Assigned, Binding, UnlockMethod},
        error::{Error, Result},
        layout::NewDevice,
        luks_devices::{
            device::{LuksDevice, LuksFormat},
            lifecycle,
        },
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata, StaticHeader},
        ops::{
            cache, candidates,
            check::and_use,
            pool_access::{change, read_pool, unless_at_work, writable},
        },
        plan::sector_rules::{self, SectorError, SectorSizes},
        pool::{Pool, sector_sizes},
        request::{Share, Step},
        thin_growth::follow_or_later,
        undo::Rollback,
    },
    platform::{BlockDevice, Platform},
    view::{Availability, DeviceTier},
};

/// The purpose for which devices are added to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceAddition {
    /// Data devices.
    Data,
    /// Devices of a new cache; the pool has no cache yet.
    NewCache,
    /// More devices of the pool's cache.
    MoreCache,
}

impl DeviceAddition {
    /// Refuses a pool that must not be changed now. A pool that only lacks space accepts data
    /// devices.
    fn check(self, pool: &Pool) -> Result<()> {
        match self {
            DeviceAddition::Data => pool.check_requests_for_space(),
            DeviceAddition::NewCache | DeviceAddition::MoreCache => pool.check_requests(),
        }
    }

    /// Adds the devices to a pool's metadata.
    fn record(self, meta: &mut PoolMetadata, devices: &[NewDevice<'_>]) -> Result<()> {
        match self {
            DeviceAddition::Data => meta.add_data_devices(devices),
            DeviceAddition::NewCache => meta.init_cache(devices),
            DeviceAddition::MoreCache => meta.add_cache_devices(devices),
        }
    }
}

/// Adds data devices. Returns the new ones; none if the pool already has all of them.
pub fn add_data_devices(uuid: PoolUuid, paths: Vec<PathBuf>) -> Step<Result<Vec<DevUuid>>> {
    and_use(uuid, join(uuid, paths, DeviceAddition::Data), |added| !added.is_empty())
}

/// Gives a pool a cache on these devices. Returns the new devices; none if the pool already has a
/// cache on exactly these devices.
pub fn init_cache(uuid: PoolUuid, paths: Vec<PathBuf>) -> Step<Result<Vec<DevUuid>>> {
    join(uuid, paths, DeviceAddition::NewCache)
}

/// Adds devices to a pool's cache. Returns the new ones; none if the cache already has all of them.
pub fn add_cache_devices(uuid: PoolUuid, paths: Vec<PathBuf>) -> Step<Result<Vec<DevUuid>>> {
    join(uuid, paths, DeviceAddition::MoreCache)
}

/// Claims devices, initializes them without a lock, and adds them to the pool.
fn join(uuid: PoolUuid, paths: Vec<PathBuf>, purpose: DeviceAddition) -> Step<Result<Vec<DevUuid>>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let found = match devices::find(engine.platform(), &paths) {
            Ok(found) => found,
            Err(error) => return Step::Done(Err(error)),
        };
        // The work in the pool is claimed as well, so that the pool is not taken down meanwhile.
        // The unlock methods of the pool must not change while its new devices get the same ones.
        let work = [Key::Growth(uuid), Key::Encryption(uuid)];
        let keys = found.iter().map(|device| Key::Device(device.number)).chain(work);
        let claim = match engine.claims().claim_work(uuid, keys) {
            Ok(claim) => claim,
            Err(taken) => return unless_at_work(uuid, taken, join(uuid, paths, purpose)),
        };
        read_pool(uuid, move |_, pool| match new_ones(pool, found, purpose) {
            Ok(found) if found.is_empty() => Step::Done(Ok(Vec::new())),
            Ok(found) => {
                let rules = SectorRules::of(pool, purpose);
                let (version, meta) = (pool.version(), pool.meta().clone());
                let parameters = match LuksParameters::of(pool, purpose) {
                    Ok(parameters) => parameters,
                    Err(error) => return Step::Done(Err(error)),
                };
                Step::blocking(move |engine| {
                    let examined = engine.check_ending().and_then(|()| examine(engine, uuid, found, &rules));
                    let ready = examined.and_then(|candidates| {
                        let format =
                            parameters.map(|parameters| parameters.luks_format(engine.platform(), uuid)).transpose()?;
                        Ok((candidates, format))
                    });
                    let joining = Joining { uuid, version, meta, purpose, claim };
                    match ready {
                        Ok((candidates, None)) => joining.initialize(engine, candidates, Rollback::new()),
                        Ok((candidates, Some(format))) => {
                            candidates::format_each_luks(format, candidates).then(move |formatted| {
                                Step::blocking(move |engine| match formatted {
                                    Ok((inside, undo)) => joining.initialize(engine, inside, undo),
                                    Err(error) => Step::Done(Err(error)),
                                })
                            })
                        }
                        Err(error) => Step::Done(Err(error)),
                    }
                })
            }
            Err(error) => Step::Done(Err(error)),
        })
    })
}

/// Devices that are being added to a pool, in an intermediate state of the request.
struct Joining {
    uuid: PoolUuid,
    version: MetadataVersion,
    /// The metadata of the pool.
    meta: PoolMetadata,
    purpose: DeviceAddition,
    claim: Claim,
}

impl Joining {
    /// Initializes the devices, which may be crypt devices, and adds them to the pool. `undo`
    /// removes the LUKS devices below these.
    fn initialize(self, engine: &Engine, candidates: Vec<Candidate>, undo: Rollback) -> Step<Result<Vec<DevUuid>>> {
        let platform = engine.platform();
        let Joining { uuid, version, mut meta, purpose, claim } = self;
        let made = undo.guard(platform, |undo| {
            let planned = devices::plan(platform, uuid, version, candidates);
            // This only finds out, before anything is written, whether the devices have enough room
            // for their purpose.
            purpose.record(&mut meta, &planned.iter().map(Into::into).collect::<Vec<_>>())?;
            devices::initialize(platform, planned, undo)
        });
        match made {
            Ok((initialized, undo)) => take_in(uuid, initialized, purpose, undo, claim),
            Err(error) => Step::Done(Err(error)),
        }
    }
}

/// How new members of an encrypted version 1 pool are encrypted in the same way as the other
/// members.
struct LuksParameters {
    name: String,
    bindings: Vec<Assigned>,
    sector_size: Option<u32>,
    /// A LUKS device of the pool. Every binding of the new devices must be able to open it.
    proof: Option<LuksDevice>,
}

impl LuksParameters {
    fn of(pool: &Pool, purpose: DeviceAddition) -> Result<Option<LuksParameters>> {
        let mut luks_devices = pool.members.luks_devices().cloned();
        let Some(first) = luks_devices.next() else { return Ok(None) };
        let agreed = pool.encryption()?.agreed()?;
        let assign = |binding: &Binding| -> Result<Assigned> {
            Ok(Assigned { token: binding.token, request: binding.mechanism.elsewhere()? })
        };
        let tier = if purpose == DeviceAddition::Data { DeviceTier::Data } else { DeviceTier::Cache };
        let logical =
            sector_sizes::of_tier(pool, tier).into_iter().filter_map(|member| Some(member.crypt?.logical)).max();
        Ok(Some(LuksParameters {
            name: pool.meta().name.clone(),
            bindings: agreed.iter().map(assign).collect::<Result<_>>()?,
            sector_size: logical,
            // The devices of a new cache hold no data that could be lost with the keys.
            proof: (purpose != DeviceAddition::NewCache).then_some(first),
        }))
    }

    /// The parameters of the new LUKS devices, if every binding opens the proof device.
    fn luks_format(self, platform: &dyn Platform, pool: PoolUuid) -> Result<LuksFormat> {
        let LuksParameters { name, bindings, sector_size, proof } = self;
        if let Some(LuksDevice { device, bindings, .. }) = &proof {
            for binding in bindings.iter() {
                lifecycle::open(platform, &device.path, None, bindings, UnlockMethod::Token(binding.token), None)?;
            }
        }
        Ok(LuksFormat { pool, name, bindings, sector_size })
    }
}

/// The devices that are not in the tier yet.
fn new_ones(pool: &Pool, found: Vec<BlockDevice>, purpose: DeviceAddition) -> Result<Vec<BlockDevice>> {
    purpose.check(pool)?;
    pool.check_no_job()?;
    let tier = match purpose {
        DeviceAddition::Data => DeviceTier::Data,
        DeviceAddition::NewCache | DeviceAddition::MoreCache => DeviceTier::Cache,
    };
    let has_cache = pool.meta().backstore.cache_tier.is_some();
    match purpose {
        DeviceAddition::NewCache if has_cache => return cache::compare(pool, &found).map(|()| Vec::new()),
        DeviceAddition::NewCache if found.is_empty() => return Err(Error::NoCacheDevices),
        DeviceAddition::MoreCache if !has_cache => return Err(Error::NoCache { pool: pool.name().clone() }),
        _ => {}
    }
    let mut new = Vec::new();
    for device in found {
        match pool.tier_of(device.number) {
            Some((_, known)) if known == tier => {}
            Some((_, tier)) => return Err(Error::InOtherTier { path: device.path, tier }),
            None => new.push(device),
        }
    }
    Ok(new)
}

/// The sector sizes that new devices must have.
struct SectorRules {
    purpose: DeviceAddition,
    /// The devices of the tier that they must be compatible with.
    tier: Vec<sector_rules::MemberSizes>,
}

impl SectorRules {
    fn of(pool: &Pool, purpose: DeviceAddition) -> SectorRules {
        let tier = if purpose == DeviceAddition::MoreCache { DeviceTier::Cache } else { DeviceTier::Data };
        SectorRules { purpose, tier: sector_sizes::of_tier(pool, tier) }
    }

    fn check(&self, new: impl Iterator<Item = SectorSizes>) -> std::result::Result<(), SectorError> {
        match self.purpose {
            DeviceAddition::Data | DeviceAddition::MoreCache => sector_rules::check_added(&self.tier, new),
            DeviceAddition::NewCache => sector_rules::check_cache(&self.tier, new),
        }
    }
}

fn examine(engine: &Engine, pool: PoolUuid, found: Vec<BlockDevice>, rules: &SectorRules) -> Result<Vec<Candidate>> {
    let candidates = found
        .into_iter()
        .map(|device| candidates::examine(engine, device, Some(pool)))
        .collect::<Result<Vec<Candidate>>>()?;
    rules.check(candidates.iter().map(|candidate| sector_sizes::of_device(&candidate.geometry)))?;
    Ok(candidates)
}

/// Adds initialized devices to the pool. The write of the pool metadata is the commit point.
fn take_in(
    uuid: PoolUuid,
    initialized: Vec<devices::Initialized>,
    purpose: DeviceAddition,
    undo: Rollback,
    claim: Claim,
) -> Step<Result<Vec<DevUuid>>> {
    Step::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = match writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Step::Done(Err(undo.run(platform, error))),
        };
        // Another request may have restricted the pool meanwhile.
        if let Err(error) = purpose.check(pool).and_then(|()| pool.check_no_job()) {
            return Step::Done(Err(undo.run(platform, error)));
        }
        let added = pool.members.admit(initialized);
        let taken = match purpose {
            DeviceAddition::Data => add_data(platform, pool, &added),
            DeviceAddition::NewCache => cache::begin(platform, pool, &added),
            DeviceAddition::MoreCache => cache::extend(platform, pool, &added),
        };
        if let Err(error) = taken {
            // Devices that the record may name are not wiped: the pool could not be set up without
            // them.
            let error = undo.run(platform, error);
            pool.members.dismiss(&added);
            pool.note_failure(&error);
            return Step::Done(Err(error));
        }
        undo.forget();
        pool.members.confirm(platform);
        if let Err(error) = pool.note_luks_devices() {
            log::error!("could not show the bindings of pool {}: {}", pool.name(), error.sentence());
        }
        pool.show();
        engine.registry().note_running(uuid, pool.members.nodes());
        drop(claim);
        Step::Done(Ok(added))
    })
}

/// Records new data devices. From then on there is space to give to the thin pool, so writes may
/// wait for it instead of failing.
fn add_data(platform: &dyn Platform, pool: &mut Pool, added: &[DevUuid]) -> Result<()> {
    let with = pool.plan_devices(added, |meta, devices| {
        meta.add_data_devices(devices)?;
        meta.thinpool_dev.set_errors_if_no_space(false);
        Ok(())
    })?;
    let without = pool.on_record();
    // A single device with an older record would be enough to set the pool up with the wrong set of
    // devices.
    pool.commit(platform, Choose::Everywhere, Some(&without), with)?;
    pool.growth.retry_metadata();
    follow_or_later(platform, pool);
    Ok(())
}

/// Lets a pool use the space by which one of its data devices has grown. `false`: the device has
/// not grown.
pub fn grow_device(uuid: PoolUuid, device: DevUuid) -> Step<Result<bool>> {
    let chain = read_pool(uuid, move |_, pool| {
        let usable = pool.check_requests_for_space().and_then(|()| pool.check_no_job());
        let luks_device = usable.map(|()| pool.members.get(device).and_then(|member| member.luks_device.clone()));
        match luks_device {
            Ok(None) => change(uuid, move |engine, pool| grow(engine.platform(), pool, device)),
            Ok(Some(luks_device)) => grow_luks_device(uuid, luks_device),
            Err(error) => Step::Done(Err(error)),
        }
    });
    and_use(uuid, chain, |grown| *grown)
}

/// As [`grow`], for a crypt device, which has to grow first. That requires the volume key, which is
/// looked up without a lock.
fn grow_luks_device(uuid: PoolUuid, luks_device: LuksDevice) -> Step<Result<bool>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let (platform, path, device) = (engine.platform(), luks_device.device.path.clone(), luks_device.id());
        let volume_key = lifecycle::open(platform, &path, None, &luks_device.bindings, UnlockMethod::Any, None);
        let volume_key = match volume_key {
            Ok(volume_key) => volume_key,
            Err(error) => return Step::Done(Err(error)),
        };
        change(uuid, move |engine, pool| {
            let platform = engine.platform();
            pool.check_requests_for_space()?;
            pool.check_no_job()?;
            let Some(member) = pool.members.get(device) else {
                return Err(Error::NoDevice { pool: pool.name().clone(), device });
            };
            let before = member.bda.header().device_size;
            let (inside, room) = (member.device.path.clone(), luks_device.room(platform.geometry(&path)?.size));
            if room > before {
                platform.luks_resize(&path, &luks_device.name(), &volume_key, None)?;
            } else {
                member.bda.check_size(&inside, room)?;
            }
            let grown = grow(platform, pool, device);
            // A crypt device that is larger than recorded does no harm, but is not what was
            // requested. One that is smaller than the header may say does harm.
            if grown.as_ref().is_err_and(|error| error.leaves() == Availability::Full) && room > before {
                let back = platform.luks_resize(&path, &luks_device.name(), &volume_key, Some(before));
                if let Err(error) = back {
                    log::warn!("could not shrink {} to its former size: {error}", inside.display());
                }
            }
            grown
        })
    })
}

/// Lets the pool use a device that has grown. The new size is first recorded on the device, with a
/// mark; from then on the device has grown. Next, the pool metadata reserves the space that
/// integrity data needs on it. After a power cut in between, the next set-up does that because of
/// the mark.
fn grow(platform: &dyn Platform, pool: &mut Pool, device: DevUuid) -> Result<bool> {
    pool.check_requests_for_space()?;
    pool.check_no_job()?;
    let name = pool.name().clone();
    let is_data = pool.meta().data_devices().any(|uuid| uuid == device);
    let Some(member) = pool.members.get_mut(device) else { return Err(Error::NoDevice { pool: name, device }) };
    let path = member.device.path.clone();
    if !is_data {
        return Err(Error::CacheDoesNotGrow { pool: name, path });
    }
    let size = platform.geometry(&path)?.size;
    let old = *member.bda.header();
    member.bda.check_size(&path, size)?;
    if size == old.device_size {
        pool.note_size(device, size);
        return Ok(false);
    }
    let marked = member.bda.resize(platform, &path, size, old.flags.with(HeaderFlags::GROWN));
    let recorded = marked.map_err(Error::from).and_then(|()| {
        let header = StaticHeader { device_size: size, ..old };
        pool.change(platform, Choose::Some(platform.random()), |meta| {
            meta.reserve_integrity(&header)?;
            meta.thinpool_dev.set_errors_if_no_space(false);
            Ok(())
        })
    });
    if let Err(cause) = recorded {
        // The larger size is compatible with either record: because of the mark, the next set-up
        // completes the growth.
        if cause.is_unsure() {
            return Err(cause);
        }
        let Some(member) = pool.members.get_mut(device) else { return Err(cause) };
        return Err(match member.bda.resize(platform, &path, old.device_size, old.flags) {
            Ok(()) => cause,
            Err(error) => Error::Rollback {
                cause: Box::new(cause),
                failures: vec![(format!("record the former size of {} again", path.display()), error.into())],
                leaves: Availability::NoRequests,
            },
        });
    }
    pool.members.confirm(platform);
    pool.note_size(device, size);
    pool.show();
    pool.growth.retry_metadata();
    follow_or_later(platform, pool);
    Ok(true)
}

/// Sets or removes the user info of a device. `false`: the device already has that user info.
pub fn set_user_info(uuid: PoolUuid, device: DevUuid, info: Option<String>) -> Step<Result<bool>> {
    change(uuid, move |engine, pool| change_user_info(engine.platform(), pool, device, info))
}

fn change_user_info(platform: &dyn Platform, pool: &mut Pool, device: DevUuid, info: Option<String>) -> Result<bool> {
    pool.check_requests()?;
    if let (MetadataVersion::V1, Some(info)) = (pool.version(), &info) {
        // Former daemons made links from the user info.
        name::check(TextPurpose::UserInfo, info)?;
    }
    let missing = || Error::NoDevice { pool: pool.name().clone(), device };
    let entry = |meta: &PoolMetadata| {
        meta.device_entries().find(|(_, entry)| entry.uuid == device).map(|(_, entry)| entry.user_info.clone())
    };
    if entry(pool.meta()).ok_or_else(missing)? == info {
        return Ok(false);
    }
    pool.change(platform, Choose::Some(platform.random()), |meta| {
        meta.set_user_info(device, info);
        Ok(())
    })?;
    Ok(true)
}
