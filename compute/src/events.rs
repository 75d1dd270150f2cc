//! libvirt's events, which the `virt` crate has no safe wrapper for: the one place of this crate with `unsafe`.
//!
//! What is relied upon, from libvirt's documentation: callbacks run on the thread that runs the default event loop; a
//! callback's `opaque` pointer stays valid until its free function is called, which libvirt does exactly once, when
//! the callback is deregistered or its connection is closed; the domain that a callback is given is valid during
//! the call. So each registration owns one reference to its [`Signals`], which the free function gives back.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::raw::{c_int, c_void};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;
use virt::connect::Connect;
use virt::sys;

/// What happened since it was last asked. Bounded by the number of domains: it says which changed, not how often.
#[derive(Debug, Default)]
pub struct Signals {
    state: Mutex<State>,
    /// Rung when there is something to take.
    pub bell: Notify,
}

#[derive(Debug, Default)]
struct State {
    changed: BTreeMap<Uuid, bool>,
    closed: bool,
}

/// See [`Signals::take`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Domains that changed, and whether their guests rebooted.
    pub changed: BTreeMap<Uuid, bool>,
    /// The connection is gone.
    pub closed: bool,
}

impl Signals {
    /// What happened since the last call.
    #[must_use]
    pub fn take(&self) -> Taken {
        let state = std::mem::take(&mut *self.state.lock());
        Taken { changed: state.changed, closed: state.closed }
    }

    /// A domain changed.
    pub fn changed(&self, domain: Uuid, rebooted: bool) {
        *self.state.lock().changed.entry(domain).or_default() |= rebooted;
        self.bell.notify_one();
    }

    /// The connection is gone.
    pub fn closed(&self) {
        self.state.lock().closed = true;
        self.bell.notify_one();
    }
}

/// Makes libvirt deliver events: its default loop, on a thread of its own, once a process. Must have been called before
/// the first connection is opened.
///
/// # Errors
/// libvirt's, if the loop cannot be set up; a thread that cannot be started counts as such.
pub fn start_loop() -> Result<(), virt::error::Error> {
    static LOOP: OnceLock<Result<(), virt::error::Error>> = OnceLock::new();
    LOOP.get_or_init(|| {
        // Errors are returned where they happen; libvirt need not print them as well.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl()?;
        let run = || {
            while virt::event::event_run_default_impl().is_ok() {}
            tracing::error!("libvirt's event loop ended; changes are seen by the periodic list only");
        };
        if std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(run).is_err() {
            tracing::error!("no thread for libvirt's events; changes are seen by the periodic list only");
        }
        Ok(())
    })
    .clone()
}

/// Ends when it is dropped. Registered callbacks keep a connection open: without this, each connection to a libvirtd
/// that is gone would be kept for ever.
#[derive(Debug)]
pub struct Subscription {
    connect: Connect,
    callbacks: Vec<c_int>,
    close: bool,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for id in &self.callbacks {
            // SAFETY: the connection is alive, and the id was given out by it. Where libvirtd is gone, libvirt says so,
            // and has forgotten the callback all the same.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), *id) };
        }
        if self.close {
            // SAFETY: as above; it was registered with this function.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(closed)) };
        }
    }
}

/// Has `signals` told of what happens on a connection, until the subscription is dropped.
///
/// # Errors
/// libvirt's. Then nothing is told of.
pub fn subscribe(connect: &Connect, signals: &Arc<Signals>) -> Result<Subscription, virt::error::Error> {
    // SAFETY: the generic callback type stands for the one that libvirt calls for this event id, which for
    // `LIFECYCLE` is the type of `lifecycle`: it is called with exactly those arguments.
    let lifecycle = unsafe { std::mem::transmute::<LifecycleCallback, GenericCallback>(lifecycle) };
    let mut subscription = Subscription { connect: connect.clone(), callbacks: Vec::new(), close: false };
    for (event, callback) in
        [(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle), (sys::VIR_DOMAIN_EVENT_ID_REBOOT, rebooted as _)]
    {
        let opaque = Arc::into_raw(signals.clone()).cast_mut().cast::<c_void>();
        let event = c_int::try_from(event).unwrap_or(0);
        // SAFETY: the connection is alive; `opaque` is a reference of its own, given back by `free`.
        let id = unsafe {
            let connect = connect.as_ptr();
            let any = std::ptr::null_mut();
            sys::virConnectDomainEventRegisterAny(connect, any, event, Some(callback), opaque, Some(free))
        };
        if id < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: libvirt did not take the reference.
            unsafe { free(opaque) };
            return Err(error);
        }
        subscription.callbacks.push(id);
    }
    let opaque = Arc::into_raw(signals.clone()).cast_mut().cast::<c_void>();
    // SAFETY: as above.
    let code = unsafe { sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(closed), opaque, Some(free)) };
    subscription.close = code >= 0;
    if !subscription.close {
        // Drivers in the own process, as the simulated hypervisor, cannot lose their connection and have no such event.
        // SAFETY: libvirt did not take the reference.
        unsafe { free(opaque) };
    }
    Ok(subscription)
}

type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: see the module.
    unsafe { tell(domain, opaque, false) };
    0
}

unsafe extern "C" fn rebooted(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: see the module.
    unsafe { tell(domain, opaque, true) };
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the registration's reference, and valid until it is freed.
    let signals = unsafe { &*opaque.cast::<Signals>() };
    signals.closed();
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: made by `Arc::into_raw` for this registration, and given back once.
    drop(unsafe { Arc::from_raw(opaque.cast::<Signals>().cast_const()) });
}

unsafe fn tell(domain: sys::virDomainPtr, opaque: *mut c_void, rebooted: bool) {
    // SAFETY: `opaque` is the registration's reference, and valid until it is freed.
    let signals = unsafe { &*opaque.cast::<Signals>() };
    let mut id = [0_u8; 16];
    // SAFETY: the domain is valid during the call, and a UUID is 16 bytes (VIR_UUID_BUFLEN).
    if unsafe { sys::virDomainGetUUID(domain, id.as_mut_ptr()) } == 0 {
        signals.changed(Uuid::from_bytes(id), rebooted);
    }
}
