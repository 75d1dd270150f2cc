//! LUC's own API, `/luc/v1`: what OpenStack has no words for. And `/healthz` and `/metrics` of a site.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream};
use luc_engine::entry::{Entry, MemberOp};
use luc_engine::id::{HostId, SiteName};
use luc_engine::record::{Host, Kind, Site};
use luc_engine::view::View;
use luc_sync::node::now;
use serde_json::{Map, Value, json};

use crate::addresses;
use crate::app::App;
use crate::auth::Caller;
use crate::compute::{host_words, status};
use crate::http::{Fault, Reply, ok, seconds};
use crate::members;
use crate::policy::{self, Action};
use crate::pools::{self, amount};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/status", get(whole_status))
        .route("/sites", get(sites))
        .route("/replicas", get(replicas))
        .route("/replicas/{id}/revoke", post(revoke))
        .route("/replicas/retire", post(members::retire))
        .route("/hosts", get(hosts))
        .route("/hosts/{id}/dead", post(crate::hosts::declare_dead))
        .route("/hosts/{id}/revive", post(crate::hosts::revive))
        .route("/frontier", get(frontier))
        .route("/digest", get(digest))
        .route("/pools", get(pools::pools).post(addresses::create))
        .route("/pools/{id}", get(addresses::show).patch(addresses::change).delete(addresses::delete))
        .route("/pools/{id}/claims", post(addresses::claim))
        .route("/pools/{id}/claims/{claim}", axum::routing::delete(addresses::release))
        .route("/transfers", get(transfers))
        .route("/events", get(events))
}

/// Routes without a token.
pub(crate) fn open_routes() -> Router<App> {
    Router::new().route("/healthz", get(health)).route("/metrics", get(metrics))
}

/// Everything at once, for `luc status`.
async fn whole_status(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    ok(&json!({
        "cloud": view.cloud().to_string(), "site": app.node().site().as_str(), "replica": app.node().me().to_string(),
        "digest": view.digest().to_string(), "entries": entries(&app), "servers": view.count(Kind::Server),
        "store": app.node().failure().or(app.node().fence().map(|fence| fence.to_string())).unwrap_or_else(|| "ok".into()),
        "on_trust": app.node().on_trust().map(|giver| giver.to_string()),
        "sites": site_list(&app), "replicas": replica_list(&app), "hosts": host_list(&app), "transfers": transfer_list(&app),
    }))
}

async fn sites(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    ok(&json!({"sites": site_list(&app)}))
}

async fn replicas(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    ok(&json!({"replicas": replica_list(&app)}))
}

async fn revoke(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let replica = id.parse().map_err(|_| Fault::not_found(format!("There is no replica {id}.")))?;
    if replica == app.node().me() {
        return Err(Fault::conflict("A replica cannot revoke itself: do it from another."));
    }
    app.transact(move |tx| Ok(tx.membership(MemberOp::Revoke { replica })?)).await?;
    ok(&json!({"revoked": replica.to_string()}))
}

async fn hosts(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    ok(&json!({"hosts": host_list(&app)}))
}

async fn transfers(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    ok(&json!({"transfers": transfer_list(&app)}))
}

/// The digest, and the frontier at which it is that: replicas that show the same of the second must show the same of the first.
async fn digest(State(app): State<App>, _: Caller) -> Reply {
    let view = app.view();
    let entries = view.frontier().0.values().map(|tip| tip.number).sum::<u64>();
    ok(&json!({"digest": view.digest().to_string(), "entries": entries, "frontier": numbers(&view)}))
}

async fn frontier(State(app): State<App>, _: Caller) -> Reply {
    ok(&json!({"frontier": numbers(&app.view())}))
}

fn numbers(view: &View) -> Value {
    let mut numbers = Map::new();
    for (replica, tip) in &view.frontier().0 {
        numbers.insert(replica.to_string(), json!({"number": tip.number, "hash": format!("{:016x}", tip.hash)}));
    }
    Value::Object(numbers)
}

fn entries(app: &App) -> u64 {
    app.view().frontier().0.values().map(|tip| tip.number).sum()
}

fn site_list(app: &App) -> Vec<Value> {
    let view = app.view();
    let one = |site: &SiteName| {
        let record = view.get::<Site>(luc_engine::record::site_record(site.as_str()).id);
        let local = site == app.node().site();
        let replicas = view.living().filter(|(_, state)| state.member.site == *site).count();
        json!({
            "name": site.as_str(), "endpoint": record.map(|site| &site.endpoint), "replicas": replicas,
            "reachable": local || !app.net().reachable_in(site).is_empty(),
            "witness": witness(app, site, replicas),
        })
    };
    view.sites().iter().map(one).collect()
}

