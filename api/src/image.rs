//! OpenStack Image (Glance v2).
//!
//! An image is a replicated record; its data is a content-addressed blob. Uploads stream to disk and are checked there
//! before the image becomes active: a qcow2 from a user is hostile input.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RANGE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures_util::TryStreamExt;
use luc_compute::tool::Limits;
use luc_engine::record::{Image, ImageData, Kind, Project, RecordId, Server};
use luc_engine::tx::Tx;
use luc_engine::view::View;
use luc_sync::blob::{BlobError, Blobs};
use luc_sync::node::now;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tokio_util::io::{ReaderStream, StreamReader};
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::compute::stamp;
use crate::http::{Fault, MAX_BODY, Object, Reply, empty, json_reply, ok, read_body};
use crate::policy::{self, Action};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v2/images", get(list).post(create))
        .route("/v2/images/{id}", get(show).patch(update).delete(delete))
        .route("/v2/images/{id}/file", put(upload).get(download))
        .route("/v2/images/{id}/tags/{tag}", put(add_tag).delete(delete_tag))
        .route("/v2/images/{id}/members", get(members).post(no_sharing))
        .route("/v2/images/{id}/members/{member}", get(no_member).put(no_member).delete(no_member))
        .route("/v2/images/{id}/actions/{action}", post(no_action))
        .route("/v2/images/{id}/import", post(no_import))
        .route("/v2/images/{id}/stage", put(no_import))
        .route("/v2/schemas/member", get(member_schema))
        .route("/v2/schemas/members", get(member_schema))
        .route("/v2/schemas/image", get(image_schema))
        .route("/v2/schemas/images", get(images_schema))
        .route("/v2/info/import", get(import_info))
        .route("/v2/info/stores", get(stores))
}

/// How long, and how far, a refused upload is read on.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_BYTES: u64 = 4 << 30;
const FORMATS: [&str; 2] = ["qcow2", "raw"];
const VISIBILITIES: [&str; 4] = ["public", "private", "shared", "community"];

/// Whether a caller sees an image when it names it.
pub(crate) fn is_visible(image: &Image, caller: &Caller) -> bool {
    let open = matches!(image.visibility.as_str(), "public" | "community");
    open || caller.is_admin || Some(image.project) == caller.project
}

pub(crate) fn find<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<(Uuid, &'a Image), Fault> {
    let gone = || Fault::not_found(format!("No image found with ID {id}"));
    let uuid = Uuid::parse_str(id).map_err(|_| gone())?;
    let image = view.get::<Image>(uuid).filter(|image| is_visible(image, caller)).ok_or_else(gone)?;
    Ok((uuid, image))
}

/// For changes: one's own, or any for administrators.
pub(crate) fn owned<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<(Uuid, &'a Image), Fault> {
    let (id, image) = find(view, caller, id)?;
    policy::check(caller, Action::Write, Some(image.project))?;
    Ok((id, image))
}

fn render(id: Uuid, image: &Image) -> Value {
    let mut map = Map::new();
    for (key, value) in &image.properties {
        map.insert(key.clone(), json!(value));
    }
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let data = image.data.as_ref();
    let own = json!({
        "id": id.to_string(), "name": text(&image.name), "status": if data.is_some() { "active" } else { "queued" },
        "visibility": image.visibility, "protected": image.protected, "owner": image.project.simple().to_string(),
        "disk_format": text(&image.disk_format), "container_format": text(&image.container_format),
        "min_disk": image.min_disk_gib, "min_ram": image.min_ram_mib, "tags": image.tags.keys().collect::<Vec<_>>(),
        "created_at": stamp(image.created_at), "updated_at": stamp(image.updated_at.max(image.created_at)),
        "size": data.map(|data| data.size), "virtual_size": data.map(|data| data.virtual_size),
        "checksum": data.map(|data| &data.md5), "os_hash_algo": data.map(|_| "sha512"),
        "os_hash_value": data.map(|data| &data.sha512), "os_hidden": image.hidden,
        "self": format!("/v2/images/{id}"), "file": format!("/v2/images/{id}/file"), "schema": "/v2/schemas/image",
    });
    if let Value::Object(own) = own {
        map.extend(own);
    }
    Value::Object(map)
}

