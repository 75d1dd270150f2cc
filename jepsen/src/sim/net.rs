//! A simulated network: links with delay, jitter and loss, and the QUIC connections over them.
//!
//! A connection is two ordered streams. A lost packet is sent again, so loss shows as delay of all that comes after it.
//! While a direction is cut its frames wait, and are delivered if it heals before the receiver gives up (after two
//! seconds of silence); then they are lost, and the other side notices two seconds later. A process that dies says
//! nothing: what it had sent still arrives. Requests go over streams of their own, and so may overtake.

use std::collections::{BTreeMap, VecDeque};

use luc_sync::wire::Msg;

use super::rng::Rng;

/// Virtual time, microseconds.
pub type Micros = u64;
/// Without a sign of life for so long, a connection is given up (as `sync/net.rs` has it).
pub const IDLE: Micros = 2_000_000;
/// How often an attempt to connect starts.
pub const DIAL_EVERY: Micros = 500_000;
/// Frames to one peer that may wait.
const QUEUE: usize = 256;
/// A lost packet is noticed and sent again after about this, besides the round trip.
const RESEND: Micros = 40_000;

/// How a network behaves, drawn from the seed.
#[derive(Clone, Debug)]
pub struct Weather {
    /// One way, microseconds, for each pair a base is drawn up to this.
    pub delay: Micros,
    /// Added to each frame, up to.
    pub jitter: Micros,
    /// Lost packets, in a thousand.
    pub loss: u64,
    /// Frames with entries that arrive twice, in a thousand.
    pub twice: u64,
    /// Frames with entries that others overtake, in a thousand.
    pub late: u64,
}

/// A connection between two nodes, named in order.
#[derive(Debug)]
pub struct Connection {
    /// Which, of all ever made.
    pub id: u64,
    /// Whether the lower and the higher node think that it stands.
    pub open: [bool; 2],
    queues: [VecDeque<(Micros, Msg)>; 2],
    last: [Micros; 2],
}

/// All links.
#[derive(Debug)]
pub struct Net {
    weather: Weather,
    rng: Rng,
    base: BTreeMap<(usize, usize), Micros>,
    slow: BTreeMap<usize, u64>,
    cut: BTreeMap<(usize, usize), Micros>,
    connections: BTreeMap<(usize, usize), Connection>,
    made: u64,
    /// Frames that were lost with their connections.
    pub lost: u64,
}

/// What became of a frame that was to be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It arrives then, over the connection of this number.
    At(Micros, u64),
    /// There is no connection, or too much is on the way.
    Dropped,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn side(me: usize, peer: usize) -> usize {
    usize::from(me > peer)
}

impl Net {
    /// A network with all links up.
    #[must_use]
    pub fn new(weather: Weather, rng: Rng) -> Self {
        Self {
            weather,
            rng,
            base: BTreeMap::new(),
            slow: BTreeMap::new(),
            cut: BTreeMap::new(),
            connections: BTreeMap::new(),
            made: 0,
            lost: 0,
        }
    }

    /// One way, for one packet.
    pub fn delay(&mut self, from: usize, to: usize) -> Micros {
        let Weather { delay, jitter, loss, .. } = self.weather;
        let rng = &mut self.rng;
        let base = *self.base.entry(pair(from, to)).or_insert_with(|| rng.between(delay / 10, delay));
        let mut time = base + self.rng.below(jitter + 1);
        while self.rng.chance(loss) {
            time += 2 * base + RESEND;
        }
        let slow = |at: &usize| self.slow.get(at).copied().unwrap_or(1);
        time * slow(&from).max(slow(&to))
    }

    /// Makes a site slow: everything from and to it takes so many times as long.
    pub fn slow_down(&mut self, node: usize, factor: u64) {
        self.slow.insert(node, factor);
    }

    /// Whether a direction is cut, and since when.
    #[must_use]
    pub fn is_cut(&self, from: usize, to: usize) -> Option<Micros> {
        self.cut.get(&(from, to)).copied()
    }

