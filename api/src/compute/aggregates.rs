//! Host aggregates (`os-aggregates`): hosts that have something in common, which flavors ask for by extra specs
//! `aggregate_instance_extra_specs:KEY`.
//!
//! Zones are sites, and a host is of one site for ever: an aggregate's `availability_zone` makes no zone, it binds the
//! aggregate to hosts of that site.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use luc_engine::filters::hosts_of;
use luc_engine::id::{HostId, Millis};
use luc_engine::record::{Aggregate, Host, Kind, RecordId};
use luc_engine::replica::WHOLE_CLOUD;
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::stamp;
use crate::app::App;
use crate::auth::Caller;
use crate::http::{Fault, Microversion, Object, Reply, empty, ok};
use crate::policy::{self, Action};

/// The metadata key under which Nova shows the zone.
const ZONE: &str = "availability_zone";

pub(super) async fn list(State(app): State<App>, caller: Caller, Extension(version): Extension<Microversion>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let mut all: Vec<(Uuid, &Aggregate)> = view.all::<Aggregate>().collect();
    all.sort_by_key(|(id, aggregate)| (aggregate.created_at, *id));
    ok(&json!({"aggregates": all.into_iter().map(|(id, one)| render(&view, version, id, one)).collect::<Vec<_>>()}))
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    shown(&app, version, find(&app.view(), &id)?)
}

pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let given = body.inner("aggregate")?;
    let name = given.required("name")?.trim().to_owned();
    let availability_zone = zone(&app.view(), given.text(ZONE)?)?;
    let random = Uuid::new_v4();
    let create = move |tx: &mut Tx<'_>| {
        let aggregate =
            Aggregate { name: name.clone(), availability_zone, created_at: tx.now(), ..Aggregate::default() };
        let record = tx.create(tx.fresh(Kind::Aggregate, random), aggregate, &[])?;
        tx.bind(WHOLE_CLOUD, &name, record).map_err(|refusal| taken(refusal, &name))?;
        Ok(record.id)
    };
    let id = app.transact(create).await?;
    let view = app.view();
    let aggregate = view.get::<Aggregate>(id).ok_or_else(|| no_aggregate(&number(id).to_string()))?;
    let mut value = render(&view, version, id, aggregate);
    if let Some(value) = value.as_object_mut() {
        // Nova tells these of aggregates that exist already only.
        value.remove("hosts");
        value.remove("metadata");
    }
    ok(&json!({"aggregate": value}))
}

pub(super) async fn update(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = find(&app.view(), &id)?;
    let given = body.inner("aggregate")?;
    let name = given.name("name")?.map(|name| name.trim().to_owned());
    let zone = match given.0.contains_key(ZONE) {
        true => Some(zone(&app.view(), given.text(ZONE)?)?),
        false => None,
    };
    if name.is_none() && zone.is_none() {
        return Err(Fault::bad("\"aggregate\" needs a \"name\" or an \"availability_zone\"."));
    }
    app.transact(move |tx| {
        let old = tx.get::<Aggregate>(record)?.name.clone();
        if let Some(name) = &name {
            let bearer = RecordId { kind: Kind::Aggregate, id: record };
            tx.rename(WHOLE_CLOUD, &old, name, bearer).map_err(|refusal| taken(refusal, name))?;
        }
        change(tx, record, |aggregate| {
            aggregate.name = name.unwrap_or(old);
            aggregate.availability_zone = zone.unwrap_or_else(|| std::mem::take(&mut aggregate.availability_zone));
        })
    })
    .await?;
    shown(&app, version, record)
}

pub(super) async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = find(&app.view(), &id)?;
    app.transact(move |tx| {
        let aggregate = tx.get::<Aggregate>(record)?;
        if hosts_of(aggregate).any(|host| tx.view().get::<Host>(host.0).is_some()) {
            return Err(Fault::bad(format!("Cannot delete aggregate {id}: it is not empty.")));
        }
        Ok(tx.delete(RecordId { kind: Kind::Aggregate, id: record })?)
    })
    .await?;
    empty(StatusCode::OK)
}

