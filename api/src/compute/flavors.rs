//! Flavors.

use std::collections::HashMap;

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use luc_engine::record::{Flavor, Kind, Project, RecordId};
use luc_engine::view::View;
use serde_json::{Value, json};
use uuid::Uuid;

use super::render::links;
use crate::app::App;
use crate::auth::Caller;
use crate::bootstrap::{FLAVOR_IDS, create_flavor};
use crate::discovery::base;
use crate::http::{Fault, Microversion, Object, Reply, empty, ok};
use crate::policy::{self, Action};

/// A flavor by its OpenStack id.
pub(super) fn find<'a>(view: &'a View, flavor_id: &str) -> Option<(Uuid, &'a Flavor)> {
    let id = view.named(Kind::Flavor, FLAVOR_IDS, flavor_id)?;
    view.get::<Flavor>(id).map(|flavor| (id, flavor))
}

/// Whether a caller may use a flavor: a public one, or one that its project was given access to.
pub(super) fn is_open(flavor: &Flavor, caller: &Caller) -> bool {
    let given = |project: Uuid| flavor.access.contains_key(&project.simple().to_string());
    flavor.public || caller.is_admin || caller.project.is_some_and(given)
}

fn visible<'a>(view: &'a View, caller: &Caller, flavor_id: &str) -> Result<(Uuid, &'a Flavor), Fault> {
    let found = find(view, flavor_id).filter(|(_, flavor)| is_open(flavor, caller));
    found.ok_or_else(|| Fault::not_found(format!("Flavor {flavor_id} could not be found.")))
}

fn render(base: &str, version: Microversion, flavor: &Flavor) -> Value {
    let mut value = json!({
        "id": flavor.flavor_id, "name": flavor.name, "vcpus": flavor.vcpus, "ram": flavor.ram_mib, "disk": flavor.disk_gib,
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral_gib, "rxtx_factor": 1.0,
        "os-flavor-access:is_public": flavor.public, "OS-FLV-DISABLED:disabled": false,
        "links": links(base, "flavors", &flavor.flavor_id),
    });
    value["swap"] = if version.0 < 75 && flavor.swap_mib == 0 { json!("") } else { json!(flavor.swap_mib) };
    if version.0 >= 55 {
        value["description"] = json!((!flavor.description.is_empty()).then_some(&flavor.description));
    }
    if version.0 >= 61 {
        value["extra_specs"] = json!(flavor.extra_specs);
    }
    value
}

type Filters = Query<HashMap<String, String>>;

fn select<'a>(view: &'a View, caller: &Caller, filters: &HashMap<String, String>) -> Result<Vec<&'a Flavor>, Fault> {
    let number = |key: &str| match filters.get(key) {
        None => Ok(0),
        Some(text) => text.parse::<u64>().map_err(|_| Fault::bad(format!("{key:?} must be a whole number."))),
    };
    let (disk, ram) = (number("minDisk")?, number("minRam")?);
    // Only administrators choose; the words are those of Nova's library for booleans.
    let public = filters.get("is_public").filter(|_| caller.is_admin).map(|text| text.trim().to_ascii_lowercase());
    let wanted = match public.as_deref() {
        None | Some("1" | "t" | "true" | "on" | "y" | "yes") => Some(true),
        Some("0" | "f" | "false" | "off" | "n" | "no") => Some(false),
        Some("none") => None,
        Some(other) => return Err(Fault::bad(format!("Invalid is_public filter [{other}]"))),
    };
    let own = |project: Uuid| project.simple().to_string();
    let own = caller.project.map(own);
    let shown = |flavor: &Flavor| match wanted {
        None => true,
        Some(false) => !flavor.public,
        Some(true) => flavor.public || own.as_ref().is_some_and(|own| flavor.access.contains_key(own)),
    };
    let all = view.all::<Flavor>().map(|(_, flavor)| flavor);
    let mut found: Vec<&Flavor> = all.filter(|f| shown(f) && f.disk_gib >= disk && f.ram_mib >= ram).collect();
    found.sort_by(|a, b| a.flavor_id.cmp(&b.flavor_id));
    let start = match filters.get("marker") {
        None => 0,
        Some(marker) => {
            let at = found.iter().position(|flavor| flavor.flavor_id == *marker);
            at.ok_or_else(|| Fault::bad(format!("marker [{marker}] not found")))? + 1
        }
    };
    let limit = match filters.get("limit") {
        None => 1000,
        Some(text) => text.parse().map_err(|_| Fault::bad("\"limit\" must be a whole number, at least 0."))?,
    };
    Ok(found.into_iter().skip(start).take(limit).collect())
}

pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Query(filters): Filters,
) -> Reply {
    let (view, base) = (app.view(), base(&app, &headers));
    let short = |flavor: &&Flavor| {
        let mut value =
            json!({"id": flavor.flavor_id, "name": flavor.name, "links": links(&base, "flavors", &flavor.flavor_id)});
        if version.0 >= 55 {
            value["description"] = json!((!flavor.description.is_empty()).then_some(&flavor.description));
        }
        value
    };
    ok(&json!({"flavors": select(&view, &caller, &filters)?.iter().map(short).collect::<Vec<_>>()}))
}

pub(super) async fn detail(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Query(filters): Filters,
) -> Reply {
    let (view, base) = (app.view(), base(&app, &headers));
    let flavors: Vec<Value> = select(&view, &caller, &filters)?.iter().map(|f| render(&base, version, f)).collect();
    ok(&json!({"flavors": flavors}))
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    let view = app.view();
    let (_, flavor) = visible(&view, &caller, &id)?;
    ok(&json!({"flavor": render(&base(&app, &headers), version, flavor)}))
}

pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let given = body.inner("flavor")?;
    let whole = |key: &str, least: u64| match given.number(key)? {
        Some(n) if n >= least && n <= 0x7fff_ffff => Ok(n),
        None if least == 0 => Ok(0),
        _ => Err(Fault::bad(format!("{key:?} must be a whole number, at least {least}."))),
    };
    let flavor_id = match given.0.get("id") {
        Some(Value::String(id)) if id != "auto" => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => Uuid::new_v4().to_string(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_. ".contains(c);
    if flavor_id.is_empty() || flavor_id.len() > 255 || !flavor_id.chars().all(plain) {
        return Err(Fault::bad("\"id\" must be 1 to 255 letters, digits, '-', '_', '.' or spaces."));
    }
    let swap = match given.text("swap") {
        Ok(Some("")) => 0,
        _ => whole("swap", 0)?,
    };
    let flavor = Flavor {
        flavor_id,
        name: given.required("name")?.trim().to_owned(),
        description: given.text("description")?.filter(|_| version.0 >= 55).unwrap_or_default().to_owned(),
        vcpus: whole("vcpus", 1)?,
        ram_mib: whole("ram", 1)?,
        disk_gib: whole("disk", 0)?,
        ephemeral_gib: whole("OS-FLV-EXT-DATA:ephemeral", 0)?,
        swap_mib: swap,
        public: given.flag("os-flavor-access:is_public")?.unwrap_or(true),
        ..Flavor::default()
    };
    let (record, random) = (flavor.clone(), Uuid::new_v4());
    app.transact(move |tx| {
        create_flavor(tx, tx.fresh(Kind::Flavor, random), record).map_err(|refusal| match Fault::from(refusal) {
            Fault { status: StatusCode::CONFLICT, message } => Fault::conflict(format!("Flavor exists: {message}.")),
            other => other,
        })
    })
    .await?;
    ok(&json!({"flavor": render(&base(&app, &headers), version, &flavor)}))
}

pub(super) async fn update(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = visible(&app.view(), &caller, &id)?.0;
    let description = body.inner("flavor")?.text("description")?.unwrap_or_default().to_owned();
    edit(&app, record, move |flavor| {
        flavor.description = description;
        Ok(())
    })
    .await?;
    let view = app.view();
    ok(&json!({"flavor": render(&base(&app, &headers), version, visible(&view, &caller, &id)?.1)}))
}

pub(super) async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = visible(&app.view(), &caller, &id)?.0;
    app.transact(move |tx| Ok(tx.delete(RecordId { kind: Kind::Flavor, id: record })?)).await?;
    empty(StatusCode::ACCEPTED)
}

