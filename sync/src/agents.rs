//! The agents attached to a replica: their orders, their soft state.
//!
//! What an agent is ordered follows from the durable view alone, and is the whole wish for a server. So orders to one
//! agent gather in a map, the newest of each server, and a slow agent costs at most one order a server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use luc_engine::agent::{
    DomainState, FromAgent, Heartbeat, HostFacts, Observation, Order, Orphan, SignedTip, ToAgent, Vouched, Wanted,
};
use luc_engine::entry::{Frontier, HostIdentity, Subject, Tip};
use luc_engine::id::{ClaimId, HostId, PoolId, ReplicaId, SiteName};
use luc_engine::ledger::{Amount, Claim, Dimension, Pool};
use luc_engine::record::{Host, Kind, Project, Record, RecordId, host_record};
use luc_engine::replica::Flushed;
use luc_engine::site_mutant::{SiteMutant, on};
use luc_engine::tx::{Refusal, Tx};
use luc_engine::view::View;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::join::{SPREAD, spread};
use crate::node::Node;
use crate::vouching::{ASK_AGAIN, Vouch, Vouching};
use crate::wire::HostStatus;

/// Messages on the way to or from an agent.
pub const CHANNEL: usize = 1024;
/// Orders in the first message to an agent, at most.
const FIRST_ORDERS: usize = 256;
/// Observations and statements that become one entry at most.
const BATCH: usize = 256;
/// How long a replica waits at a time for the entry that minted an agent's pool.
const POOL_WAIT: std::time::Duration = std::time::Duration::from_secs(5);
/// After how long without a heartbeat a host counts as down.
const DOWN: std::time::Duration = std::time::Duration::from_secs(15);

/// The agents attached to one replica.
#[derive(Default)]
pub struct Agents {
    attached: Mutex<BTreeMap<HostId, Arc<Attached>>>,
    /// Those that have said, since this replica started, what they were told of its log.
    met: Mutex<BTreeSet<HostId>>,
    heard: Mutex<BTreeMap<HostId, (Instant, Heartbeat)>>,
    /// Where questions to the holders of claims go.
    asker: OnceLock<mpsc::Sender<Vouch>>,
}

/// A server whose console is asked for, how many lines, and where the answer goes.
type Question = (Uuid, Option<u64>, oneshot::Sender<Result<String, String>>);

struct Attached {
    orders: Mutex<BTreeMap<Uuid, Order>>,
    wake: Notify,
    console: mpsc::Sender<Question>,
    /// As the agent was told when it introduced itself.
    standing: Standing,
    /// Not so any more: it is to introduce itself again.
    again: AtomicBool,
    /// It has a machine of its own: a witness that an old copy of this replica's disk does not take along (M4).
    elsewhere: bool,
}

/// Whether a host lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Lives,
    Dead,
    /// Dead, and to come back with another pool.
    Revived,
}

impl Standing {
    fn of(view: &View, host: HostId) -> Self {
        match view.death(host) {
            None => Self::Lives,
            Some(_) if dead_pool(view, host).is_some() => Self::Dead,
            Some(_) => Self::Revived,
        }
    }
}

/// Why an agent was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It said something else than hello first, or went away before.
    #[error("the agent did not introduce itself")]
    NoHello,
    /// Of another site than this replica.
    #[error("the host belongs to site {0}")]
    OtherSite(String),
    /// The host's pool names another key.
    #[error("host {0} is known with another agent's key")]
    OtherKey(HostId),
    /// It says that it serves a pool which is not its host's.
    #[error("pool {0} is not that host's")]
    OtherPool(PoolId),
    /// The host could not be written down.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its host was declared dead, or is to come back, since it introduced itself.
    #[error("the agent is to introduce itself again")]
    Again,
    /// The agent went away.
    #[error("the agent went away")]
    Gone,
}

