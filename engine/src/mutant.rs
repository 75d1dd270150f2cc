//! Seeded bugs: what the simulator must notice. Without the feature `mutants` none of them can be switched on, and
//! [`on`] is a constant.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One seeded bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    /// Claims, grants and burns are not held against the author's account.
    RightsUnchecked,
    /// The driver answers before the flush.
    FlushSkipped,
    /// The driver sends before the flush.
    PushedBeforeFlush,
    /// A host claim is released without its agent's word.
    ReleaseWithoutWord,
    /// A release gives its amount back twice.
    ReleaseTwice,
    /// A grant arrives twice.
    TransferTwice,
    /// A deleted record leaves no tombstone.
    TombstoneDropped,
    /// The quota and the host are claimed by two entries.
    ClaimsSplit,
    /// An entry is applied before its past.
    PastIgnored,
    /// An entry is judged by all that its receiver holds, not by its own past.
    JudgedByReceiver,
    /// A retirement takes effect by one seal alone.
    OwnSealOnly,
    /// The lowest seal is the cut.
    LowestSeal,
    /// Entries of whom one has sealed are taken as before.
    SealIgnored,
    /// Anybody releases a claim, not its holder alone.
    ReleaseByAnybody,
    /// The bearers of a name stand in the order in which they came.
    NameByArrival,
    /// A record that is gone stays so, though an entry that knew it refers to it.
    KeptIgnored,
    /// A released claim stays in the store.
    ReleaseNotStored,
    /// A replica writes on an old copy of its disk, though others hold later entries of its own.
    OldDiskAccepted,
    /// A store that lies elsewhere than where it was made is taken for the first.
    PlaceIgnored,
    /// A newcomer's snapshot lacks the claims.
    SnapshotTorn,
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
