//! A bench for the engine: one engine on a simulated machine. Its chains of steps run in a plain
//! loop.
//!
//! There are no threads and no locks. Tests on the bench check what the operations do to disks and
//! kernel, step by step.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
};

use stratisd::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
        units::Sectors,
    },
    engine::{
        Engine, Result, dm_names,
        metadata::{IntegritySpec, MetadataVersion},
        ops::{self, CacheTier, NewFilesystem, NewPool, StopOutcome, UnlockOptions},
        pool::Pool,
        request::{Access, Step},
    },
    platform::{Platform, WriteStep, sim::Sim},
    view,
};

use crate::pools::Pools;

/// An engine on a simulated machine.
pub struct Bench {
    /// The machine.
    pub sim: Sim,
    /// The engine that runs on it.
    pub engine: Engine,
    /// The running pools.
    pub pools: Pools,
    /// The stopped pools, as last published.
    stopped: RefCell<Arc<view::StoppedPoolsView>>,
}

/// No chain of a test takes so many steps of the machine. One that does is in an endless loop.
const STEPS_MAX: u64 = 1_000_000;

/// Offset in bytes of a test's mark in a filesystem. mkfs writes nothing there.
const MARK_AT: u64 = 64 << 20;

impl Bench {
    /// Starts an engine on the machine and discovers its pools, as a daemon does.
    pub fn start(sim: Sim) -> Bench {
        let mut bench = Bench::without_discovery(sim);
        for chain in ops::discover(&bench.engine).expect("devices can be listed") {
            bench.run(chain);
        }
        bench
    }

    /// A machine with the pool `p` on two disks, and on it the filesystems `f` and `g`.
    pub fn with_two_filesystems() -> Bench {
        let mut bench = Bench::start(Sim::builder().build());
        bench.create_pool("p", &["/dev/a", "/dev/b"]).expect("the pool can be created");
        bench.create_filesystems("p", &["f", "g"]).expect("the filesystems can be created");
        bench
    }

    /// An engine before its discovery.
    pub fn without_discovery(sim: Sim) -> Bench {
        // A new engine means that the former process, if any, has ended.
        sim.end_process();
        let engine = Engine::new(Arc::new(sim.clone()));
        Bench { sim, engine, pools: Pools::default(), stopped: RefCell::default() }
    }

