//! A few replicas that do all that they may do, in every order: what `stateright` enumerates.
//!
//! Entries travel one at a time, from anybody alive who holds them, in any order that their pasts allow; so partitions,
//! delays, loss and duplication are all in it. What is never flushed never was (E2): an entry is on its author's disk, or is not.

use stateright::{Model, Property};

use crate::rules::{CHAINS, Entry, Ledger, Op, Past, Request, Retired, Rules, Set, World, bit, covers, each, join};

/// What the replicas of one enumeration may do.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) rules: Rules,
    /// Replicas at the start: chains 0, 1, 2 …
    pub(crate) founders: usize,
    /// Rights at the start.
    pub(crate) share: [i16; CHAINS],
    /// Votes of the founders.
    pub(crate) votes: [u8; CHAINS],
    /// How many claims each makes.
    pub(crate) claims: [u8; CHAINS],
    /// Whether each releases one of its claims.
    pub(crate) releases: Set,
    /// Grants of one right, each once.
    pub(crate) grants: Vec<(u8, u8)>,
    /// Requests, each once.
    pub(crate) requests: Vec<(u8, Request)>,
    /// Who may die, at any time.
    pub(crate) deaths: Set,
    /// Sponsors and newcomers.
    pub(crate) joins: Vec<(u8, u8)>,
    /// Somebody who may fork, and the chain of its other branch.
    pub(crate) fork: Option<(u8, u8)>,
    /// Somebody whose disk may be replaced by an older copy, and the chain that it then writes if nobody tells it.
    pub(crate) restore: Option<(u8, u8)>,
    /// Somebody who does not keep the promise of its seal.
    pub(crate) liar: Set,
    /// What has happened before anything else.
    pub(crate) after: Vec<Action>,
    /// Some retirement can take effect.
    pub(crate) decides: bool,
    /// Claims over capacity that are allowed: a forker's share.
    pub(crate) slack: i16,
}

impl Scenario {
    pub(crate) fn of(rules: Rules, founders: usize, share: &[i16]) -> Self {
        let mut all = [0; CHAINS];
        all[..share.len()].copy_from_slice(share);
        Self {
            rules,
            founders,
            share: all,
            votes: std::array::from_fn(|chain| if chain < founders { 12 } else { 0 }),
            claims: [0; CHAINS],
            releases: 0,
            grants: Vec::new(),
            requests: Vec::new(),
            deaths: 0,
            joins: Vec::new(),
            fork: None,
            restore: None,
            liar: 0,
            after: Vec::new(),
            decides: true,
            slack: 0,
        }
    }

    fn owner(&self) -> [u8; CHAINS] {
        let mut owner = std::array::from_fn(|chain| u8::try_from(chain).unwrap_or(0));
        for (replica, branch) in self.fork.iter().chain(&self.restore) {
            owner[usize::from(*branch)] = *replica;
        }
        owner
    }
}

/// Everything there is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    logs: [Vec<Entry>; CHAINS],
    /// What is on each disk.
    held: [Past; CHAINS],
    /// Processes that run.
    alive: Set,
    /// Disks that exist.
    born: Set,
    claims: [u8; CHAINS],
    releases: Set,
    grants: u8,
    requests: u8,
    joins: u8,
    /// Where the branches part: entries of the forker beyond this are one branch.
    parted: Option<u8>,
    /// The old copy of a disk.
    copy: Option<Past>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Action {
    /// The next entry of a chain.
    Take(u8, u8),
    /// The next entry of a chain, with what it rests on of those whom the taker has sealed.
    TakeWith(u8, u8),
    Write(u8, Op),
    /// Takes part for the first time, with its sponsor's state.
    Boot(u8, u8),
    Die(u8),
    Fork,
    Copy,
    Restore,
    /// Is told that others hold later entries of its own, and stops.
    Stop(u8),
}