impl Agents {
    /// The orders that follow from a change go to the hosts that they are for.
    pub(crate) fn changed(&self, view: &View, flushed: &Flushed, me: ReplicaId) {
        let attached = self.attached.lock();
        if attached.is_empty() {
            return;
        }
        if flushed.entries.iter().any(|entry| entry.header.author == me) {
            attached.values().filter(|agent| agent.elsewhere).for_each(|agent| agent.wake.notify_one());
        }
        let records = flushed.records.iter().filter(|id| id.kind == Kind::Host).map(|id| HostId(id.id));
        let pools = flushed.pools.iter().filter_map(|id| match &view.ledger().pool(*id)?.subject {
            Subject::Host(host) => Some(host.host),
            _ => None,
        });
        for host in records.chain(pools) {
            if let Some(told) = attached.get(&host).filter(|told| told.standing != Standing::of(view, host)) {
                told.again.store(true, Ordering::Relaxed);
                told.wake.notify_one();
            }
        }
        for (host, order) in orders(view, flushed, &|host| attached.contains_key(&host)) {
            if let Some(host) = attached.get(&host) {
                host.orders.lock().insert(order.server, order);
                host.wake.notify_one();
            }
        }
    }

    /// How a host is, as heard here.
    #[must_use]
    pub fn status(&self, host: HostId) -> Option<HostStatus> {
        let heard = self.heard.lock();
        let (at, heartbeat) = heard.get(&host)?;
        let age = u64::try_from(at.elapsed().as_millis()).ok();
        Some(HostStatus { host, age, heartbeat: heartbeat.clone() })
    }

    /// All hosts heard here.
    #[must_use]
    pub fn statuses(&self) -> Vec<HostStatus> {
        let hosts: Vec<HostId> = self.heard.lock().keys().copied().collect();
        hosts.into_iter().filter_map(|host| self.status(host)).collect()
    }

    /// Whether a host's agent was heard lately, here.
    #[must_use]
    pub fn is_up(&self, host: HostId) -> bool {
        self.heard.lock().get(&host).is_some_and(|(at, beat)| at.elapsed() < DOWN && beat.hypervisor_up)
    }

    /// How many agents on machines of their own are attached: they are this replica's witnesses (`PROTOCOL.md`, M4). One
    /// in its own process keeps what it is told on the same disk, as a rule, and is restored with it.
    #[must_use]
    pub fn witnesses(&self) -> usize {
        self.attached.lock().values().filter(|agent| agent.elsewhere).count()
    }

    /// Whether a host's agent has said, since this replica started, what it was told of its log.
    pub(crate) fn has_met(&self, host: HostId) -> bool {
        self.met.lock().contains(&host)
    }

    /// From now on the holders of claims are asked through this.
    pub(crate) fn ask_with(&self, asker: mpsc::Sender<Vouch>) {
        let _ = self.asker.set(asker);
    }

    pub(crate) fn asker(&self) -> Option<&mpsc::Sender<Vouch>> {
        self.asker.get()
    }

