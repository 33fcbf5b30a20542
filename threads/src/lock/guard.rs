//! What a grant is in the hands of its owner: owned guards, through which alone the values can be reached.
//!
//! Must never know: who waits, and who is next; a guard's end is reported to the shell, which asks the state machine.
//!
//! Where the values are, and why no `unsafe` is needed: a value moves. A Write guard takes its entry's value out of the table
//! and a WriteAll guard takes the table, so they own what they change. A Read guard shares the value and a ReadAll guard the
//! table, by counted pointers that are gone before the grant is. That the pointer of a writer is the only one follows from
//! the grant; if it ever were not, `get_mut` would notice and nobody's data would be changed under them.

use std::ops::{Deref, DerefMut};

use super::{
    Shared, release,
    state::{Ident, Map, RequestId, Target},
};
use crate::primitives::Arc;

// Why the steps below cannot fail.
pub(super) const VALUE_AT_HOME: &str =
    "the value is in its row: no Write grant lives beside one of the table or another on the entry";
const ONLY_OWNER: &str = "a writer's pointer is the only one: readers give up theirs before their grant";

/// The entries with their values. Owned by the shell, shared with ReadAll guards, or owned by a WriteAll guard.
pub(super) struct Table<K, N, T> {
    pub(super) rows: Map<K, Row<N, T>>,
}

/// One entry. Its name is also in the state machine; both are changed by the methods of [`WriteAllGuard`] and nowhere else.
pub(super) struct Row<N, T> {
    pub(super) name: N,
    /// None while a Write guard has it.
    pub(super) value: Option<Arc<T>>,
}

impl<N, T> Row<N, T> {
    /// For who has the table: then no value is away.
    fn value(&self) -> &T {
        self.value.as_deref().expect(VALUE_AT_HOME)
    }

    /// For who has the table for writing: then no value is shared.
    fn value_mut(&mut self) -> &mut T {
        self.value.as_mut().and_then(Arc::get_mut).expect(ONLY_OWNER)
    }
}

/// What a guard took out of the table and has to give back, or shares with it and has to give up, when its grant ends.
pub(super) enum Lent<K, N, T> {
    /// Given back already.
    Nothing,
    /// A share of one value.
    Read(Arc<T>),
    /// One value.
    Write(K, Arc<T>),
    /// A share of the table.
    ReadAll(Arc<Table<K, N, T>>),
    /// The table.
    WriteAll(Table<K, N, T>),
}

/// The end of a grant: dropping this gives back what was lent and hands over to whoever is next, in that order.
pub(super) struct Hold<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) shared: Arc<Shared<K, N, T>>,
    /// None: the grant went on as something else.
    pub(super) id: Option<RequestId>,
    pub(super) lent: Lent<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> Drop for Hold<K, N, T> {
    fn drop(&mut self) {
        // What was lent goes along and is put back in the same hold of the mutex that ends the grant. The last pointer to the
        // shared part may go with `self`, after that: a guard may be the last to know its table.
        if let Some(id) = self.id.take() {
            release(&self.shared, id, std::mem::replace(&mut self.lent, Lent::Nothing));
        }
    }
}

impl<K: Ident, N: Ident, T: Send + Sync> Hold<K, N, T> {
    /// The value that a guard of one entry is about. No lock is taken: the grant is the right to look.
    fn value(&self) -> &T {
        match &self.lent {
            Lent::Read(value) | Lent::Write(_, value) => value,
            _ => unreachable!("guards of one entry are made with its value"),
        }
    }

    /// The table that a guard of the whole is about.
    fn table(&self) -> &Table<K, N, T> {
        match &self.lent {
            Lent::ReadAll(table) => table,
            Lent::WriteAll(table) => table,
            _ => unreachable!("guards of the table are made with it"),
        }
    }

    /// The same, to change it.
    fn table_mut(&mut self) -> &mut Table<K, N, T> {
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
    fn row(&self, target: &Target<K, N>) -> Option<(&K, &N, &T)> {
        let (key, row) = self.table().rows.get_key_value(&self.resolve(target)?)?;
        Some((key, &row.name, row.value()))
    }

    /// Names are looked up in the state machine, which has the index; they cannot change while the table is held, so what it
    /// says is still true when the mutex is free again.
    fn resolve(&self, target: &Target<K, N>) -> Option<K> {
        match target {
            Target::Key(key) => Some(key.clone()),
            Target::Name(_) => self.shared.inner.lock().state.resolve(target),
        }
    }
}

/// A grant, with access to what it is about. Owned and `Send`: it may be dropped by another thread than the one it was
/// given to. Dropping it ends the grant and hands over to every waiter that became compatible.
#[must_use = "a grant ends when its guard is dropped"]
pub enum Guard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    /// When the grant was made there was no entry of that key or name. Holds nothing.
    Absent,
    /// One entry, for reading.
    Read(ReadGuard<K, N, T>),
    /// One entry, for changing its value.
    Write(WriteGuard<K, N, T>),
    /// The table, for reading.
    ReadAll(ReadAllGuard<K, N, T>),
    /// The table, for changing values, names, and which entries there are.
    WriteAll(WriteAllGuard<K, N, T>),
}

