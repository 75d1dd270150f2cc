//! Zones, hypervisors, services, limits, usage: all derived from hosts, claims and pools, never counted apart.

use std::collections::HashMap;

use axum::Extension;
use axum::extract::{Path, Query, State};
use luc_engine::id::{HostId, Millis};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{Host, Kind, Project};
use luc_engine::view::View;
use luc_sync::node::now;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::quotas::{Limit, Quota, parse_project};
use super::render::{HostState, host_state};
use super::status::server_of;
use super::{parse_stamp, stamp};
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, ok};
use crate::policy::{self, Action};

type Filters = Query<HashMap<String, String>>;

fn hosts(view: &View) -> Vec<(HostId, &Host)> {
    let mut hosts: Vec<_> = view.all::<Host>().map(|(id, host)| (HostId(id), host)).collect();
    hosts.sort_by(|(_, a), (_, b)| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
    hosts
}

// ---- zones

fn zone(app: &App, name: &str) -> Value {
    // A zone whose site cannot be reached still takes servers, as far as rights on its hosts are held here.
    let available = app.view().all::<Host>().any(|(_, host)| host.site == name && !host.disabled);
    json!({"zoneName": name, "zoneState": {"available": available}, "hosts": null})
}

pub(super) async fn zones(State(app): State<App>, _: Caller) -> Reply {
    let zones: Vec<Value> = app.view().sites().iter().map(|site| zone(&app, site.as_str())).collect();
    ok(&json!({"availabilityZoneInfo": zones}))
}

pub(super) async fn zones_detail(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let mut zones = Vec::new();
    for site in view.sites() {
        let mut value = zone(&app, site.as_str());
        let mut of_site = Map::new();
        for (id, host) in hosts(&view).into_iter().filter(|(_, host)| host.site == site.as_str()) {
            let active = host_state(&app, &view, id) == HostState::Up;
            let heard = heard_at(&app, id).map(|at| format!("{}.000000", stamp(at).trim_end_matches('Z')));
            let service = json!({"available": !host.disabled, "active": active, "updated_at": heard});
            of_site.insert(host.name.clone(), json!({"nova-compute": service}));
        }
        value["hosts"] = Value::Object(of_site);
        zones.push(value);
    }
    ok(&json!({"availabilityZoneInfo": zones}))
}

fn heard_at(app: &App, host: HostId) -> Option<Millis> {
    let age = app.net().host_status(host)?.age?;
    Some(now().saturating_sub(age))
}

// ---- hypervisors

fn render_hypervisor(app: &App, view: &View, id: HostId, host: &Host, version: Microversion, detail: bool) -> Value {
    let state = host_state(app, view, id);
    let mut value = json!({
        "hypervisor_hostname": host.name,
        // Nova knows up and down only; what cannot be seen is told as down here, and as unknown in LUC's own API.
        "state": if state == HostState::Up { "up" } else { "down" },
        "status": if host.disabled { "disabled" } else { "enabled" },
    });
    value["id"] = if version.0 >= 53 { json!(id.to_string()) } else { json!(old_id(id.0)) };
    if !detail {
        return value;
    }
    value["hypervisor_type"] = json!(host.hypervisor_type);
    value["hypervisor_version"] = json!(host.hypervisor_version);
    value["host_ip"] = json!("127.0.0.1");
    let reason = (!host.disabled_reason.is_empty()).then_some(&host.disabled_reason);
    let service_id = if version.0 >= 53 { json!(id.to_string()) } else { json!(old_id(id.0)) };
    value["service"] = json!({"host": host.name, "id": service_id, "disabled_reason": reason});
    if version.0 >= 53 {
        value["servers"] = servers_on(view, id).map(render_server_on).collect();
    }
    if version.0 >= 88 {
        value["uptime"] = Value::Null;
        return value;
    }
    let used = claimed(view, id);
    let heartbeat = app.net().host_status(id).map(|status| status.heartbeat).unwrap_or_default();
    let capacity_free =
        |total: u64, d: Dimension| i64::try_from(total).unwrap_or(0) - i64::try_from(used.get(d)).unwrap_or(0);
    value["vcpus"] = json!(host.cpus);
    value["vcpus_used"] = json!(used.get(Dimension::Vcpus));
    value["memory_mb"] = json!(host.memory_mib);
    value["memory_mb_used"] = json!(used.get(Dimension::MemoryMib));
    value["free_ram_mb"] = json!(capacity_free(host.memory_mib, Dimension::MemoryMib));
    value["local_gb"] = json!(host.disk_gib);
    value["local_gb_used"] = json!(used.get(Dimension::DiskGib));
    value["free_disk_gb"] = json!(capacity_free(host.disk_gib, Dimension::DiskGib));
    value["disk_available_least"] = json!(heartbeat.disk_free_gib);
    value["running_vms"] = json!(heartbeat.running);
    value["current_workload"] = json!(0);
    value["cpu_info"] = if version.0 >= 28 { json!({}) } else { json!("") };
    value
}

/// Before 2.53 ids were numbers.
fn old_id(id: Uuid) -> u64 {
    u64::from(u32::from_be_bytes([0, id.as_bytes()[0], id.as_bytes()[1], id.as_bytes()[2]])) + 1
}

fn claimed(view: &View, host: HostId) -> Amount {
    view.ledger().host_pools(host).fold(Amount::default(), |sum, (_, pool)| sum.saturating_add(&pool.claimed))
}

fn servers_on(view: &View, host: HostId) -> impl Iterator<Item = Uuid> + '_ {
    view.ledger().claims_on(host).filter(|(_, claim)| claim.gone.is_empty()).map(|(_, claim)| claim.record.id)
}