async fn list(
    State(app): State<App>,
    caller: Caller,
    uri: Uri,
    Query(filters): Query<HashMap<String, String>>,
) -> Reply {
    let view = app.view();
    let number = |key: &str| match filters.get(key) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| Fault::bad(format!("{key} must be a whole number."))),
    };
    let (least, most, exactly) = (number("size_min")?, number("size_max")?, number("size")?);
    let limit = number("limit")?.map_or(1000, |n| usize::try_from(n).unwrap_or(1000).min(1000));
    // `in:a,b` names several.
    let any = |key: &str, actual: &str| {
        filters.get(key).is_none_or(|wanted| match wanted.strip_prefix("in:") {
            Some(several) => several.split(',').any(|one| one.trim_matches('"') == actual),
            None => wanted == actual,
        })
    };
    let shown = |image: &Image| match filters.get("visibility").map(String::as_str) {
        Some("all") => is_visible(image, &caller),
        Some(wanted) => image.visibility == wanted && is_visible(image, &caller),
        // A community image is found only by who asks for it.
        None => {
            is_visible(image, &caller) && (image.visibility != "community" || Some(image.project) == caller.project)
        }
    };
    let known = [
        "limit",
        "marker",
        "sort",
        "sort_key",
        "sort_dir",
        "id",
        "name",
        "status",
        "visibility",
        "owner",
        "tag",
        "disk_format",
        "container_format",
        "size",
        "size_min",
        "size_max",
        "member_status",
        "protected",
        "os_hidden",
    ];
    let mut found: Vec<(Uuid, &Image)> = view
        .all::<Image>()
        .filter(|(id, image)| {
            let size = image.data.as_ref().map_or(0, |data| data.size);
            let hidden = filters.get("os_hidden").is_some_and(|wanted| wanted.eq_ignore_ascii_case("true"));
            shown(image)
                && image.hidden == hidden
                && any("id", &id.to_string())
                && any("name", &image.name)
                && any("status", if image.data.is_some() { "active" } else { "queued" })
                && any("disk_format", &image.disk_format)
                && any("container_format", &image.container_format)
                && filters.get("owner").is_none_or(|owner| Uuid::parse_str(owner).ok() == Some(image.project))
                && filters.get("tag").is_none_or(|tag| image.tags.contains_key(tag))
                && filters.get("protected").is_none_or(|wanted| wanted.eq_ignore_ascii_case("true") == image.protected)
                && least.is_none_or(|least| size >= least)
                && most.is_none_or(|most| size <= most)
                && exactly.is_none_or(|exactly| size == exactly)
                && filters
                    .iter()
                    .all(|(key, value)| known.contains(&key.as_str()) || image.properties.get(key) == Some(value))
        })
        .collect();
    let (key, direction) = match filters.get("sort").and_then(|sort| sort.split(',').next()) {
        Some(sort) => sort.split_once(':').unwrap_or((sort, "desc")),
        None => (
            filters.get("sort_key").map_or("created_at", String::as_str),
            filters.get("sort_dir").map_or("desc", String::as_str),
        ),
    };
    found.sort_by(|(a_id, a), (b_id, b)| {
        let size = |image: &Image| image.data.as_ref().map_or(0, |data| data.size);
        let order = match key {
            "name" => a.name.cmp(&b.name),
            "size" => size(a).cmp(&size(b)),
            "disk_format" => a.disk_format.cmp(&b.disk_format),
            "container_format" => a.container_format.cmp(&b.container_format),
            _ => a.created_at.cmp(&b.created_at),
        };
        order.then(a_id.cmp(b_id))
    });
    if direction != "asc" {
        found.reverse();
    }
    let start = match filters.get("marker") {
        None => 0,
        Some(marker) => {
            let at = found.iter().position(|(id, _)| id.to_string() == *marker);
            at.ok_or_else(|| Fault::bad(format!("Marker {marker} was not found.")))? + 1
        }
    };
    let page: Vec<_> = found.iter().skip(start).take(limit).collect();
    let mut body = json!({
        "images": page.iter().map(|(id, image)| render(*id, image)).collect::<Vec<_>>(),
        "first": "/v2/images", "schema": "/v2/schemas/images",
    });
    if let Some((last, _)) = page.last().filter(|_| found.len() > start + limit) {
        let other =
            uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty() && !part.starts_with("marker="));
        let query = other.map(str::to_owned).chain([format!("marker={last}")]).collect::<Vec<_>>().join("&");
        body["next"] = json!(format!("/v2/images?{query}"));
    }
    ok(&body)
}

