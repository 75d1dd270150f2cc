//! The agent: one loop that owns the [`World`], and lets others work.
//!
//! Orders, what libvirt tells, and ends of steps come in; the world says what follows. What it wants written goes into
//! one commit with everything else that is ready, and only when that is on the disk are the steps begun and the news
//! told that rest on it. So nothing waits for a poll, and a thousand orders cost a few commits.
//!
//! Connections to replicas come and go, and so does libvirt; the loop lives through both. It ends when told to, or when
//! its own memory fails: an agent that cannot write down what it promised must not go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use luc_engine::agent::{FromAgent, HostFacts, Observation, SignedTip, Statement, ToAgent};
use luc_engine::id::{ClaimId, HostId, Millis, PoolId, ReplicaId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::config::AgentConfig;
use crate::disk::Disks;
use crate::host;
use crate::libvirt::{HypervisorError, Node};
use crate::link::{Images, Link, LinkEvent};
use crate::plan::{Action, Plan, Rules};
use crate::store::{Loaded, Store, StoreError, Write};
use crate::work::{Report, StepReport, Workshop, present};
use crate::world::{Bound, Outcome, World};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Between two lists of all domains: events tell of changes at once, this is the net below them.
const RELIST: Duration = Duration::from_secs(30);
/// Between two looks at the size of consoles.
const CONSOLES: Duration = Duration::from_secs(10);
/// Before libvirt is tried again.
const RECONNECT: Duration = Duration::from_millis(500);
/// After how long a guest that does not react is asked again to shut down: one that boots hears nothing.
const SHUTDOWN_REPEAT: Duration = Duration::from_secs(10);
/// Console answers that wait for the link.
const ANSWERS: usize = 64;
/// Replicas that an agent is a witness for, at most. A site has a few at a time, and each that joins anew is another.
const WITNESSED: usize = 1024;

/// Why an agent ended. What runs goes on running.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its memory failed.
    #[error("the agent's memory failed")]
    Store(#[from] StoreError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    Directory(#[from] std::io::Error),
    /// A part of it ended before its time.
    #[error("a task of the agent failed")]
    Task(#[from] tokio::task::JoinError),
}

/// A host's agent that does not run yet.
pub struct Agent {
    config: AgentConfig,
    store: Store,
    loaded: Loaded,
}

impl Agent {
    /// Opens an agent's memory, or begins one. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn open(config: AgentConfig) -> Result<Self, AgentError> {
        let (store, loaded) = Store::open(&config.state_dir)?;
        Ok(Self { config, store, loaded })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.loaded.identity.host
    }

    /// The key that signs its statements, and that its certificate is to be made for.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.loaded.identity.key
    }

    /// Runs until `shutdown` is ready. What runs on the host goes on running.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn run(
        self,
        link: Link,
        images: Arc<dyn Images>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let Self { config, store, loaded } = self;
        let disks = Disks::open(&config.state_dir)?;
        let (reports, from_workers) = mpsc::unbounded_channel();
        let shop = Workshop::new(config, loaded.identity.clone(), disks, images, reports);
        tokio::pin!(shutdown);
        let mut from_workers = from_workers;
        let first = tokio::select! {
            first = first_connection(&shop, &mut from_workers) => first,
            () = &mut shutdown => return Ok(()),
        };
        let Some((node, domains)) = first else { return Ok(()) };
        let mut driver = Driver::new(shop, store, loaded, &node)?;
        driver.world.seen_all(0, domains);
        let ended = driver.run(link, from_workers, shutdown).await;
        driver.finish().await.and(ended)
    }
}

/// Opens an agent and runs it, see [`Agent::open`] and [`Agent::run`].
///
/// # Errors
/// [`AgentError`].
pub async fn run(
    config: AgentConfig,
    link: Link,
    images: Arc<dyn Images>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let agent = tokio::task::spawn_blocking(move || Agent::open(config)).await??;
    agent.run(link, images, shutdown).await
}

type First = Option<(Node, BTreeMap<Uuid, crate::plan::Seen>)>;

/// Until libvirt answers, a host does not know what it has, and has nothing to say.
async fn first_connection(shop: &Arc<Workshop>, reports: &mut mpsc::UnboundedReceiver<Report>) -> First {
    let mut wait = Duration::ZERO;
    loop {
        shop.connect(0, wait);
        match reports.recv().await? {
            Report::Connected { result: Ok(connected), .. } => return Some(connected),
            Report::Connected { result: Err(error), .. } => {
                tracing::warn!(uri = shop.config.libvirt_uri, %error, "libvirt does not answer");
                wait = (wait + RECONNECT).min(RECONNECT * 8);
            }
            _ => {}
        }
    }
}