/// Who tells a site's replica that its disk is an old copy (`PROTOCOL.md`, M4): one disk alone cannot. The agent in its own
/// process does not count, since it is restored together with it.
fn witness(app: &App, site: &SiteName, replicas: usize) -> &'static str {
    let told: usize = if site == app.node().site() {
        app.node().agents().witnesses()
    } else {
        let reach = app.net().reach();
        let there = app.net().reachable_in(site);
        reach.iter().filter(|reach| there.contains(&reach.replica)).map(|reach| reach.status.witnesses).sum()
    };
    match (told, replicas) {
        (1.., _) => "agent",
        (0, 2..) => "replica",
        (0, _) if app.view().living().count() > replicas => "sites",
        _ => "none",
    }
}

fn replica_list(app: &App) -> Vec<Value> {
    let view = app.view();
    let reach = app.net().reach();
    let quarantine = app.node().quarantine();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    view.members()
        .map(|(id, state)| {
            let local = *id == app.node().me();
            let reach = reach.iter().find(|reach| reach.replica == *id);
            let mut value = json!({
                "id": id.to_string(), "site": state.member.site.as_str(), "addresses": state.member.addresses,
                "local": local, "reachable": local, "revoked": state.revoked, "sponsor": state.member.sponsor,
                "identity_authority": state.member.identity_authority, "entries": view.frontier().number(*id),
                "quarantine": quarantine.get(id).map(ToString::to_string),
                "retirement": members::retirement(&view, *id),
            });
            if let Some(reach) = reach {
                value["reachable"] = json!(reach.reachable);
                value["since_ms"] = json!(reach.since.map(millis));
                value["rtt_us"] = json!(reach.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)));
                value["behind"] = json!(reach.behind);
                value["lag"] = json!(reach.ahead);
                value["digest"] = json!(reach.status.digest);
                value["same_state"] = json!(reach.same_state);
                let skew = i64::try_from(reach.status.at).unwrap_or(0) - i64::try_from(now()).unwrap_or(0);
                value["clock_skew_ms"] =
                    json!((reach.reachable && reach.status.at > 0 && skew.abs() > 60_000).then_some(skew));
            } else {
                value["digest"] = json!(view.digest().to_string());
            }
            value
        })
        .collect()
}

fn host_list(app: &App) -> Vec<Value> {
    let view = app.view();
    view.all::<Host>()
        .map(|(id, host)| {
            let id = HostId(id);
            let status = app.net().host_status(id);
            let pool = view.host_pool(id).map(|(_, pool)| pool);
            let (capacity, claimed) = pool.map(|pool| (pool.capacity(), pool.claimed.clone())).unwrap_or_default();
            let heartbeat = status.as_ref().map(|status| &status.heartbeat);
            json!({
                "id": id.to_string(), "name": host.name, "site": host.site, "hypervisor": host.hypervisor_type,
                "state": host_words(app, &view, id), "heard_ms_ago": status.as_ref().and_then(|status| status.age),
                "disabled": host.disabled, "forced_down": host.forced_down, "dead": crate::hosts::death(&view, id),
                "capacity": amount(&capacity), "claimed": amount(&claimed),
                "running": heartbeat.map(|beat| beat.running), "orphans": heartbeat.map(|beat| beat.orphans.iter().map(|orphan| orphan.server.to_string()).collect::<Vec<_>>()),
                "transfers": heartbeat.map(|beat| &beat.transfers), "load_hundredths": heartbeat.map(|beat| beat.load_hundredths),
            })
        })
        .collect()
}

fn transfer_list(app: &App) -> Vec<Value> {
    let one = |(blob, done, size)| json!({"blob": blob, "done": done, "size": size});
    app.net().blobs().transfers().into_iter().map(one).collect()
}

/// Entries as they become visible here, as server-sent events. A client that is too slow is told how many it missed.
async fn events(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    Ok(Sse::new(event_stream(&app)).keep_alive(KeepAlive::default()).into_response())
}