async fn show(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    let view = app.view();
    let (id, image) = find(&view, &caller, &id)?;
    ok(&render(id, image))
}

/// Fields that only LUC sets.
const READ_ONLY: [&str; 14] = [
    "status",
    "size",
    "virtual_size",
    "checksum",
    "created_at",
    "updated_at",
    "self",
    "file",
    "schema",
    "direct_url",
    "locations",
    "os_hash_algo",
    "os_hash_value",
    "id",
];

/// Sets one field, as creation and JSON patch both do.
fn set(image: &mut Image, key: &str, value: &Value, caller: &Caller) -> Result<(), Fault> {
    let text = || value.as_str().map(str::to_owned).or(value.is_null().then(String::new));
    let text = || {
        text()
            .filter(|text| text.chars().count() <= 255)
            .ok_or_else(|| Fault::bad(format!("{key} must be a string of at most 255 characters.")))
    };
    let number = || {
        value
            .as_u64()
            .filter(|n| *n <= 0x7fff_ffff)
            .ok_or_else(|| Fault::bad(format!("{key} must be a whole number, at least 0.")))
    };
    match key {
        "name" => image.name = text()?,
        "disk_format" => {
            image.disk_format = text()?;
            if image.data.is_some() || (!image.disk_format.is_empty() && !FORMATS.contains(&image.disk_format.as_str()))
            {
                return Err(Fault::bad("disk_format must be qcow2 or raw, and is fixed once there is data."));
            }
        }
        "container_format" => {
            image.container_format = text()?;
            if !matches!(image.container_format.as_str(), "" | "bare") {
                return Err(Fault::bad("container_format must be bare."));
            }
        }
        "visibility" => {
            image.visibility = text()?;
            if !VISIBILITIES.contains(&image.visibility.as_str()) {
                return Err(Fault::bad(format!("visibility must be one of {}.", VISIBILITIES.join(", "))));
            }
            if image.visibility == "public" {
                policy::check(caller, Action::Administer, None)?;
            }
        }
        "protected" => {
            image.protected = value.as_bool().ok_or_else(|| Fault::bad("protected must be true or false."))?
        }
        "os_hidden" => image.hidden = value.as_bool().ok_or_else(|| Fault::bad("os_hidden must be true or false."))?,
        "min_disk" => image.min_disk_gib = number()?,
        "min_ram" => image.min_ram_mib = number()?,
        "owner" => {
            policy::check(caller, Action::Administer, None)?;
            image.project = Uuid::parse_str(&text()?).map_err(|_| Fault::bad("owner must be a project's id."))?;
        }
        "tags" => image.tags = parse_tags(value)?,
        _ if READ_ONLY.contains(&key) => return Err(Fault::forbidden(format!("Attribute '{key}' is read-only."))),
        _ if key.starts_with("os_glance_") => {
            return Err(Fault::forbidden(format!("Attribute '{key}' is reserved.")));
        }
        _ => {
            let text = value.as_str().filter(|text| text.len() <= 64 << 10 && key.len() <= 255);
            let text = text.ok_or_else(|| Fault::bad(format!("Property {key} must be a string.")))?;
            image.properties.insert(key.into(), text.into());
            if image.properties.len() > 128 {
                return Err(Fault::too_large("An image has at most 128 properties."));
            }
        }
    }
    Ok(())
}

fn parse_tags(value: &Value) -> Result<BTreeMap<String, String>, Fault> {
    let wrong = || Fault::bad("tags must be a list of at most 128 strings of 1 to 255 characters.");
    let list = value.as_array().filter(|list| list.len() <= 128).ok_or_else(wrong)?;
    let tag = |tag: &Value| tag.as_str().filter(|tag| is_tag(tag)).map(|tag| (tag.to_owned(), String::new()));
    list.iter().map(|one| tag(one).ok_or_else(wrong)).collect()
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.chars().count() <= 255
}