    /// Asks a host's agent for the end of a console.
    ///
    /// # Errors
    /// A text for the user, if the agent is not attached here or has none.
    pub async fn console(&self, host: HostId, server: Uuid, lines: Option<u64>) -> Result<String, String> {
        let attached = self.attached.lock().get(&host).cloned();
        let attached = attached.ok_or_else(|| "the host's agent is not connected".to_owned())?;
        let (reply, answer) = oneshot::channel();
        let gone = || "the host's agent went away".to_owned();
        // An agent that takes nothing in takes no questions either.
        let asked = async {
            attached.console.send((server, lines, reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let answer = tokio::time::timeout(std::time::Duration::from_secs(10), asked).await;
        answer.map_err(|_| "the host's agent does not answer".to_owned())?
    }
}

/// Serves one agent until it goes away.
///
/// # Errors
/// [`AgentError`] says why it was turned away, or that it went.
pub async fn serve(
    node: Node,
    mut from: mpsc::Receiver<FromAgent>,
    to: mpsc::Sender<ToAgent>,
    certified: Option<([u8; 32], HostId)>,
) -> Result<(), AgentError> {
    let facts = greet(&node, &mut from, &to, certified).await?;
    let host = facts.identity.host;
    let (console, mut questions) = mpsc::channel(64);
    let standing = Standing::of(&node.view(), host);
    let (again, elsewhere) = (AtomicBool::new(false), certified.is_some());
    let attached =
        Arc::new(Attached { orders: Mutex::default(), wake: Notify::new(), console, standing, again, elsewhere });
    // From here on, changes gather as orders; the full list below may repeat some, which does no harm.
    node.agents().attached.lock().insert(host, attached.clone());
    let _detach = Detach { node: node.clone(), host, attached: attached.clone() };
    let view = node.view();
    // A change that came before it was attached was told to nobody.
    if Standing::of(&view, host) != standing {
        return Err(AgentError::Again);
    }
    let mut told = 0;
    tell_tip(&node, &to, &mut told).await?;
    let mut all: Vec<Order> = view.ledger().claims_on(host).filter_map(|(id, claim)| order(&view, id, claim)).collect();
    let mut vouching = Vouching::default();
    all.iter_mut().for_each(|order| vouching.mark(&view, node.me(), order));
    drop(view);
    // A host with thousands of servers gets the rest one by one: a frame has a limit.
    let rest = all.split_off(all.len().min(FIRST_ORDERS));
    to.send(ToAgent::Orders(all)).await.map_err(|_| AgentError::Gone)?;
    for order in rest {
        to.send(ToAgent::Order(Box::new(order))).await.map_err(|_| AgentError::Gone)?;
    }
    let mut asked: BTreeMap<u64, oneshot::Sender<Result<String, String>>> = BTreeMap::new();
    let mut request = 0;
    let mut again = tokio::time::interval(ASK_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = again.tick(), if vouching.is_waiting() => vouching.ask(&node),
            Some((claims, stood)) = vouching.answer() => {
                for order in vouching.answered(&node.view(), claims, stood.as_deref()) {
                    to.send(ToAgent::Order(Box::new(order))).await.map_err(|_| AgentError::Gone)?;
                }
            }
            message = from.recv() => {
                let mut messages = vec![message.ok_or(AgentError::Gone)?];
                while messages.len() < BATCH && let Ok(message) = from.try_recv() {
                    messages.push(message);
                }
                heard(&node, host, messages, &to, &mut asked).await?;
                // One in this process is told now and then, and before every order: it would flush to the same disk.
                tell_tip(&node, &to, &mut told).await?;
                // What writes no more has no say over machines either: the agent looks for another replica.
                if let Some(fence) = node.fence() {
                    return Err(AgentError::Refused(fence.into()));
                }
            }
            () = attached.wake.notified() => {
                if attached.again.load(Ordering::Relaxed) {
                    return Err(AgentError::Again);
                }
                let orders = std::mem::take(&mut *attached.orders.lock());
                // Before the orders that rest on it: no agent has obeyed what its replica could write a second time.
                tell_tip(&node, &to, &mut told).await?;
                let view = node.view();
                for mut order in orders.into_values() {
                    vouching.mark(&view, node.me(), &mut order);
                    to.send(ToAgent::Order(Box::new(order))).await.map_err(|_| AgentError::Gone)?;
                }
                if vouching.is_waiting() {
                    vouching.ask(&node);
                }
            }
            Some((server, lines, reply)) = questions.recv() => {
                request += 1;
                asked.retain(|_, reply| !reply.is_closed());
                asked.insert(request, reply);
                to.send(ToAgent::Console { request, server, lines }).await.map_err(|_| AgentError::Gone)?;
            }
        }
    }
}

/// Tells an agent how far this replica's log goes, if it has not been told that.
async fn tell_tip(node: &Node, to: &mpsc::Sender<ToAgent>, told: &mut u64) -> Result<(), AgentError> {
    if node.view().frontier().number(node.me()) <= *told {
        return Ok(());
    }
    let Some(word) = node.signed_tip() else { return Ok(()) };
    *told = word.tip.number;
    to.send(ToAgent::Witness(Box::new(word))).await.map_err(|_| AgentError::Gone)
}

struct Detach {
    node: Node,
    host: HostId,
    attached: Arc<Attached>,
}

impl Drop for Detach {
    fn drop(&mut self) {
        let mut attached = self.node.agents().attached.lock();
        // A newer connection of the same agent may have taken the place.
        if attached.get(&self.host).is_some_and(|current| Arc::ptr_eq(current, &self.attached)) {
            attached.remove(&self.host);
        }
    }
}

/// Deals with what an agent said: what it saw and promised becomes one entry.
async fn heard(
    node: &Node,
    host: HostId,
    messages: Vec<FromAgent>,
    to: &mpsc::Sender<ToAgent>,
    asked: &mut BTreeMap<u64, oneshot::Sender<Result<String, String>>>,
) -> Result<(), AgentError> {
    let (mut seen, mut stated) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            FromAgent::Hello(_) => return Err(AgentError::NoHello),
            FromAgent::Witnessed(words) => witnessed(node, words).await?,
            FromAgent::Observed(observation) if observation.host == host => seen.push(*observation),
            FromAgent::Observed(_) => {}
            FromAgent::Stated(statement) => stated.push(statement),
            FromAgent::Heartbeat(heartbeat) => {
                for order in remains(&node.view(), host, &heartbeat.orphans) {
                    to.send(ToAgent::Order(Box::new(order))).await.map_err(|_| AgentError::Gone)?;
                }
                node.agents().heard.lock().insert(host, (Instant::now(), heartbeat));
            }
            FromAgent::ConsoleOutput { request, output } => {
                if let Some(reply) = asked.remove(&request) {
                    let _ = reply.send(output);
                }
            }
        }
    }
    if seen.is_empty() && stated.is_empty() {
        return Ok(());
    }
    let held: Vec<_> = stated.iter().map(|statement| statement.claim).collect();
    node.transact::<_, Refusal, _>(move |tx| {
        for observation in seen {
            observe(tx, observation)?;
        }
        for statement in stated {
            tx.state(statement);
        }
        Ok(())
    })
    .await?;
    for claim in held {
        to.send(ToAgent::StatementHeld(claim)).await.map_err(|_| AgentError::Gone)?;
    }
    Ok(())
}

