//! Around every request: ids, frontiers, microversions, and each service's own error format.
//!
//! Handlers return a [`Fault`] in the core's terms; the one place below gives it the shape that the clients of that
//! service expect. What axum itself refuses (unknown paths, wrong methods) takes the same way, so nothing leaves in a
//! foreign format, and a handler that panics answers 500 with its request id while the process goes on.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{FutureExt, StreamExt};
use luc_engine::entry::{Frontier, Tip};
use luc_engine::id::ReplicaId;
use luc_engine::site_mutant::{SiteMutant, on};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::Instrument;

use crate::app::App;

/// Most bytes of a JSON body.
pub const MAX_BODY: usize = 1 << 20;
const FRONTIER: HeaderName = HeaderName::from_static("x-luc-frontier");

/// A refused request, in the core's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The status.
    pub status: StatusCode,
    /// For the user.
    pub message: String,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $status:ident;)*) => {
        impl Fault {$(
            $(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Self {
                Self { status: StatusCode::$status, message: message.into() }
            }
        )*}
    };
}
faults! {
    /// The request is malformed.
    bad = BAD_REQUEST;
    /// No valid token.
    unauthorized = UNAUTHORIZED;
    /// Not allowed, or no quota left.
    forbidden = FORBIDDEN;
    /// No such thing, or not for this caller.
    not_found = NOT_FOUND;
    /// Not in this state.
    conflict = CONFLICT;
    /// Too large.
    too_large = PAYLOAD_TOO_LARGE;
    /// LUC does not have this.
    not_implemented = NOT_IMPLEMENTED;
    /// Not now: what is missing may come.
    unavailable = SERVICE_UNAVAILABLE;
    /// A microversion out of range.
    not_acceptable = NOT_ACCEPTABLE;
    /// Too many tries.
    too_many = TOO_MANY_REQUESTS;
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// What handlers return.
pub type Reply = Result<Response, Fault>;

/// A JSON answer.
pub fn json_reply(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_default();
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// 200 with JSON.
pub fn ok(value: &impl serde::Serialize) -> Reply {
    Ok(json_reply(StatusCode::OK, value))
}

/// A status without a body.
pub fn empty(status: StatusCode) -> Reply {
    Ok(status.into_response())
}

/// A JSON object as a request's body.
#[derive(Debug)]
pub struct Object(pub serde_json::Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Object {
    type Rejection = Fault;
    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let body = read_body(request.into_body(), MAX_BODY).await?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(Fault::bad("The body is not a JSON object.")),
            Err(error) => Err(Fault::bad(format!("The body is not valid JSON: {error}"))),
        }
    }
}

/// Reads a body of at most `limit` bytes. One that is longer is read on for a while and thrown away: a client that is
/// still sending when the connection closes sees a broken pipe, and never the answer that says why.
///
/// # Errors
/// 413 if it is longer, 400 if it breaks off.
pub async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, Fault> {
    const PATIENCE: usize = 16;
    let mut stream = body.into_data_stream();
    let (mut bytes, mut size) = (Vec::new(), 0_usize);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Fault::bad("The body broke off."))?;
        size = size.saturating_add(chunk.len());
        if size <= limit {
            bytes.extend_from_slice(&chunk);
        } else if size > limit.saturating_mul(PATIENCE) {
            break;
        }
    }
    if size > limit { Err(Fault::too_large(format!("The body is over {limit} bytes."))) } else { Ok(bytes) }
}

impl Object {
    /// The object under `key`, which most OpenStack requests have.
    ///
    /// # Errors
    /// 400 if there is none.
    pub fn inner(mut self, key: &str) -> Result<Self, Fault> {
        match self.0.remove(key) {
            Some(Value::Object(object)) => Ok(Self(object)),
            _ => Err(Fault::bad(format!("The body needs an object {key:?}."))),
        }
    }

    /// A string; none if absent or null.
    ///
    /// # Errors
    /// 400 if it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Fault> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Fault::bad(format!("{key:?} must be a string."))),
        }
    }

    /// A string that is not empty and not longer than 255 characters.
    ///
    /// # Errors
    /// 400 otherwise.
    pub fn name(&self, key: &str) -> Result<Option<&str>, Fault> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let printable = !text.chars().any(char::is_control);
        if text.trim().is_empty() || text.chars().count() > 255 || !printable {
            return Err(Fault::bad(format!("{key:?} must be 1 to 255 printable characters.")));
        }
        Ok(Some(text))
    }

    /// As [`Object::name`], but it must be there.
    ///
    /// # Errors
    /// 400 otherwise.
    pub fn required(&self, key: &str) -> Result<&str, Fault> {
        self.name(key)?.ok_or_else(|| Fault::bad(format!("{key:?} is required.")))
    }

    /// A boolean; Nova's clients also send "true".
    ///
    /// # Errors
    /// 400 if it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(Fault::bad(format!("{key:?} must be true or false."))),
        }
    }

    /// A whole number, at least 0; a string of digits counts.
    ///
    /// # Errors
    /// 400 if it is something else.
    pub fn number(&self, key: &str) -> Result<Option<u64>, Fault> {
        let wrong = || Fault::bad(format!("{key:?} must be a whole number, at least 0."));
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or_else(wrong),
            Some(Value::String(text)) => text.parse().map(Some).map_err(|_| wrong()),
            Some(_) => Err(wrong()),
        }
    }

    /// A map of strings.
    ///
    /// # Errors
    /// 400 if it is something else, or a key or a value is longer than 255 characters.
    pub fn strings(&self, key: &str) -> Result<Option<BTreeMap<String, String>>, Fault> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                map.iter().map(|(key, value)| string_pair(key, value)).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(Fault::bad(format!("{key:?} must be an object."))),
        }
    }
}

