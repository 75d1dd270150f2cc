//! Everything an agent knows, and what follows: the pure heart of the agent.
//!
//! The driver feeds in orders, what libvirt says, and how steps ended; it takes out, server by server, the next
//! [`Plan`]. Each server has at most one step under way, and nothing new is planned for it before what is to be written
//! down for it is durable, so the driver may carry out the steps of many servers at once and write for many at once.
//!
//! Room on the host is given first come, first served, to what was let in before a restart before anything new.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use luc_engine::agent::{DomainState, Observation, Order, Orphan, Vouched, Wanted};
use luc_engine::id::{ClaimId, Millis, PoolId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::Power;
use luc_engine::schedule::fits;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::plan::{
    self, Action, Asked, Done, Failure, Files, Goal, ImageState, Intake, Memory, Plan, Rules, Seen, Situation,
};

/// Longest wait between two attempts, milliseconds.
const LONGEST_WAIT: u64 = 30_000;
/// How often a step is tried that fails for a reason of its own.
const ATTEMPTS: u32 = 3;

/// A claim that nothing will ever be started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its server.
    pub server: Uuid,
    /// The highest epoch seen of that server when it was refused.
    pub epoch: u64,
    /// A replica has made the statement durable: it is not repeated unless asked for.
    pub held: bool,
}

/// Which pool of its host an agent serves (`PROTOCOL.md`, S3). Told once, and durable before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The pool; none before any replica was met.
    pub pool: Option<PoolId>,
    /// It was declared dead (S5): nothing starts, and nothing goes on running.
    #[serde(default)]
    pub dead: bool,
}

impl Bound {
    /// Whether nothing may run under an order.
    fn fences(self, order: &Order) -> bool {
        self.dead || self.pool != Some(order.pool)
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It did not, and may later: libvirt or the image is out of reach.
    Later(String),
    /// It did not; it is tried a few times.
    Failed(String),
    /// It did not, and never will while the wish is the same.
    Hopeless(String),
}

/// What is known of one server.
#[derive(Debug, Default)]
struct Entry {
    order: Option<Order>,
    /// The claim by which its holder has stood since this agent began: until the machine is started anew, it does.
    vouched: Option<ClaimId>,
    memory: Option<Memory>,
    domain: Seen,
    watched: bool,
    files: Files,
    image: ImageState,
    asked: Option<Asked>,
    done: Done,
    failure: Option<Failure>,
    /// The step that is under way, and the goal it is for.
    busy: Option<(Action, Goal)>,
    /// What the last plan wants written is not durable yet.
    writing: bool,
    /// Counts the steps and looks that ended: a list that was begun earlier says nothing new.
    touched: u64,
    no_room: bool,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    rules: Rules,
    capacity: Amount,
    used: Amount,
    admitted: BTreeMap<Uuid, Amount>,
    servers: BTreeMap<Uuid, Entry>,
    bound: Bound,
    refused: HashMap<ClaimId, Refused>,
    /// Whose a claim is, as first ordered. A replica that forked may have given one id to the claims of two servers, in two
    /// branches of its log (M3): until they have names of their own, the first is obeyed and the other is not (S3).
    owners: HashMap<ClaimId, Uuid>,
    floors: HashMap<Uuid, u64>,
    ready: BTreeSet<Uuid>,
    wakes: BTreeSet<(u64, Uuid)>,
    clock: u64,
    /// libvirt's list is known, and what is not in it is missing.
    seeing: bool,
    /// Ids of domains that are not of this cloud.
    foreign: BTreeSet<Uuid>,
}

impl World {
    /// A world as it was written down.
    #[must_use]
    pub fn new(
        rules: Rules,
        capacity: Amount,
        bound: Bound,
        memories: BTreeMap<Uuid, Memory>,
        refused: HashMap<ClaimId, Refused>,
        files: &BTreeMap<Uuid, Files>,
    ) -> Self {
        let mut world = Self {
            rules,
            capacity,
            used: Amount::default(),
            admitted: BTreeMap::new(),
            servers: BTreeMap::new(),
            bound,
            refused: HashMap::new(),
            owners: HashMap::new(),
            floors: HashMap::new(),
            ready: BTreeSet::new(),
            wakes: BTreeSet::new(),
            clock: 0,
            seeing: false,
            foreign: BTreeSet::new(),
        };
        for (claim, refused) in refused {
            world.note_refused(claim, refused);
        }
        let mut by_age: Vec<_> = memories.into_iter().collect();
        by_age.sort_by_key(|(server, memory)| (memory.launched_at.unwrap_or(u64::MAX), *server));
        for (server, memory) in by_age {
            if !memory.amount.is_zero() {
                world.admit(server, &memory.amount);
            }
            world.owners.insert(memory.claim, server);
            let files = files.get(&server).copied().unwrap_or_default();
            world.servers.insert(server, Entry { memory: Some(memory), files, ..Entry::default() });
        }
        for (server, files) in files {
            world.servers.entry(*server).or_default().files = *files;
        }
        world
    }

