//! The rules, checked after every step over the union of all states (`DESIGN.md`, "What always holds").
//!
//! The oracle believes nothing that the engine computes: it adds up pools, claims and accounts itself, from the entries
//! that became durable somewhere. It is told of each as its replica flushes it, so a step costs what the step changed.

mod addresses;
mod liar;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use luc_engine::entry::{Entry, Frontier, LedgerOp, MemberOp, Subject, Tip};
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::Kind;
use luc_engine::view::{Digest, View};
use uuid::Uuid;

use addresses::Addresses;
use liar::Liar;

/// A rule's name, as in `DESIGN.md`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// Live claims never exceed capacity.
    NoDoubleBooking,
    /// What was answered, and what has left, is on the disk.
    AcknowledgedIsDurable,
    /// Equal frontiers, equal digests; and after the links are mended, equal frontiers, in bounded time.
    Convergence,
    /// An entry is visible after its whole past.
    CausalOrder,
    /// Who holds the rights is not refused, and waits for nobody.
    LocalAutonomy,
    /// Domains run under a live claim, within their host, once.
    HostTruth,
    /// Nobody spends what it does not hold, and no honest replica's entry is refused.
    Authority,
    /// Minted = free + claimed + burnt.
    Conservation,
    /// An address is in one live claim of its pool.
    AddressUniqueness,
    /// Of whom is retired nobody holds more than counts.
    NothingBeyondTheCut,
    /// A server, its quota claim and its host claim are one.
    Atomicity,
    /// The code noticed by itself that something is wrong, and stopped.
    Panic,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoDoubleBooking => "no-double-booking",
            Self::AcknowledgedIsDurable => "acknowledged-is-durable",
            Self::Convergence => "convergence",
            Self::CausalOrder => "causal-order",
            Self::LocalAutonomy => "local-autonomy",
            Self::HostTruth => "host-truth",
            Self::Authority => "authority",
            Self::Conservation => "conservation",
            Self::AddressUniqueness => "address-uniqueness",
            Self::NothingBeyondTheCut => "nothing-beyond-the-cut",
            Self::Atomicity => "atomicity",
            Self::Panic => "no-panic",
        })
    }
}

/// A rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// How.
    pub how: String,
}

impl Broken {
    /// Says so.
    pub fn new(rule: Rule, how: impl Into<String>) -> Self {
        Self { rule, how: how.into() }
    }
}

/// What a check says.
pub type Checked = Result<(), Broken>;

type Vector = [i64; 4];
const DIMENSIONS: [Dimension; 4] = [Dimension::Vcpus, Dimension::MemoryMib, Dimension::DiskGib, Dimension::Instances];

fn vector(amount: &Amount) -> Vector {
    DIMENSIONS.map(|dimension| i64::try_from(amount.get(dimension)).unwrap_or(i64::MAX))
}

fn add(to: &mut Vector, amount: Vector, sign: i64) {
    to.iter_mut().zip(amount).for_each(|(slot, n)| *slot += sign * n);
}

#[derive(Debug)]
struct Known {
    entry: Arc<Entry>,
    /// Its effects count: it is neither lost with its author's disk nor beyond a cut.
    counts: bool,
}

#[derive(Debug, Default)]
struct Pool {
    capacity: Vector,
    live: Vector,
    host: Option<HostId>,
    confirmed: bool,
    /// Declarations that the host is dead.
    dead: BTreeSet<EntryId>,
}

#[derive(Debug)]
struct Claim {
    pool: PoolId,
    amount: Vector,
    released: bool,
    counts: bool,
}

/// What one replica has on its disk, as the oracle adds it up.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// Who it is.
    pub replica: ReplicaId,
    frontier: HashMap<ReplicaId, Tip, BuildHasherDefault<Head>>,
    accounts: BTreeMap<(ReplicaId, PoolId), Vector>,
    /// Its disk was put back as it had been: others may hold what it lacks.
    excused: bool,
    /// Its disk is gone.
    gone: bool,
    /// What was replayed on a snapshot.
    replayed: BTreeSet<EntryId>,
}

impl Tracker {
    /// The same for a disk that lacks what its author's own may hold.
    #[must_use]
    pub fn of_copy(self) -> Self {
        Self { excused: true, ..self }
    }

    /// Whether a frontier names what it lacks.
    #[must_use]
    pub fn lacks(&self, frontier: &Frontier) -> bool {
        frontier.0.iter().any(|(author, tip)| self.number(*author) < tip.number)
    }

    fn holds(&self, entry: EntryId) -> bool {
        self.number(entry.author) >= entry.number
    }

    fn number(&self, replica: ReplicaId) -> u64 {
        self.frontier.get(&replica).map_or(0, |tip| tip.number)
    }
}

/// Ids of replicas are hashes already: their first bytes serve as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Head(u64);

impl Hasher for Head {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(head) = bytes.first_chunk() {
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(*head);
        }
    }
}

/// What names a frontier: a sum over its logs, so that one that has grown by an entry costs that one.
#[derive(Clone, Debug, Default)]
struct Named {
    frontier: Frontier,
    name: [u64; 4],
}

