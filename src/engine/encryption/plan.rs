//! Decides what a request to bind, unbind or rebind does, by the tables of
//! `docs/spec/engine/encryption.md` §7.1 and 7.2. Whether keys and servers are available becomes
//! known only when the plan is carried out.
//!
//! The two metadata versions differ in the token of a new binding, in which slots may be named, and
//! in that version 1 checks whether an existing binding works.

use super::{BINDINGS_MAX, BindRequest, Binding, EncryptionError, Info, Kind, Mechanism, Result};
use crate::{
    engine::{encryption::KeyDescription, metadata::MetadataVersion},
    platform::luks::NUMBERS,
};

/// The token slot that a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotRequest {
    /// The slot for clients that know one binding of each kind.
    Legacy,
    /// Any suitable slot.
    Free,
    /// The slot with this number.
    Id(u32),
}

/// What replaces a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebindRequest {
    /// A binding to this passphrase.
    Keyring(KeyDescription),
    /// A binding to the same servers and TPM, encrypted again.
    Clevis,
}

impl RebindRequest {
    /// The kind of the binding.
    pub fn kind(&self) -> Kind {
        match self {
            RebindRequest::Keyring(_) => Kind::Keyring,
            RebindRequest::Clevis => Kind::Clevis,
        }
    }
}

/// The planned change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindingPlan {
    /// No change: the request is already fulfilled.
    Identity,
    /// No change if this binding opens the first device; otherwise an error.
    IdentityIfOpened(Binding),
    /// Add a binding.
    Add {
        /// Its token.
        token: u32,
    },
    /// Remove this binding. In version 1 the other devices have different bindings with this token.
    Remove(Binding),
    /// Replace this binding and keep its token.
    Replace(Binding),
}

/// Plans to add a binding.
///
/// # Errors
/// If another binding is in its place, or there is no free token.
pub fn plan_bind(info: &Info, request: &BindRequest, slot: SlotRequest) -> Result<BindingPlan> {
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
            MetadataVersion::V1 => BindingPlan::IdentityIfOpened(binding.clone()),
            MetadataVersion::V2 => BindingPlan::Identity,
        }),
        Some(binding) => {
            Err(EncryptionError::BoundOtherwise { bound: binding.to_string(), asked: request.to_string() })
        }
        None => Ok(BindingPlan::Add { token: new_token(info, request.kind(), slot)? }),
    }
}

/// Plans to remove a binding.
///
/// # Errors
/// If it is the last one, or the slot holds another kind of token.
pub fn plan_unbind(info: &Info, kind: Kind, slot: SlotRequest) -> Result<BindingPlan> {
    let slot = match admissible(info, slot) {
        // A slot that does not exist counts as empty.
        Err(EncryptionError::NoSuchSlot(_)) => slot,
        slot => slot?,
    };
    let binding = find(info, kind, slot)?;
    let is_last = info.agreed()?.count() < 2;
    match binding {
        None if info.version() == MetadataVersion::V1 => Ok(BindingPlan::Identity),
        // Clients of version 2 get this error even if there is nothing to unbind.
        _ if is_last => Err(EncryptionError::LastBinding),
        None => Ok(BindingPlan::Identity),
        Some(binding) => Ok(BindingPlan::Remove(binding.clone())),
    }
}

/// Plans to replace a binding.
///
/// # Errors
/// If there is no binding to replace.
pub fn plan_rebind(info: &Info, request: &RebindRequest, slot: SlotRequest) -> Result<BindingPlan> {
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
        (RebindRequest::Keyring(asked), Mechanism::Keyring(bound)) if asked == bound => Ok(BindingPlan::Identity),
        _ => Ok(BindingPlan::Replace(binding.clone())),
    }
}

/// In version 1 the slots are fixed.
fn admissible(info: &Info, slot: SlotRequest) -> Result<SlotRequest> {
    match (info.version(), slot) {
        (MetadataVersion::V1, SlotRequest::Id(_)) => Err(EncryptionError::SlotsNeedVersion2),
        (MetadataVersion::V1, _) => Ok(SlotRequest::Legacy),
        (MetadataVersion::V2, SlotRequest::Id(token)) if token >= NUMBERS => Err(EncryptionError::NoSuchSlot(token)),
        (MetadataVersion::V2, slot) => Ok(slot),
    }
}

/// The binding in that slot. If no slot is named, the lowest one of its kind.
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
        // Clients that know one binding of each kind look for it there.
        (MetadataVersion::V2, SlotRequest::Legacy) if !info.agreed()?.is_taken(kind.fixed_token()) => {
            Ok(kind.fixed_token())
        }
        (MetadataVersion::V2, _) => info.agreed()?.free_token().ok_or(EncryptionError::Full),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
