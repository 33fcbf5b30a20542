//! The Tang servers and the TPM: their keys and their faults. The rules are in `clevis`.

use std::collections::BTreeMap;

/// A fault of a Tang server or the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It refuses connections.
    Down,
    /// It does not answer until the client times out.
    Silent,
    /// Its answers are malformed.
    Nonsense,
}

/// A server, or the TPM.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyServer {
    pub(super) trouble: Option<Trouble>,
    /// Incremented when it gets new keys and loses the old ones.
    pub(super) generation: u64,
}

/// The servers and the TPM. A power cut of the machine does not affect them.
#[derive(Debug, Default)]
pub(super) struct KeyServers {
    servers: BTreeMap<String, KeyServer>,
    pub(super) tpm: KeyServer,
    /// Fault of every server without an entry.
    all_servers: Option<Trouble>,
    /// Number of times a client has waited for a silent server until its timeout.
    pub(super) waited: u64,
}

impl KeyServers {
    pub(super) fn server(&self, url: &str) -> KeyServer {
        let unknown = KeyServer { trouble: self.all_servers, generation: 0 };
        self.servers.get(url).copied().unwrap_or(unknown)
    }

    /// Gives a server new keys.
    pub(super) fn replace_keys(&mut self, url: &str) {
        let mut server = self.server(url);
        server.generation += 1;
        self.servers.insert(url.to_owned(), server);
    }

    pub(super) fn set_server(&mut self, url: &str, trouble: Option<Trouble>) {
        let server = KeyServer { trouble, ..self.server(url) };
        self.servers.insert(url.to_owned(), server);
    }

    pub(super) fn set_all_servers(&mut self, trouble: Option<Trouble>) {
        self.all_servers = trouble;
        self.servers.values_mut().for_each(|server| server.trouble = trouble);
    }

    pub(super) fn set_tpm(&mut self, trouble: Option<Trouble>) {
        self.tpm.trouble = trouble;
    }
}
