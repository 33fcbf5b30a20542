//! Ways to unlock a pool: added, removed, replaced (`spec/engine/encryption.md` §7).

use crate::engine::{
    encryption::{BindRequest, Kind, RebindRequest, SlotRequest},
    error::{Error, Result},
    ids::PoolUuid,
    request::Next,
};

/// x
pub fn load_volume_key(_uuid: PoolUuid) -> Next<()> {
    Next::Done(())
}
/// Adds a way to unlock a pool. `false`: it is there already.
pub fn bind(pool: PoolUuid, _request: BindRequest, _slot: SlotRequest) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
/// Replaces a way to unlock a pool. `false`: it is so already.
pub fn rebind(pool: PoolUuid, _request: RebindRequest, _slot: SlotRequest) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
/// Removes a way to unlock a pool. `false`: there is none.
pub fn unbind(pool: PoolUuid, _kind: Kind, _slot: SlotRequest) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
