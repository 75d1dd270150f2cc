//! `POST /servers`: the request is checked, then record, quota claim and host claim become one entry.
//!
//! Where rights are short here and free elsewhere, their holders are asked once, for a bounded time; then the request
//! is answered, with what is known of where the rights are.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use luc_engine::entry::Subject;
use luc_engine::id::{HostId, PoolId};
use luc_engine::ledger::Dimension;
use luc_engine::record::{
    Flavor, Host, Image, Keypair, Kind, Power, Project, RecordId, Server, ServerAction, ServerFlavor, ServerGroup,
    ServerImage,
};
use luc_engine::schedule::{NoValidHost, Request, choose};
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::{Refusal, Shortage, Tx};
use luc_engine::view::View;
use luc_sync::rpc::Asked;
use serde_json::{Value, json};
use uuid::Uuid;

use super::placement::{self, Hints};
use super::quotas::{Limit, Quota};
use super::render::{links, quota_of};
use super::server_groups::members;
use crate::app::App;
use crate::auth::Caller;
use crate::discovery::base;
use crate::http::{Fault, Microversion, Object, Reply, RequestId, json_reply};
use crate::policy::{self, Action};
use crate::rights::Holders;

/// Most servers of one request.
const MOST: u64 = 100;
/// How often a request is tried, with rights asked for in between: the quota's, then two hosts'.
const TRIES: u64 = 4;
/// How many further tries the members of a server group get.
const MEMBERS: u64 = 20;
/// Nova's limit of user data, bytes of base64.
const USER_DATA: usize = 65_535;

/// Why servers could not be created.
enum Unplaced {
    /// The project's quota is short.
    Quota(Box<Shortage>),
    /// No host will do.
    NoHost(NoValidHost),
    /// Something else.
    Fault(Fault),
}

impl From<Refusal> for Unplaced {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Shortage(short) if matches!(short.subject, Some(Subject::Quota { .. }) | None) => {
                Self::Quota(short)
            }
            other => Self::Fault(other.into()),
        }
    }
}

/// What is asked for.
#[derive(Clone)]
struct Wanted {
    server: Server,
    least: u64,
    most: u64,
    /// Some sites' hosts are silent: not for new servers.
    usable: std::collections::BTreeSet<HostId>,
    /// Where it shall go; the amount is the server's.
    request: Request,
    random: u64,
    /// What their ids are made of.
    ids: Vec<Uuid>,
}

pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(request): Extension<RequestId>,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Write, Some(caller.project()?))?;
    let hints = Hints::parse(&app.view(), &caller, &body)?;
    let given = body.inner("server")?;
    let wanted = parse(&app, &caller, &given, hints, version, &request)?;
    let pass = wanted.server.admin_pass.clone();
    let reservation = wanted.server.reservation_id.clone();
    let disk_config = super::render::disk_config(&wanted.server).to_owned();
    let id = place(&app, wanted).await?;
    let base = base(&app, &headers);
    if given.flag("return_reservation_id")? == Some(true) {
        return Ok(json_reply(StatusCode::ACCEPTED, &json!({"reservation_id": reservation})));
    }
    let body = json!({"server": {
        "id": id.to_string(), "links": links(&base, "servers", &id.to_string()), "OS-DCF:diskConfig": disk_config,
        "security_groups": [], "adminPass": pass,
    }});
    let mut response = json_reply(StatusCode::ACCEPTED, &body);
    if let Ok(location) = format!("{base}/compute/v2.1/servers/{id}").parse() {
        response.headers_mut().insert("location", location);
    }
    Ok(response)
}