fn all_hypervisors(
    app: &App,
    caller: &Caller,
    filters: &HashMap<String, String>,
    version: Microversion,
    detail: bool,
) -> Reply {
    policy::check(caller, Action::Administer, None)?;
    let view = app.view();
    let wanted = filters.get("hypervisor_hostname_pattern");
    let matching =
        hosts(&view).into_iter().filter(|(_, host)| wanted.is_none_or(|pattern| host.name.contains(pattern.as_str())));
    let found: Vec<Value> =
        matching.map(|(id, host)| render_hypervisor(app, &view, id, host, version, detail)).collect();
    if found.is_empty() && wanted.is_some() {
        return Err(Fault::not_found("No hypervisor matches."));
    }
    ok(&json!({"hypervisors": found}))
}

pub(super) async fn hypervisors(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Filters,
) -> Reply {
    all_hypervisors(&app, &caller, &filters, version, false)
}

pub(super) async fn hypervisors_detail(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Filters,
) -> Reply {
    all_hypervisors(&app, &caller, &filters, version, true)
}

fn find_hypervisor<'a>(view: &'a View, wanted: &str) -> Result<(HostId, &'a Host), Fault> {
    let found = hosts(view).into_iter().find(|(id, _)| id.to_string() == wanted || old_id(id.0).to_string() == wanted);
    found.ok_or_else(|| Fault::not_found(format!("Hypervisor with ID '{wanted}' could not be found.")))
}

pub(super) async fn hypervisor(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(wanted): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let (id, host) = find_hypervisor(&view, &wanted)?;
    ok(&json!({"hypervisor": render_hypervisor(&app, &view, id, host, version, true)}))
}

/// Hosts whose name contains the pattern, until 2.52; later the list has a filter.
fn matching<'a>(view: &'a View, pattern: &str) -> Result<Vec<(HostId, &'a Host)>, Fault> {
    let found: Vec<_> = hosts(view).into_iter().filter(|(_, host)| host.name.contains(pattern)).collect();
    if found.is_empty() {
        Err(Fault::not_found(format!("No hypervisor matching '{pattern}' could be found.")))
    } else {
        Ok(found)
    }
}

pub(super) async fn search_hypervisors(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(pattern): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    super::until(version, 52)?;
    let view = app.view();
    let found = matching(&view, &pattern)?.into_iter();
    let found = found.map(|(id, host)| render_hypervisor(&app, &view, id, host, version, false));
    ok(&json!({"hypervisors": found.collect::<Vec<_>>()}))
}

pub(super) async fn hypervisor_servers(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(pattern): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    super::until(version, 52)?;
    let view = app.view();
    let with_servers = |(id, host): (HostId, &Host)| {
        let mut value = render_hypervisor(&app, &view, id, host, version, false);
        let servers: Vec<Value> = servers_on(&view, id).map(render_server_on).collect();
        if !servers.is_empty() {
            value["servers"] = json!(servers);
        }
        value
    };
    ok(&json!({"hypervisors": matching(&view, &pattern)?.into_iter().map(with_servers).collect::<Vec<_>>()}))
}

