//! online
use crate::engine::{
    encryption::NewBinding,
    error::{Error, Result},
    ids::PoolUuid,
    request::Next,
};
/// x
pub fn resume(_uuid: PoolUuid) -> Next<()> {
    Next::Done(())
}
/// Encrypts a pool. `false`: it is encrypted.
pub fn encrypt_pool(pool: PoolUuid, _bindings: Vec<NewBinding>) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
/// Gives a pool a new volume key.
pub fn reencrypt_pool(pool: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
/// Decrypts a pool. `false`: it is not encrypted.
pub fn decrypt_pool(pool: PoolUuid) -> Next<Result<bool>> {
    Next::Done(Err(Error::NoPool(pool)))
}
