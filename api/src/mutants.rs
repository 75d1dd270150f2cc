//! Seeded bugs, in test builds only (feature `mutants`): switched on for the whole process by the environment variable
//! `LUC_MUTANT`, which names one of the engine's or one of a site's. `jepsen prove` runs such sites.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use luc_engine::mutant::{self, Mutant};
use luc_engine::site_mutant::{self, SiteMutant, on};
use luc_engine::view::View;
use parking_lot::Mutex;

use crate::app::App;

/// Switches on what `LUC_MUTANT` names.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn from_environment() -> Result<(), String> {
    let Ok(name) = std::env::var("LUC_MUTANT") else { return Ok(()) };
    if let Some(mutant) = SiteMutant::named(&name) {
        site_mutant::set(mutant);
    } else if let Some(mutant) = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == name) {
        mutant::set_for_process(*mutant);
    } else {
        return Err(format!("LUC_MUTANT={name}: there is no such seeded bug"));
    }
    eprintln!("luc: the seeded bug {name} is switched on: this is a test");
    Ok(())
}

/// A view that may be two seconds old; not in the first minute, in which a cloud is set up.
pub(crate) fn stale(app: &App) -> Arc<View> {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    static KEPT: Mutex<Option<(Instant, Arc<View>)>> = Mutex::new(None);
    if FIRST.elapsed() < Duration::from_secs(60) {
        return app.node().view();
    }
    let mut kept = KEPT.lock();
    if let Some((_, view)) = kept.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_secs(2)) {
        return view.clone();
    }
    let view = app.node().view();
    *kept = Some((Instant::now(), view.clone()));
    view
}

/// Waits until all others can be reached, or for long.
pub(crate) async fn ask_everybody(app: &App) {
    if !on(SiteMutant::AsksEverybody) {
        return;
    }
    for _ in 0..300 {
        if app.net().reach().iter().all(|reach| reach.reachable) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
