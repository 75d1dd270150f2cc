//! Faults of the network: cuts of all shapes, and lines that are slow, lossy, duplicating, reordering or narrow.

use anyhow::{Context, Result};

use super::{Act, Nemesis, Planned};
use crate::run::Fault;

impl Nemesis<'_> {
    /// A cut, of a shape that chance decides.
    pub(super) fn partition(&mut self) -> Result<Option<Planned>> {
        let sites = self.shuffled()?;
        if sites.len() < 2 {
            return Ok(None);
        }
        let (one, other) = sites.split_at(sites.len() / 2);
        // With fewer than three sites there is no bridge, and half of two is one.
        let (shape, words, cut) = match self.rng.below(if sites.len() < 3 { 3 } else { 5 }) {
            0 => ("one way", format!("cut {} {} oneway", list(one), list(other)), pairs(one, other)),
            1 => {
                let (up, down) = (self.rng.between(200, 3_000), self.rng.between(200, 3_000));
                ("flapping", format!("flap {} {} up={up}ms down={down}ms", list(one), list(other)), both(one, other))
            }
            2 => {
                let (alone, others) = sites.split_at(1);
                ("one alone", format!("isolate {}", list(alone)), both(alone, others))
            }
            3 => ("halves", format!("cut {} {}", list(one), list(other)), both(one, other)),
            _ => {
                // The first reaches all; the others are two halves.
                let (_, others) = sites.split_at(1);
                let (one, other) = others.split_at(others.len() / 2);
                ("a bridge", format!("cut {} {}", list(one), list(other)), both(one, other))
            }
        };
        let hit: std::collections::BTreeSet<String> = cut.iter().map(|(from, _)| from.clone()).collect();
        let fault =
            Fault { sites: hit.into_iter().collect(), cut, detail: format!("{shape}: {words}"), ..Fault::default() };
        Ok(Some(Planned { fault, act: Act::Lines(vec![words]) }))
    }

    /// Lines that are worse than they are meant to be.
    pub(super) fn slow(&mut self) -> Result<Option<Planned>> {
        let sites = self.shuffled()?;
        let first = sites.first().context("a cloud without sites")?;
        let from = if self.rng.chance(500) { "*".to_owned() } else { first.clone() };
        let quality = match self.rng.below(5) {
            0 => format!("delay={}ms jitter={}ms", self.rng.between(50, 400), self.rng.between(1, 100)),
            1 => format!("loss={}%", self.rng.between(1, 20)),
            2 => format!("duplicate={}%", self.rng.between(1, 30)),
            3 => format!("jitter=20ms reorder={}%", self.rng.between(1, 30)),
            _ => format!("rate={}kbit queue=2s", self.rng.between(200, 5_000)),
        };
        let words = format!("set {from} * {quality}");
        let sites = if from == "*" { self.cluster()?.spec().sites.clone() } else { vec![from] };
        let fault = Fault { sites, detail: words.clone(), ..Fault::default() };
        Ok(Some(Planned { fault, act: Act::Lines(vec![words]) }))
    }

    /// The sites, in an order that chance decides.
    fn shuffled(&mut self) -> Result<Vec<String>> {
        let mut sites = self.cluster()?.spec().sites.clone();
        for at in (1..sites.len()).rev() {
            let other = usize::try_from(self.rng.below(u64::try_from(at)? + 1))?;
            sites.swap(at, other);
        }
        Ok(sites)
    }
}

fn list(sites: &[String]) -> String {
    sites.join(",")
}

fn pairs(from: &[String], to: &[String]) -> Vec<(String, String)> {
    from.iter().flat_map(|one| to.iter().map(|other| (one.clone(), other.clone()))).collect()
}

fn both(one: &[String], other: &[String]) -> Vec<(String, String)> {
    let mut cut = pairs(one, other);
    cut.extend(pairs(other, one));
    cut
}
