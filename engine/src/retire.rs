//! Retiring replicas that are gone for good: an agreement of the survivors (`PROTOCOL.md`, M2; `docs/reservations.md`).
//!
//! A **request** is an operator's word that some replicas are stopped. A **seal** says: of everybody who is named in the
//! requests I know, I hold what my frontier says, and I take no more than what another survivor names. A set takes
//! effect where every member outside it has sealed all of it, and each request in it has the seals of more than half of
//! its **base**: the members that its author knew. Then the **cut** of each is the highest seal: what it wrote up to
//! there stays, what it wrote after that is void, and its rights and claims are its heir's.
//!
//! Why a set and not each replica by itself: a survivor whose seal is awaited may be retired next, while somebody has its
//! seal and others have not. Those who stay then seal both anew, and decide them together. And why the base is counted
//! in the request's own past: a majority that grew and shrank with what the judge knows would be one here and none there.
//!
//! All of it is a function of the requests and seals in an entry's past, so every judge has the same answer (E3), and
//! what took effect once never ceases to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::entry::{Frontier, Tip};
use crate::id::{EntryId, ReplicaId};
use crate::view::MemberState;

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
    /// The members then, less those who were retired.
    pub(crate) base: BTreeSet<ReplicaId>,
    /// Those in the set whom an earlier request names: its heir stands.
    pub(crate) again: BTreeSet<ReplicaId>,
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
    seals: OrdMap<EntryId, Arc<Frontier>>,
}

/// A row of it, as it is stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Row {
    Request(Asked),
    Seal(Frontier),
}

/// The retirements that have taken effect, as somebody with a certain past sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retired {
    replicas: BTreeMap<ReplicaId, Grave>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Grave {
    /// The last entry that counts; none if none does.
    cut: Option<Tip>,
    heir: ReplicaId,
    /// The base of the request that named the heir: where heirs were named in a circle, the first of it that lives inherits.
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

    /// The number of the last entry of a retired replica that counts; none if it is not retired.
    #[must_use]
    pub fn cut(&self, replica: ReplicaId) -> Option<u64> {
        self.replicas.get(&replica).map(|grave| grave.cut.map_or(0, |tip| tip.number))
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

    /// Whether `replica` acts for `owner`: it is the owner, or its heir.
    #[must_use]
    pub fn acts_for(&self, replica: ReplicaId, owner: ReplicaId) -> bool {
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

    /// Whether a replica has sealed everything that it knows to be named.
    #[must_use]
    pub fn has_sealed(&self, replica: ReplicaId, past: &Frontier) -> bool {
        let named = self.named(past);
        self.seals_of(replica, past).any(|(_, sealed)| self.named(sealed) == named)
    }

    /// The highest entry of `replica` that is sealed in a past, once `by` has sealed it; none before.
    #[must_use]
    pub fn limit(&self, by: ReplicaId, replica: ReplicaId, past: &Frontier) -> Option<u64> {
        let names = |sealed: &Frontier| self.named(sealed).contains(&replica);
        self.seals_of(by, past).find(|(_, sealed)| names(sealed))?;
        let held = self.seals.iter().filter(|(entry, sealed)| past.holds(**entry) && names(sealed));
        held.map(|(_, sealed)| sealed.number(replica)).max()
    }

    /// Members whose seals are awaited, for what is named in a past and has not taken effect.
    #[must_use]
    pub fn awaited(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>) -> BTreeSet<ReplicaId> {
        let retired = self.effective(past, members);
        let named = self.named(past);
        let pending: BTreeSet<_> = named.iter().copied().filter(|id| !retired.contains(*id)).collect();
        let sealed = |id: ReplicaId| self.seals_of(id, past).any(|(_, seal)| self.named(seal).is_superset(&pending));
        let living = members.iter().filter(|(id, state)| !named.contains(id) && state.admitted(past).is_some());
        living.map(|(id, _)| *id).filter(|id| !pending.is_empty() && !sealed(*id)).collect()
    }

    /// What has taken effect in a past. Monotone: a larger past has no less, and the same cuts.
    #[must_use]
    pub fn effective(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>) -> Retired {
        let asked = self.requests.iter().filter(|(entry, _)| past.holds(**entry)).map(|(_, asked)| asked).collect();
        let seals = self.seals.iter().filter(|(entry, _)| past.holds(**entry));
        let seals = seals.map(|(entry, sealed)| Sealed { by: entry.author, sealed, set: self.named(sealed) }).collect();
        let judge = Judge { asked, seals, members };
        let mut retired = Retired::default();
        loop {
            let left = |sealed: &Sealed<'_>| sealed.set.iter().copied().filter(|id| !retired.contains(*id)).collect();
            let mut sets: Vec<BTreeSet<ReplicaId>> = judge.seals.iter().map(left).collect();
            sets.sort_by_key(BTreeSet::len);
            let effective = sets.into_iter().find(|set| !set.is_empty() && judge.takes_effect(set, &retired));
            let Some(set) = effective else { return retired };
            let graves: Vec<_> = set.iter().filter_map(|id| Some((*id, judge.grave(*id)?))).collect();
            retired.replicas.extend(graves);
        }
    }

    fn seals_of(&self, author: ReplicaId, past: &Frontier) -> impl Iterator<Item = (EntryId, &Arc<Frontier>)> {
        let (from, to) = (EntryId { author, number: 0 }, EntryId { author, number: past.number(author) });
        self.seals.range(from..=to).map(|(entry, sealed)| (*entry, sealed))
    }

    /// Whether a past has everything that is known here: then its answers are those of the present.
    pub(crate) fn all_in(&self, past: &Frontier) -> bool {
        self.requests.keys().chain(self.seals.keys()).all(|entry| past.holds(*entry))
    }

    pub(crate) fn insert(&mut self, entry: EntryId, row: Row) {
        match row {
            Row::Request(request) => drop(self.requests.insert(entry, request)),
            Row::Seal(frontier) => drop(self.seals.insert(entry, Arc::new(frontier))),
        }
    }

    /// The row that an entry brought: a request, or else a seal.
    pub(crate) fn row(&self, entry: EntryId) -> Option<Row> {
        let request = self.requests.get(&entry).cloned().map(Row::Request);
        request.or_else(|| self.seals.get(&entry).map(|frontier| Row::Seal(Frontier::clone(frontier))))
    }
}

/// The requests and seals in one past.
struct Judge<'a> {
    asked: Vec<&'a Asked>,
    seals: Vec<Sealed<'a>>,
    members: &'a OrdMap<ReplicaId, MemberState>,
}

/// A seal, and whom it covers.
struct Sealed<'a> {
    by: ReplicaId,
    sealed: &'a Frontier,
    set: BTreeSet<ReplicaId>,
}