fn render_server_on(server: Uuid) -> Value {
    json!({"uuid": server.to_string(), "name": format!("luc-{server}")})
}

/// Agents do not tell how long their machine has been up.
pub(super) async fn hypervisor_uptime(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(wanted): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    super::until(version, 87)?;
    find_hypervisor(&app.view(), &wanted)?;
    Err(Fault::not_implemented("LUC does not know the uptime of hypervisors."))
}

pub(super) async fn hypervisor_statistics(State(app): State<App>, caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let mut sums: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    let mut add = |key: &'static str, n: u64| *sums.entry(key).or_default() += n;
    for (id, host) in hosts(&view) {
        let used = claimed(&view, id);
        let heartbeat = app.net().host_status(id).map(|status| status.heartbeat).unwrap_or_default();
        add("count", 1);
        add("vcpus", host.cpus);
        add("vcpus_used", used.get(Dimension::Vcpus));
        add("memory_mb", host.memory_mib);
        add("memory_mb_used", used.get(Dimension::MemoryMib));
        add("free_ram_mb", host.memory_mib.saturating_sub(used.get(Dimension::MemoryMib)));
        add("local_gb", host.disk_gib);
        add("local_gb_used", used.get(Dimension::DiskGib));
        add("free_disk_gb", host.disk_gib.saturating_sub(used.get(Dimension::DiskGib)));
        add("disk_available_least", heartbeat.disk_free_gib);
        add("running_vms", heartbeat.running);
        add("current_workload", 0);
    }
    ok(&json!({"hypervisor_statistics": sums}))
}

// ---- services

fn render_service(app: &App, view: &View, id: HostId, host: &Host, version: Microversion) -> Value {
    let up = host_state(app, view, id) == HostState::Up;
    let heard = heard_at(app, id).map(|at| format!("{}.000000", stamp(at).trim_end_matches('Z')));
    let reason = (!host.disabled_reason.is_empty()).then_some(&host.disabled_reason);
    let mut value = json!({
        "binary": "nova-compute", "host": host.name, "zone": host.site,
        "status": if host.disabled { "disabled" } else { "enabled" }, "state": if up { "up" } else { "down" },
        "updated_at": heard, "disabled_reason": reason,
    });
    value["id"] = if version.0 >= 53 { json!(id.to_string()) } else { json!(old_id(id.0)) };
    if version.0 >= 11 {
        value["forced_down"] = json!(host.forced_down || view.death(id).is_some());
    }
    value
}

pub(super) async fn services(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Filters,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let wanted = |key: &str, actual: &str| filters.get(key).is_none_or(|wanted| wanted == actual);
    let found =
        hosts(&view).into_iter().filter(|(_, host)| wanted("host", &host.name) && wanted("binary", "nova-compute"));
    ok(&json!({"services": found.map(|(id, host)| render_service(&app, &view, id, host, version)).collect::<Vec<_>>()}))
}

pub(super) async fn update_service(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(wanted): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    if version.0 < 53 {
        return update_named_service(&app, &wanted, &body, version).await;
    }
    let unknown = || Fault::not_found(format!("Service {wanted} not found."));
    let id = Uuid::parse_str(&wanted).map_err(|_| unknown())?;
    app.view().get::<Host>(id).ok_or_else(unknown)?;
    let forced_down = body.flag("forced_down")?;
    let disabled = match body.text("status")? {
        Some("disabled") => Some(true),
        Some("enabled") => Some(false),
        None if forced_down.is_some() => None,
        _ => return Err(Fault::bad("\"status\" must be enabled or disabled.")),
    };
    let reason = body.text("disabled_reason")?.unwrap_or_default().to_owned();
    set_wishes(&app, id, disabled.map(|disabled| (disabled, reason)), forced_down).await?;
    let view = app.view();
    let host = view.get::<Host>(id).ok_or_else(unknown)?;
    ok(&json!({"service": render_service(&app, &view, HostId(id), host, version)}))
}