impl Named {
    fn add(&mut self, log: &ReplicaId, tip: &Tip, sign: fn(u64, u64) -> u64) {
        let bytes = [log.0.as_bytes().as_slice(), &tip.number.to_le_bytes(), &tip.hash.to_le_bytes()].concat();
        let hash = blake3::hash(&bytes);
        for (lane, part) in self.name.iter_mut().zip(hash.as_bytes().as_chunks().0) {
            *lane = sign(*lane, u64::from_le_bytes(*part));
        }
    }

    fn of(&mut self, frontier: &Frontier) -> [u64; 4] {
        let before = std::mem::replace(&mut self.frontier, frontier.clone());
        if before.0.is(&frontier.0) {
            return self.name;
        }
        for (log, tip, old) in frontier.0.beside(&before.0).filter(|(_, tip, old)| *old != Some(*tip)) {
            old.iter().for_each(|old| self.add(log, old, u64::wrapping_sub));
            self.add(log, tip, u64::wrapping_add);
        }
        for (log, tip, _) in before.0.beside(&frontier.0).filter(|(_, _, new)| new.is_none()) {
            self.add(log, tip, u64::wrapping_sub);
        }
        self.name
    }
}

/// The oracle.
#[derive(Debug, Default)]
pub struct Rules {
    entries: BTreeMap<EntryId, Known>,
    pools: BTreeMap<PoolId, Pool>,
    claims: BTreeMap<ClaimId, Claim>,
    cuts: BTreeMap<ReplicaId, u64>,
    nodes: Vec<Tracker>,
    index: BTreeMap<ReplicaId, usize>,
    digests: BTreeMap<[u64; 4], Digest>,
    /// The frontier that each node has shown last.
    named: Vec<Named>,
    /// What agents have said is gone for good.
    refused: BTreeSet<(HostId, ClaimId)>,
    /// What runs where, under which claim.
    domains: BTreeMap<(Uuid, HostId), (ClaimId, Vector)>,
    liar: Option<Liar>,
    /// Nodes whose state is the liar's invention.
    deceived: BTreeSet<usize>,
    addresses: Addresses,
    capacities: BTreeMap<HostId, Vector>,
    used: BTreeMap<HostId, Vector>,
    deleted: BTreeMap<Uuid, BTreeSet<EntryId>>,
    /// By which entry servers were created.
    created: BTreeMap<Uuid, EntryId>,
    acknowledged: BTreeMap<EntryId, Tip>,
}

impl Rules {
    /// A replica with an empty disk, or with what its sponsor's snapshot holds.
    pub fn new_node(&mut self, replica: ReplicaId, sponsor: Option<usize>) {
        let like = sponsor.and_then(|at| self.nodes.get(at)).cloned();
        let (frontier, accounts) = like.map(|like| (like.frontier, like.accounts)).unwrap_or_default();
        self.index.insert(replica, self.nodes.len());
        self.nodes.push(Tracker {
            replica,
            frontier,
            accounts,
            excused: false,
            gone: false,
            replayed: BTreeSet::new(),
        });
    }

    /// A newcomer got its snapshot.
    pub fn took_snapshot(&mut self, node: usize, sponsor: usize) {
        let Some(like) = self.nodes.get(sponsor).cloned() else { return };
        if let Some(tracker) = self.nodes.get_mut(node) {
            tracker.frontier = like.frontier;
            tracker.accounts = like.accounts;
        }
    }

    /// What a node's disk holds, to be put back with an old copy of it.
    #[must_use]
    pub fn tracker(&self, node: usize) -> Option<Tracker> {
        self.nodes.get(node).cloned()
    }

    /// Whether one of these nodes holds everything that a node has written.
    #[must_use]
    pub fn is_held_by(&self, node: usize, others: &[usize]) -> bool {
        let author = self.replica(node);
        let number = |at: usize| self.nodes.get(at).map_or(0, |tracker| tracker.number(author));
        others.iter().any(|at| *at != node && number(*at) >= number(node))
    }

    /// How far a node's own log goes on its disk.
    #[must_use]
    pub fn written(&self, node: usize) -> u64 {
        self.nodes.get(node).map_or(0, |tracker| tracker.number(tracker.replica))
    }

    /// A node has another disk, with what the oracle knew of that.
    pub fn put_in(&mut self, node: usize, tracker: Tracker) {
        if let Some(slot) = self.nodes.get_mut(node) {
            *slot = tracker;
        }
    }

    /// Takes back what an author wrote that nobody holds any more.
    fn lose(&mut self, author: ReplicaId) -> usize {
        let held = self.nodes.iter().filter(|tracker| !tracker.gone).map(|tracker| tracker.number(author)).max();
        let lost = self.later_than(author, held.unwrap_or(0));
        lost.iter().rev().for_each(|id| self.discount(*id));
        lost.len()
    }

