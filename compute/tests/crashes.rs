//! The agent's world against a simulated host: whatever users, guests, crashes and lost connections do in between, at
//! the end every server that is wanted runs once, every one that is not is gone with its files and its claim refused,
//! and on the way no rule was broken.
//!
//! The host keeps what a host keeps over a crash: domains, files, and what the agent had written down. A crash may hit
//! before what a plan wants written is on the disk, between that and the step, and between the step and its report.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use luc_compute::plan::{Action, Domain, Files, Memory, Plan, Rules, Seen};
use luc_compute::world::{Bound, Outcome, Refused, World};
use luc_engine::agent::{DomainState, Observation, Order, Vouched, Wanted};
use luc_engine::id::{ClaimId, EntryId, HostId, PoolId, ReplicaId};
use luc_engine::ledger::{Amount, Dimension};
use luc_engine::record::{ImageData, Power, Server, ServerFlavor, ServerImage};
use proptest::prelude::*;
use uuid::Uuid;

const SERVERS: u128 = 3;
/// Room for this many servers of the test; the last has to wait for another to go.
const ROOM: u64 = 2;

/// Where a step is cut short: before the write, before the step, before its report, or overtaken by other orders.
const OVERTAKEN: u8 = 3;

#[derive(Clone, Debug)]
enum Event {
    /// A user's wish for a server, which is created if it is not there.
    Power(u128, Power),
    SoftReboot(u128),
    HardReboot(u128),
    Delete(u128),
    /// It is placed anew, under another claim: of the old one nothing is heard any more.
    Move(u128),
    /// A replica comes that knows nothing of a server.
    Forget(u128),
    /// The same, after a step was planned and before it is begun.
    Overtaken,
    /// The orders as they were some time ago, from a replica that lags.
    Stale(usize),
    /// Carry out so many steps.
    Work(u8),
    /// The agent is killed: before the write, before the step, or before the report of the next plan.
    Crash(u8),
    /// The guest powers itself off.
    PowerOff(u128),
    /// The hypervisor process dies.
    Kill(u128),
    /// The host loses power; what the agent had not written down is gone.
    PowerLoss,
    /// libvirt goes and comes back.
    Blink,
    /// The next steps on domains fail.
    Failures(u8),
    /// The image is out of reach for so many fetches.
    OutOfReach(u8),
    /// The replica goes, and one that knows all comes.
    Reconnect,
    /// Guests stop reacting, or react again.
    Deaf(bool),
    /// Time passes, in seconds.
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let server = || 0..SERVERS;
    let power = prop_oneof![
        4 => Just(Power::Running),
        2 => Just(Power::Stopped),
        1 => Just(Power::Paused),
        1 => Just(Power::Suspended)
    ];
    prop_oneof![
        6 => (server(), power).prop_map(|(s, p)| Event::Power(s, p)),
        1 => server().prop_map(Event::SoftReboot),
        1 => server().prop_map(Event::HardReboot),
        3 => server().prop_map(Event::Delete),
        1 => server().prop_map(Event::Move),
        1 => server().prop_map(Event::Forget),
        2 => Just(Event::Overtaken),
        2 => (0..8_usize).prop_map(Event::Stale),
        8 => (1..12_u8).prop_map(Event::Work),
        5 => (0..3_u8).prop_map(Event::Crash),
        2 => server().prop_map(Event::PowerOff),
        1 => server().prop_map(Event::Kill),
        1 => Just(Event::PowerLoss),
        2 => Just(Event::Blink),
        1 => (1..5_u8).prop_map(Event::Failures),
        1 => (1..3_u8).prop_map(Event::OutOfReach),
        2 => Just(Event::Reconnect),
        1 => any::<bool>().prop_map(Event::Deaf),
        2 => (0..90_u8).prop_map(Event::Wait),
    ]
}

