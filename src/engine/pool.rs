//! A running pool.
use std::sync::Arc;

use crate::{
    engine::{ids::PoolUuid, name::Name},
    view,
};

/// A running pool: its storage stack, its filesystems, and what clients see of it.
pub struct Pool {}

impl Pool {
    /// Its identifier.
    pub fn uuid(&self) -> PoolUuid {
        unimplemented!()
    }
    /// Its name.
    pub fn name(&self) -> &Name {
        unimplemented!()
    }
    /// What clients see of it now.
    pub fn view(&self) -> Arc<view::Pool> {
        unimplemented!()
    }
    /// What clients see of it, if that changed since this was last called.
    pub fn take_change(&mut self) -> Option<Arc<view::Pool>> {
        unimplemented!()
    }
    /// Allow nothing more: the state in memory may not be that of the machine (a step panicked).
    pub fn restrict(&mut self, _availability: view::Availability, _reason: impl Into<String>) {
        unimplemented!()
    }
}
