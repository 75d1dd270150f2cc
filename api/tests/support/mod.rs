//! A cloud of one site in this process: a real replica and network, all routes, and an agent whose machines are
//! numbers. It obeys every order at once, as an agent of libvirt's simulated hypervisor would.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use ed25519_dalek::SigningKey;
use luc_api::app::{App, ClientAddress, Settings};
use luc_api::{auth, bootstrap};
use luc_engine::agent::{DomainState, FromAgent, Heartbeat, HostFacts, Observation, Order, Statement, ToAgent, Wanted};
use luc_engine::entry::{HostIdentity, Member};
use luc_engine::id::{HostId, ReplicaId, SiteName};
use luc_engine::record::Power;
use luc_engine::replica::{Identity, Replica, founded_by};
use luc_engine::store::MemoryStore;
use luc_engine::tx::Refusal;
use luc_sync::agents;
use luc_sync::blob::Blobs;
use luc_sync::ca::{Authority, Credentials, Role};
use luc_sync::join::Tokens;
use luc_sync::net::Net;
use luc_sync::node::{Node, now};
use luc_sync::rpc::new_key;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use uuid::Uuid;

/// The administrator's password.
pub(crate) const PASSWORD: &str = "secret";

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body, if it is JSON; null otherwise.
    pub(crate) body: Value,
}

/// The cloud.
pub(crate) struct Cloud {
    router: Router,
    /// What the routes share.
    #[allow(dead_code, reason = "not every test file looks inside")]
    pub(crate) app: App,
    /// The administrator's token.
    pub(crate) token: String,
    /// The administrator's project.
    pub(crate) project: String,
    _dir: TempDir,
}

