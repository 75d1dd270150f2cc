//! The protocol core: whatever is lost, delayed or cut, after the links are mended everybody gets everything, and
//! catching up costs what was missing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use luc_engine::entry::{Content, Entry, Frontier, Hash, Header, Scope, Tip};
use luc_engine::id::{CloudId, EntryId, ReplicaId};
use luc_engine::replica::Word;
use luc_sync::proto::{Held, Input, Output, Proto};
use luc_sync::wire::{Msg, Shown, Status};
use proptest::prelude::*;
use uuid::Uuid;

fn holding(frontier: &Frontier) -> Held {
    Held { frontier: frontier.clone(), ..Held::default() }
}

/// A replica with a toy log: entries of one author follow each other, and nothing else matters.
struct Node {
    key: SigningKey,
    id: ReplicaId,
    proto: Proto,
    log: BTreeMap<EntryId, Arc<Entry>>,
    held: Frontier,
    /// Whose entries it does not take now.
    sealed: Option<ReplicaId>,
    /// It drops what comes.
    overrun: bool,
}

impl Node {
    fn new(n: u8) -> Self {
        let key = SigningKey::from_bytes(&[n + 1; 32]);
        let id = ReplicaId::of_key(&key.verifying_key().to_bytes());
        let (log, held) = (BTreeMap::new(), Frontier::default());
        Self { key, id, proto: Proto::new(id), log, held, sealed: None, overrun: false }
    }

    fn write(&mut self) -> Arc<Entry> {
        let number = self.held.number(self.id) + 1;
        let header = Header {
            cloud: CloudId(Uuid::nil()),
            author: self.id,
            number,
            previous: Hash::default(),
            seen: vec![],
            time: number,
            scope: Scope::Everywhere,
            created: vec![],
            deleted: vec![],
            ledger: vec![],
            members: vec![],
            statements: vec![],
            content: Hash::default(),
        };
        let entry = Arc::new(Entry::sign(header, Content::default(), &self.key));
        self.take(entry.clone());
        entry
    }

    /// Says whether it was new; an entry without the one before it is not taken.
    fn take(&mut self, entry: Arc<Entry>) -> bool {
        let id = entry.id();
        let next = self.held.number(id.author) + 1 == id.number && self.sealed != Some(id.author);
        if next {
            self.held.set(id.author, entry.tip());
            self.log.insert(id, entry);
        }
        next
    }
}

struct World {
    nodes: Vec<Node>,
    /// Messages on the way, by sender and receiver.
    wires: BTreeMap<(usize, usize), VecDeque<Msg>>,
    up: BTreeMap<(usize, usize), bool>,
    now: u64,
    /// Entries that were sent, of all.
    sent: usize,
}

const BATCH: usize = 5;

impl World {
    fn new(count: u8) -> Self {
        let nodes = (0..count).map(Node::new).collect();
        Self { nodes, wires: BTreeMap::new(), up: BTreeMap::new(), now: 0, sent: 0 }
    }

    fn input(&mut self, at: usize, input: Input) {
        let mut todo = vec![input];
        while let Some(input) = todo.pop() {
            let node = &mut self.nodes[at];
            for output in node.proto.handle(input, self.now, &holding(&node.held)) {
                match output {
                    Output::Send(peer, message) => {
                        let to = self.index(peer);
                        if let Msg::Entries { entries, .. } = &message {
                            self.sent += entries.len();
                        }
                        self.wires.entry((at, to)).or_default().push_back(message);
                    }
                    Output::Receive { peer, .. } if self.nodes[at].overrun => todo.push(Input::Overrun(peer)),
                    Output::Receive { peer, entries, answer } => {
                        let node = &mut self.nodes[at];
                        let decoded = entries.iter().map(|bytes| Arc::new(Entry::decode(bytes).unwrap()));
                        let (new, other): (Vec<_>, Vec<_>) = decoded.partition(|entry| node.take(entry.clone()));
                        let gap = other.iter().any(|entry| !node.held.holds(entry.id()));
                        todo.push(Input::Received { peer, answer: answer || gap, again: Vec::new() });
                        todo.push(Input::Flushed(new));
                    }
                    Output::OldStore(entry) => panic!("{at} lost {entry}"),
                    Output::TakeSnapshot(peer) => panic!("{peer} has dropped nothing"),
                    Output::Compared(peer, word) => panic!("nothing is on trust, and {peer} says {word:?}"),
                    Output::ReadLog { peer, from } => {
                        let log = &self.nodes[at].log;
                        let all = from.iter().flat_map(|first| {
                            let of_author = move |id: &EntryId| id.author == first.author;
                            log.range(*first..).take_while(move |(id, _)| of_author(id))
                        });
                        let mut entries: Vec<_> = all.map(|(_, entry)| entry.clone()).collect();
                        let more = entries.len() > BATCH;
                        entries.truncate(BATCH);
                        todo.push(Input::LogRead { peer, entries, more, dropped: None });
                    }
                }
            }
        }
    }