    /// An entry is on a node's disk and visible there.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn applied(&mut self, node: usize, entry: &Arc<Entry>) -> Checked {
        let id = entry.id();
        if self.is_liar(node) {
            return Ok(());
        }
        if self.is_forked(entry) {
            return self.took_from_liar(node, entry);
        }
        // What was replayed on a snapshot comes once more.
        let is_replayed = self.nodes.get(node).is_some_and(|tracker| tracker.replayed.contains(&id));
        if !is_replayed {
            self.check_order(node, entry)?;
        }
        self.meet(node, entry)?;
        if is_replayed {
            return Ok(());
        }
        let own = self.nodes.get(node).is_some_and(|tracker| tracker.replica == id.author);
        // What two branches spent of one account is a debt, which is not reckoned here.
        let lied = self.liar.is_some();
        let Self { nodes, claims, pools, entries, cuts, .. } = self;
        let Some(tracker) = nodes.get_mut(node) else { return Ok(()) };
        tracker.frontier.insert(id.author, entry.tip());
        for (index, op) in entry.header.ledger.iter().enumerate() {
            account(tracker, &Books { claims, pools, entries, cuts }, id, index, op);
            let pool = pool_of(id, index, op, claims);
            if let LedgerOp::Claim { pool, .. } = op
                && own
                && let Some(death) = pools.get(pool).and_then(|pool| pool.dead.iter().find(|e| tracker.holds(**e)))
            {
                let how = format!("entry {id} claims of a host that it had seen declared dead by {death}");
                return Err(Broken::new(Rule::HostTruth, how));
            }
            let left = pool.and_then(|pool| tracker.accounts.get(&(id.author, pool)));
            // What lies beyond the cut is void: claims of it are not known here, nor what their release gives back.
            let beyond = cuts.get(&id.author).is_some_and(|cut| id.number > *cut);
            if own && !lied && !beyond && left.is_some_and(|left| left.iter().any(|n| *n < 0)) {
                return Err(Broken::new(
                    Rule::Authority,
                    format!("entry {id} spends rights that its author lacks: {op:?}"),
                ));
            }
        }
        Ok(())
    }

    fn check_order(&self, node: usize, entry: &Entry) -> Checked {
        let id = entry.id();
        let Some(tracker) = self.nodes.get(node) else { return Ok(()) };
        if tracker.number(id.author) + 1 != id.number {
            let held = tracker.number(id.author);
            return Err(Broken::new(Rule::CausalOrder, format!("node {node} shows entry {id} after {held}")));
        }
        let is_lacking =
            |(replica, tip): &&(ReplicaId, Tip)| tracker.number(*replica) < tip.number && !self.is_liars(*replica);
        let lacking = entry.header.seen.iter().find(is_lacking);
        match lacking {
            Some((replica, tip)) => {
                let past = EntryId { author: *replica, number: tip.number };
                Err(Broken::new(Rule::CausalOrder, format!("node {node} shows entry {id} without {past} of its past")))
            }
            None => Ok(()),
        }
    }

    /// Takes up what an entry does, when it is seen for the first time.
    fn meet(&mut self, node: usize, entry: &Arc<Entry>) -> Checked {
        let id = entry.id();
        let author = self.index.get(&id.author).and_then(|at| self.nodes.get(*at));
        let excused = author.is_some_and(|tracker| tracker.excused);
        let unflushed = author
            .is_some_and(|tracker| tracker.replica != self.replica(node) && tracker.number(id.author) < id.number);
        let beyond = self.cuts.get(&id.author).is_some_and(|cut| id.number > *cut);
        // Of one that is retired the disk may have let go what is void, with a snapshot in place of its state.
        if unflushed && !excused && !beyond {
            let how = format!("node {node} has entry {id}, which is not on its author's disk");
            return Err(Broken::new(Rule::AcknowledgedIsDurable, how));
        }
        match self.entries.get_mut(&id) {
            None => {
                self.entries.insert(id, Known { entry: entry.clone(), counts: !beyond });
                if beyond { Ok(()) } else { self.count(entry) }
            }
            Some(known) if known.entry.hash() != entry.hash() => {
                Err(Broken::new(Rule::Authority, format!("entry {id} exists twice")))
            }
            // It was thought to be lost with a disk, and was on its way.
            Some(known) if !known.counts && !beyond => {
                known.counts = true;
                self.count(entry)
            }
            Some(_) => Ok(()),
        }
    }

    fn replica(&self, node: usize) -> ReplicaId {
        self.nodes.get(node).map_or(ReplicaId(Uuid::nil()), |tracker| tracker.replica)
    }

    /// Adds what an entry does to the union.
    fn count(&mut self, entry: &Entry) -> Checked {
        let id = entry.id();
        let servers = entry.header.created.iter().filter(|created| created.record.kind == Kind::Server);
        self.created.extend(servers.map(|created| (created.record.id, id)));
        for record in &entry.header.deleted {
            self.deleted.entry(record.id).or_default().insert(id);
        }
        check_atomic(entry)?;
        for (index, op) in entry.header.ledger.iter().enumerate() {
            self.count_op(id, index, op)?;
        }
        Ok(())
    }

    fn count_op(&mut self, id: EntryId, index: usize, op: &LedgerOp) -> Checked {
        if pool_of(id, index, op, &self.claims).is_some_and(|pool| self.is_liars_pool(pool)) {
            return Ok(());
        }
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.count_addresses(ClaimId { entry: id, index }, op)?;
        let touched = match op {
            LedgerOp::Mint { subject, amount, confirmed } => {
                let pool = PoolId { entry: id, index };
                let row = self.pools.entry(pool).or_default();
                add(&mut row.capacity, vector(amount), 1);
                row.confirmed = *confirmed;
                if let Subject::Host(host) = subject {
                    row.host = Some(host.host);
                }
                pool
            }
            LedgerOp::Grow { pool, amount } => {
                add(&mut self.pools.entry(*pool).or_default().capacity, vector(amount), 1);
                *pool
            }
            LedgerOp::Burn { pool, amount } => {
                add(&mut self.pools.entry(*pool).or_default().capacity, vector(amount), -1);
                *pool
            }
            LedgerOp::Claim { pool, amount, .. } => {
                let amount = vector(amount);
                add(&mut self.pools.entry(*pool).or_default().live, amount, 1);
                let claim = ClaimId { entry: id, index };
                let row = self.claims.entry(claim);
                row.or_insert(Claim { pool: *pool, amount, released: false, counts: true }).counts = true;
                *pool
            }
            LedgerOp::Release { claim } if self.is_unreckoned(*claim) => return Ok(()),
            LedgerOp::Release { claim } => self.count_release(id, *claim)?,
            LedgerOp::DeclareDead { pool, .. } => {
                self.pools.entry(*pool).or_default().dead.insert(id);
                return Ok(());
            }
            LedgerOp::Grant { pool, to, amount } => {
                self.gave(*pool, *to, vector(amount));
                return Ok(());
            }
            LedgerOp::Confirm { .. } | LedgerOp::Inherit { .. } => return Ok(()),
        };
        let Some(leeway) = self.leeway(touched) else { return Ok(()) };
        let fits = |pool: &Pool| {
            let mut room = pool.capacity;
            add(&mut room, leeway, 1);
            pool.live.iter().zip(room).all(|(live, room)| *live <= room)
        };
        match self.pools.get(&touched).filter(|pool| !fits(pool)) {
            Some(pool) => {
                let how =
                    format!("after entry {id}, pool {touched} has claims of {:?} on {:?}", pool.live, pool.capacity);
                Err(Broken::new(Rule::NoDoubleBooking, how))
            }
            None => Ok(()),
        }
    }

    fn count_release(&mut self, id: EntryId, claim: ClaimId) -> Result<PoolId, Broken> {
        let Some(row) = self.claims.get_mut(&claim) else {
            return Err(Broken::new(Rule::Authority, format!("entry {id} releases claim {claim}, which is not known")));
        };
        if row.released {
            return Err(Broken::new(Rule::NoDoubleBooking, format!("entry {id} releases claim {claim} once more")));
        }
        let acts = claim.entry.author == id.author || self.cuts.contains_key(&claim.entry.author);
        if !acts {
            return Err(Broken::new(Rule::Authority, format!("entry {id} releases claim {claim}, which is another's")));
        }
        row.released = true;
        let (pool, amount) = (row.pool, row.amount);
        let slot = self.pools.entry(pool).or_default();
        add(&mut slot.live, amount, -1);
        if slot.host.is_some_and(|host| !self.refused.contains(&(host, claim))) && slot.dead.is_empty() {
            let how = format!("entry {id} releases claim {claim}, and its agent may still start it");
            return Err(Broken::new(Rule::HostTruth, how));
        }
        Ok(pool)
    }

    /// Takes back what an entry did: it is lost, or beyond a cut.
    fn discount(&mut self, id: EntryId) {
        let Some(known) = self.entries.get_mut(&id).filter(|known| known.counts) else { return };
        known.counts = false;
        let entry = known.entry.clone();
        for (index, op) in entry.header.ledger.iter().enumerate().rev() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            match op {
                LedgerOp::Mint { amount, .. } => {
                    let pool = PoolId { entry: id, index };
                    add(&mut self.pools.entry(pool).or_default().capacity, vector(amount), -1);
                }
                LedgerOp::Grow { pool, amount } => {
                    add(&mut self.pools.entry(*pool).or_default().capacity, vector(amount), -1);
                }
                LedgerOp::Burn { pool, amount } => {
                    add(&mut self.pools.entry(*pool).or_default().capacity, vector(amount), 1);
                }
                LedgerOp::Claim { .. } if self.has_liar(id.author) => {}
                LedgerOp::Claim { pool, amount, .. } => {
                    add(&mut self.pools.entry(*pool).or_default().live, vector(amount), -1);
                    self.free_addresses(ClaimId { entry: id, index });
                    if let Some(claim) = self.claims.get_mut(&ClaimId { entry: id, index }) {
                        claim.counts = false;
                    }
                }
                LedgerOp::Release { claim } if self.is_unreckoned(*claim) => {}
                LedgerOp::Release { claim } => {
                    if let Some(row) = self.claims.get_mut(claim) {
                        row.released = false;
                        let claim = *claim;
                        add(&mut self.pools.entry(row.pool).or_default().live, row.amount, 1);
                        self.retake_addresses(claim);
                    }
                }
                LedgerOp::DeclareDead { pool, .. } => {
                    self.pools.entry(*pool).or_default().dead.remove(&id);
                }
                LedgerOp::Grant { .. } | LedgerOp::Confirm { .. } | LedgerOp::Inherit { .. } => {}
            }
        }
    }

    /// A disk is lost, with what nobody else holds. Says how many entries that were.
    pub fn lost_disk(&mut self, node: usize) -> usize {
        let Some(tracker) = self.nodes.get_mut(node) else { return 0 };
        tracker.gone = true;
        let author = tracker.replica;
        self.lose(author)
    }

    /// What lies beyond a cut does not count, nor does whom it admitted: nobody else takes up what that writes.
    fn void(&mut self, author: ReplicaId, cut: u64) {
        for id in self.later_than(author, cut).into_iter().rev() {
            self.discount(id);
            let admitted: Vec<ReplicaId> = self.entries.get(&id).into_iter().flat_map(admits).collect();
            for newcomer in admitted {
                let again = |known: &Known| known.counts && admits(known).any(|other| other == newcomer);
                if !self.entries.values().any(again) && self.cuts.insert(newcomer, 0).is_none() {
                    self.void(newcomer, 0);
                }
            }
        }
    }

    fn later_than(&self, author: ReplicaId, number: u64) -> Vec<EntryId> {
        let from = EntryId { author, number: number + 1 };
        self.entries.range(from..).map(|(id, _)| *id).take_while(|id| id.author == author).collect()
    }

    /// A view was published: what it shows must be what every replica with that frontier shows.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn published(&mut self, node: usize, view: &View, pools: &[PoolId]) -> Checked {
        if self.is_liar(node) {
            return Ok(());
        }
        if self.named.len() <= node {
            self.named.resize_with(node + 1, Named::default);
        }
        let Some(name) = self.named.get_mut(node).map(|named| named.of(view.frontier())) else { return Ok(()) };
        let digest = view.digest();
        if *self.digests.entry(name).or_insert(digest) != digest {
            let how = format!("node {node} shows another state than others with its frontier");
            return Err(Broken::new(Rule::Convergence, how));
        }
        for id in pools {
            let Some(pool) = view.ledger().pool(*id) else { continue };
            let mut sum = vector(&pool.claimed);
            add(&mut sum, vector(&pool.burnt), 1);
            pool.accounts().for_each(|(_, free)| add(&mut sum, vector(&free), 1));
            // What was spent twice is a debt (M3).
            let mut all = vector(&pool.minted);
            add(&mut all, vector(&pool.overdraft()), 1);
            if sum != all || !addresses::is_conserved(pool) {
                let how = format!("node {node}: pool {id}: {sum:?} of {all:?}");
                return Err(Broken::new(Rule::Conservation, how));
            }
            self.check_overdraft(node, view, *id)?;
        }
        Ok(())
    }

    /// A server was looked up. What is shown is a function of the entries held: created and not deleted, as far as they say.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn looked(&self, node: usize, view: &View, server: Uuid, shown: bool, listed: bool) -> Checked {
        if self.is_liar(node) {
            return Ok(());
        }
        let holds = |entry: &&EntryId| view.frontier().holds(**entry) && !self.is_liars(entry.author);
        let created = self.created.get(&server).filter(holds);
        let deletion = self.deleted.get(&server).and_then(|by| by.iter().find(holds));
        let how = match (created, deletion) {
            (_, Some(by)) if shown => format!("server {server} is shown, though entry {by} deleted it"),
            // A deletion by a liar's branch has another name here.
            (Some(by), None) if !shown && self.liar.is_none() => {
                format!("server {server} is not shown, though entry {by} created it")
            }
            _ if !listed => format!("server {server} is shown, and its project's list lacks it"),
            _ => return Ok(()),
        };
        Err(Broken::new(Rule::CausalOrder, format!("node {node}: {how}")))
    }

    /// Takes in whom a view shows as retired, and where each is cut: what lies beyond does not count.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn cut(&mut self, node: usize, view: &View) -> Checked {
        if self.deceived.contains(&node) {
            return Ok(());
        }
        let retired = view.retired();
        for replica in retired.replicas().filter(|_| !self.is_liar(node)).collect::<Vec<_>>() {
            // Each branch has its own.
            if self.is_liars(replica) {
                continue;
            }
            let cut = retired.cut(replica).unwrap_or(0);
            let held = view.frontier().number(replica);
            // Whoever is retired as well gave no word, and takes part no more once it knows; whom nobody has admitted never did.
            let takes_part = !retired.contains(self.replica(node)) && self.cuts.get(&self.replica(node)) != Some(&0);
            if held > cut && takes_part {
                let how = format!("node {node} holds entry {held} of {replica}, which is cut at {cut}");
                return Err(Broken::new(Rule::NothingBeyondTheCut, how));
            }
            match self.cuts.insert(replica, cut) {
                None => self.void(replica, cut),
                Some(other) if other != cut => {
                    let how = format!("replica {replica} is cut at {cut} and at {other}");
                    return Err(Broken::new(Rule::Convergence, how));
                }
                Some(_) => {}
            }
        }
        self.inherits(node, retired);
        Ok(())
    }

    /// A request was answered with success: its entry must be on the disk.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn acknowledged(&mut self, node: usize, id: EntryId) -> Checked {
        if self.is_liar(node) {
            return Ok(());
        }
        let held = self.nodes.get(node).is_some_and(|tracker| tracker.number(id.author) >= id.number);
        match self.entries.get(&id).filter(|_| held) {
            Some(known) => {
                self.acknowledged.insert(id, known.entry.tip());
                Ok(())
            }
            None => {
                let how = format!("node {node} has answered for entry {id}, which is not on its disk");
                Err(Broken::new(Rule::AcknowledgedIsDurable, how))
            }
        }
    }

    /// A process has opened its disk: it must hold exactly what was flushed.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn opened(&self, node: usize, view: &View) -> Checked {
        let Some(tracker) = self.nodes.get(node).filter(|_| !self.is_liar(node)) else { return Ok(()) };
        let honest = |(log, _): &(&ReplicaId, &Tip)| !self.is_liars(**log);
        let flushed: BTreeMap<&ReplicaId, &Tip> = tracker.frontier.iter().collect();
        if view.frontier().0.iter().filter(honest).eq(flushed.iter().map(|(log, tip)| (*log, *tip)).filter(honest)) {
            return Ok(());
        }
        let how = format!("node {node} has started with {:?}, and had flushed {flushed:?}", view.frontier().0);
        Err(Broken::new(Rule::AcknowledgedIsDurable, how))
    }

    /// A claim was refused for want of rights: there must be fewer here than wanted, over all these pools each.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn short(&self, node: usize, pools: &[PoolId], wanted: &Amount) -> Checked {
        // Which addresses one holds is not reckoned here.
        let reckoned = self.liar.is_none() && wanted.get(Dimension::Addresses) == 0;
        let Some(tracker) = self.nodes.get(node).filter(|_| reckoned) else { return Ok(()) };
        let wanted = vector(wanted);
        let enough = |pool: &&PoolId| {
            let held = tracker.accounts.get(&(tracker.replica, **pool)).copied().unwrap_or_default();
            held.iter().zip(wanted).all(|(held, wanted)| *held >= wanted)
        };
        // What waits for its root's word is held, and not to be spent.
        let plain = |pool: &&PoolId| self.pools.get(pool).is_some_and(|pool| !pool.confirmed);
        match pools.iter().filter(plain).find(enough) {
            Some(pool) => {
                let how = format!("node {node} holds {wanted:?} of pool {pool}, and was refused it");
                Err(Broken::new(Rule::LocalAutonomy, how))
            }
            None => Ok(()),
        }
    }

    /// An honest replica's entry was refused.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn refused(&self, node: usize, author: Option<ReplicaId>, why: &str) -> Checked {
        Err(Broken::new(Rule::Authority, format!("node {node} refuses an entry of {author:?}: {why}")))
    }

    /// A host, and what it can take.
    pub fn host(&mut self, host: HostId, capacity: &Amount) {
        self.capacities.insert(host, vector(capacity));
    }

    /// Whether a replica's retirement has taken effect anywhere.
    pub(super) fn is_cut(&self, replica: ReplicaId) -> bool {
        self.cuts.contains_key(&replica)
    }

    /// A domain was started. `unaware`: the claim's holder was called stopped, runs on, and has not heard of it.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn started(&mut self, host: HostId, server: Uuid, claim: ClaimId, amount: &Amount, unaware: bool) -> Checked {
        let broken = |how: String| Err(Broken::new(Rule::HostTruth, how));
        let lies = |claim: &ClaimId| self.has_liar(claim.entry.author);
        let nil = HostId(Uuid::nil());
        let mut running = self.domains.range((server, nil)..).take_while(|((id, _), _)| *id == server);
        // Who places its own servers twice harms those, and nobody else's.
        let twice = running.find(|(_, (other, _))| !lies(other) && !lies(&claim)).map(|((_, host), _)| *host);
        if let Some(other) = twice {
            return broken(format!("server {server} is started on {host} and runs on {other}"));
        }
        self.domains.insert((server, host), (claim, vector(amount)));
        match self.claims.get(&claim) {
            _ if self.is_unreckoned(claim) => {}
            // An operator has said that it is stopped. It stands by its claims until it hears of that; nobody else rests on them.
            _ if unaware => {}
            None => return broken(format!("server {server} is started for claim {claim}, which is on no disk")),
            Some(_) if self.refused.contains(&(host, claim)) => {
                return broken(format!(
                    "server {server} is started for claim {claim}, which its agent had said is gone"
                ));
            }
            Some(row) if row.released => {
                return broken(format!("server {server} is started for claim {claim}, which was released"));
            }
            Some(row) if self.pools.get(&row.pool).is_some_and(|pool| !pool.dead.is_empty()) => {
                return broken(format!("server {server} is started for claim {claim}, whose host was declared dead"));
            }
            Some(_) => {}
        }
        let used = self.used.entry(host).or_default();
        add(used, vector(amount), 1);
        let capacity = self.capacities.get(&host).copied().unwrap_or_default();
        if used.iter().zip(capacity).take(3).any(|(used, capacity)| *used > capacity) {
            return broken(format!("host {host} runs {used:?} of {capacity:?}"));
        }
        Ok(())
    }

    /// A domain ended with its machine, and may be started again.
    pub fn stopped(&mut self, host: HostId, server: Uuid) {
        if let Some((_, amount)) = self.domains.remove(&(server, host)) {
            add(self.used.entry(host).or_default(), amount, -1);
        }
    }

    /// A snapshot has taken the place of a node's state: it has what that held, and what it held itself (E4).
    ///
    /// # Errors
    /// [`Broken`].
    pub fn replaced(&mut self, node: usize, of: &Tracker, before: &Frontier, view: &View, fenced: bool) -> Checked {
        let replica = self.replica(node);
        let cut = |author: ReplicaId| view.retired().contains(author);
        let is_lost = |(author, tip): &(&ReplicaId, &Tip)| {
            view.frontier().number(**author) < tip.number && !cut(**author) && !fenced && !self.is_liars(**author)
        };
        if let Some((author, tip)) = before.0.iter().find(is_lost) {
            let how = format!("node {node} has taken a snapshot, and lacks entry {} of {author} since", tip.number);
            return Err(Broken::new(Rule::AcknowledgedIsDurable, how));
        }
        let mut tracker = Tracker { replica, excused: false, gone: false, replayed: BTreeSet::new(), ..of.clone() };
        let Self { claims, pools, entries, cuts, .. } = &*self;
        while let Some(known) = self.next_of(&tracker, view.frontier()) {
            let id = known.entry.id();
            tracker.replayed.insert(id);
            tracker.frontier.insert(id.author, known.entry.tip());
            for (index, op) in known.entry.header.ledger.iter().enumerate() {
                account(&mut tracker, &Books { claims, pools, entries, cuts }, id, index, op);
            }
        }
        self.put_in(node, tracker);
        Ok(())
    }

    /// An entry that a tracker lacks of a frontier, and whose past it has.
    fn next_of(&self, tracker: &Tracker, frontier: &Frontier) -> Option<&Known> {
        frontier.0.iter().find_map(|(author, tip)| {
            let id = EntryId { author: *author, number: tracker.number(*author) + 1 };
            let known = self.entries.get(&id).filter(|_| id.number <= tip.number)?;
            // What is held of a liar's branches is not reckoned.
            let seen =
                |(replica, tip): &(ReplicaId, Tip)| tracker.number(*replica) >= tip.number || self.is_liars(*replica);
            known.entry.header.seen.iter().all(seen).then_some(known)
        })
    }

    /// An agent has it on its disk that a claim's domain is gone for good.
    pub fn gone(&mut self, host: HostId, server: Uuid, claim: ClaimId) {
        self.refused.insert((host, claim));
        if self.domains.get(&(server, host)).is_some_and(|(of, _)| *of == claim) {
            self.stopped(host, server);
        }
    }

    /// Everything is mended and quiet: every replica has everything, and nothing is left over.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn settled(&self, nodes: &[(usize, &View)]) -> Checked {
        let broken = |rule, how: String| Err(Broken::new(rule, how));
        for (node, view) in nodes {
            for (id, tip) in &self.acknowledged {
                let counts = self.entries.get(id).is_some_and(|known| known.counts);
                if counts && view.frontier().number(id.author) < tip.number {
                    return broken(Rule::AcknowledgedIsDurable, format!("entry {id} has not reached node {node}"));
                }
            }
            if !view.ledger().is_conserved() {
                return broken(Rule::Conservation, format!("node {node}: rights do not add up"));
            }
            self.check_retired(*node, view)?;
            let honest = self.honest_claims(view);
            for (id, pool) in view.ledger().pools().filter(|(id, _)| !self.is_liars_pool(**id)) {
                let live = self.pools.get(id).map(|pool| pool.live).unwrap_or_default();
                if honest.get(id).copied().unwrap_or_default() != live {
                    let how = format!("node {node}: pool {id} shows {} claimed; there are {live:?}", pool.claimed);
                    return broken(Rule::NoDoubleBooking, how);
                }
            }
            // A deletion beyond its author's cut is void.
            let counts = |id: &EntryId| self.entries.get(id).is_some_and(|known| known.counts);
            let is_deleted = |id: &Uuid| self.deleted.get(id).is_some_and(|by| by.iter().any(counts));
            let is_left = |(id, claim): &(&ClaimId, &luc_engine::ledger::Claim)| {
                is_deleted(&claim.record.id) && !self.has_liar(id.entry.author)
            };
            let left = view.ledger().claims().find(is_left);
            if let Some((id, claim)) = left {
                let how = format!("node {node}: claim {id} of deleted server {} is still held", claim.record.id);
                return broken(Rule::Convergence, how);
            }
        }
        Ok(())
    }
}

