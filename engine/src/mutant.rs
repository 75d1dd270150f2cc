//! Seeded bugs: what the simulator must notice. Without the feature `mutants` none of them can be switched on, and
//! [`on`] is a constant.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident: $rules:literal,)*) => {
        /// One seeded bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The rules of the protocol that it breaks, as `docs/reservations.md` names them.
            #[must_use]
            pub fn rules(self) -> &'static str {
                match self { $(Self::$name => $rules,)* }
            }
        }
    };
}

mutants! {
    /// Claims, grants and burns are not held against the author's account.
    RightsUnchecked: "A1",
    /// The driver answers before the flush.
    FlushSkipped: "E2",
    /// The driver sends before the flush.
    PushedBeforeFlush: "E2",
    /// A host claim is released without its agent's word.
    ReleaseWithoutWord: "A3",
    /// A release gives its amount back twice.
    ReleaseTwice: "A4",
    /// A grant arrives twice.
    TransferTwice: "A1",
    /// A deleted record leaves no tombstone.
    TombstoneDropped: "R2",
    /// The quota and the host are claimed by two entries.
    ClaimsSplit: "A3",
    /// An entry is applied before its past.
    PastIgnored: "E4 A6",
    /// An entry is judged by all that its receiver holds, not by its own past.
    JudgedByReceiver: "E3",
    /// A retirement takes effect by one seal alone.
    OwnSealOnly: "M2",
    /// The lowest seal is the cut.
    LowestSeal: "M2",
    /// Entries of whom one has sealed are taken as before.
    SealIgnored: "M2",
    /// A retirement takes effect by seals alone.
    AssentIgnored: "M2",
    /// Anybody releases a claim, not its holder alone.
    ReleaseByAnybody: "A3",
    /// The bearers of a name stand in the order in which they came.
    NameByArrival: "E6 R3",
    /// A record that is gone stays so, though an entry that knew it refers to it.
    KeptIgnored: "R1",
    /// A released claim stays in the store.
    ReleaseNotStored: "A4",
    /// A replica writes on an old copy of its disk, though others hold later entries of its own.
    OldDiskAccepted: "M4",
    /// A store that lies elsewhere than where it was made is taken for the first.
    PlaceIgnored: "M4",
    /// A newcomer's snapshot lacks the claims.
    SnapshotTorn: "E4 M1",
    /// An agent obeys whatever order comes last: of a lower epoch, or for a pool that its host does not serve.
    StalePlacement: "S1 S3",
    /// An agent starts what the holder of its claim has not stood by.
    VouchIgnored: "S1",
    /// What a witness knows of a replica's log is not looked at.
    WitnessIgnored: "M4",
    /// Of two observations of a server the one that comes last stands.
    ObservationByArrival: "S4",
    /// An agent that starts anew has forgotten what it said is gone for good.
    WordForgotten: "A3",
    /// A tombstone is purged as soon as its record is gone here.
    PurgedUnstable: "R2",
    /// What a snapshot lacks is not replayed on it.
    ReplayForgotten: "E4 M5",
    /// Whoever has a long log drops what others lack, though they are more.
    MinorityDrops: "M5",
    /// Rights to a host are spent though it was declared dead.
    DeadHostSpent: "S5",
    /// Retiring a replica counts as the death of the hosts whose pools it made.
    RetiredHostDead: "S5",
    /// Nobody checks who signed an entry.
    SignatureUnchecked: "E1",
    /// Whoever is a member writes any record, and speaks for any host.
    WriterUnchecked: "E7",
    /// Anybody mints into a pool.
    RootUnchecked: "A2",
    /// A grant of a confirmed pool counts without its root's word.
    ConfirmIgnored: "A5",
    /// What a fork has spent twice is no debt.
    DebtForgiven: "M3",
    /// Of what an entry has seen only the numbers count: forks do not show.
    HashIgnored: "E5",
    /// The proof of a fork is kept to oneself.
    ForkUntold: "M3",
    /// Whoever has rights to a host places any server there.
    PlacedByAnybody: "S1",
    /// An agent starts what does not fit on its host.
    CapacityIgnored: "S3",
    /// A state that was given is kept, though the others show another.
    TrustKept: "E4 M1",
}

/// Whether a seeded bug is switched on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switches::{on, set, set_for_process};

#[cfg(feature = "mutants")]
mod switches {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    /// The one that is on in all threads; 0 for none.
    static EVERYWHERE: AtomicU8 = AtomicU8::new(0);

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether a seeded bug is switched on, in this thread.
    #[must_use]
    pub fn on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant) || EVERYWHERE.load(Ordering::Relaxed) == mutant as u8 + 1
    }

    /// Switches one on in all threads: for a process that is a whole site.
    pub fn set_for_process(mutant: Mutant) {
        EVERYWHERE.store(mutant as u8 + 1, Ordering::Relaxed);
    }

    /// Switches one on in this thread, or all off.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}
