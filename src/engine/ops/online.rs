//! online
use crate::engine::{error::Result, ids::PoolUuid, request::Next};
/// x
pub fn resume(_uuid: PoolUuid) -> Next<()> {
    Next::Done(())
}
/// x
pub fn encrypt_pool(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
/// x
pub fn reencrypt_pool(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
/// x
pub fn decrypt_pool(_uuid: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Ok(false))
}