    /// Runs a chain to its end. A panic has the same consequences as in the daemon.
    ///
    /// # Panics
    /// If the chain panics, or takes more than [`STEPS_MAX`] steps.
    pub fn run<T: 'static>(&mut self, next: Step<T>) -> T {
        self.sim.faults().panic_after(Some(STEPS_MAX));
        let done = self.pools.run(&self.engine, watched(next, self.sim.clone()));
        self.sim.faults().panic_after(None);
        done
    }

    /// A pool by name.
    pub fn pool(&self, name: &str) -> Option<Arc<view::PoolView>> {
        self.pools.0.values().find(|pool| pool.name().as_str() == name).map(Pool::view)
    }

    /// UUID of an existing pool.
    pub fn id(&self, name: &str) -> PoolUuid {
        self.pool(name).unwrap_or_else(|| panic!("no pool {name}")).uuid
    }

    /// The stopped pools.
    pub fn stopped(&self) -> Arc<view::StoppedPoolsView> {
        if let Some(stopped) = self.engine.take_stopped_change() {
            self.stopped.replace(stopped);
        }
        Arc::clone(&self.stopped.borrow())
    }

    /// A stopped pool, by name.
    pub fn stopped_pool(&self, name: &str) -> Option<view::StoppedPoolView> {
        let named =
            |pool: &&Arc<view::StoppedPoolView>| pool.name.as_ref().is_some_and(|of_pool| of_pool.as_str() == name);
        self.stopped().list().iter().find(named).map(|pool| (**pool).clone())
    }

    /// Stops a pool.
    pub fn stop_pool(&mut self, pool: &str) -> Result<StopOutcome> {
        self.run(ops::stop_pool(PoolRef::Name(name(pool))))
    }

    /// Starts a pool that is not encrypted.
    pub fn start_pool(&mut self, pool: &str) -> Result<bool> {
        let started = ops::start_pool(PoolRef::Name(name(pool)), UnlockOptions::default(), CacheTier::Keep);
        self.run(started).map(|started| started.is_some())
    }

    /// Checks all pools, as the daemon does periodically.
    pub fn check_pools(&mut self) {
        for pool in self.names() {
            self.run(ops::check_pool(self.id(&pool)));
        }
    }

    /// Cuts the power, boots and starts a daemon.
    pub fn reboot(self) -> Bench {
        self.sim.cut_power();
        self.sim.power_on();
        Bench::start(self.sim)
    }

    /// Writes and flushes a mark in a filesystem.
    pub fn mark(&self, pool: &str, name: &str, mark: u8) {
        let node = self.thin_node(self.id(pool), self.filesystem(pool, name));
        self.sim.write(&node, &[WriteStep::At(MARK_AT, &[mark; 512]), WriteStep::Flush]).expect("the machine runs");
    }

    /// The mark in a filesystem.
    pub fn mark_of(&self, pool: PoolUuid, filesystem: FsUuid) -> u8 {
        self.sim.read(&self.thin_node(pool, filesystem), MARK_AT, 512).expect("the machine runs")[0]
    }

    /// Names of the running pools.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.pools.0.values().map(|pool| pool.name().to_string()).collect();
        names.sort();
        names
    }

    /// UUID of an existing filesystem.
    pub fn filesystem(&self, pool: &str, name: &str) -> FsUuid {
        let pool = self.pool(pool).unwrap_or_else(|| panic!("no pool {pool}"));
        let found = pool.filesystems.values().find(|filesystem| filesystem.name.as_str() == name);
        found.unwrap_or_else(|| panic!("no filesystem {name}")).uuid
    }

    /// UUID of an existing device.
    pub fn device(&self, pool: &str, path: &str) -> DevUuid {
        let pool = self.pool(pool).unwrap_or_else(|| panic!("no pool {pool}"));
        let found = pool.devices.values().find(|device| device.node == Path::new(path));
        found.unwrap_or_else(|| panic!("no device {path}")).uuid
    }

    /// The node of a filesystem.
    pub fn thin_node(&self, pool: PoolUuid, filesystem: FsUuid) -> PathBuf {
        self.sim.dm_node(&dm_names::filesystem(pool, filesystem))
    }

    /// Mounts a filesystem as a user would.
    pub fn mount(&self, pool: &str, name: &str) {
        let node = self.thin_node(self.id(pool), self.filesystem(pool, name));
        self.sim.mount_user(&node, &Path::new("/mnt").join(name)).expect("a filesystem can be mounted");
    }

    /// Whether the link of a filesystem leads to its device.
    pub fn is_linked(&self, pool: &str, filesystem: &view::FilesystemView) -> bool {
        let device = self.sim.dm_find(&dm_names::filesystem(self.id(pool), filesystem.uuid)).expect("the machine runs");
        let link = filesystem.name.link_in(&name(pool));
        device.is_some_and(|device| self.sim.link(&link) == Some(device.number))
    }

    /// Checks that the machine has what the running pools need, what the view shows as active in
    /// stopped pools, and nothing else.
    pub fn check_nothing_left(&self, at: &str) {
        let mut devices: Vec<String> = Vec::new();
        let mut mounts: Vec<String> = Vec::new();
        for pool in self.pools.0.values().map(Pool::view) {
            use dm_names::Role::{Cache, CacheMeta, CacheSub, Crypt, Mdv, OriginSub, ThinData, ThinMeta, ThinPool};
            let roles = [OriginSub, CacheMeta, CacheSub, Cache, Crypt, Mdv, ThinData, ThinMeta, ThinPool];
            let roles = roles.into_iter().filter(|role| match role {
                CacheMeta | CacheSub => pool.has_cache,
                Cache => pool.has_cache || pool.metadata_version == 2,
                Crypt => pool.encryption.is_some() && pool.metadata_version == 2,
                _ => true,
            });
            devices.extend(roles.map(|role| role.name(pool.uuid)));
            if pool.encryption.is_some() && pool.metadata_version == 1 {
                devices.extend(pool.devices.keys().map(|id| dm_names::opened_device(*id)));
            }
            devices.extend(pool.filesystems.keys().map(|id| dm_names::filesystem(pool.uuid, *id)));
            mounts.push(format!(".mdv-{}", pool.uuid.simple()));
            let thin = self.sim.thin_ids(&ThinPool.name(pool.uuid)).expect("the thin pool runs");
            assert_eq!(thin.len(), pool.filesystems.len(), "{at}: thin devices {thin:?} of pool {}", pool.name);
            let mut journal =
                self.sim.list_files(&format!(".mdv-{}/pending", pool.uuid.simple())).expect("the MDV is mounted");
            // The temporary file of an interrupted write is never read, and the next set-up removes
            // it.
            journal.retain(|file| !file.ends_with(".temp"));
            assert!(journal.is_empty(), "{at}: entries left in the journal of pool {}: {journal:?}", pool.name);
            for (id, filesystem) in &pool.filesystems {
                let written = self.sim.xfs_uuid(&self.thin_node(pool.uuid, *id)).map(FsUuid::from);
                assert_eq!(written, Some(*id), "{at}: UUID of the XFS of {}", filesystem.name);
            }
        }
        devices.sort();
        let stopped = self.stopped();
        let partial = |uuid: PoolUuid| stopped.list().iter().any(|pool| pool.uuid == uuid && pool.partial);
        let listed = self.sim.dm_list().expect("the machine runs").into_iter().map(|dm| dm.name);
        let mut found: Vec<String> = listed.filter(|name| !dm_names::pool_of(name).is_some_and(partial)).collect();
        found.sort();
        assert_eq!(found, devices, "{at}: device-mapper devices");
        for name in &found {
            let device = self.sim.dm_find(name).expect("the machine runs").expect("it was just listed");
            assert!(!device.suspended, "{at}: {name} is left suspended");
        }
        let mut mounted = self
            .sim
            .leftovers()
            .mounts
            .iter()
            .filter_map(|path| path.strip_prefix(Sim::private_directory()).ok().map(|name| name.display().to_string()))
            .collect::<Vec<_>>();
        mounted.retain(|at| !at.strip_prefix(".mdv-").and_then(|uuid| uuid.parse().ok()).is_some_and(partial));
        mounted.sort();
        mounts.sort();
        assert_eq!(mounted, mounts, "{at}: mounts");
    }

    /// The steps taken since step `from`, for a message.
    pub fn tail(&self, from: u64) -> String {
        let trace = self.sim.trace();
        let from = usize::try_from(from).expect("step numbers are small");
        trace
            .iter()
            .skip(from)
            .enumerate()
            .map(|(i, step)| format!("  {i}: {:?} {}\n", step.call, step.subject))
            .collect()
    }

    /// Creates a version 2 pool with default integrity settings.
    pub fn create_pool(&mut self, pool: &str, devices: &[&str]) -> Result<bool> {
        self.create_pool_of(MetadataVersion::V2, pool, devices)
    }

    /// Creates a pool of either version.
    pub fn create_pool_of(&mut self, version: MetadataVersion, pool: &str, devices: &[&str]) -> Result<bool> {
        let devices = devices.iter().map(PathBuf::from).collect();
        let integrity = IntegritySpec::default();
        let created =
            self.run(ops::create_pool(NewPool { name: name(pool), devices, integrity, version, bindings: Vec::new() }));
        created.map(|created| created.is_some())
    }

    /// Creates filesystems of the default size.
    pub fn create_filesystems(&mut self, pool: &str, names: &[&str]) -> Result<usize> {
        let new = names.iter().map(|n| NewFilesystem { name: name(n), size: Some(GIB), size_limit: None }).collect();
        let created = self.run(ops::create_filesystems(self.id(pool), new));
        created.map(|created| created.len())
    }
}