async fn create(State(app): State<App>, caller: Caller, body: Object) -> Reply {
    let project = caller.project()?;
    policy::check(&caller, Action::Write, Some(project))?;
    let mut image = Image { project, visibility: "shared".into(), created_at: now(), ..Image::default() };
    let (given, random) = (body.text("id")?, Uuid::new_v4());
    let given = given.map(|id| Uuid::parse_str(id).map_err(|_| Fault::bad("id must be a UUID."))).transpose()?;
    for (key, value) in body.0.iter().filter(|(key, _)| *key != "id") {
        set(&mut image, key, value, &caller)?;
    }
    let record = image.clone();
    let create = move |tx: &mut Tx<'_>| {
        let owner = RecordId { kind: Kind::Project, id: record.project };
        if tx.view().get::<Project>(record.project).is_none() {
            return Err(Fault::bad("owner must be a project's id."));
        }
        let id = given.unwrap_or_else(|| tx.fresh(Kind::Image, random));
        tx.create(id, record, &[owner])?;
        Ok(id)
    };
    let id = app.transact(create).await?;
    let mut response = json_reply(StatusCode::CREATED, &render(id, &image));
    if let Ok(location) = format!("/image/v2/images/{id}").parse() {
        response.headers_mut().insert("location", location);
    }
    Ok(response)
}

/// JSON patch (RFC 6902) on the flat image: add, replace and remove.
async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Reply {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/openstack-images-v2") {
        return Err(Fault {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message: "Send application/openstack-images-v2.1-json-patch.".into(),
        });
    }
    let id = owned(&app.view(), &caller, &id)?.0;
    let body = read_body(request.into_body(), MAX_BODY).await?;
    let patch: Vec<Value> =
        serde_json::from_slice(&body).map_err(|error| Fault::bad(format!("The patch is not a JSON list: {error}")))?;
    let steps = patch.iter().map(parse_step).collect::<Result<Vec<_>, _>>()?;
    edit(&app, id, move |image| steps.iter().try_for_each(|step| apply_step(image, step, &caller))).await?;
    let view = app.view();
    let image = view.get::<Image>(id).ok_or_else(|| Fault::not_found("The image is gone."))?;
    ok(&render(id, image))
}

/// Changes an image.
pub(crate) async fn edit(
    app: &App,
    id: Uuid,
    edit: impl FnOnce(&mut Image) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Fault> {
    app.transact(move |tx| {
        let at = tx.now();
        tx.update::<Image, Fault>(id, |image| {
            edit(image)?;
            image.updated_at = at;
            Ok(())
        })
    })
    .await
}

/// One step of a patch: what is done, to which key, and the new value.
struct Step {
    op: &'static str,
    key: String,
    value: Value,
}

/// `{"op": "add", "path": "/key", …}`, or as Glance's first patches had it, `{"add": "/key", …}`.
fn parse_step(step: &Value) -> Result<Step, Fault> {
    let known = ["add", "replace", "remove"];
    let op = known.into_iter().find(|op| step["op"] == *op || (step["op"].is_null() && step[*op].is_string()));
    let op = op.ok_or_else(|| Fault::bad("\"op\" must be add, replace or remove."))?;
    let path = if step["op"].is_null() { &step[op] } else { &step["path"] };
    let key = path.as_str().and_then(|path| path.strip_prefix('/')).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| Fault::bad("A step needs a \"path\" that starts with '/'."))?;
    if op != "remove" && step.get("value").is_none() {
        return Err(Fault::bad(format!("The step on {key:?} needs a \"value\".")));
    }
    let key = key.replace("~1", "/").replace("~0", "~");
    Ok(Step { op, key, value: step["value"].clone() })
}

/// Fields that every image has: they can be replaced, never removed.
const BASE: [&str; 10] = [
    "name",
    "disk_format",
    "container_format",
    "visibility",
    "protected",
    "os_hidden",
    "min_disk",
    "min_ram",
    "owner",
    "tags",
];

