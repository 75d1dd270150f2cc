//! Servers: lists, details, names, metadata, tags, deletion.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use luc_engine::id::HostId;
use luc_engine::record::{Kind, RecordId, Server, ServerAction};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::Tx;
use luc_engine::view::{Held, View};
use luc_sync::node::now;
use regex_lite::Regex;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::quotas::Limit;
use super::render::{Fields, HostState, Renderer, host_state, lost, seen};
use super::status::{server_of, status};
use super::{find_server, live, parse_stamp, stamp};
use crate::app::App;
use crate::auth::Caller;
use crate::discovery::base;
use crate::http::{Fault, Microversion, Object, Reply, RequestId, empty, ok};
use crate::policy::{self, Action};

/// Most servers of one page.
const PAGE: usize = 1000;

type Filters = Query<HashMap<String, String>>;

pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    uri: Uri,
    Query(filters): Filters,
) -> Reply {
    page(&app, &caller, version, &headers, &uri, &filters, false)
}

pub(super) async fn detail(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    uri: Uri,
    Query(filters): Filters,
) -> Reply {
    page(&app, &caller, version, &headers, &uri, &filters, true)
}

fn page(
    app: &App,
    caller: &Caller,
    version: Microversion,
    headers: &HeaderMap,
    uri: &Uri,
    filters: &HashMap<String, String>,
    detail: bool,
) -> Reply {
    let view = app.view();
    let mut renderer = Renderer::new(app, &view, base(app, headers), version, caller);
    let limit = match filters.get("limit") {
        None => PAGE,
        Some(text) => {
            text.parse::<usize>().map_err(|_| Fault::bad("\"limit\" must be a whole number, at least 0."))?.min(PAGE)
        }
    };
    let mut found = select(app, &view, caller, filters)?;
    sort(&mut found, filters)?;
    let start = match filters.get("marker") {
        None => 0,
        Some(marker) => {
            let at = found.iter().position(|(id, _, _)| id.to_string() == *marker);
            at.ok_or_else(|| Fault::bad(format!("marker [{marker}] not found")))? + 1
        }
    };
    let more = found.len() > start + limit;
    let page: Vec<&Found<'_>> = found.iter().skip(start).take(limit).collect();
    let render = |(id, held, server): &Found<'_>| match detail {
        true => renderer.server(*id, held),
        false => Some(renderer.brief(*id, server)),
    };
    let again = page.iter().copied().take(usize::from(on(SiteMutant::ListedTwice)));
    let servers = page.iter().copied().chain(again).filter_map(render).collect();
    let last = page.last().filter(|_| more);
    let next = last.map(|(last, _, _)| {
        let other = uri.query().unwrap_or_default().split('&');
        let mut query: Vec<String> =
            other.filter(|part| !part.is_empty() && !part.starts_with("marker=")).map(str::to_owned).collect();
        query.push(format!("marker={last}"));
        let path = if detail { "servers/detail" } else { "servers" };
        let href = format!("{}/compute/v2.1/{path}?{}", renderer.base, query.join("&"));
        json!([{"rel": "next", "href": href}])
    });
    ok(&Page { servers, servers_links: next })
}

#[derive(Serialize)]
struct Page {
    servers: Vec<Fields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    servers_links: Option<Value>,
}

type Found<'a> = (Uuid, &'a Arc<Held>, &'a Server);