fn string_pair(key: &str, value: &Value) -> Result<(String, String), Fault> {
    let Value::String(value) = value else { return Err(Fault::bad(format!("The value of {key:?} must be a string."))) };
    let fits = |text: &str| text.chars().count() <= 255;
    if key.is_empty() || !fits(key) || !fits(value) {
        return Err(Fault::bad("Keys are 1 to 255 characters, values at most 255.".to_owned()));
    }
    Ok((key.into(), value.clone()))
}

/// Which service a path belongs to: decides the shape of its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Keystone.
    Identity,
    /// Nova.
    Compute,
    /// Glance.
    Image,
    /// Neutron.
    Network,
    /// Cinder.
    Volume,
    /// Placement.
    Placement,
    /// LUC's own.
    Luc,
}

impl Service {
    fn of(path: &str) -> Self {
        match path.split('/').nth(1).unwrap_or_default() {
            "identity" => Self::Identity,
            "compute" => Self::Compute,
            "image" => Self::Image,
            "network" => Self::Network,
            "volume" => Self::Volume,
            "placement" => Self::Placement,
            _ => Self::Luc,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Compute => "compute",
            Self::Image => "image",
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Placement => "placement",
            Self::Luc => "luc",
        }
    }

    fn body(self, fault: &Fault, request: &str) -> (HeaderValue, Vec<u8>) {
        let code = fault.status.as_u16();
        let title = fault.status.canonical_reason().unwrap_or("Error");
        let message = &fault.message;
        let value = match self {
            Self::Identity => json!({"error": {"code": code, "message": message, "title": title}}),
            Self::Compute | Self::Volume => json!({nova_kind(fault.status): {"code": code, "message": message}}),
            Self::Network => {
                json!({"NeutronError": {"type": title.replace(' ', ""), "message": message, "detail": ""}})
            }
            Self::Placement => json!({"errors": [{"status": code, "title": title, "detail": message}]}),
            Self::Luc => json!({"error": {"code": code, "message": message, "request_id": request}}),
            Self::Image => {
                let text = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let html = format!(
                    "<html><head><title>{code} {title}</title></head><body><h1>{code} {title}</h1>{text}</body></html>"
                );
                return (HeaderValue::from_static("text/html; charset=UTF-8"), html.into_bytes());
            }
        };
        (HeaderValue::from_static("application/json"), value.to_string().into_bytes())
    }
}

fn nova_kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 406 | 411 | 415 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 | 429 => "overLimit",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

/// A request's id, for handlers.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Nova's microversion: `2.N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Microversion(pub u32);

/// The newest of Nova's microversions that is spoken.
pub const NEWEST: Microversion = Microversion(96);

/// Runs around every request.
pub(crate) async fn around(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let service = Service::of(request.uri().path());
    let id = format!("req-{}", uuid::Uuid::new_v4());
    let method = request.method().clone();
    request.extensions_mut().insert(RequestId(id.clone()));
    let (version, bad_version) = match microversion(request.headers()) {
        Ok(version) => (version, None),
        Err(fault) => (Microversion(1), Some(fault)),
    };
    request.extensions_mut().insert(version);
    let path = tracing::enabled!(tracing::Level::INFO).then(|| request.uri().path().to_owned());
    let caught_up = catch_up(&app, request.headers()).await;
    #[cfg(feature = "mutants")]
    crate::mutants::ask_everybody(&app).await;
    let run = async {
        match bad_version.filter(|_| service == Service::Compute) {
            Some(fault) => fault.into_response(),
            None => match caught_up {
                Ok(()) => next.run(request).await,
                Err(fault) => fault.into_response(),
            },
        }
    };
    // Whatever is logged on the way names the request.
    let run = run.instrument(tracing::info_span!("request", id));
    let response = AssertUnwindSafe(run).catch_unwind().await;
    let response = response.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response());
    let mut response = render(service, response, &id);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-openstack-request-id", id.clone());
        if service == Service::Compute {
            headers.insert("x-compute-request-id", id);
        }
    }
    if service == Service::Compute {
        let text = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("2.1"));
        headers.insert("openstack-api-version", text(format!("compute 2.{}", version.0)));
        headers.insert("x-openstack-nova-api-version", text(format!("2.{}", version.0)));
        let vary = HeaderValue::from_static("OpenStack-API-Version, X-OpenStack-Nova-API-Version");
        headers.insert(VARY, vary);
    }
    let seen = Seen::encode(app.view().frontier(), &app.net().stable(), app.node().me());
    if let Ok(frontier) = HeaderValue::from_str(&seen) {
        headers.insert(FRONTIER, frontier);
    }
    let took = started.elapsed();
    app.inner.metrics.count(service, &method, response.status(), took);
    if let Some(path) = path {
        let status = response.status().as_u16();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(request = id, %method, path, status, micros, "request");
    }
    response
}

