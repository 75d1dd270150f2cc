//! The load that all designs are put under, and what becomes of each request: the same arrivals for all of them.
//!
//! Eight sites create servers in one project of 800: arrivals at random moments (Poisson), lifetimes exponential with a
//! mean of ten minutes, so that utilisation is stable. Skew: site k of 8 has a share of the load that goes with 1/kˢ.

use std::collections::BTreeSet;

use jepsen::sim::rng::Rng;

/// Virtual time, microseconds.
pub(crate) type Micros = u64;

pub(crate) const SECOND: Micros = 1_000_000;
pub(crate) const SITES: usize = 8;
/// Rights in the pool.
pub(crate) const CAPACITY: u64 = 800;
/// Mean lifetime of a server, seconds.
const LIFETIME: f64 = 600.0;
/// Over so many seconds at the start the servers come that there are in the steady state.
const FILL: f64 = 60.0;
/// From here on the load is steady.
pub(crate) const STEADY: Micros = 600 * SECOND;
/// When the cut begins.
pub(crate) const CUT: Micros = 1_800 * SECOND;
/// When it ends.
pub(crate) const HEAL: Micros = CUT + 3_600 * SECOND;

/// Which links are cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Cut {
    /// Four sites and four, drawn by lot.
    Halves,
    /// Every site from every other.
    Alone,
}

/// One combination.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(crate) struct Plan {
    /// Offered load as a share of the capacity.
    pub(crate) utilisation: f64,
    /// The exponent s.
    pub(crate) skew: f64,
    pub(crate) cut: Cut,
}

/// A request for one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Micros,
    pub(crate) site: usize,
    pub(crate) lifetime: Micros,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Granted without a message to another site.
    Here,
    /// Granted after others were asked.
    Asked,
    /// Refused, though a right was free somewhere.
    False,
    /// Refused, and none was free anywhere.
    Full,
}

/// One seed of a plan: who asks when, and who is where when the links are cut.
pub(crate) struct Load {
    pub(crate) arrivals: Vec<Arrival>,
    /// The share of the load that falls to each site, the busiest first.
    pub(crate) shares: Vec<f64>,
    sides: [usize; SITES],
}

impl Load {
    pub(crate) fn new(plan: &Plan, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let weights: Vec<f64> = (1..=SITES).map(|k| (k as f64).powf(-plan.skew)).collect();
        let total: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let mut arrivals = Vec::new();
        for (site, share) in shares.iter().enumerate() {
            let servers = plan.utilisation * CAPACITY as f64 * share;
            poisson(&mut rng, servers / FILL, 0.0, FILL, |at, rng| arrivals.push(arrival(at, site, rng)));
            let end = HEAL as f64 / SECOND as f64;
            poisson(&mut rng, servers / LIFETIME, FILL, end, |at, rng| arrivals.push(arrival(at, site, rng)));
        }
        arrivals.sort_by_key(|arrival| (arrival.at, arrival.site));
        Self { arrivals, shares, sides: sides(plan.cut, &mut Rng::new(seed, 2)) }
    }

    /// Whether two sites cannot hear each other.
    pub(crate) fn is_cut(&self, a: usize, b: usize, now: Micros) -> bool {
        (CUT..HEAL).contains(&now) && self.sides.get(a) != self.sides.get(b)
    }
}

fn sides(cut: Cut, rng: &mut Rng) -> [usize; SITES] {
    let mut sides: [usize; SITES] = std::array::from_fn(|site| site);
    if cut == Cut::Halves {
        let mut first = BTreeSet::new();
        while first.len() < SITES / 2 {
            first.insert(rng.below(SITES as u64) as usize);
        }
        sides = std::array::from_fn(|site| usize::from(first.contains(&site)));
    }
    sides
}

fn arrival(at: f64, site: usize, rng: &mut Rng) -> Arrival {
    Arrival { at: micros(at), site, lifetime: micros(exponential(rng) * LIFETIME).max(1) }
}

/// Calls `each` at random moments, so many times a second on average.
fn poisson(rng: &mut Rng, rate: f64, from: f64, to: f64, mut each: impl FnMut(f64, &mut Rng)) {
    let mut at = from;
    loop {
        at += exponential(rng) / rate;
        if at >= to {
            return;
        }
        each(at, rng);
    }
}

/// A random number with the mean 1.
fn exponential(rng: &mut Rng) -> f64 {
    let unit = (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64;
    -(1.0 - unit).ln()
}

fn micros(seconds: f64) -> Micros {
    (seconds * SECOND as f64) as Micros
}
