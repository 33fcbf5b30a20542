//! Owned guards: a grant in the hands of its owner, and the only way to the values.
//!
//! Must never know: who waits and who is next. A guard reports its end to the shell, which asks the
//! state machine.
//!
//! Why no `unsafe` is needed: values move. A Write guard takes its entry's value out of the table
//! and a WriteAll guard takes the table, so each owns what it changes. A Read guard shares the
//! value and a ReadAll guard the table, by reference-counted pointers that are dropped before the
//! grant ends. The grant implies that a writer's pointer is the only one; if that were ever false,
//! `get_mut` would notice before any data is changed under a reader.

use std::ops::{Deref, DerefMut};

use super::{
    LockCore, release,
    state::{EntryRef, Ident, Map, RequestId},
};
use crate::primitives::Arc;

// Why the steps below cannot fail.
pub(super) const VALUE_PRESENT: &str =
    "the value is in its row: no Write grant lives beside one of the table or another on the entry";
const ONLY_OWNER: &str = "a writer's pointer is the only one: readers give up theirs before their grant";

/// The entries with their values. Owned by the shell, shared with ReadAll guards, or owned by a
/// WriteAll guard.
pub(super) struct EntryTable<K, N, T> {
    pub(super) rows: Map<K, EntryRow<N, T>>,
}

/// One entry. The state machine has its name too; only the methods of [`WriteAllGuard`] change
/// either.
pub(super) struct EntryRow<N, T> {
    pub(super) name: N,
    /// None while a Write guard owns it.
    pub(super) value: Option<Arc<T>>,
}

impl<N, T> EntryRow<N, T> {
    /// For the owner of the table, which has all values in place.
    fn value(&self) -> &T {
        self.value.as_deref().expect(VALUE_PRESENT)
    }

    /// For the writer of the table, which shares no value.
    fn value_mut(&mut self) -> &mut T {
        self.value.as_mut().and_then(Arc::get_mut).expect(ONLY_OWNER)
    }
}

/// A loan from the table: what a guard has to put back, or shares and has to drop, when its grant
/// ends.
pub(super) enum Lent<K, N, T> {
    /// Already returned.
    Nothing,
    /// A share of one value.
    Read(Arc<T>),
    /// One value.
    Write(K, Arc<T>),
    /// A share of the table.
    ReadAll(Arc<EntryTable<K, N, T>>),
    /// The table.
    WriteAll(EntryTable<K, N, T>),
}

/// The end of a grant: dropping this returns the loan, then grants the next requests.
pub(super) struct GrantHold<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) shared: Arc<LockCore<K, N, T>>,
    /// None: the grant has been ended.
    pub(super) id: Option<RequestId>,
    pub(super) lent: Lent<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> Drop for GrantHold<K, N, T> {
    fn drop(&mut self) {
        // The loan is put back under the same lock of the mutex that ends the grant. `self` drops
        // its pointer to the shared part after that, because a guard may be the last owner of its
        // table.
        if let Some(id) = self.id.take() {
            release(&self.shared, id, std::mem::replace(&mut self.lent, Lent::Nothing));
        }
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> GrantHold<K, N, T> {
    /// The value of a guard of one entry. Takes no lock: the grant gives the right to read.
    fn value(&self) -> &T {
        match &self.lent {
            Lent::Read(value) | Lent::Write(_, value) => value,
            _ => unreachable!("guards of one entry are made with its value"),
        }
    }

    /// The table of a ReadAll or WriteAll guard.
    fn table(&self) -> &EntryTable<K, N, T> {
        match &self.lent {
            Lent::ReadAll(table) => table,
            Lent::WriteAll(table) => table,
            _ => unreachable!("guards of the table are made with it"),
        }
    }

    /// The table of a WriteAll guard, for changes.
    fn table_mut(&mut self) -> &mut EntryTable<K, N, T> {
        match &mut self.lent {
            Lent::WriteAll(table) => table,
            _ => unreachable!("a WriteAll guard is made with the table"),
        }
    }

    /// All entries.
    fn rows(&self) -> impl Iterator<Item = (&K, &N, &T)> {
        self.table().rows.iter().map(|(key, row)| (key, &row.name, row.value()))
    }

    /// One entry.
    fn row(&self, target: &EntryRef<K, N>) -> Option<(&K, &N, &T)> {
        let (key, row) = self.table().rows.get_key_value(&self.resolve(target)?)?;
        Some((key, &row.name, row.value()))
    }

    /// The state machine has the index of names. Names cannot change while a guard has the table,
    /// so the answer stays true after the mutex is released.
    fn resolve(&self, target: &EntryRef<K, N>) -> Option<K> {
        match target {
            EntryRef::Key(key) => Some(key.clone()),
            EntryRef::Name(_) => self.shared.inner.lock().state.resolve(target),
        }
    }
}

/// A grant with access to its entry or table. Owned and `Send`: another thread than the receiving
/// one may drop it. Dropping it ends the grant and grants every waiter that became compatible.
#[must_use = "a grant ends when its guard is dropped"]
pub enum Guard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    /// No entry had that key or name when the grant was made. Holds nothing.
    Absent,
    /// One entry, for reading.
    Read(ReadGuard<K, N, T>),
    /// One entry, for changing its value.
    Write(WriteGuard<K, N, T>),
    /// The table, for reading.
    ReadAll(ReadAllGuard<K, N, T>),
    /// The table, for changing values, names and the set of entries.
    WriteAll(WriteAllGuard<K, N, T>),
}

/// One entry, for reading. Others may read it too. While this guard lives its value and name do not
/// change, and it is not removed.
#[must_use = "a grant ends when its guard is dropped"]
pub struct ReadGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) key: K,
    pub(super) name: N,
    pub(super) hold: GrantHold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> ReadGuard<K, N, T> {
    /// The key of the entry.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The name of the entry. It cannot change while this guard lives.
    #[must_use]
    pub fn name(&self) -> &N {
        &self.name
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> Deref for ReadGuard<K, N, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.hold.value()
    }
}

