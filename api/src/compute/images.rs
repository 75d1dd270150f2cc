//! Nova's old view of images: until microversion 2.35, and their metadata until 2.38. Clients of that age use it.

use std::collections::{BTreeMap, HashMap};

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use luc_engine::record::Image;
use luc_engine::view::View;
use serde_json::{Value, json};
use uuid::Uuid;

use super::render::links;
use super::{parse_stamp, stamp, until};
use crate::app::App;
use crate::auth::Caller;
use crate::discovery::base;
use crate::http::{Fault, Microversion, Object, Reply, empty, ok};
use crate::image::{edit, find, is_visible, owned};

type Filters = Query<HashMap<String, String>>;

fn short(base: &str, id: Uuid, image: &Image) -> Value {
    let mut links = links(base, "images", &id.to_string());
    if let Value::Array(list) = &mut links {
        let href = format!("{base}/image/v2/images/{id}");
        list.push(json!({"rel": "alternate", "type": "application/vnd.openstack.image", "href": href}));
    }
    json!({"id": id.to_string(), "name": image.name, "links": links})
}

fn render(base: &str, id: Uuid, image: &Image) -> Value {
    let mut value = short(base, id, image);
    let active = image.data.is_some();
    value["status"] = json!(word(image));
    value["progress"] = json!(if active { 100 } else { 25 });
    value["created"] = json!(stamp(image.created_at));
    value["updated"] = json!(stamp(image.updated_at.max(image.created_at)));
    value["minDisk"] = json!(image.min_disk_gib);
    value["minRam"] = json!(image.min_ram_mib);
    value["metadata"] = json!(image.properties);
    value["OS-EXT-IMG-SIZE:size"] = json!(image.data.as_ref().map_or(0, |data| data.size));
    value
}

fn word(image: &Image) -> &'static str {
    if image.data.is_some() { "ACTIVE" } else { "SAVING" }
}

fn select<'a>(
    view: &'a View,
    caller: &Caller,
    filters: &HashMap<String, String>,
) -> Result<Vec<(Uuid, &'a Image)>, Fault> {
    let since = filters.get("changes-since");
    let since = since
        .map(|text| parse_stamp(text).ok_or_else(|| Fault::bad(format!("Invalid changes-since: {text:?}"))))
        .transpose()?;
    let limit = filters.get("limit").map(|text| text.parse::<usize>());
    let limit = limit.transpose().map_err(|_| Fault::bad("\"limit\" must be a whole number, at least 0."))?;
    let is_kept = |(_, image): &(Uuid, &Image)| {
        is_visible(image, caller)
            && filters.get("name").is_none_or(|name| image.name == *name)
            && filters.get("status").is_none_or(|status| word(image).eq_ignore_ascii_case(status))
            && since.is_none_or(|since| image.updated_at.max(image.created_at) >= since)
            // No image is made from a server yet.
            && !filters.contains_key("server")
            && filters.get("type").is_none_or(|kind| kind != "snapshot")
    };
    let mut found: Vec<_> = view.all::<Image>().filter(is_kept).collect();
    found.sort_by_key(|(id, image)| std::cmp::Reverse((image.created_at, *id)));
    let start = match filters.get("marker") {
        None => 0,
        Some(marker) => {
            let at = found.iter().position(|(id, _)| id.to_string() == *marker);
            at.ok_or_else(|| Fault::bad(format!("marker [{marker}] not found")))? + 1
        }
    };
    Ok(found.into_iter().skip(start).take(limit.unwrap_or(1000)).collect())
}

pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Query(filters): Filters,
) -> Reply {
    until(version, 35)?;
    let (view, base) = (app.view(), base(&app, &headers));
    let found = select(&view, &caller, &filters)?;
    ok(&json!({"images": found.into_iter().map(|(id, image)| short(&base, id, image)).collect::<Vec<_>>()}))
}

pub(super) async fn detail(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Query(filters): Filters,
) -> Reply {
    until(version, 35)?;
    let (view, base) = (app.view(), base(&app, &headers));
    let found = select(&view, &caller, &filters)?;
    ok(&json!({"images": found.into_iter().map(|(id, image)| render(&base, id, image)).collect::<Vec<_>>()}))
}

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Reply {
    until(version, 35)?;
    let view = app.view();
    let (id, image) = find(&view, &caller, &id)?;
    ok(&json!({"image": render(&base(&app, &headers), id, image)}))
}

pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
) -> Reply {
    until(version, 35)?;
    crate::image::remove(&app, &caller, &id).await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn metadata(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
) -> Reply {
    until(version, 38)?;
    ok(&json!({"metadata": find(&app.view(), &caller, &id)?.1.properties}))
}

async fn change(
    app: &App,
    caller: &Caller,
    id: &str,
    given: BTreeMap<String, String>,
    keep: bool,
) -> Result<(), Fault> {
    let id = owned(&app.view(), caller, id)?.0;
    edit(app, id, move |image| {
        if !keep {
            image.properties.clear();
        }
        image.properties.extend(given);
        if image.properties.len() > 128 {
            return Err(Fault::forbidden("Maximum number of metadata items exceeds 128"));
        }
        Ok(())
    })
    .await
}

async fn change_all(app: &App, caller: &Caller, id: &str, body: &Object, keep: bool) -> Reply {
    let given = body.strings("metadata")?.ok_or_else(|| Fault::bad("The body needs an object \"metadata\"."))?;
    change(app, caller, id, given, keep).await?;
    ok(&json!({"metadata": find(&app.view(), caller, id)?.1.properties}))
}

pub(super) async fn set_metadata(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    until(version, 38)?;
    change_all(&app, &caller, &id, &body, false).await
}

pub(super) async fn add_metadata(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path(id): Path<String>,
    body: Object,
) -> Reply {
    until(version, 38)?;
    change_all(&app, &caller, &id, &body, true).await
}

fn no_item() -> Fault {
    Fault::not_found("Metadata item was not found")
}

pub(super) async fn item(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    until(version, 38)?;
    let view = app.view();
    let value = find(&view, &caller, &id)?.1.properties.get(&key).ok_or_else(no_item)?;
    ok(&json!({"meta": {key: value}}))
}

pub(super) async fn set_item(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path((id, key)): Path<(String, String)>,
    body: Object,
) -> Reply {
    until(version, 38)?;
    let given = body.strings("meta")?.filter(|given| given.len() == 1 && given.contains_key(&key));
    let given = given.ok_or_else(|| Fault::bad("\"meta\" must hold the key of the path and no other."))?;
    let answer = json!({"meta": given});
    change(&app, &caller, &id, given, true).await?;
    ok(&answer)
}

pub(super) async fn delete_item(
    State(app): State<App>,
    caller: Caller,
    Extension(version): Extension<Microversion>,
    Path((id, key)): Path<(String, String)>,
) -> Reply {
    until(version, 38)?;
    let id = owned(&app.view(), &caller, &id)?.0;
    edit(&app, id, move |image| image.properties.remove(&key).map(|_| ()).ok_or_else(no_item)).await?;
    empty(StatusCode::NO_CONTENT)
}