    /// What this host serves.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// What this host serves from now on; it is on the disk. A pool is taken once; later it is replaced only by one that
    /// is told in its place.
    pub fn bind(&mut self, bound: Bound) {
        self.bound = bound;
        self.ready.extend(self.servers.keys());
    }

    fn note_refused(&mut self, claim: ClaimId, refused: Refused) {
        let floor = self.floors.entry(refused.server).or_default();
        *floor = refused.epoch.max(*floor);
        self.owners.insert(claim, refused.server);
        self.refused.insert(claim, refused);
    }

    /// All orders that stand, whole: what is not among them is ordered no longer.
    /// Returns the claims to state again.
    pub fn orders(&mut self, orders: Vec<Order>) -> Vec<ClaimId> {
        for (server, entry) in &mut self.servers {
            entry.order = None;
            self.ready.insert(*server);
        }
        let restate = orders.into_iter().filter_map(|order| self.order(order)).collect();
        let over: Vec<Uuid> = self.servers.keys().copied().collect();
        over.into_iter().for_each(|server| self.forget_if_over(server));
        restate
    }

    fn forget_if_over(&mut self, server: Uuid) {
        if self.servers.get(&server).is_some_and(Entry::is_over) {
            self.servers.remove(&server);
            self.release(server);
        }
    }

    /// One order. Returns its claim if that was refused before, and is to be stated again.
    pub fn order(&mut self, order: Order) -> Option<ClaimId> {
        let server = order.server;
        if self.owners.get(&order.claim).is_some_and(|owner| *owner != server) {
            return None;
        }
        let refused = self.refused.contains_key(&order.claim);
        let floor = self.floors.get(&server).copied().unwrap_or(0);
        let domain = match (self.seeing, self.foreign.contains(&server)) {
            (false, _) => Seen::Unknown,
            (true, false) => Seen::Missing,
            (true, true) => Seen::Foreign,
        };
        let entry = self.servers.entry(server).or_insert_with(|| Entry { domain, ..Entry::default() });
        // The metadata of a domain that this agent forgot says how far it had come.
        let floor = match &entry.domain {
            Seen::Here(domain) => floor.max(domain.epoch),
            _ => floor,
        };
        let fenced = self.bound.fences(&order);
        if fenced && self.bound.pool.is_none() {
            // Nobody can have spent a right to a host that serves no pool yet.
            return None;
        }
        let ours = entry.memory.as_ref().map(|memory| memory.claim);
        let ours = ours.or(match &entry.domain {
            Seen::Here(domain) => Some(domain.claim),
            _ => None,
        });
        if fenced && !refused && ours.is_some_and(|ours| ours != order.claim) {
            // What is here is here under another claim, and stays as it is.
            let epoch = entry.memory.as_ref().map_or(floor, |memory| memory.epoch);
            self.note_refused(order.claim, Refused { server, epoch, held: false });
            return Some(order.claim);
        }
        match plan::intake(&order, entry.memory.as_ref(), refused, floor) {
            Intake::Ignore => None,
            Intake::Restate => Some(order.claim),
            Intake::Refuse => {
                let epoch = entry.memory.as_ref().map_or(floor, |memory| memory.epoch);
                self.note_refused(order.claim, Refused { server, epoch, held: false });
                Some(order.claim)
            }
            Intake::Obey => {
                if let Wanted::Present { server: record, .. } = &order.wanted
                    && !fenced
                {
                    let amount = plan::amount(record);
                    let room = self.admit(server, &amount);
                    if let Some(entry) = self.servers.get_mut(&server) {
                        entry.no_room = !room;
                    }
                }
                if let Some(entry) = self.servers.get_mut(&server) {
                    let image = |order: &Order| match &order.wanted {
                        Wanted::Present { server, .. } => server.image.clone(),
                        Wanted::Absent => None,
                    };
                    if entry.order.as_ref().and_then(image) != image(&order) && entry.busy.is_none() {
                        entry.image = ImageState::Wanted;
                    }
                    self.owners.insert(order.claim, server);
                    entry.order = Some(entry.vouch(order));
                }
                self.ready.insert(server);
                None
            }
        }
    }

