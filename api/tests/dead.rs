//! A host that is declared dead, and comes back: the whole way, with a real agent whose hypervisor outlives it.
//!
//! Broken once each, to see these fail: an agent that forgets that its host is dead; one that keeps what runs; deletion that
//! waits for the agent; remains that nobody removes.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use luc_compute::{AgentConfig, Fetch, Images, Progress, link};
use luc_engine::id::SiteName;
use luc_sync::agents;
use luc_sync::node::Node;
use serde_json::{Value, json};
use support::Cloud;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;
use virt::connect::Connect;

/// As virDomainState numbers them.
const RUNNING: u32 = 1;
const SHUTOFF: u32 = 5;

struct NoImages;
impl Images for NoImages {
    fn fetch<'a>(&'a self, _: &'a str, _: u64, _: &'a str, _: Progress) -> Fetch<'a> {
        Box::pin(async { Ok(PathBuf::from("/dev/null")) })
    }
}

/// An agent with its memory in a directory; the hypervisor's state is the process's, and outlives it.
struct Machine {
    stop: oneshot::Sender<()>,
    agent: JoinHandle<()>,
    attach: JoinHandle<()>,
}

impl Machine {
    fn start(node: &Node, dir: &Path) -> Self {
        luc_compute::events::start_loop().unwrap();
        let site = SiteName::new("paris").unwrap();
        let mut config = AgentConfig::new("h", site, node.view().cloud(), "test:///default", dir.to_owned());
        (config.cpus, config.memory_mib, config.disk_gib) = (Some(8), Some(65_536), Some(400));
        let (handle, events) = link();
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            luc_compute::agent::run(config, events, Arc::new(NoImages), stopped).await.unwrap();
        });
        let node = node.clone();
        let attach = tokio::spawn(async move {
            loop {
                let (to, from) = handle.attach().await;
                let _ = agents::serve(node.clone(), from, to, None).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { stop, agent, attach }
    }

    /// The agent ends; what runs goes on running.
    async fn stop(self) {
        let _ = self.stop.send(());
        self.agent.await.unwrap();
        self.attach.abort();
        let _ = self.attach.await;
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

async fn server(cloud: &Cloud, image: &str) -> String {
    let created = cloud.create(image, json!({})).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{created:?}");
    created.body["server"]["id"].as_str().unwrap().to_owned()
}

async fn delete(cloud: &Cloud, id: &str) {
    let answer = cloud.request(Method::DELETE, &format!("/compute/v2.1/servers/{id}"), None).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

async fn show(cloud: &Cloud, id: &str) -> Value {
    cloud.get(&format!("/compute/v2.1/servers/{id}")).await.body["server"].take()
}

fn state(hypervisor: &Connect, id: &str) -> Option<u32> {
    let domain = hypervisor.lookup_domain_by_uuid(Uuid::parse_str(id).unwrap()).ok()?;
    Some(domain.state().unwrap().0.to_raw())
}

async fn host(cloud: &Cloud) -> Value {
    let mut hosts = cloud.get("/luc/v1/hosts").await.body;
    hosts["hosts"].get_mut(0).map(Value::take).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_returns_to_a_dead_host_starts_nothing_and_stops_what_runs() {
    let cloud = Cloud::without_hosts().await;
    let node = cloud.app.node().clone();
    let dir = tempfile::tempdir().unwrap();
    let hypervisor = Connect::open(Some("test:///default")).unwrap();
    let machine = Machine::start(&node, dir.path());
    eventually("the host is up", async || host(&cloud).await["state"] == "up").await;
    let image = cloud.image().await;
    let ids = [server(&cloud, &image).await, server(&cloud, &image).await, server(&cloud, &image).await];
    let [deleted, later, kept] = ids.each_ref();
    for id in &ids {
        cloud.until(id, "ACTIVE").await;
    }
    let id = host(&cloud).await["id"].as_str().unwrap().to_owned();
    let dead = format!("/luc/v1/hosts/{id}/dead");
    let revive = format!("/luc/v1/hosts/{id}/revive");
    let early = cloud.post(&dead, &json!({})).await;
    assert_eq!(early.status, StatusCode::CONFLICT, "it answers: {early:?}");
    assert_eq!(cloud.post(&revive, &json!({})).await.status, StatusCode::CONFLICT, "it lives");

    // The agent is gone, its domains run on. Deletion waits for its word, until the operator says that there is none to come.
    machine.stop().await;
    delete(&cloud, deleted).await;
    assert_eq!(show(&cloud, deleted).await["OS-EXT-STS:task_state"], "deleting");
    eventually("the host may be declared dead", async || cloud.post(&dead, &json!({})).await.status == StatusCode::OK)
        .await;
    assert!(ids.iter().all(|id| state(&hypervisor, id) == Some(RUNNING)), "nobody is there to stop them");
    eventually("what was deleted is gone", async || show(&cloud, deleted).await.is_null()).await;
    let lost = show(&cloud, kept).await;
    assert_eq!((&lost["status"], &lost["OS-EXT-STS:vm_state"]), (&json!("ERROR"), &json!("error")));
    assert!(lost["fault"]["message"].as_str().unwrap().contains("declared dead"), "{lost}");
    let listed = cloud.get("/compute/v2.1/servers?status=ERROR").await;
    assert_eq!(listed.body["servers"].as_array().unwrap().len(), 2);
    let action = format!("/compute/v2.1/servers/{kept}/action");
    let refused = cloud.post(&action, &json!({"reboot": {"type": "HARD"}})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "a wish that nobody can fulfil: {refused:?}");
    let refused = cloud.create(&image, json!({})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    let shown = host(&cloud).await;
    assert_eq!((&shown["state"], &shown["dead"]["by"]), (&json!("dead"), &json!("admin")));
    let service = cloud.get("/compute/v2.1/os-services").await.body["services"][0].take();
    assert_eq!((&service["state"], &service["forced_down"]), (&json!("down"), &json!(true)));

    // The agent returns, and finds all three running: what is gone is removed, the others stop, and keep their data.
    let machine = Machine::start(&node, dir.path());
    eventually("the deleted one is removed", async || state(&hypervisor, deleted).is_none()).await;
    eventually("the others are stopped", async || {
        [later, kept].iter().all(|id| state(&hypervisor, id) == Some(SHUTOFF))
    })
    .await;
    assert_eq!(show(&cloud, kept).await["status"], "ERROR");
    // Deleted with the agent there.
    delete(&cloud, later).await;
    assert!(show(&cloud, later).await.is_null());
    eventually("its remains are removed", async || state(&hypervisor, later).is_none()).await;
    // A restart does not make it forget.
    machine.stop().await;
    let domain = hypervisor.lookup_domain_by_uuid(Uuid::parse_str(kept).unwrap()).unwrap();
    domain.create().unwrap();
    let machine = Machine::start(&node, dir.path());
    eventually("it is stopped again", async || state(&hypervisor, kept) == Some(SHUTOFF)).await;

    // The machine comes back by an operator's word, with another pool.
    let back = cloud.post(&revive, &json!({})).await;
    assert_eq!(back.status, StatusCode::OK, "{back:?}");
    eventually("the host is up", async || host(&cloud).await["state"] == "up").await;
    assert!(host(&cloud).await["dead"].is_null());
    let fresh = server(&cloud, &image).await;
    cloud.until(&fresh, "ACTIVE").await;
    assert_eq!(state(&hypervisor, kept), Some(SHUTOFF), "its right was of the dead pool");
    assert_eq!(show(&cloud, kept).await["status"], "ERROR");
    let pools = cloud.get("/luc/v1/pools").await;
    assert_eq!(pools.body["conserved"], true, "{pools:?}");
    for id in [kept, &fresh] {
        delete(&cloud, id).await;
        eventually("all is removed", async || state(&hypervisor, id).is_none()).await;
        eventually("and gone", async || show(&cloud, id).await.is_null()).await;
    }
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_evacuated_once_and_its_old_host_gives_it_up_when_it_returns() {
    let cloud = Cloud::without_hosts().await;
    let node = cloud.app.node().clone();
    let dir = tempfile::tempdir().unwrap();
    let hypervisor = Connect::open(Some("test:///default")).unwrap();
    let machine = Machine::start(&node, dir.path());
    eventually("the host is up", async || host(&cloud).await["state"] == "up").await;
    let image = cloud.image().await;
    let id = server(&cloud, &image).await;
    cloud.until(&id, "ACTIVE").await;
    let first = host(&cloud).await["id"].as_str().unwrap().to_owned();
    machine.stop().await;
    support::attach_agent(node.clone(), node.site().clone());
    let action = format!("/compute/v2.1/servers/{id}/action");
    let evacuate = json!({"evacuate": {}});
    let early = cloud.post(&action, &evacuate).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST, "silence is no proof: {early:?}");
    let dead = format!("/luc/v1/hosts/{first}/dead");
    eventually("the host may be declared dead", async || cloud.post(&dead, &json!({})).await.status == StatusCode::OK)
        .await;
    let unknown = cloud.post(&action, &json!({"evacuate": {"host": "nowhere"}})).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST, "{unknown:?}");
    let shared = cloud.post(&action, &json!({"evacuate": {"onSharedStorage": true}})).await;
    assert_eq!(shared.status, StatusCode::BAD_REQUEST, "{shared:?}");
    let there = cloud.post(&action, &json!({"evacuate": {"host": "h"}})).await;
    assert_eq!(there.status, StatusCode::CONFLICT, "it is dead: {there:?}");
    let moved = cloud.post(&action, &evacuate).await;
    assert_eq!(moved.status, StatusCode::OK, "{moved:?}");
    let shown = cloud.until(&id, "ACTIVE").await;
    assert_eq!(shown["OS-EXT-SRV-ATTR:host"], "paris-1");
    let view = node.view();
    let server = Uuid::parse_str(&id).unwrap();
    assert_eq!(view.placement(server).unwrap().epoch, 2);
    let record = luc_engine::record::RecordId { kind: luc_engine::record::Kind::Server, id: server };
    assert_eq!(view.ledger().claims_of(record).count(), 2, "one on the host, one on the quota");
    assert!(view.ledger().is_conserved());
    let again = cloud.post(&action, &evacuate).await;
    assert_eq!(again.status, StatusCode::BAD_REQUEST, "it is where it lives: {again:?}");

    // The old host returns with its copy running: it goes, with what it had, and nobody is misled by what it saw.
    assert_eq!(state(&hypervisor, &id), Some(RUNNING));
    let machine = Machine::start(&node, dir.path());
    eventually("the old copy is removed", async || state(&hypervisor, &id).is_none()).await;
    let shown = show(&cloud, &id).await;
    assert_eq!((&shown["status"], &shown["OS-EXT-SRV-ATTR:host"]), (&json!("ACTIVE"), &json!("paris-1")));
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_down_keeps_new_servers_away_and_gives_up_nothing() {
    let cloud = Cloud::start().await;
    let image = cloud.image().await;
    let id = server(&cloud, &image).await;
    cloud.until(&id, "ACTIVE").await;
    let service = cloud.get("/compute/v2.1/os-services").await.body["services"][0].take();
    assert_eq!((&service["state"], &service["forced_down"]), (&json!("up"), &json!(false)));
    let path = format!("/compute/v2.1/os-services/{}", service["id"].as_str().unwrap());
    let answer = cloud.request(Method::PUT, &path, Some(&json!({"forced_down": true}))).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let service = &answer.body["service"];
    assert_eq!((&service["state"], &service["forced_down"]), (&json!("down"), &json!(true)));
    assert_eq!(service["status"], "enabled");
    let refused = cloud.create(&image, json!({})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    let shown = show(&cloud, &id).await;
    assert_eq!((&shown["status"], &shown["host_status"]), (&json!("ACTIVE"), &json!("DOWN")), "it proves nothing");
    assert!(host(&cloud).await["dead"].is_null());
    // Before 2.53 by its name.
    let headers = [("x-auth-token", cloud.token.as_str()), ("openstack-api-version", "compute 2.11")];
    let body = json!({"host": "paris-1", "binary": "nova-compute", "forced_down": false});
    let answer = cloud.send(Method::PUT, "/compute/v2.1/os-services/force-down", &headers, Some(&body)).await;
    assert_eq!(answer.body["service"], body, "{answer:?}");
    let again = cloud.create(&image, json!({})).await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{again:?}");
    let bad = cloud.request(Method::PUT, &path, Some(&json!({"forced_down": "maybe"}))).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST, "{bad:?}");
}