fn apply_step(image: &mut Image, step: &Step, caller: &Caller) -> Result<(), Fault> {
    let Step { op, key, value } = step;
    let fixed = BASE.contains(&key.as_str()) || READ_ONLY.contains(&key.as_str());
    let unknown = || Fault::conflict(format!("Property {key} does not exist."));
    match *op {
        "remove" if fixed => Err(Fault::forbidden(format!("Property {key} cannot be removed."))),
        "remove" => image.properties.remove(key).map(|_| ()).ok_or_else(unknown),
        "replace" if !fixed && !image.properties.contains_key(key) => Err(unknown()),
        _ => set(image, key, value, caller),
    }
}

async fn delete(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    remove(&app, &caller, &id).await?;
    empty(StatusCode::NO_CONTENT)
}

/// Deletes an image, and its data once nothing needs it.
pub(crate) async fn remove(app: &App, caller: &Caller, id: &str) -> Result<(), Fault> {
    let (id, blob) = {
        let view = app.view();
        let (id, image) = owned(&view, caller, id)?;
        if image.protected {
            return Err(Fault::forbidden(format!("Image {id} is protected and cannot be deleted.")));
        }
        (id, image.data.as_ref().map(|data| data.blob.clone()))
    };
    app.transact(move |tx| Ok(tx.delete(RecordId { kind: Kind::Image, id })?)).await?;
    if let Some(blob) = blob {
        drop_unused(app, &blob).await;
    }
    Ok(())
}

/// How long data that nothing needs stay. Who fetches or uploads some says what for only afterwards.
pub const IDLE: Duration = Duration::from_secs(3_600);
/// How often such are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// Removes the data here if no image and no server needs it, and nobody is at work with it. Other sites, and what was left now,
/// see [`sweep`].
async fn drop_unused(app: &App, blob: &str) {
    if let Err(error) = app.net().blobs().remove_unless(blob, |blob| is_needed(&app.view(), blob)).await {
        tracing::warn!(%error, "an image's data could not be removed");
    }
}

/// Removes all data here that no image and no server has needed for so long: of images that were deleted at other sites, and what
/// uploads and fetches that broke off have left. Says how many.
///
/// # Errors
/// [`BlobError`]; the rest is for the next time.
pub async fn sweep(app: &App, idle: Duration) -> Result<usize, BlobError> {
    app.net().blobs().remove_idle(idle, |blob| is_needed(&app.view(), blob)).await
}

/// Does so again and again.
pub(crate) async fn keep_swept(app: App) {
    keep_removing_idle(app.net().blobs(), |blob| is_needed(&app.view(), blob)).await;
}

/// Removes what has been idle for too long of what nothing `needs`, again and again.
pub(crate) async fn keep_removing_idle(blobs: &Blobs, needs: impl Fn(&str) -> bool) {
    let mut every = tokio::time::interval(SWEEP);
    loop {
        every.tick().await;
        match blobs.remove_idle(IDLE, &needs).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed image data that nothing needs"),
            Err(error) => tracing::warn!(%error, "image data that nothing needs stay for now"),
        }
    }
}

fn is_needed(view: &View, blob: &str) -> bool {
    let mut images = view.all::<Image>().filter_map(|(_, image)| image.data.as_ref());
    let mut servers = view.all::<Server>().filter_map(|(_, server)| Some(&server.image.as_ref()?.data));
    images.any(|data| data.blob == blob) || servers.any(|data| data.blob == blob)
}

impl From<BlobError> for Fault {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::TooLarge(_) => Self::too_large(error.to_string()),
            BlobError::Broken(_) => Self::bad(error.to_string()),
            BlobError::Name(_) | BlobError::Absent(_) => Self::not_found(error.to_string()),
            // Glance says 503 for a store that is out of reach, and for one that is full.
            BlobError::Disk { .. } | BlobError::Corrupt(_) | BlobError::OutOfReach(_) => {
                Self::unavailable(error.to_string())
            }
        }
    }
}