    /// Gives room, if there is any and it was not given before.
    fn admit(&mut self, server: Uuid, amount: &Amount) -> bool {
        if let Some(given) = self.admitted.get_mut(&server) {
            // What was found running was counted without its disk.
            let whole = given.max(amount);
            self.used = self.used.saturating_sub(given).saturating_add(&whole);
            *given = whole;
            return true;
        }
        if !fits(&self.capacity, &self.used, amount) {
            return false;
        }
        self.used = self.used.saturating_add(amount);
        self.admitted.insert(server, amount.clone());
        true
    }

    /// What already runs takes what it takes, fit or not.
    fn admit_running(&mut self, server: Uuid, size: (u64, u64)) {
        if !self.admitted.contains_key(&server) {
            let amount: Amount = [(Dimension::Vcpus, size.0), (Dimension::MemoryMib, size.1)].into_iter().collect();
            self.used = self.used.saturating_add(&amount);
            self.admitted.insert(server, amount);
        }
    }

    fn release(&mut self, server: Uuid) {
        let Some(amount) = self.admitted.remove(&server) else { return };
        self.used = self.used.saturating_sub(&amount);
        let waiting: Vec<_> = self.servers.iter().filter(|(_, entry)| entry.no_room).map(|(id, _)| *id).collect();
        for id in waiting {
            let wanted = self.servers.get(&id).and_then(|entry| entry.order.as_ref()).and_then(|order| {
                if let Wanted::Present { server, .. } = &order.wanted { Some(plan::amount(server)) } else { None }
            });
            let room = wanted.is_some_and(|amount| self.admit(id, &amount));
            if let Some(entry) = self.servers.get_mut(&id).filter(|_| room) {
                entry.no_room = false;
                self.ready.insert(id);
            }
        }
    }

    /// A moment, for [`World::seen_all`].
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.clock
    }

    /// libvirt is out of reach: what it said is worth nothing now. Nothing is stopped, nothing is told.
    pub fn blind(&mut self) {
        self.seeing = false;
        for entry in self.servers.values_mut() {
            entry.domain = Seen::Unknown;
            entry.watched = false;
        }
    }

    /// All domains there are, as listed from `moment` on.
    pub fn seen_all(&mut self, moment: u64, domains: BTreeMap<Uuid, Seen>) {
        self.seeing = true;
        self.foreign = domains.iter().filter(|(_, seen)| **seen == Seen::Foreign).map(|(id, _)| *id).collect();
        let known: Vec<Uuid> = self.servers.keys().copied().chain(domains.keys().copied()).collect();
        for server in known {
            let entry = self.servers.get(&server);
            let newer = entry.is_some_and(|entry| entry.touched > moment || entry.busy.is_some());
            if !newer {
                let seen = domains.get(&server).cloned().unwrap_or(Seen::Missing);
                // Only what is of this cloud, or is already known by its id, is of interest.
                if entry.is_some() || matches!(seen, Seen::Here(_)) {
                    self.seen(server, seen);
                }
            }
        }
    }

    /// What libvirt said of one server when it was looked at from `moment` on; worth nothing, and false, if it was
    /// touched since.
    #[must_use]
    pub fn seen_since(&mut self, moment: u64, server: Uuid, seen: Seen) -> bool {
        let newer = self.servers.get(&server).is_some_and(|entry| entry.touched > moment || entry.busy.is_some());
        if !newer {
            self.seen(server, seen);
        }
        !newer
    }

    /// Whether anything is known of a server.
    #[must_use]
    pub fn knows(&self, server: Uuid) -> bool {
        self.servers.contains_key(&server)
    }

