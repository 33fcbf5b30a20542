//! The interfaces as data: one row for each member and form. Everything else about the interfaces
//! is computed from the rows: dispatch, GetAll, GetManagedObjects, introspection, change signals
//! and the bus policy.
//!
//! A member whose form changed has neighbouring rows with different revision spans. A new revision
//! takes a new [`LAST_REVISION`](super::schema::LAST_REVISION) and the rows that differ. Facts:
//! `docs/spec/dbus/dbus-api.md` §2, §3, §5. This module knows no connection, no object paths, and
//! nothing of how an operation is carried out.

use std::{ops::RangeInclusive, panic::AssertUnwindSafe};

use crate::{
    bus::{
        manager::{self as manager_properties, StoppedLists},
        message::BadArguments,
        methods::{self, Call, HandlerResult},
        properties::{self, DeviceObject, FilesystemObject},
        schema::{ALL, Argument, Emits, Filler, Interface, InterfaceKind, PropertySource},
        wire::Value,
    },
    view,
};

/// Computes a property from the published state. The variant shows the kind of object that has the
/// property.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Read {
    Manager(fn(&StoppedLists) -> Value),
    Pool(fn(&view::PoolView) -> Value),
    Filesystem(fn(&FilesystemObject) -> Value),
    Device(fn(&DeviceObject) -> Value),
}

/// Carries out a method or sets a property. It fails if the arguments do not have the expected
/// form.
pub type Handler = fn(Call<'_>) -> Result<HandlerResult, BadArguments>;

/// A method or property.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum MemberShape {
    Method {
        arguments: &'static [Argument],
        /// The result before return code and text, if any.
        result: Option<Argument>,
        filler: Filler,
        handler: Handler,
    },
    Property {
        signature: &'static str,
        emits: Emits,
        read: Read,
        /// The handler that sets the property, if it can be set.
        set: Option<Handler>,
    },
}

/// A member in one form.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The kind of interface that has the member.
    pub kind: InterfaceKind,
    /// Its name.
    pub name: &'static str,
    /// First revision that has the member in this form.
    pub first: u8,
    /// Last revision that has the member in this form.
    pub last: u8,
    /// Method or property.
    pub member: MemberShape,
}

impl Row {
    /// Whether the interface has the member in this form.
    pub fn is_in(&self, interface: Interface) -> bool {
        self.kind == interface.kind && (self.first..=self.last).contains(&interface.revision)
    }

    /// All argument types of a method, or the type of a property.
    #[cfg(test)]
    pub fn signature(&self) -> String {
        match self.member {
            MemberShape::Method { arguments, .. } => arguments.iter().map(|(_, signature)| *signature).collect(),
            MemberShape::Property { signature, .. } => signature.to_owned(),
        }
    }

    /// Whether the member is a property.
    pub fn is_property(&self) -> bool {
        matches!(self.member, MemberShape::Property { .. })
    }
}

/// Names and types of return code and text in every method.
pub const STATUS: [Argument; 2] = [("return_code", "q"), ("return_string", "s")];

const fn row(kind: InterfaceKind, name: &'static str, revisions: RangeInclusive<u8>, member: MemberShape) -> Row {
    Row { kind, name, first: *revisions.start(), last: *revisions.end(), member }
}

const fn method(
    kind: InterfaceKind,
    name: &'static str,
    revisions: RangeInclusive<u8>,
    arguments: &'static [Argument],
    result: Argument,
    handler: Handler,
) -> Row {
    row(kind, name, revisions, MemberShape::Method { arguments, result: Some(result), filler: Filler::Plain, handler })
}

impl Row {
    const fn fills_with_zeros(mut self) -> Row {
        if let MemberShape::Method { arguments, result, handler, .. } = self.member {
            self.member = MemberShape::Method { arguments, result, filler: Filler::Zeros, handler };
        }
        self
    }

    const fn without_result(mut self) -> Row {
        if let MemberShape::Method { arguments, filler, handler, .. } = self.member {
            self.member = MemberShape::Method { arguments, result: None, filler, handler };
        }
        self
    }

    const fn writable(mut self, set: Handler) -> Row {
        if let MemberShape::Property { signature, emits, read, .. } = self.member {
            self.member = MemberShape::Property { signature, emits, read, set: Some(set) };
        }
        self
    }
}

const fn property(
    name: &'static str,
    revisions: RangeInclusive<u8>,
    signature: &'static str,
    emits: Emits,
    read: Read,
) -> Row {
    let kind = match read {
        Read::Manager(_) => InterfaceKind::Manager,
        Read::Pool(_) => InterfaceKind::Pool,
        Read::Filesystem(_) => InterfaceKind::Filesystem,
        Read::Device(_) => InterfaceKind::Blockdev,
    };
    row(kind, name, revisions, MemberShape::Property { signature, emits, read, set: None })
}