/// What survives a crash of the agent.
#[derive(Default)]
struct Host {
    domains: BTreeMap<Uuid, Domain>,
    files: BTreeMap<Uuid, Files>,
    memories: BTreeMap<Uuid, Memory>,
    refused: HashMap<ClaimId, Refused>,
    now: u64,
    deaf: bool,
    failures: u8,
    out_of_reach: u8,
    /// Guests that were asked to shut down or reboot, and will.
    asked: Vec<(Uuid, bool)>,
    /// Guests that ended by themselves while the agent was watching.
    ended: BTreeSet<Uuid>,
    disks: bool,
}

/// What the replica knows.
#[derive(Default)]
struct Replica {
    servers: BTreeMap<u128, (u64, Option<Server>)>,
    claims: u64,
    history: Vec<Vec<Order>>,
    observed: BTreeMap<Uuid, Observation>,
    stated: BTreeSet<ClaimId>,
}

fn pool() -> PoolId {
    PoolId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number: 0 }, index: 0 }
}

fn claim(number: u64) -> ClaimId {
    ClaimId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number }, index: 0 }
}

impl Replica {
    fn orders(&self) -> Vec<Order> {
        let unsettled = self.servers.iter().filter(|(_, (number, _))| !self.stated.contains(&claim(*number)));
        unsettled
            .map(|(id, (number, server))| {
                let wanted = match server {
                    Some(server) => Wanted::Present { server: Arc::new(server.clone()), project_name: "p".into() },
                    None => Wanted::Absent,
                };
                // Each claim is of a later placement than the one before it.
                Order {
                    server: Uuid::from_u128(*id),
                    claim: claim(*number),
                    pool: pool(),
                    epoch: *number,
                    wanted,
                    vouched: Vouched::Yes,
                }
            })
            .collect()
    }

    fn change(&mut self, id: u128, change: impl FnOnce(&mut Server)) {
        if let Some((_, Some(server))) = self.servers.get_mut(&id) {
            change(server);
        }
    }
}

struct Run {
    host: Host,
    replica: Replica,
    world: World,
    /// Orders that this run of the agent was given, and not lost with a full list.
    live: BTreeMap<Uuid, Order>,
    waiting: Vec<String>,
}

fn rules(disks: bool) -> Rules {
    let host = HostId(Uuid::from_u128(5));
    Rules { host, incarnation: 1, disks, shutdown_timeout: 60_000, shutdown_repeat: 10_000 }
}

fn new_server() -> Server {
    let flavor = ServerFlavor { vcpus: 1, ram_mib: 1, ..ServerFlavor::default() };
    let data = ImageData { blob: "b10b".into(), ..ImageData::default() };
    let image = Some(ServerImage { disk_format: "raw".into(), data, ..ServerImage::default() });
    Server { flavor, image, ..Server::default() }
}

impl Host {
    fn boot(&self) -> World {
        let capacity: Amount = [(Dimension::Vcpus, ROOM), (Dimension::MemoryMib, 100)].into_iter().collect();
        let mut world = World::new(
            rules(self.disks),
            capacity,
            Bound { pool: Some(pool()), dead: false },
            self.memories.clone(),
            self.refused.clone(),
            &self.files,
        );
        world.seen_all(0, self.list());
        world
    }

    fn list(&self) -> BTreeMap<Uuid, Seen> {
        self.domains.iter().map(|(id, domain)| (*id, Seen::Here(domain.clone()))).collect()
    }

    fn look(&self, server: Uuid) -> Seen {
        self.domains.get(&server).map_or(Seen::Missing, |domain| Seen::Here(domain.clone()))
    }

    fn state(&mut self, server: Uuid, from: &[DomainState], to: DomainState) -> Outcome {
        match self.domains.get_mut(&server) {
            Some(domain) if from.contains(&domain.state) => {
                domain.state = to;
                Outcome::Done
            }
            other => Outcome::Failed(format!("not possible: {other:?}")),
        }
    }

