//! Retiring replicas that are gone for good: an agreement of the survivors (`PROTOCOL.md`, M2; `docs/reservations.md`).
//!
//! A **request** is an operator's word that some replicas are stopped. A **seal** of a set says: of everybody in it I hold
//! what my frontier says, and I take no more than what another survivor names. A **round**, all seals of one and the same
//! set, takes effect where every member outside it has sealed it, and those hold more than half of all votes. Then the
//! **cut** of each is the highest seal: what it wrote up to there stays, what it wrote after that is void, and its rights
//! and claims are its heir's.
//!
//! Why a set and not each replica by itself: a survivor whose seal is awaited may be retired next, while somebody has its
//! seal and others have not. Those who stay then seal the larger set anew, and decide both together. Why equal sets: a
//! sealer's sets only grow, so of two rounds that share one, one contains the other. Why votes and not heads: whoever
//! admits members makes heads. **Votes** are rights like all others: minted once, by the founder's first entry, moved by
//! their holder alone, inherited. So two disjoint sets of survivors cannot both have more than half.
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
    /// The votes of its author, of [`VOTES`] in all.
    pub(crate) votes: u64,
}

impl Asked {
    fn set(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.request.set.iter().map(|retiree| retiree.replica)
    }
}

/// What survivors have asked and sealed, by the entries that brought it.
#[derive(Clone, Debug, Default)]
pub struct Retirements {
    requests: OrdMap<EntryId, Asked>,
    seals: OrdMap<EntryId, Arc<Sealed>>,
    /// By author, the last entry that brought one of either.
    last: OrdMap<ReplicaId, u64>,
}

/// A row of it, as it is stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Row {
    Request(Asked),
    Seal(Sealed),
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

    /// Whom the author of an entry had sealed when it wrote that.
    pub(crate) fn sealed_before(&self, entry: EntryId) -> impl Iterator<Item = ReplicaId> + '_ {
        let from = EntryId { number: 0, ..entry };
        self.seals.range(from..=entry).next_back().into_iter().flat_map(|(_, seal)| seal.set.iter().copied())
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

    /// Members whose seals are awaited, for what is named in a past and has not taken effect.
    #[must_use]
    pub fn awaited(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>) -> BTreeSet<ReplicaId> {
        let named = self.named(past);
        let living = members.iter().filter(|(id, state)| !named.contains(id) && state.admitted(past).is_some());
        living.map(|(id, _)| *id).filter(|id| !self.sealed_by(*id, past).is_superset(&named)).collect()
    }

    /// What has taken effect in a past. Monotone: a larger past has no less, and the same cuts.
    #[must_use]
    pub fn effective(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>, branches: &Branches) -> Retired {
        let asked = self.requests.iter().filter(|(entry, _)| past.holds(**entry)).map(|(_, asked)| asked);
        let asked: Vec<&Asked> = asked.collect();
        let seals = self.seals.iter().filter(|(entry, _)| past.holds(**entry));
        let seals = seals.map(|(entry, seal)| (branches.author(entry.author), &**seal)).collect();
        let seals: Vec<(ReplicaId, &Sealed)> = seals;
        let mut sets: Vec<&BTreeSet<ReplicaId>> = seals.iter().map(|(_, seal)| &seal.set).collect();
        sets.sort_by_key(|set| set.len());
        sets.dedup();
        let mut retired = Retired { branches: branches.clone(), ..Retired::default() };
        for set in sets {
            let larger = retired.replicas().all(|replica| set.contains(&replica));
            let judge = Judge::of(set, &asked, &seals, members, branches);
            if let Some(sealers) = judge.sealers(&retired).filter(|_| larger) {
                let new = set.iter().filter(|id| !retired.contains(**id));
                let graves: Vec<_> = new.filter_map(|id| Some((*id, judge.grave(*id, &sealers)?))).collect();
                retired.replicas.extend(graves);
            }
        }
        retired
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
            request.max(self.seals.range(rows).next_back().map(|(entry, _)| *entry))
        };
        self.last.keys().filter_map(last).collect()
    }

    pub(crate) fn insert(&mut self, entry: EntryId, row: Row) {
        let last = self.last.get(&entry.author).copied().unwrap_or(0);
        self.last.insert(entry.author, last.max(entry.number));
        match row {
            Row::Request(request) => drop(self.requests.insert(entry, request)),
            Row::Seal(seal) => drop(self.seals.insert(entry, Arc::new(seal))),
        }
    }

    /// All rows.
    pub(crate) fn rows(&self) -> Vec<(EntryId, Row)> {
        let entries = self.requests.keys().chain(self.seals.keys());
        entries.filter_map(|entry| Some((*entry, self.row(*entry)?))).collect()
    }

    /// The row that an entry brought: a request, or else a seal.
    pub(crate) fn row(&self, entry: EntryId) -> Option<Row> {
        let request = self.requests.get(&entry).cloned().map(Row::Request);
        request.or_else(|| self.seals.get(&entry).map(|seal| Row::Seal(Sealed::clone(seal))))
    }
}

