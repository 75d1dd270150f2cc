//! One direction of one link: when a frame that is put on it comes out, if it does. Pure: time and chance come in.

use crate::sim::rng::Rng;

/// Nanoseconds since the switch started.
pub type Nanos = u64;

/// One millisecond.
pub const MILLI: Nanos = 1_000_000;
/// One second.
pub const SECOND: Nanos = 1_000_000_000;
/// Parts of a million, for chances.
pub const MILLION: u64 = 1_000_000;
/// Bytes that may be under way on a line: further frames are lost, as on a real line whose queue is full.
pub const LIMIT: usize = 64 << 20;

/// What a line does to frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quality {
    /// How long a frame takes.
    pub delay: Nanos,
    /// It takes up to so much more or less, evenly distributed. Frames stay in order all the same.
    pub jitter: Nanos,
    /// How many of a million are lost.
    pub loss: u64,
    /// How many of a million come twice.
    pub duplicate: u64,
    /// How many of a million are held back, by half the delay and at least a millisecond, so that others overtake them.
    pub reorder: u64,
    /// Bits a second; no limit if none.
    pub rate: Option<u64>,
    /// How long a frame may wait for the line to be free, where the rate is limited; what would wait longer is lost.
    pub queue: Nanos,
}

impl Default for Quality {
    fn default() -> Self {
        Self { delay: 0, jitter: 0, loss: 0, duplicate: 0, reorder: 0, rate: None, queue: 100 * MILLI }
    }
}

impl Quality {
    /// Whether what is done to one frame depends on how large it is: then frames must be as large as on a real line.
    #[must_use]
    pub fn is_particular(&self) -> bool {
        self.loss > 0 || self.duplicate > 0 || self.reorder > 0 || self.rate.is_some()
    }
}

/// Whether a line carries anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It does.
    #[default]
    Up,
    /// It is cut.
    Cut,
    /// It comes and goes.
    Flapping {
        /// So long it is up.
        up: Nanos,
        /// Then so long it is cut.
        down: Nanos,
        /// Since when; it begins cut.
        since: Nanos,
    },
}

impl State {
    /// Whether frames pass at a time.
    #[must_use]
    pub fn is_up(&self, now: Nanos) -> bool {
        match self {
            Self::Up => true,
            Self::Cut => false,
            Self::Flapping { up, down, since } => {
                let period = up.saturating_add(*down).max(1);
                now.saturating_sub(*since) % period >= *down
            }
        }
    }
}

/// Why a frame is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The line is cut.
    Cut,
    /// By chance.
    Chance,
    /// The queue is full.
    Full,
}

/// What has happened on a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that came out, doubles too.
    pub passed: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Frames lost because the line was cut, those too that were under way when it was.
    pub cut: u64,
    /// By chance.
    pub lost: u64,
    /// For a full queue.
    pub full: u64,
    /// Doubles.
    pub doubled: u64,
    /// Held back.
    pub held_back: u64,
}

/// When a frame comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The first time.
    pub at: Nanos,
    /// Whether a second one follows at once.
    pub twice: bool,
}

/// One direction of one link.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// What it does.
    pub quality: Quality,
    /// Whether it carries anything.
    pub state: State,
    /// What has happened.
    pub counts: Counts,
    /// Until when it is busy with what was put on it.
    busy: Nanos,
    /// When the last frame that is in order comes out.
    last: Nanos,
    /// Bytes under way.
    under_way: usize,
}

impl Line {
    /// Puts a frame on the line.
    ///
    /// # Errors
    /// Why it is lost.
    pub fn put(&mut self, now: Nanos, size: usize, rng: &mut Rng) -> Result<Departure, Lost> {
        if !self.state.is_up(now) {
            self.counts.cut += 1;
            return Err(Lost::Cut);
        }
        let Quality { delay, jitter, loss, duplicate, reorder, rate, queue } = self.quality;
        // A chance of none draws nothing: what is switched on for one line does not change another's fate.
        let mut chance = |of_million: u64| of_million > 0 && rng.below(MILLION) < of_million;
        if chance(loss) {
            self.counts.lost += 1;
            return Err(Lost::Chance);
        }
        let starts = if rate.is_some() { now.max(self.busy) } else { now };
        if starts - now > queue || self.under_way.saturating_add(size) > LIMIT {
            self.counts.full += 1;
            return Err(Lost::Full);
        }
        let takes = rate.map_or(0, |rate| time_of(size, rate));
        let (twice, held_back) = (chance(duplicate), chance(reorder));
        self.busy = starts.saturating_add(takes);
        let drawn = if jitter > 0 { rng.between(0, jitter.saturating_mul(2)) } else { 0 };
        let delayed = self
            .busy
            .saturating_add(delay.saturating_add(drawn).saturating_sub(jitter.min(delay.saturating_add(drawn))));
        let mut at = delayed.max(self.last);
        if held_back {
            at = at.saturating_add((delay / 2).max(MILLI));
            self.counts.held_back += 1;
        } else {
            self.last = at;
        }
        self.counts.doubled += u64::from(twice);
        Ok(Departure { at, twice })
    }

    /// Notes that bytes are under way.
    pub fn hold(&mut self, size: usize) {
        self.under_way += size;
    }

    /// Notes that bytes are not under way any more.
    pub fn release(&mut self, size: usize) {
        self.under_way = self.under_way.saturating_sub(size);
    }

    /// Notes a frame that came out.
    pub fn passed(&mut self, size: usize) {
        self.counts.passed += 1;
        self.counts.bytes += size as u64;
    }
}

/// How long a line of so many bits a second is busy with a frame.
fn time_of(size: usize, rate: u64) -> Nanos {
    let nanos = size as u128 * 8 * u128::from(SECOND) / u128::from(rate.max(1));
    Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
}