/// What is left on a host of servers that no order names any more. If it was dead once, of those that were deleted or placed
/// elsewhere meanwhile: their claims were released without the agent's word. And of those whose claims only a lost disk held: they
/// are void, nobody knows their servers, and what they take up on the host has been promised to others.
#[must_use]
pub fn remains(view: &View, host: HostId, orphans: &[Orphan]) -> Vec<Order> {
    let dead = view.ledger().host_pools(host).find(|(_, pool)| !pool.dead.is_empty()).map(|(id, _)| id);
    let Some(pool) = dead.or_else(|| view.host_pool(host).map(|(id, _)| id)) else { return Vec::new() };
    // A claim that is absent and was seen is settled (A4); one that was not seen may live, if its author does.
    let is_released = |claim: ClaimId| view.frontier().holds(claim.entry) && view.ledger().claim(claim).is_none();
    let is_settled = |claim: ClaimId| view.is_beyond_cut(claim.entry) || (dead.is_some() && is_released(claim));
    // One that was placed here again, under another pool, has an order.
    let is_ordered = |server| {
        let mut claims = view.ledger().claims_of(RecordId { kind: Kind::Server, id: server });
        claims.any(|(_, claim)| view.ledger().host_of(claim) == Some(host))
    };
    let settled = orphans.iter().filter(|orphan| is_settled(orphan.claim) && !is_ordered(orphan.server));
    let order = |orphan: &Orphan| {
        let Orphan { server, claim, epoch } = *orphan;
        Order { server, claim, pool, epoch, wanted: Wanted::Absent, vouched: Vouched::Asked }
    };
    settled.map(order).collect()
}

/// The orders that follow from a flush, for the hosts whose agents are attached.
#[must_use]
pub fn orders(view: &View, flushed: &Flushed, is_attached: &dyn Fn(HostId) -> bool) -> Vec<(HostId, Order)> {
    let of_claim = |id| view.ledger().claim(id).map(|claim| claim.record);
    let claimed = flushed.claims.iter().filter_map(|id| of_claim(*id));
    let mut servers: Vec<RecordId> = flushed.records.iter().copied().chain(claimed).collect();
    servers.retain(|id| id.kind == Kind::Server);
    servers.sort_unstable();
    servers.dedup();
    let claims = servers.into_iter().flat_map(|id| view.ledger().claims_of(id));
    let here = claims.filter_map(|(id, claim)| {
        let host = view.ledger().host_of(claim).filter(|host| is_attached(*host))?;
        order(view, id, claim).map(|order| (host, order))
    });
    here.collect()
}

/// Notes what an agent saw, if it says anything new.
///
/// # Errors
/// [`Refusal::Invalid`] if the host is not of this site.
///
/// An observation of a server that is gone says nothing any more.
pub fn observe(tx: &mut Tx<'_>, observation: Observation) -> Result<(), Refusal> {
    let id = RecordId { kind: Kind::Server, id: observation.server };
    let Some(held) = tx.view().held(id) else { return Ok(()) };
    if on(SiteMutant::ObservationLost) && observation.counter.is_multiple_of(3) {
        return Ok(());
    }
    // "Not defined yet", before anything else was seen and without news, is what everybody assumes anyway.
    let news = observation.fault.is_some() || observation.task.is_some();
    if held.observation.is_none() && observation.state == DomainState::Missing && !news {
        return Ok(());
    }
    tx.observe(observation).map(|_| ())
}

