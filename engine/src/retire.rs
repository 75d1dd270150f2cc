//! Retiring replicas that are gone for good: an agreement of the survivors (`PROTOCOL.md`, M2; `docs/reservations.md`).
//!
//! A **request** is an operator's word that some replicas are stopped. A **seal** of a set says: of everybody in it I hold
//! what my frontier says, and I take no more than what another survivor names. An **assent** to a set says: these are the
//! seals of it that I hold, everybody's who must seal. A **round**, all seals of one and the same set, takes effect where
//! every member outside it has sealed it, those hold more than half of the votes, and every one of them has assented to
//! these very seals. Then the **cut** of each is the highest seal: what it wrote up to there stays, what it wrote after that
//! is void, and its rights and claims are its heir's.
//!
//! Why a set and not each replica by itself: a survivor whose seal is awaited may be retired next, while somebody has its
//! seal and others have not. Those who stay then seal the larger set anew, and decide both together. Why equal sets: a
//! sealer's sets only grow, so of two rounds that share one, one contains the other. Why votes and not heads: whoever
//! admits members makes heads. **Votes** are rights like others: minted once, by the founder's first entry, moved by
//! their holder alone. So two disjoint sets of survivors cannot both have more than half. A retired member's votes fall not
//! to its heir, who may be lost as well before it has taken them, but in equal parts to all who stayed; a part counts whether or
//! not it is taken. What is nobody's, as the part of one that died before it took that, counts no more: a round
//! needs more than half of the rest.
//!
//! Why assents (R11): a survivor that lies may fork its log, and seal one and the same set twice: low for A, high for B. Seals
//! alone would take effect at both, with two cuts, and no later entry could mend that. An honest survivor assents to a set
//! once, while it holds one seal of each survivor and nothing beyond the cut that these make, and who takes its assent takes
//! all that this rests on. So of the two seals at most one is ever assented to by both A and B; and where they have assented
//! to one each, neither takes effect, the fork shows when they meet, its author is to be retired too, and the larger round decides. An assent comes before its
//! author's seal of a larger set: whoever holds all seals of that holds what the smaller round took effect by, if it did.
//!
//! All of it is a function of the requests and seals in an entry's past, so every judge has the same answer (E3), and
//! what took effect once never ceases to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::branch::{Branches, Rename, Renaming};
use crate::entry::{Frontier, Tip};
use crate::id::{EntryId, ReplicaId};
use crate::mutant::{Mutant, on};
use crate::view::MemberState;

/// All votes on retirements.
pub const VOTES: u64 = 1 << 32;

/// Whether so many votes are more than half of those that count.
pub(crate) fn is_majority(votes: u64, of: u64) -> bool {
    votes > of / 2
}

/// One replica that is to be retired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Retiree {
    /// Who is gone.
    pub replica: ReplicaId,
    /// Who gets its rights and claims, and its place as the root of pools.
    pub heir: ReplicaId,
}

/// An operator's word, as an entry brought it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Who is gone, and who inherits.
    pub set: Vec<Retiree>,
    /// Take effect without a majority: the operator vouches that no other part of the cloud does the same.
    pub force: bool,
}

/// A request, with what its own past says about it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    /// The members then, less those who were retired: where heirs were named in a circle, the first that lives inherits.
    pub(crate) base: BTreeSet<ReplicaId>,
    /// Those in the set whom an earlier request names: its heir stands.
    pub(crate) again: BTreeSet<ReplicaId>,
    /// It is the proof of a fork, not an operator's word.
    pub(crate) is_fork: bool,
}

/// A seal, with what its own past says about it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// Whom it covers.
    pub(crate) set: BTreeSet<ReplicaId>,
    /// What its author held.
    pub(crate) frontier: Frontier,
    /// The votes of its author.
    pub(crate) votes: u64,
    /// Of how many: of [`VOTES`] those that are somebody's who is not retired.
    pub(crate) of: u64,
}

/// An assent, with what its own past says about it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Assented {
    /// To the retirement of whom.
    pub(crate) set: BTreeSet<ReplicaId>,
    /// The seals of this set that its author held.
    pub(crate) seals: BTreeSet<EntryId>,
}

impl Asked {
    fn set(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.request.set.iter().map(|retiree| retiree.replica)
    }
}

/// What survivors have asked, sealed and assented to, by the entries that brought it.
#[derive(Clone, Debug, Default)]
pub struct Retirements {
    requests: OrdMap<EntryId, Asked>,
    seals: OrdMap<EntryId, Arc<Sealed>>,
    assents: OrdMap<EntryId, Arc<Assented>>,
    /// By author, the last entry that brought one of these.
    last: OrdMap<ReplicaId, u64>,
}

