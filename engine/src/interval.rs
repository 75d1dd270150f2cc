//! Sets of addresses: the algebra of address pools.
//!
//! An address is a number of 128 bits, IPv4 as IPv6 maps it (`::ffff:0:0/96`, RFC 4291): so a number says of which family
//! it is. A set is a list of disjoint intervals, in order and never adjacent: so equal sets are equal bytes, and everything
//! costs in proportion to the number of intervals and not of addresses. A /8 and a /64 are one interval each, like a /29.
//!
//! The operations are those that rights need: what is granted is taken from one account ([`Intervals::checked_sub`]) and
//! added to another ([`Intervals::checked_add`]), and never counted twice. What is handed over is cut in whole aligned
//! blocks ([`Intervals::blocks`]), of the smallest room that has them: so large blocks stay whole as long as can be.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Most pieces that [`Intervals::blocks`] gives at once: a share of crumbs makes everybody's accounts longer.
pub const MAX_BLOCKS: usize = 64;

/// Most intervals that a text names: a set can have thousands.
const SHOWN: usize = 16;

/// The numbers that stand for IPv4 addresses.
const IPV4: Interval = Interval { first: 0xffff_0000_0000, last: 0xffff_ffff_ffff };

/// From the first to the last, both within.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Interval {
    first: u128,
    last: u128,
}

impl Interval {
    /// From `first` to `last`; none if `last` is lower.
    #[must_use]
    pub fn new(first: u128, last: u128) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> u128 {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> u128 {
        self.last
    }

    /// Whether all of it is IPv4 (true) or none (false); none if it has addresses of both.
    #[must_use]
    pub fn is_ipv4(&self) -> Option<bool> {
        match self.meet(&IPV4) {
            None => Some(false),
            Some(common) => (common == *self).then_some(true),
        }
    }

    /// The highest aligned block of `2^bits` addresses within.
    fn block(&self, bits: u32) -> Option<Self> {
        let more = 1_u128.checked_shl(bits)? - 1;
        let below = self.after().map_or(0, |after| after & !more);
        // A block that ends at the highest number of all has nothing after it.
        let last = if below == 0 && self.last == u128::MAX { u128::MAX } else { below.checked_sub(1)? };
        let first = last.checked_sub(more).filter(|first| *first >= self.first)?;
        Some(Self { first, last })
    }

    /// How many bits the addresses of its largest aligned block differ in: 0 for a single address.
    fn bits(&self) -> u32 {
        // The largest is at most as long as the interval, and at least a quarter of it.
        let most = (self.last - self.first).checked_add(1).map_or(127, u128::ilog2);
        (0..=most).rev().find(|bits| self.block(*bits).is_some()).unwrap_or(0)
    }

    fn after(&self) -> Option<u128> {
        self.last.checked_add(1)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

/// A set of addresses, in canonical form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Deserialize)]
#[serde(try_from = "Vec<(Bytes, Bytes)>")]
pub struct Intervals(Vec<Interval>);

/// A list that is not a set in canonical form: its intervals are to be in order, disjoint, not adjacent and not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an address set names its intervals in order, and none that touches another")]
pub struct BadIntervals;

impl Intervals {
    /// The empty set.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Every address there is.
    #[must_use]
    pub fn full() -> Self {
        Self(vec![Interval { first: 0, last: u128::MAX }])
    }

    /// One address.
    #[must_use]
    pub fn single(address: u128) -> Self {
        Self(vec![Interval { first: address, last: address }])
    }

    /// Nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The intervals, in order.
    pub fn iter(&self) -> impl Iterator<Item = Interval> + '_ {
        self.0.iter().copied()
    }

    /// How many intervals: what everything costs.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.0.len()
    }

    /// How many addresses: none if it is all 2^128 of them, which `u128` cannot count.
    #[must_use]
    pub fn len(&self) -> Option<u128> {
        // Only the full set overflows: any other has at most 2^128 - 1.
        self.0.iter().try_fold(0_u128, |sum, one| sum.checked_add(one.last - one.first)?.checked_add(1))
    }

    /// How many addresses, at most `u64::MAX`.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.len().and_then(|len| u64::try_from(len).ok()).unwrap_or(u64::MAX)
    }

    /// Whether an address is within.
    #[must_use]
    pub fn contains(&self, address: u128) -> bool {
        let at = self.0.partition_point(|one| one.last < address);
        self.0.get(at).is_some_and(|one| one.first <= address)
    }

