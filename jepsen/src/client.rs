//! A client of one site's REST APIs, as any user's: it keeps no connection over a fault, waits a bounded time, and knows
//! what a failure says: refused (it did not happen) or silence (nobody knows).
//!
//! Nothing is tried twice, but what was refused for want of a valid token: that did not happen, so it is sent again with a
//! new one.

use std::cell::RefCell;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use thiserror::Error;
use ureq::{Agent, Timeout};

use crate::history::Outcome;
use crate::workload::Endpoint;

/// How long an answer may take, unless something else is set. A request for rights asks other sites for up to two
/// seconds at a time, and one that carries a frontier waits five: who gives up before them learns nothing.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const LONGEST: u64 = 64 << 20;
/// What a request has seen, and what an answer shows.
pub const FRONTIER: &str = "x-luc-frontier";

/// Why there is no good answer.
#[derive(Clone, Debug, Error)]
pub enum Trouble {
    /// The site answered that it does not do it: it did not happen.
    #[error("{status} {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The fault's message.
        message: String,
    },
    /// No connection came about, so nothing was sent: it did not happen.
    #[error("not connected: {0}")]
    Unsent(String),
    /// The request was sent, and there was no answer, or a 5xx that does not say: nobody knows.
    #[error("no answer: {0}")]
    Silence(String),
}

impl Trouble {
    /// The status with which it was refused; 0 if it was not.
    #[must_use]
    pub fn status(&self) -> u16 {
        if let Self::Refused { status, .. } = self { *status } else { 0 }
    }
}

impl From<Trouble> for Outcome {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Silence(_) => Self::Info(trouble.to_string()),
            Trouble::Refused { .. } | Trouble::Unsent(_) => Self::Fail(trouble.to_string()),
        }
    }
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What the site held when it answered, to be sent back to any site.
    pub frontier: Option<String>,
    /// The token that was asked for.
    pub subject: Option<String>,
    /// What the site's clock said, as HTTP says it.
    pub date: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// What it means, if it is not a success.
    ///
    /// # Errors
    /// [`Trouble`] by its status.
    pub fn good(self) -> Result<Self, Trouble> {
        let status = self.status;
        if (200..300).contains(&status) {
            return Ok(self);
        }
        let message = message(&String::from_utf8_lossy(&self.body));
        // These are said before the request is looked at; and data that cannot be fetched are not changed by it.
        let says = |words: &str| message.contains(words);
        let before = status == 501 || (status == 503 && (says("frontier") || says("nobody who has it can be reached")));
        if status < 500 || before {
            Err(Trouble::Refused { status, message })
        } else {
            Err(Trouble::Silence(format!("{status} {message}")))
        }
    }
}

/// A fault's message, out of each service's own format.
fn message(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let inner = value.as_object().and_then(|object| object.values().next());
    match inner.and_then(|inner| inner["message"].as_str()) {
        Some(message) => message.to_owned(),
        None => text.chars().take(500).collect(),
    }
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq)]
pub struct Credentials {
    /// The user's name, in the default domain.
    pub user: String,
    /// The password.
    pub password: String,
    /// The project that tokens are for, by name; unscoped if none.
    pub project: Option<String>,
}

/// A client of one site. Clones have one token.
#[derive(Clone)]
pub struct Client {
    /// The site's name.
    pub site: String,
    /// Where its APIs are, `http://address:port`.
    pub base: String,
    /// The network namespace from which it is reached; the process's own if none.
    pub namespace: Option<PathBuf>,
    /// How long an answer may take.
    pub timeout: Duration,
    credentials: Option<Arc<Credentials>>,
    token: Arc<Mutex<Option<String>>>,
}