/// A row of it, as it is stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Row {
    Request(Asked),
    Seal(Sealed),
    Assent(Assented),
}

/// The retirements that have taken effect, as somebody with a certain past sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retired {
    replicas: BTreeMap<ReplicaId, Grave>,
    branches: Branches,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Grave {
    /// The last entry that counts of each of its logs.
    cuts: BTreeMap<ReplicaId, Tip>,
    heir: ReplicaId,
    base: BTreeSet<ReplicaId>,
    /// Who has a part of its votes: of the base those who stayed.
    stayed: BTreeSet<ReplicaId>,
}

impl Retired {
    /// Whether a replica is retired.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.replicas.contains_key(&replica)
    }

    /// Nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replicas.is_empty()
    }

    /// All of them.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.replicas.keys().copied()
    }

    /// The number of the last entry that counts of a log whose author is retired; none if that is not retired.
    #[must_use]
    pub fn cut(&self, log: ReplicaId) -> Option<u64> {
        let grave = self.replicas.get(&self.branches.author(log))?;
        Some(grave.cuts.get(&log).map_or(0, |tip| tip.number))
    }

    /// Who has the rights and claims of a retired replica now: its heir, or the heir's. None for one that lives, or if
    /// nobody is left.
    #[must_use]
    pub fn heir(&self, replica: ReplicaId) -> Option<ReplicaId> {
        let first = self.replicas.get(&replica)?;
        let (mut met, mut at) = (BTreeSet::from([replica]), first.heir);
        while let Some(grave) = self.replicas.get(&at) {
            if !met.insert(at) {
                return first.base.iter().find(|member| !self.contains(**member)).copied();
            }
            at = grave.heir;
        }
        Some(at)
    }

    /// Everybody who has a part of the votes of a retired replica.
    pub(crate) fn stayed(&self, replica: ReplicaId) -> Option<&BTreeSet<ReplicaId>> {
        Some(&self.replicas.get(&replica)?.stayed)
    }

    /// Whether `replica` acts for whoever wrote the log `owner`: it is that, or its heir.
    #[must_use]
    pub fn acts_for(&self, replica: ReplicaId, owner: ReplicaId) -> bool {
        let owner = self.branches.author(owner);
        if self.contains(owner) { self.heir(owner) == Some(replica) } else { replica == owner }
    }
}

impl Retirements {
    /// Nobody was ever asked to be retired.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Everybody that the requests in a past name, whether or not it has taken effect.
    #[must_use]
    pub fn named(&self, past: &Frontier) -> BTreeSet<ReplicaId> {
        let held = self.requests.iter().filter(|(entry, _)| past.holds(**entry));
        held.flat_map(|(_, asked)| asked.set()).collect()
    }

    /// The set that a replica has sealed last.
    #[must_use]
    pub fn sealed_by(&self, replica: ReplicaId, past: &Frontier) -> BTreeSet<ReplicaId> {
        self.seals_of(replica, past).last().map(|seal| seal.set.clone()).unwrap_or_default()
    }

    /// The last seal in a log, or in what it continues.
    pub(crate) fn last_seal(&self, log: ReplicaId, past: &Frontier, branches: &Branches) -> Option<(EntryId, &Sealed)> {
        let last = |log| {
            let (from, to) = (EntryId { author: log, number: 0 }, EntryId { author: log, number: past.number(log) });
            self.seals.range(from..=to).next_back().map(|(entry, seal)| (*entry, &**seal))
        };
        branches.line(log).into_iter().rev().find_map(last)
    }

    /// Whether a log, or what it continues, has an assent to this set.
    pub(crate) fn has_assented(
        &self,
        log: ReplicaId,
        set: &BTreeSet<ReplicaId>,
        past: &Frontier,
        branches: &Branches,
    ) -> bool {
        branches.line(log).into_iter().any(|log| {
            let (from, to) = (EntryId { author: log, number: 0 }, EntryId { author: log, number: past.number(log) });
            self.assents.range(from..=to).any(|(_, assent)| assent.set == *set)
        })
    }

    /// The seals of a set that a past has.
    pub(crate) fn seals_in(&self, set: &BTreeSet<ReplicaId>, past: &Frontier) -> BTreeSet<EntryId> {
        let held = self.seals.iter().filter(|(entry, seal)| seal.set == *set && past.holds(**entry));
        held.map(|(entry, _)| *entry).collect()
    }

