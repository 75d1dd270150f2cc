//! The ends of logs, by log: a sorted run of pairs, shared until one of its owners changes it.
//!
//! A frontier is copied far more often than it is changed: into views, transactions, chains and messages, of every peer. A
//! clone is a reference count, and a change of one that is shared is one copy of 32 bytes for each log.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::entry::Tip;
use crate::id::ReplicaId;

/// Log → its last entry, in order of the logs.
#[derive(Clone, Eq, Debug, Default)]
pub struct Tips(Arc<Vec<(ReplicaId, Tip)>>);

impl Tips {
    /// The end of a log.
    #[must_use]
    pub fn get(&self, log: &ReplicaId) -> Option<&Tip> {
        let at = self.find(log).ok()?;
        self.0.get(at).map(|(_, tip)| tip)
    }

    /// Puts the end of a log. Returns what it was.
    pub fn insert(&mut self, log: ReplicaId, tip: Tip) -> Option<Tip> {
        match self.find(&log) {
            Ok(at) => Arc::make_mut(&mut self.0).get_mut(at).map(|(_, old)| std::mem::replace(old, tip)),
            Err(at) => {
                Arc::make_mut(&mut self.0).insert(at, (log, tip));
                None
            }
        }
    }

    /// Takes a log away. Returns what its end was.
    pub fn remove(&mut self, log: &ReplicaId) -> Option<Tip> {
        let at = self.find(log).ok()?;
        Some(Arc::make_mut(&mut self.0).remove(at).1)
    }

    /// Keeps only those that `keeps` says.
    pub fn retain(&mut self, keeps: impl Fn(&ReplicaId, &Tip) -> bool) {
        if !self.0.iter().all(|(log, tip)| keeps(log, tip)) {
            Arc::make_mut(&mut self.0).retain(|(log, tip)| keeps(log, tip));
        }
    }

    /// With these ends in place of lower ones: none if they are not in order, if one is not higher than what is here, or if
    /// one is of the log `but`. One pass, however many there are.
    pub(crate) fn raised(&self, ends: &[(ReplicaId, Tip)], but: &ReplicaId) -> Option<Self> {
        let mut all = Vec::with_capacity(self.0.len() + ends.len() + 1);
        let mut rest = self.0.as_slice();
        let mut last: Option<ReplicaId> = None;
        for (log, tip) in ends {
            if last.is_some_and(|last| last >= *log) || log == but || tip.number == 0 {
                return None;
            }
            last = Some(*log);
            let below = rest.iter().take_while(|(held, _)| held < log).count();
            let (lower, higher) = rest.split_at_checked(below)?;
            all.extend_from_slice(lower);
            rest = match higher.split_first() {
                Some(((held, old), _)) if held == log && old.number >= tip.number => return None,
                Some(((held, _), higher)) if held == log => higher,
                _ => higher,
            };
            all.push((*log, *tip));
        }
        all.extend_from_slice(rest);
        Some(Self(Arc::new(all)))
    }

    /// All of them, in order.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(pair as fn(&(ReplicaId, Tip)) -> (&ReplicaId, &Tip))
    }

    /// All of them, each with the end of the same log in another.
    pub fn beside<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a ReplicaId, &'a Tip, Option<&'a Tip>)> {
        let mut rest = other.0.as_slice();
        self.0.iter().map(move |(log, tip)| {
            while let Some((_, later)) = rest.split_first().filter(|((first, _), _)| first < log) {
                rest = later;
            }
            (log, tip, rest.first().filter(|(first, _)| first == log).map(|(_, tip)| tip))
        })
    }

    /// The logs, in order.
    pub fn keys(&self) -> impl Iterator<Item = &ReplicaId> {
        self.0.iter().map(|(log, _)| log)
    }

    /// The ends, in order of their logs.
    pub fn values(&self) -> impl Iterator<Item = &Tip> {
        self.0.iter().map(|(_, tip)| tip)
    }

    /// How many logs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether two are one and the same, without a look at what is in them.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn find(&self, log: &ReplicaId) -> Result<usize, usize> {
        self.0.binary_search_by(|(held, _)| held.cmp(log))
    }
}

/// See [`Tips::iter`].
pub type Iter<'a> = std::iter::Map<std::slice::Iter<'a, (ReplicaId, Tip)>, fn(&(ReplicaId, Tip)) -> (&ReplicaId, &Tip)>;