    /// Cuts one direction. Says whether that is news.
    pub fn cut(&mut self, from: usize, to: usize, now: Micros) -> bool {
        from != to && !self.cut.contains_key(&(from, to)) && self.cut.insert((from, to), now).is_none()
    }

    /// Whether any direction is cut.
    #[must_use]
    pub fn is_parted(&self) -> bool {
        !self.cut.is_empty()
    }

    /// Mends everything. The frames that waited arrive after all: says from, to, on which connection, when.
    pub fn heal(&mut self, now: Micros) -> Vec<(usize, usize, u64, Micros)> {
        let cut = std::mem::take(&mut self.cut);
        let mut waiting = Vec::new();
        for (from, to) in cut.into_keys() {
            let soonest = now + self.delay(from, to);
            let Some(connection) = self.connections.get_mut(&pair(from, to)) else { continue };
            let at = side(from, to);
            connection.last[at] = connection.last[at].max(soonest);
            for (due, _) in &mut connection.queues[at] {
                *due = soonest.max(*due);
                waiting.push((from, to, connection.id, *due));
            }
        }
        waiting
    }

    /// Makes a connection; an older one between the two is replaced.
    pub fn connect(&mut self, a: usize, b: usize) -> u64 {
        self.made += 1;
        let new = Connection { id: self.made, open: [true, true], queues: Default::default(), last: [0, 0] };
        if let Some(old) = self.connections.insert(pair(a, b), new) {
            self.lost += u64::try_from(old.queues.iter().map(VecDeque::len).sum::<usize>()).unwrap_or(0);
        }
        self.made
    }

    /// The connection that one side thinks stands.
    #[must_use]
    pub fn connection(&self, me: usize, peer: usize) -> Option<u64> {
        let connection = self.connections.get(&pair(me, peer))?;
        connection.open[side(me, peer)].then_some(connection.id)
    }

    /// One side gives a connection up, if it still is that one. Says whether it did.
    pub fn close(&mut self, me: usize, peer: usize, id: u64) -> bool {
        match self.connections.get_mut(&pair(me, peer)) {
            Some(connection) if connection.id == id && connection.open[side(me, peer)] => {
                connection.open[side(me, peer)] = false;
                true
            }
            _ => false,
        }
    }

    /// A node's process is gone: it has no connections. Says which peers will notice.
    pub fn die(&mut self, me: usize) -> Vec<(usize, u64)> {
        let mut peers = Vec::new();
        for ((a, b), connection) in &mut self.connections {
            if *a == me || *b == me {
                let peer = if *a == me { *b } else { *a };
                connection.open[side(me, peer)] = false;
                peers.push((peer, connection.id));
            }
        }
        peers
    }

    /// Sends a frame.
    pub fn send(&mut self, from: usize, to: usize, message: Msg, now: Micros) -> Sent {
        let due = now + self.delay(from, to);
        let Some(connection) = self.connections.get_mut(&pair(from, to)) else { return Sent::Dropped };
        let at = side(from, to);
        if !connection.open[at] || connection.queues[at].len() >= QUEUE {
            return Sent::Dropped;
        }
        let due = due.max(connection.last[at] + 1);
        connection.last[at] = due;
        connection.queues[at].push_back((due, message));
        Sent::At(due, connection.id)
    }

    /// A frame that arrives at its time, if its direction is not cut: then it waits.
    pub fn arrive(&mut self, from: usize, to: usize, id: u64, now: Micros) -> Option<Msg> {
        if self.cut.contains_key(&(from, to)) {
            return None;
        }
        let connection = self.connections.get_mut(&pair(from, to)).filter(|connection| connection.id == id)?;
        let queue = &mut connection.queues[side(from, to)];
        let due = queue.front().is_some_and(|(at, _)| *at <= now);
        let (_, message) = if due { queue.pop_front()? } else { return None };
        if connection.open[side(to, from)] {
            return Some(message);
        }
        self.lost += 1;
        None
    }

    /// Whether a frame with entries shall arrive once more, or later than what was sent after it.
    pub fn disturbs(&mut self) -> (bool, bool) {
        let Weather { twice, late, .. } = self.weather;
        (self.rng.chance(twice), self.rng.chance(late))
    }
}