    /// The set that whoever writes a log owes its assent: it has sealed it, holds the seals of all who must, one of each, and of those
    /// who are to be retired nothing beyond them.
    pub(crate) fn owes_assent(
        &self,
        log: ReplicaId,
        past: &Frontier,
        members: &OrdMap<ReplicaId, MemberState>,
        retired: &Retired,
    ) -> Option<BTreeSet<ReplicaId>> {
        let (_, Sealed { set, .. }) = self.last_seal(log, past, &retired.branches)?;
        if set.iter().all(|id| retired.contains(*id)) || self.has_assented(log, set, past, &retired.branches) {
            return None;
        }
        let (asked, seals, _) = self.held(past, &retired.branches);
        let round = Round::of(set, &asked, &seals, &[], members);
        let single = |(by, forms): (&ReplicaId, &Vec<_>)| match forms.as_slice() {
            [one] => Some((*by, *one)),
            _ => None,
        };
        let choice: Choice<'_> = round.forms.iter().filter_map(single).collect();
        let me = retired.branches.author(log);
        let mut closed = choice.keys().filter_map(|first| round.closure(&choice, *first, |_| true));
        // Who holds more of them than these seals say was shown it by one whose fork is known by now.
        let highest = |log, sealers: &BTreeSet<ReplicaId>| {
            let sealed = sealers.iter().filter_map(|by| choice.get(by)).map(|(_, seal)| seal.frontier.number(log));
            sealed.max().unwrap_or(0)
        };
        let holds_no_more = |sealers: &BTreeSet<ReplicaId>| {
            let mut logs = set.iter().flat_map(|id| retired.branches.logs(*id));
            logs.all(|log| past.number(log) <= highest(log, sealers))
        };
        let is_whole = closed.any(|closed| {
            closed.sealers.contains(&me) && round.is_enough(&closed, retired) && holds_no_more(&closed.sealers)
        });
        is_whole.then(|| set.clone())
    }

    /// Whether a log, or what it continues, has sealed somebody before this entry of it.
    pub(crate) fn has_sealed(&self, log: ReplicaId, before: u64, of: ReplicaId, branches: &Branches) -> bool {
        branches.line(log).into_iter().any(|part| {
            let from = EntryId { author: part, number: 0 };
            let to = EntryId { author: part, number: if part == log { before } else { u64::MAX } };
            self.seals.range(from..to).any(|(_, seal)| seal.set.contains(&of))
        })
    }