/// Places the servers: at once, or after the holders of what is short have been asked, as long as something comes.
async fn place(app: &App, wanted: Wanted) -> Result<Uuid, Fault> {
    // It begins when something is short: what this replica's own flush takes before that is not the others' fault.
    let mut until = None;
    let begin = || app.net().rights_deadline();
    // The members of a group with anti-affinity may need a right each.
    let mut left = if wanted.server.group.is_some() { wanted.most.min(MEMBERS) + TRIES } else { TRIES };
    loop {
        left -= 1;
        let placed = app.node().transact::<Uuid, Unplaced, _>(attempt(wanted.clone())).await;
        let asked = match &placed {
            Err(Unplaced::Quota(short)) if left > 0 && short.suffices_elsewhere() => {
                app.net().request_rights(std::slice::from_ref(short), *until.get_or_insert_with(begin)).await
            }
            Err(Unplaced::NoHost(none)) if left > 0 => {
                placement::ask_for(app, none, *until.get_or_insert_with(begin)).await
            }
            _ => Asked::default(),
        };
        if on(SiteMutant::RequestTwice) && placed.is_ok() {
            let _ = app.node().transact::<Uuid, Unplaced, _>(attempt(wanted)).await;
            return placed.map_err(|unplaced| explain(app, unplaced, &asked));
        }
        if !asked.came {
            return placed.map_err(|unplaced| explain(app, unplaced, &asked));
        }
        // These rights come one by one, from one root after the other: the next is waited for anew.
        until = until.filter(|_| wanted.server.group.is_none());
    }
}

/// The transaction: as many as there are rights for, at least `least`, or none.
fn attempt(wanted: Wanted) -> impl FnOnce(&mut Tx<'_>) -> Result<Uuid, Unplaced> + Send {
    move |tx| {
        let Wanted { server, least, most, usable, request, random, ids } = wanted;
        let mut count = most;
        let quota = quota_of(&server);
        let pools: Vec<PoolId> = tx.view().ledger().quota_pools(server.project).map(|(id, _)| id).collect();
        let free = pools.iter().filter_map(|id| tx.view().ledger().pool(*id).map(|pool| pool.free(tx.me())));
        let free = free.fold(luc_engine::ledger::Amount::default(), |sum, free| sum.saturating_add(&free));
        let free = free.min(&Quota::of(tx.view(), server.project).room());
        while count > least && quota.checked_mul(count).is_none_or(|all| !free.covers(&all)) {
            count -= 1;
        }
        let mut first = None;
        for (index, id) in (0..count).zip(ids) {
            let mut server = server.clone();
            server.launch_index = index;
            if most > 1 {
                server.name = format!("{}-{}", server.name, index + 1);
                server.hostname = format!("{}-{}", server.hostname, index + 1);
            }
            let id = tx.fresh(Kind::Server, id);
            match create_one(tx, id, server, &request, &pools, &usable, random.wrapping_add(index)) {
                Ok(()) => first = first.or(Some(id)),
                // Enough have a place.
                Err(Unplaced::NoHost(_)) if index >= least => break,
                Err(unplaced) => return Err(unplaced),
            }
        }
        first.ok_or_else(|| Unplaced::Fault(Fault::bad("No server was asked for.")))
    }
}

fn create_one(
    tx: &mut Tx<'_>,
    id: Uuid,
    server: Server,
    request: &Request,
    pools: &[PoolId],
    usable: &std::collections::BTreeSet<HostId>,
    random: u64,
) -> Result<(), Unplaced> {
    let quota = quota_of(&server);
    let record = RecordId { kind: Kind::Server, id };
    let owner = RecordId { kind: Kind::Project, id: server.project };
    if let Some(group) = server.group {
        if tx.view().get::<ServerGroup>(group).is_none() {
            return Err(Unplaced::Fault(placement::no_group(group)));
        }
        let there_are = members(tx.view(), group).count();
        if !Limit::ServerGroupMembers.allows_more(tx.view(), server.project, there_are) {
            return Err(Unplaced::Fault(Fault::forbidden("Quota exceeded, too many servers in group")));
        }
    }
    let home = tx.site().to_string();
    let choice = choose(tx.view(), tx.me(), &home, request, &|host| usable.contains(&host), random);
    let choice = choice.map_err(Unplaced::NoHost)?;
    // The claims first: a refusal costs no document.
    Quota::of(tx.view(), server.project).admits(&quota).map_err(Unplaced::Quota)?;
    tx.claim(pools, &quota, record, 0)?;
    choice.claim(tx, &request.amount, record, 1)?;
    tx.create(id, server, &[owner])?;
    Ok(())
}