fn event_stream(app: &App) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let flushes = app.node().subscribe();
    stream::unfold((flushes, std::collections::VecDeque::new()), |(mut flushes, mut queue)| async move {
        loop {
            if let Some(event) = queue.pop_front() {
                return Some((Ok(event), (flushes, queue)));
            }
            match flushes.recv().await {
                Ok(flushed) => queue.extend(flushed.entries.iter().map(|entry| entry_event(entry))),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                    queue.push_back(Event::default().event("missed").data(json!({"flushes": missed}).to_string()));
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}

fn entry_event(entry: &Entry) -> Event {
    let header = &entry.header;
    let name = |id: &luc_engine::record::RecordId| json!({"kind": format!("{:?}", id.kind), "id": id.id.to_string()});
    let mut changed: Vec<_> = Vec::new();
    for op in &entry.content.ops {
        match op {
            luc_engine::entry::ContentOp::Change { record, .. } => changed.push(name(record)),
            luc_engine::entry::ContentOp::Observe(seen) => {
                changed.push(
                    json!({"kind": "Server", "id": seen.server.to_string(), "state": format!("{:?}", seen.state)}),
                );
            }
            luc_engine::entry::ContentOp::Bind { .. } | luc_engine::entry::ContentOp::Unbind { .. } => {}
        }
    }
    let data = json!({
        "author": header.author.to_string(), "number": header.number, "time": header.time,
        "created": header.created.iter().map(|created| name(&created.record)).collect::<Vec<_>>(),
        "deleted": header.deleted.iter().map(name).collect::<Vec<_>>(), "changed": changed,
    });
    Event::default().event("entry").id(entry.id().to_string()).data(data.to_string())
}

/// 200 while the store takes writes; 503 and why once it does not. Reads go on.
async fn health(State(app): State<App>) -> Response {
    let failure = app.node().failure().or(app.node().fence().map(|fence| fence.to_string()));
    let status = if failure.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"status": if failure.is_none() { "ok" } else { "failed" }, "site": app.node().site().as_str(), "store": failure});
    crate::http::json_reply(status, &body)
}

async fn metrics(State(app): State<App>) -> Response {
    let mut out = String::new();
    app.inner.metrics.write(&mut out);
    let view = app.view();
    let counters = app.node().counters();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    let mut line = |name: &str, kind: &str, help: &str, value: String| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    line("luc_store_flushes_total", "counter", "Commits.", load(&counters.flushes).to_string());
    line("luc_store_entries_total", "counter", "Entries committed.", load(&counters.entries).to_string());
    line("luc_store_flush_seconds_total", "counter", "Time in commits.", seconds(load(&counters.flush_micros)));
    line(
        "luc_store_failed",
        "gauge",
        "1 if the store takes no writes.",
        u8::from(app.node().failure().is_some()).to_string(),
    );
    line("luc_entries", "gauge", "Entries held.", entries(&app).to_string());
    line("luc_log_bytes", "gauge", "Bytes of entries in the log.", load(&counters.log_bytes).to_string());
    let (ahead, short) = app.net().rights_asked();
    line("luc_rights_asked_ahead_total", "counter", "Requests for rights before they were needed.", ahead.to_string());
    line("luc_rights_asked_short_total", "counter", "Requests for rights that were short.", short.to_string());
    line("luc_servers", "gauge", "Servers held.", view.count(Kind::Server).to_string());
    line("luc_members", "gauge", "Members.", view.members().count().to_string());
    line("luc_quarantined", "gauge", "Authors whose entries are refused.", app.node().quarantine().len().to_string());
    line("process_resident_memory_bytes", "gauge", "Resident memory.", resident().to_string());
    family(&mut out, "luc_servers_by_status", "gauge", "Servers by what their hosts told last.", &by_status(&view));
    for (name, help, lines) in peers(&app, &view) {
        family(&mut out, name, "gauge", help, &lines);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response()
}

/// Labels and values of one metric.
type Lines = Vec<(String, String)>;

/// One metric with labels.
fn family(out: &mut String, name: &str, kind: &str, help: &str, lines: &[(String, String)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in lines {
        let _ = writeln!(out, "{name}{{{labels}}} {value}");
    }
}

fn by_status(view: &View) -> Lines {
    let mut counts = std::collections::BTreeMap::<&str, u64>::new();
    for (_, held) in view.held_all(Kind::Server) {
        if let Some(server) = status::server_of(held) {
            *counts.entry(status::status(server, held.observation.as_ref(), held.deleted).status).or_default() += 1;
        }
    }
    counts.into_iter().map(|(status, count)| (format!("status=\"{status}\""), count.to_string())).collect()
}

/// Each other replica's metrics. Site names are letters, digits and hyphens: nothing in a label needs escaping.
fn peers(app: &App, view: &View) -> [(&'static str, &'static str, Lines); 3] {
    let (mut reachable, mut lag, mut rtt) = (Vec::new(), Vec::new(), Vec::new());
    for reach in app.net().reach() {
        let site = view.member(reach.replica).map(|state| state.member.site.to_string()).unwrap_or_default();
        let labels = format!("replica=\"{}\",site=\"{site}\"", reach.replica);
        reachable.push((labels.clone(), u8::from(reach.reachable).to_string()));
        lag.push((labels.clone(), reach.ahead.to_string()));
        rtt.extend(reach.rtt.map(|rtt| (labels, seconds(u64::try_from(rtt.as_micros()).unwrap_or(0)))));
    }
    [
        ("luc_peer_reachable", "1 if the replica can be reached.", reachable),
        ("luc_peer_lag_entries", "Entries held here that the replica has not confirmed.", lag),
        ("luc_peer_rtt_seconds", "Round trip to the replica.", rtt),
    ]
}

/// Resident memory, bytes; 0 where `/proc` does not say.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
