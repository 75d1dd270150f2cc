//! Faults of the network: cuts of all shapes, and lines that are slow, lossy, duplicating, reordering or narrow.

use anyhow::Result;

use super::deck::shuffle;
use super::{Act, Nemesis, Planned};
use crate::run::Fault;
use crate::sim::rng::Rng;

impl Nemesis<'_> {
    /// A cut, of a shape that chance decides.
    pub(super) fn partition(&mut self) -> Result<Option<Planned>> {
        let sites = self.cluster()?.spec().sites.clone();
        Ok(planned(cut(sites, &mut self.rng)))
    }

    /// Lines that are worse than they are meant to be.
    pub(super) fn slow(&mut self) -> Result<Option<Planned>> {
        let sites = self.cluster()?.spec().sites.clone();
        Ok(planned(worse(sites, &mut self.rng)))
    }
}

/// What the switch is told, and whom it hits.
fn planned(fault: Option<(Fault, String)>) -> Option<Planned> {
    fault.map(|(fault, words)| Planned { fault, act: Act::Lines(vec![words]) })
}

fn cut(mut sites: Vec<String>, rng: &mut Rng) -> Option<(Fault, String)> {
    shuffle(&mut sites, rng);
    if sites.len() < 2 {
        return None;
    }
    let (one, other) = sites.split_at(sites.len() / 2);
    // With fewer than three sites there is no bridge, and half of two is one.
    let (shape, words, cut) = match rng.below(if sites.len() < 3 { 3 } else { 5 }) {
        0 => ("one way", format!("cut {} {} oneway", list(one), list(other)), pairs(one, other)),
        1 => {
            let (up, down) = (rng.between(200, 3_000), rng.between(200, 3_000));
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
    let detail = format!("{shape}: {words}");
    Some((Fault { sites: hit.into_iter().collect(), cut, detail, ..Fault::default() }, words))
}

fn worse(mut sites: Vec<String>, rng: &mut Rng) -> Option<(Fault, String)> {
    let all = sites.clone();
    shuffle(&mut sites, rng);
    let first = sites.into_iter().next()?;
    let from = if rng.chance(500) { "*".to_owned() } else { first };
    let quality = match rng.below(5) {
        0 => format!("delay={}ms jitter={}ms", rng.between(50, 400), rng.between(1, 100)),
        1 => format!("loss={}%", rng.between(1, 20)),
        2 => format!("duplicate={}%", rng.between(1, 30)),
        3 => format!("jitter=20ms reorder={}%", rng.between(1, 30)),
        _ => format!("rate={}kbit queue=2s", rng.between(200, 5_000)),
    };
    let words = format!("set {from} * {quality}");
    let sites = if from == "*" { all } else { vec![from] };
    Some((Fault { sites, detail: words.clone(), ..Fault::default() }, words))
}

fn list(sites: &[String]) -> String {
    sites.join(",")
}

fn pairs(from: &[String], to: &[String]) -> Vec<(String, String)> {
    from.iter().flat_map(|one| to.iter().map(|other| (one.clone(), other.clone()))).collect()
}

pub(super) fn both(one: &[String], other: &[String]) -> Vec<(String, String)> {
    let mut cut = pairs(one, other);
    cut.extend(pairs(other, one));
    cut
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::SITES;
    use crate::wan::command::obey;
    use crate::wan::line::State;
    use crate::wan::switch::Switch;

    fn sites(count: usize) -> Vec<String> {
        SITES.iter().take(count).map(|site| (*site).to_owned()).collect()
    }

    /// Which lines are not up when the switch was told this.
    fn down(sites: &[String], words: &str) -> BTreeSet<(String, String)> {
        let mut switch = Switch::new(sites.to_vec(), 1);
        obey(&mut switch, words, 0).unwrap();
        let mut down = BTreeSet::new();
        for (from, one) in sites.iter().enumerate() {
            for (to, other) in sites.iter().enumerate().filter(|(to, _)| *to != from) {
                if switch.line(from, to).unwrap().state != State::Up {
                    down.insert((one.clone(), other.clone()));
                }
            }
        }
        down
    }

    #[test]
    fn what_a_cut_says_of_itself_is_what_the_switch_does() {
        for count in 2..=8 {
            let mut shapes = BTreeSet::new();
            for seed in 0..200 {
                let (fault, words) = cut(sites(count), &mut Rng::new(seed, 2)).unwrap();
                let said: BTreeSet<_> = fault.cut.iter().cloned().collect();
                assert_eq!(down(&sites(count), &words), said, "{words}");
                shapes.insert(fault.detail.split(':').next().unwrap().to_owned());
                assert!(said.iter().all(|(from, _)| fault.sites.contains(from)), "whom it hits is told");
            }
            assert_eq!(shapes.len(), if count < 3 { 3 } else { 5 }, "every shape comes: {shapes:?}");
        }
        assert_eq!(cut(sites(1), &mut Rng::new(1, 2)), None);
    }

    #[test]
    fn worse_lines_are_understood_and_cut_nothing() {
        let mut hit = BTreeSet::new();
        for seed in 0..200 {
            let (fault, words) = worse(sites(5), &mut Rng::new(seed, 2)).unwrap();
            assert!(down(&sites(5), &words).is_empty(), "{words}");
            assert!(fault.cut.is_empty());
            hit.insert(fault.sites.len());
        }
        assert_eq!(hit, [1, 5].into(), "one site, or all");
    }
}