/// What operators wish of a host: whether it takes servers, with the reason, and whether it counts as down (`forced_down`).
async fn set_wishes(
    app: &App,
    host: Uuid,
    disabled: Option<(bool, String)>,
    forced_down: Option<bool>,
) -> Result<(), Fault> {
    app.transact(move |tx| {
        if forced_down == Some(false) && tx.view().death(HostId(host)).is_some() {
            return Err(Fault::conflict("The host was declared dead: luc host revive lets its machine come back."));
        }
        tx.update::<Host, Fault>(host, |host| {
            if let Some((disabled, reason)) = disabled {
                host.disabled = disabled;
                host.disabled_reason = if disabled { reason } else { String::new() };
            }
            host.forced_down = forced_down.unwrap_or(host.forced_down);
            Ok(())
        })
    })
    .await
}

/// Before 2.53 the path named what is done, and the body the host.
async fn update_named_service(app: &App, verb: &str, body: &Object, version: Microversion) -> Reply {
    let disabled = match verb {
        "enable" => false,
        "disable" | "disable-log-reason" => true,
        "force-down" if version.0 >= 11 => false,
        _ => return Err(Fault::not_found("Unknown action")),
    };
    let (name, binary) = (body.required("host")?, body.required("binary")?);
    let unknown = || Fault::not_found(format!("Service {binary} on {name} not found."));
    let view = app.view();
    let found = hosts(&view).into_iter().find(|(_, host)| host.name == name && binary == "nova-compute");
    let (id, _) = found.ok_or_else(unknown)?;
    if verb == "force-down" {
        let down = body.flag("forced_down")?.ok_or_else(|| Fault::bad("\"forced_down\" must be true or false."))?;
        set_wishes(app, id.0, None, Some(down)).await?;
        return ok(&json!({"service": {"host": name, "binary": binary, "forced_down": down}}));
    }
    let reason = match verb {
        "disable-log-reason" => body.required("disabled_reason")?.to_owned(),
        _ => String::new(),
    };
    set_wishes(app, id.0, Some((disabled, reason.clone())), None).await?;
    let mut value = json!({"host": name, "binary": binary, "status": if disabled { "disabled" } else { "enabled" }});
    if verb == "disable-log-reason" {
        value["disabled_reason"] = json!(reason);
    }
    ok(&json!({"service": value}))
}

// ---- limits

pub(super) async fn limits(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Query(filters): Filters,
) -> Reply {
    let project = match filters.get("tenant_id") {
        Some(id) => {
            policy::check(&caller, Action::Administer, None)?;
            parse_project(&app, &caller, id)?
        }
        None => caller.project()?,
    };
    let view = app.view();
    let Quota { wanted, used, .. } = Quota::of(&view, project);
    let mut absolute = json!({
        "maxTotalInstances": wanted.get(Dimension::Instances), "maxTotalCores": wanted.get(Dimension::Vcpus),
        "maxTotalRAMSize": wanted.get(Dimension::MemoryMib), "maxTotalKeypairs": Limit::KeyPairs.of(&view, project),
        "maxServerMeta": Limit::MetadataItems.of(&view, project),
        "maxServerGroups": wanted.get(Dimension::ServerGroups), "maxServerGroupMembers": Limit::ServerGroupMembers.of(&view, project),
        "totalInstancesUsed": used.get(Dimension::Instances),
        "totalCoresUsed": used.get(Dimension::Vcpus), "totalRAMUsed": used.get(Dimension::MemoryMib),
        "totalServerGroupsUsed": used.get(Dimension::ServerGroups),
    });
    if version.0 < 57 {
        absolute["maxPersonality"] = json!(0);
        absolute["maxPersonalitySize"] = json!(0);
    }
    if version.0 < 39 {
        absolute["maxImageMeta"] = json!(128);
    }
    if version.0 < 36 {
        for key in [
            "maxSecurityGroups",
            "maxSecurityGroupRules",
            "maxTotalFloatingIps",
            "totalSecurityGroupsUsed",
            "totalFloatingIpsUsed",
        ] {
            absolute[key] = json!(0);
        }
    }
    ok(&json!({"limits": {"rate": [], "absolute": absolute}}))
}

// ---- usage

