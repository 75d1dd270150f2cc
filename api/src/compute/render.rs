//! A server as Nova shows it, by microversion.

use std::collections::{BTreeMap, HashMap};

use luc_engine::agent::Observation;
use luc_engine::id::{HostId, Millis};
use luc_engine::ledger::Dimension;
use luc_engine::record::{Host, Kind, RecordId, Server, ServerGroup};
use luc_engine::view::{Held, Placement, View};
use luc_sync::node::now;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;

use super::stamp;
use super::status::{server_of, status};
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Reply, ok};

/// An object on its way out. A list of five hundred servers has twenty thousand fields: their names are not copied and
/// not sorted.
pub(crate) struct Fields(Vec<(&'static str, Value)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// What every server of one answer is rendered with.
pub(crate) struct Renderer<'a> {
    pub(crate) app: &'a App,
    pub(crate) view: &'a View,
    pub(crate) base: String,
    pub(crate) version: Microversion,
    pub(crate) is_admin: bool,
    /// Host: name, and how it is. Looked up once an answer.
    hosts: HashMap<HostId, (String, &'static str)>,
}

impl<'a> Renderer<'a> {
    pub(crate) fn new(app: &'a App, view: &'a View, base: String, version: Microversion, caller: &Caller) -> Self {
        Self { app, view, base, version, is_admin: caller.is_admin, hosts: HashMap::new() }
    }

    /// Links of a server.
    pub(crate) fn links(&self, id: Uuid) -> Value {
        links(&self.base, "servers", &id.to_string())
    }

    /// Everything but what only some requests show.
    pub(crate) fn server(&mut self, id: Uuid, held: &Held) -> Option<Fields> {
        let server = server_of(held)?;
        let version = self.version;
        let seen = seen(self.view, id, held);
        let mut state = status(server, seen, held.deleted);
        let placement = self.view.placement(id);
        let host = placement.as_ref().map(|placement| placement.host);
        let (host_name, host_status) = host.map(|host| self.host(host)).unwrap_or_default();
        let lost = placement.as_ref().and_then(|placement| lost(self.view, placement, held));
        if lost.is_some() {
            state = state.lost();
        } else if host_status == "UNKNOWN" {
            state = state.out_of_reach();
        }
        let zone = host.and_then(|host| self.view.site_of_host(host)).map(|site| site.to_string());
        let mut fields = Vec::with_capacity(48);
        let mut put = |key, value| fields.push((key, value));
        put("id", json!(id.to_string()));
        put("name", json!(server.name));
        put("status", json!(state.status));
        put("tenant_id", json!(server.project.simple().to_string()));
        put("user_id", json!(server.user.simple().to_string()));
        put("metadata", json!(server.metadata));
        put("hostId", json!(host.map(|host| host_id(server.project, host)).unwrap_or_default()));
        put(
            "image",
            server.image.as_ref().map_or(json!(""), |image| {
                let id = image.record.to_string();
                json!({"id": id, "links": [{"rel": "bookmark", "href": format!("{}/compute/images/{id}", self.base)}]})
            }),
        );
        put("flavor", self.flavor(server));
        put("created", json!(stamp(server.created_at)));
        put("updated", json!(stamp(server.updated_at.max(seen.map_or(0, |seen| seen.at)))));
        put("addresses", json!({}));
        put("accessIPv4", json!(server.access_ipv4));
        put("accessIPv6", json!(server.access_ipv6));
        put("links", self.links(id));
        put("OS-DCF:diskConfig", json!(disk_config(server)));
        put("OS-EXT-AZ:availability_zone", json!(zone.unwrap_or_default()));
        put("OS-EXT-STS:power_state", json!(state.power_state));
        put("OS-EXT-STS:task_state", json!(state.task_state));
        put("OS-EXT-STS:vm_state", json!(state.vm_state));
        put("OS-SRV-USG:launched_at", json!(seen.and_then(|seen| seen.launched_at).map(plain_stamp)));
        put("OS-SRV-USG:terminated_at", Value::Null);
        put("key_name", json!(server.key_name));
        put("config_drive", json!(if server.config_drive { "True" } else { "" }));
        put("os-extended-volumes:volumes_attached", json!([]));
        if matches!(state.status, "ACTIVE" | "BUILD" | "REBOOT" | "HARD_REBOOT") {
            put("progress", json!(self.progress(server, seen)));
        }
        if let Some((at, message)) = lost {
            put("fault", json!({"code": 500, "created": stamp(at), "message": message}));
        } else if let Some((host, seen)) = host.zip(seen).filter(|_| state.status == "UNKNOWN") {
            put("fault", self.silence(host, seen));
        } else if let Some(fault) = seen.and_then(|seen| seen.fault.as_ref().map(|fault| (seen.at, fault))) {
            let (at, fault) = fault;
            if state.status == "ERROR" || fault.retrying {
                put("fault", json!({"code": 500, "created": stamp(at), "message": fault.message}));
            }
        }
        if self.is_admin {
            put("OS-EXT-SRV-ATTR:host", json!(host_name));
            put("OS-EXT-SRV-ATTR:hypervisor_hostname", json!(host_name));
            put("OS-EXT-SRV-ATTR:instance_name", json!(format!("luc-{id}")));
            if version.0 >= 3 {
                put("OS-EXT-SRV-ATTR:reservation_id", json!(server.reservation_id));
                put("OS-EXT-SRV-ATTR:launch_index", json!(server.launch_index));
                put("OS-EXT-SRV-ATTR:kernel_id", json!(""));
                put("OS-EXT-SRV-ATTR:ramdisk_id", json!(""));
                put("OS-EXT-SRV-ATTR:root_device_name", json!("/dev/vda"));
                let data = (!server.user_data.is_empty()).then_some(&server.user_data);
                put("OS-EXT-SRV-ATTR:user_data", json!(data));
            }
        }
        if version.0 >= 90 || (version.0 >= 3 && self.is_admin) {
            put("OS-EXT-SRV-ATTR:hostname", json!(server.hostname));
        }
        if version.0 >= 9 {
            put("locked", json!(server.locked));
        }
        // Nova, too, lets owners see that a host is unknown.
        if version.0 >= 16 && (self.is_admin || host_status == "UNKNOWN") {
            put("host_status", json!(host_status));
        }
        if version.0 >= 19 {
            put("description", json!((!server.description.is_empty()).then_some(&server.description)));
        }
        if version.0 >= 26 {
            put("tags", json!(server.tags.keys().collect::<Vec<_>>()));
        }
        if version.0 >= 63 {
            put("trusted_image_certificates", Value::Null);
        }
        if version.0 >= 73 {
            put("locked_reason", json!(server.locked_reason));
        }
        if version.0 >= 96 {
            let pinned = (!server.availability_zone.is_empty()).then_some(&server.availability_zone);
            put("pinned_availability_zone", json!(pinned));
        }
        Some(Fields(fields))
    }

    /// What lists without details show.
    pub(crate) fn brief(&self, id: Uuid, server: &Server) -> Fields {
        Fields(vec![("id", json!(id.to_string())), ("name", json!(server.name)), ("links", self.links(id))])
    }

    /// What only showing one server adds.
    ///
    /// # Errors
    /// 404 if it has just gone.
    pub(crate) fn shown(&mut self, id: Uuid) -> Reply {
        let gone = || Fault::not_found(format!("Instance {id} could not be found."));
        let held = self.view.held(RecordId { kind: Kind::Server, id }).ok_or_else(gone)?;
        let mut server = self.server(id, held).ok_or_else(gone)?;
        if self.version.0 >= 71 {
            let group = server_of(held).and_then(|server| server.group);
            let group = group.filter(|id| self.view.get::<ServerGroup>(*id).is_some()).map(|id| id.to_string());
            server.0.push(("server_groups", json!(group.into_iter().collect::<Vec<_>>())));
        }
        ok(&BTreeMap::from([("server", server)]))
    }

    fn flavor(&self, server: &Server) -> Value {
        let flavor = &server.flavor;
        if self.version.0 < 47 {
            return json!({"id": flavor.flavor_id, "links": bookmark(&self.base, "flavors", &flavor.flavor_id)});
        }
        json!({
            "original_name": flavor.name, "vcpus": flavor.vcpus, "ram": flavor.ram_mib, "disk": flavor.disk_gib,
            "ephemeral": flavor.ephemeral_gib, "swap": flavor.swap_mib, "extra_specs": flavor.extra_specs,
        })
    }

    /// How much of the image has come, in percent, while that is waited for.
    fn progress(&self, server: &Server, seen: Option<&Observation>) -> u64 {
        if seen.is_some_and(|seen| seen.launched_at.is_some()) {
            return 100;
        }
        let blob = server.image.as_ref().map(|image| image.data.blob.as_str());
        // As its host told last, wherever that is; this replica's own fetches are known to the moment.
        let host = seen.map(|seen| seen.host);
        let told = host.and_then(|host| self.app.net().host_status(host)).map(|status| status.heartbeat.transfers);
        let here =
            self.app.net().blobs().transfers().into_iter().filter(|_| host.is_some_and(|host| self.is_here(host)));
        let transfers = here.chain(told.into_iter().flatten());
        let transfer = transfers.into_iter().find(|(name, _, _)| Some(name.as_str()) == blob);
        transfer.map_or(0, |(_, done, size)| done.saturating_mul(100).checked_div(size).unwrap_or(0))
    }

    fn is_here(&self, host: HostId) -> bool {
        self.view.site_of_host(host).as_ref() == Some(self.app.node().site())
    }

    /// Since when a server cannot be seen, where Nova says what is wrong with one.
    fn silence(&self, host: HostId, seen: &Observation) -> Value {
        let age = self.app.net().host_status(host).and_then(|status| status.age);
        let since = age.map_or(seen.at, |age| now().saturating_sub(age));
        let site = self.view.site_of_host(host).map(|site| site.to_string()).unwrap_or_default();
        let here = self.app.node().site();
        let message = format!(
            "Site {site} is out of reach of {here} since {}: the server's state is unknown; what is shown is what was seen last.",
            stamp(since)
        );
        json!({"code": 503, "created": stamp(since), "message": message})
    }

    /// A host's name, and Nova's word for how it is: UNKNOWN when its site cannot be reached.
    fn host(&mut self, host: HostId) -> (String, &'static str) {
        if let Some(known) = self.hosts.get(&host) {
            return known.clone();
        }
        let record = self.view.get::<Host>(host.0);
        let name = record.map(|host| host.name.clone()).unwrap_or_default();
        let status = match host_state(self.app, self.view, host) {
            HostState::Up if record.is_some_and(|host| host.disabled) => "MAINTENANCE",
            HostState::Up => "UP",
            HostState::Down | HostState::Dead => "DOWN",
            HostState::Unknown => "UNKNOWN",
        };
        self.hosts.insert(host, (name.clone(), status));
        (name, status)
    }
}

/// What was seen of a server where it is now. What was seen where it was placed before says nothing any more.
pub(crate) fn seen<'a>(view: &View, server: Uuid, held: &'a Held) -> Option<&'a Observation> {
    let epoch = view.placement(server).map_or(0, |placement| placement.epoch);
    held.observation.as_ref().filter(|seen| seen.epoch >= epoch)
}