async fn upload(State(app): State<App>, caller: Caller, Path(id): Path<String>, request: Request) -> Reply {
    let (id, format) = {
        let view = app.view();
        let (id, image) = owned(&view, &caller, &id)?;
        if image.data.is_some() {
            return Err(Fault::conflict(format!("Image {id} has data already.")));
        }
        if image.disk_format.is_empty() || image.container_format.is_empty() {
            return Err(Fault::bad("Set disk_format and container_format before the upload."));
        }
        (id, image.disk_format.clone())
    };
    let limit = app.settings().max_image;
    let blobs = app.net().blobs();
    let stream = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let mut reader = StreamReader::new(stream);
    let (stored, turn) = match blobs.put(&mut reader, limit, rand::random()).await {
        Ok(stored) => stored,
        Err(error) => {
            // A client that is still sending hears the answer only once it is done: read on, for a while.
            let (mut rest, mut nowhere) = (reader.take(PATIENCE_BYTES), tokio::io::sink());
            let _ = tokio::time::timeout(PATIENCE, tokio::io::copy(&mut rest, &mut nowhere)).await;
            return Err(error.into());
        }
    };
    let path = blobs.path(&stored.blob).ok_or_else(|| Fault::unavailable("The upload is gone again."))?;
    let checked = luc_compute::image_check::check(&path, &format, limit, Limits::STANDARD).await;
    let virtual_size = match checked {
        Ok(checked) => checked.virtual_size,
        Err(error) if error.may_pass_later() => {
            drop(turn);
            drop_unused(&app, &stored.blob).await;
            return Err(Fault::unavailable(format!("The data cannot be checked at this site now: {error}")));
        }
        Err(error) => {
            drop(turn);
            drop_unused(&app, &stored.blob).await;
            return Err(Fault::bad(format!("The data is no {format} image that LUC takes: {error}")));
        }
    };
    let data = ImageData {
        blob: stored.blob,
        size: stored.size,
        virtual_size,
        md5: stored.md5,
        sha512: stored.sha512,
        site: app.node().site().to_string(),
    };
    edit(&app, id, move |image| {
        if image.data.is_some() {
            return Err(Fault::conflict(format!("Image {id} has data already.")));
        }
        image.data = Some(data);
        Ok(())
    })
    .await?;
    empty(StatusCode::NO_CONTENT)
}

async fn download(State(app): State<App>, caller: Caller, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    let data = find(&app.view(), &caller, &id)?.1.data.clone();
    let Some(data) = data else { return empty(StatusCode::NO_CONTENT) };
    let range = range(&headers, data.size)?;
    app.net().fetch_blob(&data.blob, &data.site).await?;
    let (from, to) = range.unwrap_or((0, data.size));
    let file = app.net().blobs().read(&data.blob, from).await?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(to - from), 1 << 18));
    let mut response: Response = match range {
        None => (StatusCode::OK, [("content-md5", data.md5)], body).into_response(),
        Some(_) => {
            let what = format!("bytes {from}-{}/{}", to - 1, data.size);
            (StatusCode::PARTIAL_CONTENT, [("content-range", what)], body).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(to - from));
    Ok(response)
}

/// The one range of bytes that a request names, as start and end; none if it names none, or several, which a server
/// may answer whole (RFC 9110, 14.2).
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, Fault> {
    let text = headers.get(RANGE).and_then(|range| range.to_str().ok()).and_then(|range| range.strip_prefix("bytes="));
    let Some((first, last)) = text.and_then(|text| text.split_once('-')) else { return Ok(None) };
    let (first, last) = (first.trim().parse::<u64>().ok(), last.trim());
    let range = match (first, last.parse::<u64>().ok()) {
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        (None, Some(last)) => (size.saturating_sub(last), size),
        _ => return Ok(None),
    };
    if range.0 < range.1 {
        return Ok(Some(range));
    }
    let message = format!("The image has {size} bytes: there is nothing in the range that was asked for.");
    Err(Fault { status: StatusCode::RANGE_NOT_SATISFIABLE, message })
}

async fn change_tags(
    app: &App,
    caller: &Caller,
    id: &str,
    edit: impl FnOnce(&mut Image) -> Result<(), Fault> + Send + 'static,
) -> Reply {
    let id = owned(&app.view(), caller, id)?.0;
    self::edit(app, id, edit).await?;
    empty(StatusCode::NO_CONTENT)
}