    /// What libvirt says of one server now.
    pub fn seen(&mut self, server: Uuid, seen: Seen) {
        self.clock += 1;
        let entry = self.servers.entry(server).or_default();
        entry.touched = self.clock;
        if let Seen::Here(domain) = &seen
            && matches!(domain.state, DomainState::Running | DomainState::Paused)
        {
            entry.watched = true;
            let size = domain.size;
            self.admit_running(server, size);
        }
        if let Some(entry) = self.servers.get_mut(&server)
            && entry.domain != seen
        {
            entry.domain = seen;
            self.ready.insert(server);
        }
        self.forget_if_over(server);
    }

    /// A guest was seen to reboot.
    pub fn rebooted(&mut self, server: Uuid) {
        let Some(entry) = self.servers.get_mut(&server) else { return };
        if let Some(Asked { goal: Goal::Present { soft_reboots, power: Power::Running, .. }, .. }) = entry.asked {
            entry.done.soft_reboots = soft_reboots;
            entry.asked = None;
            self.ready.insert(server);
        }
    }

    /// Files of a server as they are now.
    pub fn files(&mut self, server: Uuid, files: Files) {
        if let Some(entry) = self.servers.get_mut(&server) {
            entry.files = files;
        }
    }

    /// How a step ended. What it changed was fed in before.
    pub fn finished(&mut self, server: Uuid, outcome: Outcome, now: u64, seed: u64) {
        self.clock += 1;
        let clock = self.clock;
        let Some(entry) = self.servers.get_mut(&server) else { return };
        entry.touched = clock;
        self.ready.insert(server);
        let Some((action, goal)) = entry.busy.take() else { return };
        if action == Action::MakeDisks && outcome != Outcome::Done {
            // Its base image may have gone.
            entry.image = ImageState::Wanted;
        }
        match outcome {
            Outcome::Done => {
                entry.failure = None;
                entry.achieved(&action, goal, now);
            }
            Outcome::Later(message) => entry.fail(goal, message, now, seed, u32::MAX),
            Outcome::Failed(message) => entry.fail(goal, message, now, seed, ATTEMPTS),
            Outcome::Hopeless(message) => entry.fail(goal, message, now, seed, 0),
        }
    }

    /// How the fetch of a base image ended, for all servers that wait for it.
    pub fn fetched(&mut self, base: &str, outcome: &Outcome, now: u64, seed: u64) {
        for (server, entry) in &mut self.servers {
            if entry.image != ImageState::Fetching || entry.base().as_deref() != Some(base) {
                continue;
            }
            self.ready.insert(*server);
            let (message, most) = match outcome {
                Outcome::Done => {
                    entry.image = ImageState::Ready;
                    entry.failure = None;
                    continue;
                }
                Outcome::Later(message) => (message, u32::MAX),
                Outcome::Failed(message) => (message, ATTEMPTS),
                Outcome::Hopeless(message) => (message, 0),
            };
            entry.image = ImageState::Wanted;
            entry.fail(entry.goal(), message.clone(), now, seed, most);
        }
    }

    /// Asked before a planned step is begun: what was planned before a commit may no longer be wanted after it. Says
    /// whether it still is; if not, the step counts as never planned.
    #[must_use]
    pub fn confirm(&mut self, server: Uuid) -> bool {
        let Some(entry) = self.servers.get_mut(&server) else { return false };
        let Some((_, goal)) = &entry.busy else { return entry.image == ImageState::Fetching };
        let removing = entry.memory.as_ref().is_some_and(|memory| memory.removing.is_some());
        let wanted = *goal == entry.goal() && (removing || entry.order.is_some() || self.bound.dead);
        if !wanted {
            entry.busy = None;
            self.ready.insert(server);
        }
        wanted
    }

    /// What was to be written for a server is durable.
    pub fn written(&mut self, server: Uuid) {
        if let Some(entry) = self.servers.get_mut(&server) {
            entry.writing = false;
            self.ready.insert(server);
        }
        self.forget_if_over(server);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        while let Some((at, server)) = self.wakes.first().copied().filter(|(at, _)| *at <= now) {
            self.wakes.remove(&(at, server));
            self.ready.insert(server);
        }
    }

