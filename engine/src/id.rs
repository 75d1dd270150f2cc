//! Identities. A type each, so that a host cannot stand in for a server.
//!
//! Records get random ids (UUIDv4) from whoever creates them: two halves of a split cloud must never make the same
//! one by accident. A replica's id is derived from its public key, so that it cannot be claimed by another.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Milliseconds since the Unix epoch, UTC. Shown to people; decides no acceptance and no winner (`PROTOCOL.md`, E6).
pub type Millis = u64;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl Ord for $name {
            /// As that of the bytes, in one comparison: maps of the whole state are ordered by ids.
            fn cmp(&self, other: &Self) -> Ordering {
                self.0.as_u128().cmp(&other.0.as_u128())
            }
        }
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    };
}

uuid_id!(
    /// One cloud: all sites that share one certificate authority and one state.
    CloudId
);
uuid_id!(
    /// One hypervisor, driven by one agent: the first 16 bytes of the BLAKE3 hash of its agent's first Ed25519 public
    /// key, so that nobody else can introduce a host by this name. Stable while the agent keeps its state directory.
    HostId
);
uuid_id!(
    /// One replica: the first 16 bytes of the BLAKE3 hash of its Ed25519 public key.
    ReplicaId
);

impl ReplicaId {
    /// The id that belongs to `public_key`.
    #[must_use]
    pub fn of_key(public_key: &[u8; 32]) -> Self {
        Self(of_key(public_key))
    }
}

impl HostId {
    /// The id that belongs to its agent's `public_key`.
    #[must_use]
    pub fn of_key(public_key: &[u8; 32]) -> Self {
        Self(of_key(public_key))
    }
}

fn of_key(public_key: &[u8; 32]) -> Uuid {
    let hash = blake3::hash(public_key);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    Uuid::from_bytes(id)
}

/// A site's name: an OpenStack availability zone. Lower-case letters, digits and `-`, at most 63 (a DNS label).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SiteName(std::sync::Arc<str>);

/// What is wrong with a site's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a site's name is 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit; got {0:?}")]
pub struct BadSiteName(pub String);

impl SiteName {
    /// Checks and makes a name.
    ///
    /// # Errors
    /// [`BadSiteName`] when it is not a lower-case DNS label.
    pub fn new(name: &str) -> Result<Self, BadSiteName> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let inner = name.chars().all(|c| label(c) || c == '-');
        let ends = name.starts_with(label) && name.ends_with(label);
        if inner && ends && name.len() <= 63 { Ok(Self(name.into())) } else { Err(BadSiteName(name.into())) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl Serialize for SiteName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
impl TryFrom<String> for SiteName {
    type Error = BadSiteName;
    fn try_from(s: String) -> Result<Self, BadSiteName> {
        Self::new(&s)
    }
}
impl From<SiteName> for String {
    fn from(s: SiteName) -> Self {
        s.0.as_ref().into()
    }
}
impl FromStr for SiteName {
    type Err = BadSiteName;
    fn from_str(s: &str) -> Result<Self, BadSiteName> {
        Self::new(s)
    }
}
impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The place of an entry in a log: entry `number` (1, 2, 3 …) of `author`, or of a branch if that has forked
/// ([`crate::branch`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    /// The log: who wrote it, or the name of a branch.
    pub author: ReplicaId,
    /// Its place in the author's log, from 1.
    pub number: u64,
}
impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.author.0, self.number)
    }
}
impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.author.0, self.number)
    }
}

/// A pool is named by the ledger operation that minted it (A2): entry and index in its ledger part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct PoolId {
    /// The entry that minted the pool.
    pub entry: EntryId,
    /// Which ledger operation of that entry.
    pub index: u32,
}

/// A claim is named by the ledger operation that made it (A3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct ClaimId {
    /// The entry that claimed. Its author is the claim's holder.
    pub entry: EntryId,
    /// Which ledger operation of that entry.
    pub index: u32,
}
impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.entry, self.index)
    }
}
impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.entry, self.index)
    }
}

impl FromStr for PoolId {
    type Err = BadPoolId;
    /// Reads what `Display` writes.
    fn from_str(s: &str) -> Result<Self, BadPoolId> {
        let bad = || BadPoolId(s.into());
        let (entry, index) = s.rsplit_once(':').ok_or_else(bad)?;
        let (author, number) = entry.rsplit_once(':').ok_or_else(bad)?;
        let author = author.parse().map_err(|_| bad())?;
        let number = number.parse().map_err(|_| bad())?;
        Ok(Self { entry: EntryId { author, number }, index: index.parse().map_err(|_| bad())? })
    }
}

/// Text that names no pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pool is author:number:index, got {0:?}")]
pub struct BadPoolId(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_names_are_dns_labels() {
        for good in ["paris", "a", "edge-7", "0x"] {
            assert_eq!(SiteName::new(good).map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", "Paris", "-a", "a-", "a.b", "é", "a b", &"x".repeat(64)] {
            assert!(SiteName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pools_are_read_as_they_are_written() {
        let entry = EntryId { author: ReplicaId(Uuid::from_u128(7)), number: 12 };
        let pool = PoolId { entry, index: 3 };
        assert_eq!(pool.to_string().parse(), Ok(pool));
        for bad in ["", "1:2", "x:1:2", "00000000-0000-0000-0000-000000000007:1:x"] {
            assert!(bad.parse::<PoolId>().is_err(), "{bad:?}");
        }
    }
}
