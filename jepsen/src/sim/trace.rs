//! What happened, as a hash that two runs of one seed share bit for bit, and as text when somebody will read it.

use std::fmt;

use super::net::Micros;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: blake3::Hasher,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace; the text is kept only if asked for.
    #[must_use]
    pub fn new(text: bool) -> Self {
        Self { hash: blake3::Hasher::new(), events: 0, lines: text.then(Vec::new) }
    }

    /// Notes an event: numbers for the hash, text for people.
    pub fn note(&mut self, at: Micros, what: [u64; 3], text: impl FnOnce() -> String) {
        self.events += 1;
        let mut bytes = [0; 32];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(std::iter::once(at).chain(what)) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        self.hash.update(&bytes);
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} {}", Seconds(at), text()));
        }
    }

    /// Says something to people only.
    pub fn tell(&mut self, at: Micros, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} {}", Seconds(at), text()));
        }
    }

    /// Whether text is kept.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.lines.is_some()
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The hash of all events.
    #[must_use]
    pub fn hash(&self) -> String {
        self.hash.finalize().to_hex()[..16].to_owned()
    }

    /// The text.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

/// Shows microseconds as seconds.
pub struct Seconds(pub Micros);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000))
    }
}