    /// When to [`World::tick`] next.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// The next server that has something to do. Its step counts as begun.
    pub fn next(&mut self, now: u64, wall: Millis) -> Option<(Uuid, Plan)> {
        while let Some(server) = self.ready.pop_first() {
            let Some(entry) = self.servers.get_mut(&server) else { continue };
            if entry.busy.is_some() || entry.writing {
                continue;
            }
            let plan = plan::plan(&Situation {
                server,
                now,
                wall,
                rules: &self.rules,
                order: entry.order.as_ref(),
                memory: entry.memory.as_ref(),
                domain: &entry.domain,
                watched: entry.watched,
                files: entry.files,
                image: &entry.image,
                room: !entry.no_room,
                fenced: entry.order.as_ref().map_or(self.bound.dead, |order| self.bound.fences(order)),
                asked: entry.asked.as_ref(),
                done: entry.done,
                failure: entry.failure.as_ref(),
            });
            entry.begin(&plan);
            if let Some(claim) = plan.refuse {
                let refused = entry.refuse(server, claim);
                self.note_refused(claim, refused);
            }
            if let Some(at) = plan.wake_at {
                self.wakes.insert((at, server));
            }
            if plan != (Plan { wake_at: plan.wake_at, absorbed: plan.absorbed, ..Plan::default() }) {
                return Some((server, plan));
            }
        }
        None
    }

    /// The order that stands for a server.
    #[must_use]
    pub fn order_of(&self, server: Uuid) -> Option<&Order> {
        self.servers.get(&server)?.order.as_ref()
    }

    /// A refused claim.
    #[must_use]
    pub fn refusal(&self, claim: ClaimId) -> Option<Refused> {
        self.refused.get(&claim).copied()
    }

    /// A replica holds the statement of a claim. Says whether that is news.
    pub fn held(&mut self, claim: ClaimId) -> Option<Refused> {
        let refused = self.refused.get_mut(&claim).filter(|refused| !refused.held)?;
        refused.held = true;
        Some(*refused)
    }

    /// Claims whose statements no replica is known to hold.
    #[must_use]
    pub fn unheld(&self) -> Vec<ClaimId> {
        // One that is being written down right now is stated when that is done, and not before.
        let writing = |refused: &Refused| self.servers.get(&refused.server).is_some_and(|entry| entry.writing);
        self.refused.iter().filter(|(_, refused)| !refused.held && !writing(refused)).map(|(claim, _)| *claim).collect()
    }

    /// What was told last of each server, or was to be: a crash may have come between. A replica that knows it takes
    /// no harm, and what has changed since is told as soon as an order comes.
    pub fn observations(&self) -> impl Iterator<Item = &Observation> {
        let settled = self.servers.values().filter(|entry| !entry.writing);
        settled.filter_map(|entry| entry.memory.as_ref()?.observed.as_ref())
    }

    /// Domains of this cloud that no order names, and that are not being removed.
    #[must_use]
    pub fn orphans(&self) -> Vec<Orphan> {
        let orphan = |(server, entry): (&Uuid, &Entry)| {
            let Seen::Here(domain) = &entry.domain else { return None };
            let (mut claim, mut epoch) = (domain.claim, domain.epoch);
            if let Some(memory) = &entry.memory {
                (claim, epoch) = (memory.claim, memory.epoch);
            }
            let removing = entry.memory.as_ref().is_some_and(|memory| memory.removing.is_some());
            (entry.order.is_none() && !removing).then_some(Orphan { server: *server, claim, epoch })
        };
        self.servers.iter().filter_map(orphan).collect()
    }

    /// Whether it is known that no domain of this cloud runs, nor is about to.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let off = |entry: &Entry| match &entry.domain {
            Seen::Unknown => false,
            Seen::Missing | Seen::Foreign => true,
            Seen::Here(domain) => !matches!(domain.state, DomainState::Running | DomainState::Paused),
        };
        self.seeing && self.servers.values().all(|entry| entry.busy.is_none() && off(entry))
    }

    /// How many domains of this cloud run.
    #[must_use]
    pub fn running(&self) -> usize {
        let runs = |entry: &&Entry| matches!(&entry.domain, Seen::Here(d) if d.state == DomainState::Running);
        self.servers.values().filter(runs).count()
    }

    /// The base images that servers' disks lie over, or are to.
    #[must_use]
    pub fn bases(&self) -> BTreeSet<String> {
        let remembered = |entry: &Entry| entry.memory.as_ref().and_then(|memory| memory.base.clone());
        self.servers.values().flat_map(|entry| [entry.base(), remembered(entry)]).flatten().collect()
    }

    /// What is promised to servers here.
    #[must_use]
    pub fn used(&self) -> &Amount {
        &self.used
    }

    /// Whether a server has a step under way.
    #[must_use]
    pub fn is_busy(&self, server: Uuid) -> bool {
        self.servers.get(&server).is_some_and(|entry| entry.busy.is_some())
    }
}