/// One entry, for reading. Others may read it too. Its value does not change while this guard lives, nor does its name, and it
/// is not removed.
#[must_use = "a grant ends when its guard is dropped"]
pub struct ReadGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) key: K,
    pub(super) name: N,
    pub(super) hold: Hold<K, N, T>,
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

/// One entry, for changing its value. Nobody else has it; it keeps its name and is not removed while this guard lives. A panic
/// with this guard in hand ends the grant and leaves the value as it is by then: whether it can still be trusted is for its
/// owner to say.
#[must_use = "a grant ends when its guard is dropped"]
pub struct WriteGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) key: K,
    pub(super) name: N,
    pub(super) hold: Hold<K, N, T>,
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
        // Looks at the count each time, which is cheap, and is why no `unsafe` is needed to trust the grant.
        match &mut self.hold.lent {
            Lent::Write(_, value) => Arc::get_mut(value).expect(ONLY_OWNER),
            _ => unreachable!("a Write guard is made with its value"),
        }
    }
}

/// The table, for reading. Others may read too. Neither names nor values change while this guard lives, so what is read of
/// several entries belongs together.
#[must_use = "a grant ends when its guard is dropped"]
pub struct ReadAllGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) hold: Hold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> ReadAllGuard<K, N, T> {
    /// Each entry's key, name and value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &N, &T)> {
        self.hold.rows()
    }

    /// One entry's key, name and value.
    #[must_use]
    pub fn get(&self, target: &Target<K, N>) -> Option<(&K, &N, &T)> {
        self.hold.row(target)
    }
}

/// The table, for changing values, names, and which entries there are. Nobody else has anything.
#[must_use = "a grant ends when its guard is dropped"]
pub struct WriteAllGuard<K: Ident, N: Ident, T: Send + Sync + 'static> {
    pub(super) hold: Hold<K, N, T>,
}

impl<K: Ident, N: Ident, T: Send + Sync> WriteAllGuard<K, N, T> {
    /// Each entry's key, name and value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &N, &T)> {
        self.hold.rows()
    }

    /// One entry's key, name and value.
    #[must_use]
    pub fn get(&self, target: &Target<K, N>) -> Option<(&K, &N, &T)> {
        self.hold.row(target)
    }

    /// One entry's value, to change it.
    #[must_use]
    pub fn get_mut(&mut self, target: &Target<K, N>) -> Option<&mut T> {
        let key = self.hold.resolve(target)?;
        self.hold.table_mut().rows.get_mut(&key).map(Row::value_mut)
    }

    /// Adds an entry. Others who asked for this key or name while it was not there find it at the end of this grant, if they
    /// are still waiting.
    ///
    /// # Errors
    /// Gives the value back if the key or the name is taken.
    pub fn insert(&mut self, key: K, name: N, value: T) -> Result<(), T> {
        // The state machine decides; the mutex is let go before the table is touched, which is this guard's own.
        if !self.hold.shared.inner.lock().state.insert(key.clone(), name.clone()) {
            return Err(value);
        }
        self.hold.table_mut().rows.insert(key, Row { name, value: Some(Arc::new(value)) });
        Ok(())
    }

    /// Removes an entry and gives its value; None if there is none. Those who wait for it are told [`Guard::Absent`] at the
    /// end of this grant, unless it is there again by then.
    pub fn remove(&mut self, key: &K) -> Option<T> {
        if !self.hold.shared.inner.lock().state.remove(key) {
            return None;
        }
        let row = self.hold.table_mut().rows.remove(key)?;
        let value = row.value.expect(VALUE_AT_HOME);
        Some(Arc::try_unwrap(value).ok().expect(ONLY_OWNER))
    }

    /// Gives an entry another name; false if another entry has that name or there is no such entry. Who waits for the former
    /// name waits for nothing from now on, and who waits for the new one waits for this entry.
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