    /// Whom the author of an entry had sealed when it wrote that.
    pub(crate) fn sealed_before(&self, entry: EntryId) -> impl Iterator<Item = ReplicaId> + '_ {
        let from = EntryId { number: 0, ..entry };
        self.seals.range(from..=entry).next_back().into_iter().flat_map(|(_, seal)| seal.set.iter().copied())
    }

    /// Up to which number of a log somebody whose word counts has sealed its author.
    pub(crate) fn sealed_to(&self, log: ReplicaId, branches: &Branches, counts: impl Fn(ReplicaId) -> bool) -> u64 {
        let author = branches.author(log);
        let of_it = self.seals.iter().filter(|(_, seal)| seal.set.contains(&author));
        let counted = of_it.filter(|(entry, _)| counts(branches.author(entry.author)));
        counted.map(|(_, seal)| seal.frontier.number(log)).max().unwrap_or(0)
    }

    /// The requests that stand in a past, in order.
    pub(crate) fn requests(&self, past: &Frontier) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|(entry, _)| past.holds(**entry)).map(|(_, asked)| &asked.request)
    }

    /// Whether a proof that `replica` forked is in a past.
    #[must_use]
    pub fn is_forked(&self, replica: ReplicaId, past: &Frontier) -> bool {
        let of = |asked: &Asked| asked.is_fork && asked.set().any(|id| id == replica);
        self.requests.iter().any(|(entry, asked)| past.holds(*entry) && of(asked))
    }

    /// Members whose seals are awaited, for what is named in a past and has not taken effect; once all are there, those whose
    /// assents are.
    #[must_use]
    pub fn awaited(
        &self,
        past: &Frontier,
        members: &OrdMap<ReplicaId, MemberState>,
        branches: &Branches,
    ) -> BTreeSet<ReplicaId> {
        let named = self.named(past);
        let living = members.iter().filter(|(id, state)| !named.contains(id) && state.admitted(past).is_some());
        let living: BTreeSet<ReplicaId> = living.map(|(id, _)| *id).collect();
        let seals = |id: &ReplicaId| !self.sealed_by(*id, past).is_superset(&named);
        let unsealed: BTreeSet<ReplicaId> = living.iter().copied().filter(seals).collect();
        if !unsealed.is_empty() {
            return unsealed;
        }
        let assents = |id: &ReplicaId| !self.has_assented(*id, &self.sealed_by(*id, past), past, branches);
        living.into_iter().filter(assents).collect()
    }

    /// What has taken effect in a past. Monotone: a larger past has no less, and the same cuts.
    #[must_use]
    pub fn effective(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>, branches: &Branches) -> Retired {
        let (asked, seals, assents) = self.held(past, branches);
        let mut sets: Vec<&BTreeSet<ReplicaId>> = seals.iter().map(|(_, (_, seal))| &seal.set).collect();
        sets.sort_by(|one, other| one.len().cmp(&other.len()).then_with(|| one.cmp(other)));
        sets.dedup();
        let mut retired = Retired { branches: branches.clone(), ..Retired::default() };
        for set in sets {
            if !retired.replicas().all(|replica| set.contains(&replica)) {
                continue;
            }
            let round = Round::of(set, &asked, &seals, &assents, members);
            if let Some(made) = round.made_by(&retired) {
                let new = set.iter().filter(|id| !retired.contains(**id));
                let graves: Vec<_> = new.filter_map(|id| Some((*id, round.grave(*id, &made, branches)?))).collect();
                retired.replicas.extend(graves);
            }
        }
        retired
    }

    /// What a past has of all this: requests, and by author seals and assents.
    fn held(&self, past: &Frontier, branches: &Branches) -> Held<'_> {
        let asked = self.requests.iter().filter(|(entry, _)| past.holds(**entry)).map(|(_, asked)| asked);
        let seals = self.seals.iter().filter(|(entry, _)| past.holds(**entry));
        let seals = seals.map(|(entry, seal)| (branches.author(entry.author), (*entry, &**seal)));
        let assents = self.assents.iter().filter(|(entry, _)| past.holds(**entry));
        let assents = assents.map(|(entry, assent)| (branches.author(entry.author), &**assent));
        (asked.collect(), seals.collect(), assents.collect())
    }

    fn seals_of(&self, author: ReplicaId, past: &Frontier) -> impl Iterator<Item = &Sealed> {
        let (from, to) = (EntryId { author, number: 0 }, EntryId { author, number: past.number(author) });
        self.seals.range(from..=to).map(|(_, seal)| &**seal)
    }

    /// Whether a past has everything that is known here: then its answers are those of the present.
    pub(crate) fn all_in(&self, past: &Frontier) -> bool {
        self.last.iter().all(|(author, number)| past.number(*author) >= *number)
    }

    /// Which of what is known here a past has: of each author, the last. Pasts that have the same have the same answers.
    pub(crate) fn known_in(&self, past: &Frontier) -> Arc<[EntryId]> {
        let last = |author: &ReplicaId| {
            let (from, to) = (EntryId { author: *author, number: 0 }, past.number(*author));
            let rows = from..=EntryId { number: to, ..from };
            let request = self.requests.range(rows.clone()).next_back().map(|(entry, _)| *entry);
            let seal = self.seals.range(rows.clone()).next_back().map(|(entry, _)| *entry);
            request.max(seal).max(self.assents.range(rows).next_back().map(|(entry, _)| *entry))
        };
        self.last.keys().filter_map(last).collect()
    }

    pub(crate) fn insert(&mut self, entry: EntryId, row: Row) {
        let last = self.last.get(&entry.author).copied().unwrap_or(0);
        self.last.insert(entry.author, last.max(entry.number));
        match row {
            Row::Request(request) => drop(self.requests.insert(entry, request)),
            Row::Seal(seal) => drop(self.seals.insert(entry, Arc::new(seal))),
            Row::Assent(assent) => drop(self.assents.insert(entry, Arc::new(assent))),
        }
    }

    /// All rows.
    pub(crate) fn rows(&self) -> Vec<(EntryId, Row)> {
        let entries = self.requests.keys().chain(self.seals.keys()).chain(self.assents.keys());
        entries.filter_map(|entry| Some((*entry, self.row(*entry)?))).collect()
    }

    /// The row that an entry brought: a request, or else a seal, or an assent.
    pub(crate) fn row(&self, entry: EntryId) -> Option<Row> {
        let request = || self.requests.get(&entry).cloned().map(Row::Request);
        let seal = || self.seals.get(&entry).map(|seal| Row::Seal(Sealed::clone(seal)));
        let assent = || self.assents.get(&entry).map(|assent| Row::Assent(Assented::clone(assent)));
        request().or_else(seal).or_else(assent)
    }
}

