//! Amounts: how much of what can run out, in one algebra for what is counted and for what is named.
//!
//! An amount is a vector of unsigned numbers (vCPU, MiB, servers, …) together with a set of addresses. Both parts are
//! ordered partial sums: what is granted, claimed or burnt is [`Amount::checked_sub`] of one account, what arrives is
//! [`Amount::checked_add`] to another; and two sets that have an address in common have no sum, as two numbers beyond
//! `u64` have none. So accounts need to know nothing of what they hold. That a pool holds either numbers or addresses,
//! and not both, is the ledger's rule ([`crate::ledger::BadLedgerOp::WrongKind`]), not this one's.
//!
//! Who wants any addresses rather than certain ones says how many: [`Dimension::Addresses`]. That is a wish, which is
//! asked for and refused in numbers, and never a right: what is then granted or claimed is named.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::interval::Intervals;

macro_rules! dimensions {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $words:literal;)*) => {
        /// What an amount counts. The numbers are part of the formats: never reuse one.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(into = "u8", try_from = "u8")]
        #[repr(u8)]
        pub enum Dimension { $($(#[$doc])* $name = $number,)* }

        impl Dimension {
            /// Every dimension, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name for people.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }

        impl From<Dimension> for u8 {
            fn from(dimension: Dimension) -> Self {
                match dimension { $(Dimension::$name => $number,)* }
            }
        }

        impl TryFrom<u8> for Dimension {
            type Error = BadAmount;
            fn try_from(number: u8) -> Result<Self, BadAmount> {
                match number { $($number => Ok(Self::$name),)* _ => Err(BadAmount) }
            }
        }
    };
}

dimensions! {
    /// vCPU, after overcommit (hosts); vCPU of servers (Nova's quota `cores`).
    Vcpus = 1, "vCPU";
    /// MiB of memory (Nova's quota `ram`).
    MemoryMib = 2, "MiB of memory";
    /// GiB of disk.
    DiskGib = 3, "GiB of disk";
    /// Servers.
    Instances = 4, "instances";
    /// Votes on retirements.
    Votes = 5, "votes";
    /// Any addresses, so many: in requests and refusals only.
    Addresses = 6, "addresses";
    /// Server groups.
    ServerGroups = 7, "server groups";
    /// Networks (Neutron's quota `network`).
    Networks = 16, "networks";
    /// Subnets (Neutron's `subnet`).
    Subnets = 17, "subnets";
    /// Ports (Neutron's `port`).
    Ports = 18, "ports";
    /// Routers (Neutron's `router`).
    Routers = 19, "routers";
    /// Floating addresses (Neutron's `floatingip`).
    FloatingIps = 20, "floating addresses";
    /// Security groups (Neutron's `security_group`).
    SecurityGroups = 21, "security groups";
    /// Rules of security groups (Neutron's `security_group_rule`).
    SecurityGroupRules = 22, "security group rules";
    /// Subnet pools (Neutron's `subnetpool`).
    SubnetPools = 23, "subnet pools";
    /// RBAC policies (Neutron's `rbac_policy`).
    RbacPolicies = 24, "RBAC policies";
    /// Volumes (Cinder's `volumes`).
    Volumes = 32, "volumes";
    /// Snapshots of volumes (Cinder's `snapshots`).
    Snapshots = 33, "snapshots";
    /// GiB of volumes and snapshots (Cinder's `gigabytes`).
    VolumeGib = 34, "GiB of volumes";
    /// Backups of volumes (Cinder's `backups`).
    Backups = 35, "backups";
    /// GiB of backups (Cinder's `backup_gigabytes`).
    BackupGib = 36, "GiB of backups";
    /// Groups of volumes (Cinder's `groups`).
    VolumeGroups = 37, "volume groups";
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Numbers and addresses, claimed all or nothing. Dimensions that are zero are left out, so that equal amounts are
/// equal bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(try_from = "Form")]
pub struct Amount {
    counts: Box<[(Dimension, u64)]>,
    /// None rather than empty. Shared: accounts are copied with the maps that hold them.
    addresses: Option<Arc<Intervals>>,
}

/// An amount as it travels.
type Form = (Vec<(Dimension, u64)>, Intervals);

/// An amount that is not in canonical form, or counts what is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an amount names known dimensions once, in order, and none that is zero")]
pub struct BadAmount;

impl TryFrom<Form> for Amount {
    type Error = BadAmount;
    fn try_from((counts, addresses): Form) -> Result<Self, BadAmount> {
        let sorted = counts.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if sorted && counts.iter().all(|(_, n)| *n > 0) { Ok(Self::of(counts, addresses)) } else { Err(BadAmount) }
    }
}
/// As `Form`, without a copy: every account of a pool that has changed is encoded.
impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.counts, self.addresses()).serialize(serializer)
    }
}
impl FromIterator<(Dimension, u64)> for Amount {
    /// Adds up; numbers beyond `u64` stay at its maximum.
    fn from_iter<I: IntoIterator<Item = (Dimension, u64)>>(parts: I) -> Self {
        let mut sum = std::collections::BTreeMap::<Dimension, u64>::new();
        for (dimension, n) in parts {
            let slot = sum.entry(dimension).or_default();
            *slot = slot.saturating_add(n);
        }
        Self { counts: sum.into_iter().filter(|(_, n)| *n > 0).collect(), addresses: None }
    }
}
impl From<Intervals> for Amount {
    fn from(addresses: Intervals) -> Self {
        Self::of(Vec::new(), addresses)
    }
}
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("nothing");
        }
        for (i, (dimension, n)) in self.counts.iter().enumerate() {
            write!(f, "{}{n} {dimension}", if i == 0 { "" } else { ", " })?;
        }
        match &self.addresses {
            None => Ok(()),
            Some(set) => write!(f, "{}{set}", if self.counts.is_empty() { "" } else { ", " }),
        }
    }
}

