//! The tables of `docs/spec/engine/encryption.md` §7.1 and 7.2, row by row.

use serde_json::json;

use super::*;
use crate::engine::encryption::{Bindings, ClevisRequest, EncryptionError as E};

const LEGACY: SlotRequest = SlotRequest::Legacy;
const FREE: SlotRequest = SlotRequest::Free;

fn id(token: u32) -> SlotRequest {
    SlotRequest::Id(token)
}

fn description(text: &str) -> KeyDescription {
    KeyDescription::new(text).unwrap()
}

fn key(token: u32, text: &str) -> Binding {
    Binding { token, keyslot: token, next: None, mechanism: Mechanism::Keyring(description(text)) }
}

fn bound(token: u32, pin: &str) -> Binding {
    let mechanism = Mechanism::Clevis { jwe: json!({}), pin: pin.to_owned(), config: json!({}) };
    Binding { token, keyslot: token, next: None, mechanism }
}

fn bindings(list: Vec<Binding>, foreign: &[u32]) -> Bindings {
    let taken = list.iter().map(|binding| binding.token).chain(foreign.iter().copied()).collect();
    Bindings::new(list, taken)
}

fn v1(list: Vec<Binding>) -> Info {
    Info::of_devices([Some(&bindings(list, &[0]))]).unwrap().unwrap()
}

fn v2(list: Vec<Binding>) -> Info {
    Info::of_pool(bindings(list, &[]))
}

/// Keys in 1 and 5, Clevis in 2 and 3, a token that is no binding in 0.
fn several() -> Info {
    Info::of_pool(bindings(vec![key(5, "b"), key(1, "a"), bound(2, "tang"), bound(3, "tpm2")], &[0]))
}

fn full() -> Info {
    v2((0..15).map(|token| if token == 2 { bound(2, "tpm2") } else { key(token, "k") }).collect())
}

fn bind_key(info: &Info, text: &str, slot: SlotRequest) -> Result<BindingPlan> {
    plan_bind(info, &BindRequest::Keyring(description(text)), slot)
}

fn bind_pin(info: &Info, pin: &str, slot: SlotRequest) -> Result<BindingPlan> {
    let request = ClevisRequest { pin: pin.to_owned(), config: json!({}), trust: true };
    plan_bind(info, &BindRequest::Clevis(request), slot)
}

fn rebind_key(info: &Info, text: &str, slot: SlotRequest) -> Result<BindingPlan> {
    plan_rebind(info, &RebindRequest::Keyring(description(text)), slot)
}

fn rebind_clevis(info: &Info, slot: SlotRequest) -> Result<BindingPlan> {
    plan_rebind(info, &RebindRequest::Clevis, slot)
}

macro_rules! plans {
    ($plan:expr, $expected:pat $(if $guard:expr)?) => {
        let plan = $plan;
        assert!(matches!(&plan, $expected $(if $guard)?), "{plan:?}");
    };
}

/// The token of the binding that is removed or replaced.
macro_rules! concerns {
    ($plan:expr, $variant:ident, $token:expr) => {
        plans!($plan, Ok(BindingPlan::$variant(binding)) if binding.token == $token);
    };
}

#[test]
fn version_1_bind() {
    let (k, c, both) = (v1(vec![key(1, "a")]), v1(vec![bound(2, "tang")]), v1(vec![key(1, "a"), bound(2, "tang")]));
    for slot in [LEGACY, FREE] {
        plans!(bind_pin(&k, "tang", slot), Ok(BindingPlan::Add { token: 2 }));
        plans!(bind_key(&c, "a", slot), Ok(BindingPlan::Add { token: 1 }));
        concerns!(bind_pin(&both, "tang", slot), IdentityIfOpened, 2);
        concerns!(bind_key(&both, "a", slot), IdentityIfOpened, 1);
        plans!(bind_pin(&both, "tpm2", slot), Err(E::BoundOtherwise { .. }));
        plans!(bind_key(&both, "b", slot), Err(E::BoundOtherwise { .. }));
    }
}

#[test]
fn version_1_unbind_and_rebind() {
    let (k, c, both) = (v1(vec![key(1, "a")]), v1(vec![bound(2, "tang")]), v1(vec![key(1, "a"), bound(2, "tang")]));
    for slot in [LEGACY, FREE] {
        plans!(plan_unbind(&k, Kind::Clevis, slot), Ok(BindingPlan::Identity));
        plans!(plan_unbind(&c, Kind::Keyring, slot), Ok(BindingPlan::Identity));
        plans!(plan_unbind(&k, Kind::Keyring, slot), Err(E::LastBinding));
        plans!(plan_unbind(&c, Kind::Clevis, slot), Err(E::LastBinding));
        concerns!(plan_unbind(&both, Kind::Keyring, slot), Remove, 1);
        concerns!(plan_unbind(&both, Kind::Clevis, slot), Remove, 2);

        plans!(rebind_key(&c, "a", slot), Err(E::NoSource(Kind::Keyring)));
        plans!(rebind_clevis(&k, slot), Err(E::NoSource(Kind::Clevis)));
        plans!(rebind_key(&k, "a", slot), Ok(BindingPlan::Identity));
        concerns!(rebind_key(&both, "b", slot), Replace, 1);
        concerns!(rebind_clevis(&both, slot), Replace, 2);
    }
}