fn pair((log, tip): &(ReplicaId, Tip)) -> (&ReplicaId, &Tip) {
    (log, tip)
}

impl PartialEq for Tips {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0 == other.0
    }
}
impl PartialEq<BTreeMap<ReplicaId, Tip>> for Tips {
    fn eq(&self, other: &BTreeMap<ReplicaId, Tip>) -> bool {
        self.iter().eq(other.iter())
    }
}
impl<'a> IntoIterator for &'a Tips {
    type Item = (&'a ReplicaId, &'a Tip);
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
impl FromIterator<(ReplicaId, Tip)> for Tips {
    /// Of one log, the last counts.
    fn from_iter<I: IntoIterator<Item = (ReplicaId, Tip)>>(tips: I) -> Self {
        let mut all: Vec<(ReplicaId, Tip)> = tips.into_iter().collect();
        if !all.windows(2).all(|two| two[0].0 < two[1].0) {
            all = all.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        }
        Self(Arc::new(all))
    }
}
impl<const N: usize> From<[(ReplicaId, Tip); N]> for Tips {
    fn from(tips: [(ReplicaId, Tip); N]) -> Self {
        tips.into_iter().collect()
    }
}
impl<'a> Extend<(&'a ReplicaId, &'a Tip)> for Tips {
    fn extend<I: IntoIterator<Item = (&'a ReplicaId, &'a Tip)>>(&mut self, tips: I) {
        for (log, tip) in tips {
            self.insert(*log, *tip);
        }
    }
}

/// As a map, on disk and wire.
impl Serialize for Tips {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
impl<'de> Deserialize<'de> for Tips {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> serde::de::Visitor<'de> for Pairs {
            type Value = Tips;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of logs and their ends")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Tips, A::Error> {
                // What the sender says of its length is believed up to a page only.
                let mut all = Vec::with_capacity(map.size_hint().unwrap_or(0).min(128));
                while let Some(pair) = map.next_entry()? {
                    all.push(pair);
                }
                Ok(all.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn log(n: u8) -> ReplicaId {
        ReplicaId(Uuid::from_u128(n.into()))
    }

    proptest! {
        #[test]
        fn they_are_a_map(steps in proptest::collection::vec((0_u8..4, 0_u8..6, 1_u64..9), 0..40)) {
            let (mut tips, mut map) = (Tips::default(), BTreeMap::new());
            let mut before = Vec::new();
            for (what, of, number) in steps {
                let tip = Tip { number, hash: number };
                match what {
                    0 => prop_assert_eq!(tips.remove(&log(of)), map.remove(&log(of))),
                    1 => before.push((tips.clone(), map.clone())),
                    _ => prop_assert_eq!(tips.insert(log(of), tip), map.insert(log(of), tip)),
                }
                prop_assert_eq!(tips.get(&log(of)), map.get(&log(of)));
            }
            let mut ends: Vec<_> = before.iter().flat_map(|(tips, _)| tips.iter()).map(|(log, tip)| (*log, *tip)).collect();
            ends.sort_by_key(|(log, tip)| (*log, tip.number));
            ends.dedup_by_key(|(log, _)| *log);
            let is_higher = |(of, tip): &(ReplicaId, Tip)| map.get(of).is_none_or(|held: &Tip| held.number < tip.number);
            let raised = tips.raised(&ends, &log(9));
            prop_assert_eq!(raised.is_some(), ends.iter().all(is_higher));
            if let Some(raised) = raised {
                let mut expected = map.clone();
                expected.extend(ends.iter().copied());
                prop_assert_eq!(&raised, &expected, "as if they were put one by one");
            }
            if let Some((first, _)) = ends.first() {
                prop_assert_eq!(tips.raised(&ends, first), None, "not its own");
                let twice: Vec<_> = ends.iter().chain(&ends).copied().collect();
                prop_assert_eq!(Tips::default().raised(&twice, &log(9)), None, "in order");
            }
            before.push((tips, map));
            for (tips, map) in before {
                prop_assert_eq!(&tips, &map, "a clone does not change");
                let bytes = crate::entry::encode(&map);
                prop_assert_eq!(&bytes, &crate::entry::encode(&tips), "the same bytes as a map's");
                prop_assert_eq!(crate::entry::from_untrusted::<Tips>(&bytes).ok(), Some(tips));
            }
        }
    }
}