    /// Whether every address of `other` is within.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut joined: Vec<Interval> = Vec::with_capacity(self.0.len() + other.0.len());
        for one in merge(&self.0, &other.0) {
            match joined.last_mut() {
                // Touching intervals are one.
                Some(before) if before.after().is_none_or(|after| one.first <= after) => {
                    before.last = before.last.max(one.last);
                }
                _ => joined.push(one),
            }
        }
        Self(joined)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            common.extend(a.meet(b));
            // Whichever ends first meets nothing further on.
            if a.last <= b.last {
                mine.next()
            } else {
                theirs.next()
            };
        }
        Self(common)
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    /// The sum of two shares; none where they have an address in common, which would then count twice.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        self.intersection(other).is_empty().then(|| self.union(other))
    }

    /// The rest of a share; none where `other` is not all within.
    #[must_use]
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        self.covers(other).then(|| self.difference(other))
    }

    /// Takes the `n` lowest addresses out; none, and nothing is taken, if there are fewer.
    #[must_use]
    pub fn take_lowest(&mut self, n: u128) -> Option<Self> {
        if self.len().is_some_and(|len| len < n) {
            return None;
        }
        let (taken, rest) = self.split_lowest(n);
        *self = rest;
        Some(taken)
    }

    /// `n` of these addresses, or all if there are fewer, in whole aligned blocks as large as can be: the largest first,
    /// each out of the smallest room that has it, from the room's end. At most [`MAX_BLOCKS`] blocks, so perhaps fewer
    /// addresses; one at least, if there is any and `n` is not zero.
    #[must_use]
    pub fn blocks(&self, n: u128) -> Self {
        let (mut rest, mut taken, mut wanted) = (self.clone(), Self::none(), n);
        for _ in 0..MAX_BLOCKS {
            let Some(most) = wanted.checked_ilog2() else { break };
            let rooms = rest.0.iter().map(|room| (room.bits(), room));
            // Of rooms that have a block so large, the smallest; else the largest block that there is.
            let fitting = rooms.clone().filter(|(bits, _)| *bits >= most).min_by_key(|(bits, _)| *bits);
            let Some((bits, room)) = fitting.or_else(|| rooms.max_by_key(|(bits, _)| *bits)) else { break };
            let Some(block) = room.block(bits.min(most)) else { break };
            wanted -= block.last - block.first + 1;
            let block = Self(vec![block]);
            rest = rest.difference(&block);
            taken = taken.union(&block);
        }
        taken
    }

    /// Takes one address out. Says whether it was there.
    pub fn take(&mut self, address: u128) -> bool {
        let found = self.contains(address);
        if found {
            *self = self.difference(&Self::single(address));
        }
        found
    }

    /// `n` disjoint shares that together are this set; their sizes differ by one at most, the larger first. Each has
    /// neighbouring addresses: together they have at most `n - 1` intervals more than the set. None for `n` = 0.
    #[must_use]
    pub fn split(&self, n: u32) -> Vec<Self> {
        let mut rest = self.clone();
        let shares = (1..=u128::from(n)).rev().map(|left| {
            if left == 1 {
                return std::mem::take(&mut rest);
            }
            let (share, others) = rest.split_lowest(ceiling_of_share(&rest, left));
            rest = others;
            share
        });
        shares.collect()
    }

    /// The `n` lowest, and the rest. All if there are fewer.
    fn split_lowest(&self, n: u128) -> (Self, Self) {
        let (mut low, mut high, mut wanted) = (Vec::new(), Vec::new(), n);
        for one in self.iter() {
            // The last of the lowest `wanted` addresses of an interval, if that many are wanted at all.
            match wanted.checked_sub(1).map(|more| one.first.checked_add(more)) {
                None => high.push(one),
                Some(Some(last)) if last < one.last => {
                    low.push(Interval { first: one.first, last });
                    high.push(Interval { first: last + 1, last: one.last });
                    wanted = 0;
                }
                Some(_) => {
                    low.push(one);
                    wanted -= one.last - one.first + 1;
                }
            }
        }
        (Self(low), Self(high))
    }

    fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut from = Some(0);
        for one in &self.0 {
            let before = from.zip(one.first.checked_sub(1));
            gaps.extend(before.and_then(|(first, last)| Interval::new(first, last)));
            from = one.after();
        }
        gaps.extend(from.and_then(|first| Interval::new(first, u128::MAX)));
        Self(gaps)
    }
}

impl FromIterator<Interval> for Intervals {
    /// The union, in whatever order they come.
    fn from_iter<I: IntoIterator<Item = Interval>>(intervals: I) -> Self {
        let mut all: Vec<Interval> = intervals.into_iter().collect();
        all.sort_unstable();
        Self::default().union(&Self(all))
    }
}