impl Client {
    /// A client without a user.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            site: endpoint.site.clone(),
            base: endpoint.base.trim_end_matches('/').to_owned(),
            namespace: endpoint.namespace.clone(),
            timeout: PATIENCE,
            credentials: None,
            token: Arc::default(),
        }
    }

    /// A client that logs in as the administrator, when first it has to.
    #[must_use]
    pub fn admin(endpoint: &Endpoint, password: &str) -> Self {
        Self::new(endpoint).as_user("admin", password, "admin")
    }

    /// The same client for another user, who logs in when first they have to.
    #[must_use]
    pub fn as_user(&self, user: &str, password: &str, project: &str) -> Self {
        let project = Some(project.to_owned()).filter(|project| !project.is_empty());
        let credentials = Credentials { user: user.into(), password: password.into(), project };
        Self { credentials: Some(Arc::new(credentials)), token: Arc::default(), ..self.clone() }
    }

    /// The same client with a token and nothing else: it is never renewed.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { credentials: None, token: Arc::new(Mutex::new(Some(token.to_owned()))), ..self.clone() }
    }

    /// The same client with another patience.
    #[must_use]
    pub fn patient(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The token, if there is one.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_token(&self, token: Option<String>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Logs in, and gives the token. One that was there is forgotten.
    ///
    /// # Errors
    /// See [`Trouble`]; a client without a user cannot.
    pub fn login(&self) -> Result<String, Trouble> {
        let Some(credentials) = &self.credentials else {
            return Err(Trouble::Unsent("there is no user to log in as".into()));
        };
        self.set_token(None);
        let domain = json!({"id": "default"});
        let user = json!({"name": credentials.user, "password": credentials.password, "domain": domain});
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": user}}, "scope": "unscoped"});
        if let Some(project) = &credentials.project {
            auth["scope"] = json!({"project": {"name": project, "domain": domain}});
        }
        let body = json!({"auth": auth}).to_string();
        let answer = self.send("POST", "/identity/v3/auth/tokens", &[], body.as_bytes())?.good()?;
        let token = answer.subject.ok_or_else(|| Trouble::Silence("a login without a token".into()))?;
        self.set_token(Some(token.clone()));
        Ok(token)
    }

    /// One request with the token that there is, whatever the status of the answer.
    ///
    /// # Errors
    /// [`Trouble::Unsent`] or [`Trouble::Silence`].
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, Trouble> {
        enter(self.namespace.as_deref()).map_err(|error| Trouble::Unsent(format!("the network namespace: {error}")))?;
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = self.token() {
            request = request.header("x-auth-token", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|error| Trouble::Unsent(error.to_string()))?;
        let mut response = agent(self.timeout).run(request).map_err(|error| trouble(&error))?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (frontier, subject, date) = (text(FRONTIER), text("x-subject-token"), text("date"));
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LONGEST).read_to_vec();
        // A success without its body is none: what is not read to its end may not have been what it says.
        let body = body.map_err(|error| Trouble::Silence(format!("{status}, and {error}")))?;
        Ok(Answer { status, frontier, subject, date, body })
    }

    /// One request that must succeed, with a login before it if there is no token, or no valid one.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, Trouble> {
        self.as_somebody(method, path, headers, body)?.good()
    }

    /// One request with a valid token, whatever the status of the answer.
    fn as_somebody(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, Trouble> {
        let renews = self.credentials.is_some();
        if self.token().is_none() && renews {
            self.renew()?;
        }
        let answer = self.send(method, path, headers, body)?;
        if answer.status == 401 && renews {
            self.renew()?;
            return self.send(method, path, headers, body);
        }
        Ok(answer)
    }

    /// One request without a body whose answer may also be one that is `expected`, whatever its status says.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn ask(&self, method: &str, path: &str, expected: impl Fn(&Answer) -> bool) -> Result<Answer, Trouble> {
        let answer = self.as_somebody(method, path, &[], &[])?;
        if expected(&answer) { Ok(answer) } else { answer.good() }
    }

    /// A login on the way to something else: if it fails, that was not sent.
    fn renew(&self) -> Result<(), Trouble> {
        match self.login() {
            Ok(_) => Ok(()),
            Err(Trouble::Silence(why)) => Err(Trouble::Unsent(format!("the login: {why}"))),
            Err(other) => Err(other),
        }
    }

    /// A request with a JSON body, whose answer is JSON. Nova's version 2.90, which shows all that is looked at here.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        Ok(self.call_seen(method, path, body, None)?.0)
    }

    /// As [`Client::call`], and what the site held when it answered; it waits until the site holds what was `seen`.
    ///
    /// # Errors
    /// See [`Trouble`]; refused with 503 if the site has not caught up in time.
    pub fn call_seen(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        seen: Option<&str>,
    ) -> Result<(Value, String), Trouble> {
        let text = body.map(ToString::to_string).unwrap_or_default();
        let mut headers = vec![("content-type", "application/json"), ("openstack-api-version", "compute 2.90")];
        headers.extend(seen.map(|seen| (FRONTIER, seen)));
        let answer = self.request(method, path, &headers, text.as_bytes())?;
        Ok((answer.json(), answer.frontier.unwrap_or_default()))
    }

    /// GET.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.call("GET", path, None)
    }

    /// POST.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.call("POST", path, Some(body))
    }

    /// Asks again, every tenth of a second, until it succeeds or the time is over: for reads that have to be had.
    ///
    /// # Errors
    /// The last trouble.
    pub fn insist<T>(&self, limit: Duration, ask: impl Fn(&Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let until = Instant::now() + limit;
        loop {
            match ask(self) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
                other => return other,
            }
        }
    }
}

