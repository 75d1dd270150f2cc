//! Address sets against a naive model, at both ends of the numbers.
//!
//! Broken once each, to see these fail: touching intervals left apart; a share one too large; a gap of one accepted from the
//! wire; a block that is not aligned; a block that begins where its prefix does not; the complement of a set that ends at the highest address.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use luc_engine::interval::{Interval, Intervals};
use proptest::prelude::*;

type Naive = BTreeSet<u128>;

/// Where the small numbers of a test lie: at the bottom, in the middle, and at the very top.
const PLACES: [u128; 3] = [0, 1 << 64, u128::MAX - 63];

fn interval(first: u128, last: u128) -> Interval {
    Interval::new(first, last).unwrap()
}

fn naive(set: &Intervals) -> Naive {
    set.iter().flat_map(|one| one.first()..=one.last()).collect()
}

fn set_of(numbers: &Naive) -> Intervals {
    numbers.iter().map(|n| interval(*n, *n)).collect()
}

fn is_canonical(set: &Intervals) -> bool {
    let all: Vec<Interval> = set.iter().collect();
    all.windows(2).all(|pair| pair[0].last() < pair[1].first() && pair[1].first() - pair[0].last() > 1)
}

/// Numbers near each other, so that sets touch, overlap and have gaps.
fn numbers() -> impl Strategy<Value = Naive> {
    let place = proptest::sample::select(PLACES.to_vec());
    (place, proptest::collection::vec((0_u128..64, 0_u128..9), 0..8)).prop_map(|(place, runs)| {
        runs.into_iter().flat_map(|(from, n)| (from..(from + n).min(64)).map(move |i| place + i)).collect()
    })
}

/// Two sets at one place.
fn two() -> impl Strategy<Value = (Naive, Naive)> {
    (proptest::sample::select(PLACES.to_vec()), any::<u64>(), any::<u64>()).prop_map(|(place, a, b)| {
        let of = |bits: u64| (0..64).filter(|i| bits >> i & 1 == 1).map(|i| place + i).collect();
        // Runs of ones are more telling than noise.
        (of(a & (a >> 1 | a << 1)), of(b & (b >> 1 | b << 1)))
    })
}