async fn add_tag(State(app): State<App>, caller: Caller, Path((id, tag)): Path<(String, String)>) -> Reply {
    if !is_tag(&tag) {
        return Err(Fault::bad("A tag is 1 to 255 characters."));
    }
    change_tags(&app, &caller, &id, move |image| {
        image.tags.insert(tag, String::new());
        if image.tags.len() > 128 { Err(Fault::too_large("An image has at most 128 tags.")) } else { Ok(()) }
    })
    .await
}

async fn delete_tag(State(app): State<App>, caller: Caller, Path((id, tag)): Path<(String, String)>) -> Reply {
    change_tags(&app, &caller, &id, move |image| {
        image.tags.remove(&tag).map(|_| ()).ok_or_else(|| Fault::not_found("The image has no such tag."))
    })
    .await
}

async fn members(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    find(&app.view(), &caller, &id)?;
    ok(&json!({"members": [], "schema": "/v2/schemas/members"}))
}

// ---- what images do not have yet

async fn no_sharing(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    owned(&app.view(), &caller, &id)?;
    Err(Fault::not_implemented(
        "LUC does not share images with single projects yet: make the image public or community.",
    ))
}

async fn no_member(State(app): State<App>, caller: Caller, Path((id, member)): Path<(String, String)>) -> Reply {
    find(&app.view(), &caller, &id)?;
    Err(Fault::not_found(format!("{member} is not a member of image {id}: LUC does not share images so yet.")))
}

async fn no_action(State(app): State<App>, caller: Caller, Path((id, action)): Path<(String, String)>) -> Reply {
    owned(&app.view(), &caller, &id)?;
    Err(Fault::not_implemented(format!("LUC does not have the image action {action} yet.")))
}

async fn no_import(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Reply {
    owned(&app.view(), &caller, &id)?;
    Err(Fault::not_implemented("LUC takes image data by upload only: PUT /v2/images/{id}/file."))
}

async fn member_schema(_: Caller) -> Reply {
    let text = json!({"type": "string"});
    let properties = json!({"member_id": text, "image_id": text, "status": text, "created_at": text, "updated_at": text, "schema": text});
    ok(&json!({"name": "member", "properties": properties}))
}

fn schema() -> Value {
    let text = |what: &str| json!({"type": ["null", "string"], "description": what});
    json!({
        "name": "image",
        "properties": {
            "id": text("Its id"), "name": text("Its name"), "status": text("queued or active"), "visibility": text("Who sees it"),
            "disk_format": {"type": ["null", "string"], "enum": [null, "qcow2", "raw"]},
            "container_format": {"type": ["null", "string"], "enum": [null, "bare"]},
            "min_disk": {"type": "integer"}, "min_ram": {"type": "integer"}, "size": {"type": ["null", "integer"]},
            "virtual_size": {"type": ["null", "integer"]}, "protected": {"type": "boolean"}, "owner": text("The project"),
            "checksum": text("MD5"), "os_hash_algo": text("sha512"), "os_hash_value": text("The hash"),
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}},
            "created_at": text("When"), "updated_at": text("When"), "self": text("Link"), "file": text("Link"), "schema": text("Link"),
        },
        "additionalProperties": {"type": "string"},
        "links": [{"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"}, {"rel": "describedby", "href": "{schema}"}],
    })
}

async fn image_schema(_: Caller) -> Reply {
    ok(&schema())
}

async fn images_schema(_: Caller) -> Reply {
    let properties = json!({"images": {"type": "array", "items": schema()}, "first": {"type": "string"}, "next": {"type": "string"}, "schema": {"type": "string"}});
    ok(
        &json!({"name": "images", "properties": properties, "links": [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}]}),
    )
}

/// Data comes by upload only.
async fn import_info(_: Caller) -> Reply {
    ok(&json!({"import-methods": {"description": "Import methods available.", "type": "array", "value": []}}))
}

async fn stores(State(app): State<App>, _: Caller) -> Reply {
    ok(&json!({"stores": [{"id": app.node().site().as_str(), "default": "true"}]}))
}