impl Rename for (EntryId, Row) {
    fn rename(&mut self, by: &Renaming) {
        self.0.rename(by);
        match &mut self.1 {
            Row::Request(_) => {}
            Row::Seal(sealed) => sealed.frontier.rename(by),
            Row::Assent(assent) => {
                let renamed = std::mem::take(&mut assent.seals).into_iter().map(|mut seal| {
                    seal.rename(by);
                    seal
                });
                assent.seals = renamed.collect();
            }
        }
    }
}

/// Seals of one set, one for each author.
type Choice<'a> = BTreeMap<ReplicaId, (EntryId, &'a Sealed)>;
/// See [`Retirements::held`].
type Held<'a> = (Vec<&'a Asked>, Vec<(ReplicaId, (EntryId, &'a Sealed))>, Vec<(ReplicaId, &'a Assented)>);

/// The requests in one past, and its seals and assents of one set.
struct Round<'a> {
    set: &'a BTreeSet<ReplicaId>,
    asked: &'a [&'a Asked],
    /// By author, in order. Only who forked has sealed the set twice.
    forms: BTreeMap<ReplicaId, Vec<(EntryId, &'a Sealed)>>,
    assents: BTreeMap<ReplicaId, Vec<&'a Assented>>,
    members: &'a OrdMap<ReplicaId, MemberState>,
}

/// Everybody who must seal a set, and has.
struct Closed {
    sealers: BTreeSet<ReplicaId>,
    /// Their votes, each at its own seal.
    votes: u64,
    /// Of how many. Whom one of them knows to be retired they have all sealed, so the fewest that one knows of count.
    of: u64,
}

/// By which seals a round takes effect, and whose they are.
struct Made<'a> {
    choice: Choice<'a>,
    sealers: BTreeSet<ReplicaId>,
}

