//! The steps of a re-encryption job: one hot zone after the other, until the job is complete or
//! must stop. This module knows neither which job it is nor why it stops.

use std::ffi::{c_int, c_void};

use libcryptsetup_rs::{
    CryptParamsReencrypt, LibcryptErr,
    consts::{
        flags::CryptReencrypt,
        vals::{CryptReencryptDirectionInfo, CryptReencryptModeInfo},
    },
};

use super::device::{LoadedLuksDevice, luks2_parameters};
use crate::{
    base::units::{Bytes, Sectors},
    platform::luks::Progress,
};

/// Resilience of a step: the method and its hash.
const RESILIENCE: (&str, &str) = ("checksum", "sha256");

/// Parameters of a job. `hot_zone_max` limits a step; with 0 the library chooses.
pub(super) fn parameters(
    mode: CryptReencryptModeInfo,
    sector_size: u32,
    hot_zone_max: Sectors,
    flags: CryptReencrypt,
) -> CryptParamsReencrypt {
    CryptParamsReencrypt {
        mode,
        direction: CryptReencryptDirectionInfo::Forward,
        resilience: RESILIENCE.0.to_owned(),
        hash: RESILIENCE.1.to_owned(),
        data_shift: 0,
        max_hotzone_size: hot_zone_max.0,
        device_size: 0,
        luks2: Some(luks2_parameters(sector_size)),
        flags,
    }
}

/// Called between steps; returns `true` to stop.
type IsToStop<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// Runs the steps of a job that the library has been initialized for.
#[allow(unsafe_code)]
pub(super) fn steps(luks: &mut LoadedLuksDevice, mut is_to_stop: IsToStop<'_>) -> Result<(), LibcryptErr> {
    extern "C" fn between(total: u64, done: u64, is_to_stop: *mut c_void) -> c_int {
        // SAFETY: the library passes on the pointer that it gets below. It points to a closure that
        // lives until the library returns and that nothing else uses meanwhile. The library calls
        // in the same thread.
        let is_to_stop = unsafe { &mut *is_to_stop.cast::<IsToStop<'_>>() };
        c_int::from(is_to_stop(Progress { done: Bytes(done.into()), total: Bytes(total.into()) }))
    }
    luks.library.reencrypt_handle().reencrypt2(Some(between), Some(&mut is_to_stop))
}