proptest! {
    #[test]
    fn it_is_the_set_of_its_addresses((a, b) in two()) {
        let (x, y) = (set_of(&a), set_of(&b));
        prop_assert_eq!(naive(&x), a.clone());
        for (made, wanted) in [
            (x.union(&y), &a | &b),
            (x.intersection(&y), &a & &b),
            (x.difference(&y), &a - &b),
        ] {
            prop_assert!(is_canonical(&made), "{made}");
            prop_assert_eq!(&made, &set_of(&wanted));
            prop_assert_eq!(made.len(), Some(wanted.len() as u128));
        }
        prop_assert_eq!(x.covers(&y), b.is_subset(&a));
        prop_assert_eq!(x.checked_sub(&y), b.is_subset(&a).then(|| set_of(&(&a - &b))));
        prop_assert_eq!(x.checked_add(&y), a.is_disjoint(&b).then(|| set_of(&(&a | &b))));
        for n in a.union(&b) {
            prop_assert_eq!(x.contains(*n), a.contains(n));
        }
    }

    #[test]
    fn what_is_taken_is_taken_once(all in numbers(), n in 0_u128..70, at in 0_usize..64) {
        let mut set = set_of(&all);
        let lowest: Naive = all.iter().copied().take(usize::try_from(n).unwrap()).collect();
        match set.take_lowest(n) {
            Some(taken) => {
                prop_assert_eq!(naive(&taken), lowest.clone());
                prop_assert_eq!(naive(&set), &all - &lowest);
            }
            None => prop_assert!((all.len() as u128) < n && set == set_of(&all)),
        }
        let mut set = set_of(&all);
        if let Some(address) = all.iter().nth(at) {
            prop_assert!(set.take(*address) && !set.take(*address));
            prop_assert_eq!(set.len(), Some(all.len() as u128 - 1));
            prop_assert!(set.checked_add(&Intervals::single(*address)).is_some_and(|back| back == set_of(&all)));
        }
    }

    #[test]
    fn shares_are_nearly_equal_and_lose_nothing(all in numbers(), n in 1_u32..9) {
        let set = set_of(&all);
        let shares = set.split(n);
        prop_assert_eq!(shares.len(), n as usize);
        let sizes: Vec<u128> = shares.iter().map(|share| share.len().unwrap()).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        prop_assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]));
        let together = shares.iter().try_fold(Intervals::default(), |sum, share| sum.checked_add(share));
        prop_assert_eq!(together, Some(set.clone()));
        let intervals: usize = shares.iter().map(|share| share.iter().count()).sum();
        prop_assert!(intervals < set.iter().count() + n as usize);
    }

    /// Blocks are of the set, as many as are wanted, and cut it as little as can be.
    #[test]
    fn blocks_are_whole_and_aligned(all in numbers(), n in 0_u128..70) {
        let set = set_of(&all);
        let taken = set.blocks(n);
        prop_assert_eq!(taken.len(), Some(n.min(all.len() as u128)));
        prop_assert!(set.covers(&taken) && is_canonical(&taken));
        // A power of two is one aligned block, if there is one.
        let aligned = |size: u128| all.iter().any(|from| from.is_multiple_of(size) && (0..size).all(|i| all.contains(&(from + i))));
        if n.is_power_of_two() && aligned(n) {
            let pieces: Vec<Interval> = taken.iter().collect();
            prop_assert!(pieces.len() == 1 && pieces[0].first().is_multiple_of(n), "{taken}");
            // Of the rooms that have one, not a larger than the smallest: it adds an interval at most.
            prop_assert!(set.difference(&taken).pieces() <= set.pieces() + 1);
        }
    }

    /// Whoever gives halves away again and again keeps one piece, and what comes back makes it whole.
    #[test]
    fn halves_merge_again(bits in 2_u32..100, base in 0_u128..1000) {
        let first = base << bits;
        let whole = Intervals::from_iter([interval(first, first + ((1_u128 << bits) - 1))]);
        let (mut rest, mut given) = (whole.clone(), Vec::new());
        while rest.len() > Some(1) {
            let half = rest.blocks(rest.len().unwrap() / 2);
            rest = rest.checked_sub(&half).unwrap();
            prop_assert_eq!((half.pieces(), rest.pieces()), (1, 1));
            given.push(half);
        }
        let together = given.iter().rev().try_fold(rest, |sum, half| sum.checked_add(half));
        prop_assert_eq!(together, Some(whole));
    }

    #[test]
    fn people_read_what_they_wrote(all in numbers(), v4 in any::<bool>()) {
        // IPv4 at the end of its block, where a step further is no IPv4 any more.
        let place = |n: &u128| if v4 { 0xffff_ffff_ff00 + n % 256 } else { *n };
        let set = set_of(&all.iter().map(place).collect());
        let read: Intervals = set.iter().map(|one| one.to_string().parse::<Interval>().unwrap()).collect();
        prop_assert_eq!(&read, &set);
        prop_assert!(set.iter().all(|one| one.is_ipv4() == Some(v4) && one.to_string().contains('.') == v4), "{set}");
    }

    #[test]
    fn it_travels_in_one_form_only(all in numbers()) {
        let set = set_of(&all);
        let bytes = rmp_serde::to_vec(&set).unwrap();
        prop_assert_eq!(rmp_serde::from_slice::<Intervals>(&bytes).unwrap(), set);
    }

    /// Whatever decodes is canonical, and encodes to the same bytes.
    #[test]
    fn what_is_not_canonical_does_not_decode(pairs in proptest::collection::vec((bytes(), bytes()), 0..5)) {
        let sent = rmp_serde::to_vec(&pairs).unwrap();
        if let Ok(set) = rmp_serde::from_slice::<Intervals>(&sent) {
            prop_assert!(is_canonical(&set));
            prop_assert_eq!(rmp_serde::to_vec(&set).unwrap(), sent);
        }
    }
}

fn bytes() -> impl Strategy<Value = serde_bytes::ByteBuf> {
    let small = (0_u8..4).prop_map(|n| if n == 0 { vec![] } else { vec![n] });
    let long = (14_usize..18).prop_flat_map(|n| proptest::collection::vec(any::<u8>(), n));
    let short = proptest::collection::vec(any::<u8>(), 0..3);
    prop_oneof![6 => small, 2 => short, 1 => long].prop_map(serde_bytes::ByteBuf::from)
}