/// A valid name.
pub fn name(text: &str) -> Name {
    Name::new(text).expect("names in tests are valid")
}

/// 1 GiB.
pub const GIB: Sectors = Sectors(2 << 20);

/// Adds a check to each step of the chain that runs under a lock: such a step must make no slow
/// call.
fn watched<T: 'static>(next: Step<T>, sim: Sim) -> Step<T> {
    match next {
        Step::Done(value) => Step::Done(value),
        Step::Locked(access, step) => {
            let label = format!("{access:?}");
            let has_table = matches!(access, Access::Table(_));
            Step::Locked(
                access,
                Box::new(move |engine, granted| {
                    let (before, announced) = (sim.slow_calls(), sim.announcements());
                    let next = step(engine, granted);
                    assert_eq!(sim.slow_calls(), before, "something slow was done under {label}");
                    // Announcing each of 10,000 renamed filesystems to udev delayed all pools.
                    assert!(!has_table || sim.announcements() == announced, "udev was told of names under {label}");
                    watched(next, sim)
                }),
            )
        }
        Step::Blocking(pace, step) => Step::Blocking(pace, Box::new(move |engine| watched(step(engine), sim))),
        Step::Linked(links, limit, step) => {
            Step::Linked(links, limit, Box::new(move |engine, missing| watched(step(engine, missing), sim)))
        }
        Step::Background(step) => Step::Background(Box::new(move |engine| watched(step(engine), sim))),
        Step::Parallel(parts, join) => {
            Step::Parallel(parts, Box::new(move |engine, results| watched(join(engine, results), sim)))
        }
        Step::Parked(wait, next) => Step::Parked(wait, Box::new(watched(*next, sim))),
    }
}
