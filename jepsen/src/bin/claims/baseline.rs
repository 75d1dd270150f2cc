//! The two designs that everybody thinks of first, under the same load.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::load::{CAPACITY, HEAL, Load, Micros, SITES, Verdict};

/// Each site has an eighth, for ever.
pub(crate) fn equal_shares(load: &Load) -> Vec<Verdict> {
    let mut free = [CAPACITY / SITES as u64; SITES];
    replay(load, |event| match event {
        Event::Release { site, .. } => {
            free[site] += 1;
            Verdict::Here
        }
        Event::Claim { site, .. } if free[site] > 0 => {
            free[site] -= 1;
            Verdict::Here
        }
        Event::Claim { .. } if free.iter().any(|n| *n > 0) => Verdict::False,
        Event::Claim { .. } => Verdict::Full,
    })
}

/// One counter, at the busiest site. Who cannot reach it can claim nothing; what is released meanwhile is counted when
/// the links heal.
pub(crate) fn central_counter(load: &Load) -> Vec<Verdict> {
    const CENTRE: usize = 0;
    let (mut counter, mut unreported) = (CAPACITY, 0);
    replay(load, |event| {
        let (Event::Claim { site, at } | Event::Release { site, at }) = event;
        let cut = load.is_cut(site, CENTRE, at);
        if at >= HEAL {
            counter += std::mem::take(&mut unreported);
        }
        match event {
            Event::Release { .. } => {
                *(if cut { &mut unreported } else { &mut counter }) += 1;
                Verdict::Here
            }
            Event::Claim { .. } if !cut && counter > 0 => {
                counter -= 1;
                if site == CENTRE { Verdict::Here } else { Verdict::Asked }
            }
            Event::Claim { .. } if counter + unreported > 0 => Verdict::False,
            Event::Claim { .. } => Verdict::Full,
        }
    })
}

enum Event {
    Claim { site: usize, at: Micros },
    Release { site: usize, at: Micros },
}

/// Runs the arrivals, and the ends of those that were granted, in order of time.
fn replay(load: &Load, mut handle: impl FnMut(Event) -> Verdict) -> Vec<Verdict> {
    let mut ends: BinaryHeap<Reverse<(Micros, usize)>> = BinaryHeap::new();
    let mut verdicts = Vec::with_capacity(load.arrivals.len());
    for arrival in &load.arrivals {
        while let Some(Reverse((at, site))) = ends.peek().copied().filter(|Reverse((at, _))| *at <= arrival.at) {
            ends.pop();
            handle(Event::Release { site, at });
        }
        let verdict = handle(Event::Claim { site: arrival.site, at: arrival.at });
        if matches!(verdict, Verdict::Here | Verdict::Asked) {
            ends.push(Reverse((arrival.at + arrival.lifetime, arrival.site)));
        }
        verdicts.push(verdict);
    }
    verdicts
}
