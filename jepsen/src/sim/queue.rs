//! What is to happen, by time; of one time, in the order in which it was put there. Events rest where they were put and only
//! their places are moved: there are a hundred thousand in a run, and some carry whole frontiers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::net::Micros;

/// A queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    order: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    events: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), events: Vec::new(), free: Vec::new() }
    }
}

impl<T> Queue<T> {
    /// Puts an event. No two have the same place.
    pub(super) fn insert(&mut self, (at, sequence): (Micros, u64), event: T) {
        let slot = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(slot) {
            Some(empty) => *empty = Some(event),
            None => self.events.push(Some(event)),
        }
        self.order.push(Reverse((at, sequence, slot)));
    }

    /// The next event, and when it is.
    pub(super) fn pop_first(&mut self) -> Option<(Micros, T)> {
        let Reverse((at, _, slot)) = self.order.pop()?;
        let event = self.events.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some((at, event))
    }
}