/// Why a server can never run where it is, and since when: its host was declared dead, or has refused it for ever.
pub(crate) fn lost(view: &View, placement: &Placement<'_>, held: &Held) -> Option<(Millis, &'static str)> {
    if placement.dead {
        let at = view.death(placement.host).map_or(0, |death| death.at);
        return Some((at, "Its host was declared dead: evacuate or delete it."));
    }
    let updated = server_of(held).map_or(0, |server| server.updated_at.max(server.created_at));
    (placement.gone && !held.deleted).then_some((updated, "Its host has refused it for ever: delete it."))
}

/// How a host is, as far as this replica can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostState {
    /// Heard lately.
    Up,
    /// Its site can be reached and has not heard of it.
    Down,
    /// Declared dead by an operator.
    Dead,
    /// Its site cannot be reached.
    Unknown,
}

pub(crate) fn host_state(app: &App, view: &View, host: HostId) -> HostState {
    if view.death(host).is_some() {
        return HostState::Dead;
    }
    if view.get::<Host>(host.0).is_some_and(|host| host.forced_down) {
        return HostState::Down;
    }
    let Some(site) = view.site_of_host(host) else { return HostState::Unknown };
    if site != *app.node().site() && app.net().reachable_in(&site).is_empty() {
        return HostState::Unknown;
    }
    let fresh = app
        .net()
        .host_status(host)
        .is_some_and(|status| status.age.is_some_and(|age| age < 15_000) && status.heartbeat.hypervisor_up);
    if fresh { HostState::Up } else { HostState::Down }
}

