//! Hard states that runs must reach: a simulator that never gets there proves nothing. A set of seeds that never
//! reached one of them fails.

use std::collections::{BTreeMap, BTreeSet};

macro_rules! states {
    ($($name:ident: $text:literal,)*) => {
        /// A state that some run must reach.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[allow(missing_docs, reason = "each has its text")]
        pub enum State { $($name,)* }

        impl State {
            /// Every state.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it is.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

states! {
    CrashLost: "a crash lost a commit that was under way",
    CrashKept: "a crash between a commit and its replies",
    CommitFailed: "a commit failed",
    GrantInFlightAtCrash: "a crash while rights were on the way",
    CutDuringJoin: "a link was cut while a newcomer joined",
    CutDuringGrant: "an asker of rights was cut off before the answer came",
    ReleaseBeforeOrder: "a server was deleted before its agent had its order",
    Refused: "an agent refused an order for want of room",
    ShortHere: "rights were short here, and came from elsewhere",
    Exhausted: "a claim was refused, since nothing was left anywhere",
    LocalDuringCut: "a claim was made without a message while the cloud was parted",
    Waited: "an entry waited for its past",
    AnswerWithPast: "an answer with rights carried entries that the asker lacked",
    CaughtUp: "a replica caught up in more than one batch of the log",
    ConcurrentEdit: "two replicas changed one record apart",
    NameConflict: "one name was given twice apart",
    DeleteBeatsUpdate: "a record was changed and deleted apart",
    AgentDied: "an agent died with orders under way",
    LostDisk: "a disk was lost",
    LostEntry: "entries that no other replica had were lost with a disk",
    Retired: "a replica was retired",
    RetiredInCut: "a retirement took effect while the cloud was parted",
    VoidEntry: "a replica that was retired wrote beyond its cut",
    Fenced: "a replica that was retired came back and was told so",
    Inherited: "an heir took over rights",
    SkewedClock: "two clocks differed by more than a minute",
    Dropped: "a frame was dropped for want of room in a queue, or of a connection",
    LostOnBreak: "frames were lost when a connection broke",
    OldDisk: "a disk was put back as it had been",
    OldDiskFenced: "a replica on an old disk was told so",
    Cloned: "a copy of a disk was started elsewhere",
    CopyFenced: "a copy of a disk found that it was one",
    Roamed: "an agent changed its replica",
    StaleOrder: "an agent did not obey an order of a lower epoch, or for another pool than its host's",
    HostOff: "a machine failed",
    HostDead: "a host was declared dead",
    Evacuated: "a server of a dead host was placed anew",
    HostRevived: "a host that was dead came back",
    Replaced: "a replica took a snapshot in place of its state",
    Replayed: "a snapshot lacked entries, which were replayed on it",
    Forked: "a member forked, and told each half of the cloud another story",
    Lied: "an entry that breaks a rule was refused",
    BranchesMet: "two branches of a log were held by one replica",
    ForkRetired: "a member that forked was retired by its own proof",
    Overdrawn: "a right was spent twice, and showed as a debt",
    Unconfirmed: "rights waited for the word of their pool's root",
    AddressesGrown: "a pool of addresses grew",
    AddressesBurnt: "addresses were burnt",
    Burnt: "a pool shrank while in use",
    Grown: "a pool grew while in use",
}

/// States that no honest replica brings about, or that need a flood: they are counted, not demanded.
pub const RARE: &[State] = &[State::Dropped, State::Refused];

/// States that only a liar brings about.
pub const OF_LIARS: &[State] = &[State::Forked, State::Lied, State::BranchesMet, State::ForkRetired, State::Overdrawn];

/// How often each state was reached.
#[derive(Clone, Debug, Default)]
pub struct Sometimes(BTreeMap<State, u64>);

impl Sometimes {
    /// It was reached.
    pub fn saw(&mut self, state: State) {
        *self.0.entry(state).or_default() += 1;
    }

    /// How often it was reached.
    #[must_use]
    pub fn count(&self, state: State) -> u64 {
        self.0.get(&state).copied().unwrap_or(0)
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (state, count) in &other.0 {
            *self.0.entry(*state).or_default() += count;
        }
    }

    /// What was never reached, though it should with these faults.
    #[must_use]
    pub fn missing(&self, faults: &BTreeSet<String>) -> Vec<State> {
        let due = |state: &State| !RARE.contains(state) && (faults.contains("liar") || !OF_LIARS.contains(state));
        State::ALL.iter().copied().filter(|state| due(state) && self.count(*state) == 0).collect()
    }
}