/// Whom an entry admits.
fn admits(known: &Known) -> impl Iterator<Item = ReplicaId> + '_ {
    known.entry.header.members.iter().filter_map(|op| match op {
        MemberOp::Join(member) => Some(member.replica),
        _ => None,
    })
}

/// A claim comes with its server's record, and a server with a claim on a quota and one on a host.
fn check_atomic(entry: &Entry) -> Checked {
    use luc_engine::record::Kind;
    let claims = |record| {
        let of = entry.header.ledger.iter();
        of.filter(|op| matches!(op, LedgerOp::Claim { record: r, .. } if *r == record)).count()
    };
    let servers = entry.header.created.iter().filter(|created| created.record.kind == Kind::Server);
    let torn = servers.map(|created| created.record).find(|record| claims(*record) != 2);
    let created = |id| entry.header.created.iter().any(|created| created.record == id);
    // Whoever places a server anew gives up its place in the same entry.
    let moves = entry.header.ledger.iter().any(|op| matches!(op, LedgerOp::Release { .. }));
    let stray = entry.header.ledger.iter().find_map(|op| match op {
        LedgerOp::Claim { epoch, .. } if *epoch > 1 && moves => None,
        LedgerOp::Claim { record, .. } if !created(*record) => Some(*record),
        _ => None,
    });
    match torn.or(stray) {
        Some(record) => {
            let how = format!("entry {}: server {} and its claims are not one", entry.id(), record.id);
            Err(Broken::new(Rule::Atomicity, how))
        }
        None => Ok(()),
    }
}