/// The order that a claim stands for, nobody having vouched for it yet; none once it is settled.
#[must_use]
pub fn order(view: &View, id: ClaimId, claim: &Claim) -> Option<Order> {
    if !claim.gone.is_empty() {
        return None;
    }
    let pool = claim.pool;
    let vouched = Vouched::Asked;
    let order = |wanted| Order { server: claim.record.id, claim: id, pool, epoch: claim.epoch, wanted, vouched };
    let Some(held) = view.held(claim.record).filter(|held| !held.deleted) else { return Some(order(Wanted::Absent)) };
    match &held.record {
        Some(Record::Server(server)) => {
            let project_name = view.get::<Project>(server.project).map(|project| project.name.clone());
            let project_name = project_name.unwrap_or_default();
            Some(order(Wanted::Present { server: server.clone(), project_name }))
        }
        _ => None,
    }
}

/// What follows from an agent's introduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// It serves a pool that is here: it is written down, and gets its orders.
    Served,
    /// It is to serve this pool, and to say so: until then nobody spends a right to its host.
    Told {
        /// The pool.
        pool: PoolId,
        /// What it served before, which will never count.
        instead_of: Option<PoolId>,
    },
    /// The entry that minted its pool is not here yet. No other is minted: it would promise the host twice.
    Awaited(PoolId),
    /// It serves a pool that was declared dead (S5): it is to start nothing, and to stop what runs.
    Dead(PoolId),
}

/// Deals with an agent's introduction (S3). The first replica that meets it mints its host's pool; the agent decides by what it says
/// it serves, and only then the host is written down and its rights are shared.
///
/// # Errors
/// [`Refusal::Invalid`] if it is not a host of this site.
pub fn meet(tx: &mut Tx<'_>, facts: HostFacts) -> Result<Met, Refusal> {
    let view = tx.view();
    match facts.pool {
        Some(pool) if view.ledger().pool(pool).is_some_and(|pool| !pool.dead.is_empty()) => match view.is_revived(pool)
        {
            true => tell(tx, facts, Some(pool)),
            false => Ok(Met::Dead(pool)),
        },
        Some(pool) if view.ledger().pool(pool).is_some() => {
            write_host(tx, facts, pool)?;
            Ok(Met::Served)
        }
        Some(pool) if !view.is_void(pool) => Ok(Met::Awaited(pool)),
        instead_of => match dead_pool(view, facts.identity.host) {
            Some(dead) => Ok(Met::Dead(dead)),
            None => tell(tx, facts, instead_of),
        },
    }
}

/// The pool of a host that is dead, and is not to come back.
fn dead_pool(view: &View, host: HostId) -> Option<PoolId> {
    let dead = view.host_pool(host).filter(|(_, pool)| !pool.dead.is_empty()).map(|(id, _)| id);
    dead.filter(|id| !view.is_revived(*id))
}

/// Names a host's pool to its agent: the one that it is known to serve, or one that nobody serves yet, or a new one.
fn tell(tx: &mut Tx<'_>, facts: HostFacts, instead_of: Option<PoolId>) -> Result<Met, Refusal> {
    let (view, host) = (tx.view(), facts.identity.host);
    let served = view.host_pool(host).filter(|(_, pool)| pool.dead.is_empty()).map(|(id, _)| id);
    let is_whole = |pool: &Pool| pool.dead.is_empty() && pool.burnt.is_zero();
    let unserved = || view.ledger().host_pools(host).filter(|(_, pool)| is_whole(pool)).map(|(id, _)| id).next();
    let pool = match served.or_else(unserved) {
        Some(pool) => pool,
        None => tx.mint(Subject::Host(facts.identity.clone()), capacity(&facts))?,
    };
    Ok(Met::Told { pool, instead_of })
}