    /// What libvirt and the file system do.
    fn act(&mut self, server: Uuid, action: &Action, order: Option<&Order>) -> Outcome {
        use DomainState::{Crashed, Paused, Running, Saved, Shutoff};
        if self.failures > 0 {
            self.failures -= 1;
            return Outcome::Later("bad luck".into());
        }
        if matches!(action, Action::Start { .. } | Action::Destroy | Action::Reset) {
            // A guest that begins anew was asked nothing.
            self.asked.retain(|(asked, _)| *asked != server);
        }
        let files = self.files.entry(server).or_default();
        match action {
            Action::FetchImage => unreachable!("not a step"),
            Action::MakeDisks => {
                assert!(!files.disks, "a disk is made over another");
                (files.any, files.disks) = (true, true);
                Outcome::Done
            }
            Action::MakeDrive => {
                (files.any, files.drive) = (true, true);
                Outcome::Done
            }
            Action::Define => {
                assert!(!self.disks || (files.disks && files.drive), "defined without its files");
                let order = order.unwrap();
                let domain = Domain { state: Shutoff, claim: order.claim, epoch: order.epoch, size: (1, 1) };
                assert!(self.domains.insert(server, domain).is_none(), "defined twice");
                Outcome::Done
            }
            Action::Label => {
                let order = order.unwrap();
                let domain = self.domains.get_mut(&server).unwrap();
                (domain.claim, domain.epoch) = (order.claim, order.epoch);
                Outcome::Done
            }
            Action::Start { paused, fresh } => {
                let from: &[_] = if *fresh { &[Shutoff, Crashed, Saved] } else { &[Shutoff, Crashed] };
                self.state(server, from, if *paused { Paused } else { Running })
            }
            Action::Restore => self.state(server, &[Saved], Running),
            Action::Shutdown | Action::Reboot => {
                if !self.deaf {
                    self.asked.push((server, *action == Action::Reboot));
                }
                self.state(server, &[Running], Running)
            }
            Action::Destroy => self.state(server, &[Running, Paused], Shutoff),
            Action::Suspend => self.state(server, &[Running], Paused),
            Action::Resume => self.state(server, &[Paused], Running),
            Action::ManagedSave => self.state(server, &[Running, Paused], Saved),
            Action::Reset => self.state(server, &[Running, Paused], self.domains[&server].state),
            Action::Undefine => {
                let domain = self.domains.remove(&server).unwrap();
                assert!(!matches!(domain.state, Running | Paused), "undefined while it ran");
                Outcome::Done
            }
            Action::RemoveFiles => {
                self.files.remove(&server);
                Outcome::Done
            }
        }
    }
}

impl Run {
    fn new(disks: bool) -> Self {
        let host = Host { disks, ..Host::default() };
        let world = host.boot();
        let mut run = Self { host, replica: Replica::default(), world, live: BTreeMap::new(), waiting: Vec::new() };
        run.reconnect();
        run
    }

    fn forget(&mut self, server: Uuid) {
        let others = self.replica.orders().into_iter().filter(|order| order.server != server).collect();
        self.give(others);
    }

    fn reconnect(&mut self) {
        let observations: Vec<_> = self.world.observations().cloned().collect();
        for new in observations {
            let newer = self.replica.observed.get(&new.server).is_none_or(|old| old.order() < new.order());
            if newer {
                self.replica.observed.insert(new.server, new);
            }
        }
        let orders = self.replica.orders();
        self.give(orders);
        for claim in self.world.unheld() {
            self.stated(claim);
        }
    }

    fn give(&mut self, orders: Vec<Order>) {
        self.live = orders.iter().map(|order| (order.server, order.clone())).collect();
        for claim in self.world.orders(orders) {
            self.restate(claim);
        }
    }

    fn restate(&mut self, claim: ClaimId) {
        let refused = self.world.refusal(claim).unwrap();
        self.host.refused.entry(claim).or_insert(refused);
        self.stated(claim);
    }

    /// The rule of statements.
    fn stated(&mut self, claim: ClaimId) {
        let refused = self.host.refused.get(&claim).expect("stated before the refusal was durable");
        let server = refused.server;
        let domain = self.host.domains.get(&server).filter(|domain| domain.claim == claim);
        assert!(domain.is_none(), "stated while its domain was there");
        self.replica.stated.insert(claim);
    }

