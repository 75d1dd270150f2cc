//! OpenStack Compute (Nova v2.1, microversions 2.1 to 2.96).
//!
//! A server is created with its claims on the quota and on a host in one entry, before the 202. Two answers differ
//! from Nova's for it: what cannot be placed is refused at once (409 `No valid host was found`), never accepted and
//! left in ERROR; and a server whose host's site cannot be reached has the status UNKNOWN and says since when, while
//! `OS-EXT-STS:vm_state` and `task_state` tell what was seen last.

mod actions;
mod admin;
mod aggregates;
mod create;
mod evacuate;
mod flavors;
mod images;
mod keypairs;
mod placement;
pub(crate) mod quotas;
mod render;
mod server_groups;
mod servers;
pub mod status;

use axum::Router;
use axum::routing::{get, post, put};
use luc_engine::id::Millis;
use luc_engine::record::{Kind, RecordId, Server};
use luc_engine::view::View;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion};
use crate::policy::{self, Action};

pub(crate) fn routes() -> Router<App> {
    // Clients of Nova's first API speak to `/v2`: it is v2.1 at its lowest version.
    Router::new().nest("/v2.1", versioned()).nest("/v2", versioned())
}

fn versioned() -> Router<App> {
    Router::new()
        .route("/servers", get(servers::list).post(create::create))
        .route("/servers/detail", get(servers::detail))
        .route("/servers/{id}", get(servers::show).put(servers::update).delete(servers::delete))
        .route("/servers/{id}/action", post(actions::action))
        .route("/servers/{id}/metadata", get(servers::metadata).put(servers::set_metadata).post(servers::add_metadata))
        .route(
            "/servers/{id}/metadata/{key}",
            get(servers::metadata_item).put(servers::set_metadata_item).delete(servers::delete_metadata_item),
        )
        .route("/servers/{id}/tags", get(servers::tags).put(servers::set_tags).delete(servers::delete_tags))
        .route("/servers/{id}/tags/{tag}", get(servers::has_tag).put(servers::add_tag).delete(servers::delete_tag))
        .route("/servers/{id}/ips", get(servers::ips))
        .route("/servers/{id}/os-instance-actions", get(servers::instance_actions))
        .route("/servers/{id}/os-instance-actions/{request}", get(servers::instance_action))
        .route("/servers/{id}/os-volume_attachments", get(servers::no_attachments).post(admin::not_yet))
        .route("/servers/{id}/os-interface", get(servers::no_interfaces).post(admin::not_yet))
        .route("/servers/{id}/os-security-groups", get(servers::no_security_groups))
        .route("/servers/{id}/remote-consoles", post(admin::not_yet))
        .route("/servers/{id}/diagnostics", get(admin::not_yet_for_administrators))
        .route("/flavors", get(flavors::list).post(flavors::create))
        .route("/flavors/detail", get(flavors::detail))
        .route("/flavors/{id}", get(flavors::show).put(flavors::update).delete(flavors::delete))
        .route("/flavors/{id}/os-flavor-access", get(flavors::access))
        .route("/flavors/{id}/action", post(flavors::change_access))
        .route("/flavors/{id}/os-extra_specs", get(flavors::extra_specs).post(flavors::add_extra_specs))
        .route(
            "/flavors/{id}/os-extra_specs/{key}",
            get(flavors::extra_spec).put(flavors::set_extra_spec).delete(flavors::delete_extra_spec),
        )
        .route("/images", get(images::list))
        .route("/images/detail", get(images::detail))
        .route("/images/{id}", get(images::show).delete(images::delete))
        .route("/images/{id}/metadata", get(images::metadata).put(images::set_metadata).post(images::add_metadata))
        .route("/images/{id}/metadata/{key}", get(images::item).put(images::set_item).delete(images::delete_item))
        .route("/os-keypairs", get(keypairs::list).post(keypairs::create))
        .route("/os-keypairs/{name}", get(keypairs::show).delete(keypairs::delete))
        .route("/os-availability-zone", get(admin::zones))
        .route("/os-availability-zone/detail", get(admin::zones_detail))
        .route("/os-hypervisors", get(admin::hypervisors))
        .route("/os-hypervisors/detail", get(admin::hypervisors_detail))
        .route("/os-hypervisors/statistics", get(admin::hypervisor_statistics))
        .route("/os-hypervisors/{id}", get(admin::hypervisor))
        .route("/os-hypervisors/{id}/search", get(admin::search_hypervisors))
        .route("/os-hypervisors/{id}/servers", get(admin::hypervisor_servers))
        .route("/os-hypervisors/{id}/uptime", get(admin::hypervisor_uptime))
        .route("/os-services", get(admin::services))
        .route("/os-services/{id}", put(admin::update_service))
        .route("/os-quota-sets/{project}", get(quotas::quota).put(quotas::set_quota).delete(quotas::reset_quota))
        .route("/os-quota-sets/{project}/detail", get(quotas::quota_detail))
        .route("/os-quota-sets/{project}/defaults", get(quotas::default_quota))
        .route("/os-quota-class-sets/{class}", get(quotas::quota_class).put(admin::not_yet_for_administrators))
        .route("/limits", get(admin::limits))
        .route("/os-simple-tenant-usage", get(admin::usages))
        .route("/os-simple-tenant-usage/{project}", get(admin::usage))
        .route("/os-aggregates", get(aggregates::list).post(aggregates::create))
        .route("/os-aggregates/{id}", get(aggregates::show).put(aggregates::update).delete(aggregates::delete))
        .route("/os-aggregates/{id}/action", post(aggregates::action))
        .route("/os-aggregates/{id}/images", post(admin::not_yet_for_administrators))
        .route("/os-server-groups", get(server_groups::list).post(server_groups::create))
        .route("/os-server-groups/{id}", get(server_groups::show).delete(server_groups::delete))
        .route("/os-migrations", get(admin::no_migrations))
        .route("/os-networks", get(admin::no_networks))
        .route("/os-tenant-networks", get(admin::no_networks))
        .route("/os-security-groups", get(admin::no_networks))
        .route("/os-floating-ips", get(admin::no_networks))
        .route("/extensions", get(admin::no_extensions))
}

