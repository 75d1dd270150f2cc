//! `evacuate`: a server of a host that was declared dead is started anew elsewhere, from its image.
//!
//! One entry gives up the place it had and takes the new one, with the placement epoch raised (`PROTOCOL.md`, S1). Only the
//! holder of the claim that it had can write it, so two sites that are cut off from each other never both place it.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use axum::http::StatusCode;
use luc_engine::hosts::{self, NotEvacuated};
use luc_engine::id::HostId;
use luc_engine::record::{Host, Power, Server};
use luc_engine::schedule::{NoValidHost, choose};
use luc_engine::tx::{Refusal, Tx};
use luc_sync::rpc::Asked;
use serde_json::{Value, json};
use uuid::Uuid;

use super::placement::{self, Hints};
use super::servers::note_action;
use super::{create, live};
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, RequestId, empty, ok};
use crate::policy::{self, Action};
use crate::rights::Holders;

/// How often rights are asked for.
const TRIES: usize = 4;

/// Why a server could not be placed anew.
enum Unplaced {
    NoHost(NoValidHost),
    NotEvacuated(NotEvacuated),
    Fault(Fault),
}

impl From<Refusal> for Unplaced {
    fn from(refusal: Refusal) -> Self {
        Self::Fault(refusal.into())
    }
}
impl From<Fault> for Unplaced {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

#[derive(Clone)]
struct Wanted {
    server: Uuid,
    /// Where to, if the operator says.
    host: Option<HostId>,
    usable: BTreeSet<HostId>,
    admin_pass: String,
    random: u64,
    request: RequestId,
    user: Uuid,
}

pub(super) async fn evacuate(
    app: &App,
    caller: &Caller,
    request: &RequestId,
    server: Uuid,
    given: &Value,
    version: Microversion,
) -> Reply {
    policy::check(caller, Action::Administer, None)?;
    let given = match given {
        Value::Object(given) => Object(given.clone()),
        Value::Null => Object(Default::default()),
        _ => return Err(Fault::bad("\"evacuate\" must be an object.")),
    };
    if given.flag("onSharedStorage")? == Some(true) {
        return Err(Fault::bad("LUC's hosts share no storage: a server is evacuated to a new disk."));
    }
    let view = app.view();
    let named = |name: &str| view.all::<Host>().find(|(_, host)| host.name == name).map(|(id, _)| HostId(id));
    let host = match given.text("host")? {
        Some(name) => Some(named(name).ok_or_else(|| Fault::bad(format!("Compute host {name} not found.")))?),
        None => None,
    };
    let admin_pass = given.text("adminPass")?.map_or_else(create::password, str::to_owned);
    let usable = view.ledger().hosts().filter(|host| app.net().may_place_on(*host)).collect();
    let (random, user) = (rand::random(), caller.user);
    let wanted =
        Wanted { server, host, usable, admin_pass: admin_pass.clone(), random, request: request.clone(), user };
    place(app, wanted).await?;
    if version.0 < 14 { ok(&json!({"adminPass": admin_pass})) } else { empty(StatusCode::OK) }
}

/// At once, or after the holders of what is short have been asked, as long as something comes.
async fn place(app: &App, wanted: Wanted) -> Result<(), Fault> {
    // It begins when something is short: what this replica's own flush takes before that is not the others' fault.
    let until = LazyCell::new(|| app.net().rights_deadline());
    for left in (0..TRIES).rev() {
        let (id, wanted) = (wanted.server, wanted.clone());
        match app.node().transact(move |tx| attempt(tx, wanted)).await {
            Ok(()) => return Ok(()),
            Err(Unplaced::NoHost(none)) => {
                let asked = if left > 0 { placement::ask_for(app, &none, *until).await } else { Asked::default() };
                if !asked.came {
                    return Err(placement::no_valid_host(app, &none, &asked));
                }
            }
            Err(Unplaced::NotEvacuated(why)) => return Err(explain(app, id, &why)),
            Err(Unplaced::Fault(fault)) => return Err(fault),
        }
    }
    Err(Fault::unavailable("The rights to another host went as fast as they came: try again."))
}

fn attempt(tx: &mut Tx<'_>, wanted: Wanted) -> Result<(), Unplaced> {
    let Wanted { server: id, host, usable, admin_pass, random, request: line, user } = wanted;
    let server = live(tx, id)?.clone();
    hosts::may_evacuate(tx.view(), tx.me(), id).map_err(Unplaced::NotEvacuated)?;
    let mut request = placement::request(tx.view(), &server, host, Hints::default());
    if host.is_some() {
        // Who names the host has its zone in mind.
        request.zone = None;
    }
    let home = tx.site().to_string();
    let choice = choose(tx.view(), tx.me(), &home, &request, &|host| usable.contains(&host), random);
    hosts::evacuate(tx, id, &choice.map_err(Unplaced::NoHost)?, &request.amount)?;
    let at = tx.now();
    tx.update::<Server, Unplaced>(id, |server| {
        server.admin_pass = admin_pass;
        if server.power == Power::Running {
            // Where it is placed on its old machine again, under another pool, the old wish was brought about once.
            server.power_changes += 1;
        }
        server.updated_at = at;
        note_action(server, &line, "evacuate", user);
        Ok(())
    })
}

fn explain(app: &App, server: Uuid, why: &NotEvacuated) -> Fault {
    match why {
        NotEvacuated::NoHost => Fault::conflict(format!("Instance {server} has no host.")),
        NotEvacuated::Lives(host) => {
            let view = app.view();
            let name = view.get::<Host>(host.0).map(|host| host.name.clone()).unwrap_or_default();
            Fault::bad(format!(
                "Compute service of {name} is still in use: it was not declared dead. An operator does so with luc host dead."
            ))
        }
        NotEvacuated::Held(holder) => {
            let site = Holders::of(app).site(*holder);
            Fault::conflict(format!(
                "Instance {server} was placed by replica {holder} of site {site}: only that, or its heir, may place it anew. \
                 Ask there, or retire it."
            ))
        }
    }
}