impl Amount {
    /// How much of one dimension.
    #[must_use]
    pub fn get(&self, dimension: Dimension) -> u64 {
        self.counts.iter().find(|(d, _)| *d == dimension).map_or(0, |(_, n)| *n)
    }

    /// The dimensions that are not zero, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Dimension, u64)> + '_ {
        self.counts.iter().copied()
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> &Intervals {
        static NONE: Intervals = Intervals::none();
        self.addresses.as_deref().unwrap_or(&NONE)
    }

    /// Nothing at all.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.counts.is_empty() && self.addresses.is_none()
    }

    /// Whether every dimension is at least that of `other`, and every address of it within.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(dimension, n)| self.get(dimension) >= n)
            && (other.addresses.is_none() || self.addresses().covers(other.addresses()))
    }

    /// The sum; none on overflow, or where an address would count twice.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        let counts = self.zip(other, u64::checked_add)?;
        Some(Self::of(counts, self.sets(other, Intervals::checked_add)?))
    }

    /// The difference; none where `other` is more than this in any dimension, or has an address that this lacks.
    #[must_use]
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        let counts = self.zip(other, u64::checked_sub)?;
        Some(Self::of(counts, self.sets(other, Intervals::checked_sub)?))
    }

    /// The sum, at most `u64::MAX` in each dimension; of sets the union.
    #[must_use]
    pub fn saturating_add(&self, other: &Self) -> Self {
        self.total(other, u64::saturating_add, Intervals::union)
    }

    /// What of this is over `other`, dimension by dimension; of sets the difference.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        self.total(other, u64::saturating_sub, Intervals::difference)
    }

    /// The lesser, dimension by dimension; of sets what is in both.
    #[must_use]
    pub fn min(&self, other: &Self) -> Self {
        self.total(other, u64::min, Intervals::intersection)
    }

    /// The greater, dimension by dimension; of sets what is in either.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        self.total(other, u64::max, Intervals::union)
    }

    /// Each dimension times `n`, without addresses; none on overflow.
    #[must_use]
    pub fn checked_mul(&self, n: u64) -> Option<Self> {
        self.iter().map(|(d, a)| a.checked_mul(n).map(|a| (d, a))).collect()
    }

    /// Each dimension divided by `n`, rounded down, without addresses; nothing if `n` is zero.
    #[must_use]
    pub fn divided_by(&self, n: u64) -> Self {
        self.iter().filter_map(|(d, a)| a.checked_div(n).map(|a| (d, a))).collect()
    }

    /// In numbers: addresses are counted, up to `u64::MAX`.
    #[must_use]
    pub fn counted(&self) -> Self {
        let addresses = (Dimension::Addresses, self.addresses().count());
        self.iter().chain(self.addresses.is_some().then_some(addresses)).collect()
    }

    /// In the terms of `wanted`: counted where that says how many addresses; where it says which, those of them.
    #[must_use]
    pub fn in_terms_of(&self, wanted: &Self) -> Self {
        match (wanted.get(Dimension::Addresses), &wanted.addresses) {
            (1.., _) => self.counted(),
            (0, Some(named)) => Self::of(self.counts.to_vec(), self.addresses().intersection(named)),
            (0, None) => self.clone(),
        }
    }

    /// What of this is of any use to who wants `wanted`: those dimensions, those addresses.
    #[must_use]
    pub fn towards(&self, wanted: &Self) -> Self {
        let mut useful: Self = self.iter().filter(|(d, _)| wanted.get(*d) > 0).collect();
        useful.addresses = self.min(wanted).addresses;
        useful
    }

    /// How large it is, all dimensions and addresses together: for ranking only.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.counted().iter().map(|(_, n)| n).fold(0, u64::saturating_add)
    }

    /// What to spend of these free rights for `wanted`; none if they do not cover it. Of any addresses, the lowest: what
    /// is used stays together, and so does what is free.
    #[must_use]
    pub fn choose(&self, wanted: &Self) -> Option<Self> {
        match wanted.get(Dimension::Addresses) {
            0 => self.covers(wanted).then(|| wanted.clone()),
            n => self.addresses().clone().take_lowest(n.into()).map(Self::from),
        }
    }

    /// What to hand over of these free rights to who asks for `wanted`: that, or half of what is free if that is more. Of
    /// any addresses, whole aligned blocks.
    #[must_use]
    pub fn gift(&self, wanted: &Self) -> Self {
        let half: Self = wanted.iter().map(|(d, _)| (d, self.counted().get(d) / 2)).collect();
        self.at_most(&wanted.max(&half))
    }

    /// What to hand over of these free rights to who asks for `wanted` ahead, keeping `keep` (which is counted), or the larger half
    /// if that is less: where there are few, one right is worth more to who has none than the second to who has two.
    #[must_use]
    pub fn spare(&self, wanted: &Self, keep: &Self) -> Self {
        let all = self.in_terms_of(wanted);
        let half = all.divided_by(2);
        let over = all.saturating_sub(keep).max(&half);
        self.at_most(&wanted.min(&over))
    }

    /// As much of these free rights as is wanted, or all of them.
    fn at_most(&self, wanted: &Self) -> Self {
        match wanted.get(Dimension::Addresses) {
            0 => wanted.min(self),
            n => self.addresses().blocks(n.into()).into(),
        }
    }

    fn of(counts: Vec<(Dimension, u64)>, addresses: Intervals) -> Self {
        Self { counts: counts.into_boxed_slice(), addresses: (!addresses.is_empty()).then(|| Arc::new(addresses)) }
    }

    fn total(&self, other: &Self, f: fn(u64, u64) -> u64, g: fn(&Intervals, &Intervals) -> Intervals) -> Self {
        let counts = self.zip(other, |a, b| Some(f(a, b))).unwrap_or_default();
        Self::of(counts, self.sets(other, |a, b| Some(g(a, b))).unwrap_or_default())
    }

    /// Two sets made one; not looked at where neither is there.
    fn sets(&self, other: &Self, f: impl Fn(&Intervals, &Intervals) -> Option<Intervals>) -> Option<Intervals> {
        match (&self.addresses, &other.addresses) {
            (None, None) => Some(Intervals::none()),
            _ => f(self.addresses(), other.addresses()),
        }
    }

    /// Both in order, so one pass.
    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> Option<u64>) -> Option<Vec<(Dimension, u64)>> {
        let mut all = Vec::with_capacity(self.counts.len().max(other.counts.len()));
        let (mut a, mut b) = (&*self.counts, &*other.counts);
        loop {
            let (dimension, x, y) = match (a, b) {
                ([(d, x), rest @ ..], [(e, y), others @ ..]) if d == e => {
                    (a, b) = (rest, others);
                    (*d, *x, *y)
                }
                ([(d, x), rest @ ..], [(e, _), ..]) if d < e => {
                    a = rest;
                    (*d, *x, 0)
                }
                ([(d, x), rest @ ..], []) => {
                    a = rest;
                    (*d, *x, 0)
                }
                (_, [(e, y), others @ ..]) => {
                    b = others;
                    (*e, 0, *y)
                }
                ([], []) => return Some(all),
            };
            let n = f(x, y)?;
            if n > 0 {
                all.push((dimension, n));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount() -> impl Strategy<Value = Amount> {
        let count = (0..Dimension::ALL.len(), 0_u64..4);
        let counts = proptest::collection::vec(count, 0..6);
        counts.prop_map(|parts| parts.into_iter().filter_map(|(d, n)| Some((*Dimension::ALL.get(d)?, n))).collect())
    }

    proptest! {
        #[test]
        fn each_dimension_is_reckoned_by_itself(a in amount(), b in amount()) {
            let each = |f: fn(u64, u64) -> u64| Dimension::ALL.iter().map(|d| (*d, f(a.get(*d), b.get(*d)))).collect::<Amount>();
            prop_assert_eq!(a.saturating_add(&b), each(u64::saturating_add));
            prop_assert_eq!(a.saturating_sub(&b), each(u64::saturating_sub));
            prop_assert_eq!(a.min(&b), each(u64::min));
            prop_assert_eq!(a.max(&b), each(u64::max));
            prop_assert_eq!(a.checked_sub(&b), a.covers(&b).then(|| each(u64::saturating_sub)));
        }

        #[test]
        fn it_travels_as_its_form(a in amount(), first in 0_u128..1 << 70) {
            let with = Amount { addresses: (first > 0).then(|| Arc::new(Intervals::single(first))), ..a };
            let form: Form = (with.counts.to_vec(), with.addresses().clone());
            let bytes = crate::entry::encode(&with);
            prop_assert_eq!(&bytes, &crate::entry::encode(&form));
            prop_assert_eq!(crate::entry::from_untrusted::<Amount>(&bytes).ok(), Some(with));
        }
    }
}