/// What is to happen once a commit is durable.
enum After {
    Planned(Uuid, Box<Plan>),
    State(ClaimId),
    Bind(Bound),
}

type Commit = JoinHandle<Result<(), StoreError>>;

struct Driver {
    shop: Arc<Workshop>,
    store: Arc<Store>,
    world: World,
    facts: HostFacts,
    /// As decided; the world and `facts` follow once it is on the disk.
    bound: Bound,
    /// How far the logs of its site's replicas go, as each has told (M4).
    witnessed: BTreeMap<ReplicaId, SignedTip>,
    /// The pool that was named in the last introduction.
    said: Option<PoolId>,
    /// The pool that this host is to serve instead of one that was declared dead, as soon as nothing runs.
    coming: Option<PoolId>,
    started: Instant,
    /// Numbers connections to libvirt: what an older one says is of no interest.
    connection: u64,
    connected: bool,
    look_again: BTreeSet<Uuid>,
    writes: Vec<Write>,
    after: Vec<After>,
    commit: Option<(Commit, Vec<After>)>,
    replica: Option<mpsc::Sender<FromAgent>>,
    link_number: u64,
    outbox: Outbox,
    seed: u64,
}

/// What waits for the link; the newest of each server, so it is bounded.
#[derive(Default)]
struct Outbox {
    witnessed: Vec<SignedTip>,
    hello: Option<HostFacts>,
    observations: BTreeMap<Uuid, Observation>,
    statements: BTreeSet<ClaimId>,
    answers: VecDeque<(u64, Result<String, String>)>,
    heartbeat: bool,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.hello.is_none()
            && self.observations.is_empty()
            && self.statements.is_empty()
            && self.answers.is_empty()
            && !self.heartbeat
    }
}

impl Driver {
    fn new(shop: Arc<Workshop>, store: Store, loaded: Loaded, node: &Node) -> Result<Self, AgentError> {
        let mut facts = host::facts(&shop.config, &loaded.identity, node);
        facts.pool = loaded.bound.pool;
        let simulated = shop.hypervisor.is_simulated();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let rules = Rules {
            host: loaded.identity.host,
            incarnation: loaded.identity.incarnation,
            disks: !simulated,
            shutdown_timeout: millis(shop.config.shutdown_timeout),
            shutdown_repeat: millis(SHUTDOWN_REPEAT),
        };
        let mut files = BTreeMap::new();
        if !simulated {
            for server in shop.disks.servers()? {
                files.insert(server, shop.disks.files(server));
            }
        }
        let world = World::new(rules, host::capacity(&facts), loaded.bound, loaded.memories, loaded.refused, &files);
        Ok(Self {
            shop,
            store: Arc::new(store),
            world,
            facts,
            bound: loaded.bound,
            witnessed: loaded.witnessed,
            said: None,
            coming: None,
            started: Instant::now(),
            connection: 0,
            connected: true,
            look_again: BTreeSet::new(),
            writes: Vec::new(),
            after: Vec::new(),
            commit: None,
            replica: None,
            link_number: 0,
            outbox: Outbox::default(),
            seed: u64::from(std::process::id()),
        })
    }

