//! What a request says about where its servers shall go, asking for rights that are short, and saying why no host will
//! do.

use std::time::Instant;

use axum::http::StatusCode;
use luc_engine::id::{HostId, ReplicaId};
use luc_engine::record::{Image, Kind, RecordId, Server, ServerGroup};
use luc_engine::schedule::{NoValidHost, Request};
use luc_engine::tx::Shortage;
use luc_engine::view::View;
use luc_sync::rpc::Asked;
use serde_json::Value;
use uuid::Uuid;

use super::render::host_need;
use super::status::server_of;
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Object};
use crate::policy::{self, Action};
use crate::rights::Holders;

/// Of how many hosts rights are asked for before the next try.
const ASKED: usize = 2;
/// Of how many hosts' roots the right to place a member of a group is asked for before the next try.
const ROOTS: usize = 4;

/// Scheduler hints that LUC has a filter for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Hints {
    /// The server group to be in.
    pub(super) group: Option<Uuid>,
    /// Servers with none of which it shall share a host.
    pub(super) different_host: Vec<Uuid>,
    /// Servers with one of which it shall share a host.
    pub(super) same_host: Vec<Uuid>,
}

impl Hints {
    /// Reads `os:scheduler_hints`. What no filter would heed is refused: a wish that nobody fulfils is no wish.
    pub(super) fn parse(view: &View, caller: &Caller, body: &Object) -> Result<Self, Fault> {
        let given = body.0.get("os:scheduler_hints").or_else(|| body.0.get("OS-SCH-HNT:scheduler_hints"));
        let given = match given {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(given)) => given,
            Some(_) => return Err(Fault::bad("\"os:scheduler_hints\" must be an object.")),
        };
        let mut hints = Self::default();
        for (key, value) in given {
            match key.as_str() {
                "group" => hints.group = Some(group(view, caller, value)?),
                "different_host" => hints.different_host = servers(view, caller, key, value)?,
                "same_host" => hints.same_host = servers(view, caller, key, value)?,
                _ => {
                    return Err(Fault::bad(format!(
                        "LUC has no filter for the scheduler hint {key:?}; it has group, different_host and same_host."
                    )));
                }
            }
        }
        Ok(hints)
    }
}

fn group(view: &View, caller: &Caller, value: &Value) -> Result<Uuid, Fault> {
    let one = match value {
        Value::Array(list) if list.len() == 1 => list.first().unwrap_or(value),
        _ => value,
    };
    let id = one.as_str().and_then(|text| Uuid::parse_str(text).ok());
    let id = id.ok_or_else(|| Fault::bad("Server group scheduler hint must be a UUID."))?;
    let found = view.get::<ServerGroup>(id).filter(|group| Some(group.project) == caller.project);
    found.map(|_| id).ok_or_else(|| no_group(id))
}

/// Nova answers 400 where a request's body names a group that is not there.
pub(super) fn no_group(id: Uuid) -> Fault {
    Fault::bad(format!("Instance group {id} could not be found."))
}

/// One id or a list. A server that the caller may not see is nowhere.
fn servers(view: &View, caller: &Caller, key: &str, value: &Value) -> Result<Vec<Uuid>, Fault> {
    let wrong = || Fault::bad(format!("The scheduler hint {key:?} must be a server's id, or a list of them."));
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let one = |value: &Value| {
        let id = value.as_str().and_then(|text| Uuid::parse_str(text).ok()).ok_or_else(wrong)?;
        let held = view.held(RecordId { kind: Kind::Server, id });
        let server: Option<&Server> = held.and_then(|held| server_of(held));
        let visible = server.is_some_and(|server| policy::allows(caller, Action::Read, Some(server.project)));
        Ok(if visible { id } else { Uuid::nil() })
    };
    list.iter().map(one).collect()
}

/// What the scheduler is asked for a server, be it new or to be moved. What the image asks for is known only while
/// there is the image.
pub(super) fn request(view: &View, server: &Server, host: Option<HostId>, hints: Hints) -> Request {
    let image = server.image.as_ref().and_then(|image| view.get::<Image>(image.record));
    Request {
        zone: (!server.availability_zone.is_empty()).then(|| server.availability_zone.clone()),
        host,
        amount: host_need(server),
        extra_specs: server.flavor.extra_specs.clone(),
        image: image.map(|image| image.properties.clone()).unwrap_or_default(),
        group: server.group,
        different_host: hints.different_host,
        same_host: hints.same_host,
    }
}

/// Asks for what would help: first where only the right to place a member of a group is missing, then for hosts'
/// rights.
pub(super) async fn ask_for(app: &App, none: &NoValidHost, until: Instant) -> Asked {
    let reachable = none.unminted.iter().filter(|unminted| app.net().is_reachable(unminted.root));
    let roots: Vec<_> = reachable.take(ROOTS).copied().collect();
    if app.net().request_member_right(&roots, until).await {
        return Asked { came: true, ..Asked::default() };
    }
    let short: Vec<Shortage> = none.short.iter().take(ASKED).cloned().collect();
    app.net().request_rights(&short, until).await
}

/// Nova's fault, with what LUC knows of where the rights are.
pub(super) fn no_valid_host(app: &App, none: &NoValidHost, asked: &Asked) -> Fault {
    let holders = Holders::of(app);
    let whom = none.short.first().map(|short| holders.whereabouts(short, asked)).unwrap_or_default();
    let mut roots: Vec<ReplicaId> = none.unminted.iter().map(|unminted| unminted.root).collect();
    roots.sort_unstable();
    roots.dedup();
    let roots: Vec<String> = roots.into_iter().map(|root| holders.words(root, asked)).collect();
    let from = if roots.is_empty() { String::new() } else { format!(": {}", roots.join(", ")) };
    Fault { status: StatusCode::CONFLICT, message: format!("{none}{from}{whom}") }
}