    fn ordered(&mut self, id: u128) {
        let order = self.replica.orders().into_iter().find(|order| order.server == Uuid::from_u128(id));
        if let Some(order) = order {
            self.live.insert(order.server, order.clone());
            if let Some(claim) = self.world.order(order) {
                self.restate(claim);
            }
        }
    }

    fn crash(&mut self) {
        // The agent's clock begins with it.
        self.host.now = 0;
        self.world = self.host.boot();
        self.live.clear();
        self.waiting.clear();
        self.reconnect();
    }

    fn seen(&mut self, server: Uuid) {
        let seen = self.host.look(server);
        self.world.seen(server, seen);
    }

    /// One plan, cut short by a crash at a point from 0 to 2, or carried out.
    fn step(&mut self, cut: Option<u8>) -> bool {
        let Some((server, plan)) = self.world.next(self.host.now, self.host.now) else { return false };
        if cut == Some(0) {
            self.crash();
            return true;
        }
        self.write(server, &plan);
        if cut == Some(1) {
            self.crash();
            return true;
        }
        if let Some(observation) = &plan.tell {
            let durable = self.host.memories.get(&server).and_then(|memory| memory.observed.as_ref());
            assert_eq!(durable, Some(observation), "told before it was durable");
            let older = self.replica.observed.insert(server, observation.clone());
            assert!(older.is_none_or(|older| older.order() < observation.order()), "told backwards");
        }
        if let Some(claim) = plan.refuse {
            assert!(!self.host.domains.contains_key(&server), "refused before it was gone");
            assert!(!self.host.files.get(&server).is_some_and(|files| files.any), "refused before its files were gone");
            self.stated(claim);
        }
        let Some(action) = plan.action else { return true };
        if cut == Some(OVERTAKEN) {
            self.forget(server);
        }
        if !self.world.confirm(server) {
            return true;
        }
        if action == Action::FetchImage {
            self.waiting.push("b10b.raw".into());
            return true;
        }
        self.check(server, &action);
        let order = self.world.order_of(server).cloned();
        let outcome = self.host.act(server, &action, order.as_ref());
        if cut == Some(2) {
            self.crash();
            return true;
        }
        self.world.files(server, self.host.files.get(&server).copied().unwrap_or_default());
        self.world.finished(server, outcome, self.host.now, 7);
        self.seen(server);
        true
    }

    fn write(&mut self, server: Uuid, plan: &Plan) {
        if let Some(memory) = &plan.remember {
            if let Some(old) = self.host.memories.get(&server) {
                assert!(old.epoch <= memory.epoch, "an epoch went back");
            }
            self.host.memories.insert(server, memory.clone());
        }
        if let Some(claim) = plan.refuse {
            self.host.memories.remove(&server);
            self.host.refused.insert(claim, self.world.refusal(claim).unwrap());
        }
        if plan.remember.is_some() || plan.refuse.is_some() {
            self.world.written(server);
        }
    }

    /// The rules of starting.
    fn check(&self, server: Uuid, action: &Action) {
        if matches!(action, Action::Undefine | Action::RemoveFiles) {
            let memory = self.host.memories.get(&server);
            assert!(memory.is_some_and(|memory| memory.removing.is_some()), "removed before that was written down");
        }
        if !matches!(action, Action::Start { .. } | Action::Restore | Action::Resume | Action::Define) {
            return;
        }
        let order = self.live.get(&server).expect("started without a live order");
        assert!(matches!(order.wanted, Wanted::Present { .. }), "started though it is to go");
        assert!(!self.host.refused.contains_key(&order.claim), "started for a refused claim");
        assert!(!self.replica.stated.contains(&order.claim), "started for a claim that was stated");
        let memory = &self.host.memories[&server];
        assert_eq!((memory.claim, memory.epoch), (order.claim, order.epoch), "started before that was written down");
        assert!(memory.removing.is_none(), "started while being removed");
        if matches!(action, Action::Start { .. } | Action::Restore) {
            let others = self.host.domains.iter().filter(|(id, domain)| {
                **id != server && matches!(domain.state, DomainState::Running | DomainState::Paused)
            });
            assert!(u64::try_from(others.count()).unwrap() < ROOM, "the host is full");
        }
    }