    async fn run(
        &mut self,
        mut link: Link,
        mut reports: mpsc::UnboundedReceiver<Report>,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), AgentError> {
        let signals = self.shop.hypervisor.signals().clone();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut relist = tokio::time::interval_at(tokio::time::Instant::now() + RELIST, RELIST);
        let mut consoles = tokio::time::interval(CONSOLES);
        let mut linked = true;
        loop {
            self.come_back();
            self.advance();
            self.pump();
            let wake = self.world.next_wake().map(|at| Duration::from_millis(at.saturating_sub(self.now())));
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                event = link.recv(), if linked => match event {
                    Some(event) => {
                        self.link(event);
                        while let Ok(event) = link.try_recv() {
                            self.link(event);
                        }
                    }
                    None => linked = false,
                },
                Some(report) = reports.recv() => {
                    self.report(report);
                    while let Ok(report) = reports.try_recv() {
                        self.report(report);
                    }
                }
                done = committed(&mut self.commit) => self.committed(done?)?,
                () = signals.bell.notified() => self.signalled(),
                () = room(self.replica.as_ref()), if !self.outbox.is_empty() => {}
                () = sleep(wake) => self.world.tick(self.now()),
                _ = heartbeat.tick() => self.outbox.heartbeat = self.replica.is_some(),
                _ = relist.tick() => self.relist(),
                _ = consoles.tick(), if !self.shop.hypervisor.is_simulated() => self.shop.bound_consoles(),
            }
        }
    }

    /// Waits for a commit under way, so that the memory can be opened again.
    async fn finish(self) -> Result<(), AgentError> {
        if let Some((commit, _)) = self.commit {
            commit.await??;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected(number, replica) if number > self.link_number => {
                self.link_number = number;
                self.replica = Some(replica);
                self.coming = None;
                self.introduce();
            }
            LinkEvent::Lost(number) if number == self.link_number => {
                self.replica = None;
                self.coming = None;
                self.outbox = Outbox::default();
            }
            LinkEvent::Message(number, message) if number == self.link_number => self.message(message),
            _ => {}
        }
    }

    /// Who this is, and all that there is to tell.
    fn introduce(&mut self) {
        let observations = self.world.observations().map(|seen| (seen.server, seen.clone())).collect();
        let statements = self.world.unheld().into_iter().collect();
        let (witnessed, hello) = (self.witnessed.values().cloned().collect(), Some(self.facts.clone()));
        self.said = self.facts.pool;
        self.outbox = Outbox { witnessed, hello, observations, statements, answers: VecDeque::new(), heartbeat: true };
    }

    /// A replica names the host's pool. The first one is taken, and another only in place of the one that this host
    /// serves; either way the replica hears which it is, once that is on the disk.
    fn told_pool(&mut self, pool: PoolId, instead_of: Option<PoolId>) {
        if self.bound.pool == instead_of && self.bound.dead {
            self.coming = Some(pool);
            return;
        }
        if self.bound.pool == instead_of {
            self.bound.pool = Some(pool);
        }
        self.write_bound();
    }

    /// The host was declared dead. It comes back with another pool, once that is told and nothing runs any more.
    fn told_dead(&mut self, pool: PoolId) {
        if self.bound.pool.is_none_or(|own| own == pool) {
            tracing::error!(%pool, "this host was declared dead: its servers are stopped");
            self.bound = Bound { pool: Some(pool), dead: true };
            self.write_bound();
        }
    }

    fn come_back(&mut self) {
        if self.coming.is_some() && self.world.bound().dead && self.world.is_quiet() {
            self.bound = Bound { pool: self.coming.take(), dead: false };
            self.write_bound();
        }
    }

    fn write_bound(&mut self) {
        self.writes.push(Write::Bound(self.bound));
        self.after.push(After::Bind(self.bound));
    }

    fn message(&mut self, message: ToAgent) {
        match message {
            ToAgent::Pool { pool, instead_of } => self.told_pool(pool, instead_of),
            ToAgent::Dead(pool) => self.told_dead(pool),
            ToAgent::Orders(orders) => {
                let restate = self.world.orders(orders);
                restate.into_iter().for_each(|claim| self.restate(claim));
            }
            ToAgent::Order(order) => {
                if let Some(claim) = self.world.order(*order) {
                    self.restate(claim);
                }
            }
            ToAgent::StatementHeld(claim) => {
                if let Some(refused) = self.world.held(claim) {
                    self.writes.push(Write::Refused(claim, refused));
                }
                self.outbox.statements.remove(&claim);
            }
            ToAgent::Witness(word) => self.told_tip(*word),
            ToAgent::Console { request, server, lines } => self.shop.console(request, server, lines),
        }
    }

    /// A replica tells how far its log goes. That is on the disk no later than what its later orders change there. One that
    /// tells less than before has been shown that already, when it was connected.
    fn told_tip(&mut self, word: SignedTip) {
        let is_more = match self.witnessed.get(&word.replica) {
            Some(known) => word.tip.number > known.tip.number,
            None => self.witnessed.len() < WITNESSED,
        };
        if is_more && word.verify(self.shop.config.cloud) {
            self.writes.push(Write::Witnessed(word.clone()));
            self.witnessed.insert(word.replica, word);
        }
    }

    /// A refusal is on the disk before it is stated, also if it is being written right now.
    fn restate(&mut self, claim: ClaimId) {
        if let Some(refused) = self.world.refusal(claim) {
            self.writes.push(Write::Refused(claim, refused));
            self.after.push(After::State(claim));
        }
    }

    fn report(&mut self, report: Report) {
        let current = |connection: u64| connection == self.connection && self.connected;
        match report {
            Report::Step(step) => self.step_ended(step),
            Report::Look { server, moment, seen, connection } if current(connection) => match seen {
                Ok(seen) => {
                    if !self.world.seen_since(moment, server, seen) {
                        self.look(server);
                    }
                }
                Err(error) => self.failed(&error),
            },
            Report::Listed { moment, result, connection } if current(connection) => match result {
                Ok(domains) => self.world.seen_all(moment, domains),
                Err(error) => self.failed(&error),
            },
            Report::Look { .. } | Report::Listed { .. } => {}
            Report::Connected { moment, result: Ok((_, domains)) } => {
                tracing::info!("libvirt answers again");
                self.connected = true;
                self.world.seen_all(moment, domains);
            }
            Report::Connected { result: Err(error), .. } => {
                tracing::warn!(%error, "libvirt does not answer");
                self.shop.connect(self.world.moment(), RECONNECT);
            }
            Report::Fetched { base, outcome } => {
                let (now, seed) = (self.now(), self.seed());
                self.world.fetched(&base, &outcome, now, seed);
            }
            Report::Console { request, output } => {
                if self.outbox.answers.len() < ANSWERS && self.replica.is_some() {
                    self.outbox.answers.push_back((request, output));
                }
            }
        }
    }

    fn failed(&mut self, error: &HypervisorError) {
        match error {
            HypervisorError::Unreachable(_) => self.lost_hypervisor(),
            HypervisorError::Refused(_) => tracing::warn!(%error, "libvirt does not say what there is"),
        }
    }

    fn step_ended(&mut self, step: StepReport) {
        let StepReport { server, action, outcome, seen, files, broken } = step;
        if outcome != Outcome::Done {
            tracing::info!(%server, ?action, ?outcome, "a step did not work");
        }
        // The simulated hypervisor's reboots take no time, and have no event.
        let rebooted = action == Action::Reboot && outcome == Outcome::Done && self.shop.hypervisor.is_simulated();
        let (now, seed, known) = (self.now(), self.seed(), seen.is_some());
        self.world.files(server, files);
        self.world.finished(server, outcome, now, seed);
        if self.connected {
            self.world.seen(server, seen.unwrap_or_default());
        }
        if rebooted {
            self.world.rebooted(server);
        }
        if broken == Some(self.connection) {
            self.lost_hypervisor();
        } else if self.look_again.remove(&server) || !known {
            self.look(server);
        }
    }

    /// Spreads retries; of no other use.
    fn seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    fn look(&mut self, server: Uuid) {
        if !self.connected {
            return;
        }
        if self.world.is_busy(server) {
            self.look_again.insert(server);
        } else {
            self.shop.look(server, self.world.moment(), self.connection);
        }
    }

    fn relist(&mut self) {
        if self.connected {
            self.shop.list(self.world.moment(), self.connection);
        }
        self.clean_bases();
    }

    fn signalled(&mut self) {
        let taken = self.shop.hypervisor.signals().take();
        if taken.closed {
            self.lost_hypervisor();
            return;
        }
        for (server, rebooted) in taken.changed {
            if rebooted {
                self.world.rebooted(server);
            }
            if self.world.knows(server) {
                self.look(server);
            }
        }
    }

    fn lost_hypervisor(&mut self) {
        if self.connected {
            tracing::warn!("libvirt is out of reach");
            self.connected = false;
            self.connection += 1;
            self.look_again.clear();
            self.world.blind();
            self.shop.connect(self.world.moment(), Duration::from_millis(100));
        }
    }

    /// A base image goes with its last server.
    fn clean_bases(&mut self) {
        if self.shop.hypervisor.is_simulated() {
            return;
        }
        let used = self.world.bases();
        let fetching = self.shop.transfers();
        let is_used = |name: &str| {
            let mut blobs = fetching.iter().map(|(blob, _, _)| blob.as_str());
            used.contains(name) || blobs.any(|blob| name.starts_with(blob))
        };
        if let Err(error) = self.shop.disks.clean_bases(is_used) {
            tracing::warn!(%error, "unused base images cannot be removed");
        }
    }

    /// Takes what follows out of the world: to be written first, or done at once.
    fn advance(&mut self) {
        let (now, wall) = (self.now(), wall());
        while let Some((server, plan)) = self.world.next(now, wall) {
            if let Some(memory) = &plan.remember {
                self.writes.push(Write::Memory(server, Box::new(memory.clone())));
                self.after.push(After::Planned(server, Box::new(plan)));
            } else if let Some((claim, refused)) = plan.refuse.and_then(|c| Some((c, self.world.refusal(c)?))) {
                self.writes.push(Write::Refuse(claim, refused));
                self.after.push(After::Planned(server, Box::new(plan)));
            } else {
                self.carry_out(server, plan);
            }
        }
        if self.commit.is_none() && !self.writes.is_empty() {
            let (writes, store) = (std::mem::take(&mut self.writes), self.store.clone());
            let commit = tokio::task::spawn_blocking(move || store.write(&writes));
            self.commit = Some((commit, std::mem::take(&mut self.after)));
        }
    }

    fn committed(&mut self, after: Vec<After>) -> Result<(), AgentError> {
        for after in after {
            match after {
                After::Planned(server, plan) => {
                    self.world.written(server);
                    self.carry_out(server, *plan);
                }
                After::State(claim) => self.state(claim),
                After::Bind(bound) => self.bind(bound),
            }
        }
        Ok(())
    }

    fn bind(&mut self, bound: Bound) {
        self.world.bind(bound);
        self.facts.pool = bound.pool;
        if self.replica.is_some() && self.said != bound.pool {
            self.introduce();
        }
    }

    fn carry_out(&mut self, server: Uuid, plan: Plan) {
        if let Some(observation) = plan.tell
            && self.replica.is_some()
        {
            self.outbox.observations.insert(server, observation);
        }
        if let Some(claim) = plan.refuse {
            self.state(claim);
            self.outbox.observations.remove(&server);
            self.clean_bases();
        }
        let order = self.world.order_of(server).cloned();
        match plan.action {
            None => {}
            Some(_) if !self.world.confirm(server) => {}
            Some(Action::FetchImage) => {
                if let Some(image) = order.as_ref().and_then(present).and_then(|(record, _)| record.image.clone()) {
                    self.shop.fetch(image);
                }
            }
            Some(action) => self.shop.step(server, action, order, self.connection),
        }
    }

    fn state(&mut self, claim: ClaimId) {
        if self.replica.is_some() {
            self.outbox.statements.insert(claim);
        }
    }

    /// Says what there is to say, as far as the link takes it.
    fn pump(&mut self) {
        let Some(replica) = self.replica.clone() else { return };
        while !self.outbox.is_empty() {
            match replica.try_reserve() {
                Ok(permit) => {
                    if let Some(message) = self.next_message() {
                        permit.send(message);
                    }
                }
                Err(mpsc::error::TrySendError::Full(())) => return,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    self.replica = None;
                    self.outbox = Outbox::default();
                }
            }
        }
    }

    fn next_message(&mut self) -> Option<FromAgent> {
        if !self.outbox.witnessed.is_empty() {
            return Some(FromAgent::Witnessed(std::mem::take(&mut self.outbox.witnessed)));
        }
        if let Some(facts) = self.outbox.hello.take() {
            return Some(FromAgent::Hello(Box::new(facts)));
        }
        if let Some((_, observation)) = self.outbox.observations.pop_first() {
            return Some(FromAgent::Observed(Box::new(observation)));
        }
        if let Some(claim) = self.outbox.statements.pop_first() {
            let refused = self.world.refusal(claim)?;
            let identity = &self.shop.identity;
            let cloud = self.shop.config.cloud;
            let (host, incarnation) = (identity.host, identity.incarnation);
            return Some(FromAgent::Stated(Statement::sign(
                cloud,
                host,
                refused.server,
                claim,
                incarnation,
                &identity.key,
            )));
        }
        if let Some((request, output)) = self.outbox.answers.pop_front() {
            return Some(FromAgent::ConsoleOutput { request, output });
        }
        if std::mem::take(&mut self.outbox.heartbeat) {
            let mut heartbeat = host::heartbeat(&self.shop.config.state_dir, wall());
            heartbeat.running = u64::try_from(self.world.running()).unwrap_or(u64::MAX);
            heartbeat.hypervisor_up = self.connected;
            heartbeat.orphans = self.world.orphans();
            heartbeat.transfers = self.shop.transfers();
            return Some(FromAgent::Heartbeat(heartbeat));
        }
        None
    }
}

fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn committed(commit: &mut Option<(Commit, Vec<After>)>) -> Result<Vec<After>, AgentError> {
    let Some((task, _)) = commit else { return std::future::pending().await };
    let result = task.await;
    let after = commit.take().map(|(_, after)| after).unwrap_or_default();
    result??;
    Ok(after)
}

async fn room(replica: Option<&mpsc::Sender<FromAgent>>) {
    match replica {
        Some(replica) => drop(replica.reserve().await),
        None => std::future::pending().await,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
