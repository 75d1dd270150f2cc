//! The whole agent on libvirt's simulated hypervisor, in this process.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luc_compute::{Agent, AgentConfig, AgentError, Fetch, FetchError, Images, LinkHandle, Progress, link};
use luc_engine::agent::{DomainState, FromAgent, HostFacts, Observation, Order, Statement, ToAgent, Vouched, Wanted};
use luc_engine::id::{ClaimId, CloudId, EntryId, PoolId, ReplicaId, SiteName};
use luc_engine::record::{Power, Server, ServerFlavor};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;
use virt::connect::Connect;

struct NoImages;
impl Images for NoImages {
    fn fetch<'a>(&'a self, _: &'a str, _: u64, _: &'a str, _: Progress) -> Fetch<'a> {
        Box::pin(async { Err(FetchError { message: "no images here".into(), retrying: false }) })
    }
}

/// A host whose simulated hypervisor outlives its agent.
struct Host {
    dir: TempDir,
    cloud: CloudId,
    hypervisor: Connect,
    memory_mib: u64,
}

struct Running {
    link: LinkHandle,
    to: mpsc::Sender<ToAgent>,
    from: mpsc::Receiver<FromAgent>,
    facts: HostFacts,
    agent: JoinHandle<Result<(), AgentError>>,
    stop: oneshot::Sender<()>,
    seen: BTreeMap<Uuid, Observation>,
    statements: Vec<Statement>,
    orphans: Vec<Uuid>,
}

impl Host {
    fn new() -> Self {
        let cloud = CloudId(Uuid::new_v4());
        luc_compute::events::start_loop().unwrap();
        let hypervisor = Connect::open(Some("test:///default")).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), cloud, hypervisor, memory_mib: 1 << 20 }
    }

    async fn start(&self, orders: Vec<Order>) -> Running {
        let site = SiteName::new("paris").unwrap();
        let mut config = AgentConfig::new("h1", site, self.cloud, "test:///default", self.dir.path().to_owned());
        (config.cpus, config.memory_mib, config.disk_gib) = (Some(1000), Some(self.memory_mib), Some(10_000));
        let agent = Agent::open(config).unwrap();
        let (link, events) = link();
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(agent.run(events, Arc::new(NoImages), async {
            let _ = stopped.await;
        }));
        let (to, mut from) = link.attach().await;
        let Some(FromAgent::Hello(mut facts)) = from.recv().await else { panic!("no hello") };
        if facts.pool.is_none() {
            to.send(ToAgent::Pool { pool: pool(0), instead_of: None }).await.unwrap();
            facts = next_hello(&mut from).await;
        }
        to.send(ToAgent::Orders(orders)).await.unwrap();
        let (seen, statements, orphans) = Default::default();
        Running { link, to, from, facts: *facts, agent, stop, seen, statements, orphans }
    }

    fn state(&self, server: Uuid) -> Option<u32> {
        let domain = self.hypervisor.lookup_domain_by_uuid(server).ok()?;
        Some(domain.state().unwrap().0.to_raw())
    }
}

impl Running {
    async fn order(&self, order: Order) {
        self.to.send(ToAgent::Order(Box::new(order))).await.unwrap();
    }

    /// Reads until something holds; every wait of these tests is for an event, and fails after a minute.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                match self.from.recv().await.expect("the agent went away") {
                    FromAgent::Observed(new) => {
                        if let Some(old) = self.seen.get(&new.server) {
                            assert!(new.order() > old.order() || new == Box::new(old.clone()), "{new:?} after {old:?}");
                        }
                        self.seen.insert(new.server, *new);
                    }
                    FromAgent::Stated(statement) => self.statements.push(statement),
                    FromAgent::Heartbeat(heartbeat) => {
                        self.orphans = heartbeat.orphans.iter().map(|orphan| orphan.server).collect()
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn until_state(&mut self, server: Uuid, state: DomainState) {
        let is = |running: &Self| running.seen.get(&server).is_some_and(|seen| seen.state == state);
        self.until(&format!("{state:?}"), is).await;
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.agent.await.unwrap().unwrap();
    }
}

/// What the agent says meanwhile it says again.
async fn next_hello(from: &mut mpsc::Receiver<FromAgent>) -> Box<HostFacts> {
    let wait = async {
        loop {
            if let FromAgent::Hello(facts) = from.recv().await.expect("the agent went away") {
                return facts;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("never another hello")
}

/// Pools of the host; it serves the one with index 0.
fn pool(index: u32) -> PoolId {
    PoolId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number: 1 }, index }
}

fn claim(number: u64) -> ClaimId {
    ClaimId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number }, index: 0 }
}