/// The servers that the caller may see and that the filters leave.
fn select<'a>(
    app: &App,
    view: &'a View,
    caller: &Caller,
    filters: &HashMap<String, String>,
) -> Result<Vec<Found<'a>>, Fault> {
    policy::check(caller, Action::Read, Some(caller.project()?))?;
    let all = filters.get("all_tenants").is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"));
    if all {
        policy::check(caller, Action::Administer, None)?;
    }
    let wanted_project = filters.get("project_id").or_else(|| filters.get("tenant_id")).filter(|_| all);
    let wanted_project = wanted_project.map(|id| Uuid::parse_str(id).unwrap_or(Uuid::max()));
    let name = filters.get("name").map(|pattern| pattern_of(pattern)).transpose()?;
    let since = time_filter(filters, "changes-since")?;
    let before = time_filter(filters, "changes-before")?;
    let get = |id: Uuid| {
        let held = view.held(RecordId { kind: Kind::Server, id })?;
        Some((id, held, server_of(held)?))
    };
    let every: Vec<Found<'a>> = match (all, wanted_project) {
        (true, None) => view.held_all(Kind::Server).filter_map(|(id, _)| get(id)).collect(),
        (_, project) => {
            let owner = project.unwrap_or(caller.project()?);
            view.children(Kind::Server, owner).filter_map(get).collect()
        }
    };
    let mut unseen = BTreeSet::new();
    if filters.contains_key("status") {
        let is_unseen = |host: &HostId| host_state(app, view, *host) == HostState::Unknown;
        unseen.extend(view.ledger().hosts().filter(is_unseen));
    }
    let text = |key: &str, actual: &str| filters.get(key).is_none_or(|wanted| wanted == actual);
    let keep = |(id, held, server): &Found<'a>| {
        let mut state = status(server, seen(view, *id, held), held.deleted);
        let lost = view.placement(*id).and_then(|placement| lost(view, &placement, held));
        if lost.is_some() {
            state = state.lost();
        } else if !unseen.is_empty() && view.placement(*id).is_some_and(|placement| unseen.contains(&placement.host)) {
            state = state.out_of_reach();
        }
        let updated = server.updated_at.max(held.observation.as_ref().map_or(0, |seen| seen.at));
        let host = || {
            let placement = view.placement(*id)?;
            view.get::<luc_engine::record::Host>(placement.host.0).map(|host| host.name.as_str())
        };
        let zone = || view.placement(*id).and_then(|placement| view.site_of_host(placement.host));
        name.as_ref().is_none_or(|pattern| pattern.is_match(&server.name))
            && filters.get("status").is_none_or(|wanted| wanted.eq_ignore_ascii_case(state.status))
            && text("vm_state", state.vm_state)
            && text("uuid", &id.to_string())
            && text("reservation_id", &server.reservation_id)
            && text("key_name", server.key_name.as_deref().unwrap_or_default())
            && text("flavor", &server.flavor.flavor_id)
            && filters.get("image").is_none_or(|wanted| {
                server.image.as_ref().is_some_and(|image| image.record.to_string() == *wanted)
            })
            && filters.get("host").is_none_or(|wanted| caller.is_admin && host() == Some(wanted))
            && filters.get("availability_zone").is_none_or(|wanted| zone().is_some_and(|zone| zone.as_str() == wanted))
            && filters.get("user_id").is_none_or(|wanted| Uuid::parse_str(wanted).ok() == Some(server.user))
            && filters.get("locked").is_none_or(|wanted| wanted.eq_ignore_ascii_case("true") == server.locked)
            && filters.get("tags").is_none_or(|wanted| wanted.split(',').all(|tag| server.tags.contains_key(tag)))
            && filters.get("tags-any").is_none_or(|wanted| wanted.split(',').any(|tag| server.tags.contains_key(tag)))
            && !filters.get("deleted").is_some_and(|wanted| wanted.eq_ignore_ascii_case("true"))
            // Servers have no addresses yet.
            && !filters.contains_key("ip")
            && !filters.contains_key("ip6")
            && since.is_none_or(|since| updated >= since)
            && before.is_none_or(|before| updated <= before)
    };
    Ok(every.into_iter().filter(keep).collect())
}

/// Nova's names are patterns. This library's time grows linearly, whatever the pattern.
fn pattern_of(text: &str) -> Result<Regex, Fault> {
    regex_lite::RegexBuilder::new(text)
        .size_limit(1 << 20)
        .build()
        .map_err(|error| Fault::bad(format!("\"name\" is not a regular expression: {error}")))
}

fn time_filter(filters: &HashMap<String, String>, key: &str) -> Result<Option<u64>, Fault> {
    let Some(text) = filters.get(key) else { return Ok(None) };
    parse_stamp(text).map(Some).ok_or_else(|| Fault::bad(format!("Invalid {key}: {text:?} is not a time.")))
}