/// How Nova says whether a guest's disk may be repartitioned.
pub(crate) fn disk_config(server: &Server) -> &str {
    if server.disk_config.is_empty() { "MANUAL" } else { &server.disk_config }
}

/// What a server holds of a quota.
pub(crate) fn quota_of(server: &Server) -> luc_engine::ledger::Amount {
    crate::bootstrap::quota(1, server.flavor.vcpus, server.flavor.ram_mib)
}

/// What a server holds of a host. A root disk of 0 GiB is the image's own size.
pub(crate) fn host_need(server: &Server) -> luc_engine::ledger::Amount {
    let flavor = &server.flavor;
    let image = server.image.as_ref().map_or(0, |image| image.data.virtual_size.div_ceil(1 << 30));
    let root = if flavor.disk_gib == 0 { image } else { flavor.disk_gib };
    let swap = flavor.swap_mib.div_ceil(1024);
    let disk = root.saturating_add(flavor.ephemeral_gib).saturating_add(swap);
    [(Dimension::Vcpus, flavor.vcpus), (Dimension::MemoryMib, flavor.ram_mib), (Dimension::DiskGib, disk)]
        .into_iter()
        .collect()
}

/// Nova's `hostId`: the same for a project's servers on one host, and tells nothing about the host.
fn host_id(project: Uuid, host: HostId) -> String {
    let hash = blake3::hash(&[project.as_bytes().as_slice(), host.0.as_bytes()].concat());
    hex::encode(&hash.as_bytes()[..28])
}

/// `launched_at` has no zone in Nova.
fn plain_stamp(at: luc_engine::id::Millis) -> String {
    format!("{}.000000", stamp(at).trim_end_matches('Z'))
}

pub(crate) fn links(base: &str, kind: &str, id: &str) -> Value {
    json!([
        {"rel": "self", "href": format!("{base}/compute/v2.1/{kind}/{id}")},
        {"rel": "bookmark", "href": format!("{base}/compute/{kind}/{id}")},
    ])
}

fn bookmark(base: &str, kind: &str, id: &str) -> Value {
    json!([{"rel": "bookmark", "href": format!("{base}/compute/{kind}/{id}")}])
}
