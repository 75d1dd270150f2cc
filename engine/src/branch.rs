//! Branches: the logs of an author who signed two entries with one number (`PROTOCOL.md`, M3; `docs/reservations.md`).
//!
//! A log that forks at entry n ends before n, and what follows are logs of their own, each named by the hash of its first entry:
//! so all who hold the same entries have the same names for them, whichever came first. [`EntryId`] names an entry by its log,
//! and everything that is named by an entry (pools, claims, admissions) follows. A replica that learns of a fork renames
//! what it holds; that is rare, since a forked author is retired. What an author wrote before it knew of the fork names
//! entries of the undivided log: its frontier says which branch it means.

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use crate::entry::{Frontier, Hash, Tip};
use crate::id::{ClaimId, EntryId, PoolId, ReplicaId};

/// Where a branch leaves the log that forked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Branch {
    /// Who wrote it.
    pub author: ReplicaId,
    /// The log that it continues: the author's, or another branch.
    pub parent: ReplicaId,
    /// The number of its first entry.
    pub first: u64,
}

/// All branches of which entries are held.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Branches {
    branches: OrdMap<ReplicaId, Branch>,
    of: OrdMap<ReplicaId, Vector<ReplicaId>>,
}

impl Branches {
    /// The name of the branch of `author` that begins with a certain entry.
    #[must_use]
    pub fn name(author: ReplicaId, first: &Hash) -> ReplicaId {
        let bytes = [b"luc/branch/1\0".as_slice(), author.0.as_bytes(), &first.0].concat();
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        ReplicaId(uuid::Uuid::from_bytes(id))
    }

    /// Nobody has forked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.branches.is_empty()
    }

    /// Where a branch begins; none for the log of an author who has not forked, or its part before the fork.
    #[must_use]
    pub fn get(&self, log: ReplicaId) -> Option<&Branch> {
        self.branches.get(&log)
    }

    /// Who wrote a log.
    #[must_use]
    pub fn author(&self, log: ReplicaId) -> ReplicaId {
        self.branches.get(&log).map_or(log, |branch| branch.author)
    }

    /// Whether two entries with one number of this author are held.
    #[must_use]
    pub fn is_forked(&self, author: ReplicaId) -> bool {
        self.of.contains_key(&author)
    }

    /// Whether a branch leaves this log.
    #[must_use]
    pub fn is_parent(&self, log: ReplicaId) -> bool {
        self.branches.values().any(|branch| branch.parent == log)
    }

    /// Everybody of whom two entries with one number are held.
    pub fn forked(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.of.keys().copied()
    }

    /// The logs of an author: one, or that before the fork and its branches.
    pub fn logs(&self, author: ReplicaId) -> impl Iterator<Item = ReplicaId> + '_ {
        std::iter::once(author).chain(self.of.get(&author).into_iter().flatten().copied())
    }

    /// The number of a log's first entry.
    #[must_use]
    pub fn first(&self, log: ReplicaId) -> u64 {
        self.branches.get(&log).map_or(1, |branch| branch.first)
    }

    /// Which entry is meant by a name that somebody with this past has written: one who did not know of the fork has one
    /// branch only in its past. The name itself if it cannot be told.
    #[must_use]
    pub fn resolve(&self, id: EntryId, past: &Frontier) -> EntryId {
        if !self.is_forked(id.author) {
            return id;
        }
        let holds = |log: &ReplicaId| self.first(*log) <= id.number && id.number <= past.number(*log);
        let mut logs = self.logs(id.author).filter(holds);
        match (logs.next(), logs.next()) {
            (Some(author), None) => EntryId { author, number: id.number },
            _ => id,
        }
    }

    /// Of two logs of one author, the branches by which they part; none if one continues the other.
    #[must_use]
    pub fn part(&self, one: ReplicaId, other: ReplicaId) -> Option<(ReplicaId, ReplicaId)> {
        let (one, other) = (self.line(one), self.line(other));
        one.into_iter().zip(other).find(|(a, b)| a != b)
    }

    /// Whether `log` is `branch`, or leaves it later.
    #[must_use]
    pub fn continues(&self, log: ReplicaId, branch: ReplicaId) -> bool {
        self.line(log).contains(&branch)
    }

    /// From the author's log down to this one.
    pub(crate) fn line(&self, log: ReplicaId) -> Vec<ReplicaId> {
        let mut line = vec![log];
        let mut at = log;
        while let Some(branch) = self.branches.get(&at) {
            at = branch.parent;
            line.push(at);
        }
        line.reverse();
        line
    }

    /// Takes up a branch as it was stored.
    pub(crate) fn put_back(&mut self, log: ReplicaId, branch: Branch) {
        let logs = self.of.entry(branch.author).or_default();
        if let Err(at) = logs.binary_search(&log) {
            logs.insert(at, log);
        }
        self.branches.insert(log, branch);
    }

    /// Takes up a branch. Those that left its parent after its first entry leave it.
    pub(crate) fn insert(&mut self, log: ReplicaId, branch: Branch) {
        let others: Vec<ReplicaId> = self.of.get(&branch.author).into_iter().flatten().copied().collect();
        for other in others {
            if let Some(one) = self.branches.get_mut(&other)
                && one.parent == branch.parent
                && one.first > branch.first
            {
                one.parent = log;
            }
        }
        self.put_back(log, branch);
    }
}

