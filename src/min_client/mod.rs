//! The work of `stratis-min`: turns its command line into a request, sends the request to the
//! daemon, and prints the answer (`docs/spec/tools/min.md` §7).
//!
//! Must never know: the engine, and how requests are sent.

mod clevis;
mod prompt;
mod sizes;
mod tables;

use std::{
    env, fs,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde_json::json;

use crate::{
    base::{error_chain, ids::NotAUuid},
    cli::stratis_min::{
        BindCommand, BindingArgument, Command, FilesystemArgument, FilesystemCommand, KeyCommand, KeySource,
        PoolArgument, PoolCommand, RebindCommand, StratisMinLine, UnbindCommand,
    },
    rpc::{
        self, RUN_DIRECTORY_VARIABLE, RUNTIME_DIRECTORY,
        client::{self, ClientError},
        protocol::{BindSlot, DONE, EncryptionInput, PoolId, RpcAnswer, RpcRequest, UnlockMechanism, UnlockToken},
    },
};

/// Why a command failed. Scripts know some of the texts.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MinClientError {
    #[error("The requested action had no effect")]
    NoEffect,
    #[error("{0}")]
    Refused(String),
    #[error("Request and response types did not match")]
    OtherAnswer,
    #[error("Key description {0} contains a ';'")]
    KeyDescription(String),
    #[error("Uuid error: {0}; or give --name before a name")]
    Uuid(#[from] NotAUuid),
    #[error("the token slot {text} is not a number: {source}")]
    TokenSlot { text: String, source: std::num::ParseIntError },
    #[error("the key description and token slot {0} have more than two parts; give KEYDESC:SLOT")]
    KeyParts(String),
    #[error("Token slot {0} already taken")]
    SlotTaken(u32),
    #[error(transparent)]
    Clevis(#[from] clevis::ClevisInfoError),
    #[error(transparent)]
    Prompt(#[from] prompt::PromptError),
    #[error("cannot open the key file {}", path.display())]
    KeyFile { path: PathBuf, source: io::Error },
    #[error("cannot make a path absolute")]
    Path(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

type Result<T> = std::result::Result<T, MinClientError>;

/// The descriptor of a request. Both ends of a pipe stay open until the answer has arrived.
enum KeyDescriptor {
    File(fs::File),
    Pipe { read: OwnedFd, _write: OwnedFd },
}

impl AsFd for KeyDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            KeyDescriptor::File(file) => file.as_fd(),
            KeyDescriptor::Pipe { read, .. } => read.as_fd(),
        }
    }
}

/// Runs the command and prints the answer.
///
/// # Errors
/// The request was refused, had no effect, or could not be made.
pub fn run(command_line: StratisMinLine) -> Result<()> {
    let (request, key) = request(command_line.command)?;
    let directory = env::var_os(RUN_DIRECTORY_VARIABLE).map_or_else(|| PathBuf::from(RUNTIME_DIRECTORY), PathBuf::from);
    let reply = client::ask(&directory.join(rpc::SOCKET), &request, key.as_ref().map(KeyDescriptor::as_fd))?;
    let answer = reply.map_err(MinClientError::Refused)?;
    let text = output(&request, answer)?;
    io::stdout().write_all(text.as_bytes()).map_err(MinClientError::Output)
}

/// How `main` prints an error.
pub fn error_line(error: &MinClientError) -> String {
    format!("Error: {:?}", error_chain::sentence(error))
}

// ---- from the command line to the request ----

fn request(command: Command) -> Result<(RpcRequest, Option<KeyDescriptor>)> {
    let request = match command {
        Command::Key { command: None | Some(KeyCommand::List) } => RpcRequest::KeyList,
        Command::Key { command: Some(KeyCommand::Unset { key_desc }) } => RpcRequest::KeyUnset(description(key_desc)?),
        Command::Key { command: Some(KeyCommand::Set { source, key_desc }) } => {
            let request = RpcRequest::KeySet(description(key_desc)?);
            return Ok((request, Some(key_from(source)?)));
        }
        Command::Pool { command: None } => RpcRequest::PoolList,
        Command::Pool { command: Some(command) } => {
            let prompts = matches!(command, PoolCommand::Start { prompt: true, .. });
            let request = pool_request(command)?;
            let key = prompts.then(|| piped(&prompt::once()?)).transpose()?;
            return Ok((request, key));
        }
        Command::Filesystem { command: None } => RpcRequest::FsList,
        Command::Filesystem { command: Some(command) } => match command {
            FilesystemCommand::Create(FilesystemArgument { pool, name }) => RpcRequest::FsCreate(pool, name),
            FilesystemCommand::Destroy(FilesystemArgument { pool, name }) => RpcRequest::FsDestroy(pool, name),
            FilesystemCommand::Origin(FilesystemArgument { pool, name }) => RpcRequest::FsOrigin(pool, name),
            FilesystemCommand::Rename { filesystem: FilesystemArgument { pool, name }, new } => {
                RpcRequest::FsRename(pool, name, new)
            }
        },
        Command::Report => RpcRequest::Report,
    };
    Ok((request, None))
}

fn pool_request(command: PoolCommand) -> Result<RpcRequest> {
    Ok(match command {
        PoolCommand::Start { token_slot, pool, .. } => RpcRequest::PoolStart(id(pool)?, unlock_token(token_slot)?),
        PoolCommand::Stop { pool } => RpcRequest::PoolStop(id(pool)?),
        PoolCommand::Create { key_descs, clevis_infos, name, devices } => {
            RpcRequest::PoolCreate(name, absolute(devices)?, encryption(&key_descs, &clevis_infos)?)
        }
        PoolCommand::Destroy { name } => RpcRequest::PoolDestroy(name),
        PoolCommand::Rename { current, new } => RpcRequest::PoolRename(current, new),
        PoolCommand::InitCache { name, devices } => RpcRequest::PoolInitCache(name, absolute(devices)?),
        PoolCommand::AddData { name, devices } => RpcRequest::PoolAddData(name, absolute(devices)?),
        PoolCommand::AddCache { name, devices } => RpcRequest::PoolAddCache(name, absolute(devices)?),
        PoolCommand::IsEncrypted { pool } => RpcRequest::PoolIsEncrypted(id(pool)?),
        PoolCommand::IsStopped { pool } => RpcRequest::PoolIsStopped(id(pool)?),
        PoolCommand::HasPassphrase { pool } => RpcRequest::PoolHasPassphrase(id(pool)?),
        PoolCommand::IsBound { pool } => RpcRequest::PoolIsBound(id(pool)?),
        PoolCommand::Bind(BindCommand::Keyring { token_slot, key_desc, pool }) => {
            RpcRequest::PoolBindKeyring(id(pool)?, bind_slot(token_slot)?, description(key_desc)?)
        }
        PoolCommand::Bind(BindCommand::Nbde { token_slot, thumbprint, trust_url, pool, url }) => {
            let config = clevis::tang(&url, thumbprint.as_deref(), trust_url);
            RpcRequest::PoolBindClevis(id(pool)?, bind_slot(token_slot)?, "tang".to_owned(), config)
        }
        PoolCommand::Bind(BindCommand::Tpm2 { token_slot, pool }) => {
            RpcRequest::PoolBindClevis(id(pool)?, bind_slot(token_slot)?, "tpm2".to_owned(), json!({}))
        }
        PoolCommand::Unbind(UnbindCommand::Keyring(BindingArgument { token_slot, pool })) => {
            RpcRequest::PoolUnbindKeyring(id(pool)?, token_slot)
        }
        PoolCommand::Unbind(UnbindCommand::Clevis(BindingArgument { token_slot, pool })) => {
            RpcRequest::PoolUnbindClevis(id(pool)?, token_slot)
        }
        PoolCommand::Rebind(RebindCommand::Keyring { key_desc, binding: BindingArgument { token_slot, pool } }) => {
            RpcRequest::PoolRebindKeyring(id(pool)?, token_slot, description(key_desc)?)
        }
        PoolCommand::Rebind(RebindCommand::Clevis(BindingArgument { token_slot, pool })) => {
            RpcRequest::PoolRebindClevis(id(pool)?, token_slot)
        }
    })
}

fn description(text: String) -> Result<String> {
    if text.contains(';') { Err(MinClientError::KeyDescription(text)) } else { Ok(text) }
}

fn id(PoolArgument { is_name, id }: PoolArgument) -> Result<PoolId> {
    Ok(if is_name { PoolId::Name(id) } else { PoolId::Uuid(id.parse()?) })
}

/// Makes a path absolute, since the daemon has another current directory.
fn absolute(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    paths.iter().map(|path| std::path::absolute(path).map_err(MinClientError::Path)).collect()
}

fn number(text: &str) -> Result<u32> {
    text.parse().map_err(|source| MinClientError::TokenSlot { text: text.to_owned(), source })
}

fn unlock_token(slot: Option<String>) -> Result<UnlockToken> {
    Ok(match slot.as_deref() {
        None => UnlockToken::None,
        Some("any") => UnlockToken::Any,
        Some(slot) => UnlockToken::Token(number(slot)?),
    })
}

fn bind_slot(slot: Option<String>) -> Result<BindSlot> {
    Ok(match slot.as_deref() {
        None => BindSlot::None,
        Some("legacy") => BindSlot::Legacy,
        Some(slot) => BindSlot::Some(number(slot)?),
    })
}

fn encryption(key_descs: &[String], clevis_infos: &[String]) -> Result<Option<EncryptionInput>> {
    let mut encryption_infos = Vec::new();
    for text in key_descs {
        let mut parts = text.split(':');
        let (key, slot, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if more.is_some() {
            return Err(MinClientError::KeyParts(text.clone()));
        }
        let slot = slot.map(number).transpose()?;
        encryption_infos.push((slot, UnlockMechanism::KeyDesc(description(key.to_owned())?)));
    }
    for text in clevis_infos {
        let (slot, pin, config) = clevis::parse(text)?;
        encryption_infos.push((slot, UnlockMechanism::ClevisInfo((pin, config))));
    }
    let mut taken = Vec::new();
    for slot in encryption_infos.iter().filter_map(|(slot, _)| *slot) {
        if taken.contains(&slot) {
            return Err(MinClientError::SlotTaken(slot));
        }
        taken.push(slot);
    }
    Ok((!encryption_infos.is_empty()).then_some(EncryptionInput { encryption_infos }))
}

fn key_from(source: KeySource) -> Result<KeyDescriptor> {
    match source.keyfile_path {
        Some(path) => {
            fs::File::open(&path).map(KeyDescriptor::File).map_err(|source| MinClientError::KeyFile { path, source })
        }
        None => piped(&prompt::twice()?),
    }
}

/// A pipe that holds a passphrase.
fn piped(passphrase: &[u8]) -> Result<KeyDescriptor> {
    let (read, mut write) = io::pipe().map_err(prompt::PromptError::Pipe)?;
    write.write_all(passphrase).map_err(prompt::PromptError::Pipe)?;
    Ok(KeyDescriptor::Pipe { read: read.into(), _write: write.into() })
}

// ---- from the answer to the output ----

/// What a command prints, or why it failed. The answer must belong to the request.
fn output(request: &RpcRequest, answer: RpcAnswer) -> Result<String> {
    let changed = |result: bool, code, text| match refused(code, text) {
        Ok(()) if result => Ok(String::new()),
        Ok(()) => Err(MinClientError::NoEffect),
        Err(error) => Err(error),
    };
    let said = |result: bool, code, text| refused(code, text).map(|()| format!("{result}\n"));
    match (request, answer) {
        (RpcRequest::KeySet(..), RpcAnswer::KeySet(result, code, text)) => changed(result.is_some(), code, text),
        (RpcRequest::KeyUnset(..), RpcAnswer::KeyUnset(result, code, text))
        | (RpcRequest::PoolCreate(..), RpcAnswer::PoolCreate(result, code, text))
        | (RpcRequest::PoolRename(..), RpcAnswer::PoolRename(result, code, text))
        | (RpcRequest::PoolAddData(..), RpcAnswer::PoolAddData(result, code, text))
        | (RpcRequest::PoolInitCache(..), RpcAnswer::PoolInitCache(result, code, text))
        | (RpcRequest::PoolAddCache(..), RpcAnswer::PoolAddCache(result, code, text))
        | (RpcRequest::PoolDestroy(..), RpcAnswer::PoolDestroy(result, code, text))
        | (RpcRequest::PoolStart(..), RpcAnswer::PoolStart(result, code, text))
        | (RpcRequest::PoolStop(..), RpcAnswer::PoolStop(result, code, text))
        | (RpcRequest::PoolBindKeyring(..), RpcAnswer::PoolBindKeyring(result, code, text))
        | (RpcRequest::PoolBindClevis(..), RpcAnswer::PoolBindClevis(result, code, text))
        | (RpcRequest::PoolUnbindKeyring(..), RpcAnswer::PoolUnbindKeyring(result, code, text))
        | (RpcRequest::PoolUnbindClevis(..), RpcAnswer::PoolUnbindClevis(result, code, text))
        | (RpcRequest::PoolRebindKeyring(..), RpcAnswer::PoolRebindKeyring(result, code, text))
        | (RpcRequest::PoolRebindClevis(..), RpcAnswer::PoolRebindClevis(result, code, text))
        | (RpcRequest::FsCreate(..), RpcAnswer::FsCreate(result, code, text))
        | (RpcRequest::FsDestroy(..), RpcAnswer::FsDestroy(result, code, text))
        | (RpcRequest::FsRename(..), RpcAnswer::FsRename(result, code, text)) => changed(result, code, text),
        (RpcRequest::PoolIsEncrypted(..), RpcAnswer::PoolIsEncrypted(result, code, text))
        | (RpcRequest::PoolIsStopped(..), RpcAnswer::PoolIsStopped(result, code, text))
        | (RpcRequest::PoolHasPassphrase(..), RpcAnswer::PoolHasPassphrase(result, code, text))
        | (RpcRequest::PoolIsBound(..), RpcAnswer::PoolIsBound(result, code, text)) => said(result, code, text),
        (RpcRequest::KeyList, RpcAnswer::KeyList(keys, code, text)) => refused(code, text).map(|()| tables::keys(keys)),
        (RpcRequest::FsOrigin(..), RpcAnswer::FsOrigin(origin, code, text)) => {
            refused(code, text).map(|()| format!("{}\n", origin.as_deref().unwrap_or("None")))
        }
        (RpcRequest::PoolList, RpcAnswer::PoolList(names, sizes, properties, uuids)) => {
            Ok(tables::pools(names, sizes, properties, uuids))
        }
        (RpcRequest::FsList, RpcAnswer::FsList(pools, names, used, created, devices, uuids)) => {
            Ok(tables::filesystems([pools, names, created], used, devices, uuids))
        }
        (RpcRequest::Report, RpcAnswer::Report(report)) => Ok(format!("{report:#}\n")),
        _ => Err(MinClientError::OtherAnswer),
    }
}

fn refused(code: u16, text: String) -> Result<()> {
    if code == DONE { Ok(()) } else { Err(MinClientError::Refused(text)) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn made(words: &[&str]) -> Result<String> {
        let line = StratisMinLine::try_parse_from(["stratis-min"].iter().chain(words)).unwrap();
        request(line.command).map(|(request, _)| serde_json::to_string(&request).unwrap())
    }

    #[track_caller]
    fn makes(words: &[&str], json: &str) {
        assert_eq!(made(words).unwrap(), json, "{words:?}");
    }

    #[track_caller]
    fn fails(words: &[&str], text: &str) {
        let error = error_chain::sentence(&made(words).unwrap_err());
        assert!(error.contains(text), "{words:?}: {error}");
    }

    const UUID: &str = "7f951e31-059b-48bd-ba8c-4fd0405974e5";

    #[test]
    fn each_command_makes_its_request() {
        makes(&["key"], r#""KeyList""#);
        makes(&["key", "list"], r#""KeyList""#);
        makes(&["key", "unset", "k"], r#"{"KeyUnset":"k"}"#);
        makes(&["pool"], r#""PoolList""#);
        makes(&["pool", "start", UUID], &format!(r#"{{"PoolStart":[{{"Uuid":"{UUID}"}},"None"]}}"#));
        makes(&["pool", "start", "--token-slot=any", "p", "--name"], r#"{"PoolStart":[{"Name":"p"},"Any"]}"#);
        makes(&["pool", "start", "--name", "p", "--token-slot", "3"], r#"{"PoolStart":[{"Name":"p"},{"Token":3}]}"#);
        makes(&["pool", "stop", "--name", "p"], r#"{"PoolStop":{"Name":"p"}}"#);
        makes(&["pool", "create", "p", "/dev/a", "/dev/b"], r#"{"PoolCreate":["p",["/dev/a","/dev/b"],null]}"#);
        makes(
            &["pool", "create", "--clevis-infos", "pin=tpm2", "--key-descs", "k:0", "p", "/dev/a"],
            r#"{"PoolCreate":["p",["/dev/a"],{"encryption_infos":[[0,{"KeyDesc":"k"}],[null,{"ClevisInfo":["tpm2",{}]}]]}]}"#,
        );
        makes(&["pool", "destroy", "p"], r#"{"PoolDestroy":"p"}"#);
        makes(&["pool", "rename", "p", "q"], r#"{"PoolRename":["p","q"]}"#);
        makes(&["pool", "init-cache", "p", "/dev/a"], r#"{"PoolInitCache":["p",["/dev/a"]]}"#);
        makes(&["pool", "add-data", "p", "/dev/a"], r#"{"PoolAddData":["p",["/dev/a"]]}"#);
        makes(&["pool", "add-cache", "p", "/dev/a"], r#"{"PoolAddCache":["p",["/dev/a"]]}"#);
        for (word, name) in [
            ("is-encrypted", "PoolIsEncrypted"),
            ("is-stopped", "PoolIsStopped"),
            ("has-passphrase", "PoolHasPassphrase"),
            ("is-bound", "PoolIsBound"),
        ] {
            makes(&["pool", word, "--name", "p"], &format!(r#"{{"{name}":{{"Name":"p"}}}}"#));
        }
        makes(
            &["pool", "bind", "keyring", "--name", "p", "--key-desc", "k"],
            r#"{"PoolBindKeyring":[{"Name":"p"},"None","k"]}"#,
        );
        makes(
            &["pool", "bind", "nbde", "--name", "--token-slot=legacy", "--trust-url", "p", "http://t"],
            r#"{"PoolBindClevis":[{"Name":"p"},"Legacy","tang",{"stratis:tang:trust_url":true,"url":"http://t"}]}"#,
        );
        makes(
            &["pool", "bind", "tang", "--name", "--thumbprint", "T", "p", "http://t"],
            r#"{"PoolBindClevis":[{"Name":"p"},"None","tang",{"thp":"T","url":"http://t"}]}"#,
        );
        makes(
            &["pool", "bind", "tpm2", "--name", "p", "--token-slot", "7"],
            r#"{"PoolBindClevis":[{"Name":"p"},{"Some":7},"tpm2",{}]}"#,
        );
        makes(&["pool", "unbind", "keyring", "--name", "p"], r#"{"PoolUnbindKeyring":[{"Name":"p"},null]}"#);
        makes(
            &["pool", "unbind", "clevis", "--name", "p", "--token-slot=2"],
            r#"{"PoolUnbindClevis":[{"Name":"p"},2]}"#,
        );
        makes(
            &["pool", "rebind", "keyring", "--name", "--key-desc=k", "p"],
            r#"{"PoolRebindKeyring":[{"Name":"p"},null,"k"]}"#,
        );
        makes(&["pool", "rebind", "clevis", "--name", "p"], r#"{"PoolRebindClevis":[{"Name":"p"},null]}"#);
        makes(&["filesystem"], r#""FsList""#);
        makes(&["filesystem", "create", "p", "f"], r#"{"FsCreate":["p","f"]}"#);
        makes(&["filesystem", "destroy", "p", "f"], r#"{"FsDestroy":["p","f"]}"#);
        makes(&["filesystem", "rename", "p", "f", "g"], r#"{"FsRename":["p","f","g"]}"#);
        makes(&["filesystem", "origin", "p", "f"], r#"{"FsOrigin":["p","f"]}"#);
        makes(&["--debug", "report"], r#""Report""#);
    }

    #[test]
    fn wrong_values_are_refused_before_any_connection() {
        fails(&["key", "unset", "a;b"], "Key description a;b contains a ';'");
        fails(&["pool", "start", "p"], "Uuid error");
        fails(&["pool", "start", "--name", "p", "--token-slot=x"], "invalid digit found in string");
        fails(&["pool", "bind", "tpm2", "--name", "p", "--token-slot=any"], "invalid digit found in string");
        fails(&["pool", "create", "--key-descs=k:x", "p", "/dev/a"], "invalid digit found in string");
        fails(&["pool", "create", "--key-descs=k:1:2", "p", "/dev/a"], "more than two parts");
        let twice = ["pool", "create", "--key-descs=k:1", "--clevis-infos=pin=tpm2 token_slot=1", "p", "/dev/a"];
        fails(&twice, "Token slot 1 already taken");
    }

    #[test]
    fn an_answer_to_another_request_is_refused() {
        let answer = RpcAnswer::KeyUnset(true, 0, "OK".to_owned());
        assert!(matches!(output(&RpcRequest::KeyList, answer), Err(MinClientError::OtherAnswer)));
    }

    #[test]
    fn errors_are_printed_in_quotes() {
        assert_eq!(error_line(&MinClientError::NoEffect), "Error: \"The requested action had no effect\"");
        assert_eq!(error_line(&MinClientError::Refused("a \"b\"\nc".to_owned())), r#"Error: "a \"b\"\nc""#);
    }
}