impl Scenario {
    fn world<'a>(&'a self, state: &'a State, owner: &'a [u8; CHAINS]) -> World<'a> {
        let founders = bit(self.founders) - 1;
        let parted = state.parted.unwrap_or(0);
        World { rules: &self.rules, logs: &state.logs, owner, share: &self.share, founders, votes: &self.votes, parted }
    }

    fn is_honest(&self, chain: usize) -> bool {
        let forker = self.fork.is_some_and(|(a, b)| chain == usize::from(a) || chain == usize::from(b));
        !forker && self.liar & bit(chain) == 0
    }

    /// The chains that cannot both be held: branches of one replica.
    fn other_branch(&self, chain: usize, number: u8, state: &State) -> Option<usize> {
        let (a, b) = self.fork.or(self.restore)?;
        let (a, b) = (usize::from(a), usize::from(b));
        match state.parted {
            Some(at) if chain == a && number > at => Some(b),
            Some(_) if chain == b => Some(a),
            _ => None,
        }
    }

    /// Whether somebody holds a part of the other branch.
    fn holds_branch(&self, past: &Past, branch: usize, state: &State) -> bool {
        let trunk = self.fork.or(self.restore).map_or(CHAINS, |(a, _)| usize::from(a));
        let from = if branch == trunk { state.parted.unwrap_or(0) } else { 0 };
        past[branch] > from
    }

    /// Whether anybody alive can hand over an entry.
    fn is_offered(&self, state: &State, to: usize, (chain, number): (usize, u8)) -> bool {
        each(state.alive).any(|from| from != to && state.held[from][chain] >= number)
    }

    fn can_take(&self, world: &World<'_>, state: &State, r: usize, a: usize) -> bool {
        let held = &state.held[r];
        let number = held[a] + 1;
        let Some(entry) = state.logs[a].get(usize::from(held[a])) else { return false };
        if a == r || !covers(held, &entry.past) || !self.is_offered(state, r, (a, number)) {
            return false;
        }
        let retired = world.retired(held, r);
        if self.rules.stop_at_seal && retired.contains(a) && number > retired.cut[a] {
            return false;
        }
        let sealed = world.sealed(r, held);
        let is_liar = self.liar & bit(r) != 0;
        let branch = self.other_branch(a, number, state).is_some_and(|b| self.holds_branch(held, b, state));
        if sealed & bit(a) != 0 && self.rules.stop_at_seal && !is_liar {
            let shown = if self.rules.together { 0 } else { self.shown(world, state, r, a) };
            if number > self.limit(world, held, a).max(shown) {
                return false;
            }
        } else if branch {
            return false;
        }
        world.is_valid(a, entry.op, if self.rules.own_past { &entry.past } else { held })
            && self.keeps_promise(world, a, &entry.past)
    }

    /// The highest entry of `a` that a seal which is held covers.
    fn limit(&self, world: &World<'_>, held: &Past, a: usize) -> u8 {
        let seals = world.entries(held).into_iter().filter_map(|(.., entry)| match entry.op {
            Op::Seal(set) if set & bit(a) != 0 => Some(entry.past[a]),
            _ => None,
        });
        seals.max().unwrap_or(0)
    }

    /// The highest entry of `a` that another survivor's next entry rests on.
    fn shown(&self, world: &World<'_>, state: &State, r: usize, a: usize) -> u8 {
        let shown = (0..CHAINS).filter(|u| self.shows(world, state, r, *u));
        shown.map(|u| state.logs[u][usize::from(state.held[r][u])].past[a]).max().unwrap_or(0)
    }

    /// Whether the next entry of `u` shows what one may take that has sealed.
    fn shows(&self, world: &World<'_>, state: &State, r: usize, u: usize) -> bool {
        let held = &state.held[r];
        let sealed = world.sealed(r, held);
        let Some(entry) = state.logs[u].get(usize::from(held[u])) else { return false };
        if u == r || sealed == 0 || sealed & bit(u) != 0 || !self.rules.shown_is_enough {
            return false;
        }
        // All that it rests on may be taken, also what newcomers wrote whose admission is in it (finding 8).
        let rest = self.rules.with_all || (0..CHAINS).all(|c| entry.past[c] <= held[c] || sealed & bit(c) != 0);
        // Of a branch other than one holds it shows what it rests on, too, though it has sealed the others.
        let other = |c: &usize| self.is_other_branch(state, r, *c, entry.past[*c]);
        let branches = (0..CHAINS).filter(other).fold(0, |all, c| all | bit(c) | bit(usize::from(world.owner[c])));
        let more = each(sealed).any(|c| entry.past[c] > held[c]);
        let set = if more { sealed } else { sealed | branches };
        if branches & (bit(u) | bit(usize::from(world.owner[u]))) != 0 || self.is_other_branch(state, r, u, held[u] + 1)
        {
            return false;
        }
        let promised = self.rules.before_its_seal && world.has_sealed(u, set, held);
        let known = !self.rules.known_only || world.members(held) & bit(usize::from(world.owner[u])) != 0;
        rest && known && !promised && self.is_offered(state, r, (u, held[u] + 1))
    }

    /// Whether an entry of a chain is in another branch than is held.
    fn is_other_branch(&self, state: &State, r: usize, chain: usize, number: u8) -> bool {
        let held = &state.held[r];
        number > held[chain]
            && self.other_branch(chain, number, state).is_some_and(|other| self.holds_branch(held, other, state))
    }

    fn can_take_with(&self, world: &World<'_>, state: &State, r: usize, u: usize) -> bool {
        if !self.rules.together || !self.rules.stop_at_seal || !self.shows(world, state, r, u) {
            return false;
        }
        let (held, entry) = (&state.held[r], &state.logs[u][usize::from(state.held[r][u])]);
        let retired = world.retired(held, r);
        let more = (0..CHAINS).filter(|c| entry.past[*c] > held[*c]);
        let fine = |c: usize| {
            self.is_offered(state, r, (c, entry.past[c])) && !(retired.contains(c) && entry.past[c] > retired.cut[c])
        };
        let valid = |c: usize, e: &Entry| world.is_valid(c, e.op, &e.past) && self.keeps_promise(world, c, &e.past);
        let mut needed = more.clone().peekable();
        needed.peek().is_some()
            && more.clone().all(fine)
            && more
                .clone()
                .all(|c| state.logs[c][usize::from(held[c])..usize::from(entry.past[c])].iter().all(|e| valid(c, e)))
            && !(retired.contains(u) && held[u] + 1 > retired.cut[u])
            && valid(u, entry)
    }

    /// Finding 5: an entry that follows its author's seal rests on no more than that, or shows who else has more.
    fn keeps_promise(&self, world: &World<'_>, chain: usize, past: &Past) -> bool {
        let sealed = world.sealed(chain, past);
        if sealed == 0 || !self.rules.before_its_seal {
            return true;
        }
        let own = world.last_seal(chain, past).map_or([0; CHAINS], |seal| seal.past);
        let retired = world.retired(past, chain);
        each(sealed & !retired.set).filter(|x| past[*x] > own[*x]).all(|x| {
            world.entries(past).into_iter().any(|(u, number, entry)| {
                let before = {
                    let mut p = *past;
                    p[u] = number - 1;
                    p
                };
                u != chain && sealed & bit(u) == 0 && entry.past[x] >= past[x] && !world.has_sealed(u, sealed, &before)
            })
        })
    }

    /// What a replica writes unasked.
    fn owed(&self, world: &World<'_>, state: &State, r: usize) -> Vec<Op> {
        let held = &state.held[r];
        let mut owed = Vec::new();
        let retired = world.retired(held, r);
        if !self.is_honest(r) && self.liar & bit(r) == 0 || retired.contains(r) {
            return owed;
        }
        if let Some((a, b)) = self.fork.or(self.restore).filter(|_| state.parted.is_some()) {
            let (a, b) = (usize::from(a), usize::from(b));
            let heard = |branch: usize| each(state.alive).any(|h| self.holds_branch(&state.held[h], branch, state));
            let set = bit(a) | bit(b);
            let both =
                (self.holds_branch(held, a, state) && heard(b)) || (self.holds_branch(held, b, state) && heard(a));
            if both && r != a && r != b && world.named(held) & set == 0 {
                owed.push(Op::Retire(Request { set, heir: u8::try_from(r).unwrap_or(0), force: false }));
            }
        }
        let seal = world.owed_seal(r, held).map(Op::Seal);
        owed.extend(seal.or_else(|| world.owed_assent(r, held).map(Op::Assent)));
        for x in each(retired.set) {
            let op = Op::Inherit(u8::try_from(x).unwrap_or(0));
            if retired.heir(x) == Some(r) && world.is_valid(r, op, held) {
                owed.push(op);
            }
        }
        let decided = world.sealed(r, held) & !retired.set == 0;
        for z in each(world.members(held)).filter(|z| *z >= self.founders && *z != r && decided) {
            if !world.has_welcomed(r, z, held) && !self.joins.iter().any(|(_, n)| usize::from(*n) == r) {
                owed.push(Op::Welcome(u8::try_from(z).unwrap_or(0), self.share_of_votes(world, r, held)));
            }
        }
        owed
    }

    fn share_of_votes(&self, world: &World<'_>, r: usize, held: &Past) -> u8 {
        let n = world.members(held).count_ones().max(1);
        u8::try_from(u32::from(world.votes_of(r, held)) / n).unwrap_or(0)
    }

    fn write(state: &mut State, r: usize, op: Op) {
        let past = state.held[r];
        state.logs[r].push(Entry { op, past });
        state.held[r][r] += 1;
    }

    fn writable(&self, state: &State, world: &World<'_>, r: usize) -> bool {
        state.alive & bit(r) != 0 && !world.is_out(r, &state.held[r], &world.retired(&state.held[r], r))
    }

    fn wishes(&self, world: &World<'_>, state: &State, r: usize, out: &mut Vec<Action>) {
        let (id, held) = (u8::try_from(r).unwrap_or(0), &state.held[r]);
        let mut add = |op: Op| {
            if world.is_valid(r, op, held) {
                out.push(Action::Write(id, op));
            }
        };
        if state.claims[r] < self.claims[r] {
            add(Op::Claim);
        }
        for (at, (from, to)) in self.grants.iter().enumerate() {
            if usize::from(*from) == r && state.grants & bit(at) == 0 {
                add(Op::Grant(*to));
            }
        }
        for (at, (by, request)) in self.requests.iter().enumerate() {
            // The operator asks in this order.
            let next = self.requests[..at].iter().zip(0..).all(|((b, _), i)| b != by || state.requests & bit(i) != 0);
            if usize::from(*by) == r && state.requests & bit(at) == 0 && next {
                add(Op::Retire(*request));
            }
        }
        // Who forks says in each branch once what it has seen, and nothing else.
        let forks = self.fork.is_some_and(|(a, b)| r == usize::from(a) || r == usize::from(b));
        if forks && self.liar & bit(r) != 0 && !state.logs[r].iter().any(|entry| entry.op == Op::Note) {
            add(Op::Note);
        }
        if state.releases & bit(r) != 0 {
            let claims = world.ledger(held).claims;
            if let Some(claim) = claims.iter().next() {
                add(Op::Release(*claim));
            } else if !self.rules.release_once {
                let own = (1..=held[r]).find(|n| state.logs[r][usize::from(*n) - 1].op == Op::Claim);
                if let Some(number) = own {
                    add(Op::Release((id, number)));
                }
            }
        }
        for (at, (sponsor, newcomer)) in self.joins.iter().enumerate() {
            if usize::from(*sponsor) == r && state.joins & bit(at) == 0 {
                let decided = world.sealed(r, held) & !world.retired(held, r).set == 0;
                let n = world.members(held).count_ones() + 1;
                let votes = if decided { u32::from(world.votes_of(r, held)) / n } else { 0 };
                add(Op::Join(*newcomer, u8::try_from(votes).unwrap_or(0)));
            }
        }
    }

    /// After the links have healed: everybody does what it owes and takes what it can, and then writes once more.
    fn heal(&self, state: &State) -> State {
        let owner = self.owner();
        let mut state = state.clone();
        for round in 0..3 {
            while self.step(&mut state, &owner) {}
            if round < 2 {
                for r in each(state.alive) {
                    let world = self.world(&state, &owner);
                    if self.is_honest(r) && self.writable(&state, &world, r) {
                        Self::write(&mut state, r, Op::Note);
                    }
                }
            }
        }
        state
    }

    fn step(&self, state: &mut State, owner: &[u8; CHAINS]) -> bool {
        let mut changed = false;
        for r in each(state.alive) {
            if self.stops(state, r) {
                state.alive &= !bit(r);
                changed = true;
                continue;
            }
            let world = self.world(state, owner);
            if !self.is_honest(r) || !self.writable(state, &world, r) {
                continue;
            }
            if let Some(op) = self.owed(&world, state, r).first() {
                Self::write(state, r, *op);
                changed = true;
                continue;
            }
            for a in 0..CHAINS {
                let world = self.world(state, owner);
                if self.can_take(&world, state, r, a) {
                    state.held[r][a] += 1;
                    changed = true;
                    break;
                } else if self.can_take_with(&world, state, r, a) {
                    self.take_with(state, r, a);
                    changed = true;
                    break;
                }
            }
        }
        changed
    }

    fn take_with(&self, state: &mut State, r: usize, u: usize) {
        let past = state.logs[u][usize::from(state.held[r][u])].past;
        state.held[r] = join(&state.held[r], &past);
        state.held[r][u] += 1;
    }

    /// A restored replica meets somebody who holds what it lost.
    fn stops(&self, state: &State, r: usize) -> bool {
        self.restore.is_some_and(|(old, branch)| {
            let (old, r_is) = (usize::from(old), usize::from(branch) == r);
            r_is && each(state.alive).any(|h| h != r && state.held[h][old] > state.held[r][old])
        })
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let founders = bit(self.founders) - 1;
        let first = State {
            logs: Default::default(),
            held: Default::default(),
            alive: founders,
            born: founders,
            claims: [0; CHAINS],
            releases: self.releases,
            grants: 0,
            requests: 0,
            joins: 0,
            parted: None,
            copy: None,
        };
        let done = self.after.iter().try_fold(first, |state, action| {
            let mut may = Vec::new();
            self.actions(&state, &mut may);
            if may.contains(action) { self.next_state(&state, *action) } else { None }
        });
        // A story that cannot happen is an empty model, which retires nobody.
        done.into_iter().collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let owner = self.owner();
        let world = self.world(state, &owner);
        for r in each(state.alive) {
            let id = u8::try_from(r).unwrap_or(0);
            if self.deaths & bit(r) != 0 {
                actions.push(Action::Die(id));
            }
            if self.stops(state, r) {
                actions.push(Action::Stop(id));
            }
            if !self.writable(state, &world, r) {
                continue;
            }
            let owed = self.owed(&world, state, r);
            actions.extend(owed.iter().map(|op| Action::Write(id, *op)));
            // A newcomer seals before it takes anything.
            let is_new = r >= self.founders && self.joins.iter().any(|(_, z)| *z == id);
            if is_new && owed.iter().any(|op| matches!(op, Op::Seal(_))) {
                continue;
            }
            for a in 0..CHAINS {
                let chain = u8::try_from(a).unwrap_or(0);
                if self.can_take(&world, state, r, a) {
                    actions.push(Action::Take(id, chain));
                } else if self.can_take_with(&world, state, r, a) {
                    actions.push(Action::TakeWith(id, chain));
                }
            }
            self.wishes(&world, state, r, actions);
            for (sponsor, z) in self.joins.iter().filter(|(s, z)| *s == id && state.born & bit(usize::from(*z)) == 0) {
                if world.members(&state.held[r]) & bit(usize::from(*z)) != 0 {
                    actions.push(Action::Boot(*z, *sponsor));
                }
            }
        }
        if let Some((x, _)) = self.fork
            && state.parted.is_none()
            && state.alive & bit(usize::from(x)) != 0
        {
            actions.push(Action::Fork);
        }
        if let Some((x, _)) = self.restore
            && state.parted.is_none()
            && state.born & bit(usize::from(x)) != 0
        {
            match state.copy {
                None => actions.push(Action::Copy),
                Some(_) => actions.push(Action::Restore),
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Take(r, a) => state.held[usize::from(r)][usize::from(a)] += 1,
            Action::TakeWith(r, u) => self.take_with(&mut state, usize::from(r), usize::from(u)),
            Action::Write(r, op) => {
                let r = usize::from(r);
                match op {
                    Op::Claim => state.claims[r] += 1,
                    Op::Release(_) => state.releases &= !bit(r),
                    Op::Grant(to) => {
                        let same = |(at, g): (usize, &(u8, u8))| {
                            (usize::from(g.0) == r && g.1 == to && last.grants & bit(at) == 0).then_some(at)
                        };
                        state.grants |= bit(self.grants.iter().enumerate().find_map(same)?);
                    }
                    Op::Retire(request) => {
                        let at = self.requests.iter().position(|(by, q)| usize::from(*by) == r && *q == request);
                        state.requests |= at.map_or(0, bit);
                    }
                    Op::Join(z, _) => {
                        state.joins |= bit(self.joins.iter().position(|(s, n)| usize::from(*s) == r && *n == z)?);
                    }
                    _ => {}
                }
                Self::write(&mut state, r, op);
            }
            Action::Boot(z, sponsor) => {
                state.held[usize::from(z)] = state.held[usize::from(sponsor)];
                state.alive |= bit(usize::from(z));
                state.born |= bit(usize::from(z));
            }
            Action::Die(r) | Action::Stop(r) => state.alive &= !bit(usize::from(r)),
            Action::Fork => {
                let (x, branch) = self.fork?;
                let (x, branch) = (usize::from(x), usize::from(branch));
                state.held[branch] = state.held[x];
                state.parted = Some(state.held[x][x]);
                state.alive |= bit(branch);
            }
            Action::Copy => state.copy = Some(state.held[usize::from(self.restore?.0)]),
            Action::Restore => {
                let (x, branch) = self.restore?;
                let (x, branch) = (usize::from(x), usize::from(branch));
                state.alive &= !bit(x);
                let copy = state.copy?;
                state.parted = Some(copy[x]);
                if !self.rules.witness || state.logs[x].len() == usize::from(copy[x]) {
                    // Nothing is lost, or nobody tells it so: it goes on, and what it writes next has a number that was used.
                    state.held[branch] = copy;
                    state.alive |= bit(branch);
                    state.claims[branch] = 0;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("no-double-booking", |model, state| model.is_booked_once(state)),
            Property::<Self>::always("conservation", |model, state| model.is_conserved(state)),
            Property::<Self>::always("agreement", |model, state| model.agrees(state)),
            Property::<Self>::always("nothing beyond the cut", |model, state| model.holds_the_cut(state)),
            Property::<Self>::always("nobody is refused for ever, and majorities decide", |model, state| {
                model.heals(state)
            }),
            Property::<Self>::sometimes("a retirement takes effect", |model, state| model.some_effect(state)),
        ]
    }
}

impl Scenario {
    fn views(&self, state: &State) -> Vec<(usize, Retired)> {
        let owner = self.owner();
        let world = self.world(state, &owner);
        let judges = each(state.born).filter(|r| self.is_honest(*r));
        let view = |r: usize| {
            let mut view = world.retired(&state.held[r], r);
            if world.is_out(r, &state.held[r], &view) {
                view.set |= bit(r);
            }
            (r, view)
        };
        judges.map(view).collect()
    }

    /// In the union of all states, without what lies beyond a cut.
    pub(crate) fn is_booked_once(&self, state: &State) -> bool {
        let owner = self.owner();
        let world = self.world(state, &owner);
        let mut union: Past = std::array::from_fn(|chain| u8::try_from(state.logs[chain].len()).unwrap_or(u8::MAX));
        for (r, view) in self.views(state) {
            for x in each(view.set).filter(|_| !view.contains(r)) {
                union[x] = union[x].min(view.cut[x]);
            }
        }
        let Ledger { claims, .. } = world.ledger(&union);
        i16::try_from(claims.len()).unwrap_or(i16::MAX) <= self.share.iter().sum::<i16>() + self.slack
    }

    fn is_conserved(&self, state: &State) -> bool {
        let owner = self.owner();
        let world = self.world(state, &owner);
        let all = each(state.born).filter(|r| self.is_honest(*r));
        all.map(|r| world.ledger(&state.held[r]).total()).all(|total| total == self.share.iter().sum::<i16>())
    }

    /// Who is retired, and at which cut, is the same for all who know it; nobody is retired by somebody whom it has
    /// retired; and what took effect stays.
    fn agrees(&self, state: &State) -> bool {
        let owner = self.owner();
        let world = self.world(state, &owner);
        let views = self.views(state);
        let within = |small: &Retired, large: &Retired| {
            each(small.set).all(|x| large.contains(x) && large.cut[x] == small.cut[x])
        };
        let pairs = views.iter().flat_map(|p| views.iter().map(move |q| (p, q)));
        let agreed = pairs.into_iter().all(|((p, of_p), (q, of_q))| {
            let equal = each(of_p.set & of_q.set).all(|x| of_p.cut[x] == of_q.cut[x]);
            let mutual = of_p.contains(*q) && of_q.contains(*p) && !of_p.contains(*p) && !of_q.contains(*q);
            let monotone = of_q.contains(*q) || !covers(&state.held[*p], &state.held[*q]) || within(of_q, of_p);
            (equal || of_p.contains(*p) || of_q.contains(*q)) && !mutual && monotone
        });
        agreed
            && views.iter().all(|(r, view)| {
                let entries = world.entries(&state.held[*r]);
                let seals = entries.into_iter().filter(|(.., entry)| matches!(entry.op, Op::Seal(_) | Op::Inherit(_)));
                seals.into_iter().all(|(chain, _, entry)| within(&world.retired(&entry.past, chain), view))
            })
    }

    /// Who stays holds exactly what counts of those that are retired.
    fn holds_the_cut(&self, state: &State) -> bool {
        let views = self.views(state);
        views
            .iter()
            .filter(|(r, view)| !view.contains(*r))
            .all(|(r, view)| each(view.set).all(|x| state.held[*r][x] == view.cut[x]))
    }

    fn some_effect(&self, state: &State) -> bool {
        !self.decides || self.views(state).iter().any(|(_, view)| view.set != 0)
    }

    fn heals(&self, state: &State) -> bool {
        let owner = self.owner();
        let healed = self.heal(state);
        let world = self.world(&healed, &owner);
        let views = self.views(&healed);
        let gone = views.iter().filter(|(r, v)| !v.contains(*r)).fold(0, |all, (_, view)| all | view.set);
        // Whom a retired replica admitted behind its cut is no member.
        let founder = each(healed.alive & !gone).find(|r| self.is_honest(*r) && *r < self.founders);
        let members = founder.map_or(0, |r| world.members(&healed.held[r]));
        let writers = each(healed.alive & !gone).filter(|r| self.is_honest(*r));
        let living: Vec<usize> = writers.filter(|r| members & bit(usize::from(owner[*r])) != 0).collect();
        // Everybody alive has heard of its own retirement, or is not retired.
        let told = each(healed.alive & gone)
            .filter(|r| self.is_honest(*r))
            .all(|r| world.retired(&healed.held[r], r).contains(r));
        let Some(judge) = founder else { return told };
        let past = &healed.held[judge];
        let retired = world.retired(past, judge);
        let votes =
            |set: Set| each(set & members & !gone).map(|m| world.votes_with_parts(m, past, &retired)).sum::<u16>();
        let of = world.votes_left(past, &retired);
        // Who is being retired by what may be a majority waits for the word of those that are away.
        let pending = living.iter().map(|r| world.sealed(*r, &healed.held[*r]));
        let waits = pending.filter(|set| votes(!set) * 2 > of).fold(0, |all, set| all | set);
        let writers: Vec<usize> = living.iter().copied().filter(|q| waits & bit(*q) == 0).collect();
        let heard = living.iter().all(|r| writers.iter().all(|q| covers(&healed.held[*r], &state.held[*q])));
        // A majority of those that are asked decides.
        let named = world.named(&healed.held[judge]);
        let all_there = (members & !named & !gone) & !healed.alive == 0;
        let undecided = !all_there || self.liar != 0 || votes(!named) * 2 <= of;
        told && heard && (undecided || named & !gone == 0)
    }
}
