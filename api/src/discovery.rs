//! What clients ask before anything else: version documents, without a token. And what LUC does not have.
//!
//! Links are absolute and use the address that the client used, unless the operator has set a public one.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{any, get};
use serde_json::{Value, json};

use crate::app::App;
use crate::http::{Fault, NEWEST, Reply, json_reply};

/// Routes outside of the services' own.
pub(crate) fn routes() -> Router<App> {
    crate::luc::open_routes()
        .route("/", get(root))
        .route("/identity", get(identity_versions))
        .route("/identity/", get(identity_versions))
        .route("/identity/v3", get(identity_version))
        .route("/identity/v3/", get(identity_version))
        .route("/compute", get(compute_versions))
        .route("/compute/", get(compute_versions))
        .route("/compute/v2", get(first_compute_version))
        .route("/compute/v2/", get(first_compute_version))
        .route("/compute/v2.1", get(compute_version))
        .route("/compute/v2.1/", get(compute_version))
        .route("/image", get(image_versions))
        .route("/image/", get(image_versions))
        .route("/image/versions", get(image_versions))
        .route("/network", any(no_network))
        .route("/network/", any(no_network))
        .route("/network/{*path}", any(no_network))
        .route("/volume", any(no_volume))
        .route("/volume/", any(no_volume))
        .route("/volume/{*path}", any(no_volume))
        .route("/placement", any(no_placement))
        .route("/placement/", any(no_placement))
        .route("/placement/{*path}", any(no_placement))
}

/// The base URL for links.
pub(crate) fn base(app: &App, headers: &HeaderMap) -> String {
    if let Some(url) = &app.settings().public_url {
        return url.trim_end_matches('/').to_owned();
    }
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    // What is echoed into links must be nothing but a host and a port.
    let plain = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    format!("http://{}", if plain { host } else { "localhost" })
}

async fn root(State(app): State<App>, headers: HeaderMap) -> Response {
    let base = base(&app, &headers);
    let site = app.node().site().as_str();
    let services = ["identity", "compute", "image", "luc/v1"].map(|path| format!("{base}/{path}"));
    json_reply(StatusCode::OK, &json!({"luc": env!("CARGO_PKG_VERSION"), "site": site, "services": services}))
}

fn keystone(base: &str) -> Value {
    json!({
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{base}/identity/v3/")}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    })
}

async fn identity_versions(State(app): State<App>, headers: HeaderMap) -> Response {
    let value = json!({"versions": {"values": [keystone(&base(&app, &headers))]}});
    json_reply(StatusCode::MULTIPLE_CHOICES, &value)
}

async fn identity_version(State(app): State<App>, headers: HeaderMap) -> Response {
    json_reply(StatusCode::OK, &json!({"version": keystone(&base(&app, &headers))}))
}

fn nova(base: &str) -> Value {
    json!({
        "id": "v2.1", "status": "CURRENT", "version": format!("2.{}", NEWEST.0), "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{base}/compute/v2.1/")}],
    })
}

/// Nova's first API: the same, at the lowest version.
fn first_nova(base: &str) -> Value {
    json!({
        "id": "v2.0", "status": "SUPPORTED", "version": "", "min_version": "", "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{base}/compute/v2/")}],
    })
}

async fn compute_versions(State(app): State<App>, headers: HeaderMap) -> Response {
    let base = base(&app, &headers);
    json_reply(StatusCode::OK, &json!({"versions": [first_nova(&base), nova(&base)]}))
}

async fn first_compute_version(State(app): State<App>, headers: HeaderMap) -> Response {
    let mut version = first_nova(&base(&app, &headers));
    version["media-types"] =
        json!([{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2"}]);
    json_reply(StatusCode::OK, &json!({"version": version}))
}

async fn compute_version(State(app): State<App>, headers: HeaderMap) -> Response {
    let mut version = nova(&base(&app, &headers));
    version["media-types"] =
        json!([{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]);
    json_reply(StatusCode::OK, &json!({"version": version}))
}

async fn image_versions(State(app): State<App>, headers: HeaderMap) -> Response {
    let href = format!("{}/image/v2/", base(&app, &headers));
    let one = |id: &str, status: &str| json!({"id": id, "status": status, "links": [{"rel": "self", "href": href}]});
    let versions = [one("v2.9", "CURRENT"), one("v2.7", "SUPPORTED"), one("v2.0", "SUPPORTED")];
    json_reply(StatusCode::MULTIPLE_CHOICES, &json!({"versions": versions}))
}

async fn no_network() -> Reply {
    Err(Fault::not_implemented("LUC has no networks yet: create servers with --nic none."))
}

async fn no_volume() -> Reply {
    Err(Fault::not_implemented("LUC has no volumes yet: servers boot from images."))
}

async fn no_placement() -> Reply {
    Err(Fault::not_implemented("LUC has no placement service: capacity and claims are at /luc/v1/pools."))
}
