//! What anybody may send as an entry: it decodes, or is refused; it never stops the process, and never costs more memory
//! than its own length allows.
//!
//! Broken once, to see it fail: the decoder's own limit of depth, with which this stops the process.
#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Rogue, cloud, member};
use luc_engine::entry::{BadEntry, Entry, FORMAT, Frontier, MAX_ENTRY};
use luc_engine::entry::{Header, MemberOp};
use proptest::prelude::*;

/// The system's allocator, which counts what the present thread has at once.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may allocate after its cells are gone.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: everything is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: as above; `at` came from `System.alloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Decodes; says how much memory was in use at once on the way.
fn decode(bytes: &[u8]) -> (Result<Entry, BadEntry>, usize) {
    let before = NOW.get();
    MOST.set(before);
    let decoded = Entry::decode(bytes);
    (decoded, usize::try_from(MOST.get() - before).unwrap())
}

/// An element on the wire is a byte at least; in memory, the largest kind of element is some hundred.
fn assert_bounded(what: &str, bytes: &[u8]) {
    let (decoded, used) = decode(bytes);
    assert!(decoded.is_err(), "{what} was taken");
    assert!(used <= 512 * bytes.len() + (2 << 20), "{what}: {used} bytes of memory for {} sent", bytes.len());
}

fn bin(content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc6];
    bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
    bytes
}

/// A frame of a header that may be anything.
fn frame(header: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![FORMAT, 0x93];
    for part in [header, &[0; 64], content] {
        bytes.extend(bin(part));
    }
    bytes
}

fn genuine() -> Entry {
    let rogue = Rogue::new(0);
    let header = Header { members: vec![MemberOp::Join(member(0))], ..rogue.header(&Frontier::default()) };
    rogue.sign(header, vec![])
}

#[test]
fn hostile_lengths_and_depths_cost_nothing() {
    let deep = |opening: u8| vec![opening; 1 << 20];
    // Arrays, maps, strings and bytes that say how long they are, and are not.
    let long: [&[u8]; 6] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0xdc, 0xff, 0xff],
    ];
    // A map from an unknown name to something deep: what is skipped is walked through as well.
    let skipped = [&[0x81, 0xa1, b'x'][..], &deep(0x91)].concat();
    let genuine = genuine();
    let mut bodies: Vec<Vec<u8>> = long.iter().map(|body| body.to_vec()).collect();
    bodies.extend([deep(0x91), deep(0x81), deep(0xdd), skipped]);
    for body in &bodies {
        let what = format!("{:02x?}…, {} bytes", &body[..body.len().min(6)], body.len());
        assert_bounded(&format!("frame {what}"), &[&[FORMAT], &body[..]].concat());
        assert_bounded(&format!("header {what}"), &frame(body, &[]));
        // The header's first fields are right, and then it goes wrong.
        for at in [1, 20, 40, 80] {
            let mut header = rmp_serde::to_vec(&genuine.header).unwrap();
            header.truncate(at);
            header.extend(body);
            assert_bounded(&format!("header after {at} bytes, {what}"), &frame(&header, &[]));
        }
        let named = Header { content: luc_engine::entry::Hash::of(body), ..genuine.header.clone() };
        assert_bounded(&format!("content {what}"), &frame(&rmp_serde::to_vec(&named).unwrap(), body));
    }
}

#[test]
fn what_is_too_long_is_not_looked_at() {
    let (decoded, used) = decode(&vec![FORMAT; MAX_ENTRY + 1]);
    assert_eq!(decoded.unwrap_err(), BadEntry::TooLong(MAX_ENTRY + 1));
    assert!(used < 1024);
    assert_eq!(decode(&[]).0.unwrap_err(), BadEntry::Format(0));
    assert_eq!(decode(&[FORMAT + 1]).0.unwrap_err(), BadEntry::Format(FORMAT + 1));
}

#[test]
fn a_truncated_entry_is_refused_wherever_it_ends() {
    let entry = genuine();
    let whole = entry.bytes();
    assert_eq!(Entry::decode(whole).unwrap().header.cloud, cloud());
    for end in 0..whole.len() {
        assert!(Entry::decode(&whole[..end]).is_err(), "{end} of {}", whole.len());
    }
}

proptest! {
    /// Bytes that begin rightly and go wrong anywhere: most of the decoder is reached.
    #[test]
    fn garbled_entries_do_no_harm(at in any::<usize>(), garbage in proptest::collection::vec(any::<u8>(), 1..40), cut in any::<bool>()) {
        let header = rmp_serde::to_vec(&genuine().header).unwrap();
        let at = at % header.len();
        let rest = if cut { &[][..] } else { header.get(at + garbage.len()..).unwrap_or_default() };
        let garbled = [&header[..at], &garbage, rest].concat();
        let (_, used) = decode(&frame(&garbled, &[]));
        prop_assert!(used < 4 << 20, "{used} bytes of memory");
    }
}