fn record(power: Power, power_changes: u64) -> Server {
    let flavor = ServerFlavor { vcpus: 1, ram_mib: 64, ..ServerFlavor::default() };
    Server { name: "a <server>".into(), flavor, power, power_changes, ..Server::default() }
}

fn present(server: Uuid, number: u64, record: Server) -> Order {
    let wanted = Wanted::Present { server: Arc::new(record), project_name: "demo".into() };
    Order { server, claim: claim(number), pool: pool(0), epoch: 1, wanted, vouched: Vouched::Yes }
}

fn absent(server: Uuid, number: u64) -> Order {
    let vouched = Vouched::Yes;
    Order { server, claim: claim(number), pool: pool(0), epoch: 1, wanted: Wanted::Absent, vouched }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_goes_through_its_life() {
    let host = Host::new();
    let server = Uuid::new_v4();
    let mut agent = host.start(Vec::new()).await;
    let step = |power, changes| present(server, 1, record(power, changes));
    agent.order(step(Power::Running, 0)).await;
    agent.until_state(server, DomainState::Running).await;
    assert!(agent.seen[&server].launched_at.is_some());
    for (changes, power, state) in [
        (1, Power::Paused, DomainState::Paused),
        (2, Power::Running, DomainState::Running),
        (3, Power::Suspended, DomainState::Saved),
        (4, Power::Running, DomainState::Running),
        (5, Power::Stopped, DomainState::Shutoff),
        (6, Power::Running, DomainState::Running),
    ] {
        agent.order(step(power, changes)).await;
        agent.until_state(server, state).await;
    }
    let reboot = |soft_reboots, hard_reboots| {
        let record = Server { soft_reboots, hard_reboots, ..record(Power::Running, 6) };
        present(server, 1, record)
    };
    agent.order(reboot(1, 0)).await;
    agent.until("a soft reboot", |agent| agent.seen[&server].soft_reboots == 1).await;
    agent.order(reboot(1, 1)).await;
    agent.until("a hard reboot", |agent| agent.seen[&server].hard_reboots == 1).await;
    assert_eq!(host.state(server), Some(1));

    agent.order(absent(server, 1)).await;
    agent.until("a statement", |agent| !agent.statements.is_empty()).await;
    assert_eq!(host.state(server), None);
    let statement = agent.statements.remove(0);
    assert!(statement.verify(host.cloud, &agent.facts.identity.agent_key));
    assert_eq!((statement.server, statement.claim, statement.host), (server, claim(1), agent.facts.identity.host));

    // Whatever a lagging replica orders: the answer is the same, and nothing starts.
    agent.order(step(Power::Running, 9)).await;
    agent.until("the statement again", |agent| !agent.statements.is_empty()).await;
    assert_eq!(agent.statements[0], statement);
    assert_eq!(host.state(server), None);
    agent.stop().await;

    // Nor after a restart, until a replica is known to hold it.
    let mut agent = host.start(vec![step(Power::Running, 9)]).await;
    agent.until("both", |agent| agent.statements.len() >= 2).await;
    agent.to.send(ToAgent::StatementHeld(claim(1))).await.unwrap();
    assert_eq!(host.state(server), None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_does_is_seen_and_left_alone_until_the_wish_changes() {
    let host = Host::new();
    let server = Uuid::new_v4();
    let order = |changes| present(server, 1, record(Power::Running, changes));
    let mut agent = host.start(vec![order(0)]).await;
    agent.until_state(server, DomainState::Running).await;
    host.hypervisor.lookup_domain_by_uuid(server).unwrap().shutdown().unwrap();
    agent.until_state(server, DomainState::Shutoff).await;
    // The same wish again is no new wish, not even to an agent that starts afresh.
    agent.order(order(0)).await;
    agent.stop().await;
    let mut agent = host.start(vec![order(0)]).await;
    // Two others, one after the other, come and go meanwhile.
    for number in [2, 3] {
        let other = Uuid::new_v4();
        agent.order(present(other, number, record(Power::Running, 0))).await;
        agent.until_state(other, DomainState::Running).await;
        agent.order(absent(other, number)).await;
        agent.until("it is gone", |agent| agent.statements.iter().any(|stated| stated.server == other)).await;
    }
    assert_eq!(host.state(server), Some(5));
    agent.statements.clear();
    agent.order(order(1)).await;
    agent.until_state(server, DomainState::Running).await;
    agent.stop().await;

    // What ended while nobody watched is started again.
    host.hypervisor.lookup_domain_by_uuid(server).unwrap().destroy().unwrap();
    let mut agent = host.start(vec![order(1)]).await;
    agent.until("it runs", |_| host.state(server) == Some(1)).await;
    agent.order(absent(server, 1)).await;
    agent.until("a statement", |agent| !agent.statements.is_empty()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stopped_because_controllers_are_away_and_nothing_started_without_an_order() {
    let host = Host::new();
    let (kept, orphan) = (Uuid::new_v4(), Uuid::new_v4());
    let (first, second) = (present(kept, 1, record(Power::Running, 0)), present(orphan, 2, record(Power::Running, 0)));
    let mut agent = host.start(vec![first.clone(), second]).await;
    agent.until_state(kept, DomainState::Running).await;
    agent.until_state(orphan, DomainState::Running).await;
    // The replica goes, another comes, and does not know one of them.
    let (to, from) = agent.link.attach().await;
    (agent.to, agent.from) = (to, from);
    agent.to.send(ToAgent::Orders(vec![first])).await.unwrap();
    agent.until("the orphan is reported", |agent| agent.orphans == [orphan]).await;
    assert_eq!((host.state(kept), host.state(orphan)), (Some(1), Some(1)));
    host.hypervisor.lookup_domain_by_uuid(orphan).unwrap().destroy().unwrap();
    agent.order(absent(kept, 1)).await;
    agent.until("a statement", |agent| !agent.statements.is_empty()).await;
    assert_eq!(host.state(orphan), Some(5), "it stays as it is");
    agent.stop().await;
    host.hypervisor.lookup_domain_by_uuid(orphan).unwrap().undefine().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_domain_is_never_touched() {
    let host = Host::new();
    let server = Uuid::new_v4();
    let xml = format!(
        "<domain type='test'><name>{server}</name><uuid>{server}</uuid><memory>65536</memory><os><type>hvm</type></os></domain>"
    );
    let foreign = host.hypervisor.define_domain_xml(&xml).unwrap();
    let mut agent = host.start(vec![present(server, 1, record(Power::Running, 0))]).await;
    let faulty = |agent: &Running| agent.seen.get(&server).is_some_and(|seen| seen.fault.is_some());
    agent.until("a fault", faulty).await;
    agent.order(absent(server, 1)).await;
    agent.until("still a fault", faulty).await;
    assert_eq!(host.state(server), Some(5));
    assert!(agent.statements.is_empty());
    agent.stop().await;
    foreign.undefine().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_never_takes_more_than_it_has() {
    let host = Host { memory_mib: 100, ..Host::new() };
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let mut agent = host.start(vec![present(first, 1, record(Power::Running, 0))]).await;
    agent.until_state(first, DomainState::Running).await;
    agent.order(present(second, 2, record(Power::Running, 0))).await;
    agent.until("a fault", |agent| agent.seen.get(&second).is_some_and(|seen| seen.fault.is_some())).await;
    assert_eq!(host.state(second), None);
    agent.order(absent(first, 1)).await;
    agent.until_state(second, DomainState::Running).await;
    agent.order(absent(second, 2)).await;
    agent.until("both are gone", |agent| agent.statements.len() == 2).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_orders_at_once() {
    let host = Host::new();
    let servers: Vec<Uuid> = (0..500).map(|_| Uuid::new_v4()).collect();
    let mut agent = host.start(Vec::new()).await;
    let begin = Instant::now();
    for (server, number) in servers.iter().zip(1..) {
        agent.order(present(*server, number, record(Power::Running, 0))).await;
    }
    let runs = |seen: &Observation| seen.state == DomainState::Running;
    agent.until("all run", |agent| agent.seen.values().filter(|seen| runs(seen)).count() == 500).await;
    println!("500 servers ran after {:?}", begin.elapsed());
    let single = Uuid::new_v4();
    let begin = Instant::now();
    agent.order(present(single, 1000, record(Power::Running, 0))).await;
    agent.until_state(single, DomainState::Running).await;
    println!("one more after {:?}", begin.elapsed());
    agent.order(absent(single, 1000)).await;
    for (server, number) in servers.iter().zip(1..) {
        agent.order(absent(*server, number)).await;
    }
    agent.until("all are gone", |agent| agent.statements.len() == 501).await;
    agent.stop().await;
}

/// S3. Broken once each: a second pool taken, no pool asked for (the server ran), and the refusal not kept.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_one_pool_for_ever_and_refuses_claims_on_others() {
    let host = Host::new();
    let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
    let mut agent = host.start(vec![present(own, 1, record(Power::Running, 0))]).await;
    assert_eq!(agent.facts.pool, Some(pool(0)));
    agent.until_state(own, DomainState::Running).await;
    // A replica that minted another pool orders by it, with a higher epoch for what runs.
    let of_other = |order: Order| Order { pool: pool(1), epoch: 9, ..order };
    agent.order(of_other(present(other, 2, record(Power::Running, 0)))).await;
    agent.order(of_other(present(own, 3, record(Power::Stopped, 1)))).await;
    agent.until("both claims are refused", |agent| agent.statements.len() == 2).await;
    let mut refused: Vec<_> = agent.statements.iter().map(|statement| statement.claim).collect();
    refused.sort_unstable();
    assert_eq!(refused, [claim(2), claim(3)]);
    assert!(agent.statements.iter().all(|s| s.verify(host.cloud, &agent.facts.identity.agent_key)));
    assert_eq!((host.state(own), host.state(other)), (Some(1), None));
    agent.stop().await;

    // After its death it says the same pool, and takes no other.
    let mut agent = host.start(vec![present(own, 1, record(Power::Running, 0))]).await;
    assert_eq!(agent.facts.pool, Some(pool(0)));
    agent.to.send(ToAgent::Pool { pool: pool(1), instead_of: None }).await.unwrap();
    // What it writes down for this comes after what it would have written down for that.
    agent.order(present(own, 1, record(Power::Paused, 1))).await;
    agent.until_state(own, DomainState::Paused).await;
    agent.stop().await;
    let mut agent = host.start(Vec::new()).await;
    assert_eq!(agent.facts.pool, Some(pool(0)));
    // Only in place of its own, whose entry will never count.
    agent.to.send(ToAgent::Pool { pool: pool(2), instead_of: Some(pool(0)) }).await.unwrap();
    assert_eq!(next_hello(&mut agent.from).await.pool, Some(pool(2)));
    agent.stop().await;
    let domain = host.hypervisor.lookup_domain_by_uuid(own).unwrap();
    domain.destroy().unwrap();
    domain.undefine().unwrap();
}

/// S5. Broken once, to see it fail: only what an order names is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_host_that_was_declared_dead_nothing_runs_though_nobody_orders_anything() {
    let host = Host::new();
    let server = Uuid::new_v4();
    let mut agent = host.start(vec![present(server, 1, record(Power::Running, 0))]).await;
    agent.until_state(server, DomainState::Running).await;
    agent.to.send(ToAgent::Dead(pool(0))).await.unwrap();
    agent.until("it is stopped", |_| host.state(server) == Some(5)).await;
    agent.stop().await;
    let domain = host.hypervisor.lookup_domain_by_uuid(server).unwrap();
    domain.create().unwrap();
    let mut agent = host.start(Vec::new()).await;
    agent.until("it is stopped again", |_| host.state(server) == Some(5)).await;
    agent.stop().await;
    domain.undefine().unwrap();
}

#[tokio::test]
async fn a_state_directory_has_one_agent() {
    let host = Host::new();
    let site = SiteName::new("paris").unwrap();
    let config = AgentConfig::new("h1", site, host.cloud, "test:///default", host.dir.path().to_owned());
    let first = Agent::open(config.clone()).unwrap();
    let host_id = first.host();
    assert!(matches!(Agent::open(config.clone()), Err(AgentError::Store(luc_compute::store::StoreError::InUse(_)))));
    let key = first.key().to_bytes();
    drop(first);
    let again = Agent::open(config).unwrap();
    assert_eq!((again.host(), again.key().to_bytes()), (host_id, key));
}

/// A host that returns after its servers were placed elsewhere, and meets a replica that has not heard of it, starts nothing.
#[tokio::test]
async fn nothing_starts_before_the_holder_of_its_claim_stands_by_it() {
    let host = Host::new();
    let server = Uuid::new_v4();
    let order = |vouched| Order { vouched, ..present(server, 1, Server::default()) };
    let mut agent = host.start(vec![order(Vouched::Asked)]).await;
    agent.order(order(Vouched::No)).await;
    let is_told = |running: &Running| running.seen.get(&server).is_some_and(|seen| seen.fault.is_some());
    agent.until("why it waits", is_told).await;
    assert_eq!(host.state(server), None);
    agent.order(order(Vouched::Yes)).await;
    agent.until_state(server, DomainState::Running).await;
    // It goes on running, and is driven as wished, whatever becomes of the holder.
    let stopped = Server { power: Power::Stopped, power_changes: 1, ..Server::default() };
    let order = |record, vouched| Order { vouched, ..present(server, 1, record) };
    agent.order(order(stopped, Vouched::No)).await;
    agent.until_state(server, DomainState::Shutoff).await;
    let again = Server { power_changes: 2, ..Server::default() };
    agent.order(order(again.clone(), Vouched::Asked)).await;
    agent.until_state(server, DomainState::Running).await;
    // Anew with its machine: what was said before counts no more.
    agent.stop().await;
    host.hypervisor.lookup_domain_by_uuid(server).unwrap().destroy().unwrap();
    let mut agent = host.start(vec![order(again.clone(), Vouched::Asked)]).await;
    agent.order(order(again.clone(), Vouched::No)).await;
    agent.until("why it waits, again", is_told).await;
    assert_eq!(host.state(server), Some(5), "shut off");
    agent.order(order(again, Vouched::Yes)).await;
    agent.until_state(server, DomainState::Running).await;
    agent.stop().await;
}

/// A replica that forked has given one claim to two servers, in two branches of its log that nobody has told apart yet.
#[tokio::test]
async fn of_two_servers_with_one_claim_the_first_is_obeyed() {
    let host = Host::new();
    let (first, second, third) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let mut agent = host.start(vec![present(first, 1, Server::default())]).await;
    agent.until_state(first, DomainState::Running).await;
    // Anew, too: it is on the disk whose the claim is.
    agent.stop().await;
    let mut agent = host.start(vec![present(first, 1, Server::default())]).await;
    agent.order(present(second, 1, Server::default())).await;
    agent.order(absent(second, 1)).await;
    agent.order(present(third, 2, Server::default())).await;
    agent.until_state(third, DomainState::Running).await;
    assert_eq!((host.state(first), host.state(second)), (Some(1), None));
    assert!(agent.statements.is_empty(), "nothing is promised of a claim that is obeyed");
    // Under a name of its own it is served.
    agent.order(present(second, 3, Server::default())).await;
    agent.until_state(second, DomainState::Running).await;
    agent.order(absent(first, 1)).await;
    agent.until("the word that the first is gone", |running| !running.statements.is_empty()).await;
    assert_eq!(agent.statements.iter().map(|word| word.server).collect::<Vec<_>>(), [first]);
    agent.stop().await;
}