    fn guests_react(&mut self) {
        for (server, reboot) in std::mem::take(&mut self.host.asked) {
            if self.host.domains.get(&server).is_some_and(|domain| domain.state == DomainState::Running) {
                if reboot {
                    self.world.rebooted(server);
                } else {
                    self.host.domains.get_mut(&server).unwrap().state = DomainState::Shutoff;
                    self.seen(server);
                }
            }
        }
    }

    fn images_come(&mut self) {
        for base in std::mem::take(&mut self.waiting) {
            let reach = self.host.out_of_reach == 0;
            self.host.out_of_reach = self.host.out_of_reach.saturating_sub(1);
            let outcome = if reach { Outcome::Done } else { Outcome::Later("lyon is out of reach".into()) };
            self.world.fetched(&base, &outcome, self.host.now, 7);
        }
    }

    fn happens(&mut self, event: Event) {
        self.replica.history.push(self.replica.orders());
        match event {
            Event::Power(id, power) => {
                let settled = |(number, server): &(u64, Option<Server>)| {
                    server.is_none() && self.replica.stated.contains(&claim(*number))
                };
                // A server that is gone comes back under a new claim, as after a move away and back.
                if self.replica.servers.get(&id).is_none_or(settled) {
                    self.replica.claims += 1;
                    self.replica.servers.insert(id, (self.replica.claims, Some(new_server())));
                }
                self.replica
                    .change(id, |server| (server.power, server.power_changes) = (power, server.power_changes + 1));
                self.host.ended.remove(&Uuid::from_u128(id));
                self.ordered(id);
            }
            Event::SoftReboot(id) => {
                self.replica.change(id, |server| server.soft_reboots += 1);
                self.ordered(id);
            }
            Event::HardReboot(id) => {
                self.replica.change(id, |server| server.hard_reboots += 1);
                self.ordered(id);
            }
            Event::Delete(id) => {
                if let Some((_, server)) = self.replica.servers.get_mut(&id) {
                    *server = None;
                }
                self.ordered(id);
            }
            Event::Move(id) => {
                if let Some((number, Some(_))) = self.replica.servers.get_mut(&id) {
                    self.replica.claims += 1;
                    *number = self.replica.claims;
                }
                self.ordered(id);
            }
            Event::Forget(id) => self.forget(Uuid::from_u128(id)),
            Event::Overtaken => {
                self.step(Some(OVERTAKEN));
            }
            Event::Stale(back) => {
                let history = &self.replica.history;
                let orders = history[history.len().saturating_sub(back + 1)].clone();
                for order in orders {
                    // Orders of one replica come in order; an older one comes from another, as a list or by itself.
                    if let Some(claim) = self.world.order(order.clone()) {
                        self.restate(claim);
                    } else if self.world.order_of(order.server) == Some(&order) {
                        self.live.insert(order.server, order);
                    }
                }
            }
            Event::Work(steps) => {
                for _ in 0..steps {
                    self.step(None);
                }
                self.guests_react();
                self.images_come();
            }
            Event::Crash(at) => {
                if !self.step(Some(at)) {
                    self.crash();
                }
            }
            Event::PowerOff(id) => self.ends(id, DomainState::Shutoff),
            Event::Kill(id) => self.ends(id, DomainState::Crashed),
            Event::PowerLoss => {
                self.host.asked.clear();
                for domain in self.host.domains.values_mut() {
                    if matches!(domain.state, DomainState::Running | DomainState::Paused) {
                        domain.state = DomainState::Shutoff;
                    }
                }
                self.crash();
            }
            Event::Blink => {
                self.world.blind();
                while self.step(None) {}
                let moment = self.world.moment();
                self.world.seen_all(moment, self.host.list());
            }
            Event::Failures(count) => self.host.failures = count,
            Event::OutOfReach(count) => self.host.out_of_reach = count,
            Event::Reconnect => self.reconnect(),
            Event::Deaf(deaf) => self.host.deaf = deaf,
            Event::Wait(seconds) => self.wait(u64::from(seconds) * 1000),
        }
    }