impl Rename for (EntryId, Row) {
    fn rename(&mut self, by: &Renaming) {
        self.0.rename(by);
        match &mut self.1 {
            Row::Request(_) => {}
            Row::Seal(sealed) => sealed.frontier.rename(by),
        }
    }
}

/// The requests in one past, and its seals of one set.
struct Judge<'a> {
    set: &'a BTreeSet<ReplicaId>,
    asked: &'a [&'a Asked],
    seals: BTreeMap<ReplicaId, &'a Sealed>,
    members: &'a OrdMap<ReplicaId, MemberState>,
    branches: &'a Branches,
}

impl<'a> Judge<'a> {
    fn of(
        set: &'a BTreeSet<ReplicaId>,
        asked: &'a [&'a Asked],
        seals: &[(ReplicaId, &'a Sealed)],
        members: &'a OrdMap<ReplicaId, MemberState>,
        branches: &'a Branches,
    ) -> Self {
        // Of two of one author, the first.
        let of_set = seals.iter().rev().filter(|(_, seal)| seal.set == *set).copied();
        Self { set, asked, seals: of_set.collect(), members, branches }
    }

    /// Everybody who must seal the set, if they have done so, with a majority. Who must is known from the seals themselves: a
    /// seal comes after every admission that its author has made before, and whom it admits after that is bound by it.
    /// A newcomer seals too, but what took effect without it does not wait for those whom it alone knows: any sealer may
    /// be the first, and the fewest make the cut.
    fn sealers(&self, retired: &Retired) -> Option<BTreeSet<ReplicaId>> {
        let forced = self.asked.iter().filter(|asked| asked.request.force).flat_map(|asked| asked.set());
        let forced: BTreeSet<ReplicaId> = forced.chain(retired.replicas()).collect();
        let is_enough = |votes: u64| votes > VOTES / 2 || forced.is_superset(self.set);
        let mut first = self.seals.keys().copied();
        if on(Mutant::OwnSealOnly) {
            return first.next().map(|by| BTreeSet::from([by]));
        }
        let closed = first.filter_map(|first| self.closure(first)).filter(|(_, votes)| is_enough(*votes));
        closed.map(|(sealers, _)| sealers).min_by_key(BTreeSet::len)
    }

    /// Everybody who must seal the set, as one sealer and those it leads to know, and their votes; none if a seal is missing.
    fn closure(&self, first: ReplicaId) -> Option<(BTreeSet<ReplicaId>, u64)> {
        let (mut known, mut missing, mut votes) = (BTreeSet::from([first]), vec![first], 0_u64);
        while let Some(member) = missing.pop() {
            let seal = self.seals.get(&member)?;
            votes = votes.saturating_add(seal.votes);
            let members = self.members.iter().filter(|(_, state)| state.admitted(&seal.frontier).is_some());
            missing.extend(members.map(|(id, _)| *id).filter(|id| !self.set.contains(id) && known.insert(*id)));
        }
        Some((known, votes))
    }

    fn grave(&self, replica: ReplicaId, sealers: &BTreeSet<ReplicaId>) -> Option<Grave> {
        let seals = || sealers.iter().filter_map(|by| self.seals.get(by));
        let highest = |log| {
            let sealed = seals().filter_map(|seal| seal.frontier.0.get(&log).copied());
            if on(Mutant::LowestSeal) {
                sealed.min_by_key(|tip| tip.number)
            } else {
                sealed.max_by_key(|tip| tip.number)
            }
        };
        let cuts = self.branches.logs(replica).filter_map(|log| Some((log, highest(log)?))).collect();
        // Of several who named it apart, the lowest entry's heir: all are known, since their authors have sealed since.
        let first = self.asked.iter().filter(|asked| !asked.again.contains(&replica)).find_map(|asked| {
            let retiree = asked.request.set.iter().find(|retiree| retiree.replica == replica)?;
            Some((retiree.heir, asked.base.clone()))
        });
        first.map(|(heir, base)| Grave { cuts, heir, base })
    }
}
