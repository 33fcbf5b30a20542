//! Work on the data of a container: being built.

use std::path::Path;

use super::{
    Sim,
    faults::LuksCall,
    luks::{Container, Keys, Loaded},
};
use crate::platform::{
    Result,
    luks::{Begin, Ended, Progress, Unlock},
};

pub(super) fn reencrypt(
    sim: &Sim,
    device: &Path,
    _name: &str,
    _unlock: Unlock<'_>,
    _begin: Begin,
    _watch: &(dyn Fn(Progress) -> bool + Sync),
) -> Result<Ended> {
    Err(Container::at(sim, device)?.refused(LuksCall::Reencrypt, "it is not there yet"))
}

impl Container<'_> {
    pub(super) fn recover(&self, _loaded: &mut Loaded, _keys: &Keys) -> Result<()> {
        Err(self.refused(LuksCall::Open, "it is not there yet"))
    }
}