/// `add_host`, `remove_host` and `set_metadata`.
pub(super) async fn action(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = find(&app.view(), &id)?;
    let verb = body.0.keys().next().filter(|_| body.0.len() == 1).cloned();
    match verb.as_deref() {
        Some(verb @ ("add_host" | "remove_host")) => {
            let add = verb == "add_host";
            let given = body.inner(verb)?;
            let host = find_host(&app.view(), given.required("host")?)?;
            app.transact(move |tx| if add { add_host(tx, record, host) } else { remove_host(tx, record, host) })
                .await?;
        }
        Some(verb @ "set_metadata") => {
            let wanted = metadata(&app.view(), &body.inner(verb)?)?;
            app.transact(move |tx| set_metadata(tx, record, wanted)).await?;
        }
        _ => return Err(Fault::bad("The body must be one of add_host, remove_host and set_metadata.")),
    }
    shown(&app, version, record)
}

fn shown(app: &App, version: Microversion, id: Uuid) -> Reply {
    let view = app.view();
    let aggregate = view.get::<Aggregate>(id).ok_or_else(|| no_aggregate(&number(id).to_string()))?;
    ok(&json!({"aggregate": render(&view, version, id, aggregate)}))
}

/// Nova's ids of aggregates are numbers. 48 random bits: two sites do not draw the same.
fn number(id: Uuid) -> u64 {
    id.as_bytes().iter().take(6).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn find(view: &View, id: &str) -> Result<Uuid, Fault> {
    let wanted: u64 = id.parse().map_err(|_| no_aggregate(id))?;
    view.all::<Aggregate>().map(|(id, _)| id).find(|id| number(*id) == wanted).ok_or_else(|| no_aggregate(id))
}

fn no_aggregate(id: &str) -> Fault {
    Fault::not_found(format!("Aggregate {id} could not be found."))
}

fn taken(refusal: Refusal, name: &str) -> Fault {
    match refusal {
        Refusal::NameTaken { .. } => Fault::conflict(format!("Aggregate {name} already exists.")),
        other => other.into(),
    }
}

/// A host by its name, or by its hypervisor's id where sites use one name for two hosts.
fn find_host(view: &View, wanted: &str) -> Result<HostId, Fault> {
    let is_it = |(id, host): &(Uuid, &Host)| host.name == wanted || id.to_string() == wanted;
    let found: Vec<HostId> = view.all::<Host>().filter(is_it).map(|(id, _)| HostId(id)).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Fault::not_found(format!("Compute host {wanted} could not be found."))),
        _ => Err(Fault::conflict(format!("Several sites have a host {wanted}: name it by the id of its hypervisor."))),
    }
}

/// A zone's name as it is given, checked; empty for none.
fn zone(view: &View, given: Option<&str>) -> Result<String, Fault> {
    match given {
        None => Ok(String::new()),
        Some(zone) if view.sites().iter().any(|site| site.as_str() == zone) => Ok(zone.to_owned()),
        Some(zone) => Err(Fault::bad(format!(
            "There is no availability zone {zone:?}: LUC's zones are its sites, and aggregates make none."
        ))),
    }
}

/// Changes an aggregate, and checks that all its hosts are of its zone.
fn change(tx: &mut Tx<'_>, id: Uuid, edit: impl FnOnce(&mut Aggregate)) -> Result<(), Fault> {
    let now = tx.now();
    tx.update::<Aggregate, Fault>(id, |aggregate| {
        edit(aggregate);
        aggregate.updated_at = now;
        Ok(())
    })?;
    let aggregate = tx.get::<Aggregate>(id)?;
    let zone = &aggregate.availability_zone;
    let elsewhere = |host: &HostId| tx.view().get::<Host>(host.0).is_some_and(|host| host.site != *zone);
    if zone.is_empty() || !hosts_of(aggregate).any(|host| elsewhere(&host)) {
        return Ok(());
    }
    Err(Fault::bad(format!("The aggregate has hosts that are not of the zone {zone}.")))
}