    fn ends(&mut self, id: u128, state: DomainState) {
        let server = Uuid::from_u128(id);
        if let Some(domain) = self.host.domains.get_mut(&server)
            && domain.state == DomainState::Running
        {
            domain.state = state;
            self.host.ended.insert(server);
            self.seen(server);
        }
    }

    fn wait(&mut self, millis: u64) {
        self.host.now += millis;
        self.world.tick(self.host.now);
    }

    /// No more trouble; everything that is going on ends.
    fn settle(&mut self) {
        (self.host.failures, self.host.out_of_reach) = (0, 0);
        self.reconnect();
        for _ in 0..200 {
            while self.step(None) {}
            self.guests_react();
            self.images_come();
            self.wait(5_000);
        }
        assert!(!self.step(None), "it never comes to rest");
        self.settled();
    }

    fn settled(&self) {
        let mut wanted = BTreeSet::new();
        for order in self.replica.orders() {
            let Wanted::Present { server, .. } = &order.wanted else { panic!("{} never went", order.server) };
            wanted.insert(order.server);
            let Some(domain) = self.host.domains.get(&order.server) else {
                assert!(self.replica.servers.len() > usize::try_from(ROOM).unwrap(), "there was room for it");
                continue;
            };
            assert_eq!((domain.claim, domain.epoch), (order.claim, order.epoch));
            let seen = &self.replica.observed[&order.server];
            assert_eq!((seen.state, seen.task), (domain.state, None), "what was told is what is");
            let ended = self.host.ended.contains(&order.server);
            let met = match server.power {
                Power::Running => domain.state == DomainState::Running,
                Power::Stopped => matches!(domain.state, DomainState::Shutoff | DomainState::Crashed),
                // These do not survive every trouble: memory that was lost cannot be paused or saved.
                Power::Paused | Power::Suspended => true,
            };
            assert!(met || ended, "{:?} is wanted, and it is {:?}", server.power, domain.state);
            if server.power == Power::Running && !ended {
                assert_eq!(seen.hard_reboots, server.hard_reboots);
                assert_eq!(seen.soft_reboots, server.soft_reboots);
            }
        }
        assert!(self.host.domains.keys().all(|id| wanted.contains(id)), "a domain nobody wants");
        let files = self.host.files.iter().filter(|(_, files)| files.any);
        assert!(files.map(|(id, _)| id).all(|id| wanted.contains(id)), "files nobody wants");
        for (number, server) in self.replica.servers.values() {
            assert_eq!(server.is_none(), self.replica.stated.contains(&claim(*number)), "stated if and only if gone");
        }
        let running = self.host.domains.values().filter(|domain| domain.state == DomainState::Running).count();
        let room = usize::try_from(ROOM).unwrap();
        assert!(running <= room, "{running} run");
        let present = wanted.iter().filter(|id| self.host.domains.contains_key(id)).count();
        assert_eq!(present, wanted.len().min(room), "as many as there is room for are here");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_wishes_come_true_and_no_rule_is_broken(
        events in prop::collection::vec(event(), 1..60),
        disks in any::<bool>(),
    ) {
        let mut run = Run::new(disks);
        for event in events {
            run.happens(event);
        }
        run.settle();
    }
}

#[test]
fn a_start_that_overtakes_a_stop_leaves_the_server_running() {
    // A guest may take longer than it was given.
    for (crash, late) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut run = Run::new(true);
        run.happens(Event::Power(0, Power::Running));
        run.settle();
        run.happens(Event::Power(0, Power::Stopped));
        while run.step(None) {}
        // The guest was asked, and has not ended yet.
        run.happens(Event::Power(0, Power::Running));
        while run.step(None) {}
        if crash {
            run.crash();
            while run.step(None) {}
        }
        if late {
            run.happens(Event::Wait(61));
            while run.step(None) {}
        }
        run.guests_react();
        run.settle();
        assert_eq!(run.host.domains[&Uuid::from_u128(0)].state, DomainState::Running);
    }
}