/// What accounts follow from, besides the entries themselves.
struct Books<'a> {
    claims: &'a BTreeMap<ClaimId, Claim>,
    pools: &'a BTreeMap<PoolId, Pool>,
    entries: &'a BTreeMap<EntryId, Known>,
    cuts: &'a BTreeMap<ReplicaId, u64>,
}

impl Books<'_> {
    /// Whether a grant counts only once the pool's root has countersigned it (A5).
    fn waits(&self, pool: PoolId, by: ReplicaId) -> bool {
        // Who acts for a root that is retired is not reckoned here.
        let is_root = pool.entry.author == by || self.cuts.contains_key(&pool.entry.author);
        !is_root && self.pools.get(&pool).is_some_and(|pool| pool.confirmed)
    }

    /// What was granted by an operation of an entry, if that counts only now.
    fn confirmed(&self, pool: PoolId, grant: EntryId, index: u32) -> Option<Vector> {
        let index = usize::try_from(index).ok()?;
        match self.entries.get(&grant)?.entry.header.ledger.get(index)? {
            // One that was given by an heir counted at once, maybe: then it counts twice here, which hides an error at most.
            LedgerOp::Grant { amount, .. } if grant.author != pool.entry.author => Some(vector(amount)),
            _ => None,
        }
    }
}