fn add_host(tx: &mut Tx<'_>, id: Uuid, host: HostId) -> Result<(), Fault> {
    let aggregate = tx.get::<Aggregate>(id)?;
    let record = tx.get::<Host>(host.0)?;
    let (name, zone) = (&record.name, &aggregate.availability_zone);
    if aggregate.hosts.contains_key(&host.0.to_string()) {
        return Err(Fault::conflict(format!("Aggregate {} already has host {name}.", number(id))));
    }
    if !zone.is_empty() && *zone != record.site {
        return Err(Fault::conflict(format!(
            "Host {name} is of the zone {}, and the aggregate of the zone {zone}.",
            record.site
        )));
    }
    change(tx, id, |aggregate| drop(aggregate.hosts.insert(host.0.to_string(), String::new())))
}

fn remove_host(tx: &mut Tx<'_>, id: Uuid, host: HostId) -> Result<(), Fault> {
    if !tx.get::<Aggregate>(id)?.hosts.contains_key(&host.0.to_string()) {
        let name = tx.get::<Host>(host.0)?.name.clone();
        return Err(Fault::not_found(format!("Aggregate {} has no host {name}.", number(id))));
    }
    change(tx, id, |aggregate| drop(aggregate.hosts.remove(&host.0.to_string())))
}

/// What is to be set, or (none) taken away.
type Metadata = Vec<(String, Option<String>)>;

fn metadata(view: &View, given: &Object) -> Result<Metadata, Fault> {
    let Some(Value::Object(map)) = given.0.get("metadata") else {
        return Err(Fault::bad("The body needs an object \"metadata\"."));
    };
    let one = |(key, value): (&String, &Value)| match value {
        Value::Null => Ok((key.clone(), None)),
        Value::String(value) if (1..=255).contains(&key.chars().count()) && value.chars().count() <= 255 => {
            if key == ZONE {
                zone(view, Some(value))?;
            }
            Ok((key.clone(), Some(value.clone())))
        }
        _ => Err(Fault::bad("Metadata are keys of 1 to 255 characters with texts of at most 255, or null.")),
    };
    map.iter().map(one).collect()
}

fn set_metadata(tx: &mut Tx<'_>, id: Uuid, wanted: Metadata) -> Result<(), Fault> {
    change(tx, id, |aggregate| {
        for (key, value) in wanted {
            match value {
                value if key == ZONE => aggregate.availability_zone = value.unwrap_or_default(),
                Some(value) => drop(aggregate.metadata.insert(key, value)),
                None => drop(aggregate.metadata.remove(&key)),
            }
        }
    })
}

fn render(view: &View, version: Microversion, id: Uuid, aggregate: &Aggregate) -> Value {
    let plain = |at: Millis| format!("{}.000000", stamp(at).trim_end_matches('Z'));
    let mut hosts: Vec<&str> =
        hosts_of(aggregate).filter_map(|host| view.get::<Host>(host.0)).map(|host| host.name.as_str()).collect();
    hosts.sort_unstable();
    let zone = (!aggregate.availability_zone.is_empty()).then_some(&aggregate.availability_zone);
    let own = aggregate.metadata.iter().map(|(key, value)| (key.clone(), json!(value)));
    let metadata: Map<String, Value> = own.chain(zone.map(|zone| (ZONE.to_owned(), json!(zone)))).collect();
    let mut value = json!({
        "id": number(id), "name": aggregate.name, "availability_zone": zone, "hosts": hosts, "metadata": metadata,
        "created_at": plain(aggregate.created_at),
        "updated_at": (aggregate.updated_at > 0).then(|| plain(aggregate.updated_at)),
        "deleted": false, "deleted_at": null,
    });
    if version.0 >= 41 {
        value["uuid"] = json!(id.to_string());
    }
    value
}