const fn pool(
    name: &'static str,
    revisions: RangeInclusive<u8>,
    arguments: &'static [Argument],
    result: &'static str,
    handler: Handler,
) -> Row {
    method(InterfaceKind::Pool, name, revisions, arguments, ("results", result), handler)
}

const fn manager(
    name: &'static str,
    revisions: RangeInclusive<u8>,
    arguments: &'static [Argument],
    result: &'static str,
    handler: Handler,
) -> Row {
    method(InterfaceKind::Manager, name, revisions, arguments, ("result", result), handler)
}

const ID: Argument = ("id", "s");
const ID_TYPE: Argument = ("id_type", "s");
const DEVICES: Argument = ("devices", "as");
const KEY_DESC: Argument = ("key_desc", "s");
const SLOT: Argument = ("token_slot", "(bu)");
const LEGACY_KEY: Argument = ("key_desc", "(bs)");
const LEGACY_CLEVIS: Argument = ("clevis_info", "(b(ss))");
const UNLOCK: Argument = ("unlock_method", "(b(bu))");
const STARTED: &str = "(b(oaoao))";

use Emits::{Const, Invalidation, Nothing, Value as New};

/// Every member of every interface.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    // ---- Manager ----
    manager("ListKeys", ALL, &[], "as", methods::list_keys),
    manager("SetKey", ALL, &[KEY_DESC, ("key_fd", "h")], "(bb)", methods::set_key),
    manager("UnsetKey", ALL, &[KEY_DESC], "b", methods::unset_key),
    manager("CreatePool", 0..=4, &[("name", "s"), ("redundancy", "(bq)"), DEVICES, LEGACY_KEY, LEGACY_CLEVIS], "(b(oao))", methods::create_pool_r0),
    manager("CreatePool", 5..=7, &[("name", "s"), DEVICES, LEGACY_KEY, LEGACY_CLEVIS], "(b(oao))", methods::create_pool_r5),
    manager("CreatePool", 8..=9, &[("name", "s"), DEVICES, ("key_desc", "a((bu)s)"), ("clevis_info", "a((bu)ss)"), ("journal_size", "(bt)"), ("tag_spec", "(bs)"), ("allocate_superblock", "(bb)")], "(b(oao))", methods::create_pool_r8),
    manager("DestroyPool", ALL, &[("pool", "o")], "(bs)", methods::destroy_pool),
    manager("UnlockPool", 0..=1, &[("pool_uuid", "s"), ("unlock_method", "s")], "(bas)", methods::unlock_pool),
    manager("StartPool", 2..=3, &[("pool_uuid", "s"), ("unlock_method", "(bs)")], STARTED, methods::start_pool_r2),
    manager("StartPool", 4..=7, &[ID, ID_TYPE, ("unlock_method", "(bs)")], STARTED, methods::start_pool_r4),
    manager("StartPool", 8..=8, &[ID, ID_TYPE, UNLOCK, ("key_fd", "(bh)")], STARTED, methods::start_pool_r8),
    manager("StartPool", 9..=9, &[ID, ID_TYPE, UNLOCK, ("key_fd", "(bh)"), ("remove_cache", "b")], STARTED, methods::start_pool_r9),
    manager("StopPool", 2..=5, &[("pool", "o")], "(bs)", methods::stop_pool_r2),
    manager("StopPool", 6..=9, &[ID, ID_TYPE], "(bs)", methods::stop_pool_r6),
    manager("RefreshState", 2..=9, &[], "", methods::refresh_state).without_result(),
    manager("EngineStateReport", ALL, &[], "s", methods::engine_state_report),
    property("Version", ALL, "s", Const, Read::Manager(manager_properties::version)),
    property("LockedPools", 0..=1, "a{sa{sv}}", New, Read::Manager(manager_properties::locked_pools)),
    property("StoppedPools", 2..=7, "a{sa{sv}}", New, Read::Manager(manager_properties::stopped_pools_r2)),
    property("StoppedPools", 8..=9, "a{sa{sv}}", New, Read::Manager(manager_properties::stopped_pools_r8)),

    // ---- Report ----
    method(InterfaceKind::Report, "GetReport", ALL, &[("name", "s")], ("result", "s"), methods::get_report),

    // ---- pool ----
    pool("CreateFilesystems", 0..=5, &[("specs", "a(s(bs))")], "(ba(os))", methods::create_filesystems_r0),
    pool("CreateFilesystems", 6..=9, &[("specs", "a(s(bs)(bs))")], "(ba(os))", methods::create_filesystems_r6),
    pool("DestroyFilesystems", ALL, &[("filesystems", "ao")], "(bas)", methods::destroy_filesystems),
    method(InterfaceKind::Pool, "SnapshotFilesystem", ALL, &[("origin", "o"), ("snapshot_name", "s")], ("result", "(bo)"), methods::snapshot_filesystem),
    pool("AddDataDevs", ALL, &[DEVICES], "(bao)", methods::add_data_devs),
    pool("InitCache", 0..=4, &[DEVICES], "(bao)", methods::init_cache_r0),
    pool("InitCache", 5..=9, &[DEVICES], "(bao)", methods::init_cache_r5),
    pool("AddCacheDevs", ALL, &[DEVICES], "(bao)", methods::add_cache_devs),
    method(InterfaceKind::Pool, "SetName", ALL, &[("name", "s")], ("result", "(bs)"), methods::rename_pool),
    pool("BindClevis", 0..=7, &[("pin", "s"), ("json", "s")], "b", methods::bind_clevis_r0),
    pool("BindClevis", 8..=9, &[("pin", "s"), ("json", "s"), SLOT], "b", methods::bind_clevis_r8),
    pool("BindKeyring", 0..=7, &[KEY_DESC], "b", methods::bind_keyring_r0),
    pool("BindKeyring", 8..=9, &[KEY_DESC, SLOT], "b", methods::bind_keyring_r8),
    pool("RebindClevis", 0..=7, &[], "b", methods::rebind_clevis_r0),
    pool("RebindClevis", 8..=9, &[SLOT], "b", methods::rebind_clevis_r8),
    pool("RebindKeyring", 0..=7, &[KEY_DESC], "b", methods::rebind_keyring_r0),
    pool("RebindKeyring", 8..=9, &[KEY_DESC, SLOT], "b", methods::rebind_keyring_r8),
    pool("UnbindClevis", 0..=7, &[], "b", methods::unbind_clevis_r0),
    pool("UnbindClevis", 8..=9, &[SLOT], "b", methods::unbind_clevis_r8),
    pool("UnbindKeyring", 0..=7, &[], "b", methods::unbind_keyring_r0),
    pool("UnbindKeyring", 8..=9, &[SLOT], "b", methods::unbind_keyring_r8),
    pool("GrowPhysicalDevice", 3..=9, &[("dev", "s")], "b", methods::grow_physical_device),
    pool("Metadata", 7..=9, &[("current", "b")], "s", methods::metadata),
    pool("FilesystemMetadata", 7..=9, &[("fs_name", "(bs)"), ("current", "b")], "s", methods::filesystem_metadata),
    pool("EncryptPool", 9..=9, &[("key_descs", "a((bu)s)"), ("clevis_infos", "a((bu)ss)")], "b", methods::encrypt_pool),
    pool("ReencryptPool", 9..=9, &[], "b", methods::reencrypt_pool),
    pool("DecryptPool", 9..=9, &[], "b", methods::decrypt_pool),
    property("Uuid", ALL, "s", Const, Read::Pool(properties::pool_uuid)),
    property("Name", ALL, "s", New, Read::Pool(properties::pool_name)),
    property("Encrypted", 0..=8, "b", Const, Read::Pool(properties::encrypted)),
    property("Encrypted", 9..=9, "b", New, Read::Pool(properties::encrypted)),
    property("AvailableActions", ALL, "s", New, Read::Pool(properties::available_actions)),
    property("KeyDescription", 0..=7, "(b(bs))", New, Read::Pool(properties::key_description)),
    property("ClevisInfo", 0..=7, "(b(b(ss)))", New, Read::Pool(properties::clevis_info)),
    property("HasCache", ALL, "b", New, Read::Pool(properties::has_cache)),
    property("TotalPhysicalSize", ALL, "s", New, Read::Pool(properties::pool_total)),
    property("TotalPhysicalUsed", ALL, "(bs)", New, Read::Pool(properties::pool_used)),
    property("AllocatedSize", ALL, "s", New, Read::Pool(properties::allocated)),
    property("FsLimit", 1..=9, "t", New, Read::Pool(properties::fs_limit)).writable(methods::set_fs_limit),
    property("Overprovisioning", 1..=9, "b", New, Read::Pool(properties::overprovisioning)).writable(methods::set_overprovisioning),
    property("NoAllocSpace", 1..=9, "b", New, Read::Pool(properties::no_alloc_space)),
    property("KeyDescriptions", 8..=9, "v", New, Read::Pool(properties::key_descriptions)),
    property("ClevisInfos", 8..=9, "v", New, Read::Pool(properties::clevis_infos)),
    property("FreeTokenSlots", 8..=9, "(by)", New, Read::Pool(properties::free_token_slots)),
    property("VolumeKeyLoaded", 8..=9, "v", Nothing, Read::Pool(properties::volume_key_loaded)),
    property("MetadataVersion", 8..=9, "t", Const, Read::Pool(properties::metadata_version)),
    property("LastReencryptedTimestamp", 9..=9, "(bs)", New, Read::Pool(properties::last_reencrypted)),

    // ---- filesystem ----
    method(InterfaceKind::Filesystem, "SetName", ALL, &[("name", "s")], ("result", "(bs)"), methods::rename_filesystem).fills_with_zeros(),
    property("Uuid", ALL, "s", Const, Read::Filesystem(properties::filesystem_uuid)),
    property("Name", ALL, "s", New, Read::Filesystem(properties::filesystem_name)),
    property("Devnode", ALL, "s", Invalidation, Read::Filesystem(properties::filesystem_node)),
    property("Pool", ALL, "o", Const, Read::Filesystem(properties::filesystem_pool)),
    property("Created", ALL, "s", Const, Read::Filesystem(properties::created)),
    property("Size", ALL, "s", New, Read::Filesystem(properties::filesystem_size)),
    property("Used", ALL, "(bs)", New, Read::Filesystem(properties::filesystem_used)),
    property("SizeLimit", 6..=9, "(bs)", New, Read::Filesystem(properties::size_limit)).writable(methods::set_size_limit),
    property("Origin", 7..=9, "(bs)", New, Read::Filesystem(properties::origin)),
    property("MergeScheduled", 7..=9, "b", New, Read::Filesystem(properties::merge_scheduled)).writable(methods::set_merge_scheduled),

    // ---- blockdev ----
    method(InterfaceKind::Blockdev, "SetUserInfo", 0..=2, &[("id", "(bs)")], ("changed", "(bs)"), methods::set_user_info).fills_with_zeros(),
    property("Uuid", ALL, "s", Const, Read::Device(properties::device_uuid)),
    property("Devnode", ALL, "s", Const, Read::Device(properties::device_node)),
    property("PhysicalPath", ALL, "s", Const, Read::Device(properties::physical_path)),
    property("HardwareInfo", ALL, "(bs)", Const, Read::Device(properties::hardware_info)),
    property("UserInfo", 0..=2, "(bs)", Nothing, Read::Device(properties::user_info)),
    property("UserInfo", 3..=9, "(bs)", New, Read::Device(properties::user_info)).writable(methods::set_user_info),
    property("InitializationTime", ALL, "t", Const, Read::Device(properties::initialization_time)),
    property("Pool", ALL, "o", Const, Read::Device(properties::device_pool)),
    property("Tier", ALL, "q", Nothing, Read::Device(properties::tier)),
    property("TotalPhysicalSize", ALL, "s", New, Read::Device(properties::device_size)),
    property("NewPhysicalSize", 3..=9, "(bs)", New, Read::Device(properties::new_size)),
];

