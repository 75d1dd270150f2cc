//! Server groups (`os-server-groups`): servers that shall be together, or apart.
//!
//! A hard policy is kept by rights, see `luc_engine::schedule`: what cannot be placed without breaking it is refused at
//! once. A group's members are told by the servers, never kept in the group: two sites that add members apart need not
//! agree on a list.

use std::collections::HashMap;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use luc_engine::ledger::Dimension;
use luc_engine::record::{GroupPolicy, Kind, Project, RecordId, Server, ServerGroup};
use luc_engine::schedule::mint_group;
use luc_engine::tx::Tx;
use luc_engine::view::View;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::compute::quotas::Quota;
use crate::http::{Fault, Microversion, Object, Reply, empty, ok};
use crate::policy::{self, Action};
use crate::rights::{Missing, give_back, with_rights};

/// Most groups of one answer.
const PAGE: usize = 1000;
/// Most members that a limit may allow on one host: more than any host carries.
const MOST_PER_HOST: u64 = 0x7fff_ffff;

pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Query<HashMap<String, String>>,
) -> Reply {
    let view = app.view();
    let number = |key: &str, otherwise: usize| match filters.get(key) {
        None => Ok(otherwise),
        Some(text) => text.parse().map_err(|_| Fault::bad(format!("{key:?} must be a whole number, at least 0."))),
    };
    let (limit, offset) = (number("limit", PAGE)?.min(PAGE), number("offset", 0)?);
    let groups: Vec<(Uuid, &ServerGroup)> = if filters.contains_key("all_projects") {
        policy::check(&caller, Action::Administer, None)?;
        view.all::<ServerGroup>().collect()
    } else {
        let project = caller.project()?;
        policy::check(&caller, Action::Read, Some(project))?;
        let own = view.children(Kind::ServerGroup, project);
        own.filter_map(|id| Some((id, view.get::<ServerGroup>(id)?))).collect()
    };
    let page = groups.into_iter().skip(offset).take(limit);
    ok(&json!({"server_groups": page.map(|(id, group)| render(&view, version, id, group)).collect::<Vec<_>>()}))
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
) -> Reply {
    let view = app.view();
    let (id, group) = find(&view, &caller, &id, Action::Read)?;
    ok(&json!({"server_group": render(&view, version, id, group)}))
}

pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    body: Object,
) -> Reply {
    let project = caller.project()?;
    policy::check(&caller, Action::Write, Some(project))?;
    let given = body.inner("server_group")?;
    let (policy, limit) = if version.0 >= 64 { one_policy(&given)? } else { (policies(&given, version)?, None) };
    let group = ServerGroup {
        project,
        user: caller.user,
        name: given.required("name")?.trim().to_owned(),
        policy,
        max_per_host: if policy == GroupPolicy::AntiAffinity { limit.unwrap_or(1) } else { 0 },
        has_limit: limit.is_some(),
    };
    let random = Uuid::new_v4();
    let make = move |tx: &mut Tx<'_>| {
        tx.get::<Project>(project)?;
        let id = tx.fresh(Kind::ServerGroup, random);
        let one = std::iter::once((Dimension::ServerGroups, 1)).collect();
        Quota::of(tx.view(), project).admits(&one).map_err(Missing::Short)?;
        let pools: Vec<_> = tx.view().ledger().quota_pools(project).map(|(id, _)| id).collect();
        tx.claim(&pools, &one, RecordId { kind: Kind::ServerGroup, id }, 0)?;
        tx.create(id, group, &[])?;
        mint_group(tx, id, policy)?;
        Ok(id)
    };
    let id =
        with_rights(&app, make, |text| Fault::forbidden(format!("Quota exceeded, too many server groups: {text}")))
            .await?;
    let view = app.view();
    let (_, group) = find(&view, &caller, &id.to_string(), Action::Read)?;
    ok(&json!({"server_group": render(&view, version, id, group)}))
}

