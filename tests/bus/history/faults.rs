//! Faults planted into a history, to show that the checker finds them. Each changes one thing in a
//! correct history.

use super::record::{Answer, Call, Event, History, Item, What};
use support::client::Signal;

/// Plants a fault. Returns `false` if the history has no place for it.
pub type Fault = fn(&mut History) -> bool;

/// Takes the middle one of several candidates.
fn middle<T>(all: impl Iterator<Item = T>) -> Option<T> {
    let mut found: Vec<T> = all.collect();
    (!found.is_empty()).then(|| found.swap_remove(found.len() / 2))
}

fn signals(history: &History, fits: impl Fn(&Signal) -> bool) -> Option<usize> {
    middle(history.watcher.iter().enumerate().filter_map(|(at, item)| match item {
        Item::Signal(signal) if fits(signal) => Some(at),
        _ => None,
    }))
}

/// A filesystem's new name is announced in only nine of the ten revisions.
pub fn signal_lost(history: &mut History) -> bool {
    let last = history.watcher.iter().rposition(|item| matches!(item, Item::List(_))).unwrap_or(0);
    let fits = |signal: &Signal| match signal {
        Signal::Changed(_, interface, values, _) => interface.ends_with("pool.r4") && values.contains_key("Name"),
        _ => false,
    };
    // Takes a signal after which no later one about the same property hides the loss from the next
    // list.
    let found = history.watcher[..last].iter().rposition(|item| matches!(item, Item::Signal(signal) if fits(signal)));
    found.map(|at| history.watcher.remove(at)).is_some()
}

/// One client does not receive the signal about a new object.
pub fn signal_lost_by_one(history: &mut History) -> bool {
    let heard = &mut history.clients[0].heard;
    let found = heard.iter().position(|event| matches!(event, Event::Added(..)));
    found.map(|at| heard.remove(at)).is_some()
}

/// `InterfacesAdded` is sent twice.
pub fn signal_repeated(history: &mut History) -> bool {
    let Some(at) = signals(history, |signal| matches!(signal, Signal::Added(..))) else { return false };
    let again = history.watcher[at].clone();
    history.watcher.insert(at + 1, again);
    true
}

/// A call with a change of the given kind.
fn cause(history: &mut History, fits: impl Fn(&What) -> bool) -> Option<&mut Call> {
    middle(
        history
            .clients
            .iter_mut()
            .flat_map(|stream| &mut stream.calls)
            .filter(|call| fits(&call.what) && matches!(call.answer, Answer::Changed(_))),
    )
}

/// A reply overtakes its signal.
pub fn reply_before_signal(history: &mut History) -> bool {
    let stream = &mut history.clients[1];
    let renamed = middle(stream.calls.iter_mut().filter_map(|call| match (&call.what, &call.answer) {
        (What::Label { path, text }, Answer::Changed(_)) => {
            let event = Event::Labelled(path.clone(), text.clone());
            let at = stream.heard.iter().position(|heard| *heard == event)?;
            Some((call, at))
        }
        _ => None,
    }));
    renamed.map(|(call, at)| call.heard = at).is_some()
}

/// A read that begins after the reply to a rename returns the old name.
pub fn stale_read(history: &mut History) -> bool {
    let Some(call) = cause(history, |what| matches!(what, What::Label { text, .. } if text.starts_with("renamed")))
    else {
        return false;
    };
    let What::Label { path, text } = &call.what else { return false };
    let (path, text, end) = (path.clone(), text.clone(), call.end);
    let heard = history.clients[2].heard.iter().filter_map(|event| match event {
        Event::Added(at, label) if *at == path => Some(super::record::text(label).to_owned()),
        Event::Labelled(at, label) if *at == path => Some(label.clone()),
        _ => None,
    });
    let Some(old) = heard.take_while(|label| *label != text).last() else { return false };
    let (what, answer) = (What::Look { path }, Answer::Label(old));
    history.clients[2].calls.push(Call { begin: end + 1, end: end + 2, what, answer, heard: 0 });
    true
}

/// Of two reads during the destruction of a filesystem, the first finds it gone and the second
/// finds its name.
pub fn read_goes_back(history: &mut History) -> bool {
    let Some((path, begin, end)) = destruction_after_creation(history) else { return false };
    let mut heard = history.clients[2].heard.iter().filter_map(|event| match event {
        Event::Added(at, label) if *at == path => Some(super::record::text(label).to_owned()),
        Event::Labelled(at, label) if *at == path => Some(label.clone()),
        _ => None,
    });
    let Some(old) = heard.next_back() else { return false };
    // Both reads lie within the duration of the call, where each of them alone would be correct.
    let quarter = (end - begin) / 4;
    for (at, answer) in [(1, Answer::Error("UnknownObject".to_owned())), (3, Answer::Label(old))] {
        let begin = begin + quarter * at;
        let what = What::Look { path: path.clone() };
        history.clients[2].calls.push(Call { begin, end: begin + 1, what, answer, heard: 0 });
    }
    true
}

/// The path, the begin and the end of a call that destroyed a filesystem, and that began after the
/// reply to the call that created it.
///
/// A client can destroy a filesystem as soon as it has received the signal about it, which is
/// before the creation is replied to. During such a destruction "gone" could also mean "not yet
/// created", so the reads above would be correct.
fn destruction_after_creation(history: &History) -> Option<(String, u64, u64)> {
    const READS_FIT: u64 = 8;
    let calls = || history.clients.iter().flat_map(|stream| &stream.calls);
    let created = |path: &String, before: u64| {
        calls().any(|call| {
            matches!(call.what, What::CreateFilesystem { .. })
                && matches!(&call.answer, Answer::Changed(made) if made.contains(path))
                && call.end < before
        })
    };
    middle(calls().filter_map(|call| match (&call.what, &call.answer) {
        (What::DestroyFilesystem { path }, Answer::Changed(_))
            if call.end - call.begin >= READS_FIT && created(path, call.begin) =>
        {
            Some((path.clone(), call.begin, call.end))
        }
        _ => None,
    }))
}

/// A list shows one object in a state that it never had together with the others.
pub fn torn_list(history: &mut History) -> bool {
    let lists = history.clients.iter_mut().flat_map(|stream| &mut stream.calls);
    let list = middle(lists.filter(|call| matches!(call.what, What::List)));
    list.map(|call| {
        if let Answer::Listed(world) = &mut call.answer {
            *world ^= super::record::digest("/org/storage/stratis3/1", "gone");
        }
    })
    .is_some()
}

/// A call that changed nothing is recorded as a change.
pub fn change_that_never_was(history: &mut History) -> bool {
    let calls = history.clients.iter_mut().flat_map(|stream| &mut stream.calls);
    let unchanged =
        |call: &&mut Call| matches!(call.what, What::CreateFilesystem { .. }) && call.answer == Answer::Unchanged;
    middle(calls.filter(unchanged)).map(|call| call.answer = Answer::Changed(vec!["/nowhere".to_owned()])).is_some()
}

/// A call that changed something is recorded as unchanged.
pub fn signal_for_nothing(history: &mut History) -> bool {
    cause(history, |what| matches!(what, What::Label { .. })).map(|call| call.answer = Answer::Unchanged).is_some()
}