#[test]
fn version_1_has_no_slots_and_must_agree() {
    let both = v1(vec![key(1, "a"), bound(2, "tang")]);
    let (one, other) =
        (bindings(vec![key(1, "a"), bound(2, "tang")], &[]), bindings(vec![key(1, "b"), bound(2, "tang")], &[]));
    let torn = Info::of_devices([Some(&one), Some(&other)]).unwrap().unwrap();
    let every = |info: &Info, slot| {
        [
            bind_key(info, "a", slot),
            bind_pin(info, "tang", slot),
            plan_unbind(info, Kind::Keyring, slot),
            plan_unbind(info, Kind::Clevis, slot),
            rebind_key(info, "b", slot),
            rebind_clevis(info, slot),
        ]
    };
    for plan in every(&both, id(1)) {
        plans!(plan, Err(E::SlotsNeedVersion2));
    }
    // Even for the kind on which they agree.
    for plan in every(&torn, LEGACY) {
        plans!(plan, Err(E::Inconsistent(Kind::Keyring)));
    }
}

#[test]
fn version_2_bind_keyring() {
    // Old clients: a binding of the kind exists.
    plans!(bind_key(&several(), "a", LEGACY), Ok(BindingPlan::Identity));
    plans!(bind_key(&several(), "b", LEGACY), Err(E::BoundOtherwise { .. }));
    plans!(bind_key(&v2(vec![bound(0, "tang")]), "a", LEGACY), Ok(BindingPlan::Add { token: 1 }));
    plans!(bind_key(&v2(vec![bound(1, "tang")]), "a", LEGACY), Ok(BindingPlan::Add { token: 0 }));
    // No slot: a binding anywhere counts.
    plans!(bind_key(&several(), "a", FREE), Ok(BindingPlan::Identity));
    plans!(bind_key(&several(), "b", FREE), Ok(BindingPlan::Identity));
    plans!(bind_key(&several(), "c", FREE), Ok(BindingPlan::Add { token: 4 }));
    // With a slot.
    plans!(bind_key(&several(), "b", id(5)), Ok(BindingPlan::Identity));
    plans!(bind_key(&several(), "a", id(5)), Err(E::BoundOtherwise { .. }));
    plans!(bind_key(&several(), "a", id(7)), Ok(BindingPlan::Add { token: 7 }));
    plans!(bind_key(&several(), "a", id(31)), Ok(BindingPlan::Add { token: 31 }));
    plans!(bind_key(&several(), "a", id(2)), Err(E::OtherKind { token: 2, bound: Kind::Clevis, asked: Kind::Keyring }));
    plans!(bind_key(&several(), "a", id(0)), Err(E::Foreign(0)));
    plans!(bind_key(&several(), "a", id(32)), Err(E::NoSuchSlot(32)));
    plans!(bind_key(&several(), "", FREE), Err(E::EmptyKeyDescription));
}

#[test]
fn version_2_bind_clevis() {
    plans!(bind_pin(&several(), "tang", LEGACY), Ok(BindingPlan::Identity));
    plans!(bind_pin(&several(), "tpm2", LEGACY), Err(E::BoundOtherwise { .. }));
    plans!(bind_pin(&v2(vec![key(0, "a")]), "tpm2", LEGACY), Ok(BindingPlan::Add { token: 2 }));
    // No slot: always one more binding.
    plans!(bind_pin(&several(), "tang", FREE), Ok(BindingPlan::Add { token: 4 }));
    plans!(bind_pin(&several(), "tpm2", id(3)), Ok(BindingPlan::Identity));
    plans!(bind_pin(&several(), "tang", id(3)), Err(E::BoundOtherwise { .. }));
    plans!(bind_pin(&several(), "tang", id(6)), Ok(BindingPlan::Add { token: 6 }));
    plans!(
        bind_pin(&several(), "tang", id(1)),
        Err(E::OtherKind { token: 1, bound: Kind::Keyring, asked: Kind::Clevis })
    );
    plans!(bind_pin(&several(), "tang", id(0)), Err(E::Foreign(0)));
    plans!(bind_pin(&several(), "tang", id(100)), Err(E::NoSuchSlot(100)));
}