/// Members stay where they are; the rights that keep them apart come back when they are gone.
pub(super) async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let (id, _) = find(&app.view(), &caller, &id, Action::Write)?;
    app.transact(move |tx| Ok(give_back(tx, RecordId { kind: Kind::ServerGroup, id })?)).await?;
    empty(StatusCode::NO_CONTENT)
}

fn find<'a>(view: &'a View, caller: &Caller, id: &str, action: Action) -> Result<(Uuid, &'a ServerGroup), Fault> {
    let gone = || Fault::not_found(format!("Instance group {id} could not be found."));
    let uuid = Uuid::parse_str(id).map_err(|_| gone())?;
    let group = view.get::<ServerGroup>(uuid).ok_or_else(gone)?;
    if !policy::allows(caller, Action::Read, Some(group.project)) {
        return Err(gone());
    }
    policy::check(caller, action, Some(group.project))?;
    Ok((uuid, group))
}

/// The servers of a group that are not being deleted.
pub(super) fn members(view: &View, group: Uuid) -> impl Iterator<Item = Uuid> {
    view.children(Kind::Server, group).filter(|id| view.get::<Server>(*id).is_some())
}

fn render(view: &View, version: Microversion, id: Uuid, group: &ServerGroup) -> Value {
    let members: Vec<String> = members(view, id).map(|id| id.to_string()).collect();
    let mut value = json!({"id": id.to_string(), "name": group.name, "members": members});
    if version.0 >= 13 {
        value["project_id"] = json!(group.project.simple().to_string());
        value["user_id"] = json!(group.user.simple().to_string());
    }
    if version.0 >= 64 {
        value["policy"] = json!(group.policy.name());
        value["rules"] = if group.has_limit { json!({"max_server_per_host": group.max_per_host}) } else { json!({}) };
    } else {
        value["policies"] = json!([group.policy.name()]);
        value["metadata"] = json!({});
    }
    value
}

fn only(given: &Object, keys: &[&str]) -> Result<(), Fault> {
    match given.0.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(other) => Err(Fault::bad(format!("Additional properties are not allowed ({other:?} was unexpected)."))),
        None => Ok(()),
    }
}

/// Until 2.63 a list of one policy; the soft ones came with 2.15.
fn policies(given: &Object, version: Microversion) -> Result<GroupPolicy, Fault> {
    only(given, &["name", "policies"])?;
    let list = given.0.get("policies").and_then(Value::as_array).map(Vec::as_slice);
    let Some([Value::String(name)]) = list else {
        return Err(Fault::bad("\"policies\" must be a list of exactly one policy."));
    };
    parse(name, version.0 >= 15)
}

/// Since 2.64 one policy, and rules.
fn one_policy(given: &Object) -> Result<(GroupPolicy, Option<u64>), Fault> {
    only(given, &["name", "policy", "rules"])?;
    let policy = parse(given.required("policy")?, true)?;
    let rules = match given.0.get("rules") {
        None => return Ok((policy, None)),
        Some(Value::Object(rules)) => Object(rules.clone()),
        Some(_) => return Err(Fault::bad("\"rules\" must be an object.")),
    };
    only(&rules, &["max_server_per_host"])?;
    if rules.0.is_empty() {
        return Ok((policy, None));
    }
    if policy != GroupPolicy::AntiAffinity {
        return Err(Fault::bad("Only anti-affinity policy supports rules."));
    }
    let limit = rules.number("max_server_per_host")?.filter(|n| (1..=MOST_PER_HOST).contains(n));
    limit
        .map(|limit| (policy, Some(limit)))
        .ok_or_else(|| Fault::bad(format!("\"max_server_per_host\" must be a whole number from 1 to {MOST_PER_HOST}.")))
}

fn parse(name: &str, soft: bool) -> Result<GroupPolicy, Fault> {
    let is_soft = |policy: &GroupPolicy| matches!(policy, GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity);
    let known: Vec<GroupPolicy> = GroupPolicy::ALL.into_iter().filter(|policy| soft || !is_soft(policy)).collect();
    known.iter().copied().find(|policy| policy.name() == name).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|policy| policy.name()).collect();
        Fault::bad(format!("{name:?} is not one of {known:?}."))
    })
}
