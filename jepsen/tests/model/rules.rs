//! The rules of reservations (`docs/reservations.md`), small enough to be enumerated: entries, accounts, retirements.
//!
//! Everything here is a function of some logs and a past. A *chain* is the log of one replica; a replica that forked has two.

use std::collections::BTreeSet;

/// Most chains of one cloud.
pub(crate) const CHAINS: usize = 6;
/// A set of chains.
pub(crate) type Set = u8;
/// How many entries of each chain are held.
pub(crate) type Past = [u8; CHAINS];
/// Chain and number, from 1.
pub(crate) type Id = (u8, u8);

pub(crate) fn bit(chain: usize) -> Set {
    1 << chain
}
pub(crate) fn each(set: Set) -> impl Iterator<Item = usize> {
    (0..CHAINS).filter(move |chain| set & bit(*chain) != 0)
}
pub(crate) fn covers(past: &Past, other: &Past) -> bool {
    past.iter().zip(other).all(|(a, b)| a >= b)
}
pub(crate) fn join(past: &Past, other: &Past) -> Past {
    std::array::from_fn(|at| past[at].max(other[at]))
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    /// Nothing but what its author has seen.
    Note,
    Claim,
    Release(Id),
    /// One right.
    Grant(u8),
    /// A newcomer, with some of the author's votes.
    Join(u8, u8),
    /// Votes for a newcomer that somebody else has admitted.
    Welcome(u8, u8),
    Retire(Request),
    /// Of all these I hold what my past says, and take no more than another survivor has.
    Seal(Set),
    /// Of all these I hold the seals that my past has, everybody's who must seal, and assent to them.
    Assent(Set),
    Inherit(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Request {
    pub(crate) set: Set,
    pub(crate) heir: u8,
    pub(crate) force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Entry {
    pub(crate) op: Op,
    /// Without the entry itself.
    pub(crate) past: Past,
}

/// The rules, each with its broken forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// A retirement takes effect where all that must have sealed it, not where the judge itself has.
    pub(crate) all_seals: bool,
    /// It takes effect by seals at all, not by the request alone.
    pub(crate) seals: bool,
    /// The cut is the highest seal, not the lowest.
    pub(crate) highest: bool,
    /// The sealers hold a majority.
    pub(crate) majority: bool,
    /// Votes are conserved; else members are counted (finding 2).
    pub(crate) conserved_votes: bool,
    /// Only seals of one and the same set make a round; else larger ones count as well.
    pub(crate) equal_sets: bool,
    /// Who must seal is what *some* closure of seals says; else what the first seal says (finding 1).
    pub(crate) least_closure: bool,
    /// Only the seals that were needed make the cut; else any seal, a stranger's as well (finding 7).
    pub(crate) needed_cut: bool,
    /// It takes effect where all that must seal have assented to just these seals; else by seals alone (R11).
    pub(crate) assents: bool,
    /// An assent is an entry of its own, and who holds two seals of one author gives none; else whatever rests on some seals
    /// assents to them (R11).
    pub(crate) said_once: bool,
    /// Nobody assents to a cut below what it holds (R11).
    pub(crate) holds_no_more: bool,
    /// A seal for which no majority is left is not given (finding 4).
    pub(crate) sparing_seals: bool,
    /// Having sealed, a replica takes no more than another survivor has shown; else it takes everything.
    pub(crate) stop_at_seal: bool,
    /// It also takes what another survivor has shown but not sealed; else what others have sealed.
    pub(crate) shown_is_enough: bool,
    /// What is taken beyond the seal is taken together with the entry that shows it; else by itself before (finding 5).
    pub(crate) together: bool,
    /// All that it rests on is taken with it; else only what the sealed wrote (finding 8).
    pub(crate) with_all: bool,
    /// What shows it must precede its author's own seal (finding 5).
    pub(crate) before_its_seal: bool,
    /// Only a member that is known shows it (finding 6).
    pub(crate) known_only: bool,
    /// A request with force may name whom another names (finding 3).
    pub(crate) force_later: bool,
    /// An entry is judged at its own past; else at what the receiver holds.
    pub(crate) own_past: bool,
    /// A replica that was restored from an old copy, and has a witness, writes no more as itself.
    pub(crate) witness: bool,
    /// Only the holder of a claim releases it, and once.
    pub(crate) release_once: bool,
}

pub(crate) const SOUND: Rules = Rules {
    all_seals: true,
    seals: true,
    highest: true,
    majority: true,
    conserved_votes: true,
    equal_sets: true,
    least_closure: true,
    needed_cut: true,
    assents: true,
    said_once: true,
    holds_no_more: true,
    sparing_seals: true,
    stop_at_seal: true,
    shown_is_enough: true,
    together: true,
    with_all: true,
    before_its_seal: true,
    known_only: true,
    force_later: true,
    own_past: true,
    witness: true,
    release_once: true,
};

/// The cloud's unchanging part, with its logs.
pub(crate) struct World<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) logs: &'a [Vec<Entry>; CHAINS],
    /// The replica that writes a chain: itself, or for a fork's branch the one that forked.
    pub(crate) owner: &'a [u8; CHAINS],
    /// Rights at the start.
    pub(crate) share: &'a [i16; CHAINS],
    /// The members at the start.
    pub(crate) founders: Set,
    /// Votes of the founders.
    pub(crate) votes: &'a [u8; CHAINS],
    /// The last entry that both chains of a replica that forked have in common.
    pub(crate) parted: u8,
}