/// The newest first, unless asked otherwise.
fn sort(found: &mut [Found<'_>], filters: &HashMap<String, String>) -> Result<(), Fault> {
    let descending = filters.get("sort_dir").is_none_or(|direction| direction != "asc");
    let key = filters.get("sort_key").map_or("created_at", String::as_str);
    found.sort_by(|(a_id, _, a), (b_id, _, b)| {
        let order = match key {
            "display_name" | "name" => a.name.cmp(&b.name),
            "uuid" => a_id.cmp(b_id),
            "updated_at" => a.updated_at.cmp(&b.updated_at),
            _ => a.created_at.cmp(&b.created_at),
        };
        order.then(a.launch_index.cmp(&b.launch_index)).then(a_id.cmp(b_id))
    });
    if !matches!(key, "created_at" | "display_name" | "name" | "uuid" | "updated_at") {
        return Err(Fault::bad(format!("Servers cannot be sorted by {key}.")));
    }
    if descending {
        found.reverse();
    }
    Ok(())
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    let view = app.view();
    let id = find_server(&view, &caller, &id, Action::Read)?;
    Renderer::new(&app, &view, base(&app, &headers), version, &caller).shown(id)
}

pub(super) async fn update(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    let given = body.inner("server")?;
    let name = given.name("name")?.map(|name| name.trim().to_owned());
    let description = match given.0.get("description") {
        Some(_) if version.0 >= 19 => Some(given.text("description")?.unwrap_or_default().to_owned()),
        Some(_) => return Err(Fault::bad("\"description\" needs microversion 2.19.")),
        None => None,
    };
    let (ipv4, ipv6) = (address(&given, "accessIPv4")?, address(&given, "accessIPv6")?);
    let (hostname, disk_config) = (given_hostname(&given, version)?, disk_config(&given)?);
    edit(&app, id, move |server| {
        let set = |field: &mut String, given: Option<String>| given.into_iter().for_each(|given| *field = given);
        set(&mut server.name, name);
        set(&mut server.description, description);
        set(&mut server.access_ipv4, ipv4);
        set(&mut server.access_ipv6, ipv6);
        set(&mut server.hostname, hostname);
        set(&mut server.disk_config, disk_config);
        Ok(())
    })
    .await?;
    let view = app.view();
    Renderer::new(&app, &view, base(&app, &headers), version, &caller).shown(id)
}

/// `accessIPv4` or `accessIPv6`, in canonical form; empty if it is taken away.
pub(super) fn address(given: &Object, key: &str) -> Result<Option<String>, Fault> {
    let Some(text) = given.text(key)? else { return Ok(given.0.contains_key(key).then(String::new)) };
    if text.is_empty() {
        return Ok(Some(String::new()));
    }
    let canonical = match key {
        "accessIPv4" => text.parse::<std::net::Ipv4Addr>().map(|address| address.to_string()),
        _ => text.parse::<std::net::Ipv6Addr>().map(|address| address.to_string()),
    };
    canonical.map(Some).map_err(|_| Fault::bad(format!("Invalid input for field/attribute {key}. Value: {text}.")))
}

/// `OS-DCF:diskConfig`.
pub(super) fn disk_config(given: &Object) -> Result<Option<String>, Fault> {
    match given.text("OS-DCF:diskConfig")? {
        None => Ok(None),
        Some(text @ ("AUTO" | "MANUAL")) => Ok(Some(text.to_owned())),
        Some(_) => Err(Fault::bad("\"OS-DCF:diskConfig\" must be AUTO or MANUAL.")),
    }
}

/// `hostname`: a label since 2.90, a whole domain name since 2.94. What a guest was told when it was made is not
/// changed by it.
pub(super) fn given_hostname(given: &Object, version: Microversion) -> Result<Option<String>, Fault> {
    let Some(text) = given.text("hostname")? else { return Ok(None) };
    let (longest, dots) = match version.0 {
        ..90 => return Err(Fault::bad("\"hostname\" needs microversion 2.90.")),
        90..94 => (63, false),
        94.. => (255, true),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || (dots && c == '.');
    let ends = |c: char| c == '-' || c == '.';
    if text.len() < 2
        || text.len() > longest
        || !text.chars().all(plain)
        || text.starts_with(ends)
        || text.ends_with(ends)
    {
        let dots = if dots { ", '.'" } else { "" };
        return Err(Fault::bad(format!(
            "\"hostname\" must be 2 to {longest} letters, digits{dots} and '-', with a letter or digit at both ends."
        )));
    }
    Ok(Some(text.to_owned()))
}

/// Changes a server that is not being deleted.
pub(super) async fn edit(
    app: &App,
    id: Uuid,
    edit: impl FnOnce(&mut Server) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Fault> {
    app.transact(move |tx| {
        let now = tx.now();
        live(tx, id)?;
        tx.update::<Server, Fault>(id, |server| {
            edit(server)?;
            server.updated_at = now;
            Ok(())
        })
    })
    .await
}

pub(super) async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    let is_admin = caller.is_admin;
    app.transact(move |tx: &mut Tx<'_>| {
        // Deleting twice is deleting once.
        let Some(server) = tx.view().get::<Server>(id) else { return Ok(()) };
        if server.locked && !is_admin {
            return Err(Fault::conflict(format!("Instance {id} is locked")));
        }
        if on(SiteMutant::DeleteForgotten) {
            return Ok(());
        }
        Ok(tx.delete(RecordId { kind: Kind::Server, id })?)
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

// ---- metadata

fn server_in(view: &View, id: Uuid) -> Result<&Server, Fault> {
    let held = view.held(RecordId { kind: Kind::Server, id });
    held.and_then(|held| server_of(held)).ok_or_else(|| Fault::not_found(format!("Instance {id} could not be found.")))
}

fn read(app: &App, caller: &Caller, id: &str) -> Result<(Arc<View>, Uuid), Fault> {
    let view = app.view();
    let id = find_server(&view, caller, id, Action::Read)?;
    Ok((view, id))
}

pub(super) async fn metadata(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    ok(&json!({"metadata": server_in(&view, id)?.metadata}))
}

pub(super) fn checked(metadata: &BTreeMap<String, String>, most: u64) -> Result<(), Fault> {
    if u64::try_from(metadata.len()).is_ok_and(|n| n <= most) {
        return Ok(());
    }
    Err(Fault::forbidden(format!("Maximum number of metadata items exceeds {most}")))
}

/// Changes metadata of a server that is not locked, but by administrators.
async fn edit_metadata(
    app: &App,
    caller: &Caller,
    id: Uuid,
    change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Fault> {
    let (is_admin, view) = (caller.is_admin, app.view());
    edit(app, id, move |server| {
        if server.locked && !is_admin {
            return Err(Fault::conflict(format!("Instance {id} is locked")));
        }
        let before = server.metadata.len();
        #[cfg(feature = "mutants")]
        crate::mutants::as_it_was(id, &mut server.metadata);
        change(&mut server.metadata)?;
        // A limit that was lowered takes nothing away, and does not keep anybody from tidying up.
        let grew = server.metadata.len() > before;
        if grew { checked(&server.metadata, Limit::MetadataItems.of(&view, server.project)) } else { Ok(()) }
    })
    .await
}

async fn change_metadata(app: &App, caller: &Caller, id: &str, body: Object, keep: bool) -> Reply {
    let id = find_server(&app.view(), caller, id, Action::Write)?;
    let given = body.strings("metadata")?.ok_or_else(|| Fault::bad("The body needs an object \"metadata\"."))?;
    edit_metadata(app, caller, id, move |metadata| {
        if !keep {
            metadata.clear();
        }
        if on(SiteMutant::MetadataMixed) {
            let value = given.values().next().cloned().unwrap_or_default();
            metadata.values_mut().for_each(|other| other.clone_from(&value));
        }
        metadata.extend(given);
        Ok(())
    })
    .await?;
    ok(&json!({"metadata": server_in(&app.view(), id)?.metadata}))
}

pub(super) async fn set_metadata(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    change_metadata(&app, &caller, &id, body, false).await
}

pub(super) async fn add_metadata(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    change_metadata(&app, &caller, &id, body, true).await
}

fn no_item() -> Fault {
    Fault::not_found("Metadata item was not found")
}

pub(super) async fn metadata_item(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    let value = server_in(&view, id)?.metadata.get(&key).ok_or_else(no_item)?;
    ok(&json!({"meta": {key: value}}))
}

pub(super) async fn set_metadata_item(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    body: Object,
) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    let given = body.strings("meta")?.ok_or_else(|| Fault::bad("The body needs an object \"meta\"."))?;
    let value = given.get(&key).filter(|_| given.len() == 1).cloned();
    let value = value.ok_or_else(|| Fault::bad("\"meta\" must hold the key of the path and no other."))?;
    let item = json!({"meta": {&key: &value}});
    edit_metadata(&app, &caller, id, move |metadata| {
        metadata.insert(key, value);
        Ok(())
    })
    .await?;
    ok(&item)
}

pub(super) async fn delete_metadata_item(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    edit_metadata(&app, &caller, id, move |metadata| metadata.remove(&key).map(|_| ()).ok_or_else(no_item)).await?;
    empty(StatusCode::NO_CONTENT)
}

// ---- tags

/// Checks a list of tags.
pub(super) fn parse_tags(list: &Value) -> Result<BTreeMap<String, String>, Fault> {
    let wrong = || Fault::bad("Tags are a list of at most 50 strings of 1 to 60 characters without '/' and ','.");
    let list = list.as_array().filter(|list| list.len() <= 50).ok_or_else(wrong)?;
    list.iter()
        .map(|tag| tag.as_str().filter(|tag| is_tag(tag)).map(|tag| (tag.to_owned(), String::new())).ok_or_else(wrong))
        .collect()
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.chars().count() <= 60 && !tag.contains(['/', ','])
}

pub(super) async fn tags(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    ok(&json!({"tags": server_in(&view, id)?.tags.keys().collect::<Vec<_>>()}))
}

pub(super) async fn set_tags(State(app): State<App>, caller: Caller, Path(id): Path<String>, body: Object) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    let tags = parse_tags(body.0.get("tags").unwrap_or(&Value::Null))?;
    let answer = json!({"tags": tags.keys().collect::<Vec<_>>()});
    edit(&app, id, move |server| {
        server.tags = tags;
        Ok(())
    })
    .await?;
    ok(&answer)
}

pub(super) async fn delete_tags(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    edit(&app, id, |server| {
        server.tags.clear();
        Ok(())
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn has_tag(State(app): State<App>, caller: Caller, Path((id, tag)): Path<(String, String)>) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    if server_in(&view, id)?.tags.contains_key(&tag) { empty(StatusCode::NO_CONTENT) } else { Err(no_tag(&tag)) }
}

fn no_tag(tag: &str) -> Fault {
    Fault::not_found(format!("The server has no tag '{tag}'"))
}

pub(super) async fn add_tag(State(app): State<App>, caller: Caller, Path((id, tag)): Path<(String, String)>) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    if !is_tag(&tag) {
        return Err(Fault::bad("A tag is 1 to 60 characters without '/' and ','."));
    }
    let known = server_in(&app.view(), id)?.tags.contains_key(&tag);
    edit(&app, id, move |server| {
        server.tags.insert(tag, String::new());
        if server.tags.len() > 50 { Err(Fault::bad("A server has at most 50 tags.")) } else { Ok(()) }
    })
    .await?;
    empty(if known { StatusCode::NO_CONTENT } else { StatusCode::CREATED })
}

pub(super) async fn delete_tag(
    State(app): State<App>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> Reply {
    let id = find_server(&app.view(), &caller, &id, Action::Write)?;
    edit(&app, id, move |server| server.tags.remove(&tag).map(|_| ()).ok_or_else(|| no_tag(&tag))).await?;
    empty(StatusCode::NO_CONTENT)
}

// ---- what servers do not have yet, and their history

pub(super) async fn ips(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    read(&app, &caller, &id)?;
    ok(&json!({"addresses": {}}))
}

pub(super) async fn no_attachments(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    read(&app, &caller, &id)?;
    ok(&json!({"volumeAttachments": []}))
}

pub(super) async fn no_interfaces(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    read(&app, &caller, &id)?;
    ok(&json!({"interfaceAttachments": []}))
}

pub(super) async fn no_security_groups(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    read(&app, &caller, &id)?;
    ok(&json!({"security_groups": []}))
}

fn render_action(id: Uuid, server: &Server, request: &str, action: &ServerAction) -> Value {
    json!({
        "action": action.action, "instance_uuid": id.to_string(), "request_id": request,
        "user_id": action.user.simple().to_string(), "project_id": server.project.simple().to_string(),
        "start_time": stamp(action.start).trim_end_matches('Z'), "updated_at": stamp(action.start).trim_end_matches('Z'),
        "message": null,
    })
}

pub(super) async fn instance_actions(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    let server = server_in(&view, id)?;
    let mut actions: Vec<_> = server.actions.iter().collect();
    actions.sort_by_key(|(_, action)| std::cmp::Reverse(action.start));
    let actions: Vec<Value> =
        actions.into_iter().map(|(request, action)| render_action(id, server, request, action)).collect();
    ok(&json!({"instanceActions": actions}))
}

pub(super) async fn instance_action(
    State(app): State<App>,
    caller: Caller,
    Path((id, request)): Path<(String, String)>,
) -> Reply {
    let (view, id) = read(&app, &caller, &id)?;
    let server = server_in(&view, id)?;
    let action = server.actions.get(&request);
    let action = action.ok_or_else(|| Fault::not_found(format!("Action for request_id {request} not found")))?;
    let mut value = render_action(id, server, &request, action);
    value["events"] = json!([]);
    ok(&json!({"instanceAction": value}))
}

/// Writes down that something was done to a server; the oldest lines go first.
pub(super) fn note_action(server: &mut Server, request: &RequestId, action: &str, user: Uuid) {
    const KEPT: usize = 20;
    let line = ServerAction { action: action.into(), user, start: now() };
    server.actions.insert(request.0.clone(), line);
    while server.actions.len() > KEPT {
        let Some(oldest) = server.actions.iter().min_by_key(|(_, a)| a.start).map(|(id, _)| id.clone()) else { return };
        server.actions.remove(&oldest);
    }
}
