//! All lines between all sites, and the frames that are under way on them. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::binary_heap::{BinaryHeap, PeekMut};

use super::line::{Line, Nanos};
use crate::sim::rng::Rng;

/// Hardware addresses of others than the sites' own that are remembered.
const LEARNT: usize = 4_096;

/// What becomes of a frame that was put on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It comes out now, so many times.
    Now(u8),
    /// It comes out later: see [`Switch::next`].
    Later,
    /// It does not.
    Lost,
}

/// A frame that comes out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    at: Nanos,
    number: u64,
    /// From which site.
    pub from: usize,
    /// To which.
    pub to: usize,
    /// As the kernel gave it.
    pub bytes: Box<[u8]>,
}

/// The switch.
pub struct Switch {
    sites: Vec<String>,
    lines: Vec<Line>,
    under_way: BinaryHeap<Reverse<Frame>>,
    number: u64,
    learnt: BTreeMap<[u8; 6], usize>,
    rng: Rng,
}

impl Switch {
    /// Sites that are joined by perfect lines. What chance decides follows from the seed.
    #[must_use]
    pub fn new(sites: Vec<String>, seed: u64) -> Self {
        let lines = vec![Line::default(); sites.len() * sites.len()];
        let rng = Rng::new(seed, 1);
        Self { sites, lines, under_way: BinaryHeap::new(), number: 0, learnt: BTreeMap::new(), rng }
    }

    /// The names of the sites.
    #[must_use]
    pub fn sites(&self) -> &[String] {
        &self.sites
    }

    /// One direction of a link.
    #[must_use]
    pub fn line(&self, from: usize, to: usize) -> Option<&Line> {
        self.lines.get(self.index(from, to)?)
    }

    /// One direction of a link, to be changed. What is under way on it stays so, but comes out only where the line is up.
    pub fn line_mut(&mut self, from: usize, to: usize) -> Option<&mut Line> {
        let index = self.index(from, to)?;
        self.lines.get_mut(index)
    }

    /// The hardware address that a site's interface has.
    #[must_use]
    pub fn address(site: usize) -> [u8; 6] {
        let [.., high, low] = site.to_be_bytes();
        [0x02, b'w', b'a', b'n', high, low]
    }

    /// Where an Ethernet frame from a site goes. All others, where that is not known.
    pub fn destinations(&mut self, from: usize, ethernet: &[u8]) -> Vec<usize> {
        let Some((to, rest)) = ethernet.split_first_chunk::<6>() else { return Vec::new() };
        if let Some((source, _)) = rest.split_first_chunk::<6>() {
            self.learn(*source, from);
        }
        let known = self.own(to).or_else(|| self.learnt.get(to).copied());
        match known.filter(|_| to[0] & 1 == 0) {
            Some(site) if site == from => Vec::new(),
            Some(site) => vec![site],
            None => (0..self.sites.len()).filter(|site| *site != from).collect(),
        }
    }

    /// Puts a frame on a line.
    pub fn put(&mut self, now: Nanos, from: usize, to: usize, bytes: &[u8]) -> Fate {
        let Some(index) = self.index(from, to) else { return Fate::Lost };
        let Self { lines, rng, .. } = self;
        let Some(line) = lines.get_mut(index) else { return Fate::Lost };
        let Ok(departure) = line.put(now, bytes.len(), rng) else { return Fate::Lost };
        let copies = 1 + u8::from(departure.twice);
        if departure.at <= now {
            (0..copies).for_each(|_| line.passed(bytes.len()));
            return Fate::Now(copies);
        }
        for _ in 0..copies {
            line.hold(bytes.len());
            self.number += 1;
            let frame = Frame { at: departure.at, number: self.number, from, to, bytes: bytes.into() };
            self.under_way.push(Reverse(frame));
        }
        Fate::Later
    }

    /// When the next frame comes out, if any is under way.
    #[must_use]
    pub fn next(&self) -> Option<Nanos> {
        self.under_way.peek().map(|Reverse(frame)| frame.at)
    }

    /// A frame that comes out by now. What was under way on a line that is cut is lost.
    pub fn take(&mut self, now: Nanos) -> Option<Frame> {
        loop {
            let Reverse(frame) = self.under_way.peek_mut().filter(|first| first.0.at <= now).map(PeekMut::pop)?;
            let line = self.line_mut(frame.from, frame.to)?;
            line.release(frame.bytes.len());
            if line.state.is_up(now) {
                line.passed(frame.bytes.len());
                return Some(frame);
            }
            line.counts.cut += 1;
        }
    }

    /// Whether a site's frames must be as large as on a real line, for what its lines do to each.
    #[must_use]
    pub fn is_particular(&self, from: usize) -> bool {
        (0..self.sites.len()).filter_map(|to| self.line(from, to)).any(|line| line.quality.is_particular())
    }

    fn own(&self, address: &[u8; 6]) -> Option<usize> {
        let site = usize::from(u16::from_be_bytes([address[4], address[5]]));
        (site < self.sites.len() && Self::address(site) == *address).then_some(site)
    }

    fn learn(&mut self, source: [u8; 6], from: usize) {
        let foreign = source[0] & 1 == 0 && self.own(&source).is_none();
        if foreign && (self.learnt.len() < LEARNT || self.learnt.contains_key(&source)) {
            self.learnt.insert(source, from);
        }
    }

    fn index(&self, from: usize, to: usize) -> Option<usize> {
        let count = self.sites.len();
        (from < count && to < count).then(|| from * count + to)
    }
}