/// What an operation does to the accounts that one replica knows of.
fn account(tracker: &mut Tracker, books: &Books<'_>, id: EntryId, index: usize, op: &LedgerOp) {
    let author = id.author;
    let mut change = |replica, pool, amount: Vector, sign| {
        add(tracker.accounts.entry((replica, pool)).or_default(), amount, sign);
    };
    match op {
        LedgerOp::Mint { amount, .. } => {
            let pool = PoolId { entry: id, index: u32::try_from(index).unwrap_or(u32::MAX) };
            change(author, pool, vector(amount), 1);
        }
        LedgerOp::Grow { pool, amount } => change(author, *pool, vector(amount), 1),
        LedgerOp::Burn { pool, amount } | LedgerOp::Claim { pool, amount, .. } => {
            change(author, *pool, vector(amount), -1);
        }
        LedgerOp::Grant { pool, to, amount } => {
            change(author, *pool, vector(amount), -1);
            if !books.waits(*pool, author) {
                change(*to, *pool, vector(amount), 1);
            }
        }
        LedgerOp::Confirm { pool, to, grant, index } => {
            if let Some(amount) = books.confirmed(*pool, *grant, *index) {
                change(*to, *pool, amount, 1);
            }
        }
        LedgerOp::Release { claim } => {
            if let Some(row) = books.claims.get(claim) {
                change(author, row.pool, row.amount, 1);
            }
        }
        LedgerOp::DeclareDead { .. } => {}
        LedgerOp::Inherit { pool, from } => {
            let left = tracker.accounts.insert((*from, *pool), Vector::default()).unwrap_or_default();
            add(tracker.accounts.entry((author, *pool)).or_default(), left, 1);
        }
    }
}

fn pool_of(id: EntryId, index: usize, op: &LedgerOp, claims: &BTreeMap<ClaimId, Claim>) -> Option<PoolId> {
    match op {
        LedgerOp::Mint { .. } => Some(PoolId { entry: id, index: u32::try_from(index).ok()? }),
        LedgerOp::Grow { pool, .. }
        | LedgerOp::Burn { pool, .. }
        | LedgerOp::Grant { pool, .. }
        | LedgerOp::Claim { pool, .. }
        | LedgerOp::Confirm { pool, .. }
        | LedgerOp::Inherit { pool, .. }
        | LedgerOp::DeclareDead { pool, .. } => Some(*pool),
        LedgerOp::Release { claim } => claims.get(claim).map(|claim| claim.pool),
    }
}