    fn index(&self, id: ReplicaId) -> usize {
        self.nodes.iter().position(|node| node.id == id).unwrap()
    }

    fn connect(&mut self, a: usize, b: usize) {
        if a == b || self.up.insert((a.min(b), a.max(b)), true) == Some(true) {
            return;
        }
        for (one, other) in [(a, b), (b, a)] {
            let peer = self.nodes[other].id;
            self.input(one, Input::Connected(peer));
        }
    }

    /// A connection that ends takes with it what was on the way.
    fn cut(&mut self, a: usize, b: usize) {
        if a == b || self.up.insert((a.min(b), a.max(b)), false) != Some(true) {
            return;
        }
        for (one, other) in [(a, b), (b, a)] {
            self.wires.remove(&(one, other));
            let peer = self.nodes[other].id;
            self.input(one, Input::Disconnected(peer));
        }
    }

    fn write(&mut self, at: usize) {
        let entry = self.nodes[at].write();
        self.input(at, Input::Flushed(vec![entry]));
    }

    fn deliver(&mut self, from: usize, to: usize) {
        if let Some(message) = self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            let peer = self.nodes[from].id;
            self.input(to, Input::Message(peer, message));
        }
    }

    /// A full queue: the message is dropped, and the sender told.
    fn drop_one(&mut self, from: usize, to: usize) {
        if self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_back).is_some() {
            let peer = self.nodes[to].id;
            self.input(from, Input::Dropped(peer));
        }
    }

    fn tick(&mut self) {
        self.now += 1_000;
        for at in 0..self.nodes.len() {
            self.input(at, Input::Tick(Status::default()));
        }
    }

    /// All links up, and time enough.
    fn settle(&mut self) {
        let count = self.nodes.len();
        for a in 0..count {
            for b in a + 1..count {
                self.connect(a, b);
            }
        }
        for _ in 0..60 {
            self.tick();
            self.deliver_all();
        }
    }

    /// One message of each link after the other, as if all were equally long.
    fn deliver_in_turn(&mut self) {
        while self.wires.values().any(|wire| !wire.is_empty()) {
            let links: Vec<_> = self.wires.keys().copied().collect();
            links.into_iter().for_each(|(from, to)| self.deliver(from, to));
        }
    }

    fn deliver_all(&mut self) {
        let mut rounds = 0;
        while let Some(((from, to), _)) = self.wires.iter().find(|(_, wire)| !wire.is_empty()) {
            let (from, to) = (*from, *to);
            self.deliver(from, to);
            rounds += 1;
            assert!(rounds < 100_000, "they never fall silent");
        }
        self.wires.clear();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Connect(usize, usize),
    Cut(usize, usize),
    Deliver(usize, usize),
    Drop(usize, usize),
    Overrun(usize),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_usize..4;
    prop_oneof![
        4 => at.clone().prop_map(Step::Write),
        2 => (at.clone(), at.clone()).prop_map(|(a, b)| Step::Connect(a, b)),
        1 => (at.clone(), at.clone()).prop_map(|(a, b)| Step::Cut(a, b)),
        8 => (at.clone(), at.clone()).prop_map(|(a, b)| Step::Deliver(a, b)),
        1 => (at.clone(), at.clone()).prop_map(|(a, b)| Step::Drop(a, b)),
        1 => at.prop_map(Step::Overrun),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    #[test]
    fn after_the_links_are_mended_everybody_has_everything(steps in proptest::collection::vec(step(), 0..200)) {
        let mut world = World::new(4);
        for step in steps {
            match step {
                Step::Write(at) => world.write(at),
                Step::Connect(a, b) => world.connect(a, b),
                Step::Cut(a, b) => world.cut(a, b),
                Step::Deliver(a, b) => world.deliver(a, b),
                Step::Drop(a, b) => world.drop_one(a, b),
                Step::Overrun(at) => world.nodes[at].overrun ^= true,
                Step::Tick => world.tick(),
            }
        }
        world.nodes.iter_mut().for_each(|node| node.overrun = false);
        world.settle();
        for node in &world.nodes {
            prop_assert_eq!(&node.held, &world.nodes[0].held);
        }
    }
}

#[test]
fn catching_up_costs_what_was_missing() {
    let mut world = World::new(2);
    for _ in 0..500 {
        world.write(0);
    }
    world.settle();
    assert_eq!(world.sent, 500);
    world.cut(0, 1);
    for _ in 0..30 {
        world.write(0);
    }
    world.sent = 0;
    world.settle();
    assert_eq!(world.nodes[1].held, world.nodes[0].held);
    assert_eq!(world.sent, 30, "not what both had before");
}

/// A site that comes back is sent each log by its author, and not by everybody.
#[test]
fn catching_up_with_many_costs_what_was_missing_too() {
    let mut world = World::new(6);
    world.settle();
    (1..6).for_each(|other| world.cut(0, other));
    for at in 0..6 {
        (0..30).for_each(|_| world.write(at));
    }
    for _ in 0..5 {
        world.tick();
        world.deliver_all();
    }
    world.sent = 0;
    (1..6).for_each(|other| world.connect(0, other));
    world.deliver_in_turn();
    assert!(world.nodes.iter().all(|node| node.held == world.nodes[0].held), "at once");
    assert_eq!(world.sent, 5 * 30 + 5 * 30, "what 0 lacked, and what it wrote");
    // Whom only one of them reaches gets all from that one.
    (1..6).for_each(|other| world.cut(0, other));
    (0..6).for_each(|at| world.write(at));
    world.deliver_all();
    world.sent = 0;
    world.connect(0, 3);
    for _ in 0..3 {
        world.tick();
        world.deliver_all();
    }
    assert!(world.nodes.iter().all(|node| node.held == world.nodes[0].held), "within seconds");
    assert!(world.sent <= 20, "{} entries were sent", world.sent);
}

/// Its author is connected, and says nothing: stopped, or just dead.
#[test]
fn what_its_author_does_not_send_others_do() {
    let mut world = World::new(3);
    world.settle();
    world.write(0);
    for _ in 0..3 {
        world.wires.remove(&(0, 1));
        world.write(2);
        world.deliver_in_turn();
        world.tick();
    }
    world.wires.remove(&(0, 1));
    world.deliver_in_turn();
    assert_eq!(world.nodes[1].held, world.nodes[2].held);
}

/// Who is sent more than it deals with drops some, and says so: that it lacks them still when it was sent them twice has been taken for
/// its not wanting them, and nobody sent it anything for seconds.
#[test]
fn what_was_dropped_for_want_of_room_comes_as_soon_as_there_is_room() {
    let mut world = World::new(3);
    world.settle();
    world.nodes[1].overrun = true;
    for _ in 0..5 {
        world.write(0);
        world.deliver_all();
        world.tick();
        world.deliver_all();
    }
    assert_ne!(world.nodes[1].held, world.nodes[0].held);
    world.nodes[1].overrun = false;
    world.tick();
    world.deliver_all();
    assert_eq!(world.nodes[1].held, world.nodes[0].held);
}

/// While a member is being retired, others may hold what some do not take. That it is asked for as fast as it is sent has
/// filled links and processors for as long as the retirement took.
#[test]
fn what_is_not_taken_is_sent_now_and_then_only_and_keeps_nothing_else_back() {
    let mut world = World::new(3);
    world.settle();
    world.nodes[2].sealed = Some(world.nodes[0].id);
    for _ in 0..20 {
        world.write(0);
        world.write(1);
        world.deliver_all();
        world.tick();
        world.deliver_all();
    }
    // Not even what was lost: it lies behind a batch that is not taken.
    world.write(1);
    world.wires.clear();
    world.sent = 0;
    world.settle();
    let number = |world: &World, at: usize, of: usize| world.nodes[at].held.number(world.nodes[of].id);
    assert_eq!((number(&world, 2, 0), number(&world, 2, 1)), (0, 21));
    assert!(world.sent < 2 * 20 * 60 / 3, "{} entries were sent in a minute", world.sent);
    world.nodes[2].sealed = None;
    world.settle();
    assert_eq!(world.nodes[2].held, world.nodes[1].held);
}

#[test]
fn in_a_large_cloud_few_are_told_at_once_and_what_was_lost_comes_within_seconds() {
    let mut world = World::new(40);
    world.settle();
    for at in 0..40 {
        world.write(at);
    }
    // Every push is lost, and nobody is told.
    world.wires.clear();
    let mut seconds = 0;
    while world.nodes.iter().any(|node| node.held.0.values().any(|tip| tip.number < 1) || node.held.0.len() < 40) {
        world.tick();
        for at in 0..40 {
            let told = world.wires.iter().filter(|((from, _), wire)| *from == at && !wire.is_empty()).count();
            assert!(told <= 16, "{told} peers are told in one second");
        }
        world.deliver_all();
        seconds += 1;
        assert!(seconds < 8, "it takes as long as telling everybody");
    }
}

#[test]
fn what_has_not_changed_is_not_said_again() {
    let mut world = World::new(2);
    world.write(0);
    world.settle();
    world.tick();
    let frontiers = |wire: &VecDeque<Msg>| wire.iter().filter(|msg| matches!(msg, Msg::Frontier { .. })).count();
    assert_eq!(world.wires.values().map(frontiers).sum::<usize>(), 0);
    world.deliver_all();
    world.write(0);
    world.deliver_all();
    world.tick();
    assert_eq!(world.wires.values().map(frontiers).sum::<usize>(), 2, "it is, once it has");
}

#[test]
fn others_entries_are_forwarded_only_where_their_author_does_not_reach() {
    let mut world = World::new(3);
    world.settle();
    world.sent = 0;
    world.write(0);
    world.settle();
    assert_eq!(world.sent, 2, "each of the two others got it once");
    world.cut(0, 2);
    world.tick();
    world.deliver_all();
    world.write(0);
    world.deliver(0, 1);
    world.deliver(1, 2);
    assert_eq!(world.nodes[2].held, world.nodes[0].held, "the bridge forwarded it at once");
}

#[test]
fn who_hears_of_a_later_entry_of_its_own_has_an_old_store() {
    let (me, peer) = (Node::new(0).id, Node::new(1).id);
    let tip = |number, hash| Tip { number, hash };
    for (theirs, is_old) in [(tip(6, 1), false), (tip(7, 1), false), (tip(7, 2), true), (tip(8, 3), true)] {
        let mut proto = Proto::new(me);
        let mine = holding(&Frontier([(me, tip(7, 1))].into()));
        proto.handle(Input::Connected(peer), 0, &mine);
        let held = Frontier([(me, theirs)].into());
        let outputs = proto.handle(Input::Message(peer, Msg::Frontier { held, shown: None, answer: false }), 1, &mine);
        let told = outputs.iter().any(|output| matches!(output, Output::OldStore(_)));
        assert_eq!(told, is_old, "{theirs:?}");
    }
}

/// Whoever holds another form of an entry does not know where the forms begin to differ, and asks from far back: further than
/// logs go that were folded. It learns from where on the peer can show its own, and asks no further back, again and again.
#[test]
fn another_form_is_asked_for_from_where_the_peer_can_show_it() {
    let (me, peer, author) = (Node::new(0).id, Node::new(1).id, Node::new(2).id);
    let mut proto = Proto::new(me);
    let mut mine = Frontier::default();
    mine.set(author, Tip { number: 5, hash: 1 });
    let mine = holding(&mine);
    proto.handle(Input::Connected(peer), 0, &mine);
    let entry = |number| EntryId { author, number };
    let mut says = |input| {
        let outputs = proto.handle(input, 1, &mine);
        let said = outputs.into_iter().map(|output| match output {
            Output::Send(to, Msg::Frontier { held, shown: None, answer: true }) if to == peer => held.number(author),
            other => panic!("{other:?}"),
        });
        said.collect::<Vec<u64>>()
    };
    let mut asks = |number| says(Input::Received { peer, answer: true, again: vec![entry(number)] });
    assert_eq!(asks(1), [0]);
    let mut dropped = |number| says(Input::Message(peer, Msg::Dropped(entry(number))));
    assert_eq!(dropped(3), [3]);
    assert_eq!(dropped(3), []);
    let mut asks = |number| says(Input::Received { peer, answer: true, again: vec![entry(number)] });
    assert_eq!((asks(1), asks(5)), (vec![3], vec![4]));
}

/// A log is left to its author, but not where it is asked for in another form: that is asked once, of one who may have it, and
/// the author, who forked, may show the other one only.
#[test]
fn another_form_is_sent_at_once_whoever_wrote_it() {
    let (me, peer, author) = (Node::new(0).id, Node::new(1).id, Node::new(2).id);
    let mut proto = Proto::new(me);
    let tip = |number, hash| Tip { number, hash };
    let mine = holding(&Frontier([(author, tip(9, 1))].into()));
    proto.handle(Input::Connected(author), 0, &mine);
    proto.handle(Input::Connected(peer), 0, &mine);
    let mut reads = |theirs: Tip| {
        let held = Frontier([(author, theirs)].into());
        let outputs = proto.handle(Input::Message(peer, Msg::Frontier { held, shown: None, answer: true }), 1, &mine);
        let read = outputs.into_iter().find_map(|output| match output {
            Output::ReadLog { from, .. } => from.first().copied(),
            _ => None,
        });
        read.map(|entry| entry.number)
    };
    assert_eq!(reads(tip(7, 2)), None, "its author sends it");
    assert_eq!(reads(tip(4, 0)), Some(5), "it is asked for what follows 4, in whatever form is held here");
}

/// Only where both have the same entries do digests say anything; or where the peer holds what breaks a rule here. Who holds its own
/// state on trust vouches for nobody's.
#[test]
fn a_state_on_trust_is_compared_with_what_peers_show() {
    let (me, peer, author) = (Node::new(0).id, Node::new(1).id, Node::new(2).id);
    let at = |number| Frontier([(author, Tip { number, hash: number })].into());
    let state = |n: u64, on_trust| {
        let digest = rmp_serde::from_slice(&rmp_serde::to_vec(&[n; 4]).unwrap()).unwrap();
        Shown { digest, on_trust }
    };
    let refused = vec![(author, Tip { number: 8, hash: 8 }), (author, Tip { number: 9, hash: 9 })];
    let here = Held { frontier: at(7), shown: state(1, true), refused };
    let mut proto = Proto::new(me);
    proto.handle(Input::Connected(peer), 0, &here);
    let mut says = |message, here: &Held| {
        let outputs = proto.handle(Input::Message(peer, message), 1, here);
        let words: Vec<Word> = outputs
            .into_iter()
            .filter_map(|output| if let Output::Compared(_, word) = output { Some(word) } else { None })
            .collect();
        (words.first().copied(), proto.peers()[&peer].same_state)
    };
    let frontier = |number, shown| Msg::Frontier { held: at(number), shown, answer: false };
    assert_eq!(says(frontier(6, Some(state(1, false))), &here), (None, None), "another frontier");
    assert_eq!(says(frontier(7, None), &here), (None, None), "it asks for something again");
    assert_eq!(says(frontier(7, Some(state(1, false))), &here), (Some(Word::Same), Some(true)));
    assert_eq!(says(Msg::Unchanged, &here), (Some(Word::Same), Some(true)));
    assert_eq!(says(frontier(7, Some(state(2, true))), &here), (Some(Word::OnTrust), Some(false)));
    assert_eq!(says(frontier(7, Some(state(2, false))), &here), (Some(Word::Other), Some(false)));
    assert_eq!(
        says(frontier(9, Some(state(1, false))), &here),
        (Some(Word::Other), Some(false)),
        "it holds what is refused"
    );
    let forked = Msg::Frontier {
        held: Frontier([(author, Tip { number: 9, hash: 1 })].into()),
        shown: Some(state(1, false)),
        answer: true,
    };
    assert_eq!(says(forked, &here), (None, Some(false)), "it holds another form, of one that forked");
    let own = Held { shown: state(1, false), refused: Vec::new(), ..here };
    assert_eq!(says(frontier(7, Some(state(2, false))), &own), (None, Some(false)), "it is shown, and decides nothing");
}