/// Of each replica a seal of one set, if it has any.
type Choice = [Option<Id>; CHAINS];

/// What has taken effect.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Retired {
    pub(crate) set: Set,
    pub(crate) cut: Past,
    named_heir: [u8; CHAINS],
    first_sealer: [Set; CHAINS],
    /// Who has a part of its votes.
    stayed: [Set; CHAINS],
}

impl Retired {
    pub(crate) fn contains(&self, chain: usize) -> bool {
        self.set & bit(chain) != 0
    }

    pub(crate) fn heir(&self, chain: usize) -> Option<usize> {
        if !self.contains(chain) {
            return None;
        }
        let (mut met, mut at) = (bit(chain), usize::from(self.named_heir[chain]));
        while self.contains(at) {
            if met & bit(at) != 0 {
                return each(self.first_sealer[chain] & !self.set).next();
            }
            met |= bit(at);
            at = usize::from(self.named_heir[at]);
        }
        Some(at)
    }

    pub(crate) fn acts_for(&self, by: usize, owner: usize) -> bool {
        if self.contains(owner) { self.heir(owner) == Some(by) } else { by == owner }
    }
}

/// All accounts of the one pool, at some past.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ledger {
    pub(crate) free: [i16; CHAINS],
    incoming: Vec<(u8, Id)>,
    pub(crate) claims: BTreeSet<Id>,
}

impl Ledger {
    fn settle(&mut self, owner: usize, past: &Past) {
        let free = &mut self.free;
        self.incoming.retain(|(to, (chain, number))| {
            let seen = usize::from(*to) == owner && past[usize::from(*chain)] >= *number;
            free[owner] += i16::from(seen);
            !seen
        });
    }

    /// Free rights and live claims.
    pub(crate) fn total(&self) -> i16 {
        let count = self.incoming.len() + self.claims.len();
        self.free.iter().sum::<i16>() + i16::try_from(count).unwrap_or(i16::MAX)
    }
}