/// What newer microversions do not have.
fn until(version: Microversion, last: u32) -> Result<(), Fault> {
    if version.0 <= last { Ok(()) } else { Err(Fault::not_found(format!("Gone since microversion 2.{}.", last + 1))) }
}

/// How a host is: `up`, `down`, or `unknown` where its site cannot be reached.
pub(crate) fn host_words(app: &App, view: &View, host: luc_engine::id::HostId) -> &'static str {
    match render::host_state(app, view, host) {
        render::HostState::Up => "up",
        render::HostState::Down => "down",
        render::HostState::Dead => "dead",
        render::HostState::Unknown => "unknown",
    }
}

/// Seconds, UTC, as Nova writes them.
pub(crate) fn stamp(at: Millis) -> String {
    let seconds = i64::try_from(at / 1000).unwrap_or(0);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_default()
}

/// A stamp that a client sent, Unix milliseconds.
fn parse_stamp(text: &str) -> Option<Millis> {
    let padded = if text.ends_with('Z') || text.rfind('+').is_some() { text.to_owned() } else { format!("{text}Z") };
    let at = OffsetDateTime::parse(&padded, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp()).ok()?.checked_mul(1000)
}

/// A server that the caller may see, deleted ones that still run too.
fn find_server(view: &View, caller: &Caller, id: &str, action: Action) -> Result<Uuid, Fault> {
    let gone = || Fault::not_found(format!("Instance {id} could not be found."));
    let uuid = Uuid::parse_str(id).map_err(|_| gone())?;
    let held = view.held(RecordId { kind: Kind::Server, id: uuid }).ok_or_else(gone)?;
    let server = status::server_of(held).ok_or_else(gone)?;
    // What a caller may not see does not exist for it; what it may see but not change is forbidden.
    if !policy::allows(caller, Action::Read, Some(server.project)) {
        return Err(gone());
    }
    policy::check(caller, action, Some(server.project))?;
    Ok(uuid)
}

/// A server that is not being deleted, for changes within a transaction.
fn live<'a>(tx: &'a luc_engine::tx::Tx<'_>, id: Uuid) -> Result<&'a Server, Fault> {
    tx.view().get::<Server>(id).ok_or_else(|| Fault::not_found(format!("Instance {id} could not be found.")))
}
