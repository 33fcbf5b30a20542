//! LUKS2 containers: being built.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::Sim;
use crate::{
    engine::units::Sectors,
    platform::{
        Error, Result,
        keyring::Secret,
        luks::{Begin, Ended, Header, HeaderChange, Layout, NewKeyslot, Progress, Purpose, Unlock},
    },
};

pub(super) fn read(_sim: &Sim, device: &Path) -> Result<Option<Header>> {
    missing(device)
}

pub(super) fn format(
    _sim: &Sim,
    device: &Path,
    _layout: &Layout,
    _purpose: Purpose,
    _keyslots: &[NewKeyslot<'_>],
    _tokens: &BTreeMap<u32, Value>,
) -> Result<Header> {
    missing(device)
}

pub(super) fn change(
    _sim: &Sim,
    device: &Path,
    _unlock: Option<Unlock<'_>>,
    _changes: &[HeaderChange<'_>],
) -> Result<Header> {
    missing(device)
}

pub(super) fn open(_sim: &Sim, device: &Path, _name: Option<&str>, _unlock: Unlock<'_>) -> Result<Secret> {
    missing(device)
}

pub(super) fn reopen(_sim: &Sim, device: &Path, _name: &str, _volume_key: &Secret) -> Result<()> {
    missing(device)
}

pub(super) fn resize(
    _sim: &Sim,
    device: &Path,
    _name: &str,
    _volume_key: &Secret,
    _size: Option<Sectors>,
) -> Result<()> {
    missing(device)
}

pub(super) fn reencrypt(
    _sim: &Sim,
    device: &Path,
    _name: &str,
    _unlock: Unlock<'_>,
    _begin: Begin,
    _watch: &(dyn Fn(Progress) -> bool + Sync),
) -> Result<Ended> {
    missing(device)
}

fn missing<T>(device: &Path) -> Result<T> {
    Err(Error::Missing(format!("LUKS2 on {} is not there yet", device.display())))
}