/// A client's connections: none is kept, none goes through a proxy, and a status is no error.
fn agent(timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .timeout_connect(Some(CONNECT.min(timeout)))
        .timeout_global(Some(timeout));
    config.build().new_agent()
}

/// What a failure says. A connection is refused before anything is sent; of other errors that is not known.
fn trouble(error: &ureq::Error) -> Trouble {
    match error {
        ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => Trouble::Unsent(error.to_string()),
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_) => Trouble::Unsent(error.to_string()),
        _ => Trouble::Silence(error.to_string()),
    }
}

thread_local! {
    /// The network namespace that this thread is in, if it is not the process's, and the way back.
    static INSIDE: RefCell<(Option<PathBuf>, Option<File>)> = const { RefCell::new((None, None)) };
}

/// Moves the calling thread into a network namespace, or back into the one where it began.
///
/// # Errors
/// What the kernel says; it needs the right to (`CAP_SYS_ADMIN`).
pub fn enter(namespace: Option<&Path>) -> std::io::Result<()> {
    INSIDE.with_borrow_mut(|(inside, home)| {
        if inside.as_deref() == namespace {
            return Ok(());
        }
        if home.is_none() {
            *home = Some(File::open("/proc/thread-self/ns/net")?);
        }
        let into = |file: &File| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        match (namespace, home) {
            (Some(path), _) => into(&File::open(path)?)?,
            (None, Some(home)) => into(home)?,
            (None, None) => {}
        }
        *inside = namespace.map(Path::to_owned);
        Ok(())
    })
}

/// What OpenStack calls things.
impl Client {
    /// Uploads a raw image that all may use, and gives its id.
    ///
    /// # Errors
    /// See [`Trouble`]; whether there is an image then is not known.
    pub fn upload(&self, name: &str, data: &[u8]) -> Result<String, Trouble> {
        let id = self.create_image(name)?;
        self.put_image(&id, data)?;
        Ok(id)
    }