impl Judge<'_> {
    fn takes_effect(&self, set: &BTreeSet<ReplicaId>, retired: &Retired) -> bool {
        let inside = |asked: &&&Asked| asked.set().all(|id| set.contains(&id) || retired.contains(id));
        let agreed = self.asked.iter().filter(inside).filter(|asked| asked.request.force || self.is_majority(asked));
        let named: BTreeSet<ReplicaId> = agreed.flat_map(|asked| asked.set()).collect();
        named.is_superset(set) && self.is_sealed_by_all(set, retired)
    }

    /// Whether more than half of a request's base, outside its set, have sealed its set.
    fn is_majority(&self, asked: &Asked) -> bool {
        let set: BTreeSet<ReplicaId> = asked.set().collect();
        let voters = asked.base.iter().filter(|id| !set.contains(id));
        voters.filter(|id| self.seal(**id, &set).is_some()).count() * 2 > asked.base.len()
    }

    /// Whether everybody who must seal `set` has done so. Who must is known from the seals themselves: a seal comes after
    /// every admission that its author has made before, and whom it admits after that is bound by it. A newcomer seals
    /// too, but what took effect without it does not wait for those whom it alone knows: any sealer may be the first.
    fn is_sealed_by_all(&self, set: &BTreeSet<ReplicaId>, retired: &Retired) -> bool {
        let outside = |id: &ReplicaId| !set.contains(id) && !retired.contains(*id);
        let is_closed = |first: ReplicaId| {
            let (mut known, mut missing) = (BTreeSet::from([first]), vec![first]);
            while let Some(member) = missing.pop() {
                let Some(seal) = self.seal(member, set) else { return false };
                let members = self.members.iter().filter(|(_, state)| state.admitted(seal.sealed).is_some());
                missing.extend(members.map(|(id, _)| *id).filter(|id| outside(id) && known.insert(*id)));
            }
            true
        };
        self.seals.iter().map(|seal| seal.by).filter(outside).any(is_closed)
    }

    /// A member's first seal that covers a set.
    fn seal(&self, by: ReplicaId, set: &BTreeSet<ReplicaId>) -> Option<&Sealed<'_>> {
        self.seals.iter().find(|seal| seal.by == by && seal.set.is_superset(set))
    }

    fn grave(&self, replica: ReplicaId) -> Option<Grave> {
        let seals = self.seals.iter().filter(|seal| seal.set.contains(&replica));
        let cut = seals.filter_map(|seal| seal.sealed.0.get(&replica).copied()).max_by_key(|tip| tip.number);
        // Of several who named it apart, the lowest entry's heir: all are known, since their authors have sealed since.
        let first = self.asked.iter().filter(|asked| !asked.again.contains(&replica)).find_map(|asked| {
            let retiree = asked.request.set.iter().find(|retiree| retiree.replica == replica)?;
            Some((retiree.heir, asked.base.clone()))
        });
        first.map(|(heir, base)| Grave { cut, heir, base })
    }
}