/// Nova's faults, with what LUC knows of where the rights are.
fn explain(app: &App, unplaced: Unplaced, asked: &Asked) -> Fault {
    match unplaced {
        Unplaced::Fault(fault) => fault,
        Unplaced::NoHost(none) => placement::no_valid_host(app, &none, asked),
        Unplaced::Quota(short) => {
            let used = |d: Dimension| short.claimed.get(d);
            let over: Vec<&str> =
                [(Dimension::Instances, "instances"), (Dimension::Vcpus, "cores"), (Dimension::MemoryMib, "ram")]
                    .into_iter()
                    .filter(|(d, _)| short.wanted.get(*d) > short.free_here.get(*d))
                    .map(|(_, name)| name)
                    .collect();
            let all = |amount: &luc_engine::ledger::Amount| {
                let [i, v, m] = [Dimension::Instances, Dimension::Vcpus, Dimension::MemoryMib].map(|d| amount.get(d));
                format!("{i}, {v}, {m}")
            };
            let used: Vec<String> =
                [Dimension::Instances, Dimension::Vcpus, Dimension::MemoryMib].map(|d| used(d).to_string()).to_vec();
            Fault::forbidden(format!(
                "Quota exceeded for {}: Requested {}, but already used {} of {} instances, cores, ram. {short}{}",
                over.join(", "),
                all(&short.wanted),
                used.join(", "),
                all(&short.capacity),
                Holders::of(app).whereabouts(&short, asked),
            ))
        }
    }
}

fn parse(
    app: &App,
    caller: &Caller,
    given: &Object,
    hints: Hints,
    version: Microversion,
    request: &RequestId,
) -> Result<Wanted, Fault> {
    let view = app.view();
    let project = caller.project()?;
    if view.get::<Project>(project).is_none() {
        return Err(Fault::forbidden("The project is gone."));
    }
    networks(given, version)?;
    for unsupported in ["block_device_mapping", "block_device_mapping_v2", "personality", "trusted_image_certificates"]
    {
        let empty = given.0.get(unsupported).is_none_or(|value| value.is_null() || value == &json!([]));
        let only_image = unsupported == "block_device_mapping_v2" && boots_from_image(given);
        if !empty && !only_image {
            return Err(Fault::bad(format!("LUC does not have {unsupported} yet: servers boot from images.")));
        }
    }
    let name = given.required("name")?.trim().to_owned();
    let flavor = flavor(&view, caller, given)?;
    let image = image(&view, caller, given, &flavor)?;
    let key = match given.text("key_name")? {
        None => None,
        Some(name) => Some(keypair(&view, caller, name)?),
    };
    let (availability_zone, host) = zone(&view, caller, given)?;
    let least = given.number("min_count")?.unwrap_or(1);
    let most = given.number("max_count")?.unwrap_or(least);
    if least == 0 || least > most || most > MOST {
        return Err(Fault::bad(format!(
            "min_count and max_count must be 1 to {MOST}, and min_count at most max_count."
        )));
    }
    let now = luc_sync::node::now();
    let admin_pass = given.text("adminPass")?.map_or_else(password, str::to_owned);
    let description =
        if version.0 >= 19 { given.text("description")?.unwrap_or_default().to_owned() } else { name.clone() };
    let hostname = super::servers::given_hostname(given, version)?.unwrap_or_else(|| host_name(&name));
    let metadata = given.strings("metadata")?.unwrap_or_default();
    super::servers::checked(&metadata, Limit::MetadataItems.of(&view, project))?;
    let action = ServerAction { action: "create".into(), user: caller.user, start: now };
    let server = Server {
        project,
        user: caller.user,
        name,
        description,
        hostname,
        access_ipv4: super::servers::address(given, "accessIPv4")?.unwrap_or_default(),
        access_ipv6: super::servers::address(given, "accessIPv6")?.unwrap_or_default(),
        disk_config: super::servers::disk_config(given)?.unwrap_or_default(),
        availability_zone,
        flavor,
        image,
        metadata,
        tags: tags(given)?,
        key_name: key.as_ref().map(|key| key.name.clone()),
        public_key: key.map(|key| key.public_key),
        user_data: user_data(given)?,
        admin_pass,
        config_drive: given.flag("config_drive")?.unwrap_or(false),
        power: Power::Running,
        reservation_id: format!("r-{}", &Uuid::new_v4().simple().to_string()[..8]),
        created_at: now,
        updated_at: now,
        actions: std::iter::once((request.0.clone(), action)).collect(),
        group: hints.group,
        ..Server::default()
    };
    let usable = view.ledger().hosts().filter(|host| app.net().may_place_on(*host)).collect();
    let ids = (0..most).map(|_| Uuid::new_v4()).collect();
    let request = placement::request(&view, &server, host, hints);
    Ok(Wanted { server, least, most, usable, request, random: rand::random(), ids })
}