#[test]
fn version_2_has_room_for_15() {
    for slot in [LEGACY, FREE, id(0), id(20)] {
        plans!(bind_key(&full(), "k", slot), Err(E::Full));
        plans!(bind_pin(&full(), "tpm2", slot), Err(E::Full));
    }
    let mut list: Vec<Binding> = (1..15).map(|token| key(token, "k")).collect();
    plans!(bind_key(&v2(list.clone()), "new", FREE), Ok(BindingPlan::Add { token: 0 }));
    list.push(key(0, "new"));
    plans!(bind_key(&v2(list), "new", FREE), Err(E::Full));
    // Tokens that are no bindings take numbers, not slots. When they have taken all numbers, there
    // is no room either.
    let crowded = Info::of_pool(bindings(vec![key(0, "a")], &(1..32).collect::<Vec<_>>()));
    plans!(bind_key(&crowded, "b", FREE), Err(E::Full));
}

#[test]
fn version_2_unbind() {
    for slot in [LEGACY, FREE] {
        concerns!(plan_unbind(&several(), Kind::Keyring, slot), Remove, 1);
        concerns!(plan_unbind(&several(), Kind::Clevis, slot), Remove, 2);
        plans!(plan_unbind(&v2(vec![key(0, "a"), key(1, "b")]), Kind::Clevis, slot), Ok(BindingPlan::Identity));
        // With one binding left, every request is an error.
        plans!(plan_unbind(&v2(vec![key(0, "a")]), Kind::Keyring, slot), Err(E::LastBinding));
        plans!(plan_unbind(&v2(vec![key(0, "a")]), Kind::Clevis, slot), Err(E::LastBinding));
    }
    concerns!(plan_unbind(&several(), Kind::Keyring, id(5)), Remove, 5);
    concerns!(plan_unbind(&several(), Kind::Clevis, id(3)), Remove, 3);
    plans!(plan_unbind(&several(), Kind::Keyring, id(9)), Ok(BindingPlan::Identity));
    plans!(plan_unbind(&several(), Kind::Keyring, id(3)), Err(E::OtherKind { token: 3, .. }));
    plans!(plan_unbind(&several(), Kind::Clevis, id(5)), Err(E::OtherKind { token: 5, .. }));
    plans!(plan_unbind(&several(), Kind::Clevis, id(0)), Err(E::Foreign(0)));
    // Slot 32 was refused as one that does not exist, while 31 was found empty.
    for empty in [31, 32, u32::MAX] {
        plans!(plan_unbind(&several(), Kind::Clevis, id(empty)), Ok(BindingPlan::Identity));
    }
}

#[test]
fn version_2_rebind() {
    for slot in [LEGACY, FREE] {
        plans!(rebind_key(&several(), "a", slot), Ok(BindingPlan::Identity));
        concerns!(rebind_key(&several(), "b", slot), Replace, 1);
        concerns!(rebind_clevis(&several(), slot), Replace, 2);
        plans!(rebind_key(&v2(vec![bound(0, "tang")]), "a", slot), Err(E::NoSource(Kind::Keyring)));
        plans!(rebind_clevis(&v2(vec![key(0, "a")]), slot), Err(E::NoSource(Kind::Clevis)));
    }
    plans!(rebind_key(&several(), "b", id(5)), Ok(BindingPlan::Identity));
    concerns!(rebind_key(&several(), "a", id(5)), Replace, 5);
    concerns!(rebind_clevis(&several(), id(3)), Replace, 3);
    plans!(rebind_key(&several(), "a", id(9)), Err(E::EmptySlot(9)));
    plans!(rebind_clevis(&several(), id(9)), Err(E::EmptySlot(9)));
    plans!(rebind_key(&several(), "a", id(2)), Err(E::OtherKind { token: 2, .. }));
    plans!(rebind_clevis(&several(), id(1)), Err(E::OtherKind { token: 1, .. }));
    plans!(rebind_clevis(&several(), id(0)), Err(E::Foreign(0)));
    plans!(rebind_key(&several(), "", LEGACY), Err(E::EmptyKeyDescription));
    plans!(rebind_key(&several(), "a", id(32)), Err(E::NoSuchSlot(32)));
}

#[test]
fn refusals_say_what_to_do() {
    let said = |plan: Result<BindingPlan>, expected: &str| assert_eq!(plan.unwrap_err().to_string(), expected);
    said(
        bind_pin(&several(), "tpm2", LEGACY),
        "the pool is bound to Clevis (tang, {}) already, not to Clevis (tpm2, {}); unbind or rebind that, or bind to \
         another token slot",
    );
    said(
        bind_key(&several(), "a", id(2)),
        "token slot 2 holds a binding to Clevis, not to key description; name another slot",
    );
    said(bind_key(&several(), "a", id(99)), "there is no token slot 99; choose a number below 32");
    said(rebind_clevis(&v2(vec![key(0, "a")]), FREE), "the pool has no binding to Clevis to replace; bind it first");
}