/// An address as people write it.
fn text(address: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(address)).to_canonical()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl fmt::Display for Interval {
    /// `10.0.0.0/24` where it is one block, else `10.0.0.1` or `10.0.0.1-10.0.0.6`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = *self;
        if first == last {
            return write!(f, "{}", text(first));
        }
        let bits = self.bits();
        if self.block(bits) == Some(*self) {
            let length = if self.is_ipv4() == Some(true) { 32 } else { 128 };
            write!(f, "{}/{}", text(first), length - bits)
        } else {
            write!(f, "{}-{}", text(first), text(last))
        }
    }
}

/// Why a text names no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address, no block like 10.0.0.0/24 that begins where its prefix ends, and no range like 10.0.0.5-10.0.0.9"
)]
pub struct BadAddresses(pub String);

impl FromStr for Interval {
    type Err = BadAddresses;
    /// Reads what [`fmt::Display`] writes.
    fn from_str(given: &str) -> Result<Self, BadAddresses> {
        let bad = || BadAddresses(given.chars().take(100).collect());
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| bad());
        if let Some((first, last)) = given.split_once('-') {
            let (first, last) = (address(first)?, address(last)?);
            let same = first.is_ipv4() == last.is_ipv4();
            return Self::new(number(first), number(last)).filter(|_| same).ok_or_else(bad);
        }
        let Some((base, length)) = given.split_once('/') else {
            let one = number(address(given)?);
            return Ok(Self { first: one, last: one });
        };
        let base = address(base)?;
        let most: u32 = if base.is_ipv4() { 32 } else { 128 };
        let length: u32 = length.trim().parse().map_err(|_| bad())?;
        let bits = most.checked_sub(length).ok_or_else(bad)?;
        let more = 1_u128.checked_shl(bits).map_or(u128::MAX, |block| block - 1);
        let first = number(base);
        if first & more == 0 { Ok(Self { first, last: first | more }) } else { Err(bad()) }
    }
}

impl fmt::Display for Intervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no address");
        }
        for (i, one) in self.iter().take(SHOWN).enumerate() {
            write!(f, "{}{one}", if i == 0 { "" } else { ", " })?;
        }
        match self.pieces().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more blocks"),
        }
    }
}

/// How many of `set` the first of `left` shares gets, `left` being two at least.
fn ceiling_of_share(set: &Intervals, left: u128) -> u128 {
    match set.len() {
        Some(len) => len.div_ceil(left),
        // 2^128 = MAX + 1, and there are at least two shares.
        None => u128::MAX / left + 1,
    }
}

fn merge<'a>(a: &'a [Interval], b: &'a [Interval]) -> impl Iterator<Item = Interval> + 'a {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if y < x => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

/// A number as it travels: big endian, without its leading zeros. MessagePack has no 128-bit integer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl From<u128> for Bytes {
    fn from(n: u128) -> Self {
        let bytes = n.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros..].to_vec())
    }
}

impl Bytes {
    fn number(&self) -> Option<u128> {
        let mut bytes = [0; 16];
        let from = bytes.len().checked_sub(self.0.len())?;
        bytes[from..].copy_from_slice(&self.0);
        // One number has one form.
        (self.0.first() != Some(&0)).then_some(u128::from_be_bytes(bytes))
    }
}

/// On the wire: of each interval its distance from the one before, and how many follow its first address. So small pools
/// far up in IPv6 stay small, and an order that is not canonical cannot be said.
impl Serialize for Intervals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut from = 0;
        serializer.collect_seq(self.0.iter().map(|one| {
            let pair = (Bytes::from(one.first - from), Bytes::from(one.last - one.first));
            from = one.last;
            pair
        }))
    }
}

impl TryFrom<Vec<(Bytes, Bytes)>> for Intervals {
    type Error = BadIntervals;
    fn try_from(pairs: Vec<(Bytes, Bytes)>) -> Result<Self, BadIntervals> {
        let mut set: Vec<Interval> = Vec::with_capacity(pairs.len());
        for (distance, more) in pairs {
            let (distance, more) = (distance.number().ok_or(BadIntervals)?, more.number().ok_or(BadIntervals)?);
            let from = set.last().map(|before| before.last);
            // A gap of at least one address, or they would be one interval.
            if from.is_some() && distance < 2 {
                return Err(BadIntervals);
            }
            let first = from.unwrap_or(0).checked_add(distance).ok_or(BadIntervals)?;
            let last = first.checked_add(more).ok_or(BadIntervals)?;
            set.push(Interval { first, last });
        }
        Ok(Self(set))
    }
}