impl<'a> Round<'a> {
    fn of(
        set: &'a BTreeSet<ReplicaId>,
        asked: &'a [&'a Asked],
        seals: &[(ReplicaId, (EntryId, &'a Sealed))],
        assents: &[(ReplicaId, &'a Assented)],
        members: &'a OrdMap<ReplicaId, MemberState>,
    ) -> Self {
        let mut round = Self { set, asked, forms: BTreeMap::new(), assents: BTreeMap::new(), members };
        for (by, form) in seals.iter().filter(|(_, (_, seal))| seal.set == *set) {
            round.forms.entry(*by).or_default().push(*form);
        }
        for (by, assent) in assents.iter().filter(|(_, assent)| assent.set == *set) {
            round.assents.entry(*by).or_default().push(assent);
        }
        round
    }

    /// Everybody who must seal the set, if they have done so, with a majority, and have assented to each other's seals. Who must
    /// is known from the seals themselves: a seal comes after every admission that its author has made before, and whom it
    /// admits after that is bound by it. A newcomer seals too, but what took effect without it does not wait for those whom
    /// it alone knows: any sealer may be the first, and the fewest make the cut.
    fn made_by(&self, retired: &Retired) -> Option<Made<'a>> {
        let mut least: Option<Made<'a>> = None;
        for choice in self.choices() {
            if on(Mutant::OwnSealOnly) {
                let by = choice.keys().next().copied()?;
                return Some(Made { choice, sealers: BTreeSet::from([by]) });
            }
            // Looked at in the first place, since many are awaited for a while.
            let may = |by: ReplicaId| self.assents.contains_key(&by) || on(Mutant::AssentIgnored);
            let firsts = choice.keys().copied().filter(|first| may(*first));
            let closed = firsts.filter_map(|first| self.closure(&choice, first, may));
            let closed = closed.filter(|closed| self.is_enough(closed, retired)).map(|closed| closed.sealers);
            let mut distinct: Vec<_> = closed.collect::<BTreeSet<_>>().into_iter().collect();
            distinct.sort_by_key(BTreeSet::len);
            let made = distinct.into_iter().find(|sealers| self.is_assented(&choice, sealers));
            let fewer = |sealers: &BTreeSet<_>| least.as_ref().is_none_or(|made| sealers.len() < made.sealers.len());
            if let Some(sealers) = made.filter(fewer) {
                least = Some(Made { choice, sealers });
            }
        }
        least
    }

    /// One seal of each author; of one that forked, that which somebody has assented to.
    fn choices(&self) -> Vec<Choice<'a>> {
        let first = |forms: &Vec<(EntryId, &'a Sealed)>| forms.first().copied();
        if self.forms.values().all(|forms| forms.len() == 1) || on(Mutant::OwnSealOnly) || on(Mutant::AssentIgnored) {
            return vec![self.forms.iter().filter_map(|(by, forms)| Some((*by, first(forms)?))).collect()];
        }
        let mut choices: BTreeMap<Vec<EntryId>, Choice<'a>> = BTreeMap::new();
        for assent in self.assents.values().flatten() {
            let chosen = |forms: &Vec<(EntryId, &'a Sealed)>| {
                let mut held = forms.iter().filter(|(entry, _)| forms.len() == 1 || assent.seals.contains(entry));
                held.next().copied().filter(|_| held.next().is_none())
            };
            let choice: Choice<'a> = self.forms.iter().filter_map(|(by, forms)| Some((*by, chosen(forms)?))).collect();
            choices.insert(choice.values().map(|(entry, _)| *entry).collect(), choice);
        }
        choices.into_values().collect()
    }

    fn is_enough(&self, closed: &Closed, retired: &Retired) -> bool {
        let forced = self.asked.iter().filter(|asked| asked.request.force).flat_map(|asked| asked.set());
        let forced: BTreeSet<ReplicaId> = forced.chain(retired.replicas()).collect();
        is_majority(closed.votes, closed.of) || forced.is_superset(self.set)
    }

    /// Everybody who must seal the set, as one sealer and those it leads to know; none if a seal is missing, or one of them
    /// will not do.
    fn closure(&self, choice: &Choice<'a>, first: ReplicaId, does: impl Fn(ReplicaId) -> bool) -> Option<Closed> {
        let mut closed = Closed { sealers: BTreeSet::from([first]), votes: 0, of: VOTES };
        let mut missing = vec![first];
        while let Some(member) = missing.pop() {
            let (_, seal) = choice.get(&member).filter(|_| does(member))?;
            closed.votes = closed.votes.saturating_add(seal.votes);
            closed.of = closed.of.min(seal.of);
            let members = self.members.iter().filter(|(_, state)| state.admitted(&seal.frontier).is_some());
            let others = members.map(|(id, _)| *id).filter(|id| !self.set.contains(id));
            missing.extend(others.filter(|id| closed.sealers.insert(*id)));
        }
        Some(closed)
    }

    /// Whether each of these has assented to just these seals of theirs. Who held two of one author has assented to neither.
    fn is_assented(&self, choice: &Choice<'a>, sealers: &BTreeSet<ReplicaId>) -> bool {
        let to_these = |assent: &&Assented| {
            sealers.iter().all(|by| {
                let chosen = choice.get(by).map(|(entry, _)| *entry);
                let mut forms = self.forms.get(by).into_iter().flatten().map(|(entry, _)| *entry);
                forms.all(|form| assent.seals.contains(&form) == (Some(form) == chosen))
            })
        };
        let assents = |by| self.assents.get(by).is_some_and(|assents| assents.iter().any(to_these));
        on(Mutant::AssentIgnored) || sealers.iter().all(assents)
    }

    fn grave(&self, replica: ReplicaId, made: &Made<'a>, branches: &Branches) -> Option<Grave> {
        let seals = || made.sealers.iter().filter_map(|by| made.choice.get(by));
        let highest = |log| {
            let sealed = seals().filter_map(|(_, seal)| seal.frontier.0.get(&log).copied());
            if on(Mutant::LowestSeal) {
                sealed.min_by_key(|tip| tip.number)
            } else {
                sealed.max_by_key(|tip| tip.number)
            }
        };
        let cuts = branches.logs(replica).filter_map(|log| Some((log, highest(log)?))).collect();
        // Of several who named it apart, the lowest entry's heir: all are known, since their authors have sealed since.
        let first = self.asked.iter().filter(|asked| !asked.again.contains(&replica)).find_map(|asked| {
            let retiree = asked.request.set.iter().find(|retiree| retiree.replica == replica)?;
            Some((retiree.heir, asked.base.clone()))
        });
        first.map(|(heir, base)| {
            let stayed = base.difference(self.set).copied().collect();
            Grave { cuts, heir, base, stayed }
        })
    }
}