fn period(filters: &HashMap<String, String>) -> Result<(Millis, Millis), Fault> {
    let at = |key: &str, otherwise: Millis| match filters.get(key) {
        None => Ok(otherwise),
        Some(text) => {
            let day = (text.len() == 10).then(|| format!("{text}T00:00:00Z"));
            let parsed = parse_stamp(day.as_deref().unwrap_or(text));
            parsed.ok_or_else(|| Fault::bad(format!("Invalid time for {key}: {text}")))
        }
    };
    // What has not happened yet is not used yet.
    let end = at("end", now())?.min(now());
    let start = at("start", end.saturating_sub(28 * 24 * 3_600_000))?;
    if start > end { Err(Fault::bad("\"start\" is after \"end\".")) } else { Ok((start, end)) }
}

/// What a project's servers have used. Servers that are gone are gone from here too: LUC keeps no history yet.
fn project_usage(view: &View, project: Uuid, (start, end): (Millis, Millis), detail: bool) -> Option<Value> {
    let mut servers = Vec::new();
    let [mut hours, mut vcpu, mut memory, mut disk] = [0.0_f64; 4];
    for id in view.children(Kind::Server, project) {
        let held = view.held(luc_engine::record::RecordId { kind: Kind::Server, id });
        let Some(server) = held.and_then(|held| server_of(held)) else { continue };
        let from = server.created_at.max(start);
        let ran = u32::try_from(end.saturating_sub(from) / 1000).map_or(0.0, f64::from) / 3600.0;
        let flavor = &server.flavor;
        let number = |n: u64| u32::try_from(n).map_or(0.0, f64::from);
        hours += ran;
        vcpu += ran * number(flavor.vcpus);
        memory += ran * number(flavor.ram_mib);
        disk += ran * number(flavor.disk_gib);
        if detail {
            servers.push(json!({
                "instance_id": id.to_string(), "name": server.name, "hours": ran, "flavor": flavor.name,
                "vcpus": flavor.vcpus, "memory_mb": flavor.ram_mib, "local_gb": flavor.disk_gib,
                "tenant_id": project.simple().to_string(), "started_at": format!("{}.000000", stamp(server.created_at).trim_end_matches('Z')),
                "ended_at": null, "state": "active", "uptime": end.saturating_sub(from) / 1000,
            }));
        }
    }
    if hours == 0.0 && servers.is_empty() {
        return None;
    }
    let plain = |at| format!("{}.000000", stamp(at).trim_end_matches('Z'));
    let mut value = json!({
        "tenant_id": project.simple().to_string(), "start": plain(start), "stop": plain(end), "total_hours": hours,
        "total_vcpus_usage": vcpu, "total_memory_mb_usage": memory, "total_local_gb_usage": disk,
    });
    if detail {
        value["server_usages"] = json!(servers);
    }
    Some(value)
}

pub(super) async fn usages(State(app): State<App>, caller: Caller, Query(filters): Filters) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let (view, period) = (app.view(), period(&filters)?);
    let detail = filters.get("detailed").is_some_and(|value| value == "1");
    let usages: Vec<Value> =
        view.all::<Project>().filter_map(|(id, _)| project_usage(&view, id, period, detail)).collect();
    ok(&json!({"tenant_usages": usages}))
}

pub(super) async fn usage(
    State(app): State<App>,
    caller: Caller,
    Path(project): Path<String>,
    Query(filters): Filters,
) -> Reply {
    let project = parse_project(&app, &caller, &project)?;
    let usage = project_usage(&app.view(), project, period(&filters)?, true);
    ok(&json!({"tenant_usage": usage.unwrap_or_else(|| json!({}))}))
}

// ---- what there is none of yet

/// Says so, to those who may ask; Nova has these for administrators.
pub(super) async fn not_yet_for_administrators(caller: Caller, uri: axum::http::Uri) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    not_yet(caller, uri).await
}

/// Says so.
pub(super) async fn not_yet(_: Caller, uri: axum::http::Uri) -> Reply {
    let what = uri
        .path()
        .trim_matches('/')
        .split('/')
        .find(|part| part.starts_with("os-") || matches!(*part, "remote-consoles" | "diagnostics"));
    Err(Fault::not_implemented(format!("LUC does not have {} yet.", what.unwrap_or("this"))))
}

/// What Nova once passed on to the network service.
pub(super) async fn no_networks(_: Caller) -> Reply {
    Err(Fault::not_found("LUC has no networks yet: create servers with --nic none."))
}

pub(super) async fn no_migrations(caller: Caller) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    ok(&json!({"migrations": []}))
}

pub(super) async fn no_extensions(_: Caller) -> Reply {
    ok(&json!({"extensions": []}))
}