#[test]
fn the_largest_pools_are_as_cheap_as_the_smallest() {
    let prefix = |base: u128, bits: u32| Intervals::from_iter([interval(base, base + ((1_u128 << bits) - 1))]);
    for (pool, size) in
        [(prefix(0xc000_0208, 3), 8), (prefix(0x0a00_0000, 24), 1 << 24), (prefix(0x2001_0db8 << 96, 64), 1_u128 << 64)]
    {
        assert_eq!(pool.len(), Some(size));
        let bytes = rmp_serde::to_vec(&pool).unwrap();
        assert!(bytes.len() <= 32, "{} bytes for {pool}", bytes.len());
        let shares = pool.split(500);
        assert!(shares.iter().all(|share| share.iter().count() <= 1));
        assert_eq!(shares.iter().filter_map(Intervals::len).sum::<u128>(), size);
    }
}

#[test]
fn every_address_there_is() {
    let full = Intervals::full();
    assert_eq!(full.len(), None);
    assert!(full.contains(0) && full.contains(u128::MAX) && full.covers(&full));
    assert!(full.difference(&full).is_empty());
    assert_eq!(full.split(1), std::slice::from_ref(&full));
    for n in [2_u32, 3, 7, 256] {
        let shares = full.split(n);
        let sizes: Vec<u128> = shares.iter().filter_map(Intervals::len).collect();
        assert_eq!(sizes.len(), n as usize);
        assert!(sizes[0] - sizes[n as usize - 1] <= 1);
        assert_eq!(shares.iter().fold(Intervals::default(), |sum, share| sum.checked_add(share).unwrap()), full);
    }
    let mut rest = full.clone();
    assert_eq!(rest.take_lowest(u128::MAX).unwrap().len(), Some(u128::MAX));
    assert_eq!(rest, Intervals::single(u128::MAX));
    assert!(rest.take(u128::MAX) && rest.is_empty());
    let bytes = rmp_serde::to_vec(&full).unwrap();
    assert_eq!(rmp_serde::from_slice::<Intervals>(&bytes).unwrap(), full);
}

#[test]
fn nothing_is_a_set_too() {
    let mut none = Intervals::default();
    assert_eq!((none.len(), none.split(3).len(), none.split(0).len()), (Some(0), 3, 0));
    assert_eq!(none.take_lowest(0), Some(Intervals::default()));
    assert_eq!(none.take_lowest(1), None);
    assert!(!none.contains(0) && Intervals::full().covers(&none));
    assert_eq!(none.to_string(), "no address");
    assert_eq!(Intervals::from_iter([interval(1, 1), interval(3, 9), interval(2, 2)]).to_string(), "::1-::9");
    assert!(Interval::new(2, 1).is_none());
}

#[test]
fn as_people_write_addresses() {
    for good in [
        "10.0.0.0/8",
        "192.0.2.7",
        "192.0.2.7-192.0.2.9",
        "2001:db8::/64",
        "8000::/1",
        "0.0.0.0/0",
        "2001:db8::1-2001:db8::ff",
    ] {
        assert_eq!(good.parse::<Interval>().unwrap().to_string(), good);
    }
    assert_eq!("10.0.0.0-10.0.0.255".parse::<Interval>().unwrap().to_string(), "10.0.0.0/24");
    assert_eq!("::ffff:10.0.0.1".parse::<Interval>(), "10.0.0.1".parse());
    for bad in [
        "",
        "/",
        "-",
        "10.0.0.1/24",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1-::1",
        "ten",
        "2001:db8::1/64",
    ] {
        assert!(bad.parse::<Interval>().is_err(), "{bad:?}");
    }
    assert_eq!("::/0".parse::<Interval>().unwrap().is_ipv4(), None);
}

#[test]
fn a_share_is_not_made_of_crumbs() {
    let crumbs: Intervals = (0..1_000_u128).map(|n| interval(2 * n, 2 * n)).collect();
    assert!(crumbs.to_string().ends_with("::1e and 984 more blocks"), "{crumbs}");
    assert_eq!(crumbs.blocks(500).pieces(), luc_engine::interval::MAX_BLOCKS);
    let full = Intervals::full();
    assert_eq!(full.blocks(1 << 127).len(), Some(1 << 127));
    assert_eq!(full.blocks(1).iter().next(), Some(interval(u128::MAX, u128::MAX)));
}