/// Greets an agent until it serves a pool that is here, however long that takes, or knows that its host is dead. Gives the host as
/// it introduced itself last.
async fn greet(
    node: &Node,
    from: &mut mpsc::Receiver<FromAgent>,
    to: &mpsc::Sender<ToAgent>,
    certified: Option<([u8; 32], HostId)>,
) -> Result<HostFacts, AgentError> {
    let mut facts = loop {
        match from.recv().await {
            Some(FromAgent::Hello(facts)) => break *facts,
            Some(FromAgent::Witnessed(words)) => witnessed(node, words).await?,
            _ => return Err(AgentError::NoHello),
        }
    };
    let mut told = 0;
    loop {
        check(node, &facts, certified)?;
        node.agents().met.lock().insert(facts.identity.host);
        let introduced = facts.clone();
        match node.transact::<_, Refusal, _>(move |tx| meet(tx, introduced)).await? {
            Met::Served => return Ok(facts),
            Met::Dead(pool) => {
                to.send(ToAgent::Dead(pool)).await.map_err(|_| AgentError::Gone)?;
                return Ok(facts);
            }
            Met::Told { pool, instead_of } => {
                tell_tip(node, to, &mut told).await?;
                let is_dead = |id: &PoolId| node.view().ledger().pool(*id).is_some_and(|pool| !pool.dead.is_empty());
                if let Some(dead) = instead_of.filter(is_dead) {
                    to.send(ToAgent::Dead(dead)).await.map_err(|_| AgentError::Gone)?;
                }
                to.send(ToAgent::Pool { pool, instead_of }).await.map_err(|_| AgentError::Gone)?;
                // What it saw and promised is told again after its next introduction.
                facts = loop {
                    match from.recv().await {
                        Some(FromAgent::Hello(facts)) => break *facts,
                        Some(_) => {}
                        None => return Err(AgentError::Gone),
                    }
                };
            }
            Met::Awaited(pool) => {
                tracing::info!(host = %facts.identity.host, %pool, "the pool that the host serves is not known here yet");
                await_pool(node, pool, to).await?;
            }
        }
    }
}

/// What an agent was told by replicas. If this one's store turns out to be an old copy, nothing is ordered any more.
async fn witnessed(node: &Node, words: Vec<SignedTip>) -> Result<(), AgentError> {
    node.witnessed(words).await.map_err(Refusal::from)?;
    node.fence().map_or(Ok(()), |fence| Err(AgentError::Refused(fence.into())))
}

/// Waits until a pool's entry is here, or is known never to come.
async fn await_pool(node: &Node, pool: PoolId, to: &mpsc::Sender<ToAgent>) -> Result<(), AgentError> {
    let mut wanted = Frontier::default();
    wanted.set(pool.entry.author, Tip { number: pool.entry.number, hash: 0 });
    loop {
        tokio::select! {
            () = to.closed() => return Err(AgentError::Gone),
            // An entry that a cut made void counts as come.
            come = node.wait_for(&wanted, POOL_WAIT) => if come.is_ok() {
                return Ok(());
            }
        }
    }
}

/// Whether an agent is who its certificate says, and may be served here.
fn check(node: &Node, facts: &HostFacts, certified: Option<([u8; 32], HostId)>) -> Result<(), AgentError> {
    let HostIdentity { host, site, agent_key, .. } = &facts.identity;
    if site != node.site() {
        return Err(AgentError::OtherSite(site.to_string()));
    }
    let is_certified = certified.is_none_or(|certified| certified == (*agent_key, *host));
    let view = node.view();
    let subject = Subject::Host(facts.identity.clone());
    let is_same = view.ledger().host_pools(*host).all(|(_, pool)| pool.subject == subject);
    if !is_certified || !is_same || !facts.identity.is_genuine(view.cloud()) {
        return Err(AgentError::OtherKey(*host));
    }
    match facts.pool.and_then(|id| Some((id, view.ledger().pool(id)?))) {
        Some((id, pool)) if pool.subject != subject => Err(AgentError::OtherPool(id)),
        _ => Ok(()),
    }
}