    /// An image without data.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn create_image(&self, name: &str) -> Result<String, Trouble> {
        let body = json!({"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"});
        text(&self.post("/image/v2/images", &body)?, "/id")
    }

    /// An image's data.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn put_image(&self, id: &str, data: &[u8]) -> Result<(), Trouble> {
        let headers = [("content-type", "application/octet-stream")];
        self.request("PUT", &format!("/image/v2/images/{id}/file"), &headers, data).map(|_| ())
    }

    /// A flavor, open to all; `flavor` is both its id and its name.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn create_flavor(&self, flavor: &str, vcpus: u64, ram_mib: u64, disk_gib: u64) -> Result<(), Trouble> {
        let body = json!({"flavor": {"id": flavor, "name": flavor, "vcpus": vcpus, "ram": ram_mib, "disk": disk_gib}});
        self.post("/compute/v2.1/flavors", &body).map(|_| ())
    }

    /// A project in which the administrator is `admin`, and gives its id.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn create_project(&self, name: &str) -> Result<String, Trouble> {
        let project = text(&self.post("/identity/v3/projects", &json!({"project": {"name": name}}))?, "/project/id")?;
        let users = self.get("/identity/v3/users?name=admin")?;
        self.grant(&project, &text(&users, "/users/0/id")?, "admin")?;
        Ok(project)
    }

    /// Gives a user a role in a project.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn grant(&self, project: &str, user: &str, role: &str) -> Result<(), Trouble> {
        let role = self.role(role)?;
        self.call("PUT", &format!("/identity/v3/projects/{project}/users/{user}/roles/{role}"), None).map(|_| ())
    }

    /// Takes a role from a user.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn ungrant(&self, project: &str, user: &str, role: &str) -> Result<(), Trouble> {
        let role = self.role(role)?;
        self.call("DELETE", &format!("/identity/v3/projects/{project}/users/{user}/roles/{role}"), None).map(|_| ())
    }

    fn role(&self, name: &str) -> Result<String, Trouble> {
        let roles = self.get("/identity/v3/roles")?;
        let found = roles["roles"].as_array().into_iter().flatten().find(|role| role["name"] == name);
        let missing = || Trouble::Refused { status: 404, message: format!("no role is called {name}") };
        found.and_then(|role| role["id"].as_str()).map(str::to_owned).ok_or_else(missing)
    }

    /// Sets parts of a project's quota. A refusal does not mean that nothing of it is wanted now.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn set_quota(&self, project: &str, quota: &Value) -> Result<(), Trouble> {
        let path = format!("/compute/v2.1/os-quota-sets/{project}");
        self.call("PUT", &path, Some(&json!({"quota_set": quota}))).map(|_| ())
    }

    /// Makes a server and gives its id. `zone` may be empty, or name a host too, `zone:host`.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn create_server(&self, name: &str, zone: &str, flavor: &str, image: &str) -> Result<String, Trouble> {
        let mut server = json!({"name": name, "flavorRef": flavor, "imageRef": image, "networks": "none"});
        if !zone.is_empty() {
            server["availability_zone"] = json!(zone);
        }
        text(&self.post("/compute/v2.1/servers", &json!({"server": server}))?, "/server/id")
    }

    /// A server; none if there is none.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn server(&self, id: &str) -> Result<Option<Value>, Trouble> {
        match self.get(&format!("/compute/v2.1/servers/{id}")) {
            Ok(mut value) => Ok(Some(value["server"].take())),
            Err(trouble) if trouble.status() == 404 => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// All servers of the client's project, in full.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn servers(&self) -> Result<Vec<Value>, Trouble> {
        let mut servers: Vec<Value> = Vec::new();
        loop {
            let last = servers.last().and_then(|server| server["id"].as_str());
            let marker = last.map(|last| format!("&marker={last}")).unwrap_or_default();
            let page = self.get(&format!("/compute/v2.1/servers/detail?limit=1000{marker}"))?;
            servers.extend(page["servers"].as_array().cloned().unwrap_or_default());
            if page["servers_links"].is_null() {
                return Ok(servers);
            }
        }
    }

    /// Begins to delete a server.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn delete_server(&self, id: &str) -> Result<(), Trouble> {
        self.call("DELETE", &format!("/compute/v2.1/servers/{id}"), None).map(|_| ())
    }

    /// Gives a server another name.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn rename_server(&self, id: &str, name: &str) -> Result<(), Trouble> {
        let body = json!({"server": {"name": name}});
        self.call("PUT", &format!("/compute/v2.1/servers/{id}"), Some(&body)).map(|_| ())
    }

    /// An action on a server, without arguments: `os-start`, `os-stop`, …
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn act(&self, id: &str, action: &str) -> Result<(), Trouble> {
        let body = json!({action: null});
        self.call("POST", &format!("/compute/v2.1/servers/{id}/action"), Some(&body)).map(|_| ())
    }

    /// The hosts, with capacity and what is claimed of it.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn hosts(&self) -> Result<Vec<Value>, Trouble> {
        Ok(self.get("/luc/v1/hosts")?["hosts"].as_array().cloned().unwrap_or_default())
    }

    /// Nova's hypervisors, in full, with version 2.87: the last that says what is in use.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn hypervisors(&self) -> Result<Vec<Value>, Trouble> {
        let headers = [("openstack-api-version", "compute 2.87")];
        let answer = self.request("GET", "/compute/v2.1/os-hypervisors/detail", &headers, &[])?;
        Ok(answer.json()["hypervisors"].as_array().cloned().unwrap_or_default())
    }

    /// The digest of what the site holds.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn digest(&self) -> Result<String, Trouble> {
        text(&self.get("/luc/v1/digest")?, "/digest")
    }

    /// What the site says of the whole cloud.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn status(&self) -> Result<Value, Trouble> {
        self.get("/luc/v1/status")
    }

    /// What the site has seen.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn frontier(&self) -> Result<String, Trouble> {
        Ok(self.call_seen("GET", "/luc/v1/digest", None, None)?.1)
    }
}

