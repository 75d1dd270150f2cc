//! Migration (S1, S2): one server, two hosts, the replica that holds the right to place it, and all that can happen
//! to orders, agents and libvirt on the way.

use std::collections::BTreeSet;

use stateright::{Model, Property};

/// The rules, each with its broken form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// While a migration stands nobody starts the domain afresh.
    pub(crate) no_start_while_moving: bool,
    /// A claim is released with its agent's word only: the copy is gone, and is never started for this claim.
    pub(crate) with_its_word: bool,
    /// An agent obeys no lower epoch than it has seen.
    pub(crate) epochs: bool,
    /// An agent starts nothing by an order from before its boot.
    pub(crate) after_boot: bool,
    /// The word is kept on the agent's disk, and binds it.
    pub(crate) word_binds: bool,
}

pub(crate) const SOUND: Rules =
    Rules { no_start_while_moving: true, with_its_word: true, epochs: true, after_boot: true, word_binds: true };

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Domain {
    Absent,
    /// Memory is coming in.
    Incoming,
    Running,
    /// The source, after the destination has resumed.
    Paused,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Order {
    host: usize,
    boot: u8,
    epoch: u8,
    claim: u8,
    moving: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Place {
    At(usize),
    Moving { from: usize, to: usize },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    place: Place,
    epoch: u8,
    /// The live claim on each host, by number.
    claims: [Option<u8>; 2],
    last_claim: u8,
    domains: [Domain; 2],
    boots: [u8; 2],
    off: [bool; 2],
    /// The newest order that each agent has taken, since its boot or before.
    taken: [Option<Order>; 2],
    /// The claims for which each agent has said: never again.
    words: [BTreeSet<u8>; 2],
    orders: BTreeSet<Order>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Action {
    Migrate,
    /// The holder sends the wish as it is now; it may arrive late, or never.
    Send(usize),
    Take(Order),
    Start(usize),
    Begin,
    Resume,
    Abort,
    Destroy(usize),
    /// The agent says that its copy is gone for good.
    Say(usize),
    /// The holder ends the migration: this host has no copy.
    End(usize),
    /// The claim is spent by its agent's word, and nothing runs: another one.
    Renew,
    Off(usize),
    On(usize),
    /// An operator says, truly, that the host is off: the server is placed on the other.
    Evacuate,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    pub(crate) rules: Rules,
    pub(crate) epochs: u8,
    pub(crate) boots: u8,
}

impl Migration {
    fn order(state: &State, host: usize) -> Option<Order> {
        let moving = matches!(state.place, Place::Moving { .. });
        let (boot, epoch) = (state.boots[host], state.epoch);
        state.claims[host].map(|claim| Order { host, boot, epoch, claim, moving })
    }

    /// The order that an agent goes by.
    fn obeyed(&self, state: &State, host: usize) -> Option<Order> {
        state.taken[host].filter(|order| !self.rules.after_boot || order.boot == state.boots[host])
    }

    fn is_moving(&self, state: &State) -> Option<(usize, usize)> {
        let Place::Moving { from, to } = state.place else { return None };
        let told = |host| self.obeyed(state, host).is_some_and(|order| order.moving && order.epoch == state.epoch);
        (told(from) && told(to) && state.off == [false; 2]).then_some((from, to))
    }

    fn may_start(&self, state: &State, host: usize) -> bool {
        let Some(order) = self.obeyed(state, host).filter(|_| !state.off[host]) else { return false };
        let bound = self.rules.word_binds && state.words[host].contains(&order.claim);
        state.domains[host] == Domain::Absent && !bound && !(order.moving && self.rules.no_start_while_moving)
    }
}

impl Model for Migration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            place: Place::At(0),
            epoch: 1,
            claims: [Some(1), None],
            last_claim: 1,
            domains: [Domain::Absent; 2],
            boots: [0; 2],
            off: [false; 2],
            taken: [None; 2],
            words: Default::default(),
            orders: BTreeSet::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if let Place::At(_) = state.place
            && state.epoch < self.epochs
        {
            actions.push(Action::Migrate);
        }
        for host in 0..2 {
            if Self::order(state, host).is_some_and(|order| !state.orders.contains(&order)) {
                actions.push(Action::Send(host));
            }
            if self.may_start(state, host) {
                actions.push(Action::Start(host));
            }
            if state.domains[host] == Domain::Paused {
                actions.push(Action::Destroy(host));
            }
            if state.off[host] {
                actions.push(Action::On(host));
            } else if state.boots[host] < self.boots {
                actions.push(Action::Off(host));
            }
            if state.place == Place::At(host) && state.off[host] && state.epoch < self.epochs {
                actions.push(Action::Evacuate);
            }
            // Both agents may say so of a migration that failed; a host that runs it does not.
            if let Some(order) = self.obeyed(state, host)
                && order.moving
                && state.domains[host] == Domain::Absent
                && !state.off[host]
                && !state.words[host].contains(&order.claim)
            {
                actions.push(Action::Say(host));
            }
            let word = state.claims[host].is_some_and(|claim| state.words[host].contains(&claim));
            if matches!(state.place, Place::Moving { .. }) && (word || !self.rules.with_its_word) {
                actions.push(Action::End(host));
            }
            if state.place == Place::At(host) && word && state.epoch < self.epochs {
                actions.push(Action::Renew);
            }
        }
        actions.extend(state.orders.iter().map(|order| Action::Take(*order)));
        if let Some((from, to)) = self.is_moving(state)
            && state.domains[from] == Domain::Running
            && state.domains[to] == Domain::Absent
            && !(self.rules.word_binds && state.claims[to].is_some_and(|claim| state.words[to].contains(&claim)))
        {
            actions.push(Action::Begin);
        }
        if state.domains.contains(&Domain::Incoming) {
            actions.push(Action::Abort);
            if state.domains.contains(&Domain::Running) {
                actions.push(Action::Resume);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Migrate => {
                let Place::At(from) = state.place else { return None };
                state.place = Place::Moving { from, to: 1 - from };
                state.epoch += 1;
                state.last_claim += 1;
                state.claims[1 - from] = Some(state.last_claim);
            }
            Action::Send(host) => {
                state.orders.insert(Self::order(&state, host)?);
            }
            Action::Take(order) => {
                // An order may arrive again, after others.
                let seen = state.taken[order.host].map_or(0, |taken| taken.epoch);
                if state.off[order.host] {
                    return None;
                }
                if self.rules.epochs && order.epoch < seen
                    || (self.rules.after_boot && order.boot != state.boots[order.host])
                {
                    return None;
                }
                state.taken[order.host] = Some(order);
            }
            Action::Start(host) => state.domains[host] = Domain::Running,
            Action::Begin => {
                let Place::Moving { to, .. } = state.place else { return None };
                state.domains[to] = Domain::Incoming;
            }
            Action::Resume => {
                for domain in &mut state.domains {
                    *domain = match *domain {
                        Domain::Running => Domain::Paused,
                        Domain::Incoming => Domain::Running,
                        other => other,
                    };
                }
            }
            Action::Abort => {
                state.domains.iter_mut().filter(|d| **d == Domain::Incoming).for_each(|d| *d = Domain::Absent)
            }
            Action::Destroy(host) => state.domains[host] = Domain::Absent,
            Action::Say(host) => {
                let claim = state.taken[host]?.claim;
                state.words[host].insert(claim);
            }
            Action::End(host) => {
                state.claims[host] = None;
                state.place = Place::At(1 - host);
                state.epoch += 1;
            }
            Action::Renew => {
                let Place::At(host) = state.place else { return None };
                state.last_claim += 1;
                state.claims[host] = Some(state.last_claim);
                state.epoch += 1;
            }
            Action::Off(host) => {
                state.off[host] = true;
                state.domains[host] = Domain::Absent;
                // What comes in from a host that is gone ends with it.
                if state.domains[1 - host] == Domain::Incoming {
                    state.domains[1 - host] = Domain::Absent;
                }
            }
            Action::On(host) => {
                state.off[host] = false;
                state.boots[host] += 1;
            }
            Action::Evacuate => {
                let Place::At(host) = state.place else { return None };
                state.last_claim += 1;
                state.claims = [None; 2];
                state.claims[1 - host] = Some(state.last_claim);
                state.place = Place::At(1 - host);
                state.epoch += 1;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("host-truth", |_, state| {
                state.domains.iter().filter(|domain| **domain == Domain::Running).count() <= 1
            }),
            Property::<Self>::always("no domain without a claim", |_, state| {
                (0..2).all(|host| state.domains[host] == Domain::Absent || state.claims[host].is_some())
            }),
            Property::<Self>::always("a place remains", |_, state| match state.place {
                Place::At(host) => state.claims[host].is_some(),
                Place::Moving { .. } => state.claims.iter().all(Option::is_some),
            }),
            Property::<Self>::sometimes("it moves", |_, state| {
                state.place == Place::At(1) && state.domains[1] == Domain::Running
            }),
        ]
    }
}