/// What was one log's from an entry on is another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renaming {
    pub(crate) log: ReplicaId,
    pub(crate) first: u64,
    pub(crate) to: ReplicaId,
    /// The last entry that stays.
    pub(crate) before: Option<Tip>,
}

/// What names entries.
pub(crate) trait Rename {
    fn rename(&mut self, by: &Renaming);
}

impl Rename for EntryId {
    fn rename(&mut self, by: &Renaming) {
        if self.author == by.log && self.number >= by.first {
            self.author = by.to;
        }
    }
}
impl Rename for PoolId {
    fn rename(&mut self, by: &Renaming) {
        self.entry.rename(by);
    }
}
impl Rename for ClaimId {
    fn rename(&mut self, by: &Renaming) {
        self.entry.rename(by);
    }
}
impl Rename for Frontier {
    fn rename(&mut self, by: &Renaming) {
        if let Some(tip) = self.0.get(&by.log).copied().filter(|tip| tip.number >= by.first) {
            self.set(by.to, tip);
            match by.before {
                Some(before) => self.set(by.log, before),
                None => drop(self.0.remove(&by.log)),
            }
        }
    }
}
impl<T: Rename> Rename for Vec<T> {
    fn rename(&mut self, by: &Renaming) {
        self.iter_mut().for_each(|one| one.rename(by));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn id(n: u128) -> ReplicaId {
        ReplicaId(Uuid::from_u128(n))
    }

    #[test]
    fn a_branch_that_leaves_earlier_takes_the_later_ones_with_it() {
        let mut branches = Branches::default();
        for (log, parent, first) in [(2, 1, 7), (3, 1, 7), (4, 2, 9), (5, 2, 9)] {
            branches.insert(id(log), Branch { author: id(1), parent: id(parent), first });
        }
        // The log forks at 4 too: what it was from there on is a branch, which the others left later.
        for log in [6, 7] {
            branches.insert(id(log), Branch { author: id(1), parent: id(1), first: 4 });
            if log == 6 {
                assert_eq!(branches.line(id(4)), [1, 6, 2, 4].map(id));
            }
        }
        assert_eq!(branches.part(id(4), id(7)), Some((id(6), id(7))));
        assert_eq!(branches.part(id(4), id(3)), Some((id(2), id(3))));
        assert_eq!(branches.part(id(4), id(2)), None);
        assert!(branches.continues(id(5), id(6)) && !branches.continues(id(5), id(4)));
    }
}
