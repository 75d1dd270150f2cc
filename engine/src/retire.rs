//! Retiring replicas that are gone for good: an agreement of the survivors (`PROTOCOL.md`, M2).
//!
//! A **request** is an operator's word that some replicas are stopped. A **seal** says: of everything that is named in
//! the requests I know, I hold what my frontier says, and I take no more of it than another survivor has sealed or
//! named. The seals with one and the same set of names are a **round**. A round takes effect where every member outside
//! its set has sealed it, and those are more than half of the members that the last round left. Then the **cut** of each
//! retired replica is the highest seal: what it wrote up to there stays, what it wrote after that is void, and its
//! rights and claims are its heir's.
//!
//! Why a round and not each replica by itself: a survivor whose seal is awaited may be retired next, while somebody
//! has its seal and others have not. Sealing the larger set anew decides both together. And why equal sets: a sealer's
//! chain is a line, so the sets that it seals grow; two rounds with majorities share a sealer, so of any two rounds
//! that take effect one contains the other, and nobody ever believes in two disjoint sets of survivors.
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

/// What survivors have asked and sealed, by the entries that brought it.
#[derive(Clone, Debug, Default)]
pub struct Retirements {
    requests: OrdMap<EntryId, Request>,
    seals: OrdMap<EntryId, Arc<Frontier>>,
}

/// A row of it, as it is stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Row {
    Request(Request),
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
    /// Who sealed it, in order: the first that lives inherits where heirs were named in a circle.
    sealers: Arc<BTreeSet<ReplicaId>>,
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
                return first.sealers.iter().find(|sealer| !self.contains(**sealer)).copied();
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
        held.flat_map(|(_, request)| request.set.iter().map(|retiree| retiree.replica)).collect()
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
        let named = self.named(past);
        let living = members.iter().filter(|(id, state)| !named.contains(id) && state.admitted(past).is_some());
        let sealed = |id: ReplicaId| self.seals_of(id, past).any(|(_, sealed)| self.named(sealed) == named);
        living.map(|(id, _)| *id).filter(|id| !sealed(*id)).collect()
    }

    /// What has taken effect in a past. Monotone: a larger past has no less, and the same cuts.
    #[must_use]
    pub fn effective(&self, past: &Frontier, members: &OrdMap<ReplicaId, MemberState>) -> Retired {
        let mut retired = Retired::default();
        let held = self.seals.iter().filter(|(entry, _)| past.holds(**entry));
        let mut rounds: Vec<BTreeSet<ReplicaId>> = held.map(|(_, sealed)| self.named(sealed)).collect();
        rounds.sort_by_key(BTreeSet::len);
        rounds.dedup();
        for set in rounds {
            let larger = retired.replicas.keys().all(|replica| set.contains(replica));
            if let Some(round) = self.round(&set, past, members).filter(|_| larger)
                && (self.is_forced(&set, &retired, past) || round.is_majority(&retired))
            {
                self.bury(&mut retired, &set, &round, past);
            }
        }
        retired
    }

    /// Everybody who must seal `set` has done so: none if somebody has not. Who must is known from the seals themselves:
    /// a seal comes after every admission that its author has made, so nobody is forgotten.
    fn round(
        &self,
        set: &BTreeSet<ReplicaId>,
        past: &Frontier,
        members: &OrdMap<ReplicaId, MemberState>,
    ) -> Option<Round> {
        let mut round = Round::default();
        let of_set = |entry: &EntryId, sealed: &Frontier| past.holds(*entry) && self.named(sealed) == *set;
        let first = self.seals.iter().find(|(entry, sealed)| of_set(entry, sealed) && !set.contains(&entry.author))?;
        let mut missing = vec![first.0.author];
        while let Some(member) = missing.pop() {
            let (_, sealed) = self.seals_of(member, past).find(|(_, sealed)| self.named(sealed) == *set)?;
            round.sealers.insert(member);
            for (id, _) in members.iter().filter(|(_, state)| state.admitted(sealed).is_some()) {
                if round.members.insert(*id) && !set.contains(id) && !round.sealers.contains(id) {
                    missing.push(*id);
                }
            }
        }
        Some(round)
    }

    fn is_forced(&self, set: &BTreeSet<ReplicaId>, retired: &Retired, past: &Frontier) -> bool {
        let forced = self.requests.iter().filter(|(entry, request)| request.force && past.holds(**entry));
        let forced: BTreeSet<_> = forced.flat_map(|(_, request)| request.set.iter().map(|one| one.replica)).collect();
        set.iter().all(|replica| retired.contains(*replica) || forced.contains(replica))
    }

    fn bury(&self, retired: &mut Retired, set: &BTreeSet<ReplicaId>, round: &Round, past: &Frontier) {
        let sealers = Arc::new(round.sealers.clone());
        for replica in set {
            let request = self.requests.iter().filter(|(entry, _)| past.holds(**entry));
            // Of several requests the lowest entry's heir: all are known, since their authors have sealed since.
            let heir = request.flat_map(|(_, request)| &request.set).find(|retiree| retiree.replica == *replica);
            let seals =
                self.seals.iter().filter(|(entry, sealed)| past.holds(**entry) && self.named(sealed).contains(replica));
            let cut = seals.filter_map(|(_, sealed)| sealed.0.get(replica).copied()).max_by_key(|tip| tip.number);
            if let Some(Retiree { heir, .. }) = heir.filter(|_| !retired.contains(*replica)) {
                retired.replicas.insert(*replica, Grave { cut, heir: *heir, sealers: sealers.clone() });
            }
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

#[derive(Default)]
struct Round {
    members: BTreeSet<ReplicaId>,
    sealers: BTreeSet<ReplicaId>,
}

impl Round {
    /// More than half of the members that earlier rounds have left.
    fn is_majority(&self, retired: &Retired) -> bool {
        let left = self.members.iter().filter(|member| !retired.contains(**member)).count();
        self.sealers.len() * 2 > left
    }
}