impl Cloud {
    /// Founds it, and waits until its one host takes servers.
    pub(crate) async fn start() -> Self {
        let cloud = Self::without_hosts().await;
        let node = cloud.app.node().clone();
        let site = node.site().clone();
        attach_agent(node, site);
        for _ in 0..6_000 {
            if cloud.get("/compute/v2.1/os-services").await.body["services"][0]["state"] == "up" {
                return cloud;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the host never came up");
    }

    /// Founds it, without a host.
    pub(crate) async fn without_hosts() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = new_key(rand::random());
        let public_key = key.verifying_key().to_bytes();
        let cloud = founded_by(&public_key);
        let site = SiteName::new("paris").unwrap();
        let replica = ReplicaId::of_key(&public_key);
        let authority = Authority::create(cloud).unwrap();
        let role = Role::Replica { replica, site: site.clone() };
        let certificate = authority.issue(cloud, &role, &public_key).unwrap();
        let credentials =
            Credentials { cloud, authority: authority.certificate().clone(), certificate, key: key.clone() };
        let member = Member {
            replica,
            public_key,
            site: site.clone(),
            addresses: Vec::new(),
            identity_authority: true,
            sponsor: true,
            index: 0,
        };
        let store = Box::new(MemoryStore::default());
        let mut replica = Replica::found(Identity { cloud, key }, store, member, now()).unwrap();
        let hash = auth::hash_password(PASSWORD).unwrap();
        let quota = bootstrap::project_quota(10, 20, 51_200, 10);
        let ids = std::array::from_fn(|_| Uuid::new_v4());
        replica
            .transact::<_, Refusal>(now(), |tx| bootstrap::found(tx, hash, "http://localhost", &quota, &ids))
            .unwrap();
        replica.flush().unwrap();
        let blobs = Blobs::open(&dir.path().join("blobs")).unwrap();
        let node = Node::start(replica).unwrap();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let net =
            Net::start(node.clone(), credentials, Some(authority), Tokens::of(dir.path()), blobs, anywhere).unwrap();
        let app = App::new(net, Settings::default());
        let mut cloud = Self { router: app.router(), app, token: String::new(), project: String::new(), _dir: dir };
        (cloud.token, cloud.project) = cloud.log_in("admin", PASSWORD, "admin").await;
        cloud
    }

    /// The same cloud, behind other routes.
    #[allow(dead_code, reason = "not every test file needs others")]
    pub(crate) fn behind(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// All routes.
    #[allow(dead_code, reason = "not every test file looks at them")]
    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// A token for a project, and the project's id.
    pub(crate) async fn log_in(&self, user: &str, password: &str, project: &str) -> (String, String) {
        let domain = json!({"name": "Default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}},
        }});
        let answer = self.send(Method::POST, "/identity/v3/auth/tokens", &[], Some(&body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let token = answer.headers["x-subject-token"].to_str().unwrap().to_owned();
        (token, answer.body["token"]["project"]["id"].as_str().unwrap().to_owned())
    }

    /// Sends a request as the administrator, at the newest microversion.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let headers = [("x-auth-token", self.token.as_str()), ("openstack-api-version", "compute latest")];
        self.send(method, path, &headers, body).await
    }

    /// Sends a request.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let kind =
            if method == Method::PATCH { "application/openstack-images-v2.1-json-patch" } else { "application/json" };
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(ClientAddress("127.0.0.1:1".parse().unwrap()));
        let mut router = self.router.clone();
        let response = tower_service::Service::call(&mut router, request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    /// GET of a text.
    #[allow(dead_code, reason = "not every test file reads texts")]
    pub(crate) async fn text(&self, path: &str) -> String {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = tower_service::Service::call(&mut self.router.clone(), request).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 64 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    /// POST.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, Some(body)).await
    }

    /// Uploads a raw image and gives its id.
    pub(crate) async fn image(&self) -> String {
        let wanted = json!({"name": "image", "disk_format": "raw", "container_format": "bare"});
        let image = self.post("/image/v2/images", &wanted).await;
        assert_eq!(image.status, StatusCode::CREATED, "{image:?}");
        let id = image.body["id"].as_str().unwrap().to_owned();
        let upload = self.request(Method::PUT, &format!("/image/v2/images/{id}/file"), Some(&json!("data"))).await;
        assert_eq!(upload.status, StatusCode::NO_CONTENT, "{upload:?}");
        id
    }

    /// Creates servers; the answer's status and body.
    pub(crate) async fn create(&self, image: &str, more: Value) -> Answer {
        let mut server = json!({"name": "web", "flavorRef": "42", "imageRef": image, "networks": "none"});
        server.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/compute/v2.1/servers", &json!({"server": server})).await
    }

    /// Waits until a server's status is `wanted` and nothing is being done to it.
    pub(crate) async fn until(&self, id: &str, wanted: &str) -> Value {
        let mut last = Value::Null;
        for _ in 0..6_000 {
            last = self.get(&format!("/compute/v2.1/servers/{id}")).await.body["server"].take();
            if last["status"] == wanted && last["OS-EXT-STS:task_state"].is_null() {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {wanted}: {last}");
    }
}

/// The agent, in a task of its own, for as long as the runtime lives.
pub(crate) fn attach_agent(node: Node, site: SiteName) {
    let key = SigningKey::from_bytes(&rand::random());
    let facts = HostFacts {
        identity: HostIdentity::sign(node.view().cloud(), &site, &key),
        name: "paris-1".into(),
        incarnation: 1,
        hypervisor_type: "test".into(),
        hypervisor_version: 2,
        cpus: 8,
        memory_mib: 65_536,
        disk_gib: 400,
        cpu_overcommit: 4,
        architecture: "x86_64".into(),
        pool: None,
    };
    let (to_replica, from) = mpsc::channel(agents::CHANNEL);
    let (to, mut orders) = mpsc::channel(agents::CHANNEL);
    let cloud = node.view().cloud();
    tokio::spawn(async move { agents::serve(node, from, to, None).await });
    tokio::spawn(async move {
        let host = facts.identity.host;
        to_replica.send(FromAgent::Hello(Box::new(facts.clone()))).await.unwrap();
        let beat = Heartbeat { at: now(), hypervisor_up: true, disk_free_gib: 400, ..Heartbeat::default() };
        let mut counters: BTreeMap<Uuid, u64> = BTreeMap::new();
        while let Some(message) = orders.recv().await {
            let orders = match message {
                ToAgent::Orders(orders) => orders,
                ToAgent::Order(order) => vec![*order],
                ToAgent::Console { request, .. } => {
                    let output = FromAgent::ConsoleOutput { request, output: Ok("hello\n".into()) };
                    to_replica.send(output).await.unwrap();
                    continue;
                }
                ToAgent::StatementHeld(_) | ToAgent::Dead(_) | ToAgent::Witness(_) => continue,
                ToAgent::Pool { pool, .. } => {
                    let facts = HostFacts { pool: Some(pool), ..facts.clone() };
                    to_replica.send(FromAgent::Hello(Box::new(facts))).await.unwrap();
                    let (beats, beat) = (to_replica.clone(), beat.clone());
                    tokio::spawn(async move {
                        while beats.send(FromAgent::Heartbeat(beat.clone())).await.is_ok() {
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    });
                    continue;
                }
            };
            for order in orders {
                let counter = counters.entry(order.server).or_default();
                *counter += 1;
                let answer = match observed(host, &order, *counter) {
                    Some(seen) => FromAgent::Observed(Box::new(seen)),
                    None => FromAgent::Stated(Statement::sign(cloud, host, order.server, order.claim, 1, &key)),
                };
                if to_replica.send(answer).await.is_err() {
                    return;
                }
            }
        }
    });
}

/// What is seen of a server once the order is obeyed; none for one that shall be gone.
fn observed(host: HostId, order: &Order, counter: u64) -> Option<Observation> {
    let Wanted::Present { server, .. } = &order.wanted else { return None };
    let state = match server.power {
        Power::Running => DomainState::Running,
        Power::Stopped => DomainState::Shutoff,
        Power::Paused => DomainState::Paused,
        Power::Suspended => DomainState::Saved,
    };
    Some(Observation {
        host,
        server: order.server,
        claim: order.claim,
        epoch: order.epoch,
        incarnation: 1,
        counter,
        at: now(),
        state,
        task: None,
        soft_reboots: server.soft_reboots,
        hard_reboots: server.hard_reboots,
        power_changes: server.power_changes,
        launched_at: Some(server.created_at),
        fault: None,
    })
}