/// A text of an answer. Its lack says nothing about what happened.
fn text(value: &Value, at: &str) -> Result<String, Trouble> {
    let found = value.pointer(at).and_then(Value::as_str).map(str::to_owned);
    found.ok_or_else(|| Trouble::Silence(format!("an answer without {at}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn client(base: String) -> Client {
        let endpoint = Endpoint { site: "paris".into(), base, namespace: None };
        Client::new(&endpoint).patient(Duration::from_millis(300))
    }

    /// A site that reads a request and says this.
    fn site(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            if answer.is_empty() {
                std::thread::sleep(Duration::from_secs(2));
            }
            let _ = stream.write_all(answer.as_bytes());
        });
        format!("http://{address}")
    }

    #[test]
    fn what_nobody_hears_was_not_sent() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let said = client(format!("http://{free}")).get("/").unwrap_err();
        assert!(matches!(said, Trouble::Unsent(_)), "{said}");
        assert!(matches!(Outcome::from(said), Outcome::Fail(_)));
    }

    #[test]
    fn silence_and_broken_answers_do_not_say_what_happened() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{";
        let failed = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
        let unknown = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}";
        for answer in ["", "HT", half, failed, unknown] {
            let said = client(site(answer)).get("/").unwrap_err();
            assert!(matches!(said, Trouble::Silence(_)), "{answer:?}: {said}");
            assert!(matches!(Outcome::from(said), Outcome::Info(_)));
        }
    }

    #[test]
    fn what_is_refused_did_not_happen() {
        let refused = "HTTP/1.1 409 Conflict\r\nconnection: close\r\n\r\n\
                       {\"conflictingRequest\": {\"code\": 409, \"message\": \"No valid host\"}}";
        let said = client(site(refused)).get("/").unwrap_err();
        assert!(matches!(&said, Trouble::Refused { status: 409, message } if message == "No valid host"), "{said}");
        assert!(matches!(Outcome::from(said), Outcome::Fail(_)));
        let behind = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n\
                      {\"error\": {\"message\": \"behind the request's frontier\"}}";
        assert_eq!(client(site(behind)).get("/").unwrap_err().status(), 503);
    }

    #[test]
    fn a_thread_that_stays_where_it_is_needs_no_rights() {
        assert!(enter(None).is_ok());
        assert!(enter(Some(Path::new("/nonexistent/namespace"))).is_err());
        assert!(enter(None).is_ok());
    }
}