/// One entry, for changing its value. No other grant covers it; while this guard lives the entry
/// keeps its name and is not removed. A panic that drops this guard ends the grant and leaves the
/// value as it is: the owner decides whether it can still be trusted.
#[must_use = "a grant ends when its guard is dropped"]
pub struct WriteGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) key: K,
    pub(super) name: N,
    pub(super) hold: GrantHold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> WriteGuard<K, N, T> {
    /// The key of the entry.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The name of the entry. It cannot change while this guard lives.
    #[must_use]
    pub fn name(&self) -> &N {
        &self.name
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> Deref for WriteGuard<K, N, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.hold.value()
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> DerefMut for WriteGuard<K, N, T> {
    fn deref_mut(&mut self) -> &mut T {
        // Checks the count each time, which is cheap and makes `unsafe` unnecessary.
        match &mut self.hold.lent {
            Lent::Write(_, value) => Arc::get_mut(value).expect(ONLY_OWNER),
            _ => unreachable!("a Write guard is made with its value"),
        }
    }
}

/// The table, for reading. Others may read too. Neither names nor values change while this guard
/// lives, so several entries read through it are consistent.
#[must_use = "a grant ends when its guard is dropped"]
pub struct ReadAllGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) hold: GrantHold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> ReadAllGuard<K, N, T> {
    /// Each entry's key, name and value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &N, &T)> {
        self.hold.rows()
    }

    /// One entry's key, name and value.
    #[must_use]
    pub fn get(&self, target: &EntryRef<K, N>) -> Option<(&K, &N, &T)> {
        self.hold.row(target)
    }
}

/// The table, for changing values, names and the set of entries. No other grant exists.
#[must_use = "a grant ends when its guard is dropped"]
pub struct WriteAllGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) hold: GrantHold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> WriteAllGuard<K, N, T> {
    /// Each entry's key, name and value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &N, &T)> {
        self.hold.rows()
    }

    /// One entry's key, name and value.
    #[must_use]
    pub fn get(&self, target: &EntryRef<K, N>) -> Option<(&K, &N, &T)> {
        self.hold.row(target)
    }

    /// A mutable reference to one entry's value.
    #[must_use]
    pub fn get_mut(&mut self, target: &EntryRef<K, N>) -> Option<&mut T> {
        let key = self.hold.resolve(target)?;
        self.hold.table_mut().rows.get_mut(&key).map(EntryRow::value_mut)
    }

    /// Adds an entry. Requests for this key or name that are still waiting find it when this grant
    /// ends.
    ///
    /// # Errors
    /// Returns the value if the key or the name is taken.
    pub fn insert(&mut self, key: K, name: N, value: T) -> Result<(), T> {
        // The state machine decides. The mutex is released before the table is touched, which this
        // guard owns.
        if !self.hold.shared.inner.lock().state.insert(key.clone(), name.clone()) {
            return Err(value);
        }
        self.hold.table_mut().rows.insert(key, EntryRow { name, value: Some(Arc::new(value)) });
        Ok(())
    }

    /// Removes an entry and returns its value; None if there is none. Requests that wait for it get
    /// [`Guard::Absent`] when this grant ends, unless the entry exists again by then.
    pub fn remove(&mut self, key: &K) -> Option<T> {
        if !self.hold.shared.inner.lock().state.remove(key) {
            return None;
        }
        let row = self.hold.table_mut().rows.remove(key)?;
        let value = row.value.expect(VALUE_PRESENT);
        Some(Arc::try_unwrap(value).ok().expect(ONLY_OWNER))
    }

    /// Renames an entry; false if another entry has that name or there is no such entry. Requests
    /// that wait for the former name now wait for nothing, and those that wait for the new one wait
    /// for this entry.
    pub fn rename(&mut self, key: &K, name: N) -> bool {
        if !self.hold.shared.inner.lock().state.rename(key, name.clone()) {
            return false;
        }
        if let Some(row) = self.hold.table_mut().rows.get_mut(key) {
            row.name = name;
        }
        true
    }
}