/// Gives a refused request the shape of its service's errors.
fn render(service: Service, mut response: Response, id: &str) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let fault = response.extensions_mut().remove::<Fault>();
    let fault = match fault {
        Some(fault) => fault,
        // A handler's own body stands; what axum refuses has none that clients know.
        None if response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json") => return response,
        None => Fault { status, message: default_message(status, id) },
    };
    let (kind, body) = service.body(&fault, id);
    let length = body.len();
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(axum::http::header::CONTENT_LENGTH, HeaderValue::from(length));
    if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert("www-authenticate", HeaderValue::from_static("Keystone uri=\"/identity\""));
    }
    response
}

fn default_message(status: StatusCode, id: &str) -> String {
    match status {
        StatusCode::NOT_FOUND => "The resource could not be found.".into(),
        StatusCode::METHOD_NOT_ALLOWED => "The method is not allowed for this resource.".into(),
        StatusCode::INTERNAL_SERVER_ERROR => format!("An unexpected error; the site's log has it under {id}."),
        _ => status.canonical_reason().unwrap_or("Error").into(),
    }
}

/// Answers paths that no service has.
pub(crate) async fn unknown_path() -> Fault {
    Fault::not_found("The resource could not be found.")
}

fn microversion(headers: &HeaderMap) -> Result<Microversion, Fault> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let modern = text("openstack-api-version").and_then(|all| {
        let one = |part: &str| part.trim().strip_prefix("compute ").map(|version| version.trim().to_owned());
        all.split(',').find_map(one)
    });
    let Some(asked) = modern.or_else(|| text("x-openstack-nova-api-version").map(str::to_owned)) else {
        return Ok(Microversion(1));
    };
    if asked == "latest" {
        return Ok(NEWEST);
    }
    let parsed = asked.strip_prefix("2.").and_then(|minor| minor.parse().ok()).map(Microversion);
    match parsed {
        Some(version) if version.0 >= 1 && version <= NEWEST => Ok(version),
        Some(_) => Err(Fault::not_acceptable(format!(
            "Version {asked} is not supported by the API. Minimum is 2.1 and maximum is 2.{}.",
            NEWEST.0
        ))),
        None => Err(Fault::bad(format!(
            "API Version String {asked} is of invalid format. Must be of format MajorNum.MinorNum."
        ))),
    }
}

/// Read-your-writes across sites: a request that says what it has seen waits until this replica holds it.
async fn catch_up(app: &App, headers: &HeaderMap) -> Result<(), Fault> {
    let Some(value) = headers.get(&FRONTIER).filter(|_| !on(SiteMutant::FrontierIgnored)) else { return Ok(()) };
    let seen = value.to_str().ok().and_then(Seen::decode);
    let wanted = match seen
        .ok_or_else(|| Fault::bad("X-LUC-Frontier is malformed: send it back as it was received."))?
    {
        Seen::Entries(wanted) => wanted,
        Seen::At(replica) if replica == app.node().me() => return Ok(()),
        Seen::At(replica) => app.net().frontier_of(replica, app.settings().frontier_wait).await.ok_or_else(|| {
            Fault::unavailable(format!(
                "The request's frontier is known to replica {replica} alone, and that cannot be reached from here."
            ))
        })?,
    };
    app.node().wait_for(&wanted, app.settings().frontier_wait).await.map_err(|missing| {
        let view = app.view();
        let name = |id: &luc_engine::id::EntryId| {
            let site = view.member(id.author).map_or("an unknown replica".into(), |m| m.member.site.to_string());
            format!("entry {} of {site}", id.number)
        };
        let missing: Vec<String> = missing.iter().map(name).collect();
        Fault::unavailable(format!(
            "This replica has not caught up with the request's frontier: {}.",
            missing.join(", ")
        ))
    })
}

/// Longest value of `X-LUC-Frontier`, bytes.
const LONGEST: usize = 4 << 10;

