//! Ways to unlock a pool: added, removed, replaced (`spec/engine/encryption.md` §7).

use crate::engine::{error::Result, ids::PoolUuid, request::Next};

/// x
pub fn load_volume_key(_uuid: PoolUuid) -> Next<()> {
    Next::Done(())
}
/// x
pub fn bind(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
/// x
pub fn rebind(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
/// x
pub fn unbind(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