/// The method with this name in the interface.
pub fn find_method(interface: Interface, name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name && !row.is_property() && row.is_in(interface))
}

/// The property with this name in the interface.
pub fn find_property(interface: Interface, name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name && row.is_property() && row.is_in(interface))
}

/// All properties of a kind, in all forms.
pub fn properties(kind: InterfaceKind) -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(move |row| row.kind == kind && row.is_property())
}

/// The value of a property. `None` if the row is not a property of the subject's kind, or if the
/// property's function panics. A panic is logged and leaves out only that property.
pub fn value(row: &Row, subject: PropertySource<'_>) -> Option<Value> {
    let MemberShape::Property { read, .. } = row.member else { return None };
    let compute = AssertUnwindSafe(|| match (read, subject) {
        (Read::Manager(read), PropertySource::Manager(stopped)) => Some(read(stopped)),
        (Read::Pool(read), PropertySource::Pool(pool)) => Some(read(pool)),
        (Read::Filesystem(read), PropertySource::Filesystem(filesystem)) => Some(read(filesystem)),
        (Read::Device(read), PropertySource::Device(device)) => Some(read(device)),
        _ => None,
    });
    std::panic::catch_unwind(compute).unwrap_or_else(|_| {
        log::error!("omitting property {} of {}: computing it panicked; please report it", row.name, row.kind.word());
        None
    })
}