/// What a client has seen. Opaque to it (`PROTOCOL.md`, M6).
#[derive(Debug, PartialEq)]
enum Seen {
    /// These entries, and those that all members hold anyway.
    Entries(Frontier),
    /// More than a header should say: what this replica held then. What it holds when it is asked is no less.
    At(ReplicaId),
}

impl Seen {
    fn encode(frontier: &Frontier, stable: &Frontier, me: ReplicaId) -> String {
        let above = frontier.0.iter().filter(|(id, tip)| tip.number > stable.number(**id));
        let pairs: Vec<(ReplicaId, u64)> = above.map(|(id, tip)| (*id, tip.number)).collect();
        let text = URL_SAFE_NO_PAD.encode(rmp_serde::to_vec(&pairs).unwrap_or_default());
        if text.len() <= LONGEST { text } else { format!("at.{me}") }
    }

    fn decode(text: &str) -> Option<Self> {
        if let Some(replica) = text.strip_prefix("at.") {
            return replica.parse().ok().map(Self::At);
        }
        let bytes =
            Some(text).filter(|text| text.len() <= LONGEST).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())?;
        let pairs: Vec<(ReplicaId, u64)> = luc_engine::entry::from_untrusted(&bytes).ok()?;
        Some(Self::Entries(Frontier(pairs.into_iter().map(|(id, number)| (id, Tip { number, hash: 0 })).collect())))
    }
}

/// Counts of requests, for `/metrics`.
#[derive(Default)]
pub struct Metrics {
    counts: Mutex<BTreeMap<(&'static str, &'static str, u16), u64>>,
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Upper bounds of the latency histogram, microseconds.
const BUCKETS: [u64; 10] = [250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000];

impl Metrics {
    fn count(&self, service: Service, method: &Method, status: StatusCode, took: Duration) {
        // Clients may send any method: what is counted by name is a fixed set.
        let method = METHODS.iter().find(|known| **known == method.as_str()).copied().unwrap_or("other");
        *self.counts.lock().entry((service.name(), method, status.as_u16())).or_default() += 1;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|bound| micros <= *bound).unwrap_or(BUCKETS.len());
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// In Prometheus's text format.
    pub(crate) fn write(&self, out: &mut String) {
        use std::fmt::Write;
        out.push_str("# HELP luc_http_requests_total Requests answered.\n# TYPE luc_http_requests_total counter\n");
        for ((service, method, status), count) in self.counts.lock().iter() {
            let labels = format!("service=\"{service}\",method=\"{method}\",status=\"{status}\"");
            let _ = writeln!(out, "luc_http_requests_total{{{labels}}} {count}");
        }
        out.push_str("# HELP luc_http_request_seconds Time to answer.\n# TYPE luc_http_request_seconds histogram\n");
        let mut sum = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            sum += bucket.load(Ordering::Relaxed);
            let bound = BUCKETS.get(index).map_or("+Inf".to_owned(), |micros| seconds(*micros));
            let _ = writeln!(out, "luc_http_request_seconds_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(out, "luc_http_request_seconds_sum {}", seconds(self.micros.load(Ordering::Relaxed)));
        let _ = writeln!(out, "luc_http_request_seconds_count {sum}");
    }
}

/// Microseconds as seconds, without going through floating point.
pub(crate) fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
mod frontier_tests {
    use super::*;

    fn frontier(replicas: u128, number: u64) -> Frontier {
        let id = |n| ReplicaId(uuid::Uuid::from_u128(n));
        Frontier((0..replicas).map(|n| (id(n), Tip { number, hash: 0 })).collect())
    }

    #[test]
    fn a_header_says_what_is_above_the_stable_frontier() {
        let me = ReplicaId(uuid::Uuid::from_u128(7));
        let mut held = frontier(500, 9);
        let stable = held.clone();
        assert!(Seen::encode(&held, &stable, me).len() < 10);
        held.set(me, Tip { number: 10, hash: 0 });
        let only = Frontier([(me, Tip { number: 10, hash: 0 })].into());
        assert_eq!(Seen::decode(&Seen::encode(&held, &stable, me)), Some(Seen::Entries(only)));
    }

    #[test]
    fn what_would_be_too_long_is_a_replica_to_ask() {
        let me = ReplicaId(uuid::Uuid::from_u128(7));
        let text = Seen::encode(&frontier(500, 9), &Frontier::default(), me);
        assert_eq!(Seen::decode(&text), Some(Seen::At(me)));
        let short = Seen::encode(&frontier(50, 9), &Frontier::default(), me);
        assert_eq!(Seen::decode(&short), Some(Seen::Entries(frontier(50, 9))));
        assert_eq!(Seen::decode("at.nobody"), None);
        assert_eq!(Seen::decode(&"A".repeat(LONGEST + 1)), None);
    }
}