async fn edit(
    app: &App,
    id: Uuid,
    edit: impl FnOnce(&mut Flavor) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Fault> {
    app.transact(move |tx| tx.update::<Flavor, Fault>(id, edit)).await
}

pub(super) async fn extra_specs(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let view = app.view();
    ok(&json!({"extra_specs": visible(&view, &caller, &id)?.1.extra_specs}))
}

pub(super) async fn add_extra_specs(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = visible(&app.view(), &caller, &id)?.0;
    let given = body.strings("extra_specs")?.ok_or_else(|| Fault::bad("The body needs an object \"extra_specs\"."))?;
    let answer = json!({"extra_specs": given});
    edit(&app, record, move |flavor| {
        flavor.extra_specs.extend(given);
        Ok(())
    })
    .await?;
    ok(&answer)
}

fn no_spec(key: &str) -> Fault {
    Fault::not_found(format!("The flavor has no extra specs with key {key}."))
}

pub(super) async fn extra_spec(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    let view = app.view();
    let value = visible(&view, &caller, &id)?.1.extra_specs.get(&key).ok_or_else(|| no_spec(&key))?;
    ok(&json!({key: value}))
}

pub(super) async fn set_extra_spec(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = visible(&app.view(), &caller, &id)?.0;
    if body.0.len() != 1 {
        return Err(Fault::bad("The body must hold the key of the path and no other."));
    }
    let value = body
        .text(&key)?
        .filter(|value| value.chars().count() <= 255)
        .ok_or_else(|| Fault::bad("The body must hold the key of the path."))?
        .to_owned();
    let answer = json!({&key: &value});
    edit(&app, record, move |flavor| {
        flavor.extra_specs.insert(key, value);
        Ok(())
    })
    .await?;
    ok(&answer)
}

pub(super) async fn delete_extra_spec(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let record = visible(&app.view(), &caller, &id)?.0;
    edit(&app, record, move |flavor| flavor.extra_specs.remove(&key).map(|_| ()).ok_or_else(|| no_spec(&key))).await?;
    empty(StatusCode::OK)
}

// ---- who may use a flavor that is not public

fn accesses(flavor: &Flavor) -> Value {
    let one = |project: &String| json!({"flavor_id": flavor.flavor_id, "tenant_id": project});
    json!({"flavor_access": flavor.access.keys().map(one).collect::<Vec<_>>()})
}

pub(super) async fn access(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let view = app.view();
    let (_, flavor) = visible(&view, &caller, &id)?;
    if flavor.public {
        return Err(Fault::not_found("Access list not available for public flavors."));
    }
    ok(&accesses(flavor))
}

/// `addTenantAccess` and `removeTenantAccess`.
pub(super) async fn change_access(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    policy::check(&caller, Action::Administer, None)?;
    let add = body.0.contains_key("addTenantAccess");
    let given = body.inner(if add { "addTenantAccess" } else { "removeTenantAccess" })?;
    let project = given.required("tenant")?;
    let project = Uuid::parse_str(project).ok().filter(|id| app.view().get::<Project>(*id).is_some() || !add);
    let project = project.ok_or_else(|| Fault::bad("\"tenant\" must be the id of a project."))?.simple().to_string();
    let (record, public) = {
        let view = app.view();
        let (record, flavor) = visible(&view, &caller, &id)?;
        (record, flavor.public)
    };
    if public {
        return Err(Fault::conflict("A public flavor is everybody's: it has no access list."));
    }
    let flavor_id = id.clone();
    edit(&app, record, move |flavor| {
        let known = flavor.access.contains_key(&project);
        if add && known {
            return Err(Fault::conflict(format!(
                "Flavor access already exists for flavor {id} and project {project}."
            )));
        }
        if !add && !known {
            return Err(Fault::not_found(format!("Flavor access not found for {id} / {project} combination.")));
        }
        if add {
            flavor.access.insert(project, String::new());
        } else {
            flavor.access.remove(&project);
        }
        Ok(())
    })
    .await?;
    let view = app.view();
    ok(&accesses(visible(&view, &caller, &flavor_id)?.1))
}
