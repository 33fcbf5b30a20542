//! A bench for the engine: one engine on a simulated machine, its chains of steps run in a plain loop.
//!
//! No threads and no locks: what is proved here is what the operations do to disks and kernel, step by step.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use stratisd::{
    engine::{
        Engine, Result,
        ids::PoolUuid,
        metadata::{IntegritySpec, MetadataVersion},
        name::Name,
        ops::{self, NewFilesystem, NewPool},
        pool::Pool,
        request::{Access, Granted, Mode, Next, PoolRef, Table},
        units::Sectors,
    },
    platform::sim::Sim,
    view,
};

/// The running pools.
#[derive(Default)]
pub struct Pools(pub HashMap<PoolUuid, Pool>);

impl Pools {
    fn resolve(&self, which: &PoolRef) -> Option<PoolUuid> {
        match which {
            PoolRef::Uuid(uuid) => self.0.contains_key(uuid).then_some(*uuid),
            PoolRef::Name(name) => self.0.values().find(|pool| pool.name() == name).map(Pool::uuid),
        }
    }
}

impl Table for Pools {
    fn list(&self) -> Vec<(PoolUuid, Name)> {
        self.0.values().map(|pool| (pool.uuid(), pool.name().clone())).collect()
    }

    fn pool(&self, which: &PoolRef) -> Option<&Pool> {
        self.0.get(&self.resolve(which)?)
    }

    fn insert(&mut self, pool: Pool) -> std::result::Result<(), Pool> {
        if self.resolve(&PoolRef::Name(pool.name().clone())).is_some() || self.0.contains_key(&pool.uuid()) {
            return Err(pool);
        }
        self.0.insert(pool.uuid(), pool);
        Ok(())
    }

    fn remove(&mut self, uuid: PoolUuid) -> Option<Pool> {
        self.0.remove(&uuid)
    }

    fn rename(&mut self, uuid: PoolUuid, _name: Name) -> Option<&mut Pool> {
        self.0.get_mut(&uuid)
    }
}

/// An engine on a simulated machine.
pub struct Bench {
    /// The machine.
    pub sim: Arc<Sim>,
    /// The engine that runs on it.
    pub engine: Engine,
    /// The running pools.
    pub pools: Pools,
}

impl Bench {
    /// Starts an engine on the machine and lets it find its pools, as a daemon does.
    pub fn start(sim: Arc<Sim>) -> Bench {
        let engine = Engine::new(Arc::clone(&sim) as Arc<_>);
        let mut bench = Bench { sim, engine, pools: Pools::default() };
        for chain in ops::discover(&bench.engine).expect("devices can be listed") {
            bench.run(chain);
        }
        bench
    }

    /// Runs a chain to its end.
    pub fn run<T>(&mut self, mut next: Next<T>) -> T {
        loop {
            next = match next {
                Next::Done(value) => return value,
                Next::Act(step) => step(&self.engine),
                Next::Together(parts, join) => {
                    let results = parts.into_iter().map(|part| Some(part(&self.engine))).collect();
                    join(&self.engine, results)
                }
                Next::Under(Access::Table(_), step) => step(&self.engine, Granted::Table(&mut self.pools)),
                Next::Under(Access::Pool(which, mode), step) => {
                    let uuid = self.pools.resolve(&which);
                    match (uuid.and_then(|uuid| self.pools.0.get_mut(&uuid)), mode) {
                        (None, _) => step(&self.engine, Granted::NoPool),
                        (Some(pool), Mode::Shared) => step(&self.engine, Granted::Read(pool)),
                        (Some(pool), Mode::Exclusive) => step(&self.engine, Granted::Write(pool)),
                    }
                }
                Next::Parked(_) => panic!("a request waits for a claim, but no other request is under way"),
            };
        }
    }

    /// A pool by name.
    pub fn pool(&self, name: &str) -> Option<Arc<view::Pool>> {
        self.pools.0.values().find(|pool| pool.name().as_str() == name).map(Pool::view)
    }

    /// Identifier of a pool that is there.
    pub fn id(&self, name: &str) -> PoolUuid {
        self.pool(name).unwrap_or_else(|| panic!("no pool {name}")).uuid
    }

    /// Creates a version 2 pool with default integrity settings.
    pub fn create_pool(&mut self, pool: &str, devices: &[&str]) -> Result<bool> {
        self.create_pool_of(MetadataVersion::V2, pool, devices)
    }

    /// Creates a pool of either version.
    pub fn create_pool_of(&mut self, version: MetadataVersion, pool: &str, devices: &[&str]) -> Result<bool> {
        let devices = devices.iter().map(PathBuf::from).collect();
        let integrity = IntegritySpec::default();
        let created = self.run(ops::create_pool(NewPool { name: name(pool), devices, integrity, version }));
        created.map(|created| created.is_some())
    }

    /// Creates filesystems of the default size.
    pub fn create_filesystems(&mut self, pool: &str, names: &[&str]) -> Result<usize> {
        let new = names.iter().map(|n| NewFilesystem { name: name(n), size: Some(GIB), size_limit: None }).collect();
        let created = self.run(ops::create_filesystems(self.id(pool), new));
        created.map(|created| created.len())
    }
}

/// A name that is valid.
pub fn name(text: &str) -> Name {
    Name::new(text).expect("names in tests are valid")
}

/// 1 GiB.
pub const GIB: Sectors = Sectors(2 << 20);
