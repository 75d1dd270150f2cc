//! Hard states that runs must reach: a simulator that never gets there proves nothing. A set of seeds that never
//! reached one of them fails.

use std::collections::{BTreeMap, BTreeSet};

macro_rules! states {
    ($($name:ident $([$($fault:literal),*])?: $text:literal,)*) => {
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

            /// The faults without which it does not come about.
            #[must_use]
            pub fn faults(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($($fault),*)?],)* }
            }
        }
    };
}

states! {
    CrashLost ["crash"]: "a crash lost a commit that was under way",
    CrashKept ["crash"]: "a crash between a commit and its replies",
    CommitFailed ["fail"]: "a commit failed",
    GrantInFlightAtCrash ["crash"]: "a crash while rights were on the way",
    CutDuringJoin ["cut", "join"]: "a link was cut while a newcomer joined",
    CutDuringGrant ["cut"]: "an asker of rights was cut off before the answer came",
    ReleaseBeforeOrder: "a server was deleted before its agent had its order",
    Refused ["liar"]: "an agent refused an order for want of room",
    LookedTooEarly: "a client waited in vain for a replica that lacked what another had told it",
    ShortHere: "rights were short here, and came from elsewhere",
    Exhausted: "a claim was refused, since nothing was left anywhere",
    LocalDuringCut ["cut"]: "a claim was made without a message while the cloud was parted",
    Waited: "an entry waited for its past",
    AnswerWithPast: "an answer with rights carried entries that the asker lacked",
    CaughtUp ["cut"]: "a replica caught up in more than one batch of the log",
    ConcurrentEdit: "two replicas changed one record apart",
    NameConflict: "one name was given twice apart",
    DeleteBeatsUpdate: "a record was changed and deleted apart",
    AgentDied ["agent"]: "an agent died with orders under way",
    LostDisk ["lose"]: "a disk was lost",
    LostEntry ["lose"]: "entries that no other replica had were lost with a disk",
    Retired ["lose"]: "a replica was retired",
    RetiredInCut ["lose", "cut"]: "a retirement took effect while the cloud was parted",
    VoidEntry ["retire"]: "a replica that was retired wrote beyond its cut",
    Fenced ["retire"]: "a replica that was retired came back and was told so",
    Inherited ["lose"]: "an heir took over rights",
    SkewedClock ["skew"]: "two clocks differed by more than a minute",
    Dropped: "a frame was dropped for want of room in a queue, or of a connection",
    LostOnBreak ["cut"]: "frames were lost when a connection broke",
    OldDisk ["old-disk"]: "a disk was put back as it had been",
    OldDiskFenced ["old-disk"]: "a replica on an old disk was told so",
    GivenAway ["old-disk"]: "an agent alone knew that a disk was an old one",
    Cloned ["clone"]: "a copy of a disk was started elsewhere",
    CopyFenced ["clone"]: "a copy of a disk found that it was one",
    Roamed ["site"]: "an agent changed its replica",
    SiteSplit ["site"]: "the replicas of one site were cut off from each other",
    Unvouched ["site"]: "an agent waited for the word of a claim's holder",
    Vouched ["site"]: "a holder at another place stood by a claim",
    StaleOrder ["host"]: "an agent did not obey an order of a lower epoch, or for another pool than its host's",
    HostOff ["host"]: "a machine failed",
    HostDead ["host"]: "a host was declared dead",
    Evacuated ["host"]: "a server of a dead host was placed anew",
    HostRevived ["host"]: "a host that was dead came back",
    DeathMissed ["host", "site"]: "a host came back to a replica that had not heard of its death",
    Replaced ["logs", "cut"]: "a replica took a snapshot in place of its state",
    Replayed ["logs", "cut"]: "a snapshot lacked entries, which were replayed on it",
    Forked ["liar"]: "a member forked, and told each half of the cloud another story",
    Lied ["liar"]: "an entry that breaks a rule was refused",
    Swollen ["liar"]: "a root said that its host has more than it has, and placed servers there",
    BranchesMet ["liar"]: "two branches of a log were held by one replica",
    ForkRetired ["liar"]: "a member that forked was retired by its own proof",
    Undeceived ["liar"]: "a newcomer was told that the state that it was given is none",
    Overdrawn ["liar"]: "a right was spent twice, and showed as a debt",
    Attested: "others had the state that a replica was given",
    Unconfirmed: "rights waited for the word of their pool's root",
    AddressesGrown: "a pool of addresses grew",
    AddressesBurnt: "addresses were burnt",
    Burnt: "a pool shrank while in use",
    Grown: "a pool grew while in use",
}

/// States that need a flood, or much at once: they are counted, not demanded.
pub const RARE: &[State] = &[State::Dropped, State::DeathMissed];

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
        let comes = |state: &State| state.faults().iter().all(|fault| faults.contains(*fault));
        let due = |state: &State| comes(state) && !RARE.contains(state);
        State::ALL.iter().copied().filter(|state| due(state) && self.count(*state) == 0).collect()
    }
}