impl Entry {
    /// What the holder of an order's claim has said once in this run, it has said.
    fn vouch(&mut self, order: Order) -> Order {
        if order.vouched == Vouched::Yes {
            self.vouched = Some(order.claim);
        }
        let vouched = if self.vouched == Some(order.claim) { Vouched::Yes } else { order.vouched };
        Order { vouched, ..order }
    }

    fn base(&self) -> Option<String> {
        match &self.order.as_ref()?.wanted {
            Wanted::Present { server, .. } => server.image.as_ref().map(plan::base_name),
            Wanted::Absent => None,
        }
    }

    fn goal(&self) -> Goal {
        let removing = self.memory.as_ref().is_some_and(|memory| memory.removing.is_some());
        if removing { Goal::Gone } else { self.order.as_ref().map_or(Goal::Gone, plan::goal) }
    }

    /// The plan is being carried out.
    fn begin(&mut self, plan: &Plan) {
        if plan.absorbed {
            self.done = Done::default();
        }
        if let Some(memory) = &plan.remember {
            self.memory = Some(memory.clone());
            self.writing = true;
        }
        if let Some(action) = &plan.action {
            if *action == Action::FetchImage {
                // It may take for ever, and must not keep the server from being deleted.
                self.image = ImageState::Fetching;
            } else {
                self.busy = Some((action.clone(), self.goal()));
            }
        }
    }

    fn refuse(&mut self, server: Uuid, claim: ClaimId) -> Refused {
        self.writing = true;
        let ordered = self.order.as_ref().filter(|order| order.claim == claim).map_or(0, |order| order.epoch);
        let epoch = self.memory.take().map_or(0, |memory| memory.epoch).max(ordered);
        // An order under a newer claim that came meanwhile stands.
        self.order.take_if(|order| order.claim == claim);
        self.image = ImageState::Wanted;
        self.failure = None;
        self.asked = None;
        Refused { server, epoch, held: false }
    }

    /// Nothing of it is left, and nothing is wanted.
    fn is_over(&self) -> bool {
        let nothing = self.memory.is_none() && self.order.is_none() && self.busy.is_none() && !self.writing;
        nothing && self.domain == Seen::Missing && !self.files.any
    }

    fn achieved(&mut self, action: &Action, goal: Goal, now: u64) {
        let Goal::Present { power, power_changes, soft_reboots, hard_reboots, .. } = goal else { return };
        match action {
            Action::Start { .. } => {
                // A start that succeeded was watched, even if it had ended again before anybody looked.
                self.watched = true;
                if power == Power::Running {
                    self.done = Done { wish: Some((power, power_changes)), soft_reboots, hard_reboots };
                }
                self.asked = None;
            }
            Action::Reset => {
                self.done = Done { wish: None, soft_reboots, hard_reboots };
                self.asked = None;
            }
            Action::Shutdown | Action::Reboot => {
                let first = self.asked.filter(|asked| asked.goal == goal).map_or(now, |asked| asked.first);
                self.asked = Some(Asked { goal, first, last: now });
            }
            _ => {}
        }
    }

    fn fail(&mut self, goal: Goal, message: String, now: u64, seed: u64, most: u32) {
        let attempts = self.failure.take().filter(|last| last.goal == goal).map_or(0, |last| last.attempts) + 1;
        // A removal is never given up.
        let retry = attempts < most || goal == Goal::Gone;
        let wait = (250_u64 << attempts.min(8)).min(LONGEST_WAIT);
        let retry_at = retry.then(|| now + wait / 2 + seed % (wait / 2 + 1));
        self.failure = Some(Failure { goal, message, attempts, retry_at });
    }
}
