//! TAP devices: what one end sends as Ethernet frames, this process reads, and the other way round. The one place of this
//! crate with `unsafe`: three ioctls that no library at hand wraps.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Bytes that the kernel puts before each frame (`struct virtio_net_hdr`): what it left to be done for it.
pub const HEADER: usize = 10;
/// The largest frame that the kernel hands over, with its header.
pub const LARGEST: usize = HEADER + 65_550;

// <linux/if_tun.h>
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Checksums, and TCP segments over IPv4 and IPv6, with ECN too.
const OFFLOAD_TCP: u32 = 0x01 | 0x02 | 0x04 | 0x08;
/// UDP segments (QUIC sends them), since Linux 6.2.
const OFFLOAD_UDP: u32 = 0x20 | 0x40;

/// One end of a TAP device. The device is gone when this is dropped.
pub struct Tap {
    file: File,
    whole: bool,
}

impl Tap {
    /// Makes a device of this name.
    ///
    /// # Errors
    /// What the kernel says: not allowed, or the name is in use.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        if name.len() >= request.name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has at most 15 bytes"));
        }
        request.name.iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `Request` is, and keeps no pointer to it.
        unsafe { ioctl(&file, Attach(&mut request)) }?;
        let mut tap = Self { file, whole: true };
        tap.set_whole(true)?;
        Ok(tap)
    }

    /// Whether the kernel may hand over many segments as one frame: faster, but then what happens to one frame happens to
    /// all of them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_whole(&mut self, whole: bool) -> io::Result<()> {
        let wanted: &[u32] = if whole { &[OFFLOAD_TCP | OFFLOAD_UDP, OFFLOAD_TCP] } else { &[0] };
        let mut result = Ok(());
        for offload in wanted {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            result = unsafe { ioctl(&self.file, Offload(*offload)) };
            if result.is_ok() {
                break;
            }
        }
        self.whole = whole;
        Ok(result?)
    }

    /// See [`Tap::set_whole`].
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Reads one frame, with its header, if one waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.file, buffer) {
            Ok(size) => Ok(Some(size)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands a frame, with its header, to the device. It is lost where the device is down, as on a cable that is not
    /// plugged in.
    pub fn write(&self, frame: &[u8]) {
        let _ = rustix::io::write(&self.file, frame);
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `struct ifreq`, as far as it is used here; it has 40 bytes.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

struct Attach<'a>(&'a mut Request);

// SAFETY: the pointer is to a `struct ifreq` that lives as long as the call.
unsafe impl Ioctl for Attach<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        TUNSETIFF
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

struct Offload(u32);

// SAFETY: the argument is a number, which the kernel does not follow.
unsafe impl Ioctl for Offload {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        TUNSETOFFLOAD
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}