impl World<'_> {
    pub(crate) fn entry(&self, (chain, number): Id) -> &Entry {
        &self.logs[usize::from(chain)][usize::from(number) - 1]
    }

    /// The entries of a past, each after all that it has seen.
    pub(crate) fn entries(&self, past: &Past) -> Vec<(usize, u8, &Entry)> {
        let mut all: Vec<_> = (0..CHAINS)
            .flat_map(|chain| (1..=past[chain]).map(move |number| (chain, number)))
            .map(|(chain, number)| (chain, number, &self.logs[chain][usize::from(number) - 1]))
            .collect();
        all.sort_by_key(|(chain, number, entry)| {
            (entry.past.iter().map(|n| u16::from(*n)).sum::<u16>(), *chain, *number)
        });
        all
    }

    fn owner(&self, chain: usize) -> usize {
        usize::from(self.owner[chain])
    }

    pub(crate) fn ledger(&self, past: &Past) -> Ledger {
        let mut ledger = Ledger { free: *self.share, incoming: Vec::new(), claims: BTreeSet::new() };
        for (chain, number, entry) in self.entries(past) {
            let (owner, id) = (self.owner(chain), (u8::try_from(chain).unwrap_or(0), number));
            ledger.settle(owner, &with(&entry.past, chain, number));
            match entry.op {
                Op::Claim => {
                    ledger.free[owner] -= 1;
                    ledger.claims.insert(id);
                }
                Op::Grant(to) => {
                    ledger.free[owner] -= 1;
                    ledger.incoming.push((to, id));
                }
                Op::Release(claim) => {
                    if ledger.claims.remove(&claim) || !self.rules.release_once {
                        ledger.free[owner] += 1;
                    }
                }
                Op::Inherit(from) => {
                    let from = usize::from(from);
                    ledger.settle(from, &entry.past);
                    ledger.free[owner] += std::mem::take(&mut ledger.free[from]);
                }
                Op::Note | Op::Join(..) | Op::Welcome(..) | Op::Retire(_) | Op::Seal(_) | Op::Assent(_) => {}
            }
        }
        ledger
    }

    /// Whether an entry of `chain` that follows `past` is valid, judged at a past.
    pub(crate) fn is_valid(&self, chain: usize, op: Op, past: &Past) -> bool {
        let owner = self.owner(chain);
        let retired = self.retired(past, chain);
        if retired.contains(chain) || self.members(past) & bit(owner) == 0 {
            return false;
        }
        let mut ledger = self.ledger(past);
        ledger.settle(owner, past);
        // What a forker has spent twice its heir must first make good.
        let debts = each(retired.set).filter(|x| retired.heir(*x) == Some(owner));
        let free = ledger.free[owner] + debts.map(|x| ledger.free[x].min(0)).sum::<i16>();
        let is_living = |who: u8| self.members(past) & !retired.set & bit(usize::from(who)) != 0;
        match op {
            Op::Claim => free >= 1,
            Op::Grant(to) => free >= 1 && is_living(to),
            Op::Release(claim) => {
                let holder = retired.acts_for(owner, self.owner(usize::from(claim.0)));
                (holder && ledger.claims.contains(&claim)) || !self.rules.release_once
            }
            Op::Inherit(from) => {
                let from = usize::from(from);
                ledger.settle(from, past);
                retired.heir(from) == Some(owner) && ledger.free[from] != 0
            }
            Op::Retire(request) => {
                let named = self.named(past);
                let free = request.set & named == 0 || (request.force && self.rules.force_later);
                request.set & bit(chain) == 0 && free && is_living(request.heir)
            }
            Op::Assent(set) => self.counts(self.sealed(chain, past), set) && !self.has_assented(chain, set, past),
            Op::Note | Op::Join(..) | Op::Welcome(..) | Op::Seal(_) => true,
        }
    }

    /// The entries of a past, chain by chain.
    fn chains(&self, past: &Past) -> impl Iterator<Item = (Id, &Entry)> {
        let past = *past;
        self.logs.iter().enumerate().flat_map(move |(chain, log)| {
            let numbered = log[..usize::from(past[chain])].iter().zip(1..);
            numbered.map(move |(entry, number)| ((u8::try_from(chain).unwrap_or(0), number), entry))
        })
    }

    pub(crate) fn members(&self, past: &Past) -> Set {
        let joined = self.chains(past).filter_map(|(_, entry)| match entry.op {
            Op::Join(who, _) => Some(bit(usize::from(who))),
            _ => None,
        });
        joined.fold(self.founders, |all, one| all | one)
    }

    /// Whether a replica writes no more: it is retired, or its admission lies beyond the cut of who admitted it (finding 7).
    pub(crate) fn is_out(&self, chain: usize, past: &Past, retired: &Retired) -> bool {
        let admitted = self.chains(past).find(|(_, e)| matches!(e.op, Op::Join(z, _) if usize::from(z) == chain));
        let void = admitted.is_some_and(|((sponsor, number), _)| {
            let sponsor = usize::from(sponsor);
            retired.contains(sponsor) && number > retired.cut[sponsor]
        });
        void || retired.contains(chain)
    }

    /// In order of their ids.
    pub(crate) fn requests(&self, past: &Past) -> impl Iterator<Item = (Id, Request)> {
        self.chains(past).filter_map(|(id, entry)| match entry.op {
            Op::Retire(request) => Some((id, request)),
            _ => None,
        })
    }

    /// Everybody whom a request names.
    pub(crate) fn named(&self, past: &Past) -> Set {
        self.requests(past).fold(0, |all, (_, request)| all | request.set)
    }

    /// The entries of a chain that a past holds, those first that it continues.
    fn line(&self, chain: usize, past: &Past) -> impl Iterator<Item = (Id, Op)> + '_ {
        let stem = self.owner(chain);
        let below = if stem == chain { 0 } else { past[stem].min(self.parted) };
        let ids = (1..=below).map(move |number| (stem, number)).chain((1..=past[chain]).map(move |n| (chain, n)));
        ids.map(|(chain, number)| {
            ((u8::try_from(chain).unwrap_or(0), number), self.logs[chain][usize::from(number) - 1].op)
        })
    }

    /// The seals of a chain that a past holds, with their sets.
    fn seals(&self, chain: usize, past: &Past) -> impl Iterator<Item = (Id, Set)> + '_ {
        self.line(chain, past).filter_map(|(id, op)| match op {
            Op::Seal(set) => Some((id, set)),
            _ => None,
        })
    }

    /// What a chain has sealed last.
    pub(crate) fn sealed(&self, chain: usize, past: &Past) -> Set {
        self.seals(chain, past).last().map_or(0, |(_, set)| set)
    }

    /// The entry with the last seal of a chain.
    pub(crate) fn last_seal(&self, chain: usize, past: &Past) -> Option<&Entry> {
        self.seals(chain, past).last().map(|(id, _)| self.entry(id))
    }

    /// Whether a chain has sealed a set that contains this one.
    pub(crate) fn has_sealed(&self, chain: usize, set: Set, past: &Past) -> bool {
        self.seals(chain, past).any(|(_, sealed)| sealed & set == set)
    }

    fn has_assented(&self, chain: usize, set: Set, past: &Past) -> bool {
        self.line(chain, past).any(|(_, op)| op == Op::Assent(set))
    }

    /// The set that a replica that holds `past` assents to: it holds the seals of all who must have sealed it, one of each.
    pub(crate) fn owed_assent(&self, chain: usize, past: &Past) -> Option<Set> {
        if !self.rules.assents {
            return None;
        }
        let sealed = self.sealed(chain, past);
        // Where a seal counts for smaller sets, so does the assent of who gave it.
        let all = (0..CHAINS).flat_map(|m| self.seals(m, past).map(|(_, set)| set)).filter(|set| set & !sealed == 0);
        let mut sets: Vec<Set> = if self.rules.equal_sets { vec![sealed] } else { all.collect() };
        sets.retain(|set| !self.has_assented(chain, *set, past));
        sets.into_iter().find(|set| self.may_assent(chain, *set, past))
    }

    fn may_assent(&self, chain: usize, set: Set, past: &Past) -> bool {
        let retired = self.retired(past, chain);
        if set & !retired.set == 0 {
            return false;
        }
        let choice = std::array::from_fn(|m| match self.forms(m, set, past).as_slice() {
            [one] => Some(*one),
            _ => None,
        });
        let me = bit(self.owner(chain));
        let sealed = |x: usize, sealers: Set| {
            each(sealers).filter_map(|m| choice[m]).map(|id| self.entry(id).past[x]).max().unwrap_or(0)
        };
        let whole = self.closures(set, past, &retired, &choice).into_iter().map(|(_, sealers)| sealers);
        whole
            .filter(|sealers| sealers & me != 0)
            .any(|sealers| !self.rules.holds_no_more || each(set).all(|x| past[x] <= sealed(x, sealers)))
    }

    /// Whether a member has given a newcomer votes.
    pub(crate) fn has_welcomed(&self, chain: usize, newcomer: usize, past: &Past) -> bool {
        let log = &self.logs[chain][..usize::from(past[chain])];
        log.iter().any(|entry| matches!(entry.op, Op::Join(z, _) | Op::Welcome(z, _) if usize::from(z) == newcomer))
    }

    /// Votes of a member, as its own chain has it.
    pub(crate) fn votes_of(&self, chain: usize, past: &Past) -> u16 {
        let mut votes = u16::from(self.votes[chain]);
        let mut given = 0;
        for ((author, _), entry) in self.chains(past) {
            if let Op::Join(to, n) | Op::Welcome(to, n) = entry.op {
                votes += if usize::from(to) == chain { u16::from(n) } else { 0 };
                given += if usize::from(author) == chain { u16::from(n) } else { 0 };
            }
        }
        votes.saturating_sub(given)
    }

    /// The votes of a member with its parts of those of the retired, as it knows itself.
    pub(crate) fn votes_with_parts(&self, chain: usize, past: &Past, retired: &Retired) -> u16 {
        let parts = each(retired.set).filter(|x| retired.stayed[*x] & bit(chain) != 0);
        self.votes_of(chain, past) + parts.map(|x| self.part(x, past, retired)).sum::<u16>()
    }

    /// What each of those who stayed has of the votes of one that is retired.
    fn part(&self, of: usize, past: &Past, retired: &Retired) -> u16 {
        let stayed = u16::try_from(retired.stayed[of].count_ones()).unwrap_or(u16::MAX);
        self.votes_of(of, past).checked_div(stayed).unwrap_or(0)
    }

    /// All votes that are somebody's who is not retired, as one that holds `past` knows.
    pub(crate) fn votes_left(&self, past: &Past, retired: &Retired) -> u16 {
        let all: u16 = self.votes.iter().map(|n| u16::from(*n)).sum();
        let nobodys = |x: usize| {
            let living = u16::try_from((retired.stayed[x] & !retired.set).count_ones()).unwrap_or(0);
            self.votes_of(x, past) - living * self.part(x, past, retired)
        };
        all - each(retired.set).map(nobodys).sum::<u16>()
    }

    /// The set that a replica that holds `past` seals: none if it owes nothing.
    pub(crate) fn owed_seal(&self, chain: usize, past: &Past) -> Option<Set> {
        let before = self.sealed(chain, past);
        let named = self.named(past);
        if named == 0 || (named & bit(chain) != 0 && self.retired(past, chain).contains(chain)) {
            return None;
        }
        let mut set = before;
        if self.rules.sparing_seals {
            for (_, request) in self.requests(past) {
                let larger = set | request.set;
                if larger & bit(chain) == 0 && (request.force || self.may_succeed(larger, past, chain)) {
                    set = larger;
                }
            }
        } else if named & bit(chain) == 0 {
            set = named;
        }
        (set != before).then_some(set)
    }

    /// Whether those outside a set have a majority, for all that is known.
    fn may_succeed(&self, set: Set, past: &Past, by: usize) -> bool {
        let retired = self.retired(past, by);
        let members = self.members(past) & !retired.set;
        if self.rules.conserved_votes {
            let votes: u16 = each(members & !set).map(|m| self.votes_with_parts(m, past, &retired)).sum();
            votes * 2 > self.votes_left(past, &retired)
        } else {
            (members & !set).count_ones() * 2 > members.count_ones()
        }
    }

    /// What has taken effect at a past. `by` judges; only broken rules care who that is.
    pub(crate) fn retired(&self, past: &Past, by: usize) -> Retired {
        let mut out = Retired::default();
        if self.requests(past).next().is_none() {
            return out;
        }
        if !self.rules.seals {
            for (id, request) in self.requests(past) {
                let asked = self.entry(id).past;
                self.bury(&mut out, request.set, 0, past, |x| asked[x]);
            }
            return out;
        }
        if !self.rules.all_seals {
            if let Some((id, set)) = self.seals(by, past).last() {
                let seal = self.entry(id).past;
                self.bury(&mut out, set, bit(by), past, |x| seal[x]);
            }
            return out;
        }
        let mut sets: Vec<Set> = (0..CHAINS).flat_map(|m| self.seals(m, past).map(|(_, set)| set)).collect();
        sets.sort_by_key(|set| (set.count_ones(), *set));
        sets.dedup();
        for set in sets {
            if out.set & !set != 0 && self.rules.equal_sets {
                continue;
            }
            if let Some((choice, sealers)) = self.round(set, past, &out) {
                let at = |x: usize| {
                    let makers = if self.rules.needed_cut { sealers } else { !set };
                    let seals = each(makers).filter_map(|m| choice[m]).map(|id| self.entry(id).past[x]);
                    if self.rules.highest { seals.max() } else { seals.min() }.unwrap_or(0)
                };
                self.bury(&mut out, set, sealers, past, at);
            }
        }
        out
    }

    fn bury(&self, out: &mut Retired, set: Set, sealers: Set, past: &Past, cut: impl Fn(usize) -> u8) {
        for x in each(set & !out.set) {
            let Some((id, request)) = self.requests(past).find(|(_, r)| r.set & bit(x) != 0) else { continue };
            out.set |= bit(x);
            out.stayed[x] = self.members(&self.entry(id).past) & !set;
            out.cut[x] = cut(x);
            out.named_heir[x] = request.heir;
            out.first_sealer[x] = sealers;
        }
    }

    fn counts(&self, sealed: Set, set: Set) -> bool {
        if self.rules.equal_sets { sealed == set } else { sealed & set == set }
    }

    /// The seals of a set by one replica: one, or one in each of its chains.
    fn forms(&self, replica: usize, set: Set, past: &Past) -> Vec<Id> {
        let first =
            |chain: usize| self.seals(chain, past).find(|(_, sealed)| self.counts(*sealed, set)).map(|(id, _)| id);
        let mut forms: Vec<Id> = (0..CHAINS).filter(|chain| self.owner(*chain) == replica).filter_map(first).collect();
        forms.dedup();
        forms
    }

    /// One seal of each; of who forked, that which somebody has assented to.
    fn choices(&self, set: Set, past: &Past) -> Vec<Choice> {
        let forms: [Vec<Id>; CHAINS] = std::array::from_fn(|m| self.forms(m, set, past));
        if !self.rules.assents || forms.iter().all(|of| of.len() < 2) {
            return vec![std::array::from_fn(|m| forms[m].first().copied())];
        }
        let chosen = |seen: &Past| -> Choice {
            std::array::from_fn(|m| {
                let mut held = forms[m].iter().copied().filter(|id| forms[m].len() == 1 || holds(seen, *id));
                let one = held.next();
                one.filter(|_| held.next().is_none() || !self.rules.said_once)
            })
        };
        let mut choices: Vec<Choice> = self.assents(set, past).map(|(_, seen)| chosen(&seen)).collect();
        choices.sort_unstable();
        choices.dedup();
        choices
    }

    /// Who has assented to a set, and what it held.
    fn assents(&self, set: Set, past: &Past) -> impl Iterator<Item = (usize, Past)> {
        let assents = move |op: Op| matches!(op, Op::Assent(to) if self.counts(to, set)) || !self.rules.said_once;
        self.chains(past).filter(move |(_, entry)| assents(entry.op)).map(|((chain, number), entry)| {
            (self.owner(usize::from(chain)), with(&entry.past, usize::from(chain), number))
        })
    }

    /// Whether each of these has assented to just these seals of theirs.
    fn is_assented(&self, set: Set, past: &Past, choice: &Choice, sealers: Set) -> bool {
        if !self.rules.assents {
            return true;
        }
        let to_these = |seen: &Past| {
            each(sealers).all(|m| {
                let others = self.forms(m, set, past).into_iter().filter(|id| Some(*id) != choice[m]);
                choice[m].is_some_and(|id| holds(seen, id))
                    && (others.into_iter().all(|id| !holds(seen, id)) || !self.rules.said_once)
            })
        };
        let assented = self.assents(set, past).filter(|(_, seen)| to_these(seen)).fold(0, |all, (m, _)| all | bit(m));
        sealers & !assented == 0
    }

    /// Who has sealed a round that is complete, has its majority, and is assented to.
    fn round(&self, set: Set, past: &Past, before: &Retired) -> Option<(Choice, Set)> {
        let made = self.choices(set, past).into_iter().flat_map(|choice| {
            let closures = self.closures(set, past, before, &choice).into_iter();
            closures.map(move |(count, sealers)| (count, sealers, choice))
        });
        let made = made.filter(|(_, sealers, choice)| self.is_assented(set, past, choice, *sealers));
        made.min().map(|(_, sealers, choice)| (choice, sealers))
    }

    /// Those who must have sealed a set, if they have, with a majority: as each of them knows.
    fn closures(&self, set: Set, past: &Past, before: &Retired, choice: &Choice) -> Vec<(u32, Set)> {
        let forced = self.requests(past).filter(|(_, r)| r.force).fold(before.set, |all, (_, r)| all | r.set);
        let mut closures: Vec<(u32, Set)> = Vec::new();
        let mut starts: Vec<usize> = (0..CHAINS).filter(|m| set & bit(*m) == 0 && choice[*m].is_some()).collect();
        if !self.rules.least_closure {
            starts.reverse();
        }
        for start in starts {
            let (mut sealers, mut known, mut open) = (0, 0, bit(start));
            while let Some(m) = each(open & !sealers).next() {
                let Some(id) = choice[m] else { break };
                sealers |= bit(m);
                known |= self.members(&self.entry(id).past);
                open |= known & !set;
            }
            let complete = open & !sealers == 0;
            if complete
                && (set & !forced == 0 || !self.rules.majority || self.has_majority(sealers, known, choice, before))
            {
                closures.push((sealers.count_ones(), sealers));
            }
            if !self.rules.least_closure {
                break;
            }
        }
        closures
    }

    fn has_majority(&self, sealers: Set, known: Set, choice: &Choice, before: &Retired) -> bool {
        if !self.rules.conserved_votes {
            return sealers.count_ones() * 2 > (known & !before.set).count_ones();
        }
        let seals = each(sealers).filter_map(|m| Some((m, self.entry(choice[m]?).past)));
        let known = seals.map(|(m, past)| {
            let retired = self.retired(&past, m);
            (self.votes_with_parts(m, &past, &retired), self.votes_left(&past, &retired))
        });
        let (votes, of) = known.fold((0, u16::MAX), |(sum, least), (votes, of)| (sum + votes, least.min(of)));
        votes * 2 > of
    }
}

fn holds(past: &Past, (chain, number): Id) -> bool {
    past[usize::from(chain)] >= number
}

fn with(past: &Past, chain: usize, number: u8) -> Past {
    let mut past = *past;
    past[chain] = number;
    past
}
