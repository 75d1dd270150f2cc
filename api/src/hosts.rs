//! Hosts that are gone for good: an operator declares them dead, and lets their machines come back (`PROTOCOL.md`, S5).
//!
//! This is the act that gives up what a host may still run. Nova's `forced_down` is not it: that only keeps new servers away.

use axum::extract::{Path, State};
use luc_engine::hosts::Death;
use luc_engine::id::{HostId, PoolId};
use luc_engine::ledger::Pool;
use luc_engine::record::{Host, User};
use luc_engine::view::View;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Caller;
use crate::compute::host_words;
use crate::http::{Fault, Reply, ok};
use crate::policy::{self, Action};

/// `POST /luc/v1/hosts/{id}/dead`. From then on its servers are in ERROR, their deletion releases what they hold without the
/// agent's word, and they can be evacuated.
pub(crate) async fn declare_dead(State(app): State<App>, caller: Caller, Path(wanted): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let (id, host) = find(&view, &wanted)?;
    if view.death(id).is_none() {
        let (pool, _) = served(&view, id)?;
        if host_words(&app, &view, id) == "up" {
            let name = &host.name;
            return Err(Fault::conflict(format!("Host {name} answers: power its machine off first, for good.")));
        }
        may_declare(&app, &view, host)?;
        let by = caller.user;
        app.transact(move |tx| Ok(tx.declare_dead(pool, by)?)).await?;
    }
    shown(&app, id)
}

/// `POST /luc/v1/hosts/{id}/revive`. The machine may come back, with another pool: its agent first stops what still runs, and what
/// was deleted or placed elsewhere meanwhile is removed from it.
pub(crate) async fn revive(State(app): State<App>, caller: Caller, Path(wanted): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let (id, host) = find(&view, &wanted)?;
    let (pool, _) = served(&view, id)?;
    if view.death(id).is_none() {
        return Err(Fault::conflict(format!("Host {} was not declared dead.", host.name)));
    }
    if host.site != app.node().site().as_str() {
        return Err(Fault::conflict(format!("Host {} is of site {}: revive it there.", host.name, host.site)));
    }
    app.transact(move |tx| {
        tx.update::<Host, Fault>(id.0, |host| {
            host.revived = pool.to_string();
            Ok(())
        })
    })
    .await?;
    shown(&app, id)
}

/// How a host came to be dead; null for one that lives.
pub(crate) fn death(view: &View, host: HostId) -> Value {
    let Some(Death { entry, at, by }) = view.death(host) else { return Value::Null };
    let site = view.member(entry.author).map(|state| state.member.site.to_string());
    // The operator of a replica has no user.
    let user = view.get::<User>(by).map(|user| &user.name);
    let revived = view.host_pool(host).is_some_and(|(pool, _)| view.is_revived(pool));
    json!({"at": at, "by": user, "replica": entry.author.to_string(), "site": site, "revived": revived})
}

fn find<'a>(view: &'a View, wanted: &str) -> Result<(HostId, &'a Host), Fault> {
    let id: Option<HostId> = wanted.parse().ok();
    let found = id.and_then(|id| Some((id, view.get::<Host>(id.0)?)));
    found.ok_or_else(|| Fault::not_found(format!("There is no host {wanted}.")))
}

fn served(view: &View, host: HostId) -> Result<(PoolId, &Pool), Fault> {
    let unknown = || Fault::unavailable("The pool that the host's agent serves is not known here yet.");
    view.host_pool(host).ok_or_else(unknown)
}

/// The rule of entries ([`luc_engine::hosts`]), in words for people.
fn may_declare(app: &App, view: &View, host: &Host) -> Result<(), Fault> {
    let own = app.node().site().as_str();
    if host.site == own {
        return Ok(());
    }
    let of_site = |state: &luc_engine::view::MemberState| state.member.site.as_str() == host.site;
    if let Some((replica, _)) = view.living().find(|(_, state)| of_site(state)) {
        return Err(Fault::conflict(format!(
            "Host {} is of site {}, whose replica {replica} is not retired: declare it dead there, or retire that site's \
             replicas first.",
            host.name, host.site
        )));
    }
    match view.member(app.node().me()).is_some_and(|me| me.member.identity_authority) {
        true => Ok(()),
        false => Err(Fault::conflict(format!("Site {own} is no identity authority: declare it dead at one that is."))),
    }
}

fn shown(app: &App, id: HostId) -> Reply {
    let view = app.view();
    let host = view.get::<Host>(id.0).map(|host| host.name.clone());
    let servers = view.ledger().claims_on(id).count();
    ok(&json!({"host": {"id": id.to_string(), "name": host, "dead": death(&view, id), "claims": servers}}))
}