/// There are no networks yet: `none` is the only wish that can be met. `auto`, and nothing, mean "whatever there is".
fn networks(given: &Object, version: Microversion) -> Result<(), Fault> {
    match given.0.get("networks") {
        None if version.0 >= 37 => {
            Err(Fault::bad("\"networks\" is required since microversion 2.37; LUC has \"none\"."))
        }
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) if text == "none" || text == "auto" => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(Value::Array(list)) => {
            let named = list.first().and_then(|one| one["uuid"].as_str().or(one["port"].as_str())).unwrap_or("?");
            Err(Fault::bad(format!("Network {named} could not be found. LUC has no networks yet: use \"none\".")))
        }
        Some(_) => Err(Fault::bad("\"networks\" must be \"none\", \"auto\" or a list.")),
    }
}

/// The form in which clients say "boot from this image" at length.
fn boots_from_image(given: &Object) -> bool {
    let devices = given.0.get("block_device_mapping_v2").and_then(Value::as_array);
    devices.is_some_and(|devices| match devices.as_slice() {
        [one] => one["source_type"] == "image" && one["destination_type"] == "local" && one["boot_index"] == 0,
        _ => false,
    })
}

fn flavor(view: &View, caller: &Caller, given: &Object) -> Result<ServerFlavor, Fault> {
    let wanted = match given.0.get("flavorRef") {
        Some(Value::String(text)) => text.rsplit('/').next().unwrap_or_default().to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return Err(Fault::bad("\"flavorRef\" is required and names a flavor by its id.")),
    };
    let found = super::flavors::find(view, &wanted).filter(|(_, flavor)| super::flavors::is_open(flavor, caller));
    let (record, Flavor { flavor_id, name, vcpus, ram_mib, disk_gib, ephemeral_gib, swap_mib, extra_specs, .. }) =
        found.ok_or_else(|| Fault::bad(format!("Flavor {wanted} could not be found.")))?;
    Ok(ServerFlavor {
        record,
        flavor_id: flavor_id.clone(),
        name: name.clone(),
        vcpus: *vcpus,
        ram_mib: *ram_mib,
        disk_gib: *disk_gib,
        ephemeral_gib: *ephemeral_gib,
        swap_mib: *swap_mib,
        extra_specs: extra_specs.clone(),
    })
}

