//! SSH keys of users.

use std::collections::HashMap;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use luc_engine::record::{Keypair, Kind, RecordId};
use luc_engine::view::View;
use md5::{Digest, Md5};
use serde_json::{Value, json};
use uuid::Uuid;

use super::quotas::Limit;
use super::stamp;
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, empty, json_reply, ok};
use crate::policy::{self, Action};

type Filters = Query<HashMap<String, String>>;

/// Whose keys: administrators may name another user.
fn owner(caller: &Caller, named: Option<&str>) -> Result<Uuid, Fault> {
    let Some(named) = named else { return Ok(caller.user) };
    let user = Uuid::parse_str(named).map_err(|_| Fault::bad(format!("There is no user {named}.")))?;
    if user != caller.user {
        policy::check(caller, Action::Administer, None)?;
    }
    Ok(user)
}

fn find<'a>(view: &'a View, user: Uuid, name: &str) -> Result<(Uuid, &'a Keypair), Fault> {
    let id = view.named(Kind::Keypair, user, name);
    let found = id.and_then(|id| view.get::<Keypair>(id).map(|key| (id, key)));
    found.ok_or_else(|| Fault::not_found(format!("Keypair {name} not found for user {}", user.simple())))
}

fn render(keypair: &Keypair, version: Microversion) -> Value {
    let mut value = json!({"name": keypair.name, "public_key": keypair.public_key, "fingerprint": keypair.fingerprint});
    if version.0 >= 2 {
        value["type"] = json!(keypair.key_type);
    }
    value
}

pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Filters,
) -> Reply {
    let user = owner(&caller, filters.get("user_id").map(String::as_str))?;
    let view = app.view();
    let mut keys: Vec<&Keypair> = view.children(Kind::Keypair, user).filter_map(|id| view.get::<Keypair>(id)).collect();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    let after = filters.get("marker");
    let limit = filters.get("limit").and_then(|text| text.parse().ok()).unwrap_or(1000);
    let page = keys.into_iter().filter(|key| after.is_none_or(|marker| key.name > *marker)).take(limit);
    ok(&json!({"keypairs": page.map(|key| json!({"keypair": render(key, version)})).collect::<Vec<_>>()}))
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(name): Path<String>,
    Query(filters): Filters,
) -> Reply {
    let user = owner(&caller, filters.get("user_id").map(String::as_str))?;
    let view = app.view();
    let (_, keypair) = find(&view, user, &name)?;
    let mut value = render(keypair, version);
    value["user_id"] = json!(user.simple().to_string());
    value["created_at"] = json!(format!("{}.000000", stamp(keypair.created_at).trim_end_matches('Z')));
    value["deleted"] = json!(false);
    value["deleted_at"] = Value::Null;
    value["updated_at"] = Value::Null;
    value["id"] = json!(1);
    ok(&json!({"keypair": value}))
}

pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Write, caller.project)?;
    let given = body.inner("keypair")?;
    let user = owner(&caller, given.text("user_id")?.filter(|_| version.0 >= 10))?;
    let name = given.required("name")?.to_owned();
    if version.0 < 92 && !name.chars().all(|c| c.is_ascii_alphanumeric() || "@._- ".contains(c)) {
        return Err(Fault::bad("A key pair's name is letters, digits, spaces and any of @._-"));
    }
    let key_type = given.text("type")?.unwrap_or("ssh");
    if key_type != "ssh" {
        return Err(Fault::bad("LUC has keypairs of type ssh."));
    }
    let (public_key, private_key) = match given.text("public_key")? {
        Some(public_key) => (public_key.trim().to_owned(), None),
        None if version.0 >= 92 => {
            return Err(Fault::bad("\"public_key\" is required since microversion 2.92."));
        }
        None => generate().map(|(public, private)| (public, Some(private)))?,
    };
    let fingerprint = fingerprint(&public_key)
        .ok_or_else(|| Fault::bad("Keypair data is invalid: failed to generate fingerprint"))?;
    let keypair =
        Keypair { user, name, key_type: "ssh".into(), public_key, fingerprint, created_at: luc_sync::node::now() };
    let (record, random, project) = (keypair.clone(), Uuid::new_v4(), caller.project);
    app.transact(move |tx| {
        let name = record.name.clone();
        let held = tx.view().children(Kind::Keypair, user).count();
        if project.is_some_and(|project| !Limit::KeyPairs.allows_more(tx.view(), project, held)) {
            return Err(Fault::forbidden("Quota exceeded, too many key pairs."));
        }
        let keypair = tx.create(tx.fresh(Kind::Keypair, random), record, &[])?;
        tx.bind(user, &name, keypair).map_err(|_| Fault::conflict(format!("Key pair '{name}' already exists.")))
    })
    .await?;
    let mut value = render(&keypair, version);
    value["user_id"] = json!(user.simple().to_string());
    if let Some(private_key) = private_key {
        value["private_key"] = json!(private_key);
    }
    let status = if version.0 >= 2 { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_reply(status, &json!({"keypair": value})))
}

pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(name): Path<String>,
    Query(filters): Filters,
) -> Reply {
    policy::check(&caller, Action::Write, caller.project)?;
    let user = owner(&caller, filters.get("user_id").map(String::as_str))?;
    let id = find(&app.view(), user, &name)?.0;
    app.transact(move |tx| Ok(tx.delete(RecordId { kind: Kind::Keypair, id })?)).await?;
    empty(if version.0 >= 2 { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED })
}

/// A new key pair, public and private, as OpenSSH writes them. The private half is shown once and kept nowhere.
fn generate() -> Result<(String, String), Fault> {
    use ssh_key::private::{Ed25519Keypair, PrivateKey};
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()));
    let written = (key.public_key().to_openssh(), key.to_openssh(ssh_key::LineEnding::LF));
    match written {
        (Ok(public), Ok(private)) => Ok((public, private.to_string())),
        (Err(error), _) | (_, Err(error)) => Err(Fault::unavailable(format!("No key pair could be made: {error}"))),
    }
}

/// MD5 of the key's blob in Nova's colon form; none if it is no public key as OpenSSH writes it.
fn fingerprint(public_key: &str) -> Option<String> {
    let mut words = public_key.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    let bytes = STANDARD.decode(blob).ok()?;
    // The blob repeats its type, after a length of four bytes.
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let inner = bytes.get(4..4 + usize::try_from(length).ok()?)?;
    if inner != kind.as_bytes() || public_key.lines().count() != 1 || public_key.len() > 16 << 10 {
        return None;
    }
    let digest = Md5::digest(&bytes);
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}
