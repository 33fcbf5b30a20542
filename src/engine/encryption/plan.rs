//! What a request to bind, unbind or rebind comes to, as the tables of `docs/spec/engine/encryption.md` §7.1 and 7.2 say. Decides
//! only; whether keys and servers are there shows when the plan is carried out.
//!
//! The two metadata versions differ in which token a new binding gets, in which slots may be named, and in that version 1
//! wants to see that a binding that is there works.

use super::{BINDINGS_MAX, BindRequest, Binding, EncryptionError, Info, Kind, Mechanism, Result};
use crate::{
    engine::{encryption::KeyDescription, metadata::MetadataVersion},
    platform::luks::NUMBERS,
};

/// Which token slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotRequest {
    /// That of clients that know one binding of each kind.
    Legacy,
    /// Whichever is right.
    Free,
    /// This one.
    Id(u32),
}

/// What a binding is to be replaced by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebindRequest {
    /// By one to this passphrase.
    Keyring(KeyDescription),
    /// By one to the same servers and TPM, encrypted anew.
    Clevis,
}

impl RebindRequest {
    /// Of which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            RebindRequest::Keyring(_) => Kind::Keyring,
            RebindRequest::Clevis => Kind::Clevis,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: it is so already.
    Identity,
    /// Nothing, if this binding opens the first device; otherwise it is an error.
    IdentityIfOpened(Binding),
    /// A new binding.
    Add {
        /// Its token.
        token: u32,
    },
    /// This one is to go. In version 1 others have its token on the other devices.
    Remove(Binding),
    /// This one is to be replaced, and to keep its token.
    Replace(Binding),
}

/// Adds a binding.
///
/// # Errors
/// If another is in its place, or there is no room.
pub fn plan_bind(info: &Info, request: &BindRequest, slot: SlotRequest) -> Result<Plan> {
    let slot = admissible(info, slot)?;
    request.check()?;
    let bindings = info.agreed()?;
    if bindings.count() >= BINDINGS_MAX {
        return Err(EncryptionError::Full);
    }
    let there = match (slot, request) {
        (SlotRequest::Id(_) | SlotRequest::Legacy, _) => find(info, request.kind(), slot)?,
        (SlotRequest::Free, BindRequest::Keyring(_)) => {
            bindings.iter().find(|binding| request.is_met_by(&binding.mechanism))
        }
        (SlotRequest::Free, BindRequest::Clevis(_)) => None,
    };
    match there {
        Some(binding) if request.is_met_by(&binding.mechanism) => Ok(match info.version() {
            MetadataVersion::V1 => Plan::IdentityIfOpened(binding.clone()),
            MetadataVersion::V2 => Plan::Identity,
        }),
        Some(binding) => {
            Err(EncryptionError::BoundOtherwise { bound: binding.to_string(), asked: request.to_string() })
        }
        None => Ok(Plan::Add { token: new_token(info, request.kind(), slot)? }),
    }
}

/// Removes a binding.
///
/// # Errors
/// If it is the last one, or the slot holds something else.
pub fn plan_unbind(info: &Info, kind: Kind, slot: SlotRequest) -> Result<Plan> {
    let slot = match admissible(info, slot) {
        // There is nothing in a slot that there is not.
        Err(EncryptionError::NoSuchSlot(_)) => slot,
        slot => slot?,
    };
    let binding = find(info, kind, slot)?;
    let is_last = info.agreed()?.count() < 2;
    match binding {
        None if info.version() == MetadataVersion::V1 => Ok(Plan::Identity),
        // Clients of version 2 are told also where there is nothing to unbind.
        _ if is_last => Err(EncryptionError::LastBinding),
        None => Ok(Plan::Identity),
        Some(binding) => Ok(Plan::Remove(binding.clone())),
    }
}

/// Replaces a binding.
///
/// # Errors
/// If there is none to be replaced.
pub fn plan_rebind(info: &Info, request: &RebindRequest, slot: SlotRequest) -> Result<Plan> {
    let slot = admissible(info, slot)?;
    if let RebindRequest::Keyring(description) = request {
        BindRequest::Keyring(description.clone()).check()?;
    }
    let kind = request.kind();
    let binding = find(info, kind, slot)?.ok_or(match slot {
        SlotRequest::Id(token) => EncryptionError::EmptySlot(token),
        SlotRequest::Legacy | SlotRequest::Free => EncryptionError::NoSource(kind),
    })?;
    match (request, &binding.mechanism) {
        (RebindRequest::Keyring(asked), Mechanism::Keyring(bound)) if asked == bound => Ok(Plan::Identity),
        _ => Ok(Plan::Replace(binding.clone())),
    }
}

/// In version 1 the slots are what they are.
fn admissible(info: &Info, slot: SlotRequest) -> Result<SlotRequest> {
    match (info.version(), slot) {
        (MetadataVersion::V1, SlotRequest::Id(_)) => Err(EncryptionError::SlotsNeedVersion2),
        (MetadataVersion::V1, _) => Ok(SlotRequest::Legacy),
        (MetadataVersion::V2, SlotRequest::Id(token)) if token >= NUMBERS => Err(EncryptionError::NoSuchSlot(token)),
        (MetadataVersion::V2, slot) => Ok(slot),
    }
}

/// The binding in that slot; without one, the lowest of its kind.
fn find(info: &Info, kind: Kind, slot: SlotRequest) -> Result<Option<&Binding>> {
    let bindings = info.agreed()?;
    let SlotRequest::Id(token) = slot else { return Ok(bindings.lowest(kind)) };
    match bindings.get(token) {
        Some(binding) if binding.kind() == kind => Ok(Some(binding)),
        Some(binding) => Err(EncryptionError::OtherKind { token, bound: binding.kind(), asked: kind }),
        None if bindings.is_taken(token) => Err(EncryptionError::Foreign(token)),
        None => Ok(None),
    }
}

fn new_token(info: &Info, kind: Kind, slot: SlotRequest) -> Result<u32> {
    match (info.version(), slot) {
        (MetadataVersion::V1, _) => Ok(kind.fixed_token()),
        (MetadataVersion::V2, SlotRequest::Id(token)) => Ok(token),
        // Those who know one binding of each kind look for it there.
        (MetadataVersion::V2, SlotRequest::Legacy) if !info.agreed()?.is_taken(kind.fixed_token()) => {
            Ok(kind.fixed_token())
        }
        (MetadataVersion::V2, _) => info.agreed()?.free_token().ok_or(EncryptionError::Full),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