fn image(view: &View, caller: &Caller, given: &Object, flavor: &ServerFlavor) -> Result<Option<ServerImage>, Fault> {
    let mapped = given.0.get("block_device_mapping_v2").and_then(|list| list[0]["uuid"].as_str());
    let wanted = match given.0.get("imageRef") {
        Some(Value::String(text)) if !text.is_empty() => text.rsplit('/').next().unwrap_or_default(),
        None | Some(Value::Null | Value::String(_)) => match mapped {
            Some(id) => id,
            None => return Err(Fault::bad("\"imageRef\" is required: LUC boots servers from images.")),
        },
        Some(_) => return Err(Fault::bad("\"imageRef\" must be an image's id.")),
    };
    let unknown = || Fault::bad(format!("Can not find requested image {wanted}."));
    let id = Uuid::parse_str(wanted).map_err(|_| unknown())?;
    let image: &Image = view.get(id).filter(|image| crate::image::is_visible(image, caller)).ok_or_else(unknown)?;
    let data = image.data.clone().ok_or_else(|| Fault::bad(format!("Image {wanted} is not active.")))?;
    let needed = image.min_disk_gib.max(data.virtual_size.div_ceil(1 << 30));
    if flavor.ram_mib < image.min_ram_mib {
        return Err(Fault::bad(format!(
            "Flavor's memory is too small for requested image: it needs {} MiB.",
            image.min_ram_mib
        )));
    }
    if flavor.disk_gib != 0 && flavor.disk_gib < needed {
        return Err(Fault::bad(format!("Flavor's disk is too small for requested image: it needs {needed} GiB.")));
    }
    Ok(Some(ServerImage { record: id, disk_format: image.disk_format.clone(), data }))
}

fn keypair(view: &View, caller: &Caller, name: &str) -> Result<Keypair, Fault> {
    let id = view.named(Kind::Keypair, caller.user, name);
    let found = id.and_then(|id| view.get::<Keypair>(id)).cloned();
    found.ok_or_else(|| Fault::bad(format!("Invalid key_name provided: {name}.")))
}

/// `zone`, or `zone:host` for administrators.
fn zone(view: &View, caller: &Caller, given: &Object) -> Result<(String, Option<HostId>), Fault> {
    let Some(text) = given.text("availability_zone")?.filter(|zone| !zone.is_empty()) else {
        return Ok((String::new(), None));
    };
    let (zone, host) = text.split_once(':').map_or((text, None), |(zone, host)| (zone, Some(host)));
    if !view.sites().iter().any(|site| site.as_str() == zone) {
        return Err(Fault::bad(format!("The requested availability zone {zone} is not available.")));
    }
    let Some(host) = host else { return Ok((zone.to_owned(), None)) };
    policy::check(caller, Action::Administer, None)?;
    let found = view.all::<Host>().find(|(_, record)| record.site == zone && record.name == host);
    let (id, _) = found.ok_or_else(|| Fault::bad(format!("Compute host {host} could not be found.")))?;
    Ok((zone.to_owned(), Some(HostId(id))))
}

fn user_data(given: &Object) -> Result<String, Fault> {
    let Some(data) = given.text("user_data")? else { return Ok(String::new()) };
    if data.len() > USER_DATA {
        return Err(Fault::bad(format!("user_data is over {USER_DATA} bytes.")));
    }
    let compact: String = data.split_ascii_whitespace().collect();
    STANDARD.decode(&compact).map_err(|_| Fault::bad("user_data is not valid base64."))?;
    Ok(compact)
}

fn tags(given: &Object) -> Result<std::collections::BTreeMap<String, String>, Fault> {
    match given.0.get("tags") {
        None | Some(Value::Null) => Ok(Default::default()),
        Some(list) => super::servers::parse_tags(list),
    }
}

/// The guest's host name: what of the server's name a DNS label can hold (Nova does the same).
fn host_name(name: &str) -> String {
    let kept: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c == ' ' || c == '_' || c == '.' { '-' } else { c })
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(63)
        .collect();
    let kept = kept.trim_matches('-');
    if kept.is_empty() { format!("server-{}", &Uuid::new_v4().simple().to_string()[..8]) } else { kept.to_owned() }
}

/// A random password of 12 characters without look-alikes.
pub(super) fn password() -> String {
    const LETTERS: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let letter = |_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]);
    (0..12).map(letter).collect()
}