/// Grows or shrinks the pool that a host's agent serves, and writes the host's record, as the agent has introduced it.
fn write_host(tx: &mut Tx<'_>, facts: HostFacts, pool: PoolId) -> Result<(), Refusal> {
    let HostIdentity { host: id, site, .. } = facts.identity.clone();
    let capacity = capacity(&facts);
    let is_new = tx.view().host_pool(id).is_none_or(|(served, _)| served != pool);
    let old = tx.view().ledger().pool(pool).map(Pool::capacity).unwrap_or_default();
    resize(tx, pool, &old, &capacity)?;
    if is_new {
        share_host(tx, pool, &capacity)?;
    }
    let host = Host {
        name: facts.name.clone(),
        site: site.to_string(),
        hypervisor_type: facts.hypervisor_type.clone(),
        hypervisor_version: facts.hypervisor_version,
        cpus: facts.cpus,
        memory_mib: facts.memory_mib,
        disk_gib: facts.disk_gib,
        architecture: facts.architecture.clone(),
        pool: pool.to_string(),
        ..Host::default()
    };
    if tx.view().held(host_record(id)).is_none() {
        return tx.create(id.0, host, &[]).map(|_| ());
    }
    tx.update::<Host, Refusal>(id.0, |old| {
        // What operators wish stays.
        let (disabled, forced_down) = (old.disabled, old.forced_down);
        let (disabled_reason, revived) = (std::mem::take(&mut old.disabled_reason), std::mem::take(&mut old.revived));
        *old = Host { disabled, disabled_reason, forced_down, revived, ..host };
        Ok(())
    })
}

/// What a host can promise.
fn capacity(facts: &HostFacts) -> Amount {
    let vcpus = facts.cpus.saturating_mul(facts.cpu_overcommit);
    [(Dimension::Vcpus, vcpus), (Dimension::MemoryMib, facts.memory_mib), (Dimension::DiskGib, facts.disk_gib)]
        .into_iter()
        .collect()
}

/// A host's own site keeps three quarters; the rest is spread over the other members (or so many of them), so that a cut
/// site can still place a little elsewhere. Who needs more asks; and whose pool it is not shares nothing.
fn share_host(tx: &mut Tx<'_>, pool: PoolId, capacity: &Amount) -> Result<(), Refusal> {
    if !is_root(tx, pool) {
        return Ok(());
    }
    let mut others = spread(tx.view(), tx.me(), &pool.entry.author.0);
    let quarter = capacity.divided_by(4);
    if others.len() > SPREAD {
        // Each share is some of everything, or nobody could place anything with it.
        let useful = capacity.iter().map(|(_, n)| usize::try_from(n / 4).unwrap_or(usize::MAX)).min().unwrap_or(0);
        others.truncate(SPREAD.min(useful));
    }
    let count = u64::try_from(others.len()).unwrap_or(u64::MAX);
    let share = quarter.divided_by(count);
    for to in others {
        let share = share.min(&tx.view().ledger().pool(pool).map(|pool| pool.free(tx.me())).unwrap_or_default());
        if !share.is_zero() {
            tx.grant(pool, to, share)?;
        }
    }
    Ok(())
}

/// All members but this one that take part: their certificates stand, and nobody says that they are gone.
#[must_use]
pub fn others(view: &View, me: ReplicaId) -> Vec<ReplicaId> {
    let gone = view.retirements().named(view.frontier());
    let takes_part = |id: &ReplicaId, revoked: bool| *id != me && !revoked && !gone.contains(id);
    view.members().filter(|(id, state)| takes_part(id, state.revoked)).map(|(id, _)| *id).collect()
}

/// The hosts of a site that live.
pub(crate) fn hosts_of(view: &View, site: &SiteName) -> Vec<HostId> {
    let hosts = view.ledger().hosts().filter(|host| view.site_of_host(*host).as_ref() == Some(site));
    hosts.filter(|host| view.death(*host).is_none()).collect()
}

/// A host that grew gives rights; one that shrank burns free ones, at most those held here, and never a claim.
fn resize(tx: &mut Tx<'_>, pool: PoolId, old: &Amount, new: &Amount) -> Result<(), Refusal> {
    let more = new.saturating_sub(old);
    if !more.is_zero() && is_root(tx, pool) {
        tx.grow(pool, more)?;
    }
    let free = tx.view().ledger().pool(pool).map(|pool| pool.free(tx.me())).unwrap_or_default();
    let less = old.saturating_sub(new).min(&free);
    if less.is_zero() { Ok(()) } else { tx.burn(pool, less) }
}

/// Whether this replica mints into a pool: it made it, or is the heir of who did.
fn is_root(tx: &Tx<'_>, pool: PoolId) -> bool {
    tx.view().retired().acts_for(tx.me(), pool.entry.author)
}
